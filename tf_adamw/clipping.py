"""Step 6: gradient clipping."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_adamw.dtypes import widen, widest


def clip(
    gradients: Sequence[tf.Tensor],
    *,
    clipvalue: float | None = None,
    clipnorm: float | None = None,
    global_clipnorm: float | None = None,
) -> tuple[list[tf.Tensor], tf.Tensor | None]:
    """Clips by value, by each gradient's norm, or by the global norm.

    ```none
    g <- min(max(g, -clipvalue), clipvalue)
    g <- g * min(1, clipnorm / |g|)
    g <- g * min(1, global_clipnorm / sqrt(sum of all |g|^2))
    ```

    At most one of the three bounds is given. Norms are float32 (float64 for
    float64 gradients). A norm of infinity or NaN makes the clipped gradients
    NaN, so that it cannot pass for a small step.

    Args:
      gradients: tensors of any shape and floating dtype.
      clipvalue: largest absolute value of an element.
      clipnorm: largest Euclidean norm of one gradient.
      global_clipnorm: largest Euclidean norm of all gradients together.

    Returns:
      The clipped gradients, and the float32 global norm before the clipping
      if a norm was asked for, otherwise None.
    """
    gradients = list(gradients)
    if clipvalue is not None:
        clipped = [
            tf.clip_by_value(g, -clipvalue, clipvalue) for g in gradients
        ]
        return clipped, None
    if clipnorm is None and global_clipnorm is None:
        return gradients, None
    gradients = [widen(gradient) for gradient in gradients]
    squares = [tf.reduce_sum(tf.square(g)) for g in gradients]
    global_norm = _global_norm(squares)
    if clipnorm is not None:
        norms = [tf.sqrt(square) for square in squares]
        bound = clipnorm
    else:
        norms = [global_norm] * len(gradients)
        bound = global_clipnorm
    clipped = [
        gradient * _factor(tf.cast(norm, gradient.dtype), bound)
        for gradient, norm in zip(gradients, norms, strict=True)
    ]
    return clipped, tf.cast(global_norm, tf.float32)


def _global_norm(squares: Sequence[tf.Tensor]) -> tf.Tensor:
    dtype = widest(square.dtype for square in squares)
    return tf.sqrt(tf.add_n([tf.cast(square, dtype) for square in squares]))


def _factor(norm: tf.Tensor, bound: float) -> tf.Tensor:
    # inf - inf and NaN - NaN are NaN: the factor carries them on.
    one = tf.ones([], norm.dtype)
    factor = tf.minimum(one, tf.constant(bound, norm.dtype) / norm)
    return factor + (norm - norm)
