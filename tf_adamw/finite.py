"""Step 5: whether all gradients are finite."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def all_finite(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns a bool scalar: whether no element is infinite or NaN.

    Args:
      gradients: tensors of any shape and floating dtype; also what clipping
        computed of them: a norm can overflow where no gradient does.
    """
    verdicts = [tf.reduce_all(tf.math.is_finite(g)) for g in gradients]
    return tf.reduce_all(tf.stack(verdicts))
