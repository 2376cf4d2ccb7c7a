"""AdamW for `model.compile` of Keras 3, on its TensorFlow backend.

This module imports Keras; `import tf_adamw` does not. It has to be imported
before `keras.saving.load_model` meets a model that was compiled with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

import tf_adamw
from tf_adamw import averaging, replicas
from tf_adamw.adapter import Adapter
from tf_adamw.registry import Parameter
from tf_adamw.step import ApplyResult

_ONE_REPLICA = (
    "LossScaleOptimizer looks at one replica's gradients alone: give AdamW "
    'loss_scale_factor="dynamic".'
)
_NOT_WRAPPED_THEN = (
    "The file has no state within a LossScaleOptimizer, and {!r} in one "
    "stays as it is: a model of auto_scale_loss=False is loaded with "
    "compile=False, compiled so again, and load_weights(file) has its state."
)


class AdamW(Adapter, keras.optimizers.Optimizer):
    """`tf_adamw.AdamW` as an optimizer of Keras 3.

    For `model.compile`, and wherever Keras wants an optimizer of its own.
    Files (`.keras`, `.weights.h5`) hold the whole state.

    In a model of the policy "mixed_float16", `compile` puts it into a
    `LossScaleOptimizer`, which serves one replica; for several, give this
    `loss_scale_factor="dynamic"`, and `compile` leaves it alone.

    Args:
      *args: those of `tf_adamw.AdamW`.
      **kwargs: likewise. `aggregation` stays "sum" for `fit`: its losses are
        parts of the whole batch's.

    Attributes:
      adamw: the `tf_adamw.AdamW` that does the work.

    Raises:
      ValueError: as `tf_adamw.AdamW`, and if Keras has another backend.
    """

    _saving = keras.saving

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                "tf_adamw.keras.AdamW needs Keras on TensorFlow, and its "
                f"backend is {keras.backend.backend()!r}: set the environment "
                "variable KERAS_BACKEND to tensorflow before Keras is imported."
            )
        # A callable, so that Keras makes no variable for it.
        super().__init__(lambda: self.adamw.learning_rate)
        self._set_up(tf_adamw.AdamW(*args, **kwargs))
        if type(self) is AdamW and self.adamw.loss_scale_factor is not None:
            object.__setattr__(self, "__class__", _Scaling)
        object.__setattr__(self, "_as_keras", {})
        _ = self.variables

    def __setattr__(self, name: str, value: Any) -> None:
        # `LossScaleOptimizer` does this to the optimizer that it wraps.
        wraps = name == "loss_scale_factor" and value is None
        if not (wraps and "adamw" in vars(self)):
            super().__setattr__(name, value)
            return
        if self.adamw.loss_scale_factor is not None:
            raise ValueError(
                "The loss would be scaled twice: loss_scale_factor is "
                f"{self.adamw.loss_scale_factor}, and a LossScaleOptimizer "
                "scales, too: leave loss_scale_factor out, or the "
                "LossScaleOptimizer (compile: auto_scale_loss=False)."
            )
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise ValueError(_ONE_REPLICA)
        self._wrapped = True

    def build(self, variables: Iterable[Any]) -> None:
        """Creates the state of the variables that have none yet.

        Raises:
          ValueError: as `tf_adamw.AdamW.build`, and for a variable of a
            float8 layer that is set to its gradient.
        """
        variables = list(variables)
        for variable in variables:
            if getattr(variable, "overwrite_with_gradient", False):
                raise ValueError(
                    f"{variable.path!r} is set to its gradient, as float8 "
                    "layers want: AdamW does not do that."
                )
        self._build(variables)
        self.built = True
        object.__setattr__(self, "_trainable_variables", [*self._known])
        _ = self.variables

    @tf.autograph.experimental.do_not_convert
    def apply(
        self,
        grads: Sequence[Any],
        trainable_variables: Sequence[Any] | None = None,
    ) -> ApplyResult:
        """Does one step: `tf_adamw.AdamW.apply`, then constraints.

        Raises:
          ValueError: as `tf_adamw.AdamW.apply`, and of several replicas with
            a `LossScaleOptimizer`, which looks at the first replica's
            gradients alone.
        """
        if self._wrapped and replicas.several():
            raise ValueError(_ONE_REPLICA)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        return self._apply(grads, trainable_variables)

    @tf.autograph.experimental.do_not_convert
    def apply_gradients(
        self, grads_and_vars: Iterable[tuple[Any, Any]]
    ) -> keras.Variable:
        """Does one step: `apply` for pairs of gradient and variable.

        Returns:
          `iterations`.
        """
        grads, variables = zip(*grads_and_vars, strict=True)
        self.apply(grads, variables)
        return self.iterations

    def scale_loss(self, loss: Any) -> Any:
        """As `tf_adamw.AdamW.scale_loss`."""
        return self.adamw.scale_loss(loss)

    def load_own_variables(self, store: Any) -> None:
        """Gets the state from a file; before `build`, it waits.

        Raises:
          ValueError: if it is the state of other variables, or of another
            optimizer. Nothing has changed then.
        """
        if self._wrapped and not list(store.keys()):
            warnings.warn(_NOT_WRAPPED_THEN.format(self.name), stacklevel=2)
        else:
            super().load_own_variables(store)

    @property
    def variables(self) -> list[keras.Variable]:
        """All variables of the state."""
        return [self._shown(v, name) for name, v in self._state().items()]

    def _shown(self, value: Any, name: str) -> Any:
        if not isinstance(value, tf.Variable):
            return value
        ref = value.ref()
        if ref not in self._as_keras:
            with keras.name_scope(self.name):
                name = name.replace("/", "_")
                self._as_keras[ref] = keras.Variable(
                    value, trainable=False, name=name
                )
        return self._as_keras[ref]

    @property
    def _model_variables_moving_average(self) -> list[keras.Variable]:
        """What `keras.callbacks.SwapEMAWeights` swaps the weights with."""
        if not self.use_ema:
            raise AttributeError("There are no averages without use_ema=True.")
        of = {p.variable.ref(): p for p in self.adamw.parameters}
        return [_Average(of[v.value.ref()]) for v in self._known]


class _Scaling(AdamW, keras.optimizers.LossScaleOptimizer):
    """One with a `loss_scale_factor`.

    `compile` wraps all but a `LossScaleOptimizer`, and so does `load_model`,
    since no file has `auto_scale_loss`. All that it does is AdamW's.
    """

    stateless_apply = keras.optimizers.Optimizer.stateless_apply


# Files say AdamW of both, which makes either from a configuration.
_Scaling.__name__ = _Scaling.__qualname__ = AdamW.__name__
for _kind in (_Scaling, AdamW):
    keras.saving.register_keras_serializable("tf_adamw")(_kind)


class _Average(keras.Variable):
    """An average whose value, before the first update, is the weights."""

    def __init__(self, parameter: Parameter) -> None:
        average = parameter.slots["average"]
        super().__init__(average, trainable=False, name="average")
        self._parameter = parameter

    @property
    def value(self) -> tf.Variable:
        """The average.

        Raises:
          ValueError: if the weights have another dtype.
        """
        weights, average = self._parameter.variable, super().value
        if weights.dtype != average.dtype:
            raise ValueError(
                f"{self._parameter.key!r} is {weights.dtype.name}, its average "
                f"{average.dtype.name}, and SwapEMAWeights cannot swap them: "
                "evaluate within optimizer.adamw.averaged_weights()."
            )
        for held, copy in zip(
            replicas.copies(average), replicas.copies(weights), strict=True
        ):
            replicas.assign(held, averaging.started(held, copy))
        return average
