"""train_lm is killed at random moments, and ends as one that never was."""

import collections
import concurrent.futures
import json
import os
import re
import select
import signal
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

import lm_program

pytestmark = pytest.mark.slow

SERVER = lm_program.ROOT / "tests" / "lm_fork_server.py"
SECONDS = 300  # for whatever is waited for, on a busy machine
SEQUENCES = 2
# Where the kills of a sequence are aimed at, and how many.
KILLS = {"start": 8, "restore": 4, "training": 8, "saving": 10}
LATE = 3  # the kills of each sequence that come after its last step
NEW = 10  # every so manyth start is a new Python
INTERVAL, WINDOW = 5, 3
# What has state beside the moments. Most checkpoints are in a window's middle.
SETTINGS = {
    "steps_per_loop": 3,
    "checkpoint_interval": INTERVAL,
    "keep_checkpoints": 2,
    "gradient_accumulation_steps": WINDOW,
    "use_ema": True,
    "ema_momentum": 0.9,
    "precision": "float16",
    "loss_scale_factor": "dynamic",
    "loss_scale_growth_interval": 7,
    "jit_compile": False,
}
# Seconds: of a save, from one to the next, and less than the work at the end.
WAITS = {"saving": 0.004, "training": 0.06, "finish": 0.5}


class Moment:
    """When to kill: so many checkpoints after a start, and a little later."""

    def __init__(self, kind, rng):
        self.kind = kind
        after = kind in ("training", "saving")
        self.saves = int(rng.integers(5)) if after else 0
        self.fraction = float(rng.random())


def make_moments(seed):
    rng = np.random.default_rng(seed)
    kinds = [kind for kind, number in KILLS.items() for _ in range(number)]
    kinds = [*rng.permutation(kinds), *["finish"] * LATE]
    return [Moment(str(kind), rng) for kind in kinds]


