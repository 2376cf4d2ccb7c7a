"""The slots: where the state of each variable is created."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_adamw.registry import Parameter

SLOT_NAMES = ("momentum", "velocity", "velocity_max", "average", "accumulator")


def slot_names(
    *, amsgrad: bool, use_ema: bool, accumulates: bool
) -> tuple[str, ...]:
    """Returns the names of the slots that the options need."""
    needed = (True, True, amsgrad, use_ema, accumulates)
    return tuple(n for n, need in zip(SLOT_NAMES, needed, strict=True) if need)


def create_slots(
    parameter: Parameter, names: Sequence[str]
) -> dict[str, tf.Variable]:
    """Creates the slots of one variable on the variable's device.

    They have its shape and its arithmetic's dtype and start at zero, but for
    the average, which starts at the weights.
    """
    return {name: _create(parameter, name) for name in names}


def _create(parameter: Parameter, name: str) -> tf.Variable:
    variable, dtype = parameter.variable, parameter.dtype
    with tf.init_scope(), tf.device(variable.device):
        # A variable that the function being traced has just made has no value
        # yet. Its average is set by the first update.
        if name == "average" and _has_value(variable):
            initial_value = tf.cast(variable, dtype)
        else:
            initial_value = tf.zeros(variable.shape, dtype)
        return tf.Variable(
            initial_value,
            trainable=False,
            name=f"{parameter.name}/{name}",
        )


def _has_value(variable: tf.Variable) -> bool:
    return tf.executing_eagerly() and bool(variable.is_initialized())
