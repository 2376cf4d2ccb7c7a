"""Sonnet's Adam, in a `tf.train.Checkpoint`.

It counts its variables: `m/0`, `v/0`, in the order of its first `apply`.

    w <- w - lr * (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + epsilon)
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tf_adamw.checkpoint_file import CheckpointFile
from tf_adamw.migration.source import Source, count

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_DEFAULTS = {
    "weight_decay": 0.0,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-8,
}
# Those that were given as variables are in the checkpoint.
_VARIABLES = {
    "learning_rate": "learning_rate",
    "beta1": "beta_1",
    "beta2": "beta_2",
    "epsilon": "epsilon",
}


def read(path: str, source: str, given: Mapping[str, float]) -> Source:
    """Reads a checkpoint with a `snt.optimizers.Adam`: see `readers.read`."""
    del source
    if tf.io.gfile.exists(path) and not tf.io.gfile.exists(f"{path}.index"):
        raise ValueError(
            f"{path!r} is no checkpoint of TensorFlow: it has no "
            f"{os.path.basename(path)}.index."
        )
    file = CheckpointFile(path)
    names = {n.removesuffix(_SUFFIX) for n in file.shapes if _SUFFIX in n}
    optimizer = _optimizer(names, path)
    variables = sum(
        bool(re.fullmatch(re.escape(optimizer) + r"m/\d+", name))
        for name in names
    )

    def value(name: str) -> Any:
        return file.tensor(f"{optimizer}{name}{_SUFFIX}")

    told = {
        setting: float(str(value(name)))
        for name, setting in _VARIABLES.items()
        if f"{optimizer}{name}" in names
    }
    # It is Adam: that it does not decay is no assumption.
    assumed = frozenset(_DEFAULTS) - {"weight_decay"} - set(told) - set(given)
    return Source(
        optimizer="Sonnet Adam",
        iterations=count(value("step"), f"{optimizer}step in {path!r}"),
        slots={
            str(i): {"momentum": value(f"m/{i}"), "velocity": value(f"v/{i}")}
            for i in range(variables)
        },
        settings={**_DEFAULTS, **told, **given},
        assumed=assumed,
        positional=True,
        algorithm_1=True,
    )


def _optimizer(names: set[str], path: str) -> str:
    """The path of the optimizer in the checkpoint, "" or ending with "/"."""
    found = sorted(
        prefix
        for prefix in (n.removesuffix("m/0") for n in names if n[-3:] == "m/0")
        if {f"{prefix}v/0", f"{prefix}step"} <= names
        and (not prefix or prefix.endswith("/"))
    )
    if len(found) != 1:
        listed = ", ".join(repr(prefix.rstrip("/")) for prefix in found)
        raise ValueError(
            f"{path!r} has {len(found)} optimizers of Sonnet, with m/0, v/0 "
            f"and step, where one is needed{': ' * bool(found)}{listed}."
        )
    return found[0]
