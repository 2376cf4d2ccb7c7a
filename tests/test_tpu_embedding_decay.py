"""The weight decay of tables in the TPU's embedding hardware.

It is exact where the rate is a number; else what the docstring says is missing.
"""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from numpy_tpu_adam import (
    UNIT,
    Hardware,
    random_gradient,
    random_table,
    ratio,
)

pytestmark = pytest.mark.core


@pytest.mark.parametrize("coupling", ["learning_rate", "schedule"])
def test_a_coupled_decay_is_multiplied_by_alpha(rng, coupling):
    """An AdamW whose weight decay is lower by as much does the same."""
    ratios = tf.constant([ratio(t) for t in range(1, 101)], tf.float32)
    base = helpers.LinearDecay().start
    options = {
        "learning_rate": helpers.LinearDecay(),
        "decay_coupling": coupling,
        "base_learning_rate": base if coupling == "schedule" else None,
    }
    decay = {"learning_rate": 0.125, "schedule": 0.125 * base}[coupling]
    optimizer = tf_adamw.AdamW(weight_decay=decay, **options)
    other = tf_adamw.AdamW(
        weight_decay=lambda step: decay * tf.gather(ratios, step), **options
    )
    start = random_table(rng)
    w, x = tf.Variable(start), tf.Variable(start)
    hardware = Hardware(optimizer.as_tpu_embedding_optimizer(), start)
    for _ in range(100):
        gradient = tf.constant(random_gradient(rng))
        hardware.step(gradient)
        optimizer.apply([gradient], [w])
        other.apply([gradient], [x])
    hardware.check(x.numpy())
    difference = np.abs(w.numpy() - hardware.table)
    assert np.max(difference) > 10 * np.max(hardware.bound)


def test_how_much_decay_is_missing():
    """The numbers in the docstring."""
    optimizer = tf_adamw.AdamW(learning_rate=1.0)
    rate = optimizer.as_tpu_embedding_optimizer().learning_rate
    found = {}
    for t in (1, 11, 12, 13, 1000, 3915, 3916):
        optimizer.iterations.assign(t - 1)
        found[t] = float(rate())
        np.testing.assert_allclose(found[t], ratio(t), 8 * UNIT)
    assert [round(found[t], 2) for t in (1, 12, 1000)] == [0.32, 0.15, 0.8]
    assert found[12] < found[11] and found[12] < found[13]
    assert found[3915] < 0.99 < found[3916]
    assert round(sum(1 - ratio(t) for t in range(1, 30_000))) == 611
    many = np.arange(1, 30_000)
    for beta_2 in (0.99, 0.999, 0.9995):
        missing = np.sum(1 - ratio(many, 0.0, beta_2))
        np.testing.assert_allclose(missing, 0.61 / (1 - beta_2), 0.02)


RATES = {
    "number": lambda: 0.01,
    "tensor": lambda: tf.constant(0.01),
    "zero": lambda: 0.0,
    "variable": lambda: tf.Variable(0.01),
    "callable": lambda: lambda: 0.01,
    "schedule": lambda: lambda step: 0.01,
}


@pytest.mark.parametrize("kind", RATES)
def test_weights_without_gradients(kind):
    """The numbers in the docstring. One is exact, another is to be assigned."""
    optimizer = tf_adamw.AdamW(RATES[kind](), 0.1)
    hardware = Hardware(optimizer.as_tpu_embedding_optimizer(), np.ones([1, 1]))
    if kind == "zero":
        optimizer.learning_rate = 0.01
    for _ in range(300):
        hardware.step(np.zeros([1, 1]))
        optimizer.iterations.assign_add(1)
    found, expected = hardware.table.item(), 0.999**300
    assert round(expected, 2) == 0.74
    if kind in ("number", "tensor"):
        np.testing.assert_allclose(found, expected, UNIT)
    else:
        assert round(found, 2) == 0.9


@pytest.mark.parametrize("coupling", ["learning_rate", "schedule"])
def test_a_rate_that_is_assigned(coupling):
    """Before the call it is that of the decay, which is constant after it."""
    optimizer = tf_adamw.AdamW(0.25, 0.125, decay_coupling=coupling)
    optimizer.learning_rate = 0.5
    made = optimizer.as_tpu_embedding_optimizer()
    optimizer.learning_rate = 0.0625
    hardware = Hardware(made, np.ones([1, 1]))
    hardware.step(np.zeros([1, 1]))
    rate = {"learning_rate": 0.5, "schedule": 2.0}[coupling]
    assert hardware.table.item() == 1 - rate * 0.125
    np.testing.assert_allclose(made.learning_rate(), 0.0625 * ratio(1), 1e-6)
