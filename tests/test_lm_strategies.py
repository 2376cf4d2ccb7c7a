"""A run of train_lm that goes on under one strategy after the other.

Each stage begins with the checkpoint that the one before has left, in the
middle of a window of accumulated gradients. One stage ends by a kill. The
whole is compared with the same run on one replica, never interrupted.
"""

import os
import pathlib
import re
import signal
import time

import numpy as np
import pytest
import tensorflow as tf

import helpers
import lm_program

pytestmark = pytest.mark.slow

WINDOW = 3
INTERVAL = 10
OPTIONS = {
    "gradient_accumulation_steps": WINDOW,
    "use_ema": True,
    "ema_momentum": 0.9,
    "decay_steps": 60,
    "steps_per_loop": 5,
    "checkpoint_interval": INTERVAL,
    "keep_checkpoints": 1000,
}
STATE = "/.ATTRIBUTES/VARIABLE_VALUE"
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class Chain:
    """The run, and what its stages have left.

    Attributes:
      directory: that of the run.
      temporary: where the workers make their temporary files.
      stages: {name: what it printed, and its checkpoint}.
      step: that of the last checkpoint.
    """

    def __init__(self, folder):
        self.directory = folder / "run"
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.stages = {}
        self.step = 0
        self.options = {**OPTIONS, "data": lm_program.write_text(folder / "t")}

    def stage(self, name, run=lm_program.run, **options):
        """Goes on for ten steps.

        That is not the end of a window, and a run ends with one: what comes
        after the checkpoint is lost, as by a kill.
        """
        resumed, self.step = self.step, self.step + INTERVAL
        steps = -(-self.step // WINDOW) * WINDOW
        code, out, err = run(
            model_dir=self.directory, steps=steps, **self.options, **options
        )
        assert code == 0, err
        assert not resumed or f"resumed at step {resumed}\n" in out
        state = self.directory / "checkpoints" / "checkpoint"
        state.write_text(f'model_checkpoint_path: "ckpt-{self.step}"\n')
        found = lm_program.checkpoint(self.directory, self.step)
        self.stages[name] = out, found

    def kill_a_worker(self):
        """Goes on with two workers until one is killed after a checkpoint."""
        checkpoints = self.directory / "checkpoints"
        awaited = checkpoints / f"ckpt-{self.step + INTERVAL}.index"
        process = lm_program.start(
            lm_program.command(
                model_dir=self.directory,
                steps=3000,
                strategy="multi_worker",
                workers_local=2,
                **self.options,
            )
        )
        while not awaited.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        task = f"/proc/{process.pid}/task/{process.pid}/children"
        workers = pathlib.Path(task).read_text().split()
        os.kill(int(workers[1]), signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGKILL
        assert err.endswith("train_lm: worker 1 ended by signal 9\n")
        assert "held-out text:" not in out
        last = tf.train.latest_checkpoint(checkpoints)
        self.step = int(last.rpartition("-")[2])
        assert self.step < 3000


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    made = Chain(tmp_path_factory.mktemp("chain"))
    made.stage("default", lm_program.run_here)
    made.kill_a_worker()
    made.stage(
        "multi_worker",
        temporary=made.temporary,
        strategy="multi_worker",
        workers_local=2,
    )
    made.stage("one_device", lm_program.run_here, strategy="one_device")
    made.stage("mirrored", strategy="mirrored")
    made.stage("default again", lm_program.run_here)
    return made


@pytest.fixture(scope="module")
def uninterrupted(chain, tmp_path_factory):
    """The directory of the same run on one replica."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    steps = -(-chain.step // WINDOW) * WINDOW
    code, _, err = lm_program.run_here(
        model_dir=directory, steps=steps, **chain.options
    )
    assert code == 0, err
    return directory


def test_the_curves_are_those_of_one_replica(chain, uninterrupted):
    found, expected = map(lm_program.history, (chain.directory, uninterrupted))
    assert len(found) == len(expected)
    for record, same in zip(found, expected, strict=True):
        del record["tokens_per_second"], same["tokens_per_second"]
        assert record.keys() == same.keys()
        for name, value in same.items():
            error = helpers.relative_error(record[name], value)
            if name in ("loss", "held_out"):
                helpers.record("train_lm losses, 1 and 2 replicas", error)
            # Ten times what rounding all initial weights once makes of the
            # norms, and more for the losses.
            assert error < 5e-6, (name, record)


def test_the_state_is_that_of_one_replica(chain, uninterrupted):
    found, expected = (
        lm_program.checkpoint(directory, chain.step)
        for directory in (chain.directory, uninterrupted)
    )
    assert found.keys() == expected.keys()
    for key in found.keys() - {GRAPH, f"save_counter{STATE}"}:
        size = np.sqrt(np.mean(np.square(expected[key], dtype=np.float64)))
        error = np.max(np.abs(found[key] - expected[key])) / max(size, 1e-30)
        # Ten times what rounding all initial weights once makes of them.
        gradients = re.search("/(momentum|velocity|accumulator)/", key)
        if not gradients:
            helpers.record("train_lm weights, 1 and 2 replicas", error)
        assert error < (5e-4 if gradients else 2.5e-5), key


def test_a_checkpoint_does_not_tell_the_strategy(chain):
    assert len(chain.stages) == 5
    formats = [
        {k: (v.shape, v.dtype) for k, v in values.items() if k != GRAPH}
        for _, values in chain.stages.values()
    ]
    assert all(found == formats[0] for found in formats)
    for _, values in chain.stages.values():
        step = values[f"step{STATE}"]
        position = values[f"optimizer/counters/window_position{STATE}"]
        assert position == step % WINDOW


def test_workers_leave_one_run(chain):
    out, _ = chain.stages["multi_worker"]
    for line in ("run: ", "resumed at step ", "held-out text: "):
        assert out.count(line) == 1
    assert not list(chain.temporary.glob("train_lm_*"))
    names = {path.name for path in chain.directory.iterdir()}
    expected = "checkpoints config.json curves.png events export history.jsonl"
    assert names == set(expected.split())
