"""The counters: how many updates were applied, and where in the window."""

from __future__ import annotations

import tensorflow as tf

from tf_adamw.placement import on_device


class Counters(tf.Module):
    """Scalar int64 variables.

    Attributes:
      iterations: the number of updates applied.
      window_position: the micro-step's position in the window, from 0;
        without accumulation None.
    """

    def __init__(self, *, accumulates: bool) -> None:
        super().__init__(name="counters")
        self.iterations = _counter("iterations")
        self.window_position = (
            _counter("window_position") if accumulates else None
        )

    def place(self, device: str) -> None:
        """Moves the counters to the device of the weights."""
        for name in ("iterations", "window_position"):
            counter = getattr(self, name)
            if counter is not None:
                setattr(self, name, on_device(counter, device))

    def calls(self, accumulation_steps: int) -> tf.Tensor:
        """The number of `apply` calls that counted: what schedules read."""
        if self.window_position is None:
            return tf.convert_to_tensor(self.iterations)
        return self.iterations * accumulation_steps + self.window_position

    def count_micro_step(self, position: tf.Tensor, last: int) -> None:
        """Moves on in the window, from `position`; from `last` to its start."""
        # A comparison: 64-bit remainders are emulated on TPU. A window that
        # was longer when it was saved may be past its end.
        start = tf.zeros_like(position)
        following = tf.where(position >= last, start, position + 1)
        self.window_position.assign(following)

    def count_update(self) -> None:
        """Counts an update that was applied."""
        self.iterations.assign_add(1)


def _counter(name: str) -> tf.Variable:
    with tf.init_scope():
        return tf.Variable(0, trainable=False, dtype=tf.int64, name=name)
