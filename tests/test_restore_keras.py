"""tf_adamw.checkpoint.restore: models of Keras 3."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_adamw
from tf_adamw.checkpoint import restore


class Run:
    """A Keras model of equal layers, and an optimizer after some steps."""

    def __init__(self, names, steps=0, name="net"):
        layers = [keras.layers.Dense(4, name=layer) for layer in names]
        self.use(keras.Sequential([keras.Input([4]), *layers], name=name))
        rng = np.random.default_rng(len(names))
        for _ in range(steps):
            variables = self.model.trainable_variables
            self.optimizer.apply(
                [tf.constant(rng.random(v.shape), "float32") for v in variables]
            )

    def use(self, model):
        self.model = model
        self.optimizer = tf_adamw.AdamW(jit_compile=False)
        self.optimizer.build(self.model)
        self.checkpoint = tf.train.Checkpoint(
            model=self.model, optimizer=self.optimizer
        )

    def state(self, layer):
        """Weights and slots of a layer."""
        found = []
        for variable in self.model.get_layer(layer).trainable_variables:
            found.append(variable.numpy())
            for slot in ("momentum", "velocity"):
                found.append(self.optimizer.get_slot(variable, slot).numpy())
        return found


def assert_equal(run, other, layer, there=None):
    for found, expected in zip(
        other.state(layer), run.state(there or layer), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.fixture
def saved(tmp_path):
    run = Run("abc", 3)
    return run, run.checkpoint.save(tmp_path / "checkpoint")


@pytest.mark.parametrize("names", ["abc", "acb", "cba"])
def test_the_order_of_layers(saved, names):
    run, path = saved
    other = Run(names, 1)
    restore(other.checkpoint, path, strict=True)
    for layer in names:
        assert_equal(run, other, layer)


def test_a_layer_is_inserted(saved):
    run, path = saved
    other = Run("anbc")
    before = other.state("n")
    report = restore(other.checkpoint, path)
    for layer in "abc":
        assert_equal(run, other, layer)
    for found, expected in zip(other.state("n"), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    # Two weights, and two slots of each.
    assert len(report.seeded) == 6
    assert not report.left_over and not report.mismatched


def test_a_layer_is_removed(saved):
    run, path = saved
    other = Run("ac")
    report = restore(other.checkpoint, path)
    for layer in "ac":
        assert_equal(run, other, layer)
    assert len(report.left_over) == 6
    assert not report.seeded and not report.mismatched


def test_a_layer_is_renamed(saved):
    """Its place in the model has its weights; its slots are left over."""
    run, path = saved
    other = Run("axc")
    report = restore(other.checkpoint, path)
    for layer in "ac":
        assert_equal(run, other, layer)
    np.testing.assert_array_equal(
        other.model.get_layer("x").kernel, run.model.get_layer("b").kernel
    )
    assert len(report.seeded) == len(report.left_over) == 4


def test_all_names_are_others(saved):
    """As of a model that Keras has numbered anew: slots go with weights."""
    run, path = saved
    other = Run("abc", name="net_1")
    report = restore(other.checkpoint, path, strict=True)
    for layer in "abc":
        assert_equal(run, other, layer)
    assert report.moved["optimizer/slots/net_1/a/kernel/momentum"] == (
        "optimizer/slots/net/a/kernel/momentum"
    )


def test_a_model_is_renamed(saved):
    run, path = saved
    other = Run("abc", name="other")
    with pytest.warns(UserWarning, match="No slot"):
        restore(other.checkpoint, path)
    for layer in "abc":
        np.testing.assert_array_equal(
            other.model.get_layer(layer).kernel,
            run.model.get_layer(layer).kernel,
        )


def test_a_model_that_keras_has_loaded(saved, tmp_path):
    """Keras leaves the model's name out of its variables' paths."""
    run, path = saved
    run.model.save(tmp_path / "model.keras")
    other = Run("abc", 1)
    other.use(keras.models.load_model(tmp_path / "model.keras", compile=False))
    assert next(iter(other.optimizer.slots)) == "a/kernel"
    report = restore(other.checkpoint, path, strict=True)
    assert "optimizer/slots/a/kernel/momentum" in report.restored
    for layer in "abc":
        assert_equal(run, other, layer)
    back = Run("abc", 1)
    restore(back.checkpoint, other.checkpoint.save(tmp_path / "2"), strict=True)
    for layer in "abc":
        assert_equal(run, back, layer)
