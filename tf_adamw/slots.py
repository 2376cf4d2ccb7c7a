"""The slots: where the state of each variable is created."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import replicas, sharding
from tf_adamw.registry import Parameter

SLOT_NAMES = ("momentum", "velocity", "velocity_max", "average", "accumulator")


def slot_names(
    *, amsgrad: bool, use_ema: bool, accumulates: bool
) -> tuple[str, ...]:
    """Returns the names of the slots that the options need."""
    needed = (True, True, amsgrad, use_ema, accumulates)
    return tuple(n for n, need in zip(SLOT_NAMES, needed, strict=True) if need)


def create_slots(
    parameter: Parameter, names: Sequence[str], aggregation: str
) -> dict[str, tf.Variable]:
    """Creates the slots of one variable where the variable is.

    They have its shape and its arithmetic's dtype.

    Args:
      parameter: the variable.
      names: of the slots.
      aggregation: how gradients are reduced across replicas.
    """
    return {name: _create(parameter, name, aggregation) for name in names}


def start_value(name: str) -> float:
    """What every element of a slot starts with.

    The average's NaN says that there is none yet: it starts from the weights.
    """
    return float("nan") if name == "average" else 0.0


def start_again(parameter: Parameter, name: str) -> None:
    """Gives a slot the values it was created with."""
    slot = parameter.slots[name]
    slot.assign(tf.fill(slot.shape, tf.cast(start_value(name), slot.dtype)))


def tracked(parameters: Sequence[Parameter]) -> dict[str, Any]:
    """The slots of one key as checkpoints hold them: shards are joined."""
    first = parameters[0]
    if first.whole is None:
        return first.slots
    return {
        name: sharding.joined(
            [parameter.slots[name] for parameter in parameters],
            first.whole,
            f"{first.name}/{name}",
        )
        for name in first.slots
    }


def _create(parameter: Parameter, name: str, aggregation: str) -> tf.Variable:
    variable = parameter.variable
    start = tf.constant(start_value(name), parameter.dtype)
    suffix = f"/part_{parameter.part}" if parameter.whole is not None else ""
    options = {"name": f"{parameter.name}/{name}{suffix}", "trainable": False}
    if not replicas.replicated(variable):
        with tf.device(variable.device):
            return tf.Variable(tf.fill(variable.shape, start), **options)
    if name == "accumulator" and aggregation != "none":
        # Each replica has a sum of its own, and a checkpoint that of all.
        options["synchronization"] = tf.VariableSynchronization.ON_READ
        options["aggregation"] = tf.VariableAggregation[aggregation.upper()]
    return tf.Variable(tf.fill(variable.shape, start), **options)
