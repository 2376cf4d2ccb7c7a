"""Which checkpoint train_lm goes on from when some are damaged."""

import resource
import shutil

import numpy as np
import pytest
import tensorflow as tf

import lm_program
from lm_saved_run import DAMAGES, STEPS, Run, assert_same, flip
from tf_adamw.scalar_state import FORMAT_VERSION
from tpu_scripts import lm_checkpoints


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made, tmp_path):
    return made.copied_to(tmp_path / "run")


def nothing(run, step):
    pass


any_damage = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
any_damage_or_none = pytest.mark.parametrize(
    "damage", [nothing, *DAMAGES.values()], ids=["nothing", *DAMAGES]
)


@any_damage
def test_the_next_older_one_is_restored(run, damage, capfd):
    damage(run, 12)
    assert run.restore() == 8
    assert_same(run.values(), run.saved[8])
    out, err = capfd.readouterr()
    (line,) = lm_program.own_lines(err)
    assert line.startswith("train_lm: The checkpoint '")
    assert "/ckpt-12' is damaged or missing: " in line
    assert out == ""


@any_damage
def test_when_all_are_damaged_nothing_changes(run, damage, capfd):
    for step in STEPS:
        damage(run, step)
    before, files = run.values(), lm_program.contents(run.directory)
    with pytest.raises(ValueError, match=r"^--model_dir: .*/ckpt-12' ") as info:
        run.restore()
    assert str(info.value).endswith("; no older one can be read either")
    assert "\n" not in str(info.value)
    assert_same(run.values(), before)
    assert lm_program.contents(run.directory) == files
    assert lm_program.own_lines(capfd.readouterr().err) == []


def test_no_flipped_byte_of_the_data_gets_through(run):
    content = run.file(12, "data").read_bytes()
    positions = np.linspace(0, len(content) - 1, 40).astype(int)
    for position in positions:
        run.file(12, "data").write_bytes(content)
        flip(run.file(12, "data"), position)
        assert run.restore() == 8, position
    run.file(12, "data").write_bytes(content)
    assert run.restore() == 12
    assert_same(run.values(), run.saved[12])


@pytest.mark.parametrize(
    "content",
    [
        None,
        pytest.param(b"", marks=pytest.mark.slow),
        b"damaged",
        pytest.param(b"\xff\x00\n", marks=pytest.mark.slow),
    ],
)
@any_damage_or_none
def test_without_the_state_file_it_looks_at_the_files(
    run, content, damage, capfd
):
    if content is None:
        run.state.unlink()
    else:
        run.state.write_bytes(content)
    damage(run, 12)
    expected = 12 if damage is nothing else 8
    assert run.restore() == expected
    assert_same(run.values(), run.saved[expected])
    first, *rest = lm_program.own_lines(capfd.readouterr().err)
    assert f"'{run.state}' names no checkpoint" in first
    assert len(rest) == (damage is not nothing)


def test_a_kill_before_the_state_file_was_written(run, capfd):
    lines = run.state.read_text().splitlines(keepends=True)
    lines = [line for line in lines if '"ckpt-12"' not in line]
    run.state.write_text('model_checkpoint_path: "ckpt-8"\n' + "".join(lines))
    assert run.restore() == 12
    assert_same(run.values(), run.saved[12])
    assert lm_program.own_lines(capfd.readouterr().err) == []


@pytest.mark.parametrize("step", [3, 16])
def test_a_copy_from_a_backup_is_found(run, step):
    """It is older or newer than all that the state file names."""
    for part in ("index", "data"):
        shutil.copy(run.file(12, part), run.file(step, part))
    for damaged in STEPS:
        flip(run.file(damaged, "index"), 500)
    assert run.restore() == step
    assert_same(run.values(), run.saved[12])


def test_too_many_open_files_are_no_damage(run, capfd):
    before, files = run.values(), lm_program.contents(run.directory)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"^--model_dir: .*Too many open"):
            run.restore()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert_same(run.values(), before)
    assert lm_program.contents(run.directory) == files
    assert lm_program.own_lines(capfd.readouterr().err) == []
    assert run.restore() == 12


BAD_MINUTES = [
    tf.errors.UnavailableError(None, None, "503"),
    tf.errors.PermissionDeniedError(None, None, "403"),
    # As TensorFlow's reader tells it.
    tf.errors.OpError(None, None, "/a/ckpt.index; Too many open files", 2),
    tf.errors.OpError(None, None, "/a/ckpt.index; Permission denied", 2),
    tf.errors.OpError(None, None, "HTTP response code 503 with body ''", 2),
]


