"""Step 4: the reduction of the gradients across replicas."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import replicas, rows
from tf_adamw.dtypes import widen

CHOICES = ("sum", "mean", "none")


def needed(how: str) -> bool:
    """Whether the gradients of this replica are not yet those of all."""
    return how != "none" and replicas.several()


def divisor(how: str) -> int:
    """What the results of `reduce` are still to be divided by.

    On TPU a "mean" is left a sum: the division costs nothing in the update,
    and a pass over memory beside the reduction.
    """
    strategy = tf.distribute.get_strategy()
    if how == "mean" and replicas.is_tpu(strategy) and replicas.several():
        return strategy.num_replicas_in_sync
    return 1


def own(
    gradients: Iterable[tf.Tensor | tf.IndexedSlices],
) -> list[tf.Tensor | tf.IndexedSlices]:
    """Returns the gradients as this replica's own float32 or float64 tensors.

    TensorFlow takes one tensor object on all replicas for a reduced one.
    Low-precision gradients are widened: their sum needs the digits.
    """
    return [
        rows.own(gradient)
        if isinstance(gradient, tf.IndexedSlices)
        else tf.identity(widen(gradient))
        for gradient in gradients
    ]


def reduce(
    gradients: Sequence[tf.Tensor | tf.IndexedSlices], how: str
) -> list[tf.Tensor | tf.IndexedSlices]:
    """Returns the gradients reduced across replicas, the same on each.

    They are to be divided by `divisor(how)`. Rows are gathered: each replica
    has those of all.

    Args:
      gradients: tensors of any shape and floating dtype, or rows.
      how: "sum" or "mean".

    Raises:
      ValueError: if the strategy cannot reduce here.
    """
    context = tf.distribute.get_replica_context()
    places: dict[bool, list[int]] = {False: [], True: []}
    for i, gradient in enumerate(gradients):
        places[isinstance(gradient, tf.IndexedSlices)].append(i)
    wide = own(gradients[i] for i in places[False])
    operation = "SUM" if divisor(how) > 1 else how.upper()
    reduced = functools.partial(context.all_reduce, operation)
    with refusals_in_a_line(context.strategy):
        dtypes = [gradient.dtype for gradient in wide]
        dense = _by_dtype(reduced, wide, dtypes)
        sparse = [
            rows.gathered(context, gradients[i], operation)
            for i in places[True]
        ]
    results = dict(zip(places[False], dense, strict=True))
    results |= dict(zip(places[True], sparse, strict=True))
    return [results[i] for i in range(len(gradients))]


def reduce_if(
    needed_now: tf.Tensor,
    values: Sequence[tf.Tensor],
    how: str,
) -> list[tf.Tensor]:
    """Returns values reduced across replicas if `needed_now`.

    The condition is evaluated once for all replicas, outside of them: that is
    where strategies that have a merge_call can have collectives in it.

    Args:
      needed_now: bool scalar, the same on all replicas.
      values: float32 or float64 tensors.
      how: "sum" or "mean".

    Returns:
      The reduced values; if not `needed_now`, tensors of the same shapes.

    Raises:
      ValueError: if the strategy cannot reduce here.
    """
    context = tf.distribute.get_replica_context()

    def merged(
        strategy: tf.distribute.Strategy, needed_now: Any, *values: Any
    ) -> Any:
        local = strategy.experimental_local_results

        def reduced() -> list[tuple[tf.Tensor, ...]]:
            return [local(v) for v in _batch_reduce(strategy, values, how)]

        def unchanged() -> list[tuple[tf.Tensor, ...]]:
            return [tuple(map(tf.identity, local(v))) for v in values]

        results = tf.cond(local(needed_now)[0], reduced, unchanged)
        return replicas.per_replica(
            strategy, map(list, zip(*results, strict=True))
        )

    with refusals_in_a_line(context.strategy):
        return context.merge_call(merged, args=(needed_now, *values))


def check_agreement(
    present: frozenset[Any], variables: Sequence[tf.Variable]
) -> None:
    """Checks that the replicas of this process have the same gradients.

    A collective that not all of them reach would wait for ever. On a TPU one
    program is traced for all.

    Args:
      present: identifies the variables whose gradient is not None.
      variables: all replicated variables of the step.

    Raises:
      ValueError: if they differ, the strategy cannot reduce here, or the step
        is being exported.
    """
    context = tf.distribute.get_replica_context()
    if replicas.is_tpu(context.strategy):
        return

    def compare(strategy: tf.distribute.Strategy, present: Any) -> None:
        if len(set(strategy.experimental_local_results(present))) > 1:
            raise ValueError(different_gradients(strategy))
        _refuse_export(strategy, variables)

    with refusals_in_a_line(context.strategy):
        context.merge_call(compare, args=(present,))


def check_not_exported(variables: Sequence[tf.Variable]) -> None:
    """Checks that a step that reduces nothing is not being exported.

    Args:
      variables: all replicated variables of the step.

    Raises:
      ValueError: if `tf.saved_model.save` traces it.
    """
    context = tf.distribute.get_replica_context()
    if tf.executing_eagerly() or replicas.is_tpu(context.strategy):
        return
    try:
        context.merge_call(lambda own: _refuse_export(own, variables))
    except RuntimeError as error:
        # In a `tf.function` or conditional of the replica's own.
        if "merge_call" not in str(error):
            raise


def _refuse_export(
    strategy: tf.distribute.Strategy, variables: Sequence[tf.Variable]
) -> None:
    # Only the thread that exports can tell: not that of a replica.
    if any(map(replicas.exported, variables)):
        raise ValueError(
            "A SavedModel has one copy of a variable, which each replica of "
            f"{type(strategy).__name__} would update: in a function that is "
            "exported, call apply outside of strategy.run()."
        )


def merge(
    strategy: tf.distribute.Strategy,
    gradients: Sequence[Sequence[tf.Tensor]],
    destinations: Sequence[tf.Variable],
    how: str,
) -> list[tf.Tensor]:
    """Reduces the gradients of all replicas to the one copy of a variable.

    Args:
      strategy: in whose cross-replica context this is.
      gradients: for each variable those of the replicas, or a single one,
        which counts as reduced.
      destinations: the variables.
      how: "sum", "mean" or "none".

    Returns:
      For each variable one tensor, on the variable's device.
    """
    merged: list[Any] = []
    for parts, destination in zip(gradients, destinations, strict=True):
        if isinstance(parts[0], tf.IndexedSlices):
            merged.append(rows.joined(parts, how))
            continue
        if len(parts) == 1 or how == "none":
            merged.append(parts[0])
            continue
        value = replicas.per_replica(strategy, own(parts))
        reduced = strategy.extended.reduce_to(how.upper(), value, destination)
        merged.extend(strategy.experimental_local_results(reduced))
    return merged


def by_replica(
    strategy: tf.distribute.Strategy, values: Sequence[Any]
) -> list[list[Any]]:
    """For each replica a list of its values; one list if none is distributed.

    Args:
      strategy: in whose cross-replica context this is.
      values: per-replica values, others, or None.
    """
    parts = [strategy.experimental_local_results(value) for value in values]
    count = max(map(len, parts), default=1)
    return [
        [part[replica if len(part) > 1 else 0] for part in parts]
        for replica in range(count)
    ]


def _batch_reduce(
    strategy: tf.distribute.Strategy, values: Sequence[Any], how: str
) -> list[Any]:
    def reduced(same: list[Any]) -> list[Any]:
        return strategy.extended.batch_reduce_to(
            how.upper(), [(value, value) for value in same]
        )

    dtypes = [strategy.experimental_local_results(v)[0].dtype for v in values]
    return _by_dtype(reduced, values, dtypes)


def _by_dtype(
    function: Callable[[list[Any]], Sequence[Any]],
    values: Sequence[Any],
    dtypes: Sequence[tf.DType],
) -> list[Any]:
    """Calls it for each dtype: collectives may pack values in one buffer."""
    results: list[Any] = [None] * len(values)
    for dtype in sorted(set(dtypes), key=lambda dtype: dtype.size):
        places = [i for i, found in enumerate(dtypes) if found == dtype]
        same = function([values[i] for i in places])
        for i, result in zip(places, same, strict=True):
            results[i] = result
    return results


@contextlib.contextmanager
def refusals_in_a_line(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Says in one line what TensorFlow says in many."""
    try:
        yield
    except RuntimeError as error:
        if "merge_call" not in str(error):
            raise
        raise ValueError(
            f"{type(strategy).__name__} cannot reduce gradients in a "
            "tf.function, tf.cond or tf.while_loop inside of the function "
            "that is passed to strategy.run(): put them around strategy.run()."
        ) from error


def different_gradients(strategy: tf.distribute.Strategy) -> str:
    """The message for replicas that disagree on what is None."""
    return (
        f"The replicas of {type(strategy).__name__} have gradients for "
        "different variables: one that is None has to be None on all of them."
    )