MOMENTS = [make_moments(seed) for seed in range(SEQUENCES)]
SAVES = max(sum(moment.saves + 3 for moment in some) for some in MOMENTS)
STEPS = INTERVAL * WINDOW * -(-SAVES // WINDOW)  # enough for all kills


class Starts:
    """One run that is started again and again, by one server."""

    def __init__(self, folder, text):
        self.directory = folder / "run"
        self.output = folder / "output"
        self.interrupted = collections.Counter()
        self.resumed = [0]
        self.codes = []
        self._restore = 0.05  # seconds that it takes
        self._start = 2.0  # seconds to the first step
        self._arguments = lm_program.command(
            data=text, model_dir=self.directory, steps=STEPS, **SETTINGS
        )[3:]
        self._server = lm_program.start(
            [sys.executable, "-u", SERVER], OPENBLAS_NUM_THREADS="1"
        )

    def start(self, new):
        """Starts the program, in a new Python or by a fork."""
        self.output.write_text("")
        self._config = identity(self.directory / "config.json")
        self._left = leftovers(self.directory)
        line = json.dumps([self._arguments, str(self.output), new])
        print(line, file=self._server.stdin, flush=True)
        self._process = os.pidfd_open(int(self._server.stdout.readline()))

    def wait(self):
        """Waits for its end: its exit code, or minus a signal."""
        assert select.select([self._process], [], [], SECONDS)[0]
        os.close(self._process)
        printed = self.output.read_text()
        assert "Traceback" not in printed and "damaged" not in printed, printed
        if found := re.search(r"^resumed at step (\d+)$", printed, re.M):
            self.resumed.append(int(found[1]))
        return int(self._server.stdout.readline())

    def kill(self, moment, new):
        """Starts the program, kills it, and counts what was interrupted."""
        self.start(new)
        if moment.kind != "start":
            self._until(self._is_configured)
        if moment.kind in WAITS:
            self._follow(moment, new)
        waits = {"start": self._start, "restore": self._restore, **WAITS}
        time.sleep(moment.fraction * waits[moment.kind])
        signal.pidfd_send_signal(self._process, signal.SIGKILL)
        self.codes.append(self.wait())
        self.interrupted[self._what_was_interrupted()] += 1

    def close(self):
        self._server.communicate(timeout=SECONDS)

    def _follow(self, moment, new):
        """Waits for the checkpoints that come before the moment."""
        begin = time.monotonic()
        self._until(self._is_restored)
        self._restore = time.monotonic() - begin
        if moment.kind == "finish":
            self._until(self._is_trained)
            return
        self._until(self._trains)
        if not new:
            self._start = time.monotonic() - begin
        step = last_step(self.directory) + moment.saves * INTERVAL
        self._until(lambda: last_step(self.directory) >= step)
        if moment.kind == "saving":
            self._until(lambda: is_saving(self.directory))

    def _until(self, condition):
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline
            assert not select.select([self._process], [], [], 0)[0]
            time.sleep(0.0005)

    def _is_configured(self):
        config = self.directory / "config.json"
        return identity(config) not in (None, self._config)

    def _is_restored(self):
        return "run: " in self.output.read_text()

    def _trains(self):
        return "bits/byte" in self.output.read_text()

    def _is_trained(self):
        return last_step(self.directory) == STEPS

    def _what_was_interrupted(self):
        left = leftovers(self.directory)
        if self._is_restored() and left and left != self._left:
            return "saving"
        if self._is_restored():
            if self._is_trained():
                return "finish"
            return "training" if self._trains() else "first step"
        return "restore" if self._is_configured() else "start"


def identity(path):
    """Differs as soon as the file is written anew."""
    return path.stat().st_mtime_ns if path.exists() else None


def last_step(directory):
    """The step of the last checkpoint that has been finished."""
    state = directory / "checkpoints" / "checkpoint"
    if not state.exists():
        return 0
    return int(re.search(r'^model_\w+: "ckpt-(\d+)"', state.read_text())[1])


def is_saving(directory):
    """Whether there is what is there only while a checkpoint is saved."""
    checkpoints = directory / "checkpoints"
    names = os.listdir(checkpoints) if checkpoints.exists() else []
    return any("temp" in name or ".tmp" in name for name in names)


def leftovers(directory):
    """The files that should not be there between two checkpoints."""
    names = {path.name for path in (directory / "checkpoints").glob("*")}
    state = tf.train.get_checkpoint_state(directory / "checkpoints")
    expected = {"checkpoint"} if state else set()
    for prefix in state.all_model_checkpoint_paths if state else []:
        name = prefix.rpartition("/")[2]
        expected |= {f"{name}.index", f"{name}.data-00000-of-00001"}
    return names ^ expected


def make_run(folder, text, moments):
    starts = Starts(folder, text)
    for number, moment in enumerate(moments, 1):
        starts.kill(moment, new=number % NEW == 0)
    starts.start(new=not moments)
    assert starts.wait() == 0
    starts.close()
    return starts


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One that is never killed, as a user starts it, and those that are."""
    text = lm_program.write_text(tmp_path_factory.mktemp("text"))
    with concurrent.futures.ThreadPoolExecutor(SEQUENCES) as pool:
        futures = [
            pool.submit(make_run, tmp_path_factory.mktemp("run"), text, moments)
            for moments in ([], *MOMENTS)
        ]
    return [future.result() for future in futures]


def test_kills_came_everywhere(runs):
    interrupted = collections.Counter()
    for run, moments in zip(runs[1:], MOMENTS, strict=True):
        assert run.codes == [-signal.SIGKILL] * len(moments)
        assert run.resumed == sorted(run.resumed)
        assert run.resumed[-1] == STEPS
        interrupted += run.interrupted
    assert interrupted.total() >= 50
    assert interrupted["saving"] >= 5, interrupted
    assert interrupted["start"] + interrupted["restore"], interrupted
    for where in ("first step", "training", "finish"):
        assert interrupted[where], interrupted


def test_they_end_with_the_bits_of_the_run_that_was_not_killed(runs):
    whole, *killed = (run.directory for run in runs)
    for directory in killed:
        lm_program.assert_alike(directory, whole, STEPS)
    steps = [record["step"] for record in lm_program.history(whole)]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


def test_kills_leave_nothing_behind(runs):
    expected, *found = (
        {
            str(path.relative_to(run.directory))
            for path in run.directory.rglob("*")
            if path.parent.name != "events"
        }
        for run in runs
    )
    assert "export/saved_model.pb" in expected
    assert all(names == expected for names in found)
