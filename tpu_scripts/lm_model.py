"""A byte-level transformer language model, written as a `tf.Module`."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

VOCABULARY = 256  # one token per byte

COMPUTE_DTYPES = {
    "float32": tf.float32,
    "bfloat16": tf.bfloat16,
    "float16": tf.float16,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of the model.

    Args:
      layers: number of transformer blocks.
      width: size of the hidden vectors; a multiple of `heads`.
      heads: attention heads per block.
      context: longest sequence, in bytes.
      precision: `"float32"`, `"bfloat16"` or `"float16"`: the dtype of the
        activations. The weights are float32 in all three.
      seed: seed of the initial weights.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 128
    precision: str = "float32"
    seed: int = 0


class RMSNorm(tf.Module):
    """`scale * x / sqrt(mean(x^2) + 1e-6)` over the last axis, in float32."""

    def __init__(self, width: int, name: str):
        super().__init__(name=name)
        self.scale = tf.Variable(tf.ones([width]), name=f"{name}/scale")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        h = tf.cast(x, tf.float32)
        variance = tf.reduce_mean(tf.square(h), axis=-1, keepdims=True)
        h *= tf.math.rsqrt(variance + 1e-6) * self.scale
        return tf.cast(h, x.dtype)


class Linear(tf.Module):
    """`x @ kernel`, computed in the dtype of `x`."""

    def __init__(self, kernel: np.ndarray, name: str):
        super().__init__(name=name)
        self.kernel = tf.Variable(kernel, name=f"{name}/kernel")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        # One large matrix product, whatever the number of leading axes.
        rows = tf.reshape(x, [-1, x.shape[-1]])
        result = tf.matmul(rows, tf.cast(self.kernel, x.dtype))
        return tf.reshape(result, [-1, *x.shape[1:-1], result.shape[-1]])


class Block(tf.Module):
    """One pre-norm transformer block: causal attention, then a GELU MLP."""

    def __init__(self, config: ModelConfig, rng: np.random.Generator):
        super().__init__(name="block")
        width, self._heads = config.width, config.heads
        # The residual branches start small, so that their sum over the
        # layers keeps the scale of one.
        residual = 1 / math.sqrt(2 * config.layers)
        self.attention_norm = RMSNorm(width, "attention_norm")
        self.query_key_value = Linear(
            _matrix(rng, width, 3 * width), "query_key_value"
        )
        self.attention_output = Linear(
            residual * _matrix(rng, width, width), "attention_output"
        )
        self.mlp_norm = RMSNorm(width, "mlp_norm")
        self.mlp_input = Linear(_matrix(rng, width, 4 * width), "mlp_input")
        self.mlp_output = Linear(
            residual * _matrix(rng, 4 * width, width), "mlp_output"
        )

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        x += self._attend(self.attention_norm(x))
        hidden = tf.nn.gelu(self.mlp_input(self.mlp_norm(x)), approximate=True)
        return x + self.mlp_output(hidden)

    def _attend(self, x: tf.Tensor) -> tf.Tensor:
        length, width = x.shape[1:]
        size = width // self._heads
        split = tf.reshape(
            self.query_key_value(x), [-1, length, 3, self._heads, size]
        )
        query, key, value = tf.unstack(
            tf.transpose(split, [2, 0, 3, 1, 4])
        )  # [batch, heads, length, size] each
        scores = tf.matmul(query, key, transpose_b=True)
        scores = tf.cast(scores, tf.float32) / math.sqrt(size)
        past = np.tril(np.ones([length, length], bool))
        weights = tf.nn.softmax(tf.where(past, scores, -1e9))
        mixed = tf.matmul(tf.cast(weights, x.dtype), value)
        mixed = tf.reshape(
            tf.transpose(mixed, [0, 2, 1, 3]), [-1, length, width]
        )
        return self.attention_output(mixed)


class LanguageModel(tf.Module):
    """A decoder-only transformer over bytes."""

    def __init__(self, config: ModelConfig):
        super().__init__(name="language_model")
        rng = np.random.default_rng(config.seed)
        self._dtype = COMPUTE_DTYPES[config.precision]
        self.context = config.context
        self.embedding = tf.Variable(
            0.02 * _normal(rng, VOCABULARY, config.width),
            name="embedding",
        )
        self.positions = tf.Variable(
            0.02 * _normal(rng, config.context, config.width),
            name="positions",
        )
        self.blocks = [Block(config, rng) for _ in range(config.layers)]
        self.final_norm = RMSNorm(config.width, "final_norm")
        self.output = Linear(_matrix(rng, config.width, VOCABULARY), "output")

    def __call__(self, tokens: tf.Tensor) -> tf.Tensor:
        """Scores of the next byte at every position.

        Args:
          tokens: int32 [batch, length], length static and at most the
            configured context.

        Returns:
          The float32 logits [batch, length, 256]; those at position i depend
          on the tokens 0 to i only.
        """
        # A product with one-hot rows: its gradient is a dense product too,
        # with no scatter, which TPUs are slow at.
        one_hot = tf.one_hot(tokens, VOCABULARY, dtype=self._dtype)
        x = tf.matmul(one_hot, tf.cast(self.embedding, self._dtype))
        x += tf.cast(self.positions[: tokens.shape[1]], self._dtype)
        for block in self.blocks:
            x = block(x)
        return tf.cast(self.output(self.final_norm(x)), tf.float32)


def next_byte_losses(model: LanguageModel, windows: tf.Tensor) -> tf.Tensor:
    """The cross-entropy of each byte given those before it.

    Args:
      model: the language model.
      windows: int32 [batch, length + 1].

    Returns:
      float32 [batch, length], in nats.
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=windows[:, 1:], logits=model(windows[:, :-1])
    )


def _matrix(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Normal float32 values of variance 1 / rows: products keep their scale."""
    return _normal(rng, rows, columns) / np.float32(math.sqrt(rows))


def _normal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return rng.normal(size=(rows, columns)).astype(np.float32)
