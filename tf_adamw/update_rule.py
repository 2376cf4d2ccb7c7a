"""Step 8: the AdamW formula, as a pure function of tensors."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tf_adamw import finite
from tf_adamw.dtypes import times
from tf_adamw.scalars import Scalars


class Updated(NamedTuple):
    """What one update computes, all in the arithmetic's dtype."""

    weights: tf.Tensor
    momentum: tf.Tensor
    velocity: tf.Tensor
    velocity_max: tf.Tensor | None


def update(
    weights: tf.Tensor,
    momentum: tf.Tensor,
    velocity: tf.Tensor,
    velocity_max: tf.Tensor | None,
    gradient: tf.Tensor,
    scalars: Scalars,
    *,
    decayed: bool = True,
    multiplier: tf.Tensor | float = 1.0,
    decay_multiplier: tf.Tensor | float = 1.0,
    compiled: bool = False,
    one_pass: bool = False,
) -> Updated:
    """Computes one AdamW update of one variable.

    ```none
    m     <- m + (1 - beta_1) * (g - m)
    v     <- v + (1 - beta_2) * (g^2 - v)
    v_max <- max(v_max, v)                                   (AMSGrad)
    alpha  = lr * sqrt(1 - beta_2^t) / (1 - beta_1^t)
    w     <- w - multiplier * (decay * w + alpha * m / (sqrt(v) + epsilon))
    ```

    with `v_max` in place of `v` in the last line under AMSGrad, and without
    the decay term where `decayed` is false; `decay` is `lr * wd *
    decay_multiplier` unless `decay_coupling` says otherwise. The decay and the
    update are summed before they are subtracted: `w` is rounded once a step.

    Args:
      weights: the variable's value `w`, any shape and floating dtype.
      momentum: `m`, same shape, float32 or float64.
      velocity: `v`, same shape and dtype as `momentum`.
      velocity_max: `v_max`, or None without AMSGrad.
      gradient: `g`, same shape as `weights`, any floating dtype.
      scalars: the step's scalars in the dtype of `momentum`.
      decayed: whether the weight decay applies.
      multiplier: factor on the learning rate, decay included.
      decay_multiplier: factor on the weight decay.
      compiled: whether XLA compiles the operations.
      one_pass: whether it does so for a CPU, and several results in one loop.

    Returns:
      The new weights and slots in the dtype of `momentum`.

    References:
      Kingma and Ba, 2015: https://arxiv.org/abs/1412.6980 (epsilon is the
      "epsilon hat" of the formula just before Section 2.1).
      Loshchilov and Hutter, 2019: https://arxiv.org/abs/1711.05101
      Reddi et al., 2018: https://openreview.net/pdf?id=ryQu7f-RZ
    """
    weights = tf.cast(weights, momentum.dtype)
    gradient = tf.cast(gradient, momentum.dtype)
    slots = momentum, velocity, velocity_max
    new = _moments(*slots, gradient, scalars)
    momentum, velocity, velocity_max = (
        _moments(*slots, gradient, scalars, reverse=True) if one_pass else new
    )
    bound = velocity if velocity_max is None else velocity_max
    root = finite.root(bound, compiled=compiled)
    step = scalars.alpha * momentum / (root + scalars.epsilon)
    if decayed:
        step = step + times(decay_multiplier, scalars.decay) * weights
    return Updated(weights - times(multiplier, step), *new)


def _moments(
    momentum: tf.Tensor,
    velocity: tf.Tensor,
    velocity_max: tf.Tensor | None,
    gradient: tf.Tensor,
    scalars: Scalars,
    *,
    reverse: bool = False,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """The new moments.

    In reverse, the same numbers but for rounding, by other operations. XLA for
    CPUs computes several results in one loop where none is made of another.
    """
    if reverse:
        momentum = momentum - scalars.one_minus_beta_1 * (momentum - gradient)
        velocity = velocity - scalars.one_minus_beta_2 * (
            velocity + gradient * -gradient
        )
    else:
        momentum = momentum + scalars.one_minus_beta_1 * (gradient - momentum)
        velocity = velocity + scalars.one_minus_beta_2 * (
            gradient * gradient - velocity
        )
    if velocity_max is not None:
        velocity_max = tf.maximum(velocity_max, velocity)
    return momentum, velocity, velocity_max
