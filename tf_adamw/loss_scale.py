"""Step 2: the loss scale, constant or dynamic."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tf_adamw.dtypes import scalar, widen


@dataclasses.dataclass(frozen=True)
class DynamicLossScale:
    """A loss scale that follows the gradients, for `loss_scale_factor`.

    ```none
    scale <- scale * factor            after growth_interval good updates
    scale <- max(scale / factor, 1)    at a bad one, which is skipped
    ```

    An update is bad if a reduced gradient is infinite or NaN.

    Attributes:
      initial: the first scale, at least 1.
      growth_interval: the number of good updates in a row.
      factor: larger than 1; powers of two round no gradient.

    References:
      Micikevicius et al., 2018: https://arxiv.org/abs/1710.03740
    """

    initial: float = 2.0**15
    growth_interval: int = 2000
    factor: float = 2.0


def scale(loss: tf.Tensor, factor: float | tf.Tensor | None) -> tf.Tensor:
    """Returns `loss * factor`, or `loss` itself without a factor.

    Raises:
      ValueError: if a constant factor is too large for the loss's dtype.
    """
    if factor is None:
        return loss
    loss = tf.convert_to_tensor(loss)
    largest = float(loss.dtype.max)
    if not tf.is_tensor(factor) and factor > largest:
        raise ValueError(
            f"loss_scale_factor={factor:g} is more than a {loss.dtype.name} "
            f"loss can hold ({largest:g}); cast the loss to float32."
        )
    return loss * scalar(factor, loss.dtype)


def unscale(
    gradients: Sequence[tf.Tensor], factor: float | tf.Tensor | None
) -> list[tf.Tensor]:
    """Returns the gradients divided by `factor`, in float32 or float64.

    Low-precision gradients are widened first: what the scale has kept above
    the smallest float16 would otherwise be lost again here.

    Args:
      gradients: tensors of any shape and floating dtype.
      factor: the loss scale, or None.

    Returns:
      Tensors of the same shapes; of the same dtypes without a factor.
    """
    if factor is None:
        return list(gradients)
    wide = [widen(gradient) for gradient in gradients]
    return [gradient / scalar(factor, gradient.dtype) for gradient in wide]


def after_good_update(
    factor: tf.Tensor, good_updates: tf.Tensor, rule: DynamicLossScale
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the scale and the number of good updates in a row after one.

    Args:
      factor: float32 scalar, the scale.
      good_updates: integer scalar, the number before.
      rule: when it grows; never to infinity.
    """
    due = good_updates + 1 >= rule.growth_interval
    larger = factor * rule.factor
    grows = tf.logical_and(due, tf.math.is_finite(larger))
    return (
        tf.where(grows, larger, factor),
        tf.where(due, tf.zeros_like(good_updates), good_updates + 1),
    )


def after_bad_update(factor: tf.Tensor, rule: DynamicLossScale) -> tf.Tensor:
    """Returns the smaller scale; at 1 gradients are what they are."""
    return tf.maximum(factor / rule.factor, 1.0)
