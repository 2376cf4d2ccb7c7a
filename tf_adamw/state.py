"""The optimizer's state: everything that a checkpoint holds."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import averaging, placement, replicas, sharding
from tf_adamw.counters import Counters
from tf_adamw.groups import Multipliers, NormGroups, is_zero
from tf_adamw.hyperparameters import NAMES as HYPERPARAMETERS
from tf_adamw.hyperparameters import Hyperparameters
from tf_adamw.keys import as_list
from tf_adamw.patterns import Selection
from tf_adamw.registry import Parameter, Registry, listed
from tf_adamw.scalar_state import ScalarState
from tf_adamw.slots import SLOT_NAMES, create_slots, slot_names, tracked


class OptimizerState(ScalarState):
    """Holds the variables of the state and says which variables they serve.

    Checkpoint keys below the optimizer: `format_version`, `counters/<name>`,
    `hyperparameters/<name>` and `slots/<key>/<slot name>`.
    """

    decay_coupling: str
    base_learning_rate: float | None

    def __init__(
        self,
        name: str,
        hyperparameters: Hyperparameters,
        exclusions: Selection,
        multipliers: Multipliers,
        decay_multipliers: Multipliers,
        norm_groups: NormGroups,
        *,
        amsgrad: bool,
        use_ema: bool,
        accumulation_steps: int | None,
        aggregation: str,
        dynamic: bool,
    ) -> None:
        accumulates = (accumulation_steps or 1) > 1
        super().__init__(
            name,
            hyperparameters,
            Counters(accumulates=accumulates, scales=dynamic),
            accumulation_steps if accumulates else None,
        )
        self.amsgrad = amsgrad
        self.use_ema = use_ema
        self.aggregation = aggregation
        self.slots: dict[str, dict[str, Any]] = {}
        self._slot_names = slot_names(
            amsgrad=amsgrad, use_ema=use_ema, accumulates=accumulates
        )
        self._registry = Registry()
        self._exclusions = exclusions
        self._multipliers = multipliers
        self._decay_multipliers = decay_multipliers
        self._norm_groups = norm_groups
        self._traced_by_caller = False
        self._shows_averages = False

    @property
    def parameters(self) -> list[Parameter]:
        """The variables built so far, with their state and treatment."""
        return self._registry.parameters

    @tf.autograph.experimental.do_not_convert
    def build(self, variables: Any) -> None:
        """Creates the state of the variables that have none yet.

        State that exists is kept. State is created where the variables are:
        on their devices, under their strategy, whether this is called in its
        scope, outside of it, or by `apply` in `strategy.run`. Scalars move
        there, if they are elsewhere: read `learning_rate` and `iterations`
        after it, to keep hold of them.
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
            far, the variables belong to different strategies, a TPU could not
            read the variable of a hyperparameter, or gradients are accumulated
            and a `tf.function` has been traced with a step in it.
        """
        first = not len(self._registry)
        new = self._registry.candidates(variables)
        if first and not new:
            raise ValueError(
                "build() was given no variable: a model has to make its "
                "variables first, by being built or called."
            )
        everyone = [*self._registry.parameters, *new]
        owner = replicas.owner((p.key, p.variable) for p in everyone)
        if not new:
            return
        if owner is not None and replicas.is_tpu(owner):
            replicas.check_readable(owner, self._given_variables())
        if self._traced_by_caller and self.gradient_accumulation_steps:
            raise ValueError(
                f"A step is traced already that would leave {new[0].key!r} out "
                "of its windows: with gradient_accumulation_steps, build all "
                "variables before the first step in a tf.function."
            )
        self._treat(everyone, self._exclusions)
        device = new[0].variable.device
        if first and (owner or _one_place(new)):
            self._place(owner, device)
        if any(parameter.dtype == tf.float64 for parameter in new):
            self.hyperparameters.keep_float64(owner, device)
        placement.create(owner, lambda: self._create(new))
        self._registry.add(new)
        self._built = True
        if first:
            self._warn_of_lost_slots()

    def _given_variables(self) -> Iterator[tuple[str, tf.Variable]]:
        """The scalar variables that are the user's own."""
        for name in HYPERPARAMETERS:
            held = getattr(self.hyperparameters, name)
            own = self.hyperparameters.owns(name)
            if isinstance(held, tf.Variable) and not own:
                yield name, held
        yield from self._multipliers.variables()
        yield from self._decay_multipliers.variables()

    def _create(self, new: Sequence[Parameter]) -> None:
        for parameter in new:
            parameter.slots = create_slots(
                parameter, self._slot_names, self.aggregation
            )
        for key, same in itertools.groupby(new, key=lambda p: p.key):
            self.slots[key] = tracked(list(same))

    def _warn_of_lost_slots(self) -> None:
        """Says so when a checkpoint had updates and no slot for these keys."""
        with tf.init_scope():
            iterations = tf.convert_to_tensor(self.iterations)
            if not tf.executing_eagerly() or iterations < 1:
                return
            velocities = [
                p.slots["velocity"] for p in self._registry.parameters
            ]
            if any(bool(tf.reduce_any(v != 0)) for v in velocities):
                return
        warnings.warn(
            f"iterations is {int(iterations)}, but no slot was restored "
            f"under the keys {listed(self._registry.parameters, 3)}: was the "
            "optimizer that was saved built with other keys?",
            stacklevel=3,
        )

    def get_slot(self, variable: Any, name: str) -> tf.Tensor:
        """Returns the value of a slot of a variable.

        Args:
          variable: one of the variables passed to `build`.
          name: "momentum", "velocity", "velocity_max", "average" or
            "accumulator": the sum of the gradients in the window so far,
            aggregated over all replicas (within `strategy.run`, of this
            replica; under MultiWorkerMirroredStrategy every worker has to
            ask).

        Returns:
          A tensor of the variable's shape, float32, or float64 for float64.

        Raises:
          ValueError: if the variable or the slot does not exist.
        """
        parts = sharding.shards(variable)
        if parts:
            return tf.concat([self.get_slot(v, name) for v in parts], axis=0)
        parameter = self._registry.get(variable)
        slots = parameter.slots
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
        self, parameters: Sequence[Parameter], exclusions: Selection
    ) -> None:
        """Sets what each parameter's decay, rate and groups are."""
        excluded = exclusions.resolve(parameters)
        rates = self._multipliers.resolve(parameters)
        decays = self._decay_multipliers.resolve(parameters)
        groups = self._norm_groups.resolve(parameters)
        for parameter in parameters:
            key = parameter.key
            parameter.multiplier = rates.get(key, 1.0)
            parameter.decay_multiplier = decays.get(key, 1.0)
            parameter.decayed = not (
                key in excluded or is_zero(parameter.decay_multiplier)
            )
            parameter.groups = tuple(groups[key])

    def _those_given(self, variables: Any) -> list[Any]:
        """Returns a list of variables, by default of all that were built."""
        if variables is not None:
            return as_list("trainable_variables", variables)
        if not len(self._registry):
            raise ValueError(
                "Which variables? Pass trainable_variables, or call build() "
                "first."
            )
        return [
            parameter.variable if parameter.whole is None else parameter.whole
            for parameter in self._registry.parameters
            if parameter.part == 0
        ]

    def finalize_variable_values(self, var_list: Any = None) -> None:
        """Makes the averages the weights; without EMA, does nothing.

        Args:
          var_list: the variables; by default all that were built.

        Raises:
          ValueError: if a variable was not built.
        """
        if not self.use_ema:
            return
        averaging.finalize(
            self._registry.get(part)
            for part in sharding.in_shards(self._those_given(var_list))
        )

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Makes the averages the weights within a `with` block.

        After it the weights are again, bit for bit, what they were before it.

        Raises:
          ValueError: if `use_ema` is False, before `build`, or in a
            `tf.function` or `strategy.run`.
        """
        if not self.use_ema:
            raise ValueError("averaged_weights() needs use_ema=True.")
        if not tf.executing_eagerly() or replicas.several():
            raise ValueError(
                "averaged_weights() must be used outside of a tf.function and "
                "of strategy.run."
            )
        parameters = self._registry.parameters
        if not parameters:
            raise ValueError("averaged_weights() comes after build().")
        with averaging.swapped(parameters):
            self._shows_averages = True
            try:
                yield
            finally:
                self._shows_averages = False

    def check_settable(self) -> None:
        """Checks that all state is there, and can be set from outside.

        Raises:
          ValueError: before `build`, or within `averaged_weights()`.
        """
        if not len(self._registry):
            raise ValueError(
                f"The optimizer {self.name!r} has no state yet: call build() "
                "first."
            )
        if self._shows_averages:
            raise ValueError(
                "Within averaged_weights() the weights are not those that are "
                "trained: leave the block first."
            )


def _one_place(parameters: Sequence[Parameter]) -> bool:
    """Whether scalars belong beside the variables, rather than to the host."""
    devices = {parameter.variable.device for parameter in parameters}
    return len(devices) == 1 or replicas.remote(min(devices))
