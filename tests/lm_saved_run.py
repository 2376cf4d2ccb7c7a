"""A run of train_lm with three checkpoints, to damage and to restore."""

import shutil

import numpy as np
import tensorflow as tf

from lm_small import make_trainer
from tpu_scripts import lm_checkpoints

STEPS = (4, 8, 12)
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
DEFAULT = tf.distribute.get_strategy()


class Run:
    """A trainer, what saves it, and a directory of checkpoints of it.

    Args:
      directory: where to make the checkpoints.
    """

    def __init__(self, directory):
        self.trainer = make_trainer(use_ema=True, gradient_accumulation_steps=3)
        self.checkpoint = tf.train.Checkpoint(
            model=self.trainer.model,
            optimizer=self.trainer.optimizer,
            step=self.trainer.step,
        )
        self.directory = self._made = directory
        manager = self.manage(None, keep=len(STEPS))
        for step in STEPS:
            self.trainer.train(step - int(self.trainer.step))
            manager.save(step)
        self.trainer.train(1)
        self.saved = {
            step: values(f"{directory}/checkpoints/ckpt-{step}")
            for step in STEPS
        }

    def copied_to(self, directory):
        """Goes on with a copy of what has been made."""
        self.directory = directory
        shutil.copytree(self._made, directory)
        return self

    def restore(self):
        """As a new process does it, which begins with the next batch."""
        self.trainer._iterator = None
        return lm_checkpoints.restore_newest(
            self.checkpoint, f"{self.directory}/checkpoints", DEFAULT
        )

    def manage(self, restored, keep=2):
        return lm_checkpoints.manage(
            self.checkpoint, f"{self.directory}/checkpoints", restored, keep
        )

    def values(self):
        """All that it is made of now."""
        path = self.checkpoint.write(f"{self.directory}/values")
        return values(path)

    def file(self, step, part):
        ending = {"index": "index", "data": "data-00000-of-00001"}[part]
        return self.directory / "checkpoints" / f"ckpt-{step}.{ending}"

    @property
    def state(self):
        return self.directory / "checkpoints" / "checkpoint"


def values(path):
    reader = tf.train.load_checkpoint(path)
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name != GRAPH
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def cut(file, left):
    file.write_bytes(file.read_bytes()[:left])


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "data empty": lambda run, step: cut(run.file(step, "data"), 0),
    "data cut": lambda run, step: cut(run.file(step, "data"), 1000),
    "data without its end": lambda run, step: cut(run.file(step, "data"), -1),
    "data flipped": lambda run, step: flip(run.file(step, "data"), 2000),
    "data missing": lambda run, step: run.file(step, "data").unlink(),
    "index empty": lambda run, step: cut(run.file(step, "index"), 0),
    "index cut": lambda run, step: cut(run.file(step, "index"), 500),
    "index without its end": lambda run, step: cut(run.file(step, "index"), -1),
    "index flipped": lambda run, step: flip(run.file(step, "index"), 500),
    "index missing": lambda run, step: run.file(step, "index").unlink(),
}
