"""Step 2: the loss scale."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_adamw.dtypes import widen


def scale(loss: tf.Tensor, factor: float | None) -> tf.Tensor:
    """Returns `loss * factor`, or `loss` itself without a factor.

    Raises:
      ValueError: if the factor is too large for the loss's dtype.
    """
    if factor is None:
        return loss
    loss = tf.convert_to_tensor(loss)
    largest = float(loss.dtype.max)
    if factor > largest:
        raise ValueError(
            f"loss_scale_factor={factor:g} is more than a {loss.dtype.name} "
            f"loss can hold ({largest:g}); cast the loss to float32."
        )
    return loss * tf.constant(factor, loss.dtype)


def unscale(
    gradients: Sequence[tf.Tensor], factor: float | None
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
    return [gradient / tf.constant(factor, gradient.dtype) for gradient in wide]
