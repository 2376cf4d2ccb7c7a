"""Steps with gradient accumulation: step 3, at the end of a window the rest."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import tensorflow as tf

from tf_adamw import accumulation, aggregation
from tf_adamw.compilation import FUSED, INLINE, Given, Programs, one_side_of
from tf_adamw.norms import Outcome, not_applied
from tf_adamw.program import ProgramState, beside_each
from tf_adamw.registry import Parameter
from tf_adamw.variable_step import Call


class WindowState(ProgramState):
    """The state, and what is done on it in a window of micro-steps."""

    _programs: Programs

    def _micro_step(
        self,
        mode: str,
        parameters: Sequence[Parameter],
        gradients: Sequence[tf.Tensor],
        live: Mapping[str, tf.Tensor],
    ) -> Outcome:
        """Steps 2 and 3, and at the end of the window the others."""
        compiled = mode != FUSED
        everyone = self._registry.parameters
        present = {parameter.identity for parameter in parameters}
        absent = frozenset(p.identity for p in everyone) - present
        window = Given(everyone, absent, compiled)
        reduces = aggregation.needed(self.aggregation)
        if mode == INLINE and not reduces:
            return self._micro_step_alone(window, parameters, gradients, live)
        self._programs.trace(
            mode,
            self._update_window,
            window,
            _specs(everyone) if reduces else None,
            tf.TensorSpec([], tf.int32),
            live,
        )
        position = self._programs.run(  # 2 and 3
            mode,
            self._accumulate,
            Given(parameters, frozenset(), compiled),
            gradients,
        )
        complete = position >= self.gradient_accumulation_steps - 1
        reduced = None
        if reduces and mode != INLINE:
            # With a device of their own, collectives may pack them.
            with tf.device(everyone[0].variable.device):
                sums = list(map(tf.identity, self._accumulators))
            reduced = aggregation.reduce_if(  # 4
                complete, sums, self.aggregation
            )

        def update() -> Outcome:
            sums = reduced
            if reduces and mode == INLINE:
                sums = aggregation.reduce(  # 4
                    self._accumulators, self.aggregation
                )
            return self._programs.run(  # 5 to 10
                mode, self._update_window, window, sums, position, live
            )

        return tf.cond(complete, update, self._only_accumulated)

    def _micro_step_alone(
        self,
        window: Given,
        parameters: Sequence[Parameter],
        gradients: Sequence[tf.Tensor],
        live: Mapping[str, tf.Tensor],
    ) -> Outcome:
        """`_micro_step` in a program for a TPU that reduces nothing.

        The window's last gradients are added up in the update's own pass over
        memory, and their sum is not written. Two conditionals, and not one: a
        buffer that one side writes and a later side passes on is copied.
        """
        position = self.counters.position()
        last = self.gradient_accumulation_steps - 1
        complete = position >= last
        self.counters.count_micro_step(position, last)
        mean = functools.partial(accumulation.window_mean, position, 1)

        def accumulate() -> tf.Tensor:
            accumulation.accumulate(  # 3
                self._accumulators,
                self._of_everyone(parameters, gradients),  # 2
                position,
                compiled=True,
            )
            return tf.constant(True)

        def means() -> list[tf.Tensor]:
            sums = accumulation.window_sums(  # 3
                self._accumulators,
                self._of_everyone(parameters, gradients),  # 2
                position,
            )
            return beside_each(window, mean, sums)

        one_side_of(~complete, accumulate, lambda: tf.constant(False))
        call = Call(window, live, position, unwritten=True)
        return one_side_of(
            complete,
            lambda: self._check_and_change(call, means),  # 5 to 10
            self._only_accumulated,
        )

    def _only_accumulated(self) -> Outcome:
        return not_applied(self._norm_groups.names)

    def _accumulate(
        self, given: Given, gradients: Sequence[tf.Tensor]
    ) -> tf.Tensor:
        """Steps 2 and 3. Returns the position in the window before it."""
        position = self.counters.position()
        accumulation.accumulate(  # 3
            self._accumulators,
            self._of_everyone(given.parameters, gradients),  # 2
            position,
            compiled=given.compiled,
        )
        last = self.gradient_accumulation_steps - 1
        self.counters.count_micro_step(position, last)
        return position

    def _update_window(
        self,
        given: Given,
        sums: Sequence[tf.Tensor] | None,
        position: tf.Tensor,
        live: Mapping[str, tf.Tensor],
    ) -> Outcome:
        """Steps 5 to 10 on the mean of a window that is complete.

        Without `sums` the accumulators have them.
        """
        if sums is None:
            sums = self._accumulators
        divisor = aggregation.divisor(self.aggregation)
        mean = functools.partial(accumulation.window_mean, position, divisor)
        return self._check_and_change(
            Call(given, live, position),
            lambda: beside_each(given, mean, sums),
        )

    def _of_everyone(
        self, parameters: Sequence[Parameter], gradients: Sequence[tf.Tensor]
    ) -> list[tf.Tensor | None]:
        """Step 2. For each variable of the optimizer its gradient, or None."""
        of = {
            parameter.identity: gradient
            for parameter, gradient in zip(
                parameters, self._unscaled(gradients), strict=True
            )
        }
        return [of.get(p.identity) for p in self._registry.parameters]

    @property
    def _accumulators(self) -> list[tf.Variable]:
        return [p.slots["accumulator"] for p in self._registry.parameters]


def _specs(parameters: Sequence[Parameter]) -> list[tf.TensorSpec]:
    return [tf.TensorSpec(p.variable.shape, p.dtype) for p in parameters]
