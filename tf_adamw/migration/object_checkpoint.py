"""Optimizers in the checkpoints of `tf.train.Checkpoint`."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping

import numpy as np

from tf_adamw.checkpoint_file import CheckpointFile, key_name

# What Keras's optimizers call their counters: Keras 3 and tf_keras, legacy.
_COUNTERS = ("_iterations", "iter")


class ObjectCheckpoint:
    """A checkpoint, and the optimizers in it.

    Args:
      path: the prefix of its files.

    Raises:
      ValueError: if they are missing or damaged, or hold no objects.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = CheckpointFile(path)
        self.paths = self._paths()

    def _paths(self) -> dict[int, str]:
        """The shortest path of every object."""
        paths, queue = {0: ""}, collections.deque([0])
        while queue:
            node = queue.popleft()
            for name, child in self.children(node).items():
                if child not in paths:
                    paths[child] = f"{paths[node]}/{name}".lstrip("/")
                    queue.append(child)
        return paths

    def children(self, node: int) -> dict[str, int]:
        """The objects that an object depends on, by name."""
        return self._file.children(node)

    def slots(self, node: int) -> dict[tuple[int, str], int]:
        """An optimizer's `{(variable, slot's name): slot}`."""
        return {
            (slot.original_variable_node_id, slot.slot_name): (
                slot.slot_variable_node_id
            )
            for slot in self._file.nodes[node].slot_variables
        }

    def listed(self, node: int, name: str) -> list[int]:
        """The objects in a list that an object has, in their order."""
        child = self.children(node).get(name)
        found = {} if child is None else self.children(child)
        if not all(name.isdecimal() for name in found):
            return []
        return [found[i] for i in sorted(found, key=int)]

    def name(self, node: int) -> str:
        """The name that a variable had: "dense/kernel"."""
        names = [a.full_name for a in self._file.nodes[node].attributes]
        return names[0] if names else ""

    def key(self, node: int) -> str:
        """The path under which a variable is saved."""
        keys = self._file.keys(node)
        return key_name(keys[0]) if keys else self.paths.get(node, "")

    def value(self, node: int) -> np.ndarray:
        """A variable's value.

        Raises:
          ValueError: if it is missing or damaged.
        """
        keys = self._file.keys(node)
        if len(keys) != 1:
            raise ValueError(
                f"The checkpoint {self.path!r} has no value of "
                f"{self.paths.get(node, node)!r}."
            )
        return np.asarray(self._file.tensor(keys[0]))

    def number(self, node: int, name: str) -> float | None:
        """The value of a scalar variable that an object has, or None."""
        child = self.children(node).get(name)
        if child is None or not self._file.keys(child):
            return None
        return self.value(child).item()

    def variables(self) -> list[int]:
        """All objects with one value of their own."""
        nodes = range(len(self._file.nodes))
        return [node for node in nodes if len(self._file.keys(node)) == 1]

    def optimizer(self, fits: Callable[[int], bool], expected: str) -> int:
        """Returns the one optimizer that fits.

        Args:
          fits: says whether an optimizer is the expected one.
          expected: what that is, for people.

        Raises:
          ValueError: if there is not one.
        """
        found = [
            node
            for node in self.paths
            if any(name in self.children(node) for name in _COUNTERS)
        ]
        fitting = [node for node in found if fits(node)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            names = ", ".join(repr(self.paths[node]) for node in fitting)
            raise ValueError(
                f"The checkpoint {self.path!r} holds more than one {expected}:"
                f" {names}. Write one that holds one of them."
            )
        there = "; ".join(map(self._description, found)) or "no optimizer"
        raise ValueError(
            f"Expected {expected} in the checkpoint {self.path!r}, found "
            f"{there}."
        )

    def _description(self, node: int) -> str:
        children = self.children(node)
        name = f"{self.paths[node]!r}"
        if "iter" in children:
            slots = sorted({slot for _, slot in self.slots(node)})
            slots += [name for name in children if name == "momentum_cache"]
            return f"{name}, a legacy optimizer with {_listing(slots)}"
        library = (
            "Keras 3" if "_trainable_variables" in children else "tf_keras"
        )
        known = {*_COUNTERS, "_variables", "_trainable_variables"}
        slots = [
            child
            for child in children
            if child not in known and self.listed(node, child)
        ]
        return f"{name}, an optimizer of {library} with {_listing(slots)}"


def unique_values(
    checkpoint: ObjectCheckpoint, names: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The values of the variables of these names and shapes.

    Args:
      checkpoint: where they are.
      names: `{name: shape}`.

    Returns:
      `{name: value}` of those of which there is exactly one.
    """
    found: dict[str, list[np.ndarray]] = {}
    for node in checkpoint.variables():
        name = checkpoint.name(node)
        if name in names:
            value = checkpoint.value(node)
            if value.shape == names[name]:
                found.setdefault(name, []).append(value)
    return {name: found[name][0] for name in found if len(found[name]) == 1}


def _listing(slots: list[str]) -> str:
    return ", ".join(slots) or "no state (not built, or without its model)"
