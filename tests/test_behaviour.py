"""What one step does with its gradients, and what it returns."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import JIT_MODES, Pair, both_modes, compiled_is_slow

pytestmark = pytest.mark.core


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, helpers.SHAPES)


@compiled_is_slow
def test_missing_gradients_leave_variables_alone(rng, weights, jit_compile):
    pair = Pair(weights, jit_compile, use_ema=True, amsgrad=True)
    pair.train(rng, 2)
    names = ("momentum", "velocity", "velocity_max", "average")
    before = [pair.slot("bias", name) for name in names]
    weight = pair.variables["bias"].numpy()
    for _ in range(3):
        gradients = helpers.random_gradients(rng, weights)
        pair.step({**gradients, "bias": None})
    np.testing.assert_array_equal(pair.variables["bias"].numpy(), weight)
    for name, value in zip(names, before, strict=True):
        np.testing.assert_array_equal(pair.slot("bias", name), value)
    assert pair.optimizer.iterations == 5
    assert pair.error() <= 1e-6


@compiled_is_slow
def test_missing_gradients_count_zero_in_a_window(rng, weights, jit_compile):
    pair = Pair(weights, jit_compile, gradient_accumulation_steps=3)
    for missing in ("kernel", "bias", "scale", "kernel", "kernel", "bias"):
        gradients = helpers.random_gradients(rng, weights)
        pair.step({**gradients, missing: None})
    assert pair.optimizer.iterations == 2
    pair.check_moments()
    assert pair.error() <= 1e-6


@compiled_is_slow
def test_missing_for_a_whole_window(rng, weights, jit_compile):
    """Left alone, as by a None without accumulation: not even decayed."""
    pair = Pair(weights, jit_compile, gradient_accumulation_steps=2)
    pair.train(rng, 2)
    before = [pair.slot("bias", name) for name in ("momentum", "velocity")]
    weight = pair.variables["bias"].numpy()
    for _ in range(2):
        gradients = helpers.random_gradients(rng, weights)
        pair.step({**gradients, "bias": None})
    np.testing.assert_array_equal(pair.variables["bias"].numpy(), weight)
    after = [pair.slot("bias", name) for name in ("momentum", "velocity")]
    np.testing.assert_array_equal(after, before)
    assert pair.optimizer.iterations == 2
    assert pair.error() <= 1e-6


@compiled_is_slow
def test_accumulator_is_zero_between_windows(rng, weights, jit_compile):
    pair = Pair(weights, jit_compile, gradient_accumulation_steps=2)
    for expected_zero in (False, True, False, True):
        pair.train(rng, 1)
        for key in weights:
            accumulator = pair.slot(key, "accumulator")
            expected = pair.reference.slots["accumulator"][key]
            np.testing.assert_allclose(accumulator, expected, rtol=1e-6)
            assert np.all(accumulator == 0) == expected_zero


@both_modes
def test_subsets_in_any_order(rng, weights, jit_compile):
    pair = Pair(weights, jit_compile)
    for keys in (["scale", "bias"], ["kernel"], ["bias", "kernel", "scale"]):
        gradients = helpers.random_gradients(rng, weights)
        pair.step({key: gradients[key] for key in keys})
    assert pair.optimizer.iterations == 3
    assert pair.error() <= 5e-7


@compiled_is_slow
def test_apply_gradients_takes_pairs(rng, weights, jit_compile):
    pair = Pair(weights, jit_compile)
    for order in (list(weights), list(weights)[::-1]):
        gradients = helpers.random_gradients(rng, weights)
        pairs = ((tf.constant(gradients[k]), pair.variables[k]) for k in order)
        result = pair.optimizer.apply_gradients(grads_and_vars=pairs)
        assert isinstance(result, tf_adamw.ApplyResult)
        pair.reference.apply(gradients)
    assert pair.error() <= 5e-7


@compiled_is_slow
def test_apply_without_variables_takes_the_order_of_build(
    rng, weights, jit_compile
):
    pair = Pair(weights, jit_compile)
    gradients = helpers.random_gradients(rng, weights)
    pair.optimizer.apply(grads=helpers.to_gradients(gradients.values()))
    pair.reference.apply(gradients)
    assert pair.error() <= 5e-7


@both_modes
def test_numpy_gradients(rng, weights, jit_compile):
    pair = Pair(weights, jit_compile)
    gradients = helpers.random_gradients(rng, weights)
    pair.optimizer.apply(list(gradients.values()))
    pair.reference.apply(gradients)
    assert pair.error() <= 5e-7


@both_modes
def test_result(rng, weights, jit_compile):
    pair = Pair(weights, jit_compile)
    gradients = helpers.random_gradients(rng, weights)
    result, _ = pair.step(gradients)
    assert result.applied.dtype == tf.bool
    assert bool(result.applied)
    assert result.grad_norm is None
    applied, grad_norm = result.applied, result.grad_norm
    assert applied is result.applied and grad_norm is None


@compiled_is_slow
@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm"])
def test_result_has_the_norm_before_the_clipping(
    rng, weights, clipping, jit_compile
):
    options = {clipping: 0.01, "loss_scale_factor": 8.0}
    pair = Pair(weights, jit_compile, **options)
    gradients = helpers.random_gradients(rng, weights, 8.0)
    result, (_, norm) = pair.step(gradients)
    assert result.grad_norm.dtype == tf.float32
    np.testing.assert_allclose(result.grad_norm, norm, rtol=1e-6)
    pair = Pair(weights, jit_compile, gradient_accumulation_steps=2, **options)
    for expect_applied in (False, True):
        result, (_, norm) = pair.step(gradients)
        assert bool(result.applied) is expect_applied
        assert np.isnan(result.grad_norm) == (not expect_applied)
    np.testing.assert_allclose(result.grad_norm, norm, rtol=1e-6)


@compiled_is_slow
def test_micro_steps_equal_one_big_batch(rng, weights, jit_compile):
    inputs = rng.standard_normal((12, 3)).astype(np.float32)

    def gradients(variables, batch):
        with tf.GradientTape() as tape:
            outputs = tf.tanh(batch @ variables["kernel"] + variables["bias"])
            loss = tf.reduce_mean(outputs * variables["scale"])
        return tape.gradient(loss, list(variables.values()))

    runs, moments = [], []
    for steps in (1, 4):
        variables = helpers.as_variables(weights)
        optimizer = tf_adamw.AdamW(
            gradient_accumulation_steps=steps, jit_compile=jit_compile
        )
        optimizer.build(variables)
        for _ in range(3):
            for batch in np.split(inputs, steps):
                optimizer.apply(gradients(variables, tf.constant(batch)))
        assert optimizer.iterations == 3
        runs.append(helpers.values(variables))
        moments.append(
            [
                optimizer.get_slot(variable, name).numpy()
                for variable in variables.values()
                for name in ("momentum", "velocity")
            ]
        )
    for key in weights:
        np.testing.assert_allclose(runs[0][key], runs[1][key], rtol=1e-6)
    for one, other in zip(*moments, strict=True):
        scale = np.max(np.abs(one))
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * scale)


@compiled_is_slow
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_skip_nonfinite_leaves_every_bit(rng, weights, bad, jit_compile):
    pair = Pair(
        weights,
        jit_compile,
        skip_nonfinite=True,
        use_ema=True,
        ema_overwrite_frequency=2,
        amsgrad=True,
    )
    pair.train(rng, 1)
    before = helpers.snapshot(pair.optimizer, pair.variables.values())
    gradients = helpers.random_gradients(rng, weights)
    gradients["kernel"][1, 1] = bad
    result, _ = pair.step(gradients)
    assert not result.applied
    after = helpers.snapshot(pair.optimizer, pair.variables.values())
    assert after == before
    pair.train(rng, 3)
    assert pair.error() <= 1e-6


@compiled_is_slow
@pytest.mark.parametrize("bad_micro_step", [0, 1, 2])
def test_a_bad_window_is_dropped_whole(
    rng, weights, bad_micro_step, jit_compile
):
    pair = Pair(
        weights,
        jit_compile,
        learning_rate=helpers.LinearDecay(),
        skip_nonfinite=True,
        gradient_accumulation_steps=3,
    )
    pair.train(rng, 3)
    before = helpers.values(pair.variables)
    for micro_step in range(3):
        gradients = helpers.random_gradients(rng, weights)
        if micro_step == bad_micro_step:
            gradients["bias"][0] = np.nan
        result, _ = pair.step(gradients)
        assert not result.applied
    assert pair.optimizer.iterations == 1
    for key, variable in pair.variables.items():
        np.testing.assert_array_equal(variable.numpy(), before[key])
        np.testing.assert_array_equal(pair.slot(key, "accumulator"), 0.0)
    pair.train(rng, 6)
    assert pair.optimizer.iterations == 3
    pair.check_moments()
    assert pair.error() <= 1e-6


@pytest.mark.slow
@helpers.every_option
def test_both_paths_agree(rng, weights, option):
    options = helpers.OPTIONS[option]
    pairs = [Pair(weights, mode, **options) for mode in [*JIT_MODES, "auto"]]
    scale = helpers.gradient_scale(options)
    for _ in range(8):
        gradients = helpers.random_gradients(rng, weights, scale)
        for pair in pairs:
            pair.step(gradients)
    for pair in pairs[1:]:
        for key, variable in pair.variables.items():
            expected = pairs[0].variables[key]
            np.testing.assert_allclose(variable, expected, rtol=1e-6)
    for pair in pairs:
        pair.check_moments()
