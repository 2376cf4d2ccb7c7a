"""Steps 8 and 9 for one variable: what is read, computed and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tf_adamw import averaging, clipping, fused, update_rule
from tf_adamw.dtypes import widen
from tf_adamw.handles import Handle, KeptHandle, RowsHandle
from tf_adamw.scalars import Scalars

AnyHandle = Handle | RowsHandle | KeptHandle


class Treatment(NamedTuple):
    """What a variable's update is traced for.

    Attributes:
      compiled: whether XLA compiles it.
      one_pass: whether it can compute several results in one loop on a CPU.
      decayed: whether the weight decay applies.
      multiplier: factor on the learning rate; None if it is a tensor.
      decay_multiplier: factor on the weight decay, likewise.
      ema_momentum: None without an average.
      measured: whether norms are asked for.
    """

    compiled: bool
    one_pass: bool
    decayed: bool
    multiplier: float | None
    decay_multiplier: float | None
    ema_momentum: float | None
    measured: bool


Squares = tuple[tf.Tensor, ...]  # squared norms: of the change, of the weights


def update(
    treatment: Treatment,
    handles: Mapping[str, Handle],
    tensors: Mapping[str, tf.Tensor],
) -> Squares:
    """Updates the weights, the moments and the average of one variable.

    Args:
      treatment: what it is traced for.
      handles: of "weights", "momentum", "velocity", and where they exist
        "velocity_max" and "average".
      tensors: "gradient"; the step's `Scalars` by name; "multiplier" and
        "decay_multiplier" where they are tensors; "due", a bool scalar, if the
        average overwrites the weights at times; "places" and "indices" of
        `rows.Rows`, if the gradient is of some rows; "changes", a bool scalar,
        if it depends whether anything does; for the fused ops what
        `fused.betas` returns.

    Returns:
      The squared norms of the change, before an average overwrites it, and of
      the new weights, where they are asked for.
    """
    whole = handles["weights"]
    before = whole.read() if treatment.measured else None
    tensors = dict(tensors)
    if "indices" in tensors:
        tensors["gradient"] = tf.gather(tensors["gradient"], tensors["places"])
        handles = _each(RowsHandle, handles, tensors["indices"])
    if "changes" in tensors:
        handles = _each(KeptHandle, handles, tensors["changes"])
    new = _updated(treatment, handles, tensors)
    squares: Squares = ()
    if treatment.measured:
        after = whole.read()
        change = widen(after) - widen(before)
        squares = clipping.squared_norm(change), clipping.squared_norm(after)
    if "average" in handles:
        _average(treatment, handles, new, tensors.get("due"))
    return squares


def _each(
    kind: type, handles: Mapping[str, AnyHandle], part: tf.Tensor
) -> dict[str, AnyHandle]:
    return {name: kind(handle, part) for name, handle in handles.items()}


def _updated(
    treatment: Treatment,
    handles: Mapping[str, AnyHandle],
    tensors: Mapping[str, tf.Tensor],
) -> tf.Tensor | None:
    """Step 8. Returns the new weights, if an average is to be made of them."""
    weights = handles["weights"]
    scalars = Scalars(**{name: tensors[name] for name in Scalars._fields})
    options = {
        "decayed": treatment.decayed,
        "multiplier": tensors.get("multiplier", treatment.multiplier),
        "decay_multiplier": tensors.get(
            "decay_multiplier", treatment.decay_multiplier
        ),
    }
    if treatment.compiled or not fused.serves(weights, handles["momentum"]):
        return _by_rule(treatment, handles, tensors, scalars, options)
    fused.update(handles, tensors["gradient"], scalars, tensors, **options)
    return weights.read() if "average" in handles else None


def _by_rule(
    treatment: Treatment,
    handles: Mapping[str, AnyHandle],
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
    handles: Mapping[str, AnyHandle],
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


def _overwrite(weights: AnyHandle, average: tf.Tensor, due: tf.Tensor) -> None:
    def overwrite() -> bool:
        weights.assign(tf.cast(average, weights.dtype))
        return True

    tf.cond(due, overwrite, lambda: True)
