"""What becomes of the files of checkpoints that cannot be read."""

import pytest

import lm_program
from lm_saved_run import STEPS, Run, assert_same, cut, values


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made, tmp_path):
    return made.copied_to(tmp_path / "run")


@pytest.mark.parametrize("index", [None, b"", b"the beginning of an index"])
def test_a_kill_in_the_first_save_begins_again(run, index, capfd):
    for step in (4, 8):
        run.file(step, "index").unlink()
        run.file(step, "data").unlink()
    run.state.unlink()
    if index is None:
        run.file(12, "index").unlink()
    else:
        run.file(12, "index").write_bytes(index)
    leave_unfinished(run, 12)
    for _ in range(2):  # also when it is killed again before it has saved
        assert run.restore() is None
        assert run.manage(None).checkpoints == []
        assert list(run.state.parent.iterdir()) == []
    assert lm_program.own_lines(capfd.readouterr().err) == []


def leave_unfinished(run, step):
    """What is left of a checkpoint that was being saved."""
    part = "ckpt-{step}_temp/part-00000-of-00001.index.tempstate1"
    path = run.state.parent / part.format(step=step)
    path.parent.mkdir()
    path.write_text("left")
    (run.state.parent / "checkpoint.tmp0a1b").write_text("left")


def test_what_a_kill_in_a_later_save_leaves_is_removed(run, capfd):
    names = {path.name for path in run.state.parent.iterdir()}
    leave_unfinished(run, 16)
    run.file(16, "data").write_text("left")
    assert run.restore() == 12
    manager = run.manage(12, keep=4)
    assert steps(manager) == [16, 4, 8, 12]
    left = {path.name for path in run.state.parent.iterdir()}
    assert left - names == {run.file(16, "data").name}
    manager.save(14)
    left = {path.name for path in run.state.parent.iterdir()}
    assert not any("-16" in name for name in left)
    assert lm_program.own_lines(capfd.readouterr().err) == []


def test_a_temporary_directory_does_not_make_a_checkpoint_unfinished(run):
    for step in STEPS[1:]:
        leave_unfinished(run, step)
        cut(run.file(step, "data"), 10)
        (run.state.parent / "checkpoint.tmp0a1b").unlink()
    assert run.restore() == 4
    cut(run.file(4, "data"), 10)
    with pytest.raises(ValueError, match="; no older one can be read either"):
        run.restore()


def steps(manager):
    return [int(path.rpartition("-")[2]) for path in manager.checkpoints]


def test_after_a_fall_back_damaged_ones_are_kept_by_another_name(run, capfd):
    for step in (8, 12):
        cut(run.file(step, "data"), 10)
    files = {
        f"damaged-{path.name}": path.read_bytes()
        for step in (8, 12)
        for path in run.state.parent.glob(f"ckpt-{step}.*")
    }
    assert run.restore() == 4
    capfd.readouterr()
    manager = run.manage(4, keep=2)
    first, second = lm_program.own_lines(capfd.readouterr().err)
    assert "renamed ckpt-12.* in " in first and "damaged-ckpt-12.*" in first
    assert "renamed ckpt-8.* in " in second
    assert steps(manager) == [4]
    assert manager.latest_checkpoint.endswith("/ckpt-4")
    for step in (8, 12, 14):
        run.trainer.train(step - int(run.trainer.step))
        manager.save(step)
    path = f"{run.directory}/checkpoints/ckpt-12"
    assert_same(values(path), run.saved[12])
    assert run.restore() == 14
    assert steps(run.manage(14)) == [12, 14]
    assert lm_program.own_lines(capfd.readouterr().err) == []
    kept = run.state.parent.glob("damaged-*")
    assert {path.name: path.read_bytes() for path in kept} == files


def test_a_kill_while_the_damaged_ones_are_renamed(run):
    cut(run.file(12, "data"), 10)
    run.file(12, "index").rename(
        run.file(12, "index").with_name("damaged-ckpt-12.index")
    )
    assert run.restore() == 8
    assert steps(run.manage(8)) == [4, 8]
    names = {path.name for path in run.state.parent.glob("*12*")}
    assert names == {
        "damaged-ckpt-12.index",
        "damaged-ckpt-12.data-00000-of-00001",
    }


def test_the_only_good_checkpoint_is_not_removed(run):
    """The first one, of which a bad minute said that it was cut off."""
    for step in (4, 8):
        run.file(step, "index").unlink()
        run.file(step, "data").unlink()
    run.state.unlink()
    leave_unfinished(run, 12)
    files = lm_program.contents(run.directory)
    with pytest.raises(ValueError, match=r"ckpt-12 .* can now: start"):
        run.manage(None)
    assert lm_program.contents(run.directory) == files


def test_a_good_checkpoint_that_was_passed_over_is_not_deleted(run):
    """After a kill before the state file was written, and a bad minute."""
    run.state.write_text(
        'model_checkpoint_path: "ckpt-8"\n'
        'all_model_checkpoint_paths: "ckpt-8"\n'
    )
    leave_unfinished(run, 12)
    manager = run.manage(8)
    assert steps(manager) == [4, 8]
    path = f"{run.directory}/checkpoints/damaged-ckpt-12"
    assert_same(values(path), run.saved[12])


def test_the_neighbour_of_an_odd_name_is_left_alone(run):
    odd = run.directory.with_name("run[1]")
    other = run.directory.with_name("run1")
    run.directory.rename(other)
    odd.mkdir()
    part = other / "checkpoints" / "ckpt-16_temp"
    part.mkdir()
    run.directory = odd
    (odd / "checkpoints" / "ckpt-3_temp").mkdir(parents=True)
    run.manage(None)
    assert part.exists()
    assert list((odd / "checkpoints").iterdir()) == []


def test_going_back_by_hand_the_newer_ones_are_deleted_first(run, capfd):
    run.state.write_text('model_checkpoint_path: "ckpt-8"\n')
    assert run.restore() == 8
    (line,) = lm_program.own_lines(capfd.readouterr().err)
    assert "/checkpoint' names ckpt-8; there are newer ones" in line
    assert line.endswith("deleted: ckpt-12")
    assert_same(run.values(), run.saved[8])
    manager = run.manage(8, keep=3)
    assert steps(manager) == [12, 4, 8]
    manager.save(10)
    assert not run.file(12, "index").exists()
    assert run.restore() == 10
