"""`sparse_updates="lazy"` with the gradients of a Keras model's embedding."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import helpers
import tf_adamw.keras
import tf_adamw.tf_keras
from keras_adapters import raw
from rowwise import RowPair, Slices


@pytest.mark.parametrize("traced", [False, True])
@helpers.both_modes
def test_embedding_of_a_model(rng, traced, jit_compile):
    """It trains rows that were looked up, and no others."""
    layer = keras.layers.Embedding(20, 3)
    head = keras.layers.Dense(1)
    model = keras.Sequential([layer, keras.layers.Flatten(), head])
    ids = rng.integers(0, 20, (3, 4, 5))
    model(ids[0])
    weights = {"table": layer.embeddings.numpy(), "kernel": head.kernel.numpy()}
    pair = RowPair(weights, jit_compile, global_clipnorm=0.5)
    variables = [layer.embeddings, head.kernel]
    optimizer = type(pair.optimizer)(
        jit_compile=jit_compile, sparse_updates="lazy", global_clipnorm=0.5
    )
    optimizer.build(variables)

    def step(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(batch) ** 2)
        grads = tape.gradient(loss, [v.value for v in variables])
        assert isinstance(grads[0], tf.IndexedSlices)
        optimizer.apply(grads, variables)
        return grads[0].values, grads[0].indices, grads[1]

    call = tf.function(step) if traced else step
    for batch in ids:
        before = layer.embeddings.numpy()
        values, indices, kernel = (t.numpy() for t in call(tf.constant(batch)))
        pair.step({"table": Slices(values, indices), "kernel": kernel})
        absent = np.setdiff1d(np.arange(20), batch)
        after = layer.embeddings.numpy()
        np.testing.assert_array_equal(after[absent], before[absent])
    expected = pair.tables["table"].numpy()
    np.testing.assert_allclose(layer.embeddings.numpy(), expected, 1e-6)
    expected = pair.tables["kernel"].numpy()
    np.testing.assert_allclose(head.kernel.numpy(), expected, 1e-6)


@pytest.mark.parametrize(
    ("library", "adapter"),
    [(keras, tf_adamw.keras), (tf_keras, tf_adamw.tf_keras)],
    ids=["keras", "tf_keras"],
)
def test_fit(rng, library, adapter):
    """With a library's own training a table is trained as in a loop."""
    ids, targets = rng.integers(0, 10, (4, 8, 5)), np.ones([4, 8, 1])
    options = {
        "learning_rate": 0.01,
        "weight_decay": 0.5,
        "sparse_updates": "lazy",
        "jit_compile": False,
    }
    models = []
    for _ in range(2):
        layers = library.layers
        stack = [layers.Embedding(20, 3), layers.Flatten(), layers.Dense(1)]
        inputs = library.Input([5], dtype="int32")
        models.append(library.Sequential([inputs, *stack]))
    fitted, looped = models
    looped.set_weights(fitted.get_weights())
    table = raw(fitted.layers[0].embeddings)
    start = table.numpy()
    fitted.compile(adapter.AdamW(**options), "mse")
    fitted.fit(
        ids.reshape(32, 5),
        targets.reshape(32, 1),
        batch_size=8,
        shuffle=False,
        verbose=0,
    )
    np.testing.assert_array_equal(table.numpy()[10:], start[10:])
    assert np.all(np.any(table.numpy()[:10] != start[:10], axis=1))
    variables = [raw(v) for v in looped.trainable_variables]
    optimizer = tf_adamw.AdamW(**options)
    for batch in ids:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((looped(batch) - 1.0) ** 2)
        optimizer.apply(tape.gradient(loss, variables), variables)
    for one, other in zip(
        fitted.get_weights(), looped.get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, 1e-5, 1e-6)
