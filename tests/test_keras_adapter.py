"""tf_adamw.keras in the training of Keras 3."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_adamw.keras
from keras_adapter_files import FileTests
from keras_adapter_keys import KeyTests
from keras_adapters import (
    BATCH,
    INPUTS,
    PLAIN,
    TARGETS,
    AdapterTests,
    check_close,
    check_equal,
    state,
    weights,
)

ON_ANOTHER_BACKEND = """
import sys, tensorflow
before = {*sys.modules}
import tf_adamw
assert not {"keras", "tf_keras"} & ({*sys.modules} - before)
import tf_adamw.keras
tf_adamw.keras.AdamW()
"""


class TestKeras(FileTests, KeyTests, AdapterTests):
    library = keras
    adapter = tf_adamw.keras

    @pytest.fixture
    def mixed(self):
        keras.config.set_dtype_policy("mixed_float16")
        yield
        keras.config.set_dtype_policy("float32")

    def test_mixed_precision(self, mixed, tmp_path):
        wrapped = self.compiled(PLAIN)
        wrapper = keras.optimizers.LossScaleOptimizer
        assert isinstance(wrapped.optimizer, wrapper)
        own = self.compiled(
            {**PLAIN, "loss_scale_factor": "dynamic"},
            {"auto_scale_loss": False},
        )
        for model in (wrapped, own):
            self.fit(model)
        check_equal(weights(own), weights(wrapped))
        path = str(tmp_path / "model.keras")
        wrapped.save(path)
        loaded = keras.models.load_model(path)
        for model in (wrapped, loaded):
            self.fit(model)
        check_equal(state(loaded), state(wrapped))

        keras.config.set_dtype_policy("float32")
        with pytest.raises(ValueError, match="with the policy mixed_float16"):
            keras.models.load_model(path)

    @pytest.mark.parametrize("factor", ["dynamic", 8.0])
    @pytest.mark.parametrize("auto", [{}, {"auto_scale_loss": False}])
    def test_it_scales_the_loss_itself(self, mixed, factor, auto, tmp_path):
        model = self.compiled({**PLAIN, "loss_scale_factor": factor}, auto)
        assert isinstance(model.optimizer, self.adapter.AdamW)
        self.fit(model)
        path = str(tmp_path / "model.keras")
        model.save(path)
        loaded = keras.models.load_model(path)
        assert isinstance(loaded.optimizer, self.adapter.AdamW)
        config = loaded.optimizer.get_config()
        assert config == model.optimizer.get_config()
        check_equal(state(loaded), state(model))
        for one in (model, loaded):
            self.fit(one)
        check_equal(state(loaded), state(model))

    def test_a_clone_scales_the_loss_itself(self, mixed):
        model = self.compiled({**PLAIN, "loss_scale_factor": "dynamic"})
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        clone.compile_from_config(model.get_compile_config())
        for one in (model, clone):
            self.fit(one)
        check_equal(state(clone), state(model))

    def test_files_name_one_class(self):
        for factor in (None, "dynamic"):
            optimizer = self.adapter.AdamW(loss_scale_factor=factor)
            saved = keras.saving.serialize_keras_object(optimizer)
            assert saved["module"] == "tf_adamw.keras"
            assert saved["class_name"] == "AdamW"
            assert saved["registered_name"] == "tf_adamw>AdamW"
            again = keras.saving.deserialize_keras_object(saved)
            assert type(again) is type(optimizer)

    def test_without_a_scale_the_state_can_be_loaded(self, mixed, tmp_path):
        own = self.compiled(PLAIN, {"auto_scale_loss": False})
        self.fit(own)
        path = str(tmp_path / "model.keras")
        own.save(path)
        with pytest.warns(UserWarning, match="compile=False") as warned:
            keras.models.load_model(path)
        told = [w for w in warned if "auto_scale_loss" in str(w.message)]
        assert len(told) == 1
        assert not [w for w in warned if "state of the" in str(w.message)]
        loaded = keras.models.load_model(path, compile=False)
        optimizer = self.adapter.AdamW.from_config(own.optimizer.get_config())
        loaded.compile(optimizer, "mse", auto_scale_loss=False)
        loaded.load_weights(path)
        for model in (own, loaded):
            self.fit(model)
        check_equal(state(loaded), state(own))

    def test_mixed_precision_on_replicas(self, mixed, mirrored):
        with mirrored.scope():
            with pytest.raises(ValueError, match="give AdamW loss_scale"):
                self.compiled(PLAIN)
            model = self.compiled(
                {**PLAIN, "loss_scale_factor": "dynamic"},
                {"auto_scale_loss": False},
            )
        self.fit(model)
        scale = float(model.optimizer.adamw.loss_scale)
        self.bad_second_replica(model)
        assert float(model.optimizer.adamw.loss_scale) == scale / 2

    def test_a_wrapper_made_outside_of_the_scope(self, mirrored):
        optimizer = keras.optimizers.LossScaleOptimizer(self.adapter.AdamW())
        with mirrored.scope():
            model = self.model()
            model.compile(optimizer, "mse")
        with pytest.raises(ValueError, match="one replica's gradients"):
            self.fit(model)

    def test_a_loss_is_not_scaled_twice(self):
        optimizer = self.adapter.AdamW(loss_scale_factor="dynamic")
        with pytest.raises(ValueError, match="leave loss_scale_factor out"):
            keras.optimizers.LossScaleOptimizer(optimizer)

    def test_swap_ema_weights(self):
        model = self.compiled({**PLAIN, "use_ema": True, "ema_momentum": 0.9})
        swap = keras.callbacks.SwapEMAWeights()
        before = weights(model)

        def evaluate(*callbacks):
            return model.evaluate(
                INPUTS, TARGETS, verbose=0, callbacks=[*callbacks]
            )

        model.optimizer.build(model.trainable_variables)
        assert evaluate(swap) == pytest.approx(evaluate(), rel=1e-6)
        check_close(weights(model), before)  # none was NaN
        for start in range(0, len(INPUTS), BATCH):
            rows = slice(start, start + BATCH)
            model.train_on_batch(INPUTS[rows], TARGETS[rows])
        swapped = evaluate(swap)
        with model.optimizer.adamw.averaged_weights():
            averaged = evaluate()
        assert swapped == pytest.approx(averaged, rel=1e-6)
        assert swapped != pytest.approx(evaluate(), rel=1e-3)
        self.fit(model, callbacks=[swap], validation_data=(INPUTS, TARGETS))
        assert np.isfinite(evaluate())

    def test_swap_ema_weights_refuses_low_precision(self):
        model = self.compiled({"use_ema": True}, dtype="bfloat16")
        model.optimizer.build(model.trainable_variables)
        swap = keras.callbacks.SwapEMAWeights()
        with pytest.raises(ValueError, match="averaged_weights"):
            model.evaluate(INPUTS, TARGETS, verbose=0, callbacks=[swap])

    def test_an_order_given_to_apply_is_not_kept(self):
        first, second = (keras.Variable([1.0], name=name) for name in "ab")
        optimizer = tf_adamw.keras.AdamW(0.1, weight_decay=0.0)
        optimizer.build([first, second])
        one, zero = tf.ones([1]), tf.zeros([1])
        optimizer.apply([zero, zero], [second, first])
        optimizer.apply([one, zero])
        assert first.numpy() < 1.0
        assert second.numpy() == 1.0

    def test_variables_are_keras_variables_with_paths(self):
        model = self.compiled(PLAIN)
        rate = model.optimizer.learning_rate
        assert isinstance(rate, keras.Variable)
        assert round(rate, 3) == 0.02
        self.fit(model)
        paths = [v.path for v in model.optimizer.variables]
        assert len({*paths}) == len(paths)
        assert "adamw/counters_iterations" in paths
        held = [v.value for v in model.optimizer.variables]
        own = {v.ref() for v in model.optimizer.adamw.variables}
        assert {v.ref() for v in held} == own

    def test_overwritten_variables_are_refused(self):
        variable = keras.Variable([1.0], name="scale")
        variable.overwrite_with_gradient = True
        with pytest.raises(ValueError, match="'scale' is set to its gradient"):
            self.adapter.AdamW().build([variable])

    @pytest.mark.slow
    def test_another_backend(self):
        run = subprocess.run(
            [sys.executable, "-c", ON_ANOTHER_BACKEND],
            env={**os.environ, "KERAS_BACKEND": "numpy"},
            cwd=pathlib.Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        last = run.stderr.strip().splitlines()[-1]
        assert last.startswith("ValueError: tf_adamw.keras.AdamW needs")
        assert "backend is 'numpy'" in last
