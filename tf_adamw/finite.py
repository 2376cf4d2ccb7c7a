"""Step 5: whether all gradients are finite.

TensorFlow takes milliseconds to give XLA one `IsFinite`, `IsNan` or `Sqrt`, as
many as for a hundred comparisons. With a thousand variables that is most of
the time that a step takes to compile.
"""

from __future__ import annotations

import tensorflow as tf


def all_finite(values: tf.Tensor) -> tf.Tensor:
    """Returns a bool scalar: whether no element is infinite or NaN.

    Args:
      values: a gradient, of any shape and floating dtype; also what clipping
        computed of one: a norm can overflow where no gradient does.
    """
    largest = tf.constant(values.dtype.max, values.dtype)
    within = tf.logical_and(values <= largest, values >= -largest)
    return tf.reduce_all(within)


def is_nan(values: tf.Tensor) -> tf.Tensor:
    """Returns which elements are NaN: only they do not equal themselves."""
    return tf.not_equal(values, values)


def root(values: tf.Tensor, *, compiled: bool) -> tf.Tensor:
    """Returns the square root of values that are at least 0, or NaN.

    Args:
      values: a tensor of any shape and floating dtype.
      compiled: whether XLA compiles the operations. It makes this power, of
        what it sees is not negative, a square root.
    """
    if not compiled:
        return tf.sqrt(values)
    zero = tf.zeros([], values.dtype)
    return tf.pow(tf.maximum(values, zero), tf.constant(0.5, values.dtype))
