"""Step 3: gradient accumulation over a window of micro-steps."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_adamw import replicas
from tf_adamw.dtypes import widen


def accumulate(
    accumulators: Sequence[tf.Variable],
    gradients: Sequence[tf.Tensor | None],
    position: tf.Tensor,
    *,
    compiled: bool,
) -> None:
    """Makes the sums of the window those of `window_sums`.

    Args:
      accumulators: float32 or float64 variables, `a`.
      gradients: tensors of the same shapes, or None, which counts as zero.
      position: integer scalar, the micro-step's position in the window.
      compiled: whether XLA compiles the operations. It fuses a selection into
        one pass; without it a conditional saves the temporary.
    """
    if compiled:
        sums = window_sums(accumulators, gradients, position)
        for accumulator, total in zip(accumulators, sums, strict=True):
            replicas.assign(accumulator, total)
        return
    first = tf.equal(position, 0)
    for accumulator, gradient in zip(accumulators, gradients, strict=True):
        _overwrite_or_add(accumulator, _wide(accumulator, gradient), first)


def window_sums(
    accumulators: Sequence[tf.Variable],
    gradients: Sequence[tf.Tensor | None],
    position: tf.Tensor,
) -> list[tf.Tensor]:
    """Returns the sums of a window's gradients, these included.

    ```none
    g        at position 0
    a + g    after it
    ```

    The window's first micro-step overwrites the sum, so that nobody has to
    spend a pass over memory on zeroing it.

    Args:
      accumulators: as in `accumulate`.
      gradients: likewise.
      position: likewise.
    """
    first = tf.equal(position, 0)
    sums = []
    for accumulator, gradient in zip(accumulators, gradients, strict=True):
        gradient = _wide(accumulator, gradient)
        sums.append(tf.where(first, gradient, accumulator + gradient))
    return sums


def _wide(accumulator: tf.Variable, gradient: tf.Tensor | None) -> tf.Tensor:
    if gradient is None:
        return tf.zeros(accumulator.shape, accumulator.dtype)
    return widen(gradient)


def _overwrite_or_add(
    accumulator: tf.Variable, gradient: tf.Tensor, first: tf.Tensor
) -> None:
    def overwrite() -> tf.Tensor:
        replicas.assign(accumulator, gradient)
        return True

    def add() -> tf.Tensor:
        replicas.assign_add(accumulator, gradient)
        return True

    tf.cond(first, overwrite, add)


def window_mean(
    position: tf.Tensor, divisor: int, total: tf.Tensor
) -> tf.Tensor:
    """Returns the mean gradient of a window that ends at `position`.

    Args:
      position: integer scalar, from 0.
      divisor: what the total is to be divided by besides.
      total: the sum of the window's gradients, or the accumulator.
    """
    return total / tf.cast((position + 1) * divisor, total.dtype)
