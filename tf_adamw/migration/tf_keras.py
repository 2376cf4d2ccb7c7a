"""The AdamW and Adam of tf_keras, and of tf.keras in TensorFlow 2.11 to 2.15.

Checkpoints and `.h5` files of whole models have their variables' names,
`.keras` and `.weights.h5` files have them in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tf_adamw.migration import keras_files, keras_layout, keras_settings
from tf_adamw.migration.keras_state import (
    CLASSES,
    State,
    has_moments,
    options_of,
    slots_in,
)
from tf_adamw.migration.object_checkpoint import (
    ObjectCheckpoint,
    unique_values,
)
from tf_adamw.migration.source import Source, count

_EXPECTED = "an AdamW or Adam of tf_keras (no legacy one)"


def read(path: str, source: str, given: Mapping[str, Any]) -> Source:
    """Reads it from a `.keras`, `.weights.h5` or `.h5` file or a checkpoint.

    Args:
      path: of the file, or the prefix of the checkpoint.
      source: "tf_keras".
      given: settings.

    Raises:
      ValueError: if it is another optimizer's, not built, or damaged.
    """
    del source
    if keras_files.is_checkpoint(path):
        state = _in_checkpoint(path)
    else:
        state = _in_file(path)
    return state.source("tf_keras", given)


def _in_file(path: str) -> State:
    stored = keras_files.read_file(path)
    keras_settings.check_version(path, stored.library, "2", "tf_keras")
    if any(name.endswith("/m") for name in stored.names):
        raise ValueError(
            f"The optimizer in {path!r} is a legacy one; expected {_EXPECTED}."
        )
    name = keras_settings.known_class(path, stored.config, "", "AdamW")
    keras_settings.check_class(path, name, CLASSES)
    layout, slots = keras_layout.by_position(stored, False, _EXPECTED)
    config = stored.config["config"] if stored.config else {}
    told = keras_settings.told(config)
    names = _names(layout.momentums(stored.names, len(slots)))
    return State(
        path,
        name,
        count(stored.arrays[0], f"The counter in {path!r}"),
        slots,
        told,
        scheduled="learning_rate" not in told,
        options={**keras_settings.options(config), **options_of(slots)},
        names=names,
        weights={n: stored.weights[n] for n in names if n in stored.weights},
        ignored=stored.ignored,
        notes=keras_settings.same_state(
            stored.config, "", ("Adadelta", "Adamax", "Nadam")
        ),
    )


def _names(momentums: Sequence[str]) -> list[str]:
    """The variables' names, if each has its own.

    The momentum of "dense/kernel" is "AdamW/m/dense/kernel", or without what
    stands before the "m".
    """
    found = [re.fullmatch(r"(?:[^/]+/)*?m/(.+)", name) for name in momentums]
    names = [match[1] for match in found if match]
    return names if len(set(names)) == len(momentums) else []


def _in_checkpoint(path: str) -> State:
    checkpoint = ObjectCheckpoint(path)

    def fits(node: int) -> bool:
        keras_3 = "_trainable_variables" in checkpoint.children(node)
        return has_moments(checkpoint, node) and not keras_3

    node = checkpoint.optimizer(fits, _EXPECTED)
    slots = slots_in(checkpoint, node)
    momentums = [
        checkpoint.name(v) for v in checkpoint.listed(node, "_momentums")
    ]
    names = _names(momentums)
    shapes = [slot["momentum"].shape for slot in slots]
    rate = checkpoint.number(node, "_learning_rate")
    counter = checkpoint.number(node, "_iterations") or 0
    label = momentums[0].partition("/m/")[0].split("/")[-1]
    return State(
        path,
        keras_settings.known_class(path, None, label, "AdamW"),
        count(counter, f"The counter in {path!r}"),
        slots,
        {} if rate is None else {"learning_rate": rate},
        scheduled=rate is None,
        options=options_of(slots),
        names=names,
        weights=unique_values(
            checkpoint, dict(zip(names, shapes, strict=False))
        ),
    )
