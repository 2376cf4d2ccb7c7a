"""Step 8 without XLA: TensorFlow's fused Adam ops, and the decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tf_adamw.dtypes import scalar, times
from tf_adamw.handles import Handle, KeptHandle, RowsHandle
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


def betas(values: Mapping[str, Any], dtype: tf.DType) -> dict[str, tf.Tensor]:
    """Returns what the ops are given of the betas, the same for all variables.

    They multiply lr by the bias correction sqrt(1 - beta_2^t) / (1 -
    beta_1^t), in float32. A "beta_power" of zero makes that one: `alpha` has
    it.

    Args:
      values: what `as_ops_see` returns.
      dtype: float32 or float64.
    """
    return {
        "beta_1": scalar(values["beta_1"], dtype),
        "beta_2": scalar(values["beta_2"], dtype),
        "beta_power": tf.zeros([], dtype),
    }


def serves(
    variable: Handle | RowsHandle | KeptHandle,
    momentum: Handle | RowsHandle | KeptHandle,
) -> bool:
    """Whether the ops apply: to whole variables, of the moments' dtype."""
    return isinstance(variable, Handle) and variable.dtype == momentum.dtype


def update(
    handles: Mapping[str, Handle],
    gradient: tf.Tensor,
    scalars: Scalars,
    betas: Mapping[str, tf.Tensor],
    *,
    decayed: bool,
    multiplier: tf.Tensor | float,
    decay_multiplier: tf.Tensor | float,
) -> None:
    """Applies `update_rule.update` in place, by the fused ops.

    The moments are those of betas rounded to the variable's dtype. With
    `scalars` made from what `as_ops_see` returns, the weights are those of the
    exact ones, within rounding.

    Args:
      handles: of the "weights", of "momentum", "velocity" and, with AMSGrad,
        "velocity_max", all of one shape and dtype.
      gradient: same shape.
      scalars: the step's scalars, in the same dtype.
      betas: what `betas` returns.
      decayed: whether the weight decay applies.
      multiplier: factor on the learning rate, decay included.
      decay_multiplier: factor on the weight decay.
    """
    weights = handles["weights"]
    dtype = weights.dtype
    alpha = times(multiplier, scalars.alpha)
    decay = times(decay_multiplier, times(multiplier, scalars.decay))
    if decayed:
        # A step of gradient descent, down the weights: one operation less than
        # `assign_sub` of a product. Both make a temporary of the variable's
        # size. Blocks of rows, gathered and scattered back, avoid it at two to
        # three times the cost.
        tf.raw_ops.ResourceApplyGradientDescent(
            var=weights.resource,
            alpha=decay,
            delta=weights.read(),
            use_locking=True,
        )
    arguments = {
        "var": weights.resource,
        "m": handles["momentum"].resource,
        "v": handles["velocity"].resource,
        "beta1_power": betas["beta_power"],
        "beta2_power": betas["beta_power"],
        "lr": alpha,
        "beta1": betas["beta_1"],
        "beta2": betas["beta_2"],
        "epsilon": scalars.epsilon,
        "grad": tf.cast(gradient, dtype),
        # The workers of parameter servers are not in step.
        "use_locking": True,
    }
    if "velocity_max" not in handles:
        tf.raw_ops.ResourceApplyAdam(**arguments)
    else:
        tf.raw_ops.ResourceApplyAdamWithAmsgrad(
            vhat=handles["velocity_max"].resource, **arguments
        )
