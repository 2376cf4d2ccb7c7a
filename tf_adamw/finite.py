"""Step 5: whether all gradients are finite."""

from __future__ import annotations

import tensorflow as tf


def all_finite(values: tf.Tensor) -> tf.Tensor:
    """Returns a bool scalar: whether no element is infinite or NaN.

    Args:
      values: a gradient, of any shape and floating dtype; also what clipping
        computed of one: a norm can overflow where no gradient does.
    """
    return tf.reduce_all(tf.math.is_finite(values))
