"""Steps 8 and 9 for one variable: what is read, computed and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tf_adamw import averaging, fused, update_rule
from tf_adamw.handles import Handle
from tf_adamw.scalars import Scalars


class Treatment(NamedTuple):
    """What a variable's update is traced for.

    Attributes:
      compiled: whether XLA compiles it.
      one_pass: whether it can compute several results in one loop on a CPU.
      decayed: whether the weight decay applies.
      multiplier: factor on the learning rate; None if it is a tensor.
      ema_momentum: None without an average.
    """

    compiled: bool
    one_pass: bool
    decayed: bool
    multiplier: float | None
    ema_momentum: float | None


def update(
    treatment: Treatment,
    handles: Mapping[str, Handle],
    tensors: Mapping[str, tf.Tensor],
) -> None:
    """Updates the weights, the moments and the average of one variable.

    Args:
      treatment: what it is traced for.
      handles: of "weights", "momentum", "velocity", and where they exist
        "velocity_max" and "average".
      tensors: "gradient"; the step's `Scalars` by name; "multiplier" if it is a
        tensor; "due", a bool scalar, if the average overwrites the weights at
        times; for the fused ops what `fused.betas` returns.
    """
    weights = handles["weights"]
    scalars = Scalars(**{name: tensors[name] for name in Scalars._fields})
    options = {
        "decayed": treatment.decayed,
        "multiplier": tensors.get("multiplier", treatment.multiplier),
    }
    if not treatment.compiled and fused.serves(weights, handles["momentum"]):
        gradient = tensors["gradient"]
        fused.update(handles, gradient, scalars, tensors, **options)
        new = weights.read() if "average" in handles else None
    else:
        new = _by_rule(treatment, handles, tensors, scalars, options)
    if "average" in handles:
        _average(treatment, handles, new, tensors.get("due"))


def _by_rule(
    treatment: Treatment,
    handles: Mapping[str, Handle],
    tensors: Mapping[str, tf.Tensor],
    scalars: Scalars,
    options: Mapping[str, Any],
) -> tf.Tensor:
    """Step 8 by the formula. Returns the new weights."""
    weights = handles["weights"]
    moments = ("momentum", "velocity", "velocity_max")
    new = update_rule.update(
        weights.read(),
        *(
            handles[name].read() if name in handles else None
            for name in moments
        ),
        tensors["gradient"],
        scalars,
        **options,
        compiled=treatment.compiled,
        one_pass=treatment.one_pass,
    )
    written = tf.cast(new.weights, weights.dtype)
    weights.assign(written)
    for name in moments:
        if name in handles:
            handles[name].assign(getattr(new, name))
    return written


def _average(
    treatment: Treatment,
    handles: Mapping[str, Handle],
    weights: tf.Tensor,
    due: tf.Tensor | None,
) -> None:
    """Step 9, of the new weights."""
    average = handles["average"]
    given = average.read(), weights, treatment.ema_momentum
    if due is None:
        average.assign(averaging.moved(*given))
    elif treatment.compiled:
        weights, moved = averaging.moved_and_overwritten(
            *given, due, one_pass=treatment.one_pass
        )
        handles["weights"].assign(weights)
        average.assign(moved)
    else:
        moved = averaging.moved(*given)
        average.assign(moved)
        _overwrite(handles["weights"], moved, due)


def _overwrite(weights: Handle, average: tf.Tensor, due: tf.Tensor) -> None:
    def overwrite() -> bool:
        weights.assign(tf.cast(average, weights.dtype))
        return True

    tf.cond(due, overwrite, lambda: True)
