"""tf_adamw.tf_keras in tf_keras's own training."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tf_adamw.tf_keras
from keras_adapter_files import FileTests
from keras_adapter_keys import KeyTests
from keras_adapters import (
    PLAIN,
    QUICK,
    AdapterTests,
    by_hand,
    check_close,
    check_equal,
    state,
    weights,
)


class TestTfKeras(FileTests, KeyTests, AdapterTests):
    library = tf_keras
    adapter = tf_adamw.tf_keras

    @pytest.fixture
    def mixed(self):
        tf_keras.mixed_precision.set_global_policy("mixed_float16")
        yield
        tf_keras.mixed_precision.set_global_policy("float32")

    def test_mixed_precision(self, mixed, mirrored, tmp_path):
        wrapper = tf_keras.mixed_precision.LossScaleOptimizer
        one = self.compiled(PLAIN)
        assert isinstance(one.optimizer, wrapper)
        # A scale at which neither gradient of float16 overflows.
        one.compile(wrapper(self.adapter.AdamW(0.02), initial_scale=16), "mse")
        with mirrored.scope():
            two = self.model()
            optimizer = self.adapter.AdamW(0.02, **PLAIN)
            two.compile(wrapper(optimizer, initial_scale=16), "mse")
        for model in (one, two):
            self.fit(model)
            assert model.optimizer.iterations.numpy() == 4
        check_close(weights(two), weights(one), 1e-2)  # float16's rounding
        one.save(str(tmp_path / "model.keras"))
        loaded = tf_keras.models.load_model(str(tmp_path / "model.keras"))
        self.fit(one)
        self.fit(loaded)
        check_equal(state(loaded), state(one))
        scale = float(two.optimizer.loss_scale)
        self.bad_second_replica(two)
        assert float(two.optimizer.loss_scale) == scale / 2

    def test_what_was_set_before_compile_stays(self, mixed):
        optimizer = self.adapter.AdamW(0.02)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        optimizer.learning_rate = 0.5
        model = self.model()
        model.compile(optimizer, "mse")
        self.fit(model)
        assert float(optimizer.learning_rate) == 0.5
        undecayed = [p for p in optimizer.adamw.parameters if not p.decayed]
        assert undecayed

    def test_a_loss_is_not_scaled_twice(self, mixed):
        with pytest.raises(ValueError, match="leave loss_scale_factor out"):
            self.compiled({"loss_scale_factor": "dynamic"})
        with pytest.raises(ValueError, match='aggregation is "mean"'):
            self.compiled({"aggregation": "mean"})

    def test_reduced_gradients(self, mirrored):
        with mirrored.scope():
            variable = tf.Variable([1.0, 2.0], name="w")

        def step(optimizer):
            def replica():
                pairs = [(tf.ones([2]), variable)]
                optimizer.apply_gradients(
                    pairs, skip_gradients_aggregation=True
                )

            mirrored.run(replica)

        with pytest.raises(ValueError, match='AdamW\\(aggregation="none"'):
            step(self.adapter.AdamW(0.5))
        step(
            self.adapter.AdamW(
                0.5, weight_decay=0.0, aggregation="none", **PLAIN
            )
        )
        np.testing.assert_allclose(variable.numpy(), [0.5, 1.5], rtol=1e-5)

    @pytest.mark.parametrize("as_callable", [True, False])
    def test_minimize_scales_the_loss(self, as_callable):
        variable = tf.Variable([1.0, 2.0], name="w")
        optimizer = self.adapter.AdamW(0.5, loss_scale_factor=2.0**10)
        optimizer.build([variable])
        if as_callable:
            optimizer.minimize(lambda: tf.reduce_sum(variable**2), [variable])
        else:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(variable**2)
            optimizer.minimize(loss, [variable], tape)
        momentum = optimizer.adamw.get_slot(variable, "momentum")
        np.testing.assert_allclose(momentum, [0.2, 0.4], rtol=1e-6)

    def test_the_older_file_format(self, tmp_path):
        model = self.compiled(QUICK)
        self.fit(model)
        path = str(tmp_path / "model.h5")
        with pytest.warns(UserWarning, match="legacy"):  # tf_keras's own
            model.save(path)
        loaded = tf_keras.models.load_model(path)
        self.fit(model)
        self.fit(loaded)
        check_equal(state(loaded), state(model))
        self.check_thawed(tmp_path, suffix="h5")

    def test_compile_takes_no_other_arguments(self):
        with pytest.raises(TypeError, match="decay"):
            self.adapter.AdamW(0.5, decay=0.1)

    def test_steps_per_execution_on_replicas(self, mirrored):
        expected, _ = by_hand(self.model(), 4, **PLAIN)
        with mirrored.scope():
            model = self.compiled(PLAIN, {"steps_per_execution": 2})
        self.fit(model)
        check_close(weights(model), expected[-1])
