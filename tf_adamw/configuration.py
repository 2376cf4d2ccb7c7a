"""The optimizer's configuration as JSON-able values."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tf_adamw.hyperparameters import NAMES, Hyperparameters
from tf_adamw.loss_scale import DynamicLossScale
from tf_adamw.patterns import Exclusions
from tf_adamw.registry import Registry


def hyperparameter_config(held: Hyperparameters) -> dict[str, Any]:
    """Returns numbers, or the configuration of a schedule.

    Raises:
      ValueError: if a callable has no configuration.
    """
    return {name: _described(name, held.plain(name)) for name in NAMES}


def loss_scale_config(
    factor: float | DynamicLossScale | None,
) -> float | dict[str, Any] | None:
    """Returns a number, None, or the fields of a dynamic loss scale."""
    if isinstance(factor, DynamicLossScale):
        return dataclasses.asdict(factor)
    return factor


def exclusion_config(
    exclusions: Exclusions, registry: Registry
) -> list[str] | None:
    """Returns patterns; a variable becomes one that fits its key alone.

    Raises:
      ValueError: if a predicate was given.
    """
    if exclusions.predicate is not None:
        raise ValueError(
            "exclude_from_weight_decay is a predicate, which has no JSON "
            "form; give patterns or variables to use get_config()."
        )
    patterns = list(exclusions.patterns)
    for variable in exclusions.variables:
        patterns.append(f"^{re.escape(registry.name(variable))}$")
    return patterns or None


def multiplier_config(multipliers: Mapping[str, Any]) -> dict[str, float]:
    """Returns patterns and numbers, those of variables as they stand."""
    return {
        pattern: float(tf.convert_to_tensor(factor))
        for pattern, factor in multipliers.items()
    }


def restored(value: Any, custom_objects: Mapping[str, Any] | None) -> Any:
    """Returns the schedule that `_described` described, or `value` itself.

    Raises:
      ValueError: if its class is not found.
    """
    if not isinstance(value, Mapping):
        return value
    name, module = value["class_name"], value["module"]
    found = (custom_objects or {}).get(name)
    if found is None:
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            raise ValueError(
                f"There is no {name!r} in {module!r}: pass its class in "
                "custom_objects."
            ) from None
    return found.from_config(value["config"])


def _described(name: str, held: Any) -> Any:
    if not callable(held):
        return held
    if not hasattr(held, "get_config"):
        raise ValueError(
            f"{name} is a {type(held).__name__} without get_config(), which "
            "has no JSON form."
        )
    kind = type(held)
    return {
        "module": _public_module(kind),
        "class_name": kind.__name__,
        "config": held.get_config(),
    }


def _public_module(kind: type) -> str:
    """Where Keras exports a schedule: its own modules move between versions."""
    root = kind.__module__.split(".")[0]
    public = f"{root}.optimizers.schedules"
    try:
        exported = getattr(importlib.import_module(public), kind.__name__, None)
    except ImportError:
        exported = None
    return public if exported is kind else kind.__module__
