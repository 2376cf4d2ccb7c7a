"""train_lm goes on from a run that is damaged, or of an older version."""

import json
import shutil

import pytest

import lm_program

pytestmark = pytest.mark.slow

STEPS = 12
SETTINGS = {
    "steps": STEPS,
    "checkpoint_interval": 4,
    "use_ema": True,
    "jit_compile": False,
}
WORKERS = {"strategy": "multi_worker", "workers_local": 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return lm_program.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("finished")
    return lm_program.finished(folder, data=text, **SETTINGS)


@pytest.fixture
def directory(finished, tmp_path):
    """That of a copy of the run."""
    return shutil.copytree(finished, tmp_path / "run")


def names(directory):
    return {path.name for path in (directory / "checkpoints").iterdir()}


def warnings(err):
    return [line for line in err if line.startswith("train_lm: ")]


def damage(directory, step):
    index = directory / "checkpoints" / f"ckpt-{step}.index"
    index.write_text("damaged")


def test_a_damaged_checkpoint_is_passed_over(finished, directory, text):
    damage(directory, 12)
    code, out, err = lm_program.run_here(
        data=text, model_dir=directory, **SETTINGS
    )
    assert code == 0
    assert out.splitlines()[1] == "resumed at step 8"
    line, renamed = warnings(err)
    assert line.startswith("train_lm: The checkpoint '")
    assert "/ckpt-12' is damaged or missing: " in line
    assert renamed.endswith("to damaged-ckpt-12.*")
    lm_program.assert_alike(directory, finished, STEPS)
    assert names(directory) - names(finished) == {
        "damaged-ckpt-12.index",
        "damaged-ckpt-12.data-00000-of-00001",
    }
    assert names(finished) < names(directory)


def test_damaged_checkpoints_only_are_left_alone(directory, text):
    for step in (4, 8, 12):
        damage(directory, step)
    before = lm_program.contents(directory)
    code, out, (line,) = lm_program.run_here(
        data=text, model_dir=directory, **SETTINGS
    )
    assert (code, out) == (2, "")
    assert line.startswith("train_lm: --model_dir: The checkpoint '")
    assert "/ckpt-12' is damaged or missing: " in line
    assert line.endswith("; no older one can be read either")
    assert lm_program.contents(directory) == before


def test_without_the_state_file_it_goes_on(finished, directory, text):
    (directory / "checkpoints" / "checkpoint").unlink()
    code, out, err = lm_program.run_here(
        data=text, model_dir=directory, **SETTINGS
    )
    assert code == 0
    assert "resumed at step 12\n" in out
    (line,) = warnings(err)
    assert "/checkpoint' names no checkpoint" in line
    assert names(directory) == names(finished)


def test_the_run_of_an_older_version_goes_on(directory, text):
    config = json.loads((directory / "config.json").read_text())
    for name in (
        "aggregation",
        "loss_scale_factor",
        "learning_rate_multipliers",
    ):
        del config[name]
    (directory / "config.json").write_text(json.dumps(config))
    code, _, (line,) = lm_program.run_here(
        data=text, model_dir=directory, aggregation="mean", **SETTINGS
    )
    assert code == 2
    assert line.endswith("has aggregation='sum', not 'mean'")
    code, out, _ = lm_program.run_here(
        data=text, model_dir=directory, **SETTINGS
    )
    assert code == 0
    assert "resumed at step 12\n" in out


def test_workers_pass_over_the_same_checkpoints(tmp_path, text):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    code, _, err = lm_program.run(
        data=text, model_dir=whole, **SETTINGS, **WORKERS
    )
    assert code == 0, err
    shutil.copytree(whole, resumed)
    damage(resumed, 8)
    (resumed / "checkpoints" / "ckpt-12.index").unlink()
    code, out, err = lm_program.run(
        data=text, model_dir=resumed, **SETTINGS, **WORKERS
    )
    assert code == 0, err
    assert "resumed at step 4\n" in out
    newest, next_one, *renamed = warnings(err)
    assert "/ckpt-12' is damaged or missing: " in newest
    assert "/ckpt-8' is damaged or missing: " in next_one
    assert [line.partition(" in ")[0] for line in renamed] == [
        "train_lm: renamed ckpt-12.*",
        "train_lm: renamed ckpt-8.*",
    ]
    lm_program.assert_alike(resumed, whole, STEPS)
    kept = {name for name in names(resumed) if name.startswith("damaged-")}
    assert kept == {
        "damaged-ckpt-8.index",
        "damaged-ckpt-8.data-00000-of-00001",
        "damaged-ckpt-12.data-00000-of-00001",
    }
    assert names(resumed) - kept == names(whole)
