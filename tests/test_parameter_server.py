"""ParameterServerStrategy: real servers on localhost.

One cluster of a chief, two workers and two parameter servers, started once
for all tests.
"""

import collections
import re

import numpy as np
import pytest

import cluster
import helpers
import parameter_server_runs as runs
import tf_adamw
from joined_batch import SHAPES, Model, Training
from joined_reference import Reference

pytestmark = [pytest.mark.core, pytest.mark.slow]

every_run = pytest.mark.parametrize("name", runs.RUNS)
every_continued = pytest.mark.parametrize("name", runs.CONTINUED)
SERVERS = {f"/job:ps/replica:0/task:{i}/device:CPU:0" for i in (0, 1)}


def one_process():
    """The saved runs' training, by this process."""
    options = runs.RUNS["window"].options
    training = Training(Model(), tf_adamw.AdamW(0.01, **options))
    training.optimizer.build(training.model)
    return training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def saved_here(folder):
    """A checkpoint that this process has written in mid-window."""
    training = one_process()
    training.train(0, runs.STEPS)
    return training.checkpoint.write(str(folder / "one_process"))


@pytest.fixture(scope="module")
def logs(folder, saved_here):
    """Runs the cluster: what each process has written."""
    reading = [f"restore:{saved_here}", f"fail:{saved_here}"]
    actions = ["train", "save", *reading, "concurrently", "refuse"]
    return cluster.run(
        {"ps": 2, "worker": 2, "chief": 1},
        folder,
        ["parameter_server_program.py", str(folder), *actions],
        until=["chief-0"],
    )


@pytest.fixture(scope="module")
def results(folder, logs):
    return cluster.read_results(folder / "chief-0.npz")


@every_run
def test_numbers_are_the_references(results, name):
    run = runs.RUNS[name]
    reference = Reference(run)
    applied, norms = reference.train(0, runs.STEPS)
    np.testing.assert_array_equal(results[name]["steps", "applied"], applied)
    by_norm = {"clipnorm", "global_clipnorm"} & run.options.keys()
    expected = norms if by_norm else np.full(runs.STEPS, np.nan)
    found = results[name]["steps", "norms"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    reference.check(results[name])


@every_run
def test_state_lives_with_its_variable(results, name):
    found = results[name]
    used = set()
    for key in SHAPES:
        devices = found["devices", key].tolist()
        assert len(devices) == runs.RUNS[name].shards
        used.update(devices)
        slots = [what for what, k in found if k == key and "devices" in what]
        assert len(slots) > 2
        for slot in slots:
            assert found[slot, key].tolist() == devices
    assert used == SERVERS


def operations(log):
    """{operation: the devices where a process has placed it}."""
    places = collections.defaultdict(collections.Counter)
    for operation, place in re.findall(r": \((\w+)\): (/job:\S+)", log):
        places[operation][place] += 1
    return places


def test_fused_ops_update_on_the_servers(logs):
    """As the workers themselves have placed the operations."""
    writers = re.compile(r"Assign\w*VariableOp|Resource(Apply|Scatter)\w+")
    for worker in ("worker-0", "worker-1"):
        places = operations(logs[worker])
        for fused in ("ResourceApplyAdam", "ResourceApplyAdamWithAmsgrad"):
            assert set(places[fused]) == SERVERS
        for operation in filter(writers.fullmatch, places):
            assert set(places[operation]) <= SERVERS


@pytest.mark.parametrize(
    ("whole", "sharded"), [("plain", "sharded"), ("outside", "sharded_lazy")]
)
def test_weights_are_not_sent_to_be_updated(results, whole, sharded):
    """A worker uses the step's scalars, as many for any number of shards."""
    few, many = (results[name] for name in (whole, sharded))
    assert many["uses", "servers"] == 2 * few["uses", "servers"] > 0
    assert many["uses", "worker"] == few["uses", "worker"]


def test_xla_on_another_machine_is_refused(results):
    message = str(results["refused"]["message", "text"])
    assert "jit_compile=True cannot serve here" in message
    assert set(re.findall(r"/job:[^\s,]+\d", message)) >= SERVERS


@pytest.mark.parametrize("name", runs.AVERAGED)
def test_averaged_weights(results, name):
    within, after = (results[f"{when} {name}"] for when in ("within", "after"))
    for key in SHAPES:
        weights = results[name]["weights", key]
        assert after["weights", key].tobytes() == weights.tobytes()
        average = results[name]["average", key]
        assert within["weights", key].tobytes() == average.tobytes()
    changed = within["weights", "kernel"] != after["weights", "kernel"]
    assert changed.any()


def checkpoint_shapes(path):
    return {k: v.shape for k, v in helpers.checkpoint_values(path).items()}


@every_continued
def test_checkpoints_do_not_depend_on_shards(folder, results, saved_here, name):
    expected = checkpoint_shapes(saved_here)
    assert checkpoint_shapes(folder / name) == expected
    assert expected["optimizer/slots/table/momentum"] == SHAPES["table"]


@every_continued
def test_going_on_in_mid_window(results, name):
    reference = Reference(runs.RUNS[name])
    reference.train(0, runs.CONTINUED_TO)
    reference.check(results[f"continued {name}"])


@every_continued
def test_servers_go_on_with_one_processs_checkpoint(results, name):
    reference = Reference(runs.RUNS[name])
    reference.train(0, runs.STEPS)
    reference.check(results[f"restored {name}"])
    reference.train(runs.STEPS, runs.CONTINUED_TO)
    reference.check(results[f"then continued {name}"])


@every_continued
def test_a_failure_half_way(results, name):
    """Every shard has its values again."""
    before, between, after = (
        {
            key: value.tobytes()
            for key, value in results[f"{when} {name}"].items()
        }
        for when in ("before", "half way", "after failing")
    )
    assert before == after != between


@every_continued
def test_one_process_goes_on_with_the_servers_checkpoint(folder, results, name):
    reference = Reference(runs.RUNS[name])
    training = one_process()
    training.checkpoint.read(str(folder / name)).assert_consumed()
    reference.train(0, runs.STEPS)
    reference.check(training.found())
    training.train(runs.STEPS, runs.CONTINUED_TO)
    reference.train(runs.STEPS, runs.CONTINUED_TO)
    reference.check(training.found())


@pytest.mark.parametrize("name", runs.CONCURRENT)
def test_no_concurrent_step_is_lost(results, name):
    found = results[f"concurrent {name}"]
    assert found["counted", "updates"] == runs.CONCURRENT_STEPS
    for key in SHAPES:
        assert np.isfinite(found["weights", key]).all()
