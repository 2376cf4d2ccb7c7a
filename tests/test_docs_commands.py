"""The shell commands of the pages in docs/ run as they stand."""

import runpy
import shutil

import numpy as np
import pytest

import lm_program
from docs_blocks import ROOT, block, blocks, shell

COUNTS = (200, 250, 300)
SETTINGS = {"steps": 300, "checkpoint_interval": 50, "jit_compile": False}
GO_ON = "python -m tpu_scripts.train_lm"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_import_checkpoint_prints_what_is_shown(here):
    """Of the file that the page's program for PyTorch writes."""
    (code,) = (
        text
        for language, text in blocks("migration", here)
        if language == "python" and "model.named_parameters()" in text
    )
    exec(code, {})
    command = block("migration", "python -m tpu_scripts.import_checkpoint")
    before = {path.name for path in here.iterdir()} | {".venv"}
    done = shell(command, here)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in here.iterdir()} == before
    start = "PyTorch AdamW: state of 2 variables, iterations = 1\n  k"
    assert done.stdout == block("migration", start)


@pytest.mark.slow
def test_saved_model_cli_runs(here):
    """On the export of the page's first program."""
    program = here / "export.py"
    program.write_text(blocks("saved_model", here)[0][1])
    runpy.run_path(str(program))
    np.save("x.npy", np.ones([8, 3], np.float32))
    np.save("y.npy", np.ones([8, 1], np.float32))
    done = shell(block("saved_model", "saved_model_cli run", here), here)
    assert done.returncode == 0, done.stderr
    loss = np.load(here / "results" / "loss.npy")
    assert np.isfinite(loss)
    assert f"loss:\n{loss[()]!s}\n" in done.stdout


def test_launch_pod_prints_its_commands(tmp_path):
    """It is run in the checkout, and needs no gcloud for that."""
    command = block("guide", "tpu_scripts/launch_pod.sh")
    assert " --dry_run " in command
    done = shell(f"cd {ROOT}\n{command}", tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("tpu-vm create lm ", "model_dir=gs://bucket/run", "delete lm"):
        assert word in done.stdout


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return lm_program.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, text):
    """A run with checkpoints at COUNTS."""
    folder = tmp_path_factory.mktemp("finished")
    return lm_program.finished(folder, data=text, **SETTINGS)


@pytest.fixture
def checkpoints(finished, here):
    """Those of a copy, which is called `run` in the current directory."""
    return shutil.copytree(finished, here / "run") / "checkpoints"


def again(text):
    """The flags that the run had before, without the command itself."""
    command = lm_program.command(data=text, **SETTINGS)
    return [f"'{flag}'" for flag in command[3:]]


@pytest.mark.slow
def test_a_damaged_run_goes_on(here, checkpoints, text):
    (data,) = checkpoints.glob("ckpt-300.data*")
    data.write_bytes(data.read_bytes()[:-100])
    command, comment = block("checkpoints", GO_ON).split("#")
    assert comment == " and the flags it had before\n"
    done = shell(" ".join([command, *again(text)]), here)
    assert done.returncode == 0, done.stderr
    shown = block("checkpoints", "train_lm: The checkpoint").splitlines()
    lines = done.stderr.splitlines()
    assert [o for o in lines if o.startswith("train_lm: ")] == shown[:2]
    assert done.stdout.splitlines()[:2] == shown[2:]
    assert block("checkpoints", "run: run").splitlines() == shown[2:]


@pytest.mark.slow
def test_no_checkpoint_can_be_read(checkpoints, text):
    for count in COUNTS:
        index = checkpoints / f"ckpt-{count}.index"
        index.write_bytes(b"x" * len(index.read_bytes()))
    before = lm_program.contents(checkpoints.parent)
    code, _, err = lm_program.run_here(data=text, model_dir="run", **SETTINGS)
    assert code == 2
    shown = block("checkpoints", "train_lm: --model_dir: The")
    assert err == shown.splitlines()
    assert lm_program.contents(checkpoints.parent) == before


@pytest.mark.slow
def test_an_older_checkpoint_is_taken(here, checkpoints, text):
    done = shell(block("checkpoints", "echo 'model_checkpoint_path"), here)
    assert done.returncode == 0, done.stderr
    code, out, err = lm_program.run_here(data=text, model_dir="run", **SETTINGS)
    assert code == 0, err
    assert out.splitlines()[:2] == ["run: run", "resumed at step 250"]
    assert any("ckpt-300" in line for line in err)
