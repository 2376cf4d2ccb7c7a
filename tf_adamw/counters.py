"""The counters: updates applied, place in the window, good updates."""

from __future__ import annotations

import tensorflow as tf

from tf_adamw import placement, replicas

NAMES = ("iterations", "window_position", "good_updates")


class Counters(tf.Module):
    """Scalar int64 variables.

    Attributes:
      iterations: the number of updates applied.
      window_position: the micro-step's position in the window, from 0;
        without accumulation None.
      good_updates: the number of updates since the dynamic loss scale last
        changed; without one None.
    """

    def __init__(self, *, accumulates: bool, scales: bool) -> None:
        super().__init__(name="counters")
        for name, needed in zip(
            NAMES, (True, accumulates, scales), strict=True
        ):
            setattr(self, name, _counter(name) if needed else None)

    def place(self, owner: tf.distribute.Strategy | None, device: str) -> None:
        """Moves the counters where the weights are."""
        for name in NAMES:
            counter = getattr(self, name)
            if counter is not None:
                setattr(self, name, placement.moved(counter, owner, device))

    def held(self) -> list[tf.Variable]:
        """All counters that there are."""
        counters = [getattr(self, name) for name in NAMES]
        return [counter for counter in counters if counter is not None]

    def updates(self) -> tf.Tensor:
        """The number of updates applied as int32; from 2**31 - 2 on, that.

        A step computes with it: what is done with int64 is emulated on TPU, and
        may change how the compiler schedules all the rest. Beyond 2**32 the
        number begins again.
        """
        count = tf.cast(self.iterations, tf.int32)  # its lower half
        return tf.where(count + 1 < 1, tf.int32.max - 1, count)

    def position(self) -> tf.Tensor | None:
        """The position in the window, int32; None without accumulation."""
        if self.window_position is None:
            return None
        return tf.cast(self.window_position, tf.int32)

    def calls(
        self, accumulation_steps: int | None, position: tf.Tensor | None
    ) -> tf.Tensor:
        """The number of `apply` calls that counted: what schedules read.

        int64, as Keras gives it to schedules.
        """
        if accumulation_steps is None:
            return tf.convert_to_tensor(self.iterations)
        updates = self.updates()
        calls = updates * accumulation_steps + position
        # No product of int64: a schedule stays where int32 ends.
        last = tf.int32.max // accumulation_steps
        calls = tf.where(updates < last, calls, tf.int32.max)
        return tf.cast(calls, tf.int64)

    def count_micro_step(self, position: tf.Tensor, last: int) -> None:
        """Moves on in the window, from `position`; from `last` to its start."""
        # A comparison: 64-bit remainders are emulated on TPU. A window that
        # was longer when it was saved may be past its end.
        start = tf.zeros_like(position)
        following = tf.where(position >= last, start, position + 1)
        replicas.assign(self.window_position, tf.cast(following, tf.int64))

    def good_updates_in_a_row(self) -> tf.Tensor:
        """The number of good updates, int32."""
        return tf.cast(self.good_updates, tf.int32)

    def assign_good_updates(self, count: tf.Tensor | int) -> None:
        """Sets the number of good updates."""
        replicas.assign(self.good_updates, tf.cast(count, tf.int64))

    def count_update(self) -> None:
        """Counts an update that was applied."""
        replicas.assign_add(self.iterations, tf.ones([], tf.int64))


def _counter(name: str) -> tf.Variable:
    with tf.init_scope():
        return tf.Variable(0, trainable=False, dtype=tf.int64, name=name)
