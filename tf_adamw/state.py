"""The optimizer's state: everything that a checkpoint holds."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import averaging
from tf_adamw.aggregation import check_strategy
from tf_adamw.counters import Counters
from tf_adamw.hyperparameters import Hyperparameters
from tf_adamw.keys import as_list
from tf_adamw.patterns import Exclusions, Multipliers
from tf_adamw.registry import Parameter, Registry, listed
from tf_adamw.slots import SLOT_NAMES, create_slots, slot_names


class OptimizerState(tf.Module):
    """Holds the variables of the state and says which variables they serve.

    Checkpoint keys below the optimizer: `counters/<name>`,
    `hyperparameters/<name>` and `slots/<key>/<slot name>`.
    """

    def __init__(
        self,
        name: str,
        hyperparameters: Hyperparameters,
        exclusions: Exclusions,
        multipliers: Multipliers,
        *,
        amsgrad: bool,
        use_ema: bool,
        accumulation_steps: int | None,
    ) -> None:
        super().__init__(name=name)
        self.amsgrad = amsgrad
        self.use_ema = use_ema
        accumulates = (accumulation_steps or 1) > 1
        self.gradient_accumulation_steps = (
            accumulation_steps if accumulates else None
        )
        self.hyperparameters = hyperparameters
        self.counters = Counters(accumulates=accumulates)
        self.slots: dict[str, dict[str, tf.Variable]] = {}
        self._slot_names = slot_names(
            amsgrad=amsgrad, use_ema=use_ema, accumulates=accumulates
        )
        self._registry = Registry()
        self._exclusions = exclusions
        self._multipliers = multipliers
        self._traced_by_caller = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._fixed:
            raise TypeError(
                f"{name} is fixed when the optimizer is made; only "
                "learning_rate and weight_decay can be assigned."
            )
        # A `tf.Module` would track what is assigned to a property, too.
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # Attributes that programs have been traced with.
    _fixed: frozenset[str] = frozenset()

    @property
    def iterations(self) -> tf.Variable:
        """The number of updates applied, an int64 scalar variable."""
        return self.counters.iterations

    @property
    def learning_rate(self) -> Any:
        """The learning rate: assignable unless it is a schedule or callable.

        A number or a variable reads as the `tf.Variable` that holds it; a
        schedule reads as its value for the next step.
        """
        return self._hyperparameter("learning_rate")

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.hyperparameters.assign("learning_rate", value)

    @property
    def weight_decay(self) -> Any:
        """The weight decay, as `learning_rate`."""
        return self._hyperparameter("weight_decay")

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        self.hyperparameters.assign("weight_decay", value)

    def _hyperparameter(self, name: str) -> Any:
        calls = self.counters.calls(self.gradient_accumulation_steps or 1)
        return self.hyperparameters.current(name, calls)

    @tf.autograph.experimental.do_not_convert
    def build(self, variables: Any) -> None:
        """Creates the state of the variables that have none yet.

        State that exists is kept. Slots are placed on their variables'
        devices. Scalars move where the variables are, if they are elsewhere:
        read `learning_rate` and `iterations` after it, to keep hold of them.
        Warns when updates are counted already and no slot has a value: the
        checkpoint was made under other keys.

        Args:
          variables: an iterable of variables, a dict of keys and variables,
            or any object with `trainable_variables`. The dict's keys, the
            `path` of Keras 3 variables, the object paths of others below the
            object, or else their names are the keys under which checkpoints
            hold the state.

        Raises:
          TypeError: if a variable is not float16, bfloat16, float32 or
            float64.
          ValueError: if there is no variable, a shape is not known, a pattern
            for the decay or the rates matches none of the variables built so
            far, the strategy has more replicas than one, or gradients are
            accumulated and a `tf.function` has been traced with a step in it.
        """
        first = not len(self._registry)
        new = self._registry.candidates(variables)
        if first and not new:
            raise ValueError(
                "build() was given no variable: a model has to make its "
                "variables first, by being built or called."
            )
        check_strategy(parameter.variable for parameter in new)
        if not new:
            return
        if self._traced_by_caller and self.gradient_accumulation_steps:
            raise ValueError(
                f"A step is traced already that would leave {new[0].key!r} out "
                "of its windows: with gradient_accumulation_steps, build all "
                "variables before the first step in a tf.function."
            )
        self._treat([*self._registry.parameters, *new], self._exclusions)
        devices = {parameter.variable.device for parameter in new}
        if first and len(devices) == 1:
            self.counters.place(*devices)
            self.hyperparameters.place(*devices)
        if any(parameter.dtype == tf.float64 for parameter in new):
            self.hyperparameters.keep_float64(new[0].variable.device)
        for parameter in new:
            self.slots[parameter.key] = create_slots(
                parameter, self._slot_names
            )
        self._registry.add(new)
        if first:
            self._warn_of_lost_slots()

    def _warn_of_lost_slots(self) -> None:
        """Says so when a checkpoint had updates and no slot for these keys."""
        with tf.init_scope():
            if not tf.executing_eagerly() or self.iterations < 1:
                return
            velocities = [slots["velocity"] for slots in self.slots.values()]
            if any(bool(tf.reduce_any(v != 0)) for v in velocities):
                return
        warnings.warn(
            f"iterations is {int(self.iterations)}, but no slot was restored "
            f"under the keys {listed(self._registry.parameters, 3)}: was the "
            "optimizer that was saved built with other keys?",
            stacklevel=3,
        )

    def get_slot(self, variable: Any, name: str) -> tf.Tensor:
        """Returns the value of a slot of a variable.

        Args:
          variable: one of the variables passed to `build`.
          name: "momentum", "velocity", "velocity_max", "average" or
            "accumulator": the sum of the gradients in the window so far.

        Returns:
          A tensor of the variable's shape, float32, or float64 for float64.

        Raises:
          ValueError: if the variable or the slot does not exist.
        """
        parameter = self._registry.get(variable)
        slots = self.slots[parameter.key]
        if name not in slots:
            raise ValueError(
                f"There is no slot {name!r}: this optimizer has "
                f"{', '.join(slots)}; the names are {', '.join(SLOT_NAMES)}."
            )
        value = tf.convert_to_tensor(slots[name])
        if name == "accumulator":
            empty = tf.equal(self.counters.window_position, 0)
            value = tf.where(empty, tf.zeros_like(value), value)
        if name == "average":
            value = averaging.started(value, parameter.variable)
        return value

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[Any] | None = None,
        var_names: Sequence[str] | None = None,
    ) -> None:
        """Takes variables out of the weight decay.

        Args:
          var_list: variables.
          var_names: regular expressions, searched in the keys and in the
            variables' own names.

        Raises:
          ValueError: if a pattern or a variable is none of the variables
            built; before `build`, `build` raises. Also if a `tf.function` has
            been traced with a step in it, which would keep the old exclusions.
        """
        if self._traced_by_caller:
            raise ValueError(
                "exclude_from_weight_decay must be called before a step is "
                "traced in a tf.function, which would go on without it."
            )
        exclusions = self._exclusions.extended(var_names, var_list)
        if len(self._registry):
            self._treat(self._registry.parameters, exclusions)
        self._exclusions = exclusions

    def _treat(
        self, parameters: Sequence[Parameter], exclusions: Exclusions
    ) -> None:
        """Sets what each parameter's decay and rate are."""
        excluded = exclusions.resolve(parameters)
        factors = self._multipliers.resolve(parameters)
        for parameter in parameters:
            parameter.decayed = parameter.key not in excluded
            parameter.multiplier = factors.get(parameter.key, 1.0)

    def _those_given(self, variables: Any) -> list[Any]:
        """Returns a list of variables, by default of all that were built."""
        if variables is not None:
            return as_list("trainable_variables", variables)
        if not len(self._registry):
            raise ValueError(
                "Which variables? Pass trainable_variables, or call build() "
                "first."
            )
        return [parameter.variable for parameter in self._registry.parameters]

    def finalize_variable_values(self, var_list: Any = None) -> None:
        """Makes the averages the weights; without EMA, does nothing.

        Args:
          var_list: the variables; by default all that were built.

        Raises:
          ValueError: if a variable was not built.
        """
        for variable in self._those_given(var_list) if self.use_ema else ():
            average = self.get_slot(variable, "average")
            raw = self._registry.get(variable).variable
            raw.assign(tf.cast(average, raw.dtype))

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Makes the averages the weights within a `with` block.

        After it the weights are again, bit for bit, what they were before it.

        Raises:
          ValueError: if `use_ema` is False, before `build`, or in a
            `tf.function`.
        """
        if not self.use_ema:
            raise ValueError("averaged_weights() needs use_ema=True.")
        if not tf.executing_eagerly():
            raise ValueError(
                "averaged_weights() must be used outside of a tf.function."
            )
        variables = [p.variable for p in self._registry.parameters]
        if not variables:
            raise ValueError("averaged_weights() comes after build().")
        kept = [tf.identity(variable) for variable in variables]
        try:
            self.finalize_variable_values()
            yield
        finally:
            for variable, value in zip(variables, kept, strict=True):
                variable.assign(value)
