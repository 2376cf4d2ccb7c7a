"""Runs train_lm as a user does, at a tiny size."""

import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import tensorflow as tf
from absl.testing import flagsaver

import tpu_scripts
from tpu_scripts import lm_flags, train_lm

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


def start(arguments, **environment):
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(temporary=None, **given):
    """Runs the program to its end: exit code, stdout and own stderr lines."""
    environment = {"TMPDIR": str(temporary)} if temporary else {}
    process = start(command(**given), **environment)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, own_lines(err)


def run_here(**given):
    """`run` in this process, which is faster: one replica only."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        flagsaver.flagsaver(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            lm_flags.parse(command(**given)[2:])
            train_lm.main([])
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue(), err.getvalue().splitlines()


def finished(folder, **arguments):
    """Runs it to its end, as `run_here`; returns the directory of the run."""
    directory = folder / "run"
    code, _, err = run_here(model_dir=directory, **arguments)
    assert code == 0, err
    return directory


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


def checkpoint(directory, step):
    """Every value of a checkpoint by its key."""
    reader = tf.train.load_checkpoint(f"{directory}/checkpoints/ckpt-{step}")
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
    }


def history(directory):
    """The records of a run."""
    lines = (pathlib.Path(directory) / "history.jsonl").read_text()
    return [json.loads(line) for line in lines.splitlines()]


def bits(value):
    """What tells -0 from 0, and one NaN from another."""
    array = np.asarray(value)
    # The bytes of an array of strings are addresses.
    content = array.tolist() if array.dtype == object else array.tobytes()
    return array.dtype, array.shape, content


def assert_alike(directory, expected, step):
    """Two runs have the same last checkpoint, and the same history."""
    values, same = (checkpoint(run, step) for run in (directory, expected))
    assert values.keys() == same.keys()
    for name, value in same.items():
        assert bits(values[name]) == bits(value), name
    told = [
        [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in run]
        for run in map(history, (directory, expected))
    ]
    assert told[0] == told[1]


def contents(directory):
    """Every file below the directory with its bytes."""
    return {
        path.relative_to(directory): path.read_bytes()
        for path in sorted(pathlib.Path(directory).rglob("*"))
        if path.is_file()
    }
