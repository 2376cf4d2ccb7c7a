"""Checks of what a migration is given, before anything changes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_adamw.adapter import Adapter
from tf_adamw.keys import few
from tf_adamw.migration.matching import Fitted
from tf_adamw.migration.source import Source
from tf_adamw.registry import Parameter
from tf_adamw.state import OptimizerState


def adamw_of(optimizer: Any) -> OptimizerState:
    """The `AdamW` that an optimizer is, or is Keras's door to.

    Raises:
      TypeError: if it is neither.
    """
    held = optimizer.adamw if isinstance(optimizer, Adapter) else optimizer
    if not isinstance(held, OptimizerState):
        raise TypeError(
            "optimizer must be a tf_adamw.AdamW, or that of tf_adamw.keras or "
            f"tf_adamw.tf_keras, got {type(optimizer).__name__}."
        )
    return held


def check_transpose(transpose: Mapping[str, Sequence[int]]) -> None:
    """Refuses patterns and axes that nothing can be transposed by.

    Args:
      transpose: `{regular expression on keys: axes}`.

    Raises:
      ValueError: naming the pattern.
    """
    for pattern, axes in transpose.items():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"transpose: {pattern!r} is no regular expression: {error}."
            ) from error
        order = {*np.ravel(axes).tolist()}
        if np.ndim(axes) != 1 or order != {*range(np.size(axes))}:
            raise ValueError(
                f"transpose: {pattern!r} has to have each axis from 0 on once, "
                f"it has {axes}."
            )


def check_fit(
    source: Source,
    mapped: Mapping[str, str],
    by_key: Mapping[str, Sequence[Parameter]],
    found: Fitted,
    weights: bool,
) -> None:
    """Refuses numbers that the variables cannot have.

    Args:
      source: what was read.
      mapped: `{key: the source's name}`.
      by_key: the optimizer's parameters.
      found: what they would get.
      weights: whether they would get weights, too.

    Raises:
      ValueError: naming the source's variable.
    """
    for key, name in mapped.items():
        first = by_key[key][0]
        pairs = {
            slot: (found.slots[key][slot], variable)
            for slot, variable in first.slots.items()
            if slot in found.slots[key]
        }
        if weights:
            pairs["weight"] = found.weights[key], first.variable
        for what, (value, variable) in pairs.items():
            dtype = variable.dtype
            with np.errstate(over="ignore"):
                cast = np.asarray(value).astype(dtype.as_numpy_dtype)
            if not np.all(np.isfinite(np.asarray(cast, np.float64))):
                raise ValueError(
                    f"The {what} of {name!r} of {source.optimizer} has a "
                    f"number that is not finite in {dtype.name}."
                )


def check_weights(source: Source, mapped: Mapping[str, str]) -> None:
    """Refuses to assign weights that the source lacks.

    Args:
      source: what was read.
      mapped: `{key: the source's name}`.

    Raises:
      ValueError: naming them.
    """
    missing = [n for n in mapped.values() if n not in source.weights]
    if missing and len(source.weights_at) > 1:
        raise ValueError(
            f"The file of {source.optimizer} has weights at "
            f"{' and at '.join(source.weights_at)}: save one of them with the "
            "optimizer, or assign the weights yourself."
        )
    if missing and source.positional:
        raise ValueError(
            f"The file of {source.optimizer} only counts its variables, and "
            "has no weights of theirs: assign the weights yourself."
        )
    if missing:
        raise ValueError(
            f"The file of {source.optimizer} has no weights of "
            f"{few(missing, 5)}: leave these out by names, or assign all "
            "weights yourself."
        )
