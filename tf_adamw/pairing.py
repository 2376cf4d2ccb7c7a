"""Step 1: which gradient belongs to which variable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import placement, sharding
from tf_adamw.dtypes import widen
from tf_adamw.keys import raw_variable
from tf_adamw.registry import Registry


def pair(
    gradients: Sequence[Any],
    variables: Sequence[Any],
    registry: Registry,
    *,
    lazy: bool = False,
) -> dict[int, tf.Tensor | tf.IndexedSlices]:
    """Checks the gradients and makes them dense, unless `lazy`.

    Args:
      gradients: for each variable a tensor of its shape and dtype, an
        `IndexedSlices`, or None.
      variables: the variables, in the order of the gradients.
      registry: knows the keys, for the messages.
      lazy: whether an `IndexedSlices` stays one.

    Returns:
      The gradients that are not None, by their place in `variables`. What is
      of an `IndexedSlices` of low precision is float32.

    Raises:
      ValueError: if the numbers of gradients and variables differ, a variable
        occurs twice, every gradient is None, or a shape does not match.
      TypeError: if a dtype does not match.
    """
    if len(gradients) != len(variables):
        raise ValueError(
            f"Got {len(gradients)} gradients for {len(variables)} variables."
        )
    seen = set()
    paired = {}
    for place, (gradient, variable) in enumerate(
        zip(gradients, variables, strict=True)
    ):
        raw = raw_variable(variable)
        reference = raw.ref()
        if reference in seen:
            raise ValueError(
                f"Variable {registry.name(variable)!r} occurs more than once."
            )
        seen.add(reference)
        if gradient is None:
            continue
        if _fits(gradient, raw):
            paired[place] = gradient
        else:
            key = registry.name(variable)
            paired[place] = _checked(gradient, raw, key, lazy)
    if not paired:
        raise ValueError(
            "No gradient for any variable: "
            f"{'every gradient is None' if gradients else 'nothing was passed'}"
            ". Does the loss depend on the variables, inside the tape?"
        )
    return paired


def _fits(gradient: Any, variable: tf.Variable) -> bool:
    """Whether there is nothing to say about a gradient, nor to do with it."""
    return (
        isinstance(gradient, tf.Tensor)
        and gradient.dtype == variable.dtype
        and gradient.shape.is_fully_defined()
        and gradient.shape == variable.shape
    )


def _checked(
    gradient: Any, variable: tf.Variable, key: str, lazy: bool
) -> tf.Tensor | tf.IndexedSlices:
    if isinstance(gradient, tf.IndexedSlices):
        gradient = _with_indices(gradient, key)
        dtype, shape = gradient.dtype, _sparse_shape(gradient, variable)
    else:
        gradient = _converted(gradient, variable, key)
        dtype, shape = gradient.dtype, gradient.shape
    if dtype != variable.dtype:
        raise TypeError(
            f"The gradient of {key!r} is {dtype.name}; the variable is "
            f"{variable.dtype.name}."
        )
    if not shape.is_compatible_with(variable.shape):
        raise ValueError(
            f"The gradient of {key!r} has shape {shape}; the variable has "
            f"{variable.shape}."
        )
    if isinstance(gradient, tf.IndexedSlices):
        make = sparse if lazy else dense
        return make(_widened(gradient, variable), variable, key)
    if not shape.is_fully_defined():
        gradient = tf.ensure_shape(gradient, variable.shape)
    return gradient


def _with_indices(slices: tf.IndexedSlices, key: str) -> tf.IndexedSlices:
    """Returns the slices with indices that are int32 or int64."""
    values = tf.convert_to_tensor(slices.values)
    indices = tf.convert_to_tensor(slices.indices)
    if not indices.dtype.is_integer:
        raise TypeError(
            f"The gradient of {key!r} has {indices.dtype.name} indices of rows."
        )
    if not values.shape[:1].is_compatible_with(indices.shape):
        raise ValueError(
            f"The gradient of {key!r} has values of shape {values.shape} and "
            f"indices of rows of shape {indices.shape}."
        )
    if indices.dtype not in (tf.int32, tf.int64):
        indices = tf.cast(indices, tf.int64)
    return tf.IndexedSlices(values, indices, slices.dense_shape)


def _widened(
    slices: tf.IndexedSlices, variable: tf.Variable
) -> tf.IndexedSlices:
    """Returns the slices in float32 or float64.

    The sum of those of one row needs the digits: that of 600 ones is 256 in
    bfloat16.
    """
    with placement.beside(variable):
        return tf.IndexedSlices(widen(slices.values), slices.indices)


def dense(
    slices: tf.IndexedSlices, variable: tf.Variable, key: str
) -> tf.Tensor:
    """Returns the dense gradient: rows with the same index are summed.

    Raises:
      ValueError: if an index is out of range. In a function, where it has no
        value yet, TensorFlow ignores or refuses it when the function runs.
    """
    rows = variable.shape[0]
    sharding.check_rows(slices, rows, key)
    with placement.beside(variable):
        total = tf.math.unsorted_segment_sum(
            slices.values, slices.indices, rows
        )
    return tf.ensure_shape(total, variable.shape)


def sparse(
    slices: tf.IndexedSlices, variable: tf.Variable, key: str
) -> tf.IndexedSlices:
    """Returns the rows as they are.

    Raises:
      ValueError: as `dense`.
    """
    sharding.check_rows(slices, variable.shape[0], key)
    values = tf.ensure_shape(
        slices.values, [slices.values.shape[0], *variable.shape[1:]]
    )
    return tf.IndexedSlices(values, slices.indices)


def row_checks(
    paired: Mapping[int, tf.Tensor | tf.IndexedSlices],
    variables: Sequence[Any],
    registry: Registry,
) -> list[tf.Operation]:
    """Checks of rows that are known when a function runs; XLA drops them.

    Args:
      paired: what `pair` returned.
      variables: what it was given.
      registry: likewise.

    Returns:
      Operations that have to be done before anything changes.
    """
    checks = []
    for place, gradient in paired.items():
        if tf.executing_eagerly() or not isinstance(gradient, tf.IndexedSlices):
            continue
        count = raw_variable(variables[place]).shape[0]
        indices = gradient.indices
        inside = tf.logical_and(indices >= 0, indices < count)
        message = (
            f"The gradient of {registry.name(variables[place])!r} has a row "
            f"beyond the {count} of the variable:"
        )
        checks.append(
            tf.debugging.Assert(tf.reduce_all(inside), [message, indices])
        )
    return checks


def _sparse_shape(
    slices: tf.IndexedSlices, variable: tf.Variable
) -> tf.TensorShape:
    if variable.shape.rank == 0:
        return slices.values.shape  # at least a vector: no scalar's
    return variable.shape[:1].concatenate(slices.values.shape[1:])


def _converted(gradient: Any, variable: tf.Variable, key: str) -> tf.Tensor:
    # Tensors and NumPy arrays keep their dtype, lists take the variable's.
    dtype = None if hasattr(gradient, "dtype") else variable.dtype
    try:
        return tf.convert_to_tensor(gradient, dtype)
    except (TypeError, ValueError):
        raise TypeError(
            f"The gradient of {key!r} is a {type(gradient).__name__}, not a "
            "tensor of the variable's shape or a tf.IndexedSlices."
        ) from None
