"""The order of an optimizer's variables in Keras 3 and tf_keras.

    iterations, [learning rate], averages, accumulators,
    momentum and velocity of the first variable, of the second ...,
    largest velocities

The learning rate is there in Keras 3, if it is a number; averages with
`use_ema`, accumulators with `gradient_accumulation_steps` (Keras 3), the
largest velocities with `amsgrad`.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from tf_adamw.migration.keras_files import OptimizerFile

Slots = list[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which variables an optimizer has."""

    rate: bool = False
    average: bool = False
    accumulator: bool = False
    amsgrad: bool = False

    def slots(self, arrays: Sequence[np.ndarray]) -> Slots | None:
        """The slots of each variable, or None if the arrays cannot be these."""
        kept = arrays[1 + self.rate :]
        fields = 2 + self.average + self.accumulator + self.amsgrad
        count, rest = divmod(len(kept), fields)
        if rest or not count or any(a.dtype.kind in "iu" for a in kept):
            return None
        if self.rate and arrays[1].shape:
            return None
        blocks = {}
        for name in ("average", "accumulator"):
            if getattr(self, name):
                blocks[name], kept = kept[:count], kept[count:]
        blocks["momentum"] = kept[: 2 * count : 2]
        blocks["velocity"] = kept[1 : 2 * count : 2]
        if self.amsgrad:
            blocks["velocity_max"] = kept[2 * count :]
        slots = [
            dict(zip(blocks, row, strict=True))
            for row in zip(*blocks.values(), strict=True)
        ]
        return slots if all(map(_possible, slots)) else None

    def momentums(self, names: Sequence[str], count: int) -> Sequence[str]:
        """Of the names of all variables, those of the momentums."""
        first = 1 + self.rate + (self.average + self.accumulator) * count
        return names[first : first + 2 * count : 2]


def _possible(slots: Mapping[str, np.ndarray]) -> bool:
    """Whether these can be the slots of one variable."""
    velocity = slots["velocity"]
    if any(slot.shape != velocity.shape for slot in slots.values()):
        return False
    if np.any(velocity < 0):
        return False
    return not np.any(slots.get("velocity_max", velocity) < velocity)


def layouts(stored: OptimizerFile, keras_3: bool) -> Iterator[Layout]:
    """The layouts that an optimizer's config allows; all without one."""
    unknown: tuple[bool, ...] = (False, True)
    rate = average = accumulator = amsgrad = unknown
    if stored.config is not None:
        config = stored.config["config"]
        rate = (not isinstance(config.get("learning_rate"), dict),)
        average = (bool(config.get("use_ema")),)
        accumulator = (bool(config.get("gradient_accumulation_steps")),)
        amsgrad = (bool(config.get("amsgrad")),)
    if not keras_3:
        rate = accumulator = (False,)
    for chosen in itertools.product(rate, average, accumulator, amsgrad):
        yield Layout(*chosen)


def by_position(
    stored: OptimizerFile, keras_3: bool, expected: str
) -> tuple[Layout, Slots]:
    """Tells an optimizer's variables by their order.

    Args:
      stored: what the file has.
      keras_3: whether Keras 3 wrote it, or tf_keras.
      expected: what it should be, for people.

    Raises:
      ValueError: if they cannot be those of Adam, or are those of Adam with
        different options alike.
    """
    if len(stored.arrays) <= 2:
        raise ValueError(
            f"The optimizer in {stored.path!r} has no state yet; expected "
            f"{expected} that was trained."
        )
    fitting = [
        (layout, slots)
        for layout in layouts(stored, keras_3)
        if (slots := layout.slots(stored.arrays)) is not None
        and _known(stored, layout, slots)
    ]
    if not fitting:
        raise ValueError(
            f"The {len(stored.arrays)} variables of the optimizer in "
            f"{stored.path!r} are not those of {expected}."
        )
    if len(fitting) > 1:
        raise ValueError(
            f"The variables of the optimizer in {stored.path!r} have no names "
            "and could be those of Adam with different options; expected a "
            ".keras file or a tf.train.Checkpoint, which tell them."
        )
    return fitting[0]


def _known(stored: OptimizerFile, layout: Layout, slots: Slots) -> bool:
    """Whether slots fit the model's weights, as far as the file has them."""
    if stored.config is not None or not stored.weights:
        return True
    shapes = collections.Counter(s["velocity"].shape for s in slots)
    there = collections.Counter(w.shape for w in stored.weights.values())
    if shapes - there:
        return False
    # Averages are close to the weights, sums of gradients are not.
    for name, near in (("average", True), ("accumulator", False)):
        if getattr(layout, name):
            arrays = [s[name] for s in slots]
            if _near(arrays, stored.weights.values()) != near:
                return False
    return True


def _near(arrays: Sequence[np.ndarray], weights: Iterable[np.ndarray]) -> bool:
    """Whether arrays differ from weights by less than half of their norm."""
    distance = norm = 0.0
    weights = list(weights)
    for array in (a.astype(np.float64) for a in arrays):
        alike = [w for w in weights if w.shape == array.shape]
        offs = [float(np.sum(np.square(array - w))) for w in alike]
        best = int(np.argmin(offs))
        distance += offs[best]
        norm += float(np.sum(np.square(alike[best], dtype=np.float64)))
    return distance < norm / 4
