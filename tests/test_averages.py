"""Averages of variables that come late: they start from the weights."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import Pair, both_modes
from tf_adamw import averaging
from tf_adamw.dtypes import arithmetic_dtype

pytestmark = pytest.mark.core

SHAPES = {"kernel": (3, 5), "bias": (5,)}

EMA = {"learning_rate": 0.1, "use_ema": True, "ema_momentum": 0.75}


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, SHAPES)


def step_without(pair, rng, missing):
    gradients = helpers.random_gradients(rng, helpers.values(pair.variables))
    pair.step({**gradients, missing: None})


def check_averages(pair, tolerance=2e-6):
    assert pair.error() <= tolerance
    for key in pair.variables:
        expected = pair.reference.slots["average"][key]
        if key not in pair.reference.averaged:
            expected = pair.variables[key].numpy()
        average = pair.slot(key, "average")
        np.testing.assert_allclose(average, expected, rtol=tolerance)


def check_averaged_weights(pair, key):
    """Within the block `key` has its own weights, the others averages."""
    own = pair.variables[key].numpy()
    with pair.optimizer.averaged_weights():
        np.testing.assert_array_equal(pair.variables[key].numpy(), own)
        for other, variable in pair.variables.items():
            expected = pair.slot(other, "average").astype(np.float32)
            np.testing.assert_array_equal(variable.numpy(), expected)


@both_modes
def test_variable_without_a_gradient_so_far(rng, weights, jit_compile):
    pair = Pair(weights, jit_compile, **EMA)
    for _ in range(3):
        step_without(pair, rng, "bias")
        check_averages(pair)
    check_averaged_weights(pair, "bias")
    for _ in range(3):
        pair.train(rng, 1)
        check_averages(pair)


@both_modes
def test_variable_without_a_gradient_in_the_windows_so_far(
    rng, weights, jit_compile
):
    pair = Pair(weights, jit_compile, gradient_accumulation_steps=2, **EMA)
    for _ in range(4):
        step_without(pair, rng, "bias")
        check_averages(pair)
    check_averaged_weights(pair, "bias")
    for _ in range(5):
        pair.train(rng, 1)
        check_averages(pair)


@both_modes
def test_weights_assigned_before_the_first_update(rng, weights, jit_compile):
    """The average starts from what the weights are by then."""
    pair = Pair(weights, jit_compile, **EMA)
    step_without(pair, rng, "bias")
    loaded = np.full([5], 50.0, np.float32)
    pair.variables["bias"].assign(loaded)
    pair.reference.weights["bias"] = loaded.astype(float)
    check_averages(pair)
    check_averaged_weights(pair, "bias")
    pair.train(rng, 2)
    check_averages(pair)


@both_modes
@pytest.mark.parametrize("lazily", [True, False])
def test_variable_built_late(rng, weights, lazily, jit_compile):
    pair = Pair(weights, jit_compile, **EMA)
    pair.optimizer = tf_adamw.AdamW(jit_compile=jit_compile, **EMA)
    first = {k: v for k, v in pair.variables.items() if k != "bias"}
    pair.optimizer.build(first)
    for _ in range(3):
        gradients = helpers.random_gradients(rng, weights)
        pair.step({key: gradients[key] for key in first})
    if not lazily:
        pair.optimizer.build(pair.variables)
        check_averaged_weights(pair, "bias")
    for _ in range(3):
        pair.train(rng, 1)
        check_averages(pair)


@both_modes
@pytest.mark.parametrize("build_first", [True, False])
def test_checkpoint_without_its_average(
    rng, weights, build_first, jit_compile, tmp_path
):
    """Saved while "bias" was frozen; its weights are in the checkpoint."""
    pair = Pair(weights, jit_compile, **EMA)
    pair.optimizer = tf_adamw.AdamW(jit_compile=jit_compile, **EMA)
    trained = {k: v for k, v in pair.variables.items() if k != "bias"}
    pair.optimizer.build(trained)
    for _ in range(3):
        gradients = helpers.random_gradients(rng, weights)
        pair.step({key: gradients[key] for key in trained})
    checkpoint = helpers.checkpoint_of(pair.optimizer, pair.variables)
    path = checkpoint.save(tmp_path / "checkpoint")
    zeros = {k: np.zeros_like(w) for k, w in weights.items()}
    pair.variables = helpers.as_variables(zeros)
    pair.optimizer = tf_adamw.AdamW(jit_compile=jit_compile, **EMA)
    if build_first:
        pair.optimizer.build(pair.variables)
    helpers.checkpoint_of(pair.optimizer, pair.variables).restore(path)
    pair.optimizer.build(pair.variables)
    check_averages(pair)
    check_averaged_weights(pair, "bias")
    for _ in range(3):
        pair.train(rng, 1)
        check_averages(pair)


@both_modes
def test_ema_switched_on_at_resume(rng, weights, jit_compile, tmp_path):
    pair = Pair(weights, jit_compile, learning_rate=0.1)
    pair.train(rng, 4)
    other = pair.resumed(tmp_path, jit_compile, **EMA)
    check_averages(other)
    check_averaged_weights(other, "kernel")
    for _ in range(3):
        other.train(rng, 1)
        check_averages(other)


@both_modes
def test_amsgrad_switched_on_at_resume(rng, weights, jit_compile, tmp_path):
    """The largest velocity is sought among those from then on."""
    pair = Pair(weights, jit_compile, learning_rate=0.01, beta_2=0.5)
    pair.train(rng, 4, scale=4.0)
    other = pair.resumed(
        tmp_path, jit_compile, learning_rate=0.01, beta_2=0.5, amsgrad=True
    )
    for _ in range(3):
        other.train(rng, 1)
        assert other.error() <= 2e-6
        for key in weights:
            expected = other.reference.slots["velocity_max"][key]
            slot = other.slot(key, "velocity_max")
            np.testing.assert_allclose(slot, expected, rtol=2e-6)


def test_finalizing_a_variable_without_an_average(rng, weights):
    pair = Pair(weights, "auto", **EMA)
    step_without(pair, rng, "bias")
    pair.optimizer.finalize_variable_values()
    np.testing.assert_array_equal(
        pair.variables["bias"].numpy(), weights["bias"]
    )


def test_averages_are_swapped_outside_of_functions(weights):
    pair = Pair(weights, "auto", **EMA)

    def swap():
        with pair.optimizer.averaged_weights():
            pass

    function = tf.function(swap, autograph=False)
    helpers.refused(pair, function, "averaged_weights", "tf.function")
    unbuilt = tf_adamw.AdamW(use_ema=True)
    with (
        pytest.raises(ValueError, match=r"averaged_weights.*build"),
        unbuilt.averaged_weights(),
    ):
        pass


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.bfloat16])
@pytest.mark.parametrize("due", [True, False])
@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("compiled", helpers.JIT_MODES)
def test_all_ways_to_overwrite(rng, dtype, due, one_pass, compiled):
    """One pass over memory or two: the same average and the same weights."""
    wide = arithmetic_dtype(dtype)
    old = rng.standard_normal(64).astype(wide.as_numpy_dtype)
    old[::7] = np.nan  # variables that were never averaged
    new = tf.cast(rng.standard_normal(64), dtype)

    @tf.function(jit_compile=compiled, autograph=False)
    def average(due):
        both = averaging.moved_and_overwritten(
            tf.constant(old), new, 0.75, due, one_pass=one_pass
        )
        return both, averaging.moved(tf.constant(old), new, 0.75)

    (weights, moved), alone = average(tf.constant(due))
    # XLA may contract a product and the sum in one form and not in the other:
    # the roundings of two products and of two sums.
    terms = 0.75 * np.abs(np.nan_to_num(old)) + 0.25 * np.abs(_wide(new))
    roundings = 4 if compiled else 0
    bound = roundings * helpers.UNIT_ROUNDOFF[wide.name] * terms
    assert np.all(np.abs(_wide(moved) - _wide(alone)) <= bound)
    expected = tf.cast(moved, dtype) if due else new
    np.testing.assert_array_equal(_wide(weights), _wide(expected))


def _wide(tensor):
    return tf.cast(tensor, tf.float64).numpy()
