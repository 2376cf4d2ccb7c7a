"""One step, in order: the stages, and the state that they work on."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_adamw import (
    accumulation,
    aggregation,
    averaging,
    clipping,
    finite,
    fused,
    loss_scale,
    pairing,
    update_rule,
)
from tf_adamw.compilation import FUSED, Programs, choose_mode
from tf_adamw.dtypes import arithmetic_dtype, widest
from tf_adamw.hyperparameters import NAMES as HYPERPARAMETERS
from tf_adamw.keys import as_list, raw_variable
from tf_adamw.patterns import Exclusions
from tf_adamw.registry import Parameter
from tf_adamw.scalars import Scalars, step_scalars
from tf_adamw.state import OptimizerState


class ApplyResult(NamedTuple):
    """What one step did.

    Attributes:
      applied: bool scalar tensor: whether the weights were updated. False on
        a micro-step that only accumulates, and when `skip_nonfinite` skipped.
      grad_norm: float32 scalar tensor: the global norm of the gradients
        before the clipping, where a clip by norm computes it, otherwise None.
        NaN where `applied` is False.
    """

    applied: tf.Tensor
    grad_norm: tf.Tensor | None

    def _as_graph_element(self) -> tf.Tensor:
        # `tf.control_dependencies` asks for this; `tfp.math.minimize` passes
        # it what `apply_gradients` returned.
        return self.applied


class _Constants(NamedTuple):
    """What all variables of one dtype have in common in one step."""

    scalars: Scalars
    betas: tuple[float | tf.Tensor, float | tf.Tensor]
    due: tf.Tensor | None


class Step(OptimizerState):
    """The state, and `apply`, which does one step on it."""

    skip_nonfinite: bool
    loss_scale_factor: float | None
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    ema_momentum: float
    ema_overwrite_frequency: int | None
    jit_compile: bool | str
    _programs: Programs

    @tf.autograph.experimental.do_not_convert
    def apply(
        self,
        grads: Sequence[Any],
        trainable_variables: Sequence[Any] | None = None,
    ) -> ApplyResult:
        """Does one step.

        1. Pairs gradients and variables. A variable whose gradient is None is
           left alone.
        2. Divides by the loss scale.
        3. Accumulates, until the window is complete.
        4. Aggregates across replicas.
        5. Checks that the gradients are finite.
        6. Clips.
        7. Computes the step's scalars.
        8. Updates each variable.
        9. Averages the weights.
        10. Counts the update.

        All from the second on is one program. State that does not exist yet is
        created first.

        Args:
          grads: for each variable a tensor of its shape and dtype, an
            `IndexedSlices`, or None; not all None.
          trainable_variables: the variables, in any order, not necessarily all
            that were built; without it those passed to `build`, in order.

        Returns:
          An `ApplyResult`.

        Raises:
          ValueError: if gradients and variables do not fit each other, or
            `jit_compile` is True where XLA cannot serve. Nothing has changed
            then.
          TypeError: if a dtype does not fit, likewise.
        """
        aggregation.check_strategy()
        grads = as_list("grads", grads)
        variables = self._those_given(trainable_variables)
        gradients = pairing.pair(grads, variables, self._registry)  # 1
        mode = choose_mode(
            self.jit_compile, self._devices(variables[p] for p in gradients)
        )
        live = self.hyperparameters.live_values(
            widest(arithmetic_dtype(g.dtype) for g in gradients.values())
        )
        missing = [v for v in variables if self._registry.find(v) is None]
        if missing:
            self.build(missing)
        if not tf.executing_eagerly():
            self._traced_by_caller = True
        # In one order, so that another order of the variables is no other
        # program.
        pairs = sorted(
            (
                (self._registry.get(variables[place]), gradient)
                for place, gradient in gradients.items()
            ),
            key=lambda pair: pair[0].key,
        )
        parameters, ordered = zip(*pairs, strict=True)
        applied, grad_norm = self._programs.run(mode, parameters, ordered, live)
        return ApplyResult(applied, grad_norm if self._by_norm else None)

    @property
    def _by_norm(self) -> bool:
        return self.clipnorm is not None or self.global_clipnorm is not None

    def _devices(self, variables: Iterable[Any]) -> set[str]:
        """The devices of all variables that the step touches."""
        touched = [raw_variable(variable) for variable in variables]
        built = self._registry.parameters
        if self.gradient_accumulation_steps:
            touched += [parameter.variable for parameter in built]
        touched += [
            held
            for held in (
                *self._multipliers.factors.values(),
                *self._scalars(built),
            )
            if isinstance(held, tf.Variable)
        ]
        return {variable.device for variable in touched}

    def _scalars(self, built: Sequence[Parameter]) -> Iterable[Any]:
        """The scalars that `build`, if it is still to come, will not move."""
        if built:
            yield self.counters.iterations
        for name in HYPERPARAMETERS:
            if built or not self.hyperparameters.owns(name):
                yield getattr(self.hyperparameters, name)

    def _treat(
        self, parameters: Sequence[Parameter], exclusions: Exclusions
    ) -> None:
        super()._treat(parameters, exclusions)
        self._programs.clear()

    def _step(
        self,
        mode: str,
        parameters: Sequence[Parameter],
        gradients: Sequence[tf.Tensor],
        live: Mapping[str, tf.Tensor],
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Steps 2 to 10, as the program that `apply` runs."""
        compiled = mode != FUSED
        gradients = loss_scale.unscale(gradients, self.loss_scale_factor)  # 2
        if self.gradient_accumulation_steps is None:
            return self._update(parameters, gradients, live, compiled)
        position = tf.identity(self.counters.window_position)
        everyone = self._registry.parameters
        accumulators = [self.slots[p.key]["accumulator"] for p in everyone]
        given = dict(zip((p.key for p in parameters), gradients, strict=True))
        accumulation.accumulate(  # 3
            accumulators,
            [given.get(parameter.key) for parameter in everyone],
            position,
            compiled=compiled,
        )

        def complete() -> tuple[tf.Tensor, tf.Tensor]:
            # A variable without a gradient in the last micro-step may have
            # had one earlier in the window.
            touched = {
                p.key: tf.reduce_any(tf.not_equal(accumulator, 0))
                for p, accumulator in zip(everyone, accumulators, strict=True)
                if p.key not in given
            }
            mean = accumulation.window_mean(accumulators, position)
            return self._update(everyone, mean, live, compiled, touched)

        last = self.gradient_accumulation_steps - 1
        result = tf.cond(position >= last, complete, _not_applied)
        self.counters.count_micro_step(position, last)
        return result

    def _update(
        self,
        parameters: Sequence[Parameter],
        gradients: Sequence[tf.Tensor],
        live: Mapping[str, tf.Tensor],
        compiled: bool,
        touched: Mapping[str, tf.Tensor] | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Steps 4 to 10. `touched` says of some keys whether they take part."""
        gradients = aggregation.aggregate(gradients)  # 4
        squares = clipping.squared_norms(gradients) if self._by_norm else None

        def change() -> tuple[tf.Tensor, tf.Tensor]:
            return self._change(
                parameters, gradients, squares, live, compiled, touched or {}
            )

        if not self.skip_nonfinite:
            return change()
        verdict = finite.all_finite([*gradients, *(squares or ())])  # 5
        return tf.cond(verdict, change, _not_applied)

    def _change(
        self,
        parameters: Sequence[Parameter],
        gradients: Sequence[tf.Tensor],
        squares: Sequence[tf.Tensor] | None,
        live: Mapping[str, tf.Tensor],
        compiled: bool,
        touched: Mapping[str, tf.Tensor],
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Steps 6 to 10."""
        gradients = clipping.clip(  # 6
            gradients,
            squares,
            clipvalue=self.clipvalue,
            clipnorm=self.clipnorm,
            global_clipnorm=self.global_clipnorm,
        )
        constants = {  # 7
            dtype: self._constants(dtype, live, compiled)
            for dtype in {parameter.dtype for parameter in parameters}
        }
        for parameter, gradient in zip(parameters, gradients, strict=True):
            update = functools.partial(  # 8 and 9
                self._update_variable,
                parameter,
                gradient,
                constants[parameter.dtype],
                compiled,
            )
            if parameter.key in touched:
                tf.cond(touched[parameter.key], update, lambda: True)
            else:
                update()
        self.counters.count_update()  # 10
        norm = tf.constant(float("nan"))
        if squares is not None:
            norm = tf.cast(clipping.global_norm(squares), tf.float32)
        return tf.constant(True), norm

    def _constants(
        self, dtype: tf.DType, live: Mapping[str, tf.Tensor], compiled: bool
    ) -> _Constants:
        """Step 7: everything of a step that is not of one variable."""
        calls = self.counters.calls(self.gradient_accumulation_steps or 1)
        values = {
            name: self.hyperparameters.value(name, dtype, calls, live)
            for name in HYPERPARAMETERS
        }
        iterations = tf.identity(self.counters.iterations)
        if not compiled:
            values = fused.as_ops_see(values, iterations, dtype)
        due = None
        if self.use_ema and self.ema_overwrite_frequency is not None:
            due = averaging.overwrite_due(
                iterations, self.ema_overwrite_frequency
            )
        return _Constants(
            step_scalars(iterations=iterations, dtype=dtype, **values),
            (values["beta_1"], values["beta_2"]),
            due,
        )

    def _update_variable(
        self,
        parameter: Parameter,
        gradient: tf.Tensor,
        constants: _Constants,
        compiled: bool,
    ) -> bool:
        """Steps 8 and 9 for one variable."""
        variable, slots = parameter.variable, self.slots[parameter.key]
        arguments = (
            variable,
            slots["momentum"],
            slots["velocity"],
            slots.get("velocity_max"),
            gradient,
            constants.scalars,
        )
        treatment = {
            "decayed": parameter.decayed,
            "multiplier": parameter.multiplier,
        }
        if not compiled and fused.serves(variable, slots["momentum"]):
            fused.update(*arguments, constants.betas, **treatment)
        else:
            new = update_rule.update(*arguments, **treatment)
            update_rule.assign(variable, slots, new)
        if self.use_ema:
            average = slots["average"]
            averaging.average(average, variable, self.ema_momentum)
            if constants.due is not None:
                averaging.overwrite(
                    average, variable, constants.due, compiled=compiled
                )
        return True


def _not_applied() -> tuple[tf.Tensor, tf.Tensor]:
    return tf.constant(False), tf.constant(float("nan"))
