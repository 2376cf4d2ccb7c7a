"""One step: which program runs where, and what goes between replicas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_adamw import aggregation, pairing, replicas, rows, sharding
from tf_adamw.compilation import (
    FUSED,
    INLINE,
    XLA,
    Given,
    choose_mode,
    many_and_small,
)
from tf_adamw.dtypes import arithmetic_dtype, widest
from tf_adamw.keys import as_list, raw_variable
from tf_adamw.norms import Outcome
from tf_adamw.patterns import Selection
from tf_adamw.registry import Parameter
from tf_adamw.window import WindowState


class ApplyResult(NamedTuple):
    """What one step did.

    Attributes:
      applied: bool scalar tensor: whether the weights were updated. False on
        a micro-step that only accumulates, and when `skip_nonfinite` or a
        dynamic loss scale skipped. The same on every replica.
      grad_norm: float32 scalar tensor: the global norm of the reduced
        gradients before the clipping, where a clip by norm computes it,
        otherwise None. NaN where `applied` is False.
      update_norm: by the names of `norm_groups` float32 scalar tensors: the
        norm of the change of the group's weights, decay included, before an
        average overwrites them. NaN where `applied` is False. Without
        `norm_groups` None.
      weight_norm: likewise the norm of the group's weights after it.
    """

    applied: tf.Tensor
    grad_norm: tf.Tensor | None = None
    update_norm: dict[str, tf.Tensor] | None = None
    weight_norm: dict[str, tf.Tensor] | None = None

    def _as_graph_element(self) -> tf.Tensor:
        # `tf.control_dependencies` asks for this; `tfp.math.minimize` passes
        # it what `apply_gradients` returned.
        return self.applied


class Step(WindowState):
    """The state, and `apply`, which does one step on it."""

    jit_compile: bool | str
    sparse_updates: str

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

        What comes after the aggregation is one program, on each replica; the
        division by the loss scale, too, where nothing is accumulated. State
        that does not exist yet is created first.

        Under a strategy of several replicas this is called by each of them,
        within `strategy.run`; also in the strategy's scope where they share
        one copy of the variables (CentralStorageStrategy).

        Args:
          grads: for each variable a tensor of its shape and dtype, an
            `IndexedSlices`, or None; not all None. On each replica those of
            its own part of the batch; None for the same variables on all. Of a
            variable in shards, a list of theirs will do.
          trainable_variables: the variables, in any order, not necessarily all
            that were built; without it those passed to `build`, in order.

        Returns:
          An `ApplyResult`.

        Raises:
          ValueError: if gradients and variables do not fit each other, the
            variables belong to another strategy than the current one, or
            `jit_compile` is True where XLA cannot serve. Nothing has changed
            then.
          TypeError: if a dtype does not fit, likewise.
        """
        grads, variables = sharding.flat(
            as_list("grads", grads),
            self._those_given(trainable_variables),
            self._registry.name,
            lazy=self._lazy,
        )
        raw = [raw_variable(variable) for variable in variables]
        enter = replicas.strategy_to_enter(raw, self._registry.name)
        if enter is not None:
            return enter.run(lambda: self.apply(grads, variables))
        if any(map(replicas.central, raw)):
            return self._apply_to_one_copy(grads, variables)
        gradients = self._pair(grads, variables)  # 1
        if aggregation.needed(self.aggregation):
            aggregation.check_agreement(
                frozenset(raw[place].ref() for place in gradients), raw
            )
        elif replicas.several():
            aggregation.check_not_exported(raw)
        return self._apply_paired(gradients, variables)

    @property
    def _lazy(self) -> bool:
        return self.sparse_updates == "lazy"

    def _pair(
        self, grads: Sequence[Any], variables: Sequence[Any]
    ) -> dict[int, tf.Tensor | tf.IndexedSlices]:
        """Step 1."""
        return pairing.pair(grads, variables, self._registry, lazy=self._lazy)

    def _apply_to_one_copy(
        self, grads: Sequence[Any], variables: Sequence[Any]
    ) -> ApplyResult:
        """Step 4, and then all others: several replicas, one copy."""
        strategy = tf.distribute.get_strategy()
        context = tf.distribute.get_replica_context()
        if context is None:
            paired = [
                self._pair(given, variables)  # 1
                for given in aggregation.by_replica(strategy, grads)
            ]
            return self._apply_merged(strategy, paired, variables)
        paired = self._pair(grads, variables)  # 1
        aggregation.check_agreement(
            frozenset(raw_variable(variables[p]).ref() for p in paired), ()
        )

        def merged(_: Any, *gradients: Any) -> ApplyResult:
            every = [
                dict(zip(paired, given, strict=True))
                for given in aggregation.by_replica(strategy, gradients)
            ]
            return self._apply_merged(strategy, every, variables)

        given = tuple(aggregation.own(paired.values()))
        with aggregation.refusals_in_a_line(strategy):
            return context.merge_call(merged, args=given)

    def _apply_merged(
        self,
        strategy: tf.distribute.Strategy,
        paired: Sequence[Mapping[int, tf.Tensor]],
        variables: Sequence[Any],
    ) -> ApplyResult:
        """Steps 4, 2, 3 and 5 to 10, given the gradients of each replica."""
        places = list(paired[0])
        if any(list(given) != places for given in paired):
            raise ValueError(aggregation.different_gradients(strategy))
        reduced = aggregation.merge(  # 4
            strategy,
            [[given[place] for given in paired] for place in places],
            [raw_variable(variables[place]) for place in places],
            self.aggregation,
        )
        return self._apply_paired(
            dict(zip(places, reduced, strict=True)), variables
        )

    def _apply_paired(
        self, gradients: Mapping[int, tf.Tensor], variables: Sequence[Any]
    ) -> ApplyResult:
        """Steps 2 to 10, on gradients by their place in the variables."""
        device = raw_variable(variables[next(iter(gradients))]).device
        found = [self._registry.find(variable) for variable in variables]
        mode = choose_mode(
            self.jit_compile,
            self._devices(variables[p] for p in gradients),
            ops_are_faster=self._ops_are_faster(gradients, variables, found),
        )
        live = self._live_values(
            widest(arithmetic_dtype(g.dtype) for g in gradients.values()),
            None if mode == FUSED else device,
        )
        if None in found:
            self.build(
                [v for v, f in zip(variables, found, strict=True) if f is None]
            )
            found = [self._registry.get(variable) for variable in variables]
        if not tf.executing_eagerly():
            self._traced_by_caller = True
        # In one order, so that another order of the variables is no other
        # program.
        pairs = sorted(
            ((found[place], gradient) for place, gradient in gradients.items()),
            key=lambda pair: pair[0].identity,
        )
        parameters, ordered = zip(*pairs, strict=True)
        accumulates = self.gradient_accumulation_steps is not None
        step = self._micro_step if accumulates else self._one
        # A TPU program has no room for them.
        checks = (
            []
            if mode == INLINE
            else pairing.row_checks(gradients, variables, self._registry)
        )
        with tf.control_dependencies(checks):
            outcome = step(mode, parameters, ordered, live)
        watched = bool(self._norm_groups.names)
        return ApplyResult(
            outcome.applied,
            outcome.grad_norm if self._by_norm else None,
            outcome.update_norm if watched else None,
            outcome.weight_norm if watched else None,
        )

    def _one(
        self,
        mode: str,
        parameters: Sequence[Parameter],
        gradients: Sequence[tf.Tensor | tf.IndexedSlices],
        live: Mapping[str, tf.Tensor],
    ) -> Outcome:
        """Steps 2 to 10 without accumulation."""
        given = Given(parameters, frozenset(), mode != FUSED)
        if aggregation.needed(self.aggregation):
            # Before step 2, which the program then does in its own pass over
            # memory: the sum of scaled gradients is the scaled sum.
            gradients = aggregation.reduce(gradients, self.aggregation)  # 4
        if mode == XLA:
            gradients = list(map(rows.for_compiling, parameters, gradients))
        return self._programs.run(mode, self._update, given, gradients, live)

    def _devices(self, variables: Iterable[Any]) -> set[str]:
        """The devices of all variables that the step writes."""
        touched = [raw_variable(variable) for variable in variables]
        built = self._registry.parameters
        window = self.gradient_accumulation_steps
        # The norms of a group are of those without a gradient, too.
        touched += [p.variable for p in built if window or p.groups]
        if built:  # `build`, if it is still to come, moves it
            touched.append(self.counters.iterations)
        return {variable.device for variable in touched}

    def _ops_are_faster(
        self,
        gradients: Mapping[int, tf.Tensor | tf.IndexedSlices],
        variables: Sequence[Any],
        found: Sequence[Parameter | None],
    ) -> bool:
        """What "auto" goes by where XLA would serve."""
        if self.jit_compile != "auto":
            return False
        if self._more_by_variable:
            # Norms of a group are of whole tables, which XLA fuses.
            unfit = self.amsgrad or self._norm_groups.names or not self._lazy
            return not unfit and rows.slow_in_xla(
                (raw_variable(variables[p]), g) for p, g in gradients.items()
            )
        new = [
            raw_variable(variable)
            for variable, parameter in zip(variables, found, strict=True)
            if parameter is None
        ]
        built = self._registry.parameters
        sizes = [parameter.elements for parameter in built]
        # `build`, still to come, refuses unknown shapes.
        sizes += [variable.shape.num_elements() or 0 for variable in new]
        return many_and_small(sizes) and all(
            variable.dtype == arithmetic_dtype(variable.dtype)
            for variable in [*(p.variable for p in built), *new]
        )

    @property
    def _more_by_variable(self) -> bool:
        """Whether a variable takes more operations than those of the ops."""
        factors = (self._multipliers, self._decay_multipliers)
        return bool(
            self.amsgrad  # has no op in a caller's program for XLA
            or self.use_ema
            or self.gradient_accumulation_steps
            or self._lazy
            or self._norm_groups.names
            or any([*m.variables()] for m in factors)
        )

    def _live_values(
        self, dtype: tf.DType, device: str | None
    ) -> dict[str, tf.Tensor]:
        """The scalars that a program on `device` cannot read by itself."""
        live = self.hyperparameters.live_values(dtype, device)
        for multipliers in (self._multipliers, self._decay_multipliers):
            for name, factor in multipliers.variables():
                if factor.device != device:
                    live[name] = tf.cast(tf.identity(factor), dtype)
        return live

    def _treat(
        self, parameters: Sequence[Parameter], exclusions: Selection
    ) -> None:
        super()._treat(parameters, exclusions)
        self._programs.clear()
