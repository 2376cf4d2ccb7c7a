"""The launcher of a TPU slice, with stand-ins for gcloud and the workers."""

import os
import pathlib
import shlex
import subprocess
import sysconfig

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / "tpu_scripts" / "launch_pod.sh"
SLICE = ["--name=pod", "--zone=us-central1-a"]
TRAIN_FLAGS = ["--data=my texts/*.txt", '--prompt=it\'s "$HOME"', "--note="]

# Records its call, and runs what worker 0 is asked to run.
GCLOUD = """#!/usr/bin/env bash
printf '%q ' gcloud "$@" >> calls
echo >> calls
case " $* " in
  *"$FAILS"*) exit 7 ;;
  *" --worker=0 "*) for word; do
    case $word in --command=*) exec bash -c "${word#*=}" ;; esac
  done ;;
esac
"""
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$TPU_LOAD_LIBRARY $1 $2 $3" "${@:4}" > ../trained
echo 'step 1'
exit "$TRAINING_STATUS"
"""


def launch(*args, **settings):
    command, environment = [SCRIPT, *args], os.environ | settings
    return subprocess.run(
        command, env=environment, capture_output=True, text=True
    )


def commands(lines):
    return [shlex.split(line) for line in lines.splitlines()]


@pytest.fixture
def launch_for_real(tmp_path, monkeypatch):
    python = tmp_path / "checkout/.venv/bin/python"
    python.parent.mkdir(parents=True)
    for path, text in (tmp_path / "gcloud", GCLOUD), (python, PYTHON):
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def run(*args, fails="none", status="0"):
        done = launch(*args, FAILS=fails, TRAINING_STATUS=status)
        return done, commands(pathlib.Path("calls").read_text())

    return run


def test_dry_run_prints_the_commands_in_order():
    shown = launch(*SLICE, "--dry_run", "--spot", "--project=p")
    called = commands(shown.stdout)
    for command in called:
        assert command[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
        assert {"--zone=us-central1-a", "--project=p"} <= set(command)
    verbs = [command[4] for command in called]
    assert verbs == ["create", "ssh", "scp", "ssh", "ssh", "ssh", "delete"]
    assert {"--spot", "--accelerator-type=v5litepod-16"} <= set(called[0])
    workers = [word for c in called for word in c if "--worker=" in word]
    assert workers == ["--worker=all"] * 3 + ["--worker=0"] * 2
    for step, text in (3, "tensorflow-tpu==2.18"), (4, "train_lm"), (5, "tail"):
        assert text in shlex.join(called[step])


def test_real_run_calls_what_the_dry_run_prints(launch_for_real):
    shown = launch(*SLICE, "--dry_run", "--", *TRAIN_FLAGS)
    done, calls = launch_for_real(*SLICE, "--", *TRAIN_FLAGS)
    assert done.returncode == 0, done.stderr
    assert "step 1" in done.stdout
    assert calls == commands(shown.stdout)
    program, *given = pathlib.Path("trained").read_text().splitlines()
    assert program == "0 -u -m tpu_scripts.train_lm"
    assert given == ["--strategy=tpu", "--tpu=pod", *TRAIN_FLAGS]


@pytest.mark.parametrize(
    ("fails", "status", "exit_code", "last"),
    [
        ("tpu-vm create", "0", 7, "create"),  # someone else's slice stays
        ("pip install", "0", 7, "delete"),
        ("nohup", "0", 7, "delete"),
        ("none", "3", 3, "delete"),
        ("tpu-vm delete", "0", 1, "delete"),
    ],
)
def test_failure(launch_for_real, fails, status, exit_code, last):
    done, calls = launch_for_real(*SLICE, fails=fails, status=status)
    assert (done.returncode, calls[-1][4]) == (exit_code, last)


def test_keep_leaves_out_the_delete():
    shown, kept = (launch(*SLICE, "--dry_run", *k) for k in ([], ["--keep"]))
    assert kept.stdout.splitlines() == shown.stdout.splitlines()[:-1]


@pytest.mark.parametrize("flag", ["--sopt", "--name=", "--zone=", "--version="])
def test_refusals(flag):
    refused = launch(*SLICE, "--dry_run", flag)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert flag.strip("=") in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_shellcheck():
    shellcheck = pathlib.Path(sysconfig.get_path("scripts"), "shellcheck")
    subprocess.run([shellcheck, SCRIPT], check=True)
