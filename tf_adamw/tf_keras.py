"""AdamW for `model.compile` of tf_keras, which is Keras 2.

This module imports tf_keras; `import tf_adamw` does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf
import tf_keras

import tf_adamw
from tf_adamw import aggregation
from tf_adamw.adapter import Adapter


@tf_keras.saving.register_keras_serializable("tf_adamw")
class AdamW(Adapter, tf_keras.optimizers.Optimizer):
    """`tf_adamw.AdamW` as an optimizer of tf_keras.

    For `model.compile`, and wherever tf_keras wants an optimizer of its own.
    Files (`.keras`, checkpoints of `save_weights`) hold the whole state.

    A model of the policy "mixed_float16" is compiled with a
    `LossScaleOptimizer` around it: give it no `loss_scale_factor` then.

    Args:
      *args: those of `tf_adamw.AdamW`.
      **kwargs: likewise. `aggregation` stays "sum" for `fit`: its losses are
        parts of the whole batch's.

    Attributes:
      adamw: the `tf_adamw.AdamW` that does the work.

    Raises:
      ValueError: as `tf_adamw.AdamW`.
    """

    _saving = tf_keras.saving

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("adamw")
        self._set_up(tf_adamw.AdamW(*args, **kwargs))

    @property
    def _is_wrapped_by_loss_scale_optimizer(self) -> bool:
        return self._wrapped

    @_is_wrapped_by_loss_scale_optimizer.setter
    def _is_wrapped_by_loss_scale_optimizer(self, wrapped: bool) -> None:
        """`LossScaleOptimizer` reduces the gradients: they are not to be."""
        if self.adamw.loss_scale_factor is not None:
            raise ValueError(
                "The loss would be scaled twice: loss_scale_factor is "
                f"{self.adamw.loss_scale_factor}, and a LossScaleOptimizer "
                "scales, too: leave loss_scale_factor out."
            )
        if self.adamw.aggregation == "mean":
            raise ValueError(
                'A LossScaleOptimizer sums gradients: aggregation is "mean", '
                'and has to be "sum".'
            )
        if self.adamw.aggregation != "none":
            if self.adamw.parameters:
                raise ValueError(
                    "A LossScaleOptimizer has to be there before the optimizer "
                    "is built."
                )
            # Fixed for all others: nothing has been made for it yet.
            vars(self.adamw)["aggregation"] = "none"
        self._wrapped = wrapped

    def build(self, var_list: Iterable[Any]) -> None:
        """Creates the state of the variables that have none yet.

        Raises:
          ValueError: as `tf_adamw.AdamW.build`.
        """
        self._build(var_list)
        self._built = True

    @tf.autograph.experimental.do_not_convert
    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        name: str | None = None,
        skip_gradients_aggregation: bool = False,
        experimental_aggregate_gradients: bool = True,
    ) -> tf.Variable:
        """Does one step: `tf_adamw.AdamW.apply_gradients`, then constraints.

        Args:
          grads_and_vars: pairs of gradient and variable.
          name: not used.
          skip_gradients_aggregation: says that the gradients are reduced
            already; needs `aggregation="none"`.
          experimental_aggregate_gradients: the opposite.

        Returns:
          `iterations`.

        Raises:
          ValueError: as `tf_adamw.AdamW.apply`, and if the gradients would be
            reduced again.
        """
        del name
        reduced = (
            skip_gradients_aggregation or not experimental_aggregate_gradients
        )
        if reduced and aggregation.needed(self.adamw.aggregation):
            raise ValueError(
                "Gradients that are reduced already need "
                'AdamW(aggregation="none"), and aggregation is '
                f"{self.adamw.aggregation!r}."
            )
        grads, variables = zip(*grads_and_vars, strict=True)
        self.build(variables)
        self._apply(grads, variables)
        return self.iterations

    def compute_gradients(
        self,
        loss: tf.Tensor | Callable[[], tf.Tensor],
        var_list: Any,
        tape: tf.GradientTape | None = None,
    ) -> list[tuple[Any, Any]]:
        """The gradients, multiplied by the loss scale, for `apply_gradients`.

        Args:
          loss: the loss, or a callable without arguments that returns it.
          var_list: the variables, or a callable that returns them.
          tape: recorded the loss; not needed for a callable.

        Returns:
          Pairs of gradient and variable.

        Raises:
          ValueError: if `loss` is a tensor and there is no tape.
        """
        scale = self.adamw.scale_loss
        if callable(loss):
            return super().compute_gradients(
                lambda: scale(loss()), var_list, tape
            )
        if tape is not None:
            with tape:
                loss = scale(loss)
        return super().compute_gradients(loss, var_list, tape)

    @property
    def variables(self) -> list[tf.Variable]:
        """All variables of the state."""
        # tf_keras's own list, which can be called, as it was in Keras 2.10.
        kind = type(super().variables)
        return kind(self._state().values())
