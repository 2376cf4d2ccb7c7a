"""The state of an Adam of Keras 3 or tf_keras, and what it is to AdamW."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_adamw.migration import keras_settings
from tf_adamw.migration.object_checkpoint import ObjectCheckpoint
from tf_adamw.migration.source import UNTOLD, Source

CLASSES = ("AdamW", "Adam")
ACCUMULATION = "gradient_accumulation_steps"
_WEIGHT_DECAY = {"AdamW": 0.004, "Adam": 0.0}
_LISTS = {
    "momentum": "_momentums",
    "velocity": "_velocities",
    "velocity_max": "_velocity_hats",
    "average": "_model_variables_moving_average",
}


@dataclasses.dataclass(frozen=True)
class State:
    """What a file tells.

    Attributes:
      path: of the file.
      optimizer: the class's name, "AdamW" or "Adam".
      count: the optimizer's counter: its calls, where it accumulates.
      slots: of each variable, in the optimizer's order.
      told: the settings that the file tells.
      scheduled: whether the learning rate is no number.
      options: the other arguments of AdamW that it used.
      names: the variables' names, if they are known.
      weights: their values by name, or by position, if they are known.
      ignored: what else the file has of the optimizer.
      notes: what else to know of it.
    """

    path: str
    optimizer: str
    count: int
    slots: Sequence[Mapping[str, np.ndarray]]
    told: Mapping[str, float]
    scheduled: bool
    options: Mapping[str, Any]
    names: Sequence[str] = ()
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def source(self, library: str, given: Mapping[str, Any]) -> Source:
        """What it is to AdamW.

        Args:
          library: "Keras 3" or "tf_keras".
          given: what counts before what the file tells.

        Raises:
          ValueError: if the counter counted the calls of gradient
            accumulation, and nothing tells how many made an update.
        """
        defaults = dict(keras_settings.DEFAULTS)
        defaults["weight_decay"] = _WEIGHT_DECAY[self.optimizer]
        if self.scheduled:
            del defaults["learning_rate"]
        settings, assumed = keras_settings.merged(self.told, given, defaults)
        options, ignored = dict(self.options), self.ignored
        calls = self._calls(given)
        if calls > 1:
            options[ACCUMULATION] = calls
        if self.count % calls:
            gradients = f"gradients of {self.count % calls} of {calls} calls"
            ignored = (*ignored, gradients)
        names = self.names or [str(i) for i in range(len(self.slots))]
        return Source(
            optimizer=f"{library} {self.optimizer}",
            iterations=self.count // calls,
            slots={
                name: {n: a for n, a in slots.items() if n != "accumulator"}
                for name, slots in zip(names, self.slots, strict=True)
            },
            settings=settings,
            assumed=assumed,
            positional=not self.names,
            options=options,
            weights=self.weights,
            ignored=ignored,
            notes=(*self.notes, *keras_settings.notes(options)),
            untold=self._untold(library),
        )

    def _untold(self, library: str) -> frozenset[str]:
        """The options that the file does not tell."""
        configured = "epsilon" in self.told
        untold = {ACCUMULATION} if configured else set(UNTOLD)
        if library == "Keras 3":
            untold.remove(ACCUMULATION)
        return frozenset(untold)

    def _calls(self, given: Mapping[str, Any]) -> int:
        """How many calls make one update."""
        if ACCUMULATION not in self.options:
            return 1
        calls = given.get(ACCUMULATION) or self.options[ACCUMULATION]
        if not calls:
            raise ValueError(
                f"The optimizer in {self.path!r} accumulated gradients and "
                f"counted its calls: say by {ACCUMULATION} how many of them "
                "made one update."
            )
        return int(calls)


def has_moments(checkpoint: ObjectCheckpoint, node: int) -> bool:
    """Whether an optimizer in a checkpoint has the state of Adam, built."""
    children = checkpoint.children(node)
    return (
        "_u_product" not in children  # Nadam's.
        and bool(checkpoint.listed(node, "_momentums"))
        and bool(checkpoint.listed(node, "_velocities"))
    )


def slots_in(
    checkpoint: ObjectCheckpoint, node: int
) -> list[dict[str, np.ndarray]]:
    """The slots of an optimizer in a checkpoint, in its order.

    Raises:
      ValueError: if there are not equally many of each.
    """
    found = {slot: checkpoint.listed(node, n) for slot, n in _LISTS.items()}
    found = {slot: variables for slot, variables in found.items() if variables}
    if len({len(variables) for variables in found.values()}) > 1:
        raise ValueError(
            f"The checkpoint {checkpoint.path!r} has not as many of each of "
            f"{', '.join(found)}."
        )
    return [
        {slot: checkpoint.value(v) for slot, v in zip(found, row, strict=True)}
        for row in zip(*found.values(), strict=True)
    ]


def options_of(slots: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """The options that the slots show."""
    used = {"average": "use_ema", "velocity_max": "amsgrad"}
    return {used[name]: True for name in slots[0] if name in used}
