"""Step 6: gradient clipping."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_adamw.dtypes import widen, widest


def squared_norms(gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the squared Euclidean norms, in float32 or float64.

    Args:
      gradients: tensors of any shape and floating dtype.
    """
    return [tf.reduce_sum(tf.square(widen(g))) for g in gradients]


def global_norm(squares: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the norm of all gradients together, of their `squared_norms`."""
    dtype = widest(square.dtype for square in squares)
    return tf.sqrt(tf.add_n([tf.cast(square, dtype) for square in squares]))


def clip(
    gradients: Sequence[tf.Tensor],
    squares: Sequence[tf.Tensor] | None = None,
    *,
    clipvalue: float | None = None,
    clipnorm: float | None = None,
    global_clipnorm: float | None = None,
) -> list[tf.Tensor]:
    """Clips by value, by each gradient's norm, or by the global norm.

    ```none
    g <- min(max(g, -clipvalue), clipvalue)
    g <- g * min(1, clipnorm / |g|)
    g <- g * min(1, global_clipnorm / sqrt(sum of all |g|^2))
    ```

    At most one of the three bounds is given. A norm of infinity or NaN makes
    the clipped gradients NaN: it must not pass for a small step.

    Args:
      gradients: tensors of any shape and floating dtype.
      squares: their `squared_norms`, for a clip by norm.
      clipvalue: largest absolute value of an element.
      clipnorm: largest Euclidean norm of one gradient.
      global_clipnorm: largest Euclidean norm of all gradients together.

    Returns:
      The clipped gradients, in float32 or float64 where there is a bound.
    """
    gradients = list(gradients)
    if clipvalue is None and squares is None:
        return gradients
    gradients = [widen(gradient) for gradient in gradients]
    if clipvalue is not None:
        return [tf.clip_by_value(g, -clipvalue, clipvalue) for g in gradients]
    if clipnorm is not None:
        norms = [tf.sqrt(square) for square in squares]
        bound = clipnorm
    else:
        norms = [global_norm(squares)] * len(gradients)
        bound = global_clipnorm
    return [
        gradient * _factor(tf.cast(norm, gradient.dtype), bound)
        for gradient, norm in zip(gradients, norms, strict=True)
    ]


def _factor(norm: tf.Tensor, bound: float) -> tf.Tensor:
    # inf - inf and NaN - NaN are NaN: the factor carries them on.
    one = tf.ones([], norm.dtype)
    factor = tf.minimum(one, tf.constant(bound, norm.dtype) / norm)
    return factor + (norm - norm)
