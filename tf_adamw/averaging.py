"""Step 9: the exponential moving average of the weights.

An average is NaN until its variable's first update. It then starts from the
weights, even if a checkpoint that has no average has replaced them since.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf

from tf_adamw import finite, replicas
from tf_adamw.dtypes import scalar
from tf_adamw.registry import Parameter


def moved(average: tf.Tensor, weights: tf.Tensor, momentum: float) -> tf.Tensor:
    """Returns an average, moved towards the new weights.

    ```none
    average <- momentum * average + (1 - momentum) * w
    ```

    The first update sets it to the weights.

    Args:
      average: the average, float32 or float64.
      weights: the weights, same shape, any floating dtype.
      momentum: `ema_momentum`, between 0 and 1.
    """
    weights = tf.cast(weights, average.dtype)
    kept = scalar(momentum, average.dtype) * average
    new = kept + scalar(1 - momentum, average.dtype) * weights
    return tf.where(finite.is_nan(average), weights, new)


def moved_and_overwritten(
    average: tf.Tensor,
    weights: tf.Tensor,
    momentum: float,
    due: tf.Tensor,
    *,
    one_pass: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the weights and the average; where `due` both are the average.

    For programs that XLA compiles.

    Args:
      average: the average, float32 or float64.
      weights: the new weights, same shape, any floating dtype.
      momentum: `ema_momentum`, between 0 and 1.
      due: bool scalar.
      one_pass: as in `update_rule.update`.
    """
    new = moved(average, weights, momentum)
    if one_pass or weights.dtype != average.dtype:
        return tf.where(due, tf.cast(new, weights.dtype), weights), new
    # As a function of the weights that are written. Of those before, it
    # would take a second pass over memory on TPU.
    weights = tf.where(due, new, weights)
    return weights, tf.where(due, weights, moved(average, weights, momentum))


def started(value: tf.Variable, variable: tf.Variable) -> tf.Tensor:
    """Returns the average; the weights, in its dtype, before the first update.

    Args:
      value: the average, float32 or float64.
      variable: the weights, same shape, any floating dtype.
    """
    weights = tf.cast(variable, value.dtype)
    return tf.where(finite.is_nan(tf.convert_to_tensor(value)), weights, value)


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
