"""Everything of one training run that lives on the devices."""

import math
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_adamw import AdamW
from tpu_scripts import lm_data, lm_strategy, lm_training
from tpu_scripts.lm_model import LanguageModel, ModelConfig

_BITS = 1 / math.log(2)  # per nat


class Trainer:
    """Model, optimizer and step, and the programs that run on them.

    Args:
      strategy: where to train.
      corpus: the text.
      config: the configuration of the model.
      make_optimizer: makes the optimizer.
      batch_size: examples per step over all replicas.
      jit_compile: `"true"`, `"false"` or `"auto"`: whether to compile a step
        with XLA as a whole; auto does it where it works.

    Raises:
      ValueError: the replicas or the text do not fit the batch, or the
        optimizer does not accept the strategy.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        corpus: lm_data.Corpus,
        config: ModelConfig,
        make_optimizer: Callable[[], AdamW],
        batch_size: int,
        jit_compile: str,
    ):
        self._strategy = strategy
        self._corpus = corpus
        self._config = config
        self._batch_size = batch_size
        self._iterator: Any = None
        _check_batches(strategy, corpus, batch_size, config.context)
        with strategy.scope():
            self.model = LanguageModel(config)
            self.optimizer = make_optimizer()
            self.optimizer.build(self.model)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        compiled = lm_strategy.compiles_step(
            strategy, self.model.embedding.device, jit_compile
        )
        self._train_loop = lm_training.make_train_loop(
            strategy, self.model, self.optimizer, batch_size, compiled
        )
        self._evaluation = lm_training.make_evaluation(
            strategy, self.model, compiled
        )

    def train(self, steps: int) -> dict[str, float]:
        """Takes that many steps in one call of the compiled loop.

        Returns:
          The step that was reached; the mean loss, in bits per byte; the last
          norm of the gradient, if the optimizer computed one; the learning
          rate and, if there is one, the loss scale of the next step; the
          tokens per second.
        """
        if self._iterator is None:
            first_step = int(self.step)
            self._iterator = self._windows(
                lambda context: lm_data.training_windows(
                    self._corpus.train,
                    self._config.context,
                    self._batch_size,
                    first_step,
                    self._config.seed,
                    context,
                )
            )
        start = time.perf_counter()
        loss, norm = self._train_loop(self._iterator, tf.constant(steps))
        loss, norm = float(loss), float(norm)  # waits for the devices
        seconds = time.perf_counter() - start
        self.step.assign_add(steps)
        tokens = steps * self._batch_size * self._config.context
        # Replicated variables are no floats, tensors are.
        rate = tf.convert_to_tensor(self.optimizer.learning_rate)
        record = {
            "step": int(self.step),
            "loss": loss * _BITS,
            "learning_rate": float(rate),
            "tokens_per_second": tokens / seconds,
        }
        if not math.isnan(norm):
            record["gradient_norm"] = norm
        if self.optimizer.loss_scale is not None:
            record["loss_scale"] = float(self.optimizer.loss_scale)
        return record

    def evaluate(self) -> float:
        """Bits per held-out byte, with the averaged weights if there are."""
        if not self.optimizer.use_ema:
            return self._evaluate()
        with self.optimizer.averaged_weights():
            return self._evaluate()

    def _evaluate(self) -> float:
        text, length = self._corpus.held_out, self._config.context
        windows = self._windows(
            lambda context: lm_data.held_out_windows(
                text, length, self._batch_size, context
            )
        )
        batches = lm_data.full_batches(text, length, self._batch_size)
        return float(self._evaluation(windows, tf.constant(batches))) * _BITS

    def _windows(self, dataset_fn: Any) -> Any:
        return iter(
            self._strategy.distribute_datasets_from_function(dataset_fn)
        )


def _check_batches(
    strategy: tf.distribute.Strategy,
    corpus: lm_data.Corpus,
    batch_size: int,
    length: int,
) -> None:
    lm_training.check_batch_size(batch_size, strategy.num_replicas_in_sync)
    needed = batch_size * length + 1
    for name, text in [
        ("training", corpus.train),
        ("held-out", corpus.held_out),
    ]:
        if len(text) < needed:
            raise ValueError(
                f"--data: one batch takes {needed} bytes, and the {name} "
                f"text has {len(text)}"
            )
