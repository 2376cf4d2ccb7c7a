"""What a checkpoint holds, beside the objects that are to get it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from tf_adamw import sharding
from tf_adamw.checkpoint_file import CheckpointFile
from tf_adamw.keys import has_path, unwrapped
from tf_adamw.numbered_names import alike, named_by_hand, paired
from tf_adamw.state import OptimizerState

_DOUBT = "by its name it is one of the checkpoint's, by its place another"


@dataclasses.dataclass
class Found:
    """An object with values of its own, and where a checkpoint has them.

    Attributes:
      name: its path below the root, joined by "/".
      value: the object: a variable, or what else can be saved.
      node: its number in the checkpoint, None if it is not there.
      there: its path in the checkpoint.
      doubt: why nobody can tell which one of the checkpoint it is, or "".
    """

    name: str
    value: Any
    node: int | None
    there: tuple[str, ...]
    doubt: str = ""


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
    for place in _walk(children, file):
        known = places.get(id(place.value))
        if known is None or (known.node is None and place.node is not None):
            places[id(place.value)] = place
    for place in list(places.values()):
        if isinstance(place.value, OptimizerState) and place.node is not None:
            _let_slots_follow(place, places, file)
    return [
        place
        for place in places.values()
        if is_variable(place.value) or _has_state(place, file)
    ]


def _has_state(found: Found, file: CheckpointFile) -> bool:
    """Whether an object that is no variable has state in the checkpoint.

    Not if a variable was in its place: a number where a schedule is now.
    """
    if found.node is None or file.is_variable(found.node):
        return False
    return file.has_state(found.node)


def _walk(children: Mapping[str, Any], file: CheckpointFile) -> Iterator[Found]:
    """Each object with each of its places, breadth first."""
    root = Found("", None, 0, ())
    queue = collections.deque(_below(root, children, file))
    seen = set()
    while queue:
        place = queue.popleft()
        if (id(place.value), place.node) in seen:
            continue
        seen.add((id(place.value), place.node))
        yield place
        if not sharding.shards(place.value):
            below = tf.train.TrackableView.children(place.value)
            queue.extend(_below(place, below, file))


def _below(
    parent: Found, children: Mapping[str, Any], file: CheckpointFile
) -> Iterator[Found]:
    """The children of an object, and where the checkpoint has them."""
    there = {} if parent.node is None else file.children(parent.node)
    others: dict[str, str | None] = {name: name for name in children}
    if there and isinstance(parent.value, (list, tuple)):
        others |= _by_layers(children, there, file)
    for name, child in children.items():
        other = others[name]
        yield Found(
            f"{parent.name}/{name}" if parent.name else name,
            child,
            there.get(other),
            (*parent.there, other or name),
            parent.doubt or (_DOUBT if other is None else ""),
        )


def _by_layers(
    children: Mapping[str, Any], there: Mapping[str, int], file: CheckpointFile
) -> dict[str, str | None]:
    """Pairs what a list of Keras layers has with what it had.

    Keras counts a model's layers in its objects' paths: a layer that is
    inserted would give those behind it the weights of others.
    """
    names = {n: name for n, child in children.items() if (name := _name(child))}
    names_there = {
        n: name
        for n, node in there.items()
        if (name := _name_there(node, file))
    }
    given, rest = {}, {}
    for child, name in names.items():
        own = children[child]
        if not named_by_hand(own):
            rest[child] = name
            continue
        same = [
            other
            for other, name_there in names_there.items()
            if own.name in name_there.split("/") and alike(name, name_there)
        ]
        if len(same) == 1:
            given[child] = same[0]
        elif same:
            rest[child] = name
    there_still = {
        n: name for n, name in names_there.items() if n not in given.values()
    }
    pairs, taken = paired(rest, there_still)
    taken.update(given.values())
    free = {name: name for name in children if name not in taken}
    nowhere = {name: "" for name in children}
    return {**nowhere, **free, **pairs, **given}


def _name(child: Any) -> str:
    """Names a Keras layer by its first variable; for others, nothing."""

    def own_name(value: Any) -> str:
        keras = has_path(value) and is_variable(value)
        return unwrapped(value).name.split(":")[0] if keras else ""

    return _first_name(child, own_name, tf.train.TrackableView.children, id)


def _name_there(child: int, file: CheckpointFile) -> str:
    """The same for an object of the checkpoint."""
    return _first_name(child, file.own_name, file.children, int)


def _first_name(
    start: Any,
    own_name: Callable[[Any], str],
    children: Callable[[Any], Mapping[str, Any]],
    identity: Callable[[Any], int],
) -> str:
    """What the first variable's name begins with, breadth first; or its own."""
    queue = collections.deque([start])
    seen = set()
    while queue:
        value = queue.popleft()
        if identity(value) in seen:
            continue
        seen.add(identity(value))
        if name := own_name(value):
            return name if value is start else name.rpartition("/")[0]
        queue.extend(children(value).values())
    return ""


def _let_slots_follow(
    optimizer: Found, places: Mapping[int, Found], file: CheckpointFile
) -> None:
    """Gives slots with the names of Keras variables to these variables.

    Keras numbers layers anew: where a name was, another's slots may be.
    """
    slots = tf.train.TrackableView.children(optimizer.value.slots)
    node = file.children(optimizer.node).get("slots")
    there = {} if node is None else file.children(node)
    for key, other in _keys_there(optimizer, places, there, file).items():
        if other == key:
            continue
        below = file.children(there[other]) if other else {}
        for name, slot in tf.train.TrackableView.children(slots[key]).items():
            place = places[id(slot)]
            place.node = below.get(name)
            place.doubt = _DOUBT if other is None else ""
            if other:
                place.there = (*optimizer.there, "slots", other, name)


def _keys_there(
    optimizer: Found,
    places: Mapping[int, Found],
    there: Mapping[str, int],
    file: CheckpointFile,
) -> dict[str, str | None]:
    """The checkpoint's keys of Keras variables: "" for none, None if unsure."""
    variables = {
        id(unwrapped(place.value)): place
        for place in places.values()
        if has_path(place.value) and is_variable(place.value)
    }
    keys: dict[str, str | None] = {}
    rest = {}
    has_weights = any(weight.node is not None for weight in variables.values())
    for parameter in optimizer.value.parameters:
        key, weight = parameter.key, variables.get(id(parameter.variable))
        if weight is None or weight.value.path != key:
            continue
        name = "" if weight.node is None else file.own_name(weight.node)
        if weight.doubt:
            keys[key] = None
        elif alike(name, key):
            keys[key] = name if name in there else ""
        elif name or not has_weights:  # Keras may have left the layer out
            rest[key] = key
        elif key not in there:
            keys[key] = ""
    taken = set(keys.values())
    pairs, _ = paired(rest, {k: k for k in there if k not in taken})
    return {**dict.fromkeys(rest, ""), **pairs, **keys}


def is_variable(value: Any) -> bool:
    """Whether it is a variable, a Keras variable, or a sharded one."""
    return isinstance(unwrapped(value), tf.Variable) or bool(
        sharding.shards(value)
    )
