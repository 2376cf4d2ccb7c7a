"""Step 6: gradient clipping."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_adamw.dtypes import widen, widest


def squared_norm(gradient: tf.Tensor) -> tf.Tensor:
    """Returns the squared Euclidean norm, in float32 or float64.

    Args:
      gradient: a tensor of any shape and floating dtype.
    """
    return tf.reduce_sum(tf.square(widen(gradient)))


def global_norm(squares: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the norm of all gradients, of their squared norms."""
    dtype = widest(square.dtype for square in squares)
    return tf.sqrt(_total([tf.cast(square, dtype) for square in squares]))


def clip(
    gradients: Sequence[tf.Tensor],
    squares: Sequence[tf.Tensor] | None = None,
    keys: Sequence[str] | None = None,
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
      squares: of each its `squared_norm`, for a clip by norm.
      keys: shards of one gradient have the same; by default there are none.
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
        norms = [tf.sqrt(square) for square in _of_wholes(squares, keys)]
        bound = clipnorm
    else:
        norms = [global_norm(squares)] * len(gradients)
        bound = global_clipnorm
    return [
        gradient * _factor(tf.cast(norm, gradient.dtype), bound)
        for gradient, norm in zip(gradients, norms, strict=True)
    ]


def _total(squares: Sequence[tf.Tensor]) -> tf.Tensor:
    # `tf.add_n` adds in an order of its own each time, and replicas would
    # round differently.
    return tf.reduce_sum(tf.stack(squares))


def _of_wholes(
    squares: Sequence[tf.Tensor], keys: Sequence[str] | None
) -> list[tf.Tensor]:
    """For each shard the squared norm of the whole that it is a part of."""
    if keys is None or len(set(keys)) == len(keys):
        return list(squares)
    parts: dict[str, list[tf.Tensor]] = {}
    for key, square in zip(keys, squares, strict=True):
        parts.setdefault(key, []).append(square)
    totals = {key: _total(same) for key, same in parts.items()}
    return [totals[key] for key in keys]


def _factor(norm: tf.Tensor, bound: float) -> tf.Tensor:
    # inf - inf and NaN - NaN are NaN: the factor carries them on.
    one = tf.ones([], norm.dtype)
    factor = tf.minimum(one, tf.constant(bound, norm.dtype) / norm)
    return factor + (norm - norm)
