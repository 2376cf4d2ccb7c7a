"""The keys of variables. The grammar is frozen: checkpoints depend on it."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from tf_adamw import sharding


def raw_variable(variable: Any) -> tf.Variable:
    """Returns the `tf.Variable` itself, or the one inside a Keras 3 variable.

    Raises:
      TypeError: if there is none.
    """
    inner = unwrapped(variable)
    if isinstance(inner, tf.Variable):
        return inner
    # A tensor's repr has all its values.
    got = "a tensor" if tf.is_tensor(variable) else repr(variable)
    raise TypeError(f"Expected a tf.Variable or a Keras variable, got {got}.")


def unwrapped(value: Any) -> Any:
    """Returns the `tf.Variable` inside a Keras 3 variable, or `value` itself.

    Inside Keras's autocast scope a Keras variable shows a tensor: it is
    returned as it is then.
    """
    if isinstance(value, tf.Variable) or not has_path(value):
        return value
    inner = getattr(value, "value", None)
    return inner if isinstance(inner, tf.Variable) else value


def as_list(argument: str, values: Any) -> list[Any]:
    """Returns a list of gradients or variables.

    Raises:
      TypeError: if it is a single one, a dict, a string, or not iterable.
    """
    single = isinstance(values, (str, bytes, Mapping)) or hasattr(
        values, "dtype"
    )
    if single or not isinstance(values, Iterable):
        wanted = "a list"
        if argument == "variables":
            wanted += ", a dict or an object with trainable_variables"
        raise TypeError(
            f"{argument} must be {wanted}, got {type(values).__name__}."
        )
    return list(values)


def has_path(variable: Any) -> bool:
    """Whether it is a Keras 3 variable: they know their place in the model."""
    return isinstance(getattr(variable, "path", None), str)


def own_name(variable: Any) -> str:
    """The name that a variable has by itself.

    The `path` of a Keras variable ("dense/kernel"), the name of any other
    without its output number ("mlp/linear_0/w").
    """
    if has_path(variable):
        return variable.path
    if sharding.shards(variable):
        return sharding.name_of(variable)
    return raw_variable(variable).name.rsplit(":", 1)[0]


def keyed_variables(variables: Any) -> list[tuple[str, Any]]:
    """Gives every variable its key, before repeats are told apart.

    A dict's keys; otherwise the `path` of a Keras 3 variable; otherwise the
    object path of a variable in an object with `trainable_variables`, names
    joined by "/" ("layers/0/w"): the shortest, and of several the first in
    alphabetical order; otherwise `own_name`. (The objects of Keras 3 are no
    help: their attributes are private, and lists of layers are not tracked.)

    Args:
      variables: a dict, an object with `trainable_variables`, or an iterable.

    Returns:
      Pairs of key and variable, in the order given; a sharded variable in
      place of its shards.
    """
    if isinstance(variables, Mapping):
        return [(_dict_key(key), value) for key, value in variables.items()]
    if not hasattr(variables, "trainable_variables"):
        given = map(sharding.whole, as_list("variables", variables))
        return [(own_name(v), v) for v in given]
    try:
        paths = object_paths(variables)
    except ValueError as error:
        # TensorFlow cannot save all objects, and says so at length.
        raise ValueError(
            f"build() cannot tell where a {type(variables).__name__} has its "
            f"variables ({str(error).splitlines()[0][:80]} ...): pass a dict, "
            "or its trainable_variables."
        ) from error
    given = map(sharding.whole, variables.trainable_variables)
    return [
        (own_name(v) if has_path(v) else paths.get(id(v), own_name(v)), v)
        for v in given
    ]


def object_paths(root: Any) -> dict[int, str]:
    """Returns the shortest object path of every object below `root`.

    Args:
      root: a trackable object, such as a `tf.Module` or a model.

    Returns:
      A dict from the object's `id` to the path.
    """
    view = tf.train.TrackableView(root)
    queue = collections.deque([((), root)])
    paths = {id(root): ""}
    while queue:
        path, parent = queue.popleft()
        for name, child in sorted(view.children(parent).items()):
            if id(child) not in paths:
                paths[id(child)] = "/".join((*path, name))
                queue.append(((*path, name), child))
    return paths


def few(names: Iterable[str], limit: int = 3, none: str = "none") -> str:
    """The first of some names, and how many more there are, for a message."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or none) + more


def _dict_key(key: Any) -> str:
    if not isinstance(key, str) or not key:
        raise ValueError(
            f"build takes a dict with non-empty string keys, got {key!r}."
        )
    return key


def without_repeats(keys: Iterable[str], taken: Iterable[str]) -> list[str]:
    """Gives each key in use the suffix `_1`, `_2` and so on, in order."""
    taken = set(taken)
    unique, numbered = [], []
    for key in keys:
        candidate, number = key, 0
        while candidate in taken:
            number += 1
            candidate = f"{key}_{number}"
        if number:
            numbered.append(candidate)
        taken.add(candidate)
        unique.append(candidate)
    if numbered:
        warnings.warn(
            "Several variables have the same name; their state is kept under "
            f"the numbered keys {few(numbered)}. Pass build() a dict or "
            "the model itself for keys that do not depend on the order.",
            stacklevel=5,
        )
    return unique
