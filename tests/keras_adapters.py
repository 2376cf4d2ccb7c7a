"""Tests that the optimizers for Keras 3 and for tf_keras have in common."""

import numpy as np
import pytest
import tensorflow as tf

import strategies
import tf_adamw

BATCH = 16
ROWS = 4 * BATCH
INPUTS = np.random.default_rng(1).standard_normal((ROWS, 3)).astype("float32")
TARGETS = np.tanh(INPUTS @ np.float32([[1.0], [-2.0], [0.5]]))
EVERY_OPTION = {
    "weight_decay": 0.1,
    "amsgrad": True,
    "global_clipnorm": 0.1,
    "use_ema": True,
    "ema_momentum": 0.5,
    "gradient_accumulation_steps": 3,
    "loss_scale_factor": 8.0,
    "exclude_from_weight_decay": ["bias"],
    "learning_rate_multipliers": {"kernel": 0.5},
}
# Whose steps need no compiler.
PLAIN = {"jit_compile": False}
QUICK = {**EVERY_OPTION, **PLAIN}
HOW = {
    "function": {},
    "compiled": {"jit_compile": True},
    "eager": {"run_eagerly": True},
    "several steps": {"steps_per_execution": 3},
}


def raw(variable):
    """The `tf.Variable` of either library's variable."""
    value = getattr(variable, "value", None)
    return value if isinstance(value, tf.Variable) else variable


def weights(model):
    return [np.array(raw(v).numpy()) for v in model.trainable_variables]


def state(model):
    """All variables of the optimizer and the model."""
    held = [raw(v).numpy() for v in model.optimizer.variables]
    return [*held, *weights(model)]


def check_equal(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def check_close(actual, expected, tolerance=1e-5):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(
            one, other, rtol=tolerance, atol=tolerance / 10
        )


def by_hand(model, steps, **options):
    """The weights after each step of a loop of one's own."""
    optimizer = tf_adamw.AdamW(0.02, **options)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
            scaled = optimizer.scale_loss(loss)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(scaled, variables), variables)

    after = []
    for number in range(steps):
        start = number * BATCH % ROWS
        rows = slice(start, start + BATCH)
        step(INPUTS[rows], TARGETS[rows])
        after.append(weights(model))
    return after, optimizer


