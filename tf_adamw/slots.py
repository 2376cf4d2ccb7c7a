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

    They have its shape and its arithmetic's dtype and start at zero; the
    average starts at NaN, which says that there is none yet.
    """
    return {name: _create(parameter, name) for name in names}


def _create(parameter: Parameter, name: str) -> tf.Variable:
    variable, dtype = parameter.variable, parameter.dtype
    with tf.init_scope(), tf.device(variable.device):
        start = float("nan") if name == "average" else 0.0
        return tf.Variable(
            tf.fill(variable.shape, tf.constant(start, dtype)),
            trainable=False,
            name=f"{parameter.name}/{name}",
        )
