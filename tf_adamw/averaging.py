"""Step 9: the exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf


class Factors(NamedTuple):
    """The scalars of one step: `average <- kept * average + new * w`."""

    kept: tf.Tensor
    new: tf.Tensor


def step_factors(
    momentum: float, averaged_updates: tf.Tensor, dtype: tf.DType
) -> Factors:
    """Returns `momentum` and `1 - momentum`; 0 and 1 at the first update.

    Args:
      momentum: `ema_momentum`, between 0 and 1.
      averaged_updates: integer scalar, the updates averaged before this one.
      dtype: float32 or float64.
    """
    first = tf.equal(averaged_updates, 0)
    return Factors(
        kept=tf.where(first, tf.zeros([], dtype), tf.constant(momentum, dtype)),
        new=tf.where(
            first, tf.ones([], dtype), tf.constant(1 - momentum, dtype)
        ),
    )


def average(
    value: tf.Variable, variable: tf.Variable, factors: Factors
) -> None:
    """Moves an average towards the new weights.

    ```none
    average <- momentum * average + (1 - momentum) * w
    ```

    Args:
      value: the average, float32 or float64.
      variable: the weights, same shape, any floating dtype.
      factors: the step's, in the dtype of `value`.
    """
    weights = tf.cast(variable, value.dtype)
    value.assign(factors.kept * value + factors.new * weights)


def overwrite_due(iterations: tf.Tensor, frequency: int) -> tf.Tensor:
    """Whether the update after `iterations` updates overwrites the weights."""
    # int32: 64-bit remainders are emulated on TPU.
    updates = tf.cast(iterations, tf.int32) + 1
    return tf.equal(updates % frequency, 0)


def overwrite(
    value: tf.Variable,
    variable: tf.Variable,
    due: tf.Tensor,
    *,
    compiled: bool,
) -> None:
    """Makes the average the weights where `due`.

    Args:
      value: the average, float32 or float64.
      variable: the weights, same shape, any floating dtype.
      due: bool scalar.
      compiled: whether XLA compiles the operations. It fuses a selection into
        the update's own pass; without it a conditional saves one.
    """
    if compiled:
        weights = tf.cast(value, variable.dtype)
        variable.assign(tf.where(due, weights, variable))
    else:
        tf.cond(due, lambda: copy([value], [variable]), lambda: True)


def seed(
    averages: Sequence[tf.Variable],
    variables: Sequence[tf.Variable],
    averaged_updates: tf.Tensor,
) -> None:
    """Sets the averages of variables without a gradient at the first update.

    They would otherwise keep the weights of the time of `build`, which a
    checkpoint may have replaced since.
    """
    if averages:
        first = tf.equal(averaged_updates, 0)
        tf.cond(first, lambda: copy(variables, averages), lambda: True)


def copy(
    sources: Sequence[tf.Variable], targets: Sequence[tf.Variable]
) -> bool:
    """Assigns each source to its target, in the target's dtype."""
    for source, target in zip(sources, targets, strict=True):
        target.assign(tf.cast(source, target.dtype))
    return True
