"""Variables in shards, as ParameterServerStrategy's partitioners make them.

TensorFlow exports neither the class `ShardedVariable` nor the way from a shard
to the variable that it is a part of: what is private is used here alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import placement
from tf_adamw.dtypes import widen


def shards(variable: Any) -> tuple[tf.Variable, ...]:
    """The shards of a sharded variable; of anything else nothing."""
    if isinstance(variable, (tf.Variable, tf.Module)):
        return ()
    if not (hasattr(variable, "shape") and hasattr(variable, "dtype")):
        return ()
    parts = getattr(variable, "variables", None)
    return tuple(parts) if isinstance(parts, Sequence) else ()


def whole(variable: Any) -> Any:
    """The sharded variable that a shard belongs to, or else the variable.

    A `tf.Module` lists the shards alone among its variables.
    """
    # A weak reference, set by TensorFlow; there is no public way back.
    reference = getattr(variable, "_sharded_container", None)
    found = reference() if callable(reference) else None
    return variable if found is None else found


def joined(parts: Sequence[tf.Variable], like: Any, name: str) -> Any:
    """Makes a sharded variable of the class of `like`."""
    return type(like)(list(parts), name=name)


def name_of(variable: Any) -> str:
    """The name of a sharded variable: that of its shards without "/part_0"."""
    return re.sub(r"/part_0(:0)?$", "", shards(variable)[0].name)


def in_shards(variables: Iterable[Any]) -> list[Any]:
    """The variables, with the shards of sharded ones in their place."""
    return [part for v in variables for part in shards(v) or (v,)]


def flat(
    gradients: Sequence[Any],
    variables: Sequence[Any],
    name: Callable[[Any], str],
    *,
    lazy: bool = False,
) -> tuple[list[Any], list[Any]]:
    """Puts the shards of sharded variables in their place.

    Args:
      gradients: one for each variable: of a sharded one a list of its shards'
        gradients, None, or a tensor or `IndexedSlices` of its shape.
      variables: the variables.
      name: says how a message calls a variable.
      lazy: whether an `IndexedSlices` stays one.

    Raises:
      ValueError: if the gradient of a sharded variable does not fit it.
    """
    if not any(map(shards, variables)):
        return list(gradients), list(variables)
    parts = in_shards(variables)
    if len(gradients) == len(parts):
        return list(gradients), parts
    if len(gradients) != len(variables):
        raise ValueError(
            f"Got {len(gradients)} gradients for {len(variables)} variables."
        )
    all_gradients = []
    for gradient, variable in zip(gradients, variables, strict=True):
        if shards(variable):
            all_gradients += _split(gradient, variable, name(variable), lazy)
        else:
            all_gradients.append(gradient)
    return all_gradients, parts


def _split(gradient: Any, variable: Any, key: str, lazy: bool) -> list[Any]:
    """The gradients of the shards."""
    parts = shards(variable)
    if gradient is None:
        return [None] * len(parts)
    if isinstance(gradient, (list, tuple)):
        if len(gradient) != len(parts):
            raise ValueError(
                f"Got {len(gradient)} gradients for the {len(parts)} shards of "
                f"{key!r}."
            )
        return list(gradient)
    if isinstance(gradient, tf.IndexedSlices):
        check_rows(gradient, variable.shape[0], key)
        return _split_rows(gradient, parts, lazy)
    gradient = tf.convert_to_tensor(gradient)
    if not gradient.shape.is_compatible_with(variable.shape):
        raise ValueError(
            f"The gradient of {key!r} has shape {gradient.shape}; the variable "
            f"has {variable.shape}."
        )
    return tf.split(gradient, [part.shape[0] for part in parts])


def check_rows(gradient: tf.IndexedSlices, rows: int, key: str) -> None:
    """Refuses rows that the variable does not have, where they have a value.

    Raises:
      ValueError: naming the first one.
    """
    indices = tf.convert_to_tensor(gradient.indices)
    if hasattr(indices, "numpy"):
        wrong = indices.numpy()
        wrong = wrong[(wrong < 0) | (wrong >= rows)]
        if wrong.size:
            raise ValueError(
                f"The gradient of {key!r} has row {wrong[0]}; the variable "
                f"has {rows} rows."
            )


def _split_rows(
    gradient: tf.IndexedSlices, parts: Sequence[tf.Variable], lazy: bool
) -> list[tf.Tensor | tf.IndexedSlices]:
    """Sends each shard's device its rows; or all, and adds them up there."""
    start, split = 0, []
    for part in parts:
        rows = part.shape[0]
        indices = gradient.indices - start
        inside = tf.logical_and(indices >= 0, indices < rows)
        start += rows
        if lazy:
            split.append(
                tf.IndexedSlices(
                    tf.boolean_mask(gradient.values, inside),
                    tf.boolean_mask(indices, inside),
                )
            )
            continue
        with placement.beside(part):
            # A row with the index -1 is dropped.
            indices = tf.where(inside, indices, -tf.ones_like(indices))
            total = tf.math.unsorted_segment_sum(
                widen(gradient.values), indices, rows
            )
        split.append(tf.cast(total, gradient.dtype))
    return split
