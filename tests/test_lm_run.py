"""The directory of a run of train_lm, its picture, and who writes where."""

import json

import pytest
import tensorflow as tf

from tpu_scripts import lm_plot, lm_run, lm_strategy

DEFAULTS = {"width": 128, "clipnorm": None, "new": 0.5}
CONFIG = {"width": 16, "decay_steps": 100, "clipnorm": None, "data": "x"}


@pytest.mark.parametrize("kind", ["absent", "empty", "killed", "same"])
def test_a_directory_that_can_be_used(tmp_path, kind):
    directory = tmp_path / "run"
    if kind in ("empty", "killed"):
        directory.mkdir()
    if kind == "killed":  # while it wrote its first file
        (directory / "config.json.partial").write_text("{")
    if kind == "same":
        lm_run.create_directory(str(directory), CONFIG)
    lm_run.check_directory(str(directory), CONFIG, DEFAULTS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 8}, "has width=16, not 8"),
        ({"clipnorm": 1.0}, "has clipnorm=None, not 1.0"),
        ({"new": 1}, "has new=0.5, not 1"),
        ({"unknown": 1}, "has unknown=None, not 1"),
        (
            {"decay_steps": 200},
            "has decay_steps=100, not 200: --decay_steps=100 keeps",
        ),
    ],
)
def test_another_configuration_is_refused(tmp_path, changed, message):
    lm_run.create_directory(str(tmp_path), CONFIG)
    with pytest.raises(ValueError, match=message):
        lm_run.check_directory(str(tmp_path), {**CONFIG, **changed}, DEFAULTS)


def test_flags_that_an_older_run_did_not_have_count_as_their_defaults(tmp_path):
    older = {"width": 16, "data": "x"}
    lm_run.create_directory(str(tmp_path), older)
    defaults = {"width": 128, "clipnorm": None, "exclude": ["norm"]}
    given = {**older, "clipnorm": None, "exclude": ["norm"]}
    lm_run.check_directory(str(tmp_path), given, defaults)
    for name, value in (("clipnorm", 1.0), ("exclude", []), ("width", 128)):
        with pytest.raises(ValueError, match=f"has {name}=.*, not "):
            lm_run.check_directory(
                str(tmp_path), {**given, name: value}, defaults
            )


def test_what_is_not_the_directory_of_a_run_is_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("{")
    with pytest.raises(ValueError, match=r"cannot read '.*config.json'"):
        lm_run.check_directory(str(tmp_path), CONFIG, DEFAULTS)
    file.write_text("[1]")
    with pytest.raises(ValueError, match=r"config.json' is not that of a run"):
        lm_run.check_directory(str(tmp_path), CONFIG, DEFAULTS)
    with pytest.raises(ValueError, match="is not a directory"):
        lm_run.check_directory(str(file), CONFIG, DEFAULTS)
    file.rename(tmp_path / "other.json")
    with pytest.raises(ValueError, match="holds files but no config"):
        lm_run.check_directory(str(tmp_path), CONFIG, DEFAULTS)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(
        ValueError, match=r"--model_dir: .*is not a dir"
    ) as caught:
        lm_run.create_directory(f"{file}/run", CONFIG)
    assert len(str(caught.value).splitlines()) == 1


def test_a_full_disk_is_told_in_one_line():
    with pytest.raises(lm_run.DirectoryError) as caught, lm_run.writing("/dev"):
        tf.io.write_file("/dev/full", "text")
    assert str(caught.value) == (
        "cannot write to '/dev': /dev/full; No space left on device"
    )


def test_a_lost_worker_is_not_taken_for_a_full_disk(tmp_path):
    error = tf.errors.UnavailableError(
        None, None, "Collective ops is aborted by: Socket closed"
    )
    with (
        pytest.raises(tf.errors.UnavailableError) as caught,
        lm_run.writing(str(tmp_path)),
    ):
        raise error
    assert caught.value is error


def test_history_is_cut_at_the_step_that_is_resumed(tmp_path):
    history = lm_run.History(str(tmp_path), 0)
    for step in (10, 20, 30):
        history.append({"step": step, "loss": 100.0 / step})
    with open(tmp_path / "history.jsonl", "a") as file:
        file.write('{"step": 4')  # a kill in the middle of a line
    resumed = lm_run.History(str(tmp_path), 20)
    resumed.append({"step": 30, "loss": 7.0, "held_out": 8.0})
    assert resumed.column("loss") == ([10, 20, 30], [10.0, 5.0, 7.0])
    assert resumed.column("held_out") == ([30], [8.0])
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.records


def test_the_picture_shows_what_there_is(tmp_path):
    path = tmp_path / "curves.png"
    history = lm_run.History(str(tmp_path), 0)
    sizes = []
    for step in (1, 2):
        history.append(
            {"step": step, "loss": 4.0, "learning_rate": 0.1, "held_out": 3.0}
        )
        lm_plot.plot_history(history, 4.5, str(path))
        picture = tf.io.decode_png(path.read_bytes(), channels=3)
        sizes.append(picture.shape)
        assert len(set(picture.numpy().reshape(-1).tolist())) > 50
    assert sizes[0] == sizes[1] == [720, 960, 3]


def cluster(monkeypatch, spec, task_type, task_id):
    """A strategy's view of its place in a cluster."""
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(spec), task_type=task_type, task_id=task_id
    )
    monkeypatch.setattr(
        type(strategy), "cluster_resolver", property(lambda self: resolver)
    )
    return strategy


TWO = {"worker": ["a:1", "b:1"]}
CHIEF = {"chief": ["a:1"], "worker": ["b:1"]}


@pytest.mark.parametrize(
    ("spec", "task_type", "task_id", "writes"),
    [
        ({}, None, None, True),
        (TWO, "worker", 0, True),
        (TWO, "worker", 1, False),
        (CHIEF, "chief", 0, True),
        (CHIEF, "worker", 0, False),
    ],
)
def test_only_the_chief_writes_to_the_common_directory(
    monkeypatch, spec, task_type, task_id, writes
):
    strategy = cluster(monkeypatch, spec, task_type, task_id)
    assert lm_strategy.is_chief(strategy) == writes


def test_strategies_by_name(monkeypatch):
    make = lm_strategy.make_strategy
    assert make("default") is tf.distribute.get_strategy()
    assert isinstance(make("one_device"), tf.distribute.OneDeviceStrategy)
    for replicas in (2, 4):
        mirrored = make("mirrored", logical_cpus=replicas)
        assert type(mirrored) is tf.distribute.MirroredStrategy
        assert mirrored.num_replicas_in_sync == replicas
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="needs the cluster in TF_CONFIG"):
        make("multi_worker")
    monkeypatch.setenv("TF_CONFIG", "{")
    with pytest.raises(ValueError, match="--strategy=multi_worker: "):
        make("multi_worker")


def compiles(replicas, jit_compile):
    devices = [f"CPU:{i}" for i in range(replicas)]
    strategy = tf.distribute.MirroredStrategy(devices)
    return lm_strategy.compiles_step(strategy, "CPU:0", jit_compile)


def test_one_replica_compiles_the_whole_step():
    assert compiles(1, "true")
    assert not compiles(1, "false")
    assert not compiles(2, "true")
    assert not compiles(2, "auto")


@pytest.mark.parametrize("works", [True, False])
def test_auto_compiles_the_whole_step_where_xla_works(monkeypatch, works):
    def function(python_function, jit_compile):
        def call(x):
            if not works:
                raise tf.errors.InvalidArgumentError(None, None, "no XLA")
            return python_function(x)

        return call

    monkeypatch.setattr(tf, "function", function)
    assert compiles(1, "auto") == works
