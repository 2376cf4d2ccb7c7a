"""The examples: each trains on real data, and is short enough to read."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

import tpu_scripts

ROOT = pathlib.Path(tpu_scripts.__file__).parents[1]
FILES = sorted((ROOT / "tpu_scripts" / "examples").glob("[a-z]*.py"))
READERS = {
    "keras_fit": "--epochs=2",
    "keras_loop": "--steps=50",
    "sonnet_module": "--steps=50",
    "tf_keras_fit": "--epochs=2",
}
# Orbit's is in test_orbit.py.
RUN = {*READERS, "bayesian_network", "orbit_loop"}


def run(name, *arguments):
    """What an example says of held-out data, {what: the number}."""
    process = subprocess.run(
        [sys.executable, "-m", f"tpu_scripts.examples.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    numbers = re.findall(r"^held-out (.*?): ([-\d.]+)", process.stdout, re.M)
    return {label: float(number) for label, number in numbers}


def test_every_example_is_run():
    assert {path.stem for path in FILES} == RUN


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_length(path):
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.parametrize("name", READERS)
def test_reader_of_digits(name):
    """Twice as good as naming the most frequent digit."""
    _, labels = datasets.load_digits(return_X_y=True)
    most_frequent = np.bincount(labels).max() / len(labels)
    assert run(name, READERS[name])["accuracy"] > 2 * most_frequent


def test_bayesian_network():
    """Better than a normal distribution with the known outcomes' moments."""
    _, y = datasets.load_diabetes(return_X_y=True)
    known, held_out = y[:330], y[330:]
    z = (held_out - known.mean()) / known.std()
    constant = np.mean(-(z**2) / 2) - np.log(2 * np.pi) / 2
    measured = run("bayesian_network", "--steps=100")
    assert measured["log likelihood"] > constant + 0.1
    inside = measured["outcomes in their 90% intervals"]
    deviation = np.sqrt(0.9 * 0.1 / len(held_out))
    assert abs(inside - 0.9) < 4 * deviation
