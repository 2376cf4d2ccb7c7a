"""The state of an `AdamW` as a `.weights.h5` of Keras 3."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_adamw.registry import Parameter
from tf_adamw.state import OptimizerState

_OPTIONS = (
    "amsgrad",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "gradient_accumulation_steps",
)
# In the order of Keras's variables: those of a line variable by variable.
_SLOTS = (
    ("average",),
    ("accumulator",),
    ("momentum", "velocity"),
    ("velocity_max",),
)


def write(
    optimizer: OptimizerState,
    path: str,
    parameters: Sequence[Parameter],
    slots: Mapping[str, Mapping[str, np.ndarray]],
    settings: Mapping[str, float],
) -> dict[str, Any]:
    """Writes the file: see `export_state`.

    Args:
      optimizer: the `AdamW`.
      path: of the file, new or one of Keras's.
      parameters: in Keras's order.
      slots: by key.
      settings: the hyperparameters of the next step.

    Returns:
      The arguments of `keras.optimizers.AdamW`.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "Writing Keras's files needs h5py: pip install h5py"
        ) from error
    if not path.endswith(".weights.h5"):
        raise ValueError(
            f"path must end with .weights.h5, got {os.path.basename(path)!r}."
        )
    _check_multipliers(parameters)
    arguments = _arguments(optimizer, settings)
    try:
        file = h5py.File(path, "a")
    except OSError as error:
        raise ValueError(
            f"{os.path.basename(path)!r} is no HDF5 file: {error}"
        ) from error
    with file:
        # Where Keras scales the loss, its own optimizer is within another.
        inner = "/inner_optimizer" * ("optimizer/inner_optimizer" in file)
        place = f"optimizer{inner}/vars"
        if place in file:
            del file[place]
        group = file.create_group(place)
        values = _values(optimizer, parameters, slots, arguments)
        for i, value in enumerate(values):
            group[str(i)] = value
    return arguments


def _check_multipliers(parameters: Sequence[Parameter]) -> None:
    for parameter in parameters:
        held = {"learning rate": parameter.multiplier}
        if parameter.decayed:
            held["weight decay"] = parameter.decay_multiplier
        for what, value in held.items():
            factor = float(tf.convert_to_tensor(value))
            if factor != 1.0:
                raise ValueError(
                    f"Keras's AdamW has no {what} multipliers, and "
                    f"{parameter.key!r} has {factor:g}."
                )


def _arguments(
    optimizer: OptimizerState, settings: Mapping[str, float]
) -> dict[str, Any]:
    rate = optimizer.hyperparameters.plain("learning_rate")
    return {
        **settings,
        "learning_rate": rate if callable(rate) else settings["learning_rate"],
        **{name: getattr(optimizer, name) for name in _OPTIONS},
    }


def _values(
    optimizer: OptimizerState,
    parameters: Sequence[Parameter],
    slots: Mapping[str, Mapping[str, np.ndarray]],
    arguments: Mapping[str, Any],
) -> list[np.ndarray]:
    """Keras's variables, which it only counts."""
    # Keras counts the micro-steps.
    steps = optimizer.gradient_accumulation_steps or 1
    values = [np.asarray(int(optimizer.iterations.numpy()) * steps, np.int64)]
    if not callable(arguments["learning_rate"]):
        values.append(np.asarray(arguments["learning_rate"], np.float32))
    for names in _SLOTS:
        for parameter in parameters:
            held = slots[parameter.key]
            values += [held[name] for name in names if name in held]
    return values
