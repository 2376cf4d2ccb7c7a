"""Steps 8 and 9: which variables, with which factors."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from tf_adamw import norms, one_pass, placement, variable_update
from tf_adamw.compilation import Given
from tf_adamw.dtypes import scalar
from tf_adamw.groups import Multipliers, is_zero
from tf_adamw.handles import Alike
from tf_adamw.registry import Parameter
from tf_adamw.rows import Rows


class Call(NamedTuple):
    """What a call of a program has besides gradients.

    Attributes:
      given: what the program is traced for.
      live: the scalars that it cannot read by itself, by name.
      position: in the window, if gradients are accumulated.
      rows: by identity, of those gradients that are of some rows.
      unwritten: whether the gradients are sums that are in no buffer.
    """

    given: Given
    live: Mapping[str, tf.Tensor]
    position: tf.Tensor | None = None
    rows: Mapping[tuple[str, int], Rows] = {}
    unwritten: bool = False


def takes_part(
    given: Given, parameter: Parameter, gradient: tf.Tensor
) -> bool | tf.Tensor:
    """Returns whether a variable takes part.

    Args:
      given: what the program is traced for.
      parameter: the variable.
      gradient: before the clipping.

    Returns:
      True; False, if its rate is 0 for good; or a bool scalar tensor.
    """
    if is_zero(parameter.multiplier):
        return False
    if parameter.identity not in given.touched_only:
        return True
    # One without a gradient in the last micro-step may have had one earlier in
    # the window.
    with placement.beside(parameter.variable):
        return tf.reduce_any(tf.not_equal(gradient, 0))


class VariableSteps:
    """Updates variable by variable, in the tracing of one program.

    Args:
      call: what the program has.
      factors: on the learning rate and on the weight decay.
      ema_momentum: None without an average.
    """

    def __init__(
        self,
        call: Call,
        factors: Mapping[str, Multipliers],
        ema_momentum: float | None,
    ) -> None:
        self._call = call
        self._factors = factors
        self._ema_momentum = ema_momentum
        self._alike = Alike()

    def update(
        self,
        parameter: Parameter,
        tensors: Mapping[str, tf.Tensor],
        takes: bool | tf.Tensor,
    ) -> variable_update.Squares:
        """Steps 8 and 9 for one variable, if it takes part.

        Args:
          parameter: the variable.
          tensors: "gradient", and what `variable_update.update` wants of the
            whole step.
          takes: what `takes_part` returned.

        Returns:
          As `variable_update.update`.
        """

        def unchanged() -> variable_update.Squares:
            return norms.unchanged(parameter) if parameter.groups else ()

        if takes is False:
            return unchanged()
        tensors = dict(tensors)
        if parameter.identity in self._call.rows:
            found = self._call.rows[parameter.identity]
            tensors |= {"places": found.places, "indices": found.indices}
        numbers = self._numbers(parameter, tensors)
        whether = [takes] if tf.is_tensor(takes) else []
        if "multiplier" in tensors:
            changes = tf.not_equal(tensors["multiplier"], 0)
            if self._call.given.compiled:
                # XLA selects in the pass over memory that it makes anyway.
                tensors["changes"] = changes
            else:
                whether.append(changes)
        update = functools.partial(self._update, parameter, tensors, numbers)
        if not whether:
            return update()
        every = functools.reduce(tf.logical_and, whether)
        return tf.cond(every, update, unchanged)

    def _numbers(
        self, parameter: Parameter, tensors: dict[str, tf.Tensor]
    ) -> dict[str, float | None]:
        """The factors that are numbers; adds the others to `tensors`."""
        numbers: dict[str, float | None] = {}
        for name, factors in self._factors.items():
            factor = factors.current(getattr(parameter, name), self._call.live)
            numbers[name] = factor if isinstance(factor, float) else None
            if numbers[name] is None:
                tensors[name] = scalar(factor, parameter.dtype)
        return numbers

    def _update(
        self,
        parameter: Parameter,
        tensors: Mapping[str, tf.Tensor],
        numbers: Mapping[str, float | None],
    ) -> variable_update.Squares:
        compiled = self._call.given.compiled
        treatment = variable_update.Treatment(
            compiled,
            compiled and one_pass.serves(parameter.variable, parameter.dtype),
            parameter.decayed,
            ema_momentum=self._ema_momentum,
            measured=bool(parameter.groups),
            **numbers,
        )
        variables = {"weights": parameter.variable, **parameter.slots}
        variables.pop("accumulator", None)
        # The few nodes of the fused ops would not become fewer.
        return self._alike.call(
            variable_update.update,
            treatment,
            variables,
            tensors,
            shared=compiled,
        )
