"""Steps on a CPU in one pass over memory: fuse_on_cpu.

XLA reads its flags once: each way to call it is a process of its own.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import helpers
import one_pass_program as program
import tf_adamw
from helpers import JIT_MODES, UNIT_ROUNDOFF

pytestmark = pytest.mark.core
slow = pytest.mark.slow  # the first of them to run waits for the processes

HAS_XLA = True in JIT_MODES
# The one that can, of those that the tests run on.
IN_EFFECT = HAS_XLA and tf.__version__ >= "2.21"
OPTION = "xla_cpu_use_multi_output_fusion"
FLAG = "--xla_backend_extra_options="
OPTIONS = [
    "plain",
    "amsgrad",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "ema",
    "ema_overwrite",
    "accumulation",
    "skip_nonfinite",
    "everything",
]
TOLERANCES = {
    "float32": 2e-6,
    "float64": 1e-13,
    "bfloat16": 2 * UNIT_ROUNDOFF["bfloat16"],  # a unit in the last place
}


class Process:
    """A run of the program, and what it saw."""

    def __init__(self, folder, when, *options, flags=""):
        self._results = folder / f"{when}.npz"
        self._process = subprocess.Popen(
            [sys.executable, program.__file__, when, self._results, *options],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    path for path in sys.path if path
                ),
                "XLA_FLAGS": flags,
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    def found(self):
        """{name: array}, once it has ended."""
        try:
            _, errors = self._process.communicate(timeout=300)
        finally:
            self._process.kill()
        assert self._process.returncode == 0, errors[-2000:]
        with np.load(self._results) as file:
            return dict(file)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """A folder for what a flag of the user's makes XLA write."""
    return tmp_path_factory.mktemp("dumped")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, dumped):
    """{when `fuse_on_cpu` was called: what the process saw}."""
    folder = tmp_path_factory.mktemp("one_pass")
    flags = f"--xla_dump_to={dumped} --xla_dump_hlo_as_text"
    processes = {
        "early": Process(folder, "early", *OPTIONS, flags=flags),
        "never": Process(folder, "never"),
        "late": Process(folder, "late"),
    }
    return {when: process.found() for when, process in processes.items()}


@slow
def test_which_variables_it_serves(runs):
    """Those whose gradient is not cast first."""
    serves = {
        when: {k: bool(v) for k, v in found.items() if k.startswith("serves/")}
        for when, found in runs.items()
    }
    assert bool(serves["never"]) is HAS_XLA
    for name in serves["never"]:
        assert serves["early"][name] is (
            IN_EFFECT and name != "serves/bfloat16"
        )
    assert not any((*serves["late"].values(), *serves["never"].values()))


def loops(found):
    """{option: how many loops a step has}, where there is XLA."""
    return {
        name.removeprefix("loops/"): int(number)
        for name, number in found.items()
        if name.startswith("loops/")
    }


@slow
def test_loops(runs):
    """One for weights and moments; what else is kept has its own."""
    early, never = loops(runs["early"]), loops(runs["never"])
    assert loops(runs["late"]) == never
    assert bool(never) is HAS_XLA
    if not IN_EFFECT:
        assert early == never
        return
    assert (early["plain"], never["plain"]) == (1, 3)
    assert (early["amsgrad"], early["ema"]) == (2, 2)
    assert early["ema_overwrite"] == 3
    assert all(early[option] < never[option] for option in program.LOOPS)


@slow
@pytest.mark.parametrize("dtype", program.DTYPES)
@pytest.mark.parametrize("option", OPTIONS)
def test_20_steps_against_the_reference(runs, option, dtype):
    found = {
        name.rpartition("/")[2]: value
        for name, value in runs["early"].items()
        if name.startswith(f"{option}/{dtype}/")
    }
    assert found.pop("updates") == 20
    assert set(found) >= {"error"}
    for name, error in found.items():
        helpers.record(f"{dtype} one pass, {name}, 20 steps", error)
        assert error <= TOLERANCES[dtype]


@slow
def test_both_forms_compute_the_same(runs):
    """One update: XLA may round a product in one form and not in the other.

    Of v that is the gradient's square. All else is the same up to v, and
    rounds v and w to a neighbour at most.
    """
    early, late, never = (
        {k: v for k, v in runs[when].items() if k.startswith("update/")}
        for when in ("early", "late", "never")
    )
    assert bool(early) is HAS_XLA
    for name, expected in never.items():
        np.testing.assert_array_equal(late[name], expected)
        _, dtype, of = name.split("/")
        unit = UNIT_ROUNDOFF[dtype]
        if of == "momentum":
            np.testing.assert_array_equal(early[name], expected)
        elif of == "weights":
            error = helpers.relative_error(early[name], expected)
            assert error <= 2 * unit
        else:
            _, _, velocity, gradient = program.state(dtype)
            square = gradient.astype(np.float64) ** 2
            change = 1e-3 * (square + 2 * np.abs(square - velocity))
            bound = 2 * unit * (change + np.abs(expected))
            assert np.all(np.abs(early[name] - expected) <= bound)


@slow
def test_the_users_flags_count(runs, dumped):
    """What XLA was told to write is there."""
    assert any(dumped.iterdir()) is HAS_XLA


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, FLAG + OPTION),
        ("", FLAG + OPTION),
        ("--xla_a=1  --xla_b", f"--xla_a=1 --xla_b {FLAG}{OPTION}"),
        (f"{FLAG}c,d=2 --xla_a=1", f"--xla_a=1 {FLAG}c,d=2,{OPTION}"),
        (f"{FLAG}c {FLAG}d=2", f"{FLAG}c,d=2,{OPTION}"),
        (f"{FLAG}c,{OPTION} --xla_a=1", f"{FLAG}c,{OPTION} --xla_a=1"),
    ],
)
def test_flags(monkeypatch, before, after):
    # Set in any case, so that what is there now comes back.
    monkeypatch.setenv("XLA_FLAGS", before or "")
    if before is None:
        monkeypatch.delenv("XLA_FLAGS")
    for _ in range(2):
        tf_adamw.fuse_on_cpu()
        assert os.environ["XLA_FLAGS"] == after
