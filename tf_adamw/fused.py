"""Step 8 without XLA: TensorFlow's fused Adam ops, and the decay."""

from __future__ import annotations

import tensorflow as tf

from tf_adamw.dtypes import scalar
from tf_adamw.scalars import Scalars


def rounded(beta: float | tf.Tensor, dtype: tf.DType) -> float | tf.Tensor:
    """Returns a number as the ops see it, in `dtype`."""
    if isinstance(beta, float):
        return float(dtype.as_numpy_dtype(beta))
    return beta


def serves(variable: tf.Variable, momentum: tf.Variable) -> bool:
    """Whether the ops apply: they want one dtype for weights and moments."""
    return variable.dtype == momentum.dtype


def update(
    variable: tf.Variable,
    momentum: tf.Variable,
    velocity: tf.Variable,
    velocity_max: tf.Variable | None,
    gradient: tf.Tensor,
    scalars: Scalars,
    betas: tuple[float | tf.Tensor, float | tf.Tensor],
    *,
    decayed: bool,
    multiplier: tf.Tensor | float,
) -> None:
    """Applies `update_rule.update` in place, by the fused ops.

    The ops take beta in the variable's dtype and subtract it from one
    themselves: the moments are those of a beta rounded to float32. `scalars`
    has to be made from the rounded beta too; the weights are then those of
    the exact one within float32 rounding.

    Args:
      variable: the weights.
      momentum: `m`, same shape and dtype.
      velocity: `v`, same shape and dtype.
      velocity_max: `v_max`, or None without AMSGrad.
      gradient: same shape.
      scalars: the step's scalars, in the same dtype.
      betas: `beta_1` and `beta_2`.
      decayed: whether the weight decay applies.
      multiplier: factor on the learning rate, decay included.
    """
    dtype = variable.dtype
    factor = scalar(multiplier, dtype)
    if decayed:
        # The product is a temporary of the variable's size. Blocks of rows,
        # gathered and scattered back, avoid it at two to three times the cost.
        variable.assign_sub(scalars.decay * factor * variable)
    # The op multiplies lr by the bias correction sqrt(1 - beta_2^t) /
    # (1 - beta_1^t), in float32. Powers of zero make that one: `alpha` has it.
    zero = tf.zeros([], dtype)
    arguments = {
        "var": variable.handle,
        "m": momentum.handle,
        "v": velocity.handle,
        "beta1_power": zero,
        "beta2_power": zero,
        "lr": scalars.alpha * factor,
        "beta1": scalar(betas[0], dtype),
        "beta2": scalar(betas[1], dtype),
        "epsilon": scalars.epsilon,
        "grad": tf.cast(gradient, dtype),
    }
    if velocity_max is None:
        tf.raw_ops.ResourceApplyAdam(**arguments)
    else:
        tf.raw_ops.ResourceApplyAdamWithAmsgrad(
            vhat=velocity_max.handle, **arguments
        )
