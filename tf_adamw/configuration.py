"""The optimizer's configuration as JSON-able values."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw.groups import Factor, Multipliers, NormGroups
from tf_adamw.hyperparameters import NAMES
from tf_adamw.keys import own_name
from tf_adamw.loss_scale import DynamicLossScale
from tf_adamw.patterns import Selection
from tf_adamw.registry import Registry


def optimizer_config(
    optimizer: Any,
    options: Sequence[str],
    described: Callable[[str, Any], Any],
) -> dict[str, Any]:
    """Returns the arguments of an `AdamW`, as `AdamW.get_config` does.

    Args:
      optimizer: the `AdamW`.
      options: names of attributes that are JSON-able as they are.
      described: makes a JSON-able value of a hyperparameter, given its name
        and a number or the callable.

    Raises:
      ValueError: as `group_config`, and what `described` raises.
    """
    plain = optimizer.hyperparameters.plain
    return {
        **{name: described(name, plain(name)) for name in NAMES},
        **{name: getattr(optimizer, name) for name in options},
        "loss_scale_factor": loss_scale_config(optimizer.loss_scale_factor),
        **group_config(
            optimizer._exclusions,
            (optimizer._multipliers, optimizer._decay_multipliers),
            optimizer._norm_groups,
            optimizer._registry,
        ),
    }


def selected_names(optimizer: Any) -> list[str]:
    """Returns the own names of variables that an `AdamW`'s arguments select."""
    selections = [
        optimizer._exclusions,
        *(s for s, _ in optimizer._multipliers.entries),
        *(s for s, _ in optimizer._decay_multipliers.entries),
        *optimizer._norm_groups.selections.values(),
    ]
    return [own_name(v) for s in selections for v in s.variables]


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
      ValueError: as `Selection.as_patterns`.
    """

    def patterns(selection: Selection) -> list[str]:
        return selection.as_patterns(registry.parameters, registry.name)

    def number(factor: Factor) -> float:
        held = isinstance(factor, tf.Variable)
        return float(tf.convert_to_tensor(factor)) if held else factor

    def factors(of: Multipliers) -> dict[str, float] | list[Any]:
        found = [
            (patterns(selection), number(factor))
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
    """Returns the schedule that `described` described.

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


def described(name: str, held: Any) -> Any:
    """Returns a number as it is, and the configuration of a schedule.

    Args:
      name: the hyperparameter's, for the message.
      held: a number, or a callable.

    Raises:
      ValueError: if a callable has no configuration.
    """
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
