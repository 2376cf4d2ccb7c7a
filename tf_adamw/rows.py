"""Gradients of some rows: `IndexedSlices`, as `sparse_updates="lazy"` has them.

Which rows there are is known when a step runs, how many entries when it is
traced or compiled: one that is repeated is added up in its first place, and
the update of its row is computed, and written, in each of them alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_adamw import placement, replicas
from tf_adamw.dtypes import arithmetic_dtype
from tf_adamw.registry import Parameter

# As measured on two cores, by element: the fused ops lose so many times as much
# on the whole of a variable of low precision as XLA does on a table's rows.
_CONVERSIONS = 5


class Rows(NamedTuple):
    """The gradient of the rows of one variable.

    Attributes:
      gradient: a row for each distinct index, then rows of zeros: what norms
        and checks are of.
      places: for each index its row in `gradient`.
      indices: in order, repeated ones side by side.
    """

    gradient: tf.Tensor
    places: tf.Tensor
    indices: tf.Tensor


def combined(slices: tf.IndexedSlices) -> Rows:
    """Adds up the rows that have one index.

    Args:
      slices: any number of indices, zero included, in any order; the values
        float32 or float64, as `pairing.pair` returns them.
    """
    order = tf.argsort(slices.indices, stable=True)
    indices = tf.gather(slices.indices, order)
    steps = tf.not_equal(indices[1:], indices[:-1])
    first = tf.not_equal(indices[:1], indices[:1])  # False, if there is one
    places = tf.cumsum(tf.cast(tf.concat([first, steps], 0), tf.int32))
    gradient = tf.math.unsorted_segment_sum(
        tf.gather(slices.values, order), places, tf.size(indices)
    )
    gradient = tf.ensure_shape(gradient, slices.values.shape)
    return Rows(gradient, places, indices)


def padded(
    slices: tf.IndexedSlices, beyond: int, count: int | None
) -> tf.IndexedSlices:
    """Adds rows that are not there, which XLA leaves out, to a given number.

    Args:
      slices: any number of rows.
      beyond: the number of rows of the variable.
      count: of rows in the result; by default the next power of two.
    """
    given = tf.size(slices.indices)
    missing = (_power_of_two(given) if count is None else count) - given
    shape = tf.concat([[missing], tf.shape(slices.values)[1:]], 0)
    none = tf.fill([missing], tf.constant(beyond, slices.indices.dtype))
    zeros = tf.zeros(shape, slices.values.dtype)
    return tf.IndexedSlices(
        tf.concat([slices.values, zeros], 0),
        tf.concat([slices.indices, none], 0),
    )


def _power_of_two(count: tf.Tensor) -> tf.Tensor:
    """The next one, of a number that is known when a function runs; or 0."""
    filled = count - 1
    for shift in (1, 2, 4, 8, 16):
        filled |= tf.bitwise.right_shift(filled, shift)
    return filled + 1


def for_compiling(
    parameter: Parameter, gradient: tf.Tensor | tf.IndexedSlices
) -> tf.Tensor | tf.IndexedSlices:
    """Pads rows whose number differs from step to step.

    XLA compiles a program for each number, and for each combination of those
    of several variables. Where it is known it becomes the largest power of two
    that the variable has had so far.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    known = gradient.indices.shape[0]
    if not tf.executing_eagerly() and known is not None:
        return gradient
    if known is not None:
        needed = 1 << max(known - 1, 0).bit_length()
        known = parameter.most_rows = max(parameter.most_rows, needed)
    with placement.beside(parameter.variable):
        return padded(gradient, parameter.variable.shape[0], known)


def slow_in_xla(
    gradients: Iterable[tuple[tf.Variable, tf.Tensor | tf.IndexedSlices]],
) -> bool:
    """Whether a CPU would take most of a compiled step to convert tables.

    XLA scatters rows of bfloat16 in float32 there: it converts the table, and
    then back. The fused ops write the rows alone.

    Args:
      gradients: those of the step, with their variables.
    """
    tables = others = 0
    for variable, gradient in gradients:
        elements = variable.shape.num_elements() or 0
        if not isinstance(gradient, tf.IndexedSlices):
            low = variable.dtype != arithmetic_dtype(variable.dtype)
            others += elements * low
        elif variable.dtype == tf.bfloat16:
            tables += elements
    return tables > _CONVERSIONS * others


def own(slices: tf.IndexedSlices) -> tf.IndexedSlices:
    """Returns the rows as tensors of their own."""
    return tf.IndexedSlices(
        tf.identity(slices.values), tf.identity(slices.indices)
    )


def gathered(
    context: tf.distribute.ReplicaContext,
    slices: tf.IndexedSlices,
    operation: str,
) -> tf.IndexedSlices:
    """Returns the rows of all replicas, on each; their sum is the reduced ones.

    Args:
      context: the replica's.
      slices: its rows, any number of them.
      operation: "SUM" or "MEAN".
    """
    mine = own(slices)
    if replicas.is_tpu(context.strategy):
        values = _gathered_on_tpu(context, mine.values)
        indices = _gathered_on_tpu(context, tf.cast(mine.indices, tf.int32))
    else:
        values, indices = _gathered(context, mine)
    if operation == "MEAN":
        values = values / context.num_replicas_in_sync
    return tf.IndexedSlices(values, indices)


def _gathered(
    context: tf.distribute.ReplicaContext, slices: tf.IndexedSlices
) -> tuple[tf.Tensor, tf.Tensor]:
    # With a row that is dropped again: where no replica has any, the process
    # would crash in TensorFlow.
    shape = tf.concat([[1], tf.shape(slices.values)[1:]], 0)
    zeros = tf.zeros(shape, slices.values.dtype)
    none = tf.constant([-1], slices.indices.dtype)
    values, indices = (
        context.all_gather(tf.concat(parts, 0), axis=0)
        for parts in ([slices.values, zeros], [slices.indices, none])
    )
    real = indices >= 0
    return tf.boolean_mask(values, real), tf.boolean_mask(indices, real)


def _gathered_on_tpu(
    context: tf.distribute.ReplicaContext, value: tf.Tensor
) -> tf.Tensor:
    # TensorFlow's own multiplies by zero what is another replica's: a gradient
    # that is infinite would be NaN in all rows of all replicas.
    count = context.num_replicas_in_sync
    shape = [count, *(1 for _ in value.shape)]
    mine = tf.equal(tf.range(count), context.replica_id_in_sync_group)
    spread = tf.where(tf.reshape(mine, shape), value, tf.zeros_like(value))
    every = context.all_reduce("SUM", spread)
    return tf.reshape(every, [-1, *value.shape[1:]])


def joined(parts: Sequence[tf.IndexedSlices], how: str) -> tf.IndexedSlices:
    """Returns the rows of all replicas, where these share one copy.

    Args:
      parts: the rows of each, or a single one, which counts as reduced.
      how: "sum", "mean" or "none".
    """
    if len(parts) == 1 or how == "none":
        return parts[0]
    every = list(map(own, parts))
    values = tf.concat([part.values for part in every], 0)
    if how == "mean":
        values = values / len(parts)
    return tf.IndexedSlices(values, tf.concat([p.indices for p in every], 0))
