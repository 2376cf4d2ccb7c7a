"""Hyperparameters that are assigned, read, held elsewhere or computed."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import Pair, both_modes, refused

pytestmark = pytest.mark.core

FIXED = {
    "beta_1": 0.5,
    "beta_2": 0.5,
    "epsilon": 0.5,
    "amsgrad": True,
    "clipnorm": 0.5,
    "clipvalue": 0.5,
    "global_clipnorm": 0.5,
    "use_ema": True,
    "ema_momentum": 0.5,
    "ema_overwrite_frequency": 2,
    "loss_scale_factor": 2.0,
    "gradient_accumulation_steps": 2,
    "skip_nonfinite": True,
    "jit_compile": False,
    "name": "other",
    "decay_coupling": "none",
    "base_learning_rate": 0.5,
    "sparse_updates": "lazy",
    "learning_rate_multipliers": {"kernel": 0.5},
    "weight_decay_multipliers": {"kernel": 0.5},
    "norm_groups": {"all": ""},
}


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, helpers.SHAPES)


@pytest.mark.parametrize("name", FIXED)
def test_what_programs_are_made_of_cannot_be_assigned(name):
    """An assignment that did nothing would lie, in get_config() too."""
    optimizer = tf_adamw.AdamW()
    config = optimizer.get_config()
    with pytest.raises(TypeError, match=f"^{name} is fixed"):
        setattr(optimizer, name, FIXED[name])
    assert optimizer.get_config() == config


@pytest.mark.parametrize(
    ("name", "value"), [("beta_1", 0.5), ("beta_2", 0.75), ("epsilon", 1e-3)]
)
def test_betas_and_epsilon_can_be_read(name, value):
    assert getattr(tf_adamw.AdamW(**{name: value}), name) == value
    variable = tf.Variable(value)
    assert getattr(tf_adamw.AdamW(**{name: variable}), name) is variable


@both_modes
def test_callable_with_defaults_is_called_without_arguments(
    rng, weights, jit_compile
):
    rate = [0.01]
    seen = []

    def learning_rate(scale=1.0, *more):
        seen.append((scale, more))
        return scale * rate[0]

    pair = Pair(weights, jit_compile, learning_rate=0.01)
    pair.optimizer = tf_adamw.AdamW(learning_rate, jit_compile=jit_compile)
    pair.optimizer.build(pair.variables)
    for value in (0.01, 0.02):
        rate[0] = pair.reference.learning_rate = value
        pair.train(rng, 1)
    assert set(seen) == {(1.0, ())}
    assert pair.error() <= 1e-6


@both_modes
def test_schedule_with_a_second_default(rng, weights, jit_compile):
    def schedule(step, slope=2.0**-13):
        return 2.0**-6 - slope * tf.cast(step, tf.float32)

    options = {"learning_rate": helpers.LinearDecay()}
    pair = Pair(weights, jit_compile, **options)
    pair.optimizer = tf_adamw.AdamW(schedule, jit_compile=jit_compile)
    pair.optimizer.build(pair.variables)
    pair.train(rng, 4)
    assert pair.error() <= 1e-6


@both_modes
@pytest.mark.parametrize("form", ["variable", "tensor"])
def test_learning_rate_assigned_in_a_function(rng, weights, form, jit_compile):
    pair = Pair(weights, jit_compile)
    source = tf.Variable(0.25)
    value = {"variable": lambda: source, "tensor": lambda: source * 1.0}[form]

    @tf.function
    def step(gradients):
        pair.optimizer.learning_rate = value()
        pair.optimizer.apply(gradients)

    for rate in (0.25, 0.125):
        source.assign(rate)
        pair.reference.learning_rate = rate
        gradients = helpers.random_gradients(rng, weights)
        step(helpers.to_gradients(gradients.values()))
        pair.reference.apply(gradients)
        assert float(pair.optimizer.learning_rate) == rate
    assert pair.error() <= 5e-6


VECTORS = {
    "schedule": lambda step: tf.fill([5], 0.1),
    "callable": lambda: tf.fill([5], 0.1),
    "numpy callable": lambda: np.full(5, 0.1),
    "integer schedule": lambda step: step,
    "negative callable": lambda: -0.5,
    "schedule of nothing": lambda step: None,
    "callable of nothing": lambda: None,
}


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_value_that_is_no_number_is_refused(weights, kind, name):
    pair = Pair(weights, "auto")
    pair.optimizer = tf_adamw.AdamW(**{name: VECTORS[kind]})
    pair.optimizer.build(pair.variables)
    gradients = [tf.ones_like(w) for w in weights.values()]
    refused(pair, lambda: pair.optimizer.apply(gradients), f"^{name} ")


@both_modes
def test_schedule_that_needs_a_python_number(weights, jit_compile):
    pair = Pair(weights, jit_compile)
    pair.optimizer = tf_adamw.AdamW(
        lambda step: 0.1 if step < 10 else 0.01, jit_compile=jit_compile
    )
    pair.optimizer.build(pair.variables)
    gradients = [tf.ones_like(w) for w in weights.values()]
    refused(
        pair,
        lambda: pair.optimizer.apply(gradients),
        "learning_rate.*schedule.*TensorFlow",
    )


@pytest.mark.parametrize(
    "factor",
    [
        -0.5,
        float("nan"),
        True,
        "0.5",
        None,
        tf.constant([0.5]),
        tf.Variable([0.5]),
        tf.Variable(1),
    ],
    ids=repr,
)
def test_multiplier_that_is_no_number_is_refused(factor):
    with pytest.raises(ValueError, match=r"multipliers.*'kernel'.*got "):
        tf_adamw.AdamW(learning_rate_multipliers={"kernel": factor})


@both_modes
def test_multiplier_variables_are_live_and_not_saved(
    rng, weights, jit_compile, tmp_path
):
    factor = tf.Variable(0.5)
    pair = Pair(weights, jit_compile, learning_rate_multipliers={"kernel": 0.5})
    plain = pair.optimizer
    pair.optimizer = tf_adamw.AdamW(
        learning_rate_multipliers={"kernel": factor}, jit_compile=jit_compile
    )
    pair.optimizer.build(pair.variables)
    for value in (0.5, 0.0, 2.0):
        factor.assign(value)
        pair.reference.multipliers["kernel"] = value
        pair.train(rng, 1)
    assert pair.error() <= 1e-6
    keys = []
    for number, optimizer in enumerate((plain, pair.optimizer)):
        checkpoint = tf.train.Checkpoint(optimizer=optimizer)
        path = checkpoint.save(tmp_path / str(number))
        keys.append(set(helpers.checkpoint_values(path)))
    assert keys[0] == keys[1]
    assert all(v is not factor for v in pair.optimizer.variables)
