"""TensorFlow 1's Adam and AdamW, and BERT's optimizer, in its checkpoints.

There the slots of a variable are variables with names of their own:

    tf1:  w <- w - lr_t * m / (sqrt(v) + epsilon)
          lr_t = lr * sqrt(1 - beta_2^t) / (1 - beta_1^t)
          `<variable>/Adam`, `<variable>/Adam_1`, `beta1_power`, `beta2_power`
          (of tf.contrib's AdamW, which begins with w <- w - wd * w:
          `<variable>/AdamW`, `<variable>/AdamW_1`)
    bert: w <- w - lr * (m / (sqrt(v) + epsilon) + wd * w)
          `<variable>/adam_m`, `<variable>/adam_v`, `global_step`
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_adamw.migration.source import Source, count

# In neither the file tells the learning rate, nor is there a usual one.
_TF1 = {
    "weight_decay": 0.0,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-8,
}
# Of BERT's `create_optimizer`.
_BERT = {
    "weight_decay": 0.01,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-6,
}
_BERT_EXCLUDED = ("LayerNorm", "layer_norm", "bias")
_POWERS = ("beta1_power", "beta2_power")
_STEP = "global_step"

# `{variable: (momentum's name, velocity's name)}`
Pairs = dict[str, tuple[str, str]]


class _File:
    """The names and shapes in a checkpoint, and its values."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._reader = self._read(lambda: tf.train.load_checkpoint(path))
        self.shapes = self._reader.get_variable_to_shape_map()

    def value(self, name: str) -> np.ndarray:
        value = np.asarray(self._read(lambda: self._reader.get_tensor(name)))
        narrow = value.dtype.itemsize < 4 and value.dtype.kind in "fV"
        return value.astype(np.float32) if narrow else value

    def _read(self, how: Callable[[], Any]) -> Any:
        try:
            return how()
        except Exception as error:  # a damaged file has many ways to fail
            reason = " ".join(str(error).split()) or type(error).__name__
            kind = "damaged or missing"
            if tf.io.gfile.exists(self.path):  # A prefix is no file.
                kind = "none of TensorFlow's, or damaged"
            raise ValueError(
                f"The checkpoint {self.path!r} is {kind}: {reason}"
            ) from error

    def named(self, name: str) -> list[str]:
        """All variables of that name, in whatever scope."""
        return [n for n in self.shapes if n.rpartition("/")[2] == name]

    def step(self) -> int | None:
        found = self.named(_STEP)
        if len(found) != 1:
            return None
        return count(self.value(found[0]), f"{found[0]} in {self.path!r}")


def read(path: str, source: str, given: Mapping[str, float]) -> Source:
    """Reads a checkpoint of TensorFlow 1: see `readers.read`."""
    file = _File(path)
    return (_tf1 if source == "tf1" else _bert)(file, given)


def _tf1(file: _File, given: Mapping[str, float]) -> Source:
    powers = [_power(file, name) for name in _POWERS]
    optimizer, pairs = _tf1_pairs(file)
    decays = "adamw" in optimizer.lower() or "weight_decay" in given
    defaults = {**_TF1}
    if decays:
        del defaults["weight_decay"]
    settings = {**defaults, **given}
    # It is Adam: that it does not decay is no assumption.
    assumed = frozenset(defaults) - {"weight_decay"} - set(given)
    return Source(
        optimizer=f"TensorFlow 1 {'AdamW' if decays else 'Adam'}",
        iterations=_updates(powers, settings, file.step()),
        slots=_slots(file, pairs),
        settings=settings,
        assumed=assumed,
        decay_coupling="none" if decays else "learning_rate",
        weights={name: file.value(name) for name in pairs},
    )


