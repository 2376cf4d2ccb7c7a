"""The model of train_lm, against a plain NumPy float64 computation of it."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tpu_scripts import lm_model
from tpu_scripts.lm_model import LanguageModel, ModelConfig

CONFIG = ModelConfig(layers=2, width=12, heads=3, context=7, seed=5)


def random_tokens(rng, *shape):
    return rng.integers(0, 256, shape).astype(np.int32)


def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def gelu(x):
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(inner))


def numpy_logits(model, tokens, heads):
    """One sequence, position by position and head by head."""
    get = lambda v: v.numpy().astype(np.float64)  # noqa: E731
    x = get(model.embedding)[tokens] + get(model.positions)[: len(tokens)]
    for block in model.blocks:
        h = norm(x, get(block.attention_norm.scale))
        query, key, value = np.split(
            h @ get(block.query_key_value.kernel), 3, axis=-1
        )
        mixed = np.zeros_like(x)
        for columns in np.split(np.arange(x.shape[1]), heads):
            for i in range(len(tokens)):
                scores = key[: i + 1, columns] @ query[i, columns]
                weights = softmax(scores / np.sqrt(len(columns)))
                mixed[i, columns] = weights @ value[: i + 1, columns]
        x = x + mixed @ get(block.attention_output.kernel)
        h = norm(x, get(block.mlp_norm.scale))
        hidden = gelu(h @ get(block.mlp_input.kernel))
        x = x + hidden @ get(block.mlp_output.kernel)
    return norm(x, get(model.final_norm.scale)) @ get(model.output.kernel)


@pytest.fixture
def model(rng):
    """A model whose weights are all of order one, the norms' scales too."""
    made = LanguageModel(CONFIG)
    for variable in made.trainable_variables:
        variable.assign(rng.normal(scale=0.5, size=variable.shape))
    return made


@pytest.mark.parametrize("length", [1, 4, 7])
def test_logits_match_the_plain_computation(model, rng, length):
    tokens = random_tokens(rng, 3, length)
    expected = [numpy_logits(model, row, CONFIG.heads) for row in tokens]
    np.testing.assert_allclose(model(tokens), expected, rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_surprise_at_the_next_byte(model, rng):
    windows = random_tokens(rng, 2, 6)
    losses = lm_model.next_byte_losses(model, tf.constant(windows))
    assert losses.shape == [2, 5]
    for row, found in zip(windows, losses.numpy(), strict=True):
        logits = numpy_logits(model, row[:-1], CONFIG.heads)
        expected = [
            -np.log(softmax(scores)[byte])
            for scores, byte in zip(logits, row[1:], strict=True)
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_position_sees_nothing_after_it(model, rng):
    tokens = random_tokens(rng, 1, 7)
    for changed in range(7):
        other = tokens.copy()
        other[0, changed] += 1
        other %= 256
        same = np.isclose(model(tokens), model(other), atol=1e-6).all(-1)[0]
        assert list(same) == [i < changed for i in range(7)]


def test_a_new_model_knows_nothing(rng):
    losses = lm_model.next_byte_losses(
        LanguageModel(ModelConfig()), tf.constant(random_tokens(rng, 8, 129))
    )
    assert 7.5 < losses.numpy().mean() / np.log(2) < 10  # bits per byte


def test_the_seed_alone_makes_the_weights():
    first, same = LanguageModel(CONFIG), LanguageModel(CONFIG)
    other = LanguageModel(dataclasses.replace(CONFIG, seed=6))
    np.testing.assert_array_equal(first.embedding, same.embedding)
    assert not np.array_equal(first.embedding, other.embedding)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_activations_keep_float32_weights(rng, precision):
    config = dataclasses.replace(CONFIG, precision=precision)
    low, full = LanguageModel(config), LanguageModel(CONFIG)
    assert all(v.dtype == tf.float32 for v in low.trainable_variables)
    tokens = random_tokens(rng, 2, 7)
    assert low(tokens).dtype == tf.float32
    # Eight bits of mantissa over a dozen products.
    np.testing.assert_allclose(low(tokens), full(tokens), atol=0.1)
    assert not np.array_equal(low(tokens), full(tokens))


def test_every_weight_gets_a_dense_gradient(model, rng):
    with tf.GradientTape() as tape:
        windows = tf.constant(random_tokens(rng, 4, 8))
        loss = tf.reduce_mean(lm_model.next_byte_losses(model, windows))
    gradients = tape.gradient(loss, model.trainable_variables)
    assert len(gradients) == 4 + 6 * CONFIG.layers
    for gradient in gradients:
        assert isinstance(gradient, tf.Tensor)
        assert np.abs(gradient).sum() > 0
