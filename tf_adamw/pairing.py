"""Step 1: which gradient belongs to which variable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import placement, sharding
from tf_adamw.keys import raw_variable
from tf_adamw.registry import Registry


def pair(
    gradients: Sequence[Any], variables: Sequence[Any], registry: Registry
) -> dict[int, tf.Tensor]:
    """Checks the gradients and makes them dense.

    Args:
      gradients: for each variable a tensor of its shape and dtype, an
        `IndexedSlices`, or None.
      variables: the variables, in the order of the gradients.
      registry: knows the keys, for the messages.

    Returns:
      The gradients that are not None, by their place in `variables`.

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
            paired[place] = _checked(gradient, raw, registry.name(variable))
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


def _checked(gradient: Any, variable: tf.Variable, key: str) -> tf.Tensor:
    if isinstance(gradient, tf.IndexedSlices):
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
        return dense(gradient, variable, key)
    if not shape.is_fully_defined():
        gradient = tf.ensure_shape(gradient, variable.shape)
    return gradient


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
    indices = tf.convert_to_tensor(slices.indices)
    with placement.beside(variable):
        total = tf.math.unsorted_segment_sum(slices.values, indices, rows)
    return tf.ensure_shape(total, variable.shape)


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
