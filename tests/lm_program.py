"""Runs train_lm as a user does, in a process of its own, at a tiny size."""

import os
import pathlib
import re
import subprocess
import sys

import tpu_scripts

ROOT = pathlib.Path(tpu_scripts.__file__).parents[1]
SMALL = {
    "layers": 1,
    "width": 16,
    "heads": 2,
    "sequence_length": 16,
    "batch_size": 4,
    "warmup_steps": 4,
    "final_learning_rate_fraction": 0.5,
    "sample_bytes": 20,
}


def command(**given):
    """The command line; a flag that is None is left out."""
    settings = {**SMALL, **given}
    return [
        sys.executable,
        "-m",
        "tpu_scripts.train_lm",
        *(f"--{k}={v}" for k, v in settings.items() if v is not None),
    ]


def start(arguments, **options):
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(**given):
    """Runs the program to its end: exit code, stdout and own stderr lines."""
    process = start(command(**given))
    out, err = process.communicate(timeout=200)
    return process.returncode, out, own_lines(err)


def own_lines(err):
    """What TensorFlow's C++ logs when it is loaded is not the program's."""
    log = re.compile(
        r"[IWE]\d{4} \d\d:|WARNING: All log messages|To enable the following"
    )
    return [line for line in err.splitlines() if not log.match(line)]


def write_text(directory):
    """Writes a few files of text; returns the glob of them."""
    directory.mkdir(exist_ok=True)
    for i in range(4):
        words = (f"line {j}: {'word ' * (j % (i + 2))}\n" for j in range(150))
        (directory / f"{i}.txt").write_text("".join(words))
    return f"{directory}/*.txt"


def contents(directory):
    """Every file below the directory with its bytes."""
    return {
        path.relative_to(directory): path.read_bytes()
        for path in sorted(pathlib.Path(directory).rglob("*"))
        if path.is_file()
    }