@pytest.mark.parametrize("error", BAD_MINUTES, ids=str)
def test_a_bad_minute_is_no_damage(run, error, monkeypatch):
    def failing(path):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tf.compat.v1.train, "NewCheckpointReader", failing)
        with pytest.raises(ValueError, match=r"^--model_dir: "):
            run.restore()
    assert run.restore() == 12


def test_no_memory_is_no_damage(run, monkeypatch):
    def failing(path):
        raise MemoryError

    monkeypatch.setattr(tf.compat.v1.train, "NewCheckpointReader", failing)
    with pytest.raises(MemoryError):
        run.restore()


def test_what_fails_once_is_read_again(run, monkeypatch, capfd):
    load, failed = tf.compat.v1.train.NewCheckpointReader, []

    def failing_once(path):
        if not failed:
            failed.append(path)
            raise IndexError("Read less bytes than requested")
        return load(path)

    monkeypatch.setattr(tf.compat.v1.train, "NewCheckpointReader", failing_once)
    assert run.restore() == 12
    assert lm_program.own_lines(capfd.readouterr().err) == []


def test_a_name_that_is_a_pattern_is_no_damage(run):
    odd = run.directory.with_name("run[1]")
    run.directory.rename(odd)
    run.directory = odd
    with pytest.raises(ValueError, match="takes the name for a pattern"):
        run.restore()


def test_a_checkpoint_that_is_named_and_gone_is_passed_over(run, capfd):
    text = run.state.read_text()
    run.state.write_text(text.replace("ckpt-12", "ckpt-99"))
    assert run.restore() == 12
    (line,) = lm_program.own_lines(capfd.readouterr().err)
    assert "/ckpt-99' is damaged or missing: " in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("damaged", r"checkpoint' names no checkpoint$"),
        ('model_checkpoint_path: "ckpt-1"\n', "/ckpt-1' is damaged or missing"),
    ],
)
def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(
    run, text, message
):
    shutil.rmtree(run.state.parent)
    run.state.parent.mkdir()
    run.state.write_text(text)
    with pytest.raises(ValueError, match=f"^--model_dir: .*{message}"):
        run.restore()


@pytest.mark.parametrize(
    ("other", "expected"), [([12], 12), ([8, 8], 8), ([4, 4], 4)]
)
def test_all_workers_restore_the_newest_that_all_can_read(
    run, monkeypatch, other, expected
):
    answers = iter(other)
    monkeypatch.setattr(
        lm_checkpoints,
        "_of_all_workers",
        lambda strategy, number: [number, next(answers)],
    )
    assert run.restore() == expected
    assert_same(run.values(), run.saved[expected])
    assert list(answers) == []


@pytest.mark.parametrize(
    "other", [lm_checkpoints._NOTHING, lm_checkpoints._DAMAGED]
)
def test_a_worker_that_reads_none_ends_all(run, monkeypatch, other):
    monkeypatch.setattr(
        lm_checkpoints,
        "_of_all_workers",
        lambda strategy, number: [number, other],
    )
    with pytest.raises(ValueError, match="have to read the same directory"):
        run.restore()


def test_a_checkpoint_without_a_version_is_that_of_an_older_program(run):
    optimizer = run.trainer.optimizer
    older = tf.train.Checkpoint(
        model=run.trainer.model,
        step=run.trainer.step,
        optimizer=tf.train.Checkpoint(
            counters=optimizer.counters,
            hyperparameters=optimizer.hyperparameters,
            slots=optimizer.slots,
        ),
    )
    assert run.restore() == 12
    shutil.rmtree(run.state.parent)
    path = older.write(f"{run.state.parent}/ckpt-12")
    reader = tf.train.load_checkpoint(path)
    assert not any("version" in k for k in reader.get_variable_to_shape_map())
    run.trainer.train(1)
    assert run.restore() == 12
    found = run.values()
    expected = {key: run.saved[12][key] for key in found}
    key = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"
    found.pop(key), expected.pop(key)
    assert_same(found, expected)


def test_a_checkpoint_of_a_later_version_is_not_passed_over(run):
    """An older one could be read: it would lose what the later one has."""
    version = run.trainer.optimizer.format_version
    version.assign(99)
    run.checkpoint.write(f"{run.state.parent}/ckpt-12")
    version.assign(FORMAT_VERSION)
    before = run.values()
    with pytest.raises(ValueError, match="optimizer/format_version is 99"):
        run.restore()
    assert_same(run.values(), before)
