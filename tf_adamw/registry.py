"""The variables that an optimizer updates, and how each is treated."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import sharding
from tf_adamw.dtypes import arithmetic_dtype
from tf_adamw.keys import (
    few,
    keyed_variables,
    own_name,
    raw_variable,
    without_repeats,
)

UPDATED_DTYPES = (tf.float32, tf.bfloat16, tf.float16, tf.float64)


@dataclasses.dataclass(repr=False)
class Parameter:
    """One variable that the optimizer updates, or one shard of a variable.

    Attributes:
      key: names its state, in checkpoints too; shards have one in common.
      variable: the `tf.Variable`.
      name: the name that the variable has by itself; patterns match it too.
      whole: the sharded variable of which it is a part, or None.
      part: its place among the shards.
      decayed: whether the weight decay applies.
      multiplier: factor on the learning rate, decay included: a number or a
        scalar variable. 0 leaves the variable and its state alone.
      decay_multiplier: factor on the weight decay, likewise.
      groups: the names of the groups whose norms it is counted in.
      most_rows: to how many rows a program updates lazily, so far.
      slots: the variables of its state, by slot name.
    """

    key: str
    variable: tf.Variable
    name: str
    whole: Any = None
    part: int = 0
    decayed: bool = True
    multiplier: float | tf.Variable = 1.0
    decay_multiplier: float | tf.Variable = 1.0
    groups: tuple[str, ...] = ()
    most_rows: int = 0
    slots: dict[str, tf.Variable] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        # TensorFlow's warnings show what a function was made of: no weights.
        return f"Parameter({self.key!r}, part={self.part})"

    @property
    def identity(self) -> tuple[str, int]:
        """Tells parameters apart, and orders them."""
        return self.key, self.part

    @property
    def dtype(self) -> tf.DType:
        """The dtype of the moments and the arithmetic."""
        return arithmetic_dtype(self.variable.dtype)

    @functools.cached_property
    def elements(self) -> int:
        """How many the variable has."""
        return self.variable.shape.num_elements()


class Registry:
    """The parameters, in the order in which they were built.

    A plain object: a `tf.Module` that tracked the variables would save them
    a second time, under the optimizer.
    """

    def __init__(self) -> None:
        self._by_ref: dict[Any, Parameter] = {}

    def __len__(self) -> int:
        return len(self._by_ref)

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters."""
        return list(self._by_ref.values())

    def find(self, variable: Any) -> Parameter | None:
        """Returns the parameter of a variable, or None if it has none.

        Of a sharded variable, that of its first shard.
        """
        first = next(iter(sharding.shards(variable)), variable)
        return self._by_ref.get(raw_variable(first).ref())

    def name(self, variable: Any) -> str:
        """The key of a variable, or the name that it has by itself."""
        parameter = self.find(variable)
        return parameter.key if parameter else own_name(variable)

    def get(self, variable: Any) -> Parameter:
        """Returns the parameter of a variable, as `find`.

        Raises:
          ValueError: if the optimizer was not built with it.
        """
        parameter = self.find(variable)
        if parameter is None:
            raise ValueError(
                f"The optimizer has no state for {own_name(variable)!r}: pass "
                f"it to build(). It has state for: {listed(self.parameters)}."
            )
        return parameter

    def candidates(self, variables: Any) -> list[Parameter]:
        """Makes the parameters of those `variables` that have none yet.

        Raises:
          TypeError: if a variable is neither a floating-point `tf.Variable`
            nor a Keras variable of such a dtype.
          ValueError: if its shape is not known.
        """
        keys, new = [], {}
        for key, variable in keyed_variables(variables):
            parts = sharding.shards(variable)
            raw = [raw_variable(part) for part in parts or (variable,)]
            ref = raw[0].ref()
            if ref in self._by_ref or ref in new:
                continue
            _check_updated(key, raw[0])
            keys.append(key)
            new[ref] = raw, own_name(variable), variable if parts else None
        keys = without_repeats(keys, [p.key for p in self.parameters])
        return [
            Parameter(key, variable, name, whole, part)
            for key, (raw, name, whole) in zip(keys, new.values(), strict=True)
            for part, variable in enumerate(raw)
        ]

    def add(self, parameters: Iterable[Parameter]) -> None:
        """Adds parameters made by `candidates`."""
        for parameter in parameters:
            self._by_ref[parameter.variable.ref()] = parameter


def _check_updated(key: str, variable: tf.Variable) -> None:
    if not variable.shape.is_fully_defined():
        raise ValueError(
            f"Variable {key!r} has the shape {variable.shape}; AdamW needs "
            "every dimension to be known."
        )
    if variable.dtype not in UPDATED_DTYPES:
        accepted = ", ".join(dtype.name for dtype in UPDATED_DTYPES)
        raise TypeError(
            f"Variable {key!r} is {variable.dtype.name}; AdamW updates "
            f"variables of {accepted}."
        )


def listed(parameters: Sequence[Parameter], limit: int = 20) -> str:
    """The keys, as an error message lists them."""
    keys = list(dict.fromkeys(parameter.key for parameter in parameters))
    return few(keys, limit, "no variable")
