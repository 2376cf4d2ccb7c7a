"""What is done to many variables, traced once for all that are alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_adamw import placement, replicas


class Handle(NamedTuple):
    """A variable, or a replica's own copy, as a program reads and writes it.

    Attributes:
      resource: what TensorFlow's operations take.
      dtype: of its elements.
      shape: fully defined.
    """

    resource: tf.Tensor
    dtype: tf.DType
    shape: tf.TensorShape

    def read(self) -> tf.Tensor:
        """Returns the value."""
        value = tf.raw_ops.ReadVariableOp(
            resource=self.resource, dtype=self.dtype
        )
        value.set_shape(self.shape)
        return value

    def assign(self, value: tf.Tensor) -> None:
        """Sets the value, of the same dtype."""
        tf.raw_ops.AssignVariableOp(resource=self.resource, value=value)


class RowsHandle(NamedTuple):
    """Some rows of a variable, as a program reads and writes them.

    Attributes:
      whole: the variable's handle.
      indices: of the rows. Those of one index are assigned one value; what
        is beyond the last row XLA leaves out.
    """

    whole: Handle
    indices: tf.Tensor

    @property
    def dtype(self) -> tf.DType:
        """Of the elements."""
        return self.whole.dtype

    def read(self) -> tf.Tensor:
        """Returns the rows."""
        return tf.raw_ops.ResourceGather(
            resource=self.whole.resource,
            indices=self.indices,
            dtype=self.whole.dtype,
        )

    def assign(self, value: tf.Tensor) -> None:
        """Sets the rows."""
        tf.raw_ops.ResourceScatterUpdate(
            resource=self.whole.resource, indices=self.indices, updates=value
        )


class KeptHandle(NamedTuple):
    """A variable, or rows of it, that may have to stay as it is.

    Attributes:
      all: the handle.
      changes: bool scalar: whether what is assigned is written.
    """

    all: Handle | RowsHandle
    changes: tf.Tensor

    @property
    def dtype(self) -> tf.DType:
        """Of the elements."""
        return self.all.dtype

    def read(self) -> tf.Tensor:
        """Returns the value."""
        return self.all.read()

    def assign(self, value: tf.Tensor) -> None:
        """Sets the value, if it changes."""
        self.all.assign(tf.where(self.changes, value, self.all.read()))


Body = Callable[..., Any]


class Alike:
    """Calls a function for many variables; alike ones share a trace of it.

    A graph has one node for each call, and Python traces the function's own
    nodes once. One object serves the tracing of one program.
    """

    def __init__(self) -> None:
        self._traced: dict[Hashable, Callable[..., Any]] = {}

    def call(
        self,
        function: Body,
        static: Hashable,
        variables: Mapping[str, tf.Variable],
        tensors: Mapping[str, tf.Tensor],
        *,
        shared: bool,
    ) -> Any:
        """Returns `function(static, handles, tensors)`.

        Args:
          function: of `static`, a dict of `Handle`s and a dict of tensors.
          static: what it is traced for, besides dtypes and shapes.
          variables: what it reads and writes, all on one device.
          tensors: what else it computes with.
          shared: whether to share the trace, where that can be done.
        """
        given = {
            name: Handle(variable.handle, variable.dtype, variable.shape)
            for name, variable in variables.items()
        }
        first = next(iter(variables.values()))
        # A TPU program is one function anyway, whose resources are replicated.
        if (
            not shared
            or replicas.remote(first.device)
            or replicas.is_tpu(tf.distribute.get_strategy())
        ):
            with placement.beside(first):
                return function(static, given, tensors)
        flat = [*(handle.resource for handle in given.values())]
        flat.extend(tensors.values())
        key = function, static, _kinds(given), _kinds(tensors)
        if key not in self._traced:
            self._traced[key] = _trace(
                functools.partial(function, static), given, tensors, flat
            )
        return self._traced[key](*flat)


def _kinds(values: Mapping[str, Handle | tf.Tensor]) -> Hashable:
    """What values have to have in common to be alike."""
    return tuple((n, v.dtype, tuple(v.shape)) for n, v in values.items())


def _trace(
    function: Body,
    given: Mapping[str, Handle],
    tensors: Mapping[str, tf.Tensor],
    flat: Sequence[tf.Tensor],
) -> Callable[..., Any]:
    def on_flat(*flat: tf.Tensor) -> Any:
        resources, others = flat[: len(given)], flat[len(given) :]
        handles = {
            name: like._replace(resource=resource)
            for (name, like), resource in zip(
                given.items(), resources, strict=True
            )
        }
        return function(handles, dict(zip(tensors, others, strict=True)))

    return tf.function(on_flat, autograph=False).get_concrete_function(*flat)
