"""Gives the state of an `AdamW` to Keras 3 or to PyTorch."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_adamw import replicas
from tf_adamw.adapter import Adapter
from tf_adamw.hyperparameters import NAMES as HYPERPARAMETERS
from tf_adamw.migration import export_keras, export_torch, given
from tf_adamw.registry import Parameter
from tf_adamw.state import OptimizerState

TARGETS = {"keras": export_keras.write, "torch": export_torch.write}


def export_state(
    optimizer: OptimizerState | Adapter,
    path: str,
    target: str,
    *,
    keys: Sequence[str] | None = None,
    transpose: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Writes a file from which another optimizer goes on.

    "keras": a `.weights.h5` that `keras.optimizers.AdamW` loads. If the file
    exists, as `model.save_weights` wrote it, the optimizer's part of it is
    replaced; in that of a LossScaleOptimizer, the part of the optimizer inside.
    Keras's optimizer has to be made with the arguments returned, excluded
    variables by its own `exclude_from_weight_decay`. They are numbers, those of
    the next step, but for a learning rate that is a schedule or a callable: it
    is among them as it is, and Keras takes it if it is one of Keras's.

    "torch": a file for `torch.load(path, weights_only=True)` and
    `torch.optim.AdamW.load_state_dict`. Variables of another decay or learning
    rate make a group of their own. Its learning rate and weight decay are the
    next step's, its `eps` is the one of Algorithm 1 whose next step is the
    same.

    Args:
      optimizer: a `tf_adamw.AdamW`, or one of `tf_adamw.keras` or
        `tf_adamw.tf_keras`, built.
      path: of the file; of a link, that which it leads to is written.
      target: "keras" or "torch".
      keys: of all variables, in the order in which the other optimizer has
        its own (of PyTorch: within each group); by default in that in which
        they were built.
      transpose: `{regular expression on keys: axes}`: the slots are transposed
        by them, as `numpy.transpose` does.

    Returns:
      The arguments with which to make the other optimizer; PyTorch's `params`
      has the groups, with keys for tensors.

    Raises:
      ValueError: if an argument does not fit, the optimizer is not built or in
        the middle of a window, Keras has no multipliers and there are some,
        or no weight decay has the other's next step; also in a `tf.function`
        or `strategy.run`.
      TypeError: if the optimizer is none of tf_adamw.
      ImportError: if h5py or PyTorch is missing.
    """
    replicas.check_outside("export_state")
    optimizer = given.adamw_of(optimizer)
    if target not in TARGETS:
        raise ValueError(
            f"target must be one of {', '.join(TARGETS)}, got {target!r}."
        )
    parameters = _ordered(optimizer, keys)
    position = optimizer.counters.window_position
    if position is not None and position.numpy():
        raise ValueError(
            f"{position.numpy()} steps of an unfinished window are "
            "accumulated, which no file can take along: export after an update."
        )
    given.check_transpose(transpose or {})
    for pattern in transpose or {}:
        if not any(re.search(pattern, p.key) for p in parameters):
            raise ValueError(
                f"transpose has the pattern {pattern!r}, which matches no key."
            )
    slots = {p.key: _slots(optimizer, p, transpose or {}) for p in parameters}
    settings = {name: _number(optimizer, name) for name in HYPERPARAMETERS}
    settings["weight_decay"] = _times_rate(optimizer, settings)
    with _replacing(str(path)) as new:
        return TARGETS[target](optimizer, new, parameters, slots, settings)


def _ordered(
    optimizer: OptimizerState, keys: Sequence[str] | None
) -> list[Parameter]:
    """The parameters by their keys; of those in shards the first."""
    by_key = {p.key: p for p in optimizer.parameters if p.part == 0}
    if not by_key:
        raise ValueError("export_state comes after the optimizer's build().")
    keys = list(by_key) if keys is None else list(keys)
    unlike = set(keys) ^ set(by_key)
    if unlike or len(keys) != len(by_key):
        reason = f": {min(unlike)!r} is in one only" if unlike else ""
        raise ValueError(
            f"keys has to have each of the {len(by_key)} keys once, it has "
            f"{len(keys)}{reason}."
        )
    return [by_key[key] for key in keys]


def _slots(
    optimizer: OptimizerState,
    parameter: Parameter,
    transpose: Mapping[str, Sequence[int]],
) -> dict[str, np.ndarray]:
    whole = parameter.variable if parameter.whole is None else parameter.whole
    slots = {
        name: optimizer.get_slot(whole, name).numpy()
        for name in parameter.slots
    }
    for pattern, axes in transpose.items():
        if re.search(pattern, parameter.key) and len(axes) == len(whole.shape):
            return {n: np.transpose(slot, axes) for n, slot in slots.items()}
    return slots


def _number(optimizer: OptimizerState, name: str) -> float:
    """A hyperparameter of the next step."""
    value = optimizer.hyperparameters.plain(name)
    if callable(value):
        value = getattr(optimizer, name)
    return float(tf.convert_to_tensor(value)) if tf.is_tensor(value) else value


def _times_rate(
    optimizer: OptimizerState, settings: Mapping[str, float]
) -> float:
    """The weight decay of the next step, as one that the rate multiplies."""
    rate, decay = settings["learning_rate"], settings["weight_decay"]
    if optimizer.decay_coupling == "schedule":
        return decay / optimizer.base_learning_rate
    if optimizer.decay_coupling == "learning_rate" or not decay:
        return decay
    if not rate:
        raise ValueError(
            'With decay_coupling="none" weights decay at a learning rate of 0, '
            "which the other optimizer cannot do: export at another rate."
        )
    return decay / rate


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[str]:
    """A copy that replaces the file once it is written, or is removed."""
    real = os.path.realpath(path)
    folder = os.path.dirname(real)
    if not os.path.isdir(folder):
        raise ValueError(f"path: there is no directory {folder!r}.")
    if os.path.isdir(real):
        raise ValueError(f"path: {path!r} is a directory.")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export_") as own:
        new = os.path.join(own, os.path.basename(path))
        if os.path.exists(path):
            shutil.copy(path, new)
        yield new
        os.replace(new, real)
