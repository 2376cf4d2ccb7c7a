"""The part of a step that is compiled: steps 2 and 5 to 10 in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from tf_adamw import (
    aggregation,
    averaging,
    clipping,
    decay,
    finite,
    fused,
    loss_scale,
    norms,
    placement,
    replicas,
    rows,
)
from tf_adamw.compilation import Given, one_side_of
from tf_adamw.hyperparameters import NAMES as HYPERPARAMETERS
from tf_adamw.norms import Outcome
from tf_adamw.scalars import step_scalars
from tf_adamw.state import OptimizerState
from tf_adamw.variable_step import Call, VariableSteps, takes_part


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
        gradients: Sequence[tf.Tensor | tf.IndexedSlices],
        live: Mapping[str, tf.Tensor],
    ) -> Outcome:
        """Steps 2 and 5 to 10 on the reduced gradients."""
        found, dense = {}, []
        for parameter, gradient in zip(
            given.parameters, gradients, strict=True
        ):
            if isinstance(gradient, tf.IndexedSlices):
                with placement.beside(parameter.variable):
                    of_rows = rows.combined(gradient)
                found[parameter.identity] = of_rows
                gradient = of_rows.gradient
            dense.append(gradient)
        divisor = aggregation.divisor(self.aggregation)
        return self._check_and_change(
            Call(given, live, rows=found),
            lambda: self._unscaled(dense, divisor),
        )

    def _check_and_change(
        self, call: Call, compute: Callable[[], Sequence[tf.Tensor]]
    ) -> Outcome:
        """Steps 5 to 10 on the gradients that `compute` returns."""
        given, gradients = call.given, compute()
        squares = None
        if self._by_norm:
            squares = beside_each(given, clipping.squared_norm, gradients)

        def change(gradients: Sequence[tf.Tensor] = gradients) -> Outcome:
            return self._change(call, gradients, squares)

        if self.skip_nonfinite or self._dynamic is not None:
            # Squares of gradients that are not finite are not, either.
            checked = gradients if squares is None else squares
            verdicts = beside_each(given, finite.all_finite, checked)  # 5
            good = tf.reduce_all(verdicts)
        elif call.unwritten and squares is not None:
            # Always so: else the compiler would write to a temporary what
            # both the norms and the update read.
            good = ~tf.reduce_any([square < 0 for square in squares])
        else:
            return change()
        if replicas.is_tpu(tf.distribute.get_strategy()):
            return one_side_of(good, lambda: change(compute()), self._skip)
        return tf.cond(good, change, self._skip)

    def _skip(self) -> Outcome:
        if self._dynamic is not None:
            scale = loss_scale.after_bad_update(self._scale, self._dynamic)
            replicas.assign(self.hyperparameters.loss_scale, scale)
            self.counters.assign_good_updates(0)
        return norms.not_applied(self._norm_groups.names)

    def _change(
        self,
        call: Call,
        gradients: Sequence[tf.Tensor],
        squares: Sequence[tf.Tensor] | None,
    ) -> Outcome:
        """Steps 6 to 10."""
        given = call.given
        clipped = clipping.clip(  # 6
            gradients,
            squares,
            [parameter.key for parameter in given.parameters],
            clipvalue=self.clipvalue,
            clipnorm=self.clipnorm,
            global_clipnorm=self.global_clipnorm,
        )
        constants = {  # 7
            dtype: self._constants(dtype, call)
            for dtype in {parameter.dtype for parameter in given.parameters}
        }
        factors = {
            "multiplier": self._multipliers,
            "decay_multiplier": self._decay_multipliers,
        }
        momentum = self.ema_momentum if self.use_ema else None
        steps, measured = VariableSteps(call, factors, momentum), {}
        for parameter, gradient, unclipped in zip(
            given.parameters, clipped, gradients, strict=True
        ):
            measured[parameter.identity] = steps.update(  # 8 and 9
                parameter,
                {"gradient": gradient, **constants[parameter.dtype]},
                takes_part(given, parameter, unclipped),
            )
        self._count()  # 10
        norm = tf.constant(float("nan"))
        if squares is not None:
            norm = tf.cast(clipping.global_norm(squares), tf.float32)
        watched = norms.of_groups(
            self._norm_groups.names, self._registry.parameters, measured
        )
        return Outcome(tf.constant(True), norm, *watched)

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

    def _constants(self, dtype: tf.DType, call: Call) -> dict[str, tf.Tensor]:
        """Step 7: everything of a step that is not of one variable."""
        calls = self.counters.calls(
            self.gradient_accumulation_steps, call.position
        )
        values = {
            name: self.hyperparameters.value(name, dtype, calls, call.live)
            for name in HYPERPARAMETERS
        }
        updates = self.counters.updates()
        constants = {}
        if not call.given.compiled:
            values = fused.as_ops_see(values, updates, dtype)
            constants.update(fused.betas(values, dtype))
        if self.use_ema and self.ema_overwrite_frequency is not None:
            constants["due"] = averaging.overwrite_due(
                updates, self.ema_overwrite_frequency
            )
        factor = decay.factor(
            self.decay_coupling,
            values["learning_rate"],
            self.base_learning_rate,
        )
        scalars = step_scalars(
            iterations=updates, dtype=dtype, decay_factor=factor, **values
        )
        return {**constants, **scalars._asdict()}


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
