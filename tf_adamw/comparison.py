"""What of a checkpoint fits which objects, and the report of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import tensorflow as tf

from tf_adamw.checkpoint_file import CheckpointFile, key_name
from tf_adamw.keys import few, unwrapped
from tf_adamw.object_graph import Found, is_variable


@dataclasses.dataclass(frozen=True)
class Report:
    """What a restore did, by paths such as "optimizer/slots/w/momentum".

    Attributes:
      path: of the checkpoint.
      restored: got their values from the checkpoint.
      seeded: are not in it. Slots, counters and a loss scale start again (an
        average from its weights); what else there is keeps the values that it
        has.
      left_over: are in the checkpoint alone.
      mismatched: `{path: why}`: are in both, in different shapes or dtypes, or
        nobody can tell which is which; treated like `seeded`.
      moved: `{path: path in the checkpoint}` of those restored that had
        another: variables of Keras 3, and their slots.
    """

    path: str
    restored: tuple[str, ...]
    seeded: tuple[str, ...]
    left_over: tuple[str, ...]
    mismatched: dict[str, str]
    moved: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether everything matched."""
        return not (self.seeded or self.left_over or self.mismatched)

    def __str__(self) -> str:
        unlike = [f"{name}: {why}" for name, why in self.mismatched.items()]
        moved = [f"{name}: {there}" for name, there in self.moved.items()]
        lines = [f"{self.path}: {len(self.restored)} restored"]
        for title, names in (
            ("not in the checkpoint", self.seeded),
            ("in the checkpoint alone", self.left_over),
            ("different", unlike),
            ("from another path", moved),
        ):
            if names:
                lines.append(f"{len(names)} {title}:")
                lines += [f"  {name}" for name in names]
        return "\n".join(lines)


def compare(
    found: Sequence[Found], file: CheckpointFile, silent: AbstractSet[str]
) -> tuple[Report, list[Found]]:
    """Sorts out what can be restored.

    Args:
      found: the objects, and where the checkpoint has them.
      file: the checkpoint.
      silent: paths that a report does not mention.

    Returns:
      The report of restoring, and the objects to restore.
    """
    matching, seeded, mismatched = [], [], {}
    for place in found:
        if place.doubt:
            mismatched[place.name] = place.doubt
        elif place.node is None or not file.has_state(place.node):
            seeded.append(place.name)
        elif why := _difference(place, file):
            mismatched[place.name] = why
        else:
            matching.append(place)
    slots = _slots(matching, file)
    matched = {*(place.node for place in found), *slots}
    left_over = [
        key_name(key)
        for node in range(len(file.nodes))
        if node not in matched
        for key in file.keys(node)
    ]
    restored = [place.name for place in matching]
    restored += [key_name(key) for slot in slots for key in file.keys(slot)]
    names = (
        tuple(sorted({*names} - silent))
        for names in (restored, seeded, left_over)
    )
    moved = {
        place.name: there
        for place in matching
        if (there := "/".join(place.there)) != place.name
    }
    return Report(file.path, *names, mismatched, moved), matching


def _slots(matching: Sequence[Found], file: CheckpointFile) -> list[int]:
    """What comes with the variables of TensorFlow's own optimizers."""
    variables = {p.node for p in matching if is_variable(p.value)}
    return [
        slot
        for place in matching
        if not is_variable(place.value)
        for variable, slot in file.slots(place.node)
        if variable in variables
    ]


def _difference(place: Found, file: CheckpointFile) -> str | None:
    """Why a value in the checkpoint cannot be the object's."""
    if not is_variable(place.value):
        return None
    if not file.is_variable(place.node):
        return "no variable in the checkpoint"
    key = file.keys(place.node)[0]
    dtype, shape = file.dtypes[key], tf.TensorShape(file.shapes[key])
    value = unwrapped(place.value)
    here = tf.as_dtype(value.dtype), tf.TensorShape(value.shape)
    if dtype == here[0] and shape.is_compatible_with(here[1]):
        return None
    return (
        f"{dtype.name} {shape} in the checkpoint, {here[0].name} {here[1]} here"
    )


def counts(report: Report) -> str:
    """What did not match, in a line."""
    found = (
        ("not in it", report.seeded),
        ("in it alone", report.left_over),
        ("different", tuple(report.mismatched)),
    )
    return "; ".join(
        f"{len(names)} {what} ({few(names)})" for what, names in found if names
    )
