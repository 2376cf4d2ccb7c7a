"""The hyperparameters that can change, and where their values come from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_adamw import arguments, placement, replicas
from tf_adamw.dtypes import scalar
from tf_adamw.keys import unwrapped

NAMES = ("learning_rate", "weight_decay", "beta_1", "beta_2", "epsilon")

# These can be schedules; given as numbers they are kept in variables of the
# optimizer's own, so that they can be assigned.
ASSIGNABLE = ("learning_rate", "weight_decay")


class Hyperparameters(tf.Module):
    """Holds each hyperparameter as it was given.

    A number is checked; that of `learning_rate` or `weight_decay` becomes a
    float32 variable, any other stays an exact Python float. A `tf.Variable` or
    a symbolic tensor is read at each step. A callable without arguments is
    called at each `apply`, outside of the compiled program, and a schedule
    inside of it.

    Attributes:
      loss_scale: a float32 variable, the dynamic loss scale, or None.
    """

    def __init__(self, loss_scale: float | None, **given: Any) -> None:
        super().__init__(name="hyperparameters")
        self.loss_scale = (
            None
            if loss_scale is None
            else _scalar_variable("loss_scale", loss_scale, tf.float32)
        )
        self._schedules = frozenset(
            name
            for name in ASSIGNABLE
            if _takes(given[name], 1) and not _takes(given[name], 0)
        )
        for name in NAMES:
            setattr(self, name, self._held(name, given[name]))

    def _held(self, name: str, value: Any) -> Any:
        value = unwrapped(value)
        if isinstance(value, tf.Variable):
            arguments.floating_scalar(name, value)
            if tf.executing_eagerly():
                arguments.number(name, value)
            return value
        if name in self._schedules or _takes(value, 0):
            return value
        if callable(value):
            accepted = "no argument" + (
                " or the step" if name in ASSIGNABLE else ""
            )
            raise ValueError(
                f"{name} must be a number, a scalar tensor or variable, or a "
                f"callable of {accepted}, got {value!r}."
            )
        if tf.is_tensor(value) and not hasattr(value, "numpy"):
            return arguments.floating_scalar(name, value)
        number = arguments.number(name, value)
        if name not in ASSIGNABLE:
            return number
        setattr(self, f"_given_{name}", number)
        return _scalar_variable(name, number, tf.float32)

    def owns(self, name: str) -> bool:
        """Whether the optimizer made the variable that holds the value."""
        return hasattr(self, f"_given_{name}")

    def place(self, owner: tf.distribute.Strategy | None, device: str) -> None:
        """Moves the variables of the optimizer's own where the weights are."""
        for name in self._own_names():
            held = getattr(self, name)
            setattr(self, name, placement.moved(held, owner, device))

    def held(self) -> list[tf.Variable]:
        """All variables of the optimizer's own that `place` moves."""
        return [getattr(self, name) for name in self._own_names()]

    def _own_names(self) -> list[str]:
        names = [name for name in ASSIGNABLE if self.owns(name)]
        return names if self.loss_scale is None else [*names, "loss_scale"]

    def keep_float64(
        self, owner: tf.distribute.Strategy | None, device: str
    ) -> None:
        """Adds float64 copies of the learning rate and the weight decay.

        float64 variables need more digits than a float32 variable holds. A
        copy counts for as long as it rounds to the float32 value: whoever
        assigns the latter alone gets what they assigned.
        """
        for name in ASSIGNABLE:
            copy = f"{name}_float64"
            number = getattr(self, f"_given_{name}", None)
            if number is not None and not hasattr(self, copy):
                exact = _scalar_variable(copy, number, tf.float64)
                setattr(self, copy, placement.moved(exact, owner, device))

    def live_values(
        self, dtype: tf.DType, device: str | None = None
    ) -> dict[str, tf.Tensor]:
        """Reads what the compiled program cannot read by itself.

        That is what callables without arguments return, and variables of the
        user's that are not on the program's device.

        Args:
          dtype: of the values, float32 or float64.
          device: the program's; None if it can read from every device.

        Returns:
          Scalars by name.
        """
        values = {}
        for name in NAMES:
            held = getattr(self, name)
            if isinstance(held, tf.Variable):
                # Its own variables are with the weights, once there are any.
                if self.owns(name) or device in (None, held.device):
                    continue
                value = held
            elif callable(held) and name not in self._schedules:
                value = _number_or_tensor(name, held())
            else:
                continue
            # A variable's value: `tf.cast` may return the variable itself.
            values[name] = tf.identity(scalar(value, dtype))
        return values

    def value(
        self,
        name: str,
        dtype: tf.DType,
        step: tf.Tensor,
        live: Mapping[str, tf.Tensor],
    ) -> float | tf.Tensor:
        """Returns a value for the step at hand.

        Args:
          name: of the hyperparameter.
          dtype: float32 or float64.
          step: integer scalar that a schedule is called with.
          live: what `live_values` returned for this step.

        Returns:
          A scalar of `dtype`; the exact Python float of a fixed number.
        """
        held = getattr(self, name)
        if isinstance(held, float):
            return held
        if name in live:
            return tf.cast(live[name], dtype)
        if name in self._schedules:
            return scalar(_scheduled(name, held, step), dtype)
        exact = getattr(self, f"{name}_float64", None)
        if dtype != tf.float64 or exact is None:
            return tf.cast(held, dtype)
        unchanged = tf.equal(tf.cast(exact, tf.float32), held)
        return tf.where(unchanged, exact, tf.cast(held, dtype))

    def current(self, name: str, step: tf.Tensor) -> tf.Variable | tf.Tensor:
        """Returns the variable that holds the value, or else the value."""
        held = getattr(self, name)
        if name in self._schedules:
            return tf.convert_to_tensor(_scheduled(name, held, step))
        if callable(held) and not isinstance(held, tf.Variable):
            return tf.convert_to_tensor(_number_or_tensor(name, held()))
        return held

    def plain(self, name: str) -> Any:
        """Returns the value as a Python float, or the callable that makes it.

        A number that was given, or restored in float64, is returned to its
        last digit for as long as it rounds to the value that the variable
        holds.
        """
        held = getattr(self, name)
        if not isinstance(held, (tf.Variable, tf.Tensor)):
            return held
        value = float(tf.convert_to_tensor(held))
        exact = getattr(self, f"{name}_float64", None)
        if exact is not None:
            exact = float(tf.convert_to_tensor(exact))
        for number in (exact, getattr(self, f"_given_{name}", None)):
            if number is not None and np.float32(number) == value:
                return number
        return value

    def assign(self, name: str, value: Any) -> None:
        """Gives `learning_rate` or `weight_decay` a new value.

        Raises:
          TypeError: if it is not held in a variable.
          ValueError: if the value is out of range.
        """
        held = getattr(self, name)
        if not isinstance(held, tf.Variable):
            raise TypeError(
                f"{name} is a {type(held).__name__} and cannot be assigned; "
                "give AdamW a number or a tf.Variable to change it later."
            )
        if callable(value) and not isinstance(value, tf.Variable):
            raise TypeError(
                f"{name} is held in a variable, which takes numbers; give a "
                "schedule or a callable to AdamW when it is made."
            )
        symbolic = tf.is_tensor(value) and not tf.executing_eagerly()
        if not symbolic:
            value = arguments.number(name, value)
        replicas.assign(held, scalar(value, held.dtype))
        if isinstance(value, float):
            setattr(self, f"_given_{name}", value)
        exact = getattr(self, f"{name}_float64", None)
        if exact is not None:
            replicas.assign(exact, scalar(value, exact.dtype))


def _scalar_variable(name: str, value: float, dtype: tf.DType) -> tf.Variable:
    with tf.init_scope():
        return tf.Variable(value, trainable=False, dtype=dtype, name=name)


def _number_or_tensor(name: str, value: Any) -> Any:
    if tf.is_tensor(value):
        return arguments.floating_scalar(name, value)
    return arguments.number(name, value)


def _scheduled(name: str, schedule: Any, step: tf.Tensor) -> Any:
    try:
        return _number_or_tensor(name, schedule(step))
    except (TypeError, tf.errors.OperatorNotAllowedInGraphError) as error:
        raise ValueError(
            f"{name} is a schedule that cannot be traced with a tensor as the "
            f"step ({str(error).splitlines()[0]}); use TensorFlow's operations."
        ) from error


def _takes(value: Any, count: int) -> bool:
    """Whether `value` can be called with `count` positional arguments."""
    if not callable(value) or isinstance(value, tf.Variable):
        return False
    try:
        inspect.signature(value).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True
