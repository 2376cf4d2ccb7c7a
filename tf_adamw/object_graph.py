"""What a checkpoint holds, beside the objects that are to get it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import sharding
from tf_adamw.checkpoint_file import CheckpointFile
from tf_adamw.keys import has_path, unwrapped


@dataclasses.dataclass
class Found:
    """An object with values of its own, and where a checkpoint has them.

    Attributes:
      name: its path below the root, joined by "/".
      value: the object: a variable, or what else can be saved.
      node: its number in the checkpoint, None if it is not there.
      there: its path in the checkpoint.
    """

    name: str
    value: Any
    node: int | None
    there: tuple[str, ...]


def found_below(
    children: Mapping[str, Any], file: CheckpointFile
) -> list[Found]:
    """Walks objects' dependencies and the checkpoint's beside each other.

    Args:
      children: the trackable objects at the top, by name.
      file: the checkpoint.

    Returns:
      Every variable and every other object that has values in the checkpoint,
      each once.
    """
    places: dict[int, Found] = {}
    for path, value, node in _walk(children, file):
        known = places.get(id(value))
        if known is None or (known.node is None and node is not None):
            places[id(value)] = Found("/".join(path), value, node, path)
    found = [
        place
        for place in places.values()
        if is_variable(place.value) or _has_state(place, file)
    ]
    _find_by_name([place for place in found if has_path(place.value)], file)
    return found


def _find_by_name(places: Sequence[Found], file: CheckpointFile) -> None:
    """Finds variables of Keras 3 models by their own names.

    Keras counts the layers of a model in its objects' paths: a layer that is
    inserted would give those behind it the weights of others.
    """
    if not places:
        return
    nodes: dict[str, list[int]] = {}
    for node in range(len(file.nodes)):
        nodes.setdefault(file.own_name(node), []).append(node)
    paths = file.paths()
    own = {place.value.path for place in places}
    for place in places:
        name = place.value.path
        if len(nodes.get(name, ())) == 1:
            place.node = nodes[name][0]
            place.there = paths[place.node]
        elif place.node is not None:
            there = file.own_name(place.node)
            if there != name and there in own and len(nodes[there]) == 1:
                place.node = None  # another one's


def _has_state(found: Found, file: CheckpointFile) -> bool:
    """Whether an object that is no variable has state in the checkpoint.

    Not if a variable was in its place: a number where a schedule is now.
    """
    if found.node is None or file.is_variable(found.node):
        return False
    return file.has_state(found.node)


def _walk(
    children: Mapping[str, Any], file: CheckpointFile
) -> Iterator[tuple[tuple[str, ...], Any, int | None]]:
    """Each object with each of its places, breadth first."""
    top = file.children(0)
    queue = collections.deque(
        ((name,), child, top.get(name)) for name, child in children.items()
    )
    seen = set()
    while queue:
        path, value, node = queue.popleft()
        if (id(value), node) in seen:
            continue
        seen.add((id(value), node))
        yield path, value, node
        there = {} if node is None else file.children(node)
        if sharding.shards(value):
            continue
        for name, child in tf.train.TrackableView.children(value).items():
            queue.append(((*path, name), child, there.get(name)))


def is_variable(value: Any) -> bool:
    """Whether it is a variable, a Keras variable, or a sharded one."""
    return isinstance(unwrapped(value), tf.Variable) or bool(
        sharding.shards(value)
    )