class Adapted:
    """Models that are compiled with an adapter.

    Attributes:
      library: the module `keras` or `tf_keras`.
      adapter: `tf_adamw.keras` or `tf_adamw.tf_keras`.
    """

    library = None
    adapter = None

    def model(self, units=4, **layer):
        """A model that starts from the same weights each time."""
        dense = self.library.layers.Dense
        model = self.library.Sequential(
            [dense(units, "tanh", **layer), dense(1)]
        )
        model.build((None, 3))
        random = np.random.default_rng(2)
        for variable in model.trainable_variables:
            variable.assign(random.standard_normal(variable.shape))
        return model

    def compiled(self, options, compile_options=(), **layer):
        model = self.model(**layer)
        optimizer = self.adapter.AdamW(0.02, **options)
        model.compile(optimizer, "mse", **dict(compile_options))
        return model

    def fit(self, model, epochs=1, **options):
        return model.fit(
            INPUTS,
            TARGETS,
            batch_size=BATCH,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            **options,
        ).history

    def steps_of(self, model, epochs, **options):
        """The weights after each call of the train function."""
        seen = []

        class Recorder(self.library.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                seen.append(weights(self.model))

        self.fit(model, epochs, callbacks=[Recorder()], **options)
        return seen


class AdapterTests(Adapted):
    """Subclassed for each library."""

    @pytest.mark.parametrize(
        "options",
        [{}, pytest.param(EVERY_OPTION, marks=pytest.mark.slow)],
        ids=["plain", "every option"],
    )
    def test_fit_is_a_loop_by_hand(self, options):
        looped = self.model()
        expected, optimizer = by_hand(looped, 8, **options)
        optimizer.finalize_variable_values()  # as `fit` does at its end
        for how, compile_options in HOW.items():
            model = self.compiled(options, compile_options)
            seen = self.steps_of(model, 2)
            goals = expected
            if how == "several steps":
                goals = [expected[step - 1] for step in (3, 4, 7, 8)]
            assert len(seen) == len(goals)
            for after, goal in zip(seen, goals, strict=True):
                check_close(after, goal)
            check_close(weights(model), weights(looped))
            assert model.optimizer.iterations == optimizer.iterations
        loss = model.evaluate(INPUTS, TARGETS, verbose=0)
        outputs = np.asarray(model(INPUTS))
        assert loss == pytest.approx(np.mean((outputs - TARGETS) ** 2), 1e-5)

    def test_callbacks_set_the_rate(self):
        model = self.compiled(PLAIN)
        callbacks = self.library.callbacks
        history = self.fit(
            model,
            3,
            callbacks=[
                callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
            ],
        )
        rates = history.get("learning_rate", history.get("lr"))
        np.testing.assert_allclose(rates, [0.01, 0.005, 0.0025], rtol=1e-6)
        plateau = callbacks.ReduceLROnPlateau(
            monitor="loss", factor=0.1, patience=0, min_delta=1e9
        )
        self.fit(model, 2, callbacks=[plateau])
        rate = float(model.optimizer.learning_rate)
        assert rate == pytest.approx(0.00025, rel=1e-6)
        config = model.optimizer.get_config()
        assert config["learning_rate"] == pytest.approx(rate, rel=1e-6)

    def test_a_schedule(self):
        schedules = self.library.optimizers.schedules
        model = self.model()
        schedule = schedules.ExponentialDecay(0.02, 1, 0.5)
        optimizer = self.adapter.AdamW(schedule)
        model.compile(optimizer, "mse")
        self.fit(model)
        rate = float(model.optimizer.learning_rate)
        assert rate == pytest.approx(0.02 / 16, rel=1e-6)
        copy = self.adapter.AdamW.from_config(optimizer.get_config())
        assert copy.get_config() == optimizer.get_config()
        with pytest.raises(TypeError, match="cannot be assigned"):
            optimizer.learning_rate = 0.1

    def test_replicas(self, mirrored):
        options = {
            **PLAIN,
            "global_clipnorm": 0.1,
            "gradient_accumulation_steps": 2,
        }
        expected, _ = by_hand(self.model(), 8, **options)
        with mirrored.scope():
            model = self.compiled(options)
        seen = self.steps_of(model, 2)
        check_close(seen[-1], expected[-1])
        held = [*model.trainable_variables, *model.optimizer.variables]
        for variable in map(raw, held):
            first, second = mirrored.experimental_local_results(variable)
            if "accumulator" not in variable.name:
                check_equal([second], [first])

    def bad_second_replica(self, model):
        """Fits one batch whose second half has an infinite gradient."""
        inputs = INPUTS[:BATCH].copy()
        inputs[BATCH // 2 :] = np.inf
        before = weights(model)
        model.fit(inputs, TARGETS[:BATCH], batch_size=BATCH, verbose=0)
        check_equal(weights(model), before)

    def test_constraints(self, mirrored):
        constraint = self.library.constraints.MaxNorm(0.3)
        for strategy in (strategies.named("default"), mirrored):
            with strategy.scope():
                model = self.compiled(PLAIN, kernel_constraint=constraint)
            self.fit(model)
            norms = np.linalg.norm(weights(model)[0], axis=0)
            assert np.all(norms < 0.3 + 1e-6)

    def test_members(self):
        model = self.compiled({**PLAIN, "clipnorm": 1.0, "name": "my_adamw"})
        optimizer = model.optimizer
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        self.fit(model)
        assert optimizer.name == "my_adamw"
        assert optimizer.clipnorm == 1.0
        assert optimizer.beta_1 == 0.9
        optimizer.weight_decay = 0.5
        config = optimizer.get_config()
        assert config["weight_decay"] == 0.5
        assert config["exclude_from_weight_decay"] == ["bias"]
        keys = {"keys": config["keys"]}
        assert config == {**optimizer.adamw.get_config(), **keys}
        with pytest.raises(TypeError, match="clipnorm is fixed"):
            optimizer.clipnorm = 2.0
        with pytest.raises(AttributeError, match="no attribute 'clip'"):
            _ = optimizer.clip
        again = self.library.optimizers.get(
            self.library.optimizers.serialize(optimizer)
        )
        assert type(again) is self.adapter.AdamW
        assert again.get_config() == config
        values = [raw(v).numpy() + 1 for v in optimizer.variables]
        optimizer.set_weights(values)
        check_equal([raw(v).numpy() for v in optimizer.variables], values)

    def test_constraints_leave_alone_what_a_step_does(self):
        factor = tf.Variable(0.0)
        none, nan = tf.zeros, lambda shape: tf.fill(shape, np.nan)
        cases = (
            ({"learning_rate_multipliers": {"kernel": 0.0}}, none, None),
            ({"learning_rate_multipliers": {"kernel": factor}}, none, none),
            ({"gradient_accumulation_steps": 2}, none, none),
            ({"skip_nonfinite": True}, nan, none),
        )
        constraint = self.library.constraints.MaxNorm(0.3)
        for options, first, second in cases:
            factor.assign(0.0)
            model = self.model(kernel_constraint=constraint)
            optimizer = self.adapter.AdamW(0.02, **PLAIN, **options)
            kernel = raw(model.trainable_variables[0])
            before = kernel.numpy()

            def step(gradient, model=model, optimizer=optimizer):
                variables = model.trainable_variables
                grads = [gradient(v.shape) for v in variables]
                optimizer.apply_gradients(zip(grads, variables, strict=True))

            step(first)
            check_equal([kernel.numpy()], [before])
            if second is not None:
                factor.assign(1.0)
                step(second)
                norms = np.linalg.norm(kernel.numpy(), axis=0)
                assert np.all(norms < 0.3 + 1e-6)
