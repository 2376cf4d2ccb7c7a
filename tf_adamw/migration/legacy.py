"""The legacy Adam of tf_keras, and what others made of it.

Those are TF-Addons' AdamW and the AdamWeightDecay of the Model Garden and of
Hugging Face. Checkpoints have each slot beside its variable, as
`<variable>/.OPTIMIZER_SLOT/<optimizer>/m`; `.h5` files of whole models have
the slots' names, `<optimizer>/<variable>/m`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_adamw.migration import keras_files, keras_settings
from tf_adamw.migration.object_checkpoint import ObjectCheckpoint
from tf_adamw.migration.source import CLIPS, UNTOLD, Source, count

_SLOTS = {"m": "momentum", "v": "velocity", "vhat": "velocity_max"}
_HYPERS = ("learning_rate", "beta_1", "beta_2", "weight_decay", "decay")


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What sets one of the optimizers apart from the others.

    Only TF-Addons' saves its weight decay in checkpoints (if it is a number)
    and has no default for it. `others` are the names that the others have by
    default.
    """

    people: str
    class_name: str
    others: tuple[str, ...]
    decay_coupling: str
    default_decay: float | None
    notes: tuple[str, ...] = ()


_KINDS = {
    "tf_keras_legacy": _Kind(
        "tf_keras legacy Adam",
        "Adam",
        ("AdamW", "AdamWeightDecay"),
        "learning_rate",
        0.0,
    ),
    # One that extend_with_decoupled_weight_decay made is called "Adam".
    "tfa_adamw": _Kind(
        "TF-Addons AdamW", "AdamW", ("AdamWeightDecay",), "none", None
    ),
    "adam_weight_decay": _Kind(
        "AdamWeightDecay",
        "AdamWeightDecay",
        ("Adam", "AdamW"),
        "learning_rate",
        0.0,
        (
            "the Model Garden's clips gradients to a global norm of 1 "
            "(gradient_clip_norm), which no file tells: global_clipnorm=1.0",
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class _State:
    """What a file tells; `hypers` are the settings, and `decay`."""

    path: str
    count: int
    slots: Mapping[str, Mapping[str, np.ndarray]]
    hypers: Mapping[str, float]
    weights: Mapping[str, np.ndarray]
    options: Mapping[str, Any]
    ignored: tuple[str, ...]
    untold: frozenset[str] = UNTOLD
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read(path: str, source: str, given: Mapping[str, Any]) -> Source:
    """Reads it from a checkpoint, or the `.h5` file of a whole model.

    Args:
      path: of the file, or the prefix of the checkpoint.
      source: "tf_keras_legacy", "tfa_adamw" or "adam_weight_decay".
      given: settings.

    Raises:
      ValueError: if it is another optimizer's, not built, or damaged.
    """
    kind = _KINDS[source]
    if keras_files.is_checkpoint(path):
        state = _in_checkpoint(path, kind)
    else:
        state = _in_file(path, kind)
    return _source(state, kind, given)


def _source(state: _State, kind: _Kind, given: Mapping[str, Any]) -> Source:
    defaults = dict(keras_settings.DEFAULTS)
    if kind.default_decay is not None:
        defaults["weight_decay"] = kind.default_decay
    if "learning_rate" not in state.hypers:
        del defaults["learning_rate"]
    told = {n: v for n, v in state.hypers.items() if n != "decay"}
    settings, assumed = keras_settings.merged(told, given, defaults)
    if "weight_decay" not in settings:
        raise ValueError(
            f"The optimizer in {state.path!r} has no weight_decay that is a "
            f"number: if it is {kind.people} with a schedule, say that of the "
            "next step by weight_decay."
        )
    notes = (*kind.notes, *state.notes)
    decay = state.hypers.get("decay", 0.0)
    if decay and "learning_rate" in settings:
        settings["learning_rate"] /= 1 + decay * state.count
        notes = (
            *notes,
            f"decay={decay:g}: the learning rate is that of the next step, "
            f"learning_rate / (1 + {decay:g} * {state.count}), and falls on",
        )
    amsgrad = any("velocity_max" in slots for slots in state.slots.values())
    return Source(
        optimizer=kind.people,
        iterations=state.count,
        slots=state.slots,
        settings=settings,
        assumed=assumed,
        decay_coupling=kind.decay_coupling,
        options={**state.options, **({"amsgrad": True} if amsgrad else {})},
        untold=state.untold,
        weights=state.weights,
        aliases=state.aliases,
        ignored=state.ignored,
        notes=notes,
    )


def _in_checkpoint(path: str, kind: _Kind) -> _State:
    checkpoint = ObjectCheckpoint(path)

    def fits(node: int) -> bool:
        names = {name for _, name in checkpoint.slots(node)}
        # That of Nadam.
        cached = "momentum_cache" in checkpoint.children(node)
        return {"m", "v"} <= names <= set(_SLOTS) and not cached

    node = checkpoint.optimizer(
        fits, f"{kind.people} with the slots m and v, and its model"
    )
    numbers = {name: checkpoint.number(node, name) for name in _HYPERS}
    hypers = {name: n for name, n in numbers.items() if n is not None}
    counter = checkpoint.children(node)["iter"]
    # "AdamW/iter"
    label = checkpoint.name(counter).rpartition("/")[0]
    _check_kind(path, kind, label, hypers)
    slots: dict[str, dict[str, np.ndarray]] = {}
    weights, aliases = {}, {}
    for (variable, name), slot in checkpoint.slots(node).items():
        key = checkpoint.key(variable)
        aliases[key] = checkpoint.name(variable)
        slots.setdefault(key, {})[_SLOTS[name]] = checkpoint.value(slot)
        weights[key] = checkpoint.value(variable)
    scaled = "loss_scale" in checkpoint.children(node)
    return _State(
        path,
        count(checkpoint.value(counter), f"The counter in {path!r}"),
        slots,
        hypers,
        weights,
        aliases=aliases,
        options={},
        ignored=("loss_scale",) if scaled else (),
        notes=_same_state(label),
    )


def _same_state(label: str) -> tuple[str, ...]:
    """Says which others an optimizer with a name of its own may be."""
    if re.sub(r"_\d+$", "", label) == "AdamWeightDecay":
        return ()
    return keras_settings.same_state(
        None, label, ("Adamax of tf_keras", "LAMB of TF-Addons")
    )


def _check_kind(
    path: str, kind: _Kind, label: str, hypers: Mapping[str, float]
) -> None:
    """Checks what a checkpoint tells about the optimizer's class."""
    found = keras_settings.known_class(path, None, label, label)
    if "weight_decay" in hypers and kind.default_decay is not None:
        found = "TF-Addons AdamW, which saves its weight_decay"
    elif re.sub(r"_\d+$", "", found) not in kind.others:
        return
    raise ValueError(
        f"The optimizer in {path!r} is {found}; expected {kind.people}."
    )


def _in_file(path: str, kind: _Kind) -> _State:
    stored = keras_files.read_file(path)
    if stored.config is None or not stored.names:
        raise ValueError(
            f"{path!r} has no names of an optimizer's slots; expected a "
            f"checkpoint, or an .h5 file of a model, with {kind.people}."
        )
    name = keras_settings.known_class(path, stored.config, "", "")
    keras_settings.check_class(path, name, (kind.class_name,))
    config = dict(stored.config["config"])
    if "weight_decay_rate" in config:
        config["weight_decay"] = config["weight_decay_rate"]
    hypers = keras_settings.told(config)
    if config.get("decay"):
        hypers["decay"] = float(config["decay"])
    options = keras_settings.options(config)
    clips = keras_settings.clips(config)
    others = [f"{n}={clips[n]:g}" for n in clips if n not in options]
    slots = _slots_by_name(stored, kind)
    return _State(
        path,
        count(stored.arrays[0], f"The counter in {path!r}"),
        slots,
        hypers,
        {n: w for n, w in stored.weights.items() if n in slots},
        options,
        (*stored.ignored, *others),
        untold=UNTOLD - set(CLIPS),
    )


def _slots_by_name(
    stored: keras_files.OptimizerFile, kind: _Kind
) -> dict[str, dict[str, np.ndarray]]:
    """The slots: the momentum of "dense/kernel" is "Adam/dense/kernel/m"."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for full_name, array in zip(stored.names, stored.arrays, strict=True):
        name, _, slot = full_name.rpartition("/")
        if slot not in _SLOTS:
            continue
        if name not in stored.weights:
            name = name.partition("/")[2]
        found.setdefault(name, {})[_SLOTS[slot]] = array
    if not found or any(
        not {"momentum", "velocity"} <= set(slots) for slots in found.values()
    ):
        raise ValueError(
            f"The optimizer in {stored.path!r} has not the slots m and v of "
            f"each variable; expected a built {kind.people}."
        )
    return found
