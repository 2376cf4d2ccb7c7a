"""The part of a step that is compiled: steps 2 and 5 to 10 in order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from tf_adamw import (
    aggregation,
    averaging,
    clipping,
    finite,
    fused,
    loss_scale,
    one_pass,
    placement,
    replicas,
    variable_update,
)
from tf_adamw.compilation import Given, one_side_of
from tf_adamw.dtypes import scalar
from tf_adamw.handles import Alike
from tf_adamw.hyperparameters import NAMES as HYPERPARAMETERS
from tf_adamw.registry import Parameter
from tf_adamw.scalars import step_scalars
from tf_adamw.state import OptimizerState

Outcome = tuple[tf.Tensor, tf.Tensor]  # applied, norm of the gradients


class ProgramState(OptimizerState):
    """The state, and the programs that change it, on one replica."""

    skip_nonfinite: bool
    loss_scale_factor: float | loss_scale.DynamicLossScale | None
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    ema_momentum: float
    ema_overwrite_frequency: int | None

    @property
    def loss_scale(self) -> tf.Tensor | None:
        """What `scale_loss` multiplies by, a float32 scalar, or None."""
        scale = self._scale
        return None if scale is None else tf.convert_to_tensor(scale)

    @property
    def _dynamic(self) -> loss_scale.DynamicLossScale | None:
        rule = self.loss_scale_factor
        return rule if isinstance(rule, loss_scale.DynamicLossScale) else None

    @property
    def _scale(self) -> float | tf.Tensor | None:
        if self._dynamic is None:
            return self.loss_scale_factor
        self._settle()
        return tf.convert_to_tensor(self.hyperparameters.loss_scale)

    @property
    def _by_norm(self) -> bool:
        return self.clipnorm is not None or self.global_clipnorm is not None

    def _unscaled(
        self, gradients: Sequence[tf.Tensor], divisor: int = 1
    ) -> list[tf.Tensor]:
        if divisor != 1:
            # A factor, and first: XLA multiplies two divisors, and the product
            # with a large loss scale is more than float32 holds.
            gradients = [gradient * (1 / divisor) for gradient in gradients]
        return loss_scale.unscale(gradients, self._scale)

    def _update(
        self,
        given: Given,
        gradients: Sequence[tf.Tensor],
        live: Mapping[str, tf.Tensor],
    ) -> Outcome:
        """Steps 2 and 5 to 10 on the reduced gradients."""
        divisor = aggregation.divisor(self.aggregation)
        return self._check_and_change(
            given, lambda: self._unscaled(gradients, divisor), live
        )

    def _check_and_change(
        self,
        given: Given,
        compute: Callable[[], Sequence[tf.Tensor]],
        live: Mapping[str, tf.Tensor],
        position: tf.Tensor | None = None,
    ) -> Outcome:
        """Steps 5 to 10 on the gradients that `compute` returns."""
        gradients = compute()
        squares = None
        if self._by_norm:
            squares = beside_each(given, clipping.squared_norm, gradients)

        def change(gradients: Sequence[tf.Tensor] = gradients) -> Outcome:
            return self._change(given, gradients, squares, live, position)

        if not self.skip_nonfinite and self._dynamic is None:
            return change()
        # Squares of gradients that are not finite are not finite either.
        checked = gradients if squares is None else squares
        verdicts = beside_each(given, finite.all_finite, checked)  # 5
        good = tf.reduce_all(verdicts)
        if replicas.is_tpu(tf.distribute.get_strategy()):
            return one_side_of(good, lambda: change(compute()), self._skip)
        return tf.cond(good, change, self._skip)

    def _skip(self) -> Outcome:
        if self._dynamic is not None:
            scale = loss_scale.after_bad_update(self._scale, self._dynamic)
            replicas.assign(self.hyperparameters.loss_scale, scale)
            self.counters.assign_good_updates(0)
        return not_applied()

    def _change(
        self,
        given: Given,
        gradients: Sequence[tf.Tensor],
        squares: Sequence[tf.Tensor] | None,
        live: Mapping[str, tf.Tensor],
        position: tf.Tensor | None,
    ) -> Outcome:
        """Steps 6 to 10."""
        takes_part = list(
            map(
                functools.partial(_takes_part, given),
                given.parameters,
                gradients,
            )
        )
        clipped = clipping.clip(  # 6
            gradients,
            squares,
            [parameter.key for parameter in given.parameters],
            clipvalue=self.clipvalue,
            clipnorm=self.clipnorm,
            global_clipnorm=self.global_clipnorm,
        )
        constants = {  # 7
            dtype: self._constants(dtype, live, position, given.compiled)
            for dtype in {parameter.dtype for parameter in given.parameters}
        }
        alike = Alike()
        for parameter, gradient, takes in zip(
            given.parameters, clipped, takes_part, strict=True
        ):
            update = functools.partial(  # 8 and 9
                self._update_variable,
                alike,
                parameter,
                {"gradient": gradient, **constants[parameter.dtype]},
                self._multiplier(parameter, live),
                given.compiled,
            )
            if takes is True:
                update()
            else:
                tf.cond(takes, update, lambda: True)
        self._count()  # 10
        if squares is None:
            return tf.constant(True), tf.constant(float("nan"))
        norm = clipping.global_norm(squares)
        return tf.constant(True), tf.cast(norm, tf.float32)

    def _count(self) -> None:
        """Step 10."""
        self.counters.count_update()
        if self._dynamic is not None:
            scale, good_updates = loss_scale.after_good_update(
                self._scale,
                self.counters.good_updates_in_a_row(),
                self._dynamic,
            )
            replicas.assign(self.hyperparameters.loss_scale, scale)
            self.counters.assign_good_updates(good_updates)

    def _constants(
        self,
        dtype: tf.DType,
        live: Mapping[str, tf.Tensor],
        position: tf.Tensor | None,
        compiled: bool,
    ) -> dict[str, tf.Tensor]:
        """Step 7: everything of a step that is not of one variable."""
        calls = self.counters.calls(self.gradient_accumulation_steps, position)
        values = {
            name: self.hyperparameters.value(name, dtype, calls, live)
            for name in HYPERPARAMETERS
        }
        updates = self.counters.updates()
        constants = {}
        if not compiled:
            values = fused.as_ops_see(values, updates, dtype)
            constants.update(fused.betas(values, dtype))
        if self.use_ema and self.ema_overwrite_frequency is not None:
            constants["due"] = averaging.overwrite_due(
                updates, self.ema_overwrite_frequency
            )
        scalars = step_scalars(iterations=updates, dtype=dtype, **values)
        return {**constants, **scalars._asdict()}

    def _multiplier(
        self, parameter: Parameter, live: Mapping[str, tf.Tensor]
    ) -> float | tf.Tensor:
        """The factor on the learning rate of one variable."""
        for pattern, factor in self._multipliers.factors.items():
            if factor is parameter.multiplier:
                return live.get(multiplier_name(pattern), factor)
        return parameter.multiplier

    def _update_variable(
        self,
        alike: Alike,
        parameter: Parameter,
        tensors: Mapping[str, tf.Tensor],
        multiplier: float | tf.Tensor,
        compiled: bool,
    ) -> bool:
        """Steps 8 and 9 for one variable."""
        number = isinstance(multiplier, float)
        if not number:
            factor = scalar(multiplier, parameter.dtype)
            tensors = {**tensors, "multiplier": factor}
        treatment = variable_update.Treatment(
            compiled,
            compiled and one_pass.serves(parameter.variable, parameter.dtype),
            parameter.decayed,
            multiplier if number else None,
            self.ema_momentum if self.use_ema else None,
        )
        variables = {"weights": parameter.variable, **parameter.slots}
        variables.pop("accumulator", None)
        # The few nodes of the fused ops would not become fewer.
        alike.call(
            variable_update.update,
            treatment,
            variables,
            tensors,
            shared=compiled,
        )
        return True


def _takes_part(
    given: Given, parameter: Parameter, gradient: tf.Tensor
) -> bool | tf.Tensor:
    """Whether a variable is updated.

    One without a gradient in the last micro-step may have had one earlier in
    the window.
    """
    if parameter.identity not in given.touched_only:
        return True
    with placement.beside(parameter.variable):
        return tf.reduce_any(tf.not_equal(gradient, 0))


def beside_each(
    given: Given,
    function: Callable[[tf.Tensor], tf.Tensor],
    tensors: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    """Calls it for each variable's tensor, where the variable is."""
    results = []
    for parameter, tensor in zip(given.parameters, tensors, strict=True):
        with placement.beside(parameter.variable):
            results.append(function(tensor))
    return results


def multiplier_name(pattern: str) -> str:
    """The name under which a step is given the factor of a pattern."""
    return f"multiplier {pattern}"


def not_applied() -> Outcome:
    """What a step that changes no weight returns."""
    return tf.constant(False), tf.constant(float("nan"))
