"""Step 9: the exponential moving average of the weights.

An average is NaN until its variable's first update. It then starts from the
weights, even if a checkpoint that has no average has replaced them since.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf

from tf_adamw import replicas
from tf_adamw.dtypes import scalar
from tf_adamw.registry import Parameter


def average(value: tf.Variable, variable: tf.Variable, momentum: float) -> None:
    """Moves an average towards the new weights.

    ```none
    average <- momentum * average + (1 - momentum) * w
    ```

    The first update sets it to the weights.

    Args:
      value: the average, float32 or float64.
      variable: the weights, same shape, any floating dtype.
      momentum: `ema_momentum`, between 0 and 1.
    """
    weights = tf.cast(variable, value.dtype)
    replicas.assign(value, _moved(value, weights, momentum))


def average_and_overwrite(
    value: tf.Variable, variable: tf.Variable, momentum: float, due: tf.Tensor
) -> None:
    """Moves an average, and where `due` makes it the weights, too.

    For programs that XLA compiles.

    Args:
      value: the average, float32 or float64.
      variable: the new weights, same shape, any floating dtype.
      momentum: `ema_momentum`, between 0 and 1.
      due: bool scalar.
    """
    weights = tf.cast(variable, value.dtype)
    moved = _moved(value, weights, momentum)
    if variable.dtype == value.dtype:
        # As a function of the weights that are written. Of those before, it
        # would take a second pass over memory on TPU.
        weights = tf.where(due, moved, weights)
        moved = tf.where(due, weights, _moved(value, weights, momentum))
        replicas.assign(variable, weights)
    else:
        narrow = tf.cast(moved, variable.dtype)
        replicas.assign(variable, tf.where(due, narrow, variable))
    replicas.assign(value, moved)


def _moved(
    value: tf.Variable, weights: tf.Tensor, momentum: float
) -> tf.Tensor:
    kept = scalar(momentum, value.dtype) * value
    moved = kept + scalar(1 - momentum, value.dtype) * weights
    return tf.where(tf.math.is_nan(value), weights, moved)


def started(value: tf.Variable, variable: tf.Variable) -> tf.Tensor:
    """Returns the average; the weights, in its dtype, before the first update.

    Args:
      value: the average, float32 or float64.
      variable: the weights, same shape, any floating dtype.
    """
    weights = tf.cast(variable, value.dtype)
    return tf.where(tf.math.is_nan(value), weights, value)


def finalize(parameters: Iterable[Parameter]) -> None:
    """Makes the averages the weights, copy by copy.

    Within a replica that is the replica's own copy alone.
    """
    for parameter in parameters:
        for weights, held in zip(
            replicas.copies(parameter.variable),
            replicas.copies(parameter.slots["average"]),
            strict=True,
        ):
            new = tf.cast(started(held, weights), weights.dtype)
            replicas.assign(weights, new)


@contextlib.contextmanager
def swapped(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Makes the averages the weights within a `with` block."""
    every_copy = [c for p in parameters for c in replicas.copies(p.variable)]
    kept = [copy.read_value() for copy in every_copy]
    try:
        finalize(parameters)
        yield
    finally:
        for copy, value in zip(every_copy, kept, strict=True):
            replicas.assign(copy, value)


def overwrite_due(updates: tf.Tensor, frequency: int) -> tf.Tensor:
    """Whether the update after `updates` updates overwrites the weights."""
    return tf.equal((updates + 1) % frequency, 0)


def overwrite(
    value: tf.Variable, variable: tf.Variable, due: tf.Tensor
) -> None:
    """Makes the average the weights if `due`.

    Args:
      value: the average, float32 or float64.
      variable: the weights, same shape, any floating dtype.
      due: bool scalar.
    """

    def copy() -> bool:
        replicas.assign(variable, tf.cast(value, variable.dtype))
        return True

    tf.cond(due, copy, lambda: True)
