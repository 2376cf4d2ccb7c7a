"""The compiled training loop and the held-out evaluation."""

import math
from collections.abc import Callable, Iterator

import tensorflow as tf

from tf_adamw import AdamW
from tpu_scripts.lm_model import LanguageModel, next_byte_losses


def check_batch_size(batch_size: int, replicas: int) -> None:
    """Checks that each replica has as many examples as the others.

    Raises:
      ValueError: it has not.
    """
    if batch_size % replicas:
        raise ValueError(
            f"--batch_size={batch_size} is not a multiple of the number of "
            f"replicas, {replicas}"
        )


def train_step(
    model: LanguageModel,
    optimizer: AdamW,
    windows: tf.Tensor,
    batch_size: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """One step on one replica.

    Args:
      model: the model.
      optimizer: its optimizer.
      windows: int32 [batch per replica, length + 1].
      batch_size: examples over all replicas.

    Returns:
      This replica's share of the mean loss in nats per byte, and the norm of
      the mean loss's gradient: NaN on steps that do not update, and where the
      optimizer has no clip by norm, which needs it.
    """
    with tf.GradientTape() as tape:
        losses = next_byte_losses(model, windows)
        share = tf.reduce_sum(losses) / (batch_size * losses.shape[1])
        # The optimizer takes the sum over the replicas, or the mean.
        loss = share
        if optimizer.aggregation == "mean":
            loss *= batch_size // windows.shape[0]
        scaled_loss = optimizer.scale_loss(loss)
    variables = model.trainable_variables
    gradients = tape.gradient(scaled_loss, variables)
    norm = optimizer.apply(gradients, variables).grad_norm
    return share, tf.constant(math.nan) if norm is None else norm


def make_train_loop(
    strategy: tf.distribute.Strategy,
    model: LanguageModel,
    optimizer: AdamW,
    batch_size: int,
    compile_step: bool,
) -> Callable[[Iterator, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Makes the function that takes many steps in one call.

    Args:
      strategy: where to train.
      model: the model.
      optimizer: its optimizer, built.
      batch_size: examples per step over all replicas.
      compile_step: whether to compile a step with XLA as a whole.

    Returns:
      A function of a distributed iterator of windows and an int32 number of
      steps (a tensor: another number does not retrace). It returns the mean
      loss in nats per byte and the last norm of the gradient, NaN if there
      was none.
    """

    def step(windows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return train_step(model, optimizer, windows, batch_size)

    if compile_step:
        step = tf.function(step, jit_compile=True)

    @tf.function
    def train_loop(
        iterator: Iterator, steps: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        total, last_norm = tf.constant(0.0), tf.constant(math.nan)
        for _ in tf.range(steps):
            loss, norm = strategy.run(step, args=(next(iterator),))
            total += strategy.reduce("SUM", loss, axis=None)
            # All replicas have the same.
            norm = strategy.experimental_local_results(norm)[0]
            last_norm = tf.where(tf.math.is_nan(norm), last_norm, norm)
        return total / tf.cast(steps, tf.float32), last_norm

    return train_loop


def make_evaluation(
    strategy: tf.distribute.Strategy, model: LanguageModel, compile_step: bool
) -> Callable[[Iterator, tf.Tensor], tf.Tensor]:
    """Makes the function that measures the model on held-out text.

    Args:
      strategy: where to evaluate.
      model: the model.
      compile_step: whether to compile a step with XLA as a whole.

    Returns:
      A function of a distributed iterator of windows and an int32 number of
      batches; it returns the mean loss in nats per byte.
    """

    @tf.function(jit_compile=True if compile_step else None)
    def step(windows: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(next_byte_losses(model, windows))

    @tf.function
    def evaluate(iterator: Iterator, batches: tf.Tensor) -> tf.Tensor:
        total = tf.constant(0.0)
        for _ in tf.range(batches):
            loss = strategy.run(step, args=(next(iterator),))
            total += strategy.reduce("MEAN", loss, axis=None)
        return total / tf.cast(batches, tf.float32)

    return evaluate