def _bert(file: _File, given: Mapping[str, float]) -> Source:
    pairs: Pairs = {}
    for name in file.shapes:
        scope, _, slot = name.rpartition("/")
        if slot == "adam_m" and f"{scope}/adam_v" in file.shapes:
            variable = _variable_of(scope, file.shapes) or scope
            pairs[variable] = (name, f"{scope}/adam_v")
    if not pairs:
        raise ValueError(
            f"{file.path!r} has no state of BERT's optimizer: no variable "
            "ends with /adam_m and has another beside it with /adam_v."
        )
    pairs = dict(sorted(pairs.items()))
    return Source(
        optimizer="BERT's AdamWeightDecayOptimizer",
        iterations=file.step() or 0,
        slots=_slots(file, pairs),
        settings={**_BERT, **given},
        assumed=frozenset(_BERT) - set(given),
        bias_correction=False,
        decayed={
            name: not any(re.search(r, name) for r in _BERT_EXCLUDED)
            for name in pairs
        },
        weights={n: file.value(n) for n in pairs if n in file.shapes},
        notes=(
            "BERT's create_optimizer clips gradients to a global norm of 1, "
            "which no file tells: global_clipnorm=1.0",
        ),
    )


def _slots(file: _File, pairs: Pairs) -> dict[str, dict[str, np.ndarray]]:
    return {
        variable: {"momentum": file.value(m), "velocity": file.value(v)}
        for variable, (m, v) in pairs.items()
    }


def _tf1_pairs(file: _File) -> tuple[str, Pairs]:
    """The optimizer's name, and the slots that it has."""
    found: dict[str, Pairs] = {}
    for velocity in file.shapes:
        momentum = velocity.removesuffix("_1")
        scope, _, optimizer = momentum.rpartition("/")
        if momentum == velocity or momentum not in file.shapes or not scope:
            continue
        variable = _variable_of(scope, file.shapes)
        if variable is None or any(
            file.shapes[n] != file.shapes[variable]
            for n in (momentum, velocity)
        ):
            continue
        found.setdefault(optimizer, {})[variable] = (momentum, velocity)
    if len(found) != 1:
        names = f": {', '.join(sorted(found))}" if found else ""
        raise ValueError(
            f"{file.path!r} has the slots of {len(found)} optimizers{names}, "
            "such as <variable>/Adam and <variable>/Adam_1; it has to be one."
        )
    optimizer, pairs = found.popitem()
    return optimizer, dict(sorted(pairs.items()))


def _variable_of(scope: str, names: Mapping[str, Sequence[int]]) -> str | None:
    """The variable that has its slots in a scope.

    Where the optimizer was in a scope itself, that comes first.
    """
    return next((name for name in _suffixes(scope) if name in names), None)


def _suffixes(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.partition("/")[2]


def _power(file: _File, name: str) -> float:
    found = file.named(name)
    if len(found) != 1 or file.named(f"{name}_1"):
        raise ValueError(
            f"{file.path!r} has to have one variable {name!r}, of one Adam; "
            f"it has {len(found + file.named(f'{name}_1'))}."
        )
    power = file.value(found[0])
    if power.shape or not 0 <= power <= 1:
        raise ValueError(
            f"{found[0]} in {file.path!r} must be a power of a number in "
            f"[0, 1), got {power}."
        )
    return float(power)


def _updates(
    powers: Sequence[float], settings: Mapping[str, float], step: int | None
) -> int:
    """How many updates there were, of the powers `beta^(updates + 1)`.

    Args:
      powers: of beta_1 and of beta_2, in float32: each update rounded them.
      settings: with the betas.
      step: the `global_step`, if there is one: it counts where the powers
        have become too small.
    """
    counts = []
    for name, power in zip(("beta_1", "beta_2"), powers, strict=True):
        beta = float(np.float32(settings[name]))
        if power < np.finfo(np.float32).tiny or not 0 < beta < 1:
            continue
        count = math.log(power) / math.log(beta)
        counts.append(round(count) - 1)
        # Each product is rounded by at most 2^-24, relative.
        off = abs(count - round(counts[0] + 1))
        if off > 0.01 - (count + 1) * 2.0**-24 / math.log(beta):
            raise ValueError(
                f"beta1_power = {powers[0]:g} and beta2_power = {powers[1]:g} "
                f"do not come from beta_1 = {settings['beta_1']:g} and beta_2 "
                f"= {settings['beta_2']:g}: give those of the training."
            )
    if counts:
        return counts[0]
    slowest = max(settings["beta_1"], settings["beta_2"])
    if not 0 < slowest < 1:
        return step or 0
    vanished = math.log(np.finfo(np.float32).tiny) / math.log(slowest)
    return max(step or 0, math.ceil(vanished))
