"""Factors of zero: the variable and its state stay, bit for bit."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import strategies
from helpers import JIT_MODES, Pair, both_modes
from strategies import ReplicaPair

pytestmark = pytest.mark.core

OPTIONS = {
    "plain": {},
    "amsgrad, clip": {"amsgrad": True, "global_clipnorm": 0.5},
    "average": {"use_ema": True, "ema_momentum": 0.75},
    "overwrite": helpers.OPTIONS["ema_overwrite"],
    "accumulation": {"gradient_accumulation_steps": 2},
    "everything": helpers.OPTIONS["everything"],
}
KEY = "kernel"


@pytest.fixture
def weights(rng):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    weights[KEY][0, 0] = -0.0
    return weights


def traces(functions):
    return sum(f.experimental_get_tracing_count() for f in functions)


def options_with(factor, option):
    options = dict(OPTIONS[option], learning_rate_multipliers={KEY: factor})
    return {"learning_rate": 0.01, **options}


def new_pair(weights, jit_compile, factor, option="plain", **more):
    """A pair whose factor on the kernel is a variable or a number."""
    pair = Pair(
        weights, jit_compile, **{**options_with(factor, option), **more}
    )
    set_reference(pair, factor)
    return pair


def set_reference(pair, factor):
    number = float(tf.convert_to_tensor(factor))
    pair.reference.multipliers = {KEY: number}


def state_bytes(pair, key=KEY):
    """The bits of a variable and of its state, but for the window's sum."""
    slots = pair.optimizer.slots[key].items()
    held = [slot for name, slot in slots if name != "accumulator"]
    return [
        copy.numpy().tobytes()
        for v in (pair.variables[key], *held)
        for copy in tf.distribute.get_strategy().experimental_local_results(v)
    ]


@both_modes
@pytest.mark.parametrize("option", OPTIONS)
def test_freezes_and_thaws(rng, weights, functions, option, jit_compile):
    factor = tf.Variable(0.0)
    pair = new_pair(weights, jit_compile, factor, option)
    updates, seen = 3 * pair.reference.window, []
    for number in (0.0, 1.0, 0.0, 0.5):
        factor.assign(number)
        set_reference(pair, factor)
        before = state_bytes(pair)
        pair.train(rng, updates)
        assert (state_bytes(pair) == before) == (number == 0)
        seen.append(traces(functions))
    assert len(set(seen)) == 1, seen
    assert pair.error() <= 2e-6
    pair.check_moments()


@both_modes
def test_one_that_was_never_updated_has_no_average(rng, weights, jit_compile):
    pair = new_pair(weights, jit_compile, tf.Variable(0.0), "overwrite")
    pair.train(rng, 4)
    assert np.array_equal(pair.slot(KEY, "average"), weights[KEY])
    assert not pair.slot(KEY, "momentum").any()
    pair.optimizer.finalize_variable_values()
    assert pair.variables[KEY].numpy().tobytes() == weights[KEY].tobytes()


@both_modes
@pytest.mark.parametrize("kind", [float, int, np.float32, tf.Variable])
def test_its_gradient_counts_in_a_global_clip(rng, weights, kind, jit_compile):
    factor = kind(0.0)
    pair = new_pair(weights, jit_compile, factor, "amsgrad, clip")
    before = state_bytes(pair)
    for _ in range(3):
        gradients = helpers.random_gradients(rng, weights)
        gradients[KEY] *= 100.0
        result, (_, norm) = pair.step(gradients)
        np.testing.assert_allclose(result.grad_norm, norm, rtol=1e-6)
    assert norm > 100
    assert state_bytes(pair) == before
    assert pair.error() <= 2e-6
    pair.check_moments()


@both_modes
@pytest.mark.parametrize("kind", [float, tf.Variable])
def test_a_gradient_that_is_not_finite(rng, weights, kind, jit_compile):
    """It is not multiplied by zero: that would be NaN."""
    pair = new_pair(weights, jit_compile, kind(0.0), "average")
    before = state_bytes(pair)
    gradients = helpers.random_gradients(rng, weights)
    for value in (np.nan, np.inf, -np.inf):
        gradients[KEY] = np.full_like(gradients[KEY], value)
        pair.optimizer.apply(helpers.to_gradients(gradients.values()))
        pair.reference.apply({**gradients, KEY: None})
    assert state_bytes(pair) == before
    assert pair.error() <= 2e-6


@both_modes
@pytest.mark.parametrize("outer_jit", JIT_MODES)
@pytest.mark.parametrize("option", ["plain", "accumulation"])
def test_in_a_function(rng, weights, option, outer_jit, jit_compile):
    factor = tf.Variable(1.0)
    pair = new_pair(weights, jit_compile, factor, option)

    @tf.function(jit_compile=outer_jit)
    def step(gradients):
        return pair.optimizer.apply(gradients).applied

    for number in (1.0, 0.0, 0.0, 0.5, 0.0, 2.0):
        factor.assign(number)
        set_reference(pair, factor)
        before = state_bytes(pair)
        gradients = helpers.random_gradients(rng, weights)
        tensors = helpers.to_gradients(gradients.values())
        applied = bool(step(tensors))
        assert applied is pair.reference.apply(gradients)[0]
        assert (state_bytes(pair) != before) == (applied and number > 0)
    assert step.experimental_get_tracing_count() == 1
    assert pair.error() <= 2e-6


