"""MultiWorkerMirroredStrategy: two and three real processes on localhost.

Four clusters, each started once for all tests: two and three workers train
the same batches; of two more workers one is killed, and both start again.
"""

import re

import numpy as np
import pytest

import cluster
import helpers
import multi_worker_runs as runs
import tf_adamw
from joined_batch import Model, Training
from joined_reference import Reference

pytestmark = [pytest.mark.core, pytest.mark.slow]

PROGRAM = "multi_worker_program.py"

every_run = pytest.mark.parametrize("name", runs.RUNS)
every_continued = pytest.mark.parametrize("name", runs.CONTINUED)
both_sizes = pytest.mark.parametrize("workers", [2, 3])


def run(workers, folder, *actions):
    """Runs a cluster to its end: what each worker found."""
    cluster.run({"worker": workers}, folder, [PROGRAM, str(folder), *actions])
    return [
        cluster.read_results(folder / f"worker-{index}.npz")
        for index in range(workers)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clusters")


@pytest.fixture(scope="module")
def two(folder):
    return run(
        2, folder / "two", "train", "save", f"job:{folder / 'uninterrupted'}"
    )


@pytest.fixture(scope="module")
def saved(folder, two):
    """Where two workers have saved runs in mid-window."""
    return folder / "two"


@pytest.fixture(scope="module")
def three(folder, saved):
    return run(3, folder / "three", "train", f"restore:{saved}")


@pytest.fixture(scope="module")
def log_of_the_left(folder):
    """Kills a worker in training; what the other one writes then."""
    own = folder / "killed"
    command = [PROGRAM, str(own), f"job:{folder / 'interrupted'}:stop"]
    with cluster.Cluster({"worker": 2}, own, command) as workers:
        workers.wait((own / "stopped").exists)
        workers.kill("worker-1")
        return workers.failure("worker-0")


@pytest.fixture(scope="module")
def restarted(folder, log_of_the_left, saved):
    job = f"job:{folder / 'interrupted'}"
    return run(2, folder / "restarted", job, f"restore:{saved}")


@pytest.fixture
def results(request, workers):
    return request.getfixturevalue({2: "two", 3: "three"}[workers])


def same_bits(first, second):
    assert first.keys() == second.keys()
    for key, array in first.items():
        assert array.dtype == second[key].dtype
        assert array.tobytes() == second[key].tobytes(), key


@both_sizes
@every_run
def test_numbers_are_those_of_the_joined_batch(results, workers, name):
    reference = Reference(runs.RUNS[name], workers)
    applied, norms = reference.train(0, runs.STEPS)
    first = results[0][name]
    np.testing.assert_array_equal(first["steps", "applied"], applied)
    by_norm = {"clipnorm", "global_clipnorm"} & runs.RUNS[name].options.keys()
    expected = norms if by_norm else np.full(runs.STEPS, np.nan)
    np.testing.assert_allclose(first["steps", "norms"], expected, rtol=1e-5)
    reference.check(first)


@both_sizes
@every_run
def test_workers_are_bitwise_equal(results, workers, name):
    for other in results[1:]:
        same_bits(results[0][name], other[name])


@both_sizes
@every_run
def test_one_reduction_per_window(results, workers, name):
    """A window's is in a conditional: other micro-steps pass it by."""
    found = results[0][name]
    conditional = runs.RUNS[name].reduces_in_windows
    assert found["all-reduces", "conditional"] == conditional
    assert found["all-reduces", "always"] == (not conditional)


@both_sizes
def test_averaged_weights(results, workers):
    for worker in results:
        same_bits(worker["averages"], {**worker["averages"], **worker["after"]})
        for when in ("within", "finalized"):
            average = {
                key: worker["averages"]["average", key[1]]
                if key[0] == "weights"
                else array
                for key, array in worker[when].items()
            }
            same_bits(worker[when], average)
        same_bits(worker["within"], results[0]["within"])


@every_continued
def test_the_window_in_a_checkpoint_is_that_of_all(saved, name):
    reference = Reference(runs.RUNS[name], workers=2)
    reference.train(0, runs.STEPS)
    values = helpers.checkpoint_values(saved / name)
    assert values["optimizer/counters/window_position"] == 2
    held = {("counted", "updates"): values["optimizer/counters/iterations"]}
    for key in reference.adamw.weights:
        held["weights", key] = values[f"model/{key}"]
        prefix = f"optimizer/slots/{key}/"
        for path in values:
            if path.startswith(prefix):
                held[path.removeprefix(prefix), key] = values[path]
    # That of a variable without gradients has not begun.
    if ("average", "unused") in held:
        assert np.isnan(held["average", "unused"]).all()
        held["average", "unused"] = held["weights", "unused"]
    reference.check(held)


@every_continued
@pytest.mark.parametrize("kind", ["two", "three", "restarted"])
def test_a_cluster_goes_on_in_mid_window(request, kind, name):
    """The same one, and new ones of three and of two workers."""
    results = request.getfixturevalue(kind)
    reference = Reference(runs.RUNS[name], workers=2)
    reference.train(0, runs.STEPS)
    if kind != "two":
        reference.check(results[0][f"restored {name}"])
    reference.share = Reference(runs.RUNS[name], len(results)).share
    reference.train(runs.STEPS, runs.CONTINUED_TO)
    reference.check(results[0][f"continued {name}"])
    for other in results[1:]:
        for when in ("restored", "continued"):
            if f"{when} {name}" in other:
                same_bits(other[f"{when} {name}"], results[0][f"{when} {name}"])


@every_continued
def test_one_process_goes_on_in_mid_window(saved, name):
    training = Training(
        Model(), tf_adamw.AdamW(0.01, **runs.RUNS[name].options)
    )
    training.optimizer.build(training.model)
    training.checkpoint.read(str(saved / name)).assert_consumed()
    reference = Reference(runs.RUNS[name], workers=2)
    reference.train(0, runs.STEPS)
    reference.check(training.found())
    reference.share = 1.0
    training.train(runs.STEPS, runs.CONTINUED_TO)
    reference.train(runs.STEPS, runs.CONTINUED_TO)
    reference.check(training.found())


def test_a_worker_does_not_go_on_alone(log_of_the_left):
    assert re.search(r"(Unavailable|Aborted|Cancelled)Error", log_of_the_left)


def test_a_restarted_job_ends_as_if_never_killed(two, restarted):
    every = runs.JOB_SAVES_EVERY
    reference = Reference(runs.RUNS["window"])
    reference.train(0, runs.STEPS)
    for worker in restarted:
        last_saved = runs.JOB_STOPS_AT // every * every
        assert worker["job"]["began", "at"] == last_saved
        same_bits(worker["job averages"], two[0]["job averages"])
        # A window that was cut in two is added up in another order.
        reference.check(worker["job window"])
        same_bits(worker["job window"], restarted[0]["job window"])
