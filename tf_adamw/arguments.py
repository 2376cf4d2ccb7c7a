"""Checks of the constructor's arguments."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_adamw.loss_scale import DynamicLossScale


class Range(NamedTuple):
    """Which numbers an argument accepts, and how to say so."""

    text: str
    accepts: Callable[[float], bool]


FROM_0 = Range("a finite number >= 0", lambda x: 0 <= x < math.inf)
ABOVE_0 = Range("a finite number > 0", lambda x: 0 < x < math.inf)
BELOW_1 = Range("a number in [0, 1)", lambda x: 0 <= x < 1)
UP_TO_1 = Range("a number in [0, 1]", lambda x: 0 <= x <= 1)
AT_LEAST_1 = Range("a finite number >= 1", lambda x: 1 <= x < math.inf)
ABOVE_1 = Range("a finite number > 1", lambda x: 1 < x < math.inf)
COUNT = Range("an integer >= 1", lambda x: x >= 1)

RANGES = {
    "learning_rate": FROM_0,
    "weight_decay": FROM_0,
    "beta_1": BELOW_1,
    "beta_2": BELOW_1,
    "epsilon": ABOVE_0,
    "clipnorm": ABOVE_0,
    "clipvalue": ABOVE_0,
    "global_clipnorm": ABOVE_0,
    "ema_momentum": UP_TO_1,
    "loss_scale_factor": ABOVE_0,
    "DynamicLossScale.initial": AT_LEAST_1,
    "DynamicLossScale.growth_interval": Range(
        "an integer from 1 to 2^31", lambda x: 1 <= x <= 2**31
    ),
    "DynamicLossScale.factor": ABOVE_1,
    "ema_overwrite_frequency": COUNT,
    "gradient_accumulation_steps": COUNT,
    "base_learning_rate": ABOVE_0,
    "layerwise_decay: rate": Range("a number in (0, 1]", lambda x: 0 < x <= 1),
}


def number(argument: str, value: Any) -> float:
    """Returns a Python float, of a number or a tensor with a value.

    Raises:
      ValueError: if it is no number or out of the argument's range.
    """
    plain = plain_number(value)
    allowed = RANGES[argument]
    if plain is None or not accepts(allowed, plain):
        raise ValueError(f"{argument} must be {allowed.text}, got {value!r}.")
    return plain


def accepts(allowed: Range, value: float) -> bool:
    """Whether the value is in range, and still is when float32 holds it."""
    with np.errstate(over="ignore"):
        return allowed.accepts(value) and allowed.accepts(np.float32(value))


def optional_number(argument: str, value: Any) -> float | None:
    """`number`, or None for None."""
    return None if value is None else number(argument, value)


def optional_count(argument: str, value: Any) -> int | None:
    """Returns a positive int, or None for None.

    Raises:
      ValueError: if it is neither.
    """
    return None if value is None else count(argument, value, "None or ")


def count(argument: str, value: Any, otherwise: str = "") -> int:
    """Returns a positive int.

    Raises:
      ValueError: if it is none.
    """
    allowed = RANGES[argument]
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not allowed.accepts(value):
        raise ValueError(
            f"{argument} must be {otherwise}{allowed.text}, got {value!r}."
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


def choice(argument: str, value: Any, choices: Sequence[str]) -> str:
    """Returns one of several words.

    Raises:
      ValueError: if it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        accepted = ", ".join(map(repr, choices))
        raise ValueError(
            f"{argument} must be one of {accepted}, got {value!r}."
        )
    return value


def loss_scale_factor(value: Any) -> float | DynamicLossScale | None:
    """Returns a number, None, or the rule of a dynamic loss scale.

    Raises:
      ValueError: if it is none of them, or out of range.
    """
    argument = "loss_scale_factor"
    if isinstance(value, str) and value == "dynamic":
        return DynamicLossScale()
    if not isinstance(value, DynamicLossScale):
        if isinstance(value, str):
            raise ValueError(
                f'{argument} must be a number, "dynamic", a '
                f"DynamicLossScale or None, got {value!r}."
            )
        return optional_number(argument, value)
    of = "DynamicLossScale."
    return DynamicLossScale(
        number(f"{of}initial", value.initial),
        count(f"{of}growth_interval", value.growth_interval),
        number(f"{of}factor", value.factor),
    )


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


def plain_number(value: Any) -> float | None:
    """A float from a Python or NumPy number or an eager scalar tensor."""
    if hasattr(value, "numpy"):
        value = value.numpy()
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # "V" is NumPy's kind of bfloat16.
    array = getattr(value, "shape", None) == () and value.dtype.kind in "iufV"
    return float(value) if real or array else None


def floating_scalar(what: str, value: Any) -> Any:
    """Returns a floating-point scalar variable or tensor.

    Raises:
      ValueError: if it has another shape or dtype.
    """
    if value.shape.rank not in (0, None) or not value.dtype.is_floating:
        raise ValueError(
            f"{what} must be a floating-point scalar, got {value!r}."
        )
    return value
