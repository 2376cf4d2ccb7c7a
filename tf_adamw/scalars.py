"""Step 7: the scalars of one step, computed once and not per variable."""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

from tf_adamw.dtypes import scalar


class Scalars(NamedTuple):
    """The scalars of one step in one dtype.

    Attributes:
      decay: `lr * wd`, or what `decay_coupling` has in place of `lr`.
      alpha: `lr * sqrt(1 - beta_2^t) / (1 - beta_1^t)`.
      one_minus_beta_1: `1 - beta_1`.
      one_minus_beta_2: `1 - beta_2`.
      epsilon: epsilon hat.
    """

    decay: tf.Tensor
    alpha: tf.Tensor
    one_minus_beta_1: tf.Tensor
    one_minus_beta_2: tf.Tensor
    epsilon: tf.Tensor


def step_scalars(
    learning_rate: tf.Tensor,
    weight_decay: tf.Tensor,
    beta_1: float | tf.Tensor,
    beta_2: float | tf.Tensor,
    epsilon: float | tf.Tensor,
    iterations: tf.Tensor,
    dtype: tf.DType,
    decay_factor: tf.Tensor | float,
) -> Scalars:
    """Computes the scalars of the update that follows `iterations` updates.

    Args:
      learning_rate: scalar of dtype `dtype`.
      weight_decay: scalar of dtype `dtype`.
      beta_1: a Python number, kept exact, or a scalar tensor.
      beta_2: likewise.
      epsilon: likewise.
      iterations: int32 scalar, the number of updates applied before.
      dtype: float32 or float64.
      decay_factor: what `weight_decay` is multiplied by.

    Returns:
      The `Scalars` in `dtype`.
    """
    t = update_number(iterations, dtype)
    correction_1 = one_minus_power(beta_1, t)
    correction_2 = one_minus_power(beta_2, t)
    return Scalars(
        decay=decay_factor * weight_decay,
        alpha=learning_rate * tf.sqrt(correction_2) / correction_1,
        one_minus_beta_1=_one_minus(beta_1, dtype),
        one_minus_beta_2=_one_minus(beta_2, dtype),
        epsilon=scalar(epsilon, dtype),
    )


def update_number(iterations: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns `t` of the update that follows `iterations` updates."""
    return tf.cast(iterations + 1, dtype)


def _one_minus(beta: float | tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    # A Python number is subtracted in float64: 1 - 0.999 in float32 would
    # already be wrong in the fifth digit.
    return scalar(1.0 - beta, dtype)


def one_minus_power(beta: float | tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """Returns `1 - beta^t` to full precision, at small `t` as well."""
    if isinstance(beta, float):
        log_beta = tf.constant(math.log(beta) if beta else -math.inf, t.dtype)
    else:
        log_beta = tf.math.log1p(tf.cast(beta, t.dtype) - 1.0)
    return -tf.math.expm1(t * log_beta)
