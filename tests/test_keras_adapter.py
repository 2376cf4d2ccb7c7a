"""tf_adamw.keras in the training of Keras 3."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import tf_adamw.keras
from keras_adapter_files import FileTests
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


class TestKeras(FileTests, AdapterTests):
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
        own.save(path)
        loaded = keras.models.load_model(path, compile=False)
        optimizer = self.adapter.AdamW.from_config(own.optimizer.get_config())
        loaded.compile(optimizer, "mse", auto_scale_loss=False)
        loaded.load_weights(path)
        for model in (own, loaded):
            self.fit(model)
        check_equal(state(loaded), state(own))

    def test_mixed_precision_on_replicas(self, mixed, mirrored):
        with mirrored.scope():
            with pytest.raises(ValueError, match="auto_scale_loss=False"):
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

    def test_a_loss_is_not_scaled_twice(self, mixed):
        with pytest.raises(ValueError, match="auto_scale_loss=False"):
            self.compiled({"loss_scale_factor": "dynamic"})

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
