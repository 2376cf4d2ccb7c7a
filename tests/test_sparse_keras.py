"""`sparse_updates="lazy"` with the gradients of a Keras model's embedding."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import helpers
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
