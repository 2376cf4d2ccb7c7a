"""The optimizer's configuration as JSON-able values."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from tf_adamw.groups import Multipliers, NormGroups
from tf_adamw.hyperparameters import NAMES, Hyperparameters
from tf_adamw.loss_scale import DynamicLossScale
from tf_adamw.patterns import Selection
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


def group_config(
    exclusions: Selection,
    multipliers: Iterable[Multipliers],
    norm_groups: NormGroups,
    registry: Registry,
) -> dict[str, Any]:
    """Returns what the variables are grouped by, in patterns.

    Multipliers are a dict where each entry is one pattern, otherwise a list of
    pairs of patterns and a factor.

    Factors that are variables become numbers, as they stand.

    Raises:
      ValueError: if a predicate was given, and nothing is built.
    """

    def patterns(selection: Selection) -> list[str]:
        return selection.as_patterns(registry.parameters, registry.name)

    def factors(of: Multipliers) -> dict[str, float] | list[Any]:
        found = [
            (patterns(selection), float(tf.convert_to_tensor(factor)))
            for selection, factor in of.entries
        ]
        # A dict, if it can be one: each entry has to count as a whole.
        different = {entry[0] for entry, _ in found if len(entry) == 1}
        if len(different) == len(found):
            return {entry[0]: factor for entry, factor in found}
        return [[entry, factor] for entry, factor in found]

    return {
        exclusions.argument: patterns(exclusions) or None,
        **{of.argument: factors(of) for of in multipliers},
        "norm_groups": {
            name: patterns(selection)
            for name, selection in norm_groups.selections.items()
        },
    }


def arguments_of(
    config: Mapping[str, Any], restored: Callable[[Any], Any]
) -> dict[str, Any]:
    """Returns the constructor's arguments, of what `get_config` returned.

    Args:
      config: the dict.
      restored: makes a schedule of what describes one.
    """
    scale = config.get("loss_scale_factor")
    if isinstance(scale, Mapping):
        config = {**config, "loss_scale_factor": DynamicLossScale(**scale)}
    return {
        name: restored(value)
        if name in NAMES and isinstance(value, Mapping)
        else value
        for name, value in config.items()
    }


def restored(
    value: Mapping[str, Any], custom_objects: Mapping[str, Any] | None
) -> Any:
    """Returns the schedule that `_described` described.

    Raises:
      ValueError: if its class is not found.
    """
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