@both_modes
def test_assigned_in_the_function(rng, weights, jit_compile):
    """The value at the update counts, not the one before the function."""
    factor = tf.Variable(1.0)
    pair = new_pair(weights, jit_compile, factor)

    @tf.function
    def step(gradients, number):
        factor.assign(number)
        pair.optimizer.apply(gradients)

    for number in (0.0, 1.0, 0.0):
        pair.reference.multipliers = {KEY: number}
        gradients = helpers.random_gradients(rng, weights)
        step(helpers.to_gradients(gradients.values()), tf.constant(number))
        pair.reference.apply(gradients)
    assert pair.error() <= 2e-6


@both_modes
@pytest.mark.parametrize("built", [True, False])
def test_built_by_the_step_in_a_function(rng, weights, built, jit_compile):
    """The decay's factor, too, is read at each step."""
    rate, decay = tf.Variable(0.0), tf.Variable(0.0)
    options = {
        "learning_rate_multipliers": {KEY: rate},
        "weight_decay_multipliers": {"bias": decay},
    }
    pair = Pair(weights, jit_compile, weight_decay=0.5, **options)
    pair.optimizer = type(pair.optimizer)(
        weight_decay=0.5, jit_compile=jit_compile, **options
    )
    variables = list(pair.variables.values())
    if built:
        pair.optimizer.build(pair.variables)
    step = tf.function(lambda grads: pair.optimizer.apply(grads, variables))
    for number in (0.0, 1.0, 0.0, 2.0):
        rate.assign(number)
        decay.assign(number)
        pair.reference.multipliers = {KEY: number}
        pair.reference.decay_multipliers = {"bias": number}
        gradients = helpers.random_gradients(rng, weights)
        step(helpers.to_gradients(gradients.values()))
        pair.reference.apply(gradients)
    assert pair.error() <= 2e-6


@both_modes
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes(rng, dtype, jit_compile):
    weights = helpers.random_weights(rng, helpers.SHAPES, dtype)
    factor = tf.Variable(1.0, dtype=tf.float64)
    pair = new_pair(
        weights, jit_compile, factor, "overwrite", learning_rate=0.5
    )
    for number in (1.0, 0.0, 1.0):
        factor.assign(number)
        before = state_bytes(pair)
        pair.train(rng, 2)
        assert (state_bytes(pair) == before) == (number == 0)


@both_modes
def test_lazy_rows(rng, weights, jit_compile):
    factor = tf.Variable(0.0)
    pair = new_pair(weights, jit_compile, factor, "average")
    options = options_with(factor, "average")
    pair.optimizer = type(pair.optimizer)(
        jit_compile=jit_compile,
        sparse_updates="lazy",
        **options,
    )
    pair.optimizer.build(pair.variables)
    variables = [pair.variables[KEY], pair.variables["bias"]]
    for number in (0.0, 1.0, 0.0):
        factor.assign(number)
        before = state_bytes(pair)
        values = tf.constant(rng.standard_normal((2, 5)), tf.float32)
        rows = tf.IndexedSlices(values, tf.constant([2, 0]), (3, 5))
        pair.optimizer.apply([rows, tf.ones(5)], variables)
        assert (state_bytes(pair) == before) == (number == 0)


@pytest.mark.parametrize(
    ("where", "mode", "name"),
    [
        (where, mode, name)
        if mode is False or (where, name) == ("in scope", "mirrored_2")
        else pytest.param(where, mode, name, marks=pytest.mark.slow)
        for where in ("in scope", "outside")
        for mode in ("auto", False)
        for name in ("mirrored_2", "central_2")
    ],
)
def test_on_replicas(rng, weights, where, mode, name):
    strategy = strategies.named(name)
    factor = tf.Variable(1.0)
    if where == "in scope":
        with strategy.scope():
            factor = tf.Variable(1.0)
    options = options_with(factor, "everything" if mode else "overwrite")
    pair = ReplicaPair(strategy, weights, mode, **options)
    pair.held_outside = [factor] if where == "outside" else []
    for number in (1.0, 0.0, 0.5):
        factor.assign(number)
        pair.reference.multipliers = {KEY: number}
        with strategy.scope():
            before = state_bytes(pair)
        pair.train(rng, 2 * pair.reference.window)
        pair.check()
        with strategy.scope():
            assert (state_bytes(pair) == before) == (number == 0)


@pytest.mark.parametrize("mode", ["auto", False])
def test_a_number_on_replicas(rng, weights, mode):
    strategy = strategies.named("mirrored_2")
    options = options_with(0, "amsgrad, clip")
    pair = ReplicaPair(strategy, weights, mode, **options)
    pair.reference.last_gains[KEY] = 0.0  # It is never updated.
    pair.train(rng, 2)
    pair.check()
    assert pair.variables[KEY].numpy().tobytes() == weights[KEY].tobytes()
    assert not pair.slot(KEY, "velocity").any()
