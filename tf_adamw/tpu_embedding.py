"""AdamW for the embedding tables of a TPU's embedding hardware."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import tensorflow as tf

from tf_adamw.dtypes import scalar
from tf_adamw.scalars import one_minus_power, update_number

if TYPE_CHECKING:
    from tf_adamw.adamw import AdamW

# What the hardware has nothing like, and the value that does without it.
WITHOUT = {
    "amsgrad": False,
    "clipnorm": None,
    "global_clipnorm": None,
    "use_ema": False,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
    "skip_nonfinite": False,
}

# What the hardware is told once, when `TPUEmbedding` is built.
CONSTANTS = ("weight_decay", "beta_1", "beta_2", "epsilon")


@dataclasses.dataclass(frozen=True)
class CorrectedRate:
    """The learning rate of the next update, times the bias correction.

    All those of one optimizer are equal: the tables that they are given to
    share one dynamic learning rate, which is faster.

    Attributes:
      optimizer: the `AdamW`.
    """

    optimizer: AdamW

    def __call__(self) -> tf.Tensor:
        """Returns `alpha` as a float32 scalar."""
        optimizer = self.optimizer
        iterations = tf.cast(optimizer.iterations, tf.int32)
        t = update_number(iterations, tf.float32)
        correction_1 = one_minus_power(optimizer.beta_1, t)
        correction_2 = one_minus_power(optimizer.beta_2, t)
        rate = scalar(optimizer.learning_rate, tf.float32)
        return rate * tf.sqrt(correction_2) / correction_1


def as_tpu_embedding_optimizer(
    optimizer: AdamW,
) -> tf.tpu.experimental.embedding.Adam:
    """Returns the optimizer of TPU embeddings that is most like an `AdamW`.

    Let `g` be the gradient of a table, summed over the batch and the replicas
    and cut to `[-clipvalue, clipvalue]`. One step, on all rows or, with
    `sparse_updates="lazy"`, on those that were looked up:

    ```none
    m <- beta_1 * m + (1 - beta_1) * g
    v <- beta_2 * v + (1 - beta_2) * g^2
    alpha = lr * sqrt(1 - beta_2^t) / (1 - beta_1^t),  t = iterations + 1
    w <- w - decay * w - alpha * m / (sqrt(v) + epsilon)

    decay_coupling     decay here            AdamW's
    "learning_rate"    rate * wd             lr * wd
    "schedule"         rate * wd / lr_base   lr * wd / lr_base
    "none"             wd                    wd
    ```

    The hardware counts no updates. `alpha` is a callable, which reads the
    optimizer's `learning_rate` and `iterations` in
    `TPUEmbedding.apply_gradients`. So call that before the optimizer's own
    `apply` in each step. An optimizer without variables of its own counts
    nothing: add one to its `iterations` after each step.

    What else differs:

    * `rate` is `lr` as it is now, if it was given as a number and is above 0.
      The decay is exact then, until `learning_rate` is assigned: `alpha`
      follows, the decay does not.
    * Else, also for a `tf.Variable`, `rate` is `alpha`: the hardware multiplies
      by the rate that it is given. `alpha / lr` is 0.32 at first, 0.15 at t =
      12, 0.80 at t = 1000 and above 0.99 from t = 3916, with the default betas.
      At a constant rate the decay of some `0.61 / (1 - beta_2)` updates is
      missing in all: 611 with the defaults. After 300 updates at 0.01, without
      gradients and with a `wd` of 0.1, a weight of 1 is 0.90 in place of 0.74.
    * It holds both betas and `1 - beta` in float32: `v` is off by up to 3e-5,
      relative, for a `beta_2` of 0.999.
    * `weight_decay` is read here: tables do not follow a later assignment.
    * Tables are no variables of the optimizer: exclusions from the weight
      decay and multipliers, which select among those, do not reach them.
    * Gradients of the replicas are summed, whatever `aggregation` says. Only
      `epsilon` and `clipvalue` make a difference between sum and mean.
    * `TPUEmbeddingV2` (SparseCore) always updates only the rows that were
      looked up, does not clip, and refuses a weight decay.

    With `sum_inside_sqrt` of the result set to True, before it is used, the
    hardware is faster and divides by `sqrt(v + epsilon^2)`.

    Args:
      optimizer: the `AdamW`; its `learning_rate` can be of any kind.

    Returns:
      A `tf.tpu.experimental.embedding.Adam`, for `TPUEmbedding` or
      `TableConfig`.

    Raises:
      ValueError: if the optimizer does what the hardware cannot, or
        `weight_decay`, a beta or `epsilon` is no number, or in a `tf.function`.

    References:
      AdamParameters: https://github.com/tensorflow/tensorflow/blob/v2.20.0/
        tensorflow/core/protobuf/tpu/optimization_parameters.proto
      https://www.tensorflow.org/api_docs/python/tf/tpu/experimental/embedding/Adam
    """
    _check(optimizer)
    decay, coupled = _decay(optimizer)
    return tf.tpu.experimental.embedding.Adam(
        learning_rate=CorrectedRate(optimizer),
        beta_1=optimizer.beta_1,
        beta_2=optimizer.beta_2,
        epsilon=optimizer.epsilon,
        lazy_adam=optimizer.sparse_updates == "lazy",
        sum_inside_sqrt=False,
        use_gradient_accumulation=True,
        # `TPUEmbeddingV2` refuses 0 and False.
        weight_decay_factor=decay or None,
        multiply_weight_decay_factor_by_learning_rate=(
            coupled if decay else None
        ),
        clipvalue=optimizer.clipvalue,
        # The default, False: protobuf 7 takes no bool for what is an enum.
        low_dimensional_packing_status=0,
    )


def _decay(optimizer: AdamW) -> tuple[float, bool]:
    """Returns the factor, and whether the hardware multiplies it by `alpha`."""
    held = optimizer.hyperparameters
    factor = held.plain("weight_decay")
    if optimizer.decay_coupling == "none":
        return factor, False
    if optimizer.decay_coupling == "schedule":
        factor /= optimizer.base_learning_rate
    # A rate of 0 is to be assigned.
    rate = held.plain("learning_rate") if held.owns("learning_rate") else 0.0
    return (factor * rate, False) if rate else (factor, True)


def _check(optimizer: AdamW) -> None:
    if not tf.executing_eagerly():
        raise ValueError(
            "as_tpu_embedding_optimizer() must be called outside of a "
            "tf.function."
        )
    for name, accepted in WITHOUT.items():
        given = getattr(optimizer, name)
        if given != accepted:
            raise ValueError(
                f"{name} must be {accepted} for TPU embeddings, whose hardware "
                f"has nothing like it, got {given!r}."
            )
    for name in CONSTANTS:
        held = getattr(optimizer.hyperparameters, name)
        if not isinstance(held, float) and not optimizer.hyperparameters.owns(
            name
        ):
            raise ValueError(
                f"{name} must be a number for TPU embeddings, whose hardware "
                f"is told it once, got {held!r}."
            )
