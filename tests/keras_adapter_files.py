"""Tests of what the optimizers for Keras 3 and for tf_keras save and load."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import tf_adamw
from keras_adapters import (
    PLAIN,
    QUICK,
    Adapted,
    check_close,
    check_equal,
    raw,
    state,
    weights,
)


class FileTests(Adapted):
    """Subclassed for each library."""

    @pytest.mark.parametrize(
        "options", [PLAIN, QUICK], ids=["plain", "every option"]
    )
    def test_a_saved_model_goes_on(self, options, tmp_path):
        model = self.compiled(options)
        self.fit(model)
        path = str(tmp_path / "model.keras")
        model.save(path)
        loaded = self.library.models.load_model(path)
        assert isinstance(loaded.optimizer, self.adapter.AdamW)
        config = loaded.optimizer.get_config()
        assert config == model.optimizer.get_config()
        check_equal(state(loaded), state(model))
        assert self.fit(loaded, 2) == self.fit(model, 2)
        check_equal(state(loaded), state(model))

    @pytest.mark.parametrize("built", [True, False], ids=["built", "waits"])
    def test_weights_hold_the_state(self, built, tmp_path):
        model = self.compiled(QUICK)
        self.fit(model)
        path = str(tmp_path / "model.weights.h5")
        model.save_weights(path)
        # Its layers have other names, as a second model of a process does.
        other = self.compiled(QUICK)
        if built:
            other.optimizer.build(other.trainable_variables)
        with pytest.warns(UserWarning, match="Their order matched them"):
            other.load_weights(path)
            self.fit(other)
        self.fit(model)
        check_equal(state(other), state(model))

    def test_a_predicate_is_saved(self, tmp_path):
        model = self.compiled(
            {
                "exclude_from_weight_decay": lambda key: "bias" in key,
                "learning_rate_multipliers": [(lambda key: True, 0.5)],
            }
        )
        self.fit(model)
        path = str(tmp_path / "model.keras")
        model.save(path)
        loaded = self.library.models.load_model(path)
        self.fit(model)
        self.fit(loaded)
        check_equal(state(loaded), state(model))

    @pytest.mark.parametrize("kind", ["nested", "of a class"])
    def test_a_predicate_of_a_model_with_other_paths(self, kind, tmp_path):
        library = self.library

        @library.saving.register_keras_serializable("tests", f"Model{kind}")
        class Model(library.Model):
            def __init__(self, **options):
                super().__init__(**options)
                self.first = library.layers.Dense(4, "tanh")
                self.second = library.layers.Dense(1)

            def call(self, x):
                return self.second(self.first(x))

        if kind == "nested":
            layers = library.layers
            inner = library.Sequential([layers.Dense(4), layers.Dense(2)])
            model = library.Sequential([inner, layers.Dense(1)])
        else:
            model = Model()
        adamw = self.adapter.AdamW(
            0.02, exclude_from_weight_decay=lambda key: "bias" in key
        )
        model.compile(adamw, "mse")
        self.fit(model)
        path = str(tmp_path / "model.keras")
        model.save(path)
        loaded = library.models.load_model(path)
        self.fit(model)
        self.fit(loaded)
        check_equal(weights(loaded), weights(model))
        check_equal(state(loaded), state(model))

    def test_a_layer_that_is_frozen_later(self, tmp_path):
        model = self.compiled(PLAIN)
        self.fit(model)
        model.layers[0].trainable = False
        model.compile(model.optimizer, "mse")
        self.fit(model)
        path = str(tmp_path / "model.keras")
        model.save(path)
        with pytest.warns(UserWarning, match="It has more"):
            loaded = self.library.models.load_model(path)
        self.fit(model)
        self.fit(loaded)
        check_equal(weights(loaded), weights(model))

    def test_an_option_that_is_switched_on_moves_no_state(self, tmp_path):
        model = self.compiled(PLAIN)
        self.fit(model)
        path = str(tmp_path / "model.weights.h5")
        model.save_weights(path)
        other = self.compiled({**PLAIN, "use_ema": True, "amsgrad": True})
        self.fit(other)
        with pytest.warns(UserWarning, match=r"It lacks: slots/0.*average"):
            other.load_weights(path)
        for variable, own in zip(
            model.trainable_variables, other.trainable_variables, strict=True
        ):
            for slot in ("momentum", "velocity"):
                old = model.optimizer.adamw.get_slot(variable, slot)
                new = other.optimizer.adamw.get_slot(own, slot)
                check_equal([new], [old])
            average = other.optimizer.adamw.get_slot(own, "average")
            check_equal([average], [raw(own)])

    def test_state_of_another_model_is_refused(self, tmp_path):
        model = self.compiled(PLAIN)
        self.fit(model)
        file = {}
        model.optimizer.save_own_variables(file)
        other = self.compiled(PLAIN, units=5)
        self.fit(other)
        before = state(other)
        with pytest.raises(ValueError, match=r"slots/0.* \(3, 4\) in the file"):
            other.optimizer.load_own_variables(file)
        fewer = {k: v for k, v in file.items() if not k.startswith("slots|3")}
        with pytest.raises(ValueError, match="for 3 variables, the model has"):
            other.optimizer.load_own_variables(fewer)
        with pytest.raises(ValueError, match="migration"):
            other.optimizer.load_own_variables({"0": np.zeros([])})
        with pytest.raises(ValueError, match="shapes of this optimizer's"):
            other.optimizer.set_weights(before[1:])
        with pytest.warns(UserWarning, match="no state of the optimizer"):
            other.optimizer.load_own_variables({})
        check_equal(state(other), before)

    def test_model_checkpoint_and_backup(self, tmp_path):
        callbacks = self.library.callbacks

        def new_process():
            self.library.backend.clear_session()  # names its layers anew
            return self.compiled(QUICK)

        whole = new_process()
        self.fit(whole, 3)
        path = str(tmp_path / "{epoch}.keras")

        class Killed(callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 2:
                    raise KeyboardInterrupt

        def backup():
            return callbacks.BackupAndRestore(str(tmp_path / "backup"))

        model = new_process()
        with pytest.raises(KeyboardInterrupt):
            self.fit(
                model,
                3,
                callbacks=[backup(), callbacks.ModelCheckpoint(path), Killed()],
            )
        other = new_process()
        self.fit(other, 3, callbacks=[backup()])
        check_equal(state(other), state(whole))
        saved = self.library.models.load_model(path.format(epoch=2))
        self.fit(saved, 3, initial_epoch=2)
        check_equal(state(saved), state(whole))

    @pytest.mark.slow
    def test_replicas_save_and_load(self, mirrored, tmp_path):
        with mirrored.scope():
            model = self.compiled(QUICK)
        self.fit(model)  # ends within a window
        path = str(tmp_path / "model.keras")
        model.save(path)
        one = self.library.models.load_model(path)
        with mirrored.scope():
            two = self.library.models.load_model(path)
        for run in (model, one, two):
            self.fit(run)
        check_close(weights(two), weights(model))
        check_close(weights(one), weights(model))

    def test_a_checkpoint_of_tensorflow_holds_the_state(self, tmp_path):
        model = self.compiled(QUICK)
        self.fit(model)
        saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        path = saved.save(str(tmp_path / "checkpoint"))
        names = [name for name, _ in tf.train.list_variables(path)]
        assert any("adamw/counters/iterations" in name for name in names)
        before = state(model)
        self.fit(model)
        tf_adamw.checkpoint.restore(saved, path, strict=True)
        check_equal(state(model), before)

    @pytest.mark.parametrize("registered", [True, False])
    def test_a_function_is_the_rate(self, registered, tmp_path):
        def constant():
            return 0.25

        def of_the_step(step):
            return 2.0 / (8.0 + tf.cast(step, "float32"))

        rate = constant if registered else of_the_step
        if registered:
            self.library.saving.register_keras_serializable("tests")(rate)
        model = self.model()
        optimizer = self.adapter.AdamW(rate, **PLAIN)
        model.compile(optimizer, "mse", run_eagerly=True)
        self.fit(model)
        path = str(tmp_path / "model.keras")
        model.save(path)
        objects = {} if registered else {rate.__name__: rate}
        loaded = self.library.models.load_model(path, custom_objects=objects)
        for one in (model, loaded):
            self.fit(one)
        check_equal(state(loaded), state(model))
        shown = float(loaded.optimizer.learning_rate)
        assert shown == (0.25 if registered else 0.125)

    def test_a_callable_that_cannot_be_saved(self):
        optimizer = self.adapter.AdamW(functools.partial(float, 0.25))
        with pytest.raises(ValueError, match=r"^learning_rate is ") as refusal:
            optimizer.get_config()
        assert "\n" not in str(refusal.value)

    def test_summaries(self, tmp_path):
        model = self.compiled({**PLAIN, "clipnorm": 1.0})
        optimizer, variables = model.optimizer, model.trainable_variables
        grads = [tf.ones(v.shape) for v in variables]
        optimizer.build(variables)
        with tf.summary.create_file_writer(str(tmp_path)).as_default():
            result = optimizer.adamw.apply(grads, variables)
            tf_adamw.write_summaries(optimizer, result)
            optimizer.apply_gradients(zip(grads, variables, strict=True))
            tf_adamw.write_summaries(optimizer)
        (path,) = map(str, tmp_path.glob("events*"))
        events = tf.compat.v1.train.summary_iterator(path)
        tags = [(v.tag, e.step) for e in events for v in e.summary.value]
        assert tags == [
            ("adamw/learning_rate", 1),
            ("adamw/grad_norm", 1),
            ("adamw/learning_rate", 2),
        ]
