"""Step 8 without XLA: TensorFlow's fused Adam ops, and the decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tf_adamw import replicas
from tf_adamw.dtypes import scalar
from tf_adamw.scalars import Scalars, one_minus_power, update_number


def as_ops_see(
    values: Mapping[str, Any], iterations: tf.Tensor, dtype: tf.DType
) -> dict[str, Any]:
    """Returns the hyperparameters with which the ops make the right weights.

    They round beta to `dtype` and subtract it from one themselves. The bias
    corrections have to be those of the rounded betas, too, and epsilon has to
    grow with the root of the velocity's: `epsilon * sqrt((1 - rounded_2^t) /
    (1 - beta_2^t))`.

    Args:
      values: `beta_1`, `beta_2`, `epsilon` and others.
      iterations: int32 scalar, the number of updates applied before.
      dtype: float32 or float64.
    """
    seen = dict(values)
    for name in ("beta_1", "beta_2"):
        if isinstance(values[name], float):
            seen[name] = float(dtype.as_numpy_dtype(values[name]))
    beta_2, rounded = values["beta_2"], seen["beta_2"]
    if isinstance(beta_2, float) and rounded != beta_2:
        t = update_number(iterations, dtype)
        ratio = one_minus_power(rounded, t) / one_minus_power(beta_2, t)
        seen["epsilon"] = scalar(values["epsilon"], dtype) * tf.sqrt(ratio)
    return seen


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

    The moments are those of betas rounded to the variable's dtype. With
    `scalars` made from what `as_ops_see` returns, the weights are those of the
    exact ones, within rounding.

    Args:
      variable: the weights.
      momentum: `m`, same shape and dtype.
      velocity: `v`, same shape and dtype.
      velocity_max: `v_max`, or None without AMSGrad.
      gradient: same shape.
      scalars: the step's scalars, in the same dtype.
      betas: `beta_1` and `beta_2`, rounded.
      decayed: whether the weight decay applies.
      multiplier: factor on the learning rate, decay included.
    """
    dtype = variable.dtype
    factor = scalar(multiplier, dtype)
    if decayed:
        # The product is a temporary of the variable's size. Blocks of rows,
        # gathered and scattered back, avoid it at two to three times the cost.
        decay = scalars.decay * factor * variable
        replicas.assign_sub(variable, decay)
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
        # The workers of parameter servers are not in step.
        "use_locking": replicas.remote(variable.device),
    }
    if velocity_max is None:
        tf.raw_ops.ResourceApplyAdam(**arguments)
    else:
        tf.raw_ops.ResourceApplyAdamWithAmsgrad(
            vhat=velocity_max.handle, **arguments
        )
