"""Keras 3's AdamW and Adam.

`.keras` and `.weights.h5` files have their variables in order and without
names, the checkpoints of `tf.train.Checkpoint` with those of the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_adamw.migration import keras_files, keras_layout, keras_settings
from tf_adamw.migration.keras_state import (
    ACCUMULATION,
    CLASSES,
    State,
    has_moments,
    options_of,
    slots_in,
)
from tf_adamw.migration.object_checkpoint import ObjectCheckpoint
from tf_adamw.migration.source import Source, count

_EXPECTED = "an AdamW or Adam of Keras 3"


def read(path: str, source: str, given: Mapping[str, Any]) -> Source:
    """Reads it from a `.keras`, `.weights.h5` or `.h5` file or a checkpoint.

    Args:
      path: of the file, or the prefix of the checkpoint.
      source: "keras".
      given: settings, and `gradient_accumulation_steps` where only a `.keras`
        file would tell it.

    Raises:
      ValueError: if it is another optimizer's, not built, or damaged.
    """
    del source
    if keras_files.is_checkpoint(path):
        state = _in_checkpoint(path)
    else:
        state = _in_file(path)
    return state.source("Keras 3", given)


def _in_file(path: str) -> State:
    stored = keras_files.read_file(path)
    keras_settings.check_version(path, stored.library, "3", "Keras 3")
    name = keras_settings.known_class(
        path, stored.config, stored.label, "AdamW"
    )
    keras_settings.check_class(path, name, CLASSES)
    layout, slots = keras_layout.by_position(stored, True, _EXPECTED)
    config = stored.config["config"] if stored.config else {}
    told = keras_settings.told(config)
    if layout.rate:
        told["learning_rate"] = float(stored.arrays[1])
    options = {**keras_settings.options(config), **options_of(slots)}
    if layout.accumulator:
        options[ACCUMULATION] = config.get(ACCUMULATION)
    names = _names(stored, layout, len(slots))
    return State(
        path,
        name,
        count(stored.arrays[0], f"The counter in {path!r}"),
        slots,
        told,
        scheduled=not layout.rate,
        options=options,
        names=names,
        weights={n: stored.weights[n] for n in names},
        ignored=stored.ignored,
        notes=keras_settings.same_state(
            stored.config, stored.label, ("Adadelta", "Adamax", "Lamb")
        ),
    )


def _names(
    stored: keras_files.OptimizerFile, layout: keras_layout.Layout, count: int
) -> list[str]:
    """The variables' names, if they are known: in an `.h5` of a whole model.

    The momentum of "model/dense/kernel" is "adamw/model_dense_kernel_momentum".
    """
    by_flat_name: dict[str, list[str]] = {}
    for name in stored.weights:
        flat_name = name.replace("/", "_") + "_momentum"
        by_flat_name.setdefault(flat_name, []).append(name)
    moments = layout.momentums(stored.names, count)
    found = [by_flat_name.get(m.split("/")[-1], []) for m in moments]
    names = [candidates[0] for candidates in found if len(candidates) == 1]
    return names if len(set(names)) == count else []


def _in_checkpoint(path: str) -> State:
    checkpoint = ObjectCheckpoint(path)

    def fits(node: int) -> bool:
        tf_keras = "_index_dict" in checkpoint.children(node)
        return has_moments(checkpoint, node) and not tf_keras

    node = checkpoint.optimizer(fits, _EXPECTED)
    slots = slots_in(checkpoint, node)
    counter = checkpoint.children(node)["_iterations"]
    # "adam_w/iteration"
    label = checkpoint.name(counter).rpartition("/")[0].split("/")[-1]
    rate = checkpoint.number(node, "_learning_rate")
    options = options_of(slots)
    if checkpoint.listed(node, "_accumulated_gradients"):
        options[ACCUMULATION] = None
    names, weights = _weights(checkpoint, node, slots)
    return State(
        path,
        keras_settings.known_class(path, None, label, "AdamW"),
        count(checkpoint.value(counter), f"The counter in {path!r}"),
        slots,
        {} if rate is None else {"learning_rate": rate},
        scheduled=rate is None,
        options=options,
        names=names,
        weights=weights,
        notes=keras_settings.same_state(None, label, ("Lamb",)),
    )


def _weights(
    checkpoint: ObjectCheckpoint,
    node: int,
    slots: keras_layout.Slots,
) -> tuple[list[str], dict[str, np.ndarray]]:
    """The variables' names, if they are known, and their values."""
    variables = checkpoint.listed(node, "_trainable_variables")
    names = [checkpoint.name(variable) for variable in variables]
    values = [checkpoint.value(variable) for variable in variables]
    shapes = [slot["momentum"].shape for slot in slots]
    if [value.shape for value in values] != shapes:
        return [], {}
    if len(set(names)) < len(names) or not all(names):
        positions = map(str, range(len(values)))
        return [], dict(zip(positions, values, strict=True))
    return names, dict(zip(names, values, strict=True))
