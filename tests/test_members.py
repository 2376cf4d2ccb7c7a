"""The members of the optimizer other than `apply`."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import Pair, both_modes

pytestmark = pytest.mark.core


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, helpers.SHAPES)


def test_it_is_a_module_that_lists_its_state(weights):
    pair = Pair(weights, "auto", amsgrad=True, use_ema=True)
    optimizer = pair.optimizer
    assert isinstance(optimizer, tf.Module)
    assert optimizer.name == "adamw"
    listed = {id(v) for v in optimizer.variables}
    for variable in pair.variables.values():
        assert id(variable) not in listed
    # Per variable momentum, velocity, velocity_max and average; iterations,
    # learning_rate, weight_decay and format_version.
    assert len(listed) == 4 * len(weights) + 4
    assert id(optimizer.iterations) in listed
    assert optimizer.iterations.dtype == tf.int64
    assert not optimizer.trainable_variables


@both_modes
def test_build_again_adds_the_new_variables(rng, weights, jit_compile):
    pair = Pair(weights, jit_compile)
    pair.train(rng, 3)
    before = {k: pair.slot(k, "momentum") for k in weights}
    added = tf.Variable([1.0, 2.0], name="added")
    pair.optimizer.build({**pair.variables, "added": added})
    for key, momentum in before.items():
        np.testing.assert_array_equal(pair.slot(key, "momentum"), momentum)
    assert pair.optimizer.iterations == 3
    pair.optimizer.apply([tf.ones([2])], [added])
    velocity = pair.optimizer.get_slot(added, "velocity")
    np.testing.assert_allclose(velocity, [0.001, 0.001], rtol=5e-5)


def test_scale_loss():
    loss = tf.constant(3.0)
    assert tf_adamw.AdamW(loss_scale_factor=8.0).scale_loss(loss) == 24.0
    assert tf_adamw.AdamW().scale_loss(loss) is loss


def test_scaled_loss_keeps_its_dtype():
    loss = tf.constant(3.0, tf.float16)
    scaled = tf_adamw.AdamW(loss_scale_factor=8.0).scale_loss(loss)
    assert scaled.dtype == tf.float16


def test_learning_rate_and_weight_decay_are_variables():
    optimizer = tf_adamw.AdamW(0.25, 0.5)
    assert isinstance(optimizer.learning_rate, tf.Variable)
    optimizer.learning_rate = 0.125
    assert float(optimizer.learning_rate) == 0.125
    optimizer.learning_rate.assign(0.0625)
    assert float(optimizer.learning_rate) == 0.0625
    assert float(optimizer.weight_decay) == 0.5
    optimizer.weight_decay = 0.25
    assert float(optimizer.weight_decay) == 0.25


def test_bad_learning_rate_is_refused_by_the_setter():
    optimizer = tf_adamw.AdamW(0.25)
    with pytest.raises(ValueError, match=r"learning_rate.*-1"):
        optimizer.learning_rate = -1.0
    assert float(optimizer.learning_rate) == 0.25


def test_learning_rate_of_a_schedule_is_its_current_value(rng, weights):
    pair = Pair(weights, "auto", learning_rate=helpers.LinearDecay())
    assert float(pair.optimizer.learning_rate) == 2.0**-6
    pair.train(rng, 2)
    assert float(pair.optimizer.learning_rate) == 2.0**-6 - 2.0**-12


@both_modes
@pytest.mark.parametrize("dtype", helpers.NUMPY_DTYPE)
def test_averaged_weights_restores_every_bit(rng, dtype, jit_compile):
    weights = helpers.random_weights(rng, helpers.SHAPES, dtype)
    pair = Pair(weights, jit_compile, learning_rate=0.1, use_ema=True)
    pair.train(rng, 3)
    before = helpers.snapshot(pair.optimizer, pair.variables.values())
    with pytest.raises(KeyError), pair.optimizer.averaged_weights():
        for key, variable in pair.variables.items():
            average = pair.slot(key, "average").astype(weights[key].dtype)
            np.testing.assert_array_equal(variable.numpy(), average)
            assert not np.array_equal(average, weights[key])
        raise KeyError("the weights come back after an error too")
    after = helpers.snapshot(pair.optimizer, pair.variables.values())
    assert after == before


def test_averaged_weights_needs_an_average(weights):
    pair = Pair(weights, "auto")
    with (
        pytest.raises(ValueError, match="use_ema"),
        pair.optimizer.averaged_weights(),
    ):
        pass


@both_modes
def test_finalize_variable_values(rng, weights, jit_compile):
    pair = Pair(weights, jit_compile, learning_rate=0.1, use_ema=True)
    pair.train(rng, 3)
    bias = pair.variables["bias"].numpy()
    pair.optimizer.finalize_variable_values([pair.variables["kernel"]])
    averages = {k: pair.slot(k, "average").astype(np.float32) for k in weights}
    kernel = pair.variables["kernel"].numpy()
    np.testing.assert_array_equal(kernel, averages["kernel"])
    np.testing.assert_array_equal(pair.variables["bias"].numpy(), bias)
    pair.optimizer.finalize_variable_values()
    for key, variable in pair.variables.items():
        np.testing.assert_array_equal(variable.numpy(), averages[key])


def test_finalize_without_an_average_changes_nothing(weights):
    pair = Pair(weights, "auto")
    pair.optimizer.finalize_variable_values(list(pair.variables.values()))
    for key, variable in pair.variables.items():
        np.testing.assert_array_equal(variable.numpy(), weights[key])


@pytest.mark.parametrize(
    "option",
    [o for o in helpers.OPTIONS if "schedule" not in o and o != "everything"],
)
def test_config_round_trip(rng, weights, option):
    options = {**helpers.OPTIONS[option], "learning_rate": 0.03, "name": "it"}
    optimizer = tf_adamw.AdamW(**options, jit_compile=False)
    config = json.loads(json.dumps(optimizer.get_config()))
    for key, value in options.items():
        plain = dataclasses.is_dataclass(value)
        assert config[key] == (dataclasses.asdict(value) if plain else value)
    again = tf_adamw.AdamW.from_config(config)
    assert again.get_config() == optimizer.get_config()
    runs = []
    scale = helpers.gradient_scale(options)
    gradients = helpers.random_gradients(rng, weights, scale)
    for run in (optimizer, again):
        variables = helpers.as_variables(weights)
        run.build(variables)
        for _ in range(4):
            run.apply(helpers.to_gradients(gradients.values()))
        runs.append(helpers.snapshot(run, variables.values()))
    assert runs[0] == runs[1]


def test_config_names_every_constructor_argument():
    config = tf_adamw.AdamW().get_config()
    code = tf_adamw.AdamW.__init__.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    assert set(config) == set(names) - {"self"}


def test_config_has_the_current_learning_rate():
    optimizer = tf_adamw.AdamW(0.5)
    optimizer.learning_rate = 0.25
    assert optimizer.get_config()["learning_rate"] == 0.25


def test_summary(weights):
    pair = Pair(
        weights,
        "auto",
        use_ema=True,
        exclude_from_weight_decay=["bias"],
        learning_rate_multipliers={"kernel": 0.375},
    )
    summary = pair.optimizer.summary()
    lines = {
        key: next(line for line in summary.splitlines() if key in line)
        for key in weights
    }
    for line in lines.values():
        assert "float32" in line
        for slot in ("momentum", "velocity", "average"):
            assert slot in line
    assert "0.375" in lines["kernel"]
    # Three float32 slots of 3 x 5 elements.
    assert "180" in lines["kernel"]


@both_modes
def test_exclusion_by_predicate(rng, weights, jit_compile):
    pair = Pair(weights, jit_compile, exclude_from_weight_decay=["bias"])
    pair.optimizer = tf_adamw.AdamW(
        exclude_from_weight_decay=lambda key: key == "bias",
        jit_compile=jit_compile,
    )
    pair.optimizer.build(pair.variables)
    pair.train(rng, 5)
    assert pair.error() <= 1e-6


@both_modes
def test_patterns_are_searched_in_names_too(jit_compile):
    """Of two keys without a meaning one is of a variable named "bias"."""
    variables = {
        "p0": tf.Variable([1.0], name="kernel"),
        "p1": tf.Variable([1.0], name="layer/bias"),
        "p2": tf.Variable([1.0], name="embedding"),
    }
    optimizer = tf_adamw.AdamW(
        0.5,
        0.5,
        exclude_from_weight_decay=["bias$"],
        learning_rate_multipliers={"^p2$": 0.5, "kernel": 0.0},
        jit_compile=jit_compile,
    )
    optimizer.build(variables)
    optimizer.apply([tf.zeros([1])] * 3)
    values = [v.numpy()[0] for v in variables.values()]
    np.testing.assert_allclose(values, [1.0, 1.0, 0.875], rtol=1e-6)
