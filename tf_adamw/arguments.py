"""Checks of the constructor's arguments."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tf_adamw.patterns import check_pattern

# argument: (test, what is accepted)
_RANGES = {
    "learning_rate": (lambda x: x >= 0, "a finite number of at least 0"),
    "weight_decay": (lambda x: x >= 0, "a finite number of at least 0"),
    "beta_1": (lambda x: 0 <= x < 1, "a number in [0, 1)"),
    "beta_2": (lambda x: 0 <= x < 1, "a number in [0, 1)"),
    "epsilon": (lambda x: x > 0, "a finite number above 0"),
    "clipnorm": (lambda x: x > 0, "None or a finite number above 0"),
    "clipvalue": (lambda x: x > 0, "None or a finite number above 0"),
    "global_clipnorm": (lambda x: x > 0, "None or a finite number above 0"),
    "ema_momentum": (lambda x: 0 <= x <= 1, "a number in [0, 1]"),
    "loss_scale_factor": (lambda x: x > 0, "None or a finite number above 0"),
}


def number(argument: str, value: Any) -> float:
    """Returns a Python float, of a number or a tensor with a value.

    Raises:
      ValueError: if it is no number or out of the argument's range.
    """
    accepts, wanted = _RANGES[argument]
    plain = _plain_number(value)
    if plain is None or not math.isfinite(plain) or not accepts(plain):
        raise ValueError(f"{argument} must be {wanted}, got {value!r}.")
    return plain


def optional_number(argument: str, value: Any) -> float | None:
    """`number`, or None for None."""
    return None if value is None else number(argument, value)


def optional_count(argument: str, value: Any) -> int | None:
    """Returns a positive int, or None for None.

    Raises:
      ValueError: if it is neither.
    """
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Integral)
        or value < 1
    ):
        raise ValueError(
            f"{argument} must be None or an integer of at least 1, "
            f"got {value!r}."
        )
    return int(value)


def flag(argument: str, value: Any) -> bool:
    """Returns a bool.

    Raises:
      ValueError: if it is none.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{argument} must be True or False, got {value!r}.")
    return value


def clip_bounds(**bounds: Any) -> dict[str, float | None]:
    """Returns the three clip bounds, at most one of them not None.

    Raises:
      ValueError: if a bound is out of range, or there is more than one.
    """
    checked = {
        name: optional_number(name, value) for name, value in bounds.items()
    }
    given = [name for name, value in checked.items() if value is not None]
    if len(given) > 1:
        raise ValueError(
            f"At most one of {', '.join(bounds)} can be set, "
            f"got {', '.join(given)}."
        )
    return checked


def jit_mode(value: Any) -> bool | str:
    """Returns True, False or "auto".

    Raises:
      ValueError: if it is none of them.
    """
    if isinstance(value, bool) or (isinstance(value, str) and value == "auto"):
        return value
    raise ValueError(
        f'jit_compile must be True, False or "auto", got {value!r}.'
    )


def multipliers(value: Any) -> dict[str, float | tf.Variable]:
    """Returns the learning-rate multipliers: patterns and factors.

    Raises:
      ValueError: if it is no mapping, or a pattern or a factor is invalid.
    """
    argument = "learning_rate_multipliers"
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{argument} must be a dict of patterns and factors, got {value!r}."
        )
    checked = {}
    for pattern, factor in value.items():
        check_pattern(argument, pattern)
        plain = factor
        if not isinstance(factor, tf.Variable):
            plain = _plain_number(factor)
            if plain is None or not math.isfinite(plain) or plain < 0:
                raise ValueError(
                    f"{argument}: the factor of {pattern!r} must be a finite "
                    f"number of at least 0 or a tf.Variable, got {factor!r}."
                )
        checked[pattern] = plain
    return checked


def _plain_number(value: Any) -> float | None:
    """A float from a Python or NumPy number or an eager scalar tensor."""
    if isinstance(value, (bool, str, bytes)) or value is None:
        return None
    if hasattr(value, "numpy"):
        value = value.numpy()
    if getattr(value, "shape", ()) != ():
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
