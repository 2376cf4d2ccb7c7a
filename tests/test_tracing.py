"""One trace over a whole run, and the places where a step may be called."""

import importlib.metadata
import re

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import JIT_MODES, Pair, both_modes

pytestmark = pytest.mark.core


def traces(functions):
    return sum(f.experimental_get_tracing_count() for f in functions)


def test_xla_is_tested_wherever_it_exists():
    installed = {d.name for d in importlib.metadata.distributions()}
    wheel_without_xla = bool({"tensorflow-tpu", "tensorflow_tpu"} & installed)
    assert ([False] if wheel_without_xla else [True, False]) == JIT_MODES


@both_modes
def test_eager_steps_trace_once(rng, functions, jit_compile):
    held = {
        "beta_1": tf.Variable(0.9),
        "beta_2": tf.Variable(0.999),
        "epsilon": tf.Variable(1e-7),
    }
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile)
    pair.optimizer = tf_adamw.AdamW(jit_compile=jit_compile, **held)
    pair.optimizer.build(pair.variables)
    pair.train(rng, 2)
    first = traces(functions)
    assert first > 0
    changes = [("learning_rate", 0.01), ("weight_decay", 0.25)]
    for name, value in changes:
        setattr(pair.optimizer, name, value)
        setattr(pair.reference, name, value)
        pair.train(rng, 2)
    for name, value in [("beta_1", 0.5), ("beta_2", 0.75), ("epsilon", 0.5)]:
        held[name].assign(value)
        setattr(pair.reference, name, value)
        pair.train(rng, 2)
    pair.optimizer.learning_rate.assign(0.02)
    pair.reference.learning_rate = 0.02
    pair.train(rng, 6)
    assert traces(functions) == first
    assert pair.error() <= 2e-6


@both_modes
@pytest.mark.parametrize("option", ["everything", "ema_overwrite"])
def test_windows_and_overwrites_trace_once(rng, functions, option, jit_compile):
    """The update's program is traced when the first window is complete."""
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile, **helpers.OPTIONS[option])
    pair.train(rng, pair.reference.window)
    first = traces(functions)
    pair.train(rng, 13)
    assert traces(functions) == first > 0


@both_modes
def test_learning_rate_held_outside(rng, jit_compile):
    rate = tf.Variable(0.01)
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile)
    pair.optimizer = tf_adamw.AdamW(rate, jit_compile=jit_compile)
    pair.optimizer.build(pair.variables)
    for value in (0.01, 0.03, 0.001):
        rate.assign(value)
        pair.reference.learning_rate = value
        pair.train(rng, 2)
    assert pair.error() <= 1e-6


@both_modes
def test_a_user_function_traces_once(rng, functions, jit_compile):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile)
    step = tf.function(lambda gradients: pair.optimizer.apply(gradients))
    for rate in (0.001, 0.01, 0.02, 0.03):
        pair.optimizer.learning_rate = pair.reference.learning_rate = rate
        gradients = helpers.random_gradients(rng, weights)
        step(helpers.to_gradients(gradients.values()))
        pair.reference.apply(gradients)
    assert step.experimental_get_tracing_count() == 1
    assert pair.error() <= 1e-6


@both_modes
def test_lazy_build_in_a_function(rng, jit_compile):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile)
    pair.optimizer = tf_adamw.AdamW(jit_compile=jit_compile, use_ema=True)
    variables = list(pair.variables.values())
    step = tf.function(lambda grads: pair.optimizer.apply(grads, variables))
    for _ in range(3):
        gradients = helpers.random_gradients(rng, weights)
        assert step(helpers.to_gradients(gradients.values())).applied
        pair.reference.apply(gradients)
    assert pair.optimizer.iterations == 3
    assert pair.error() <= 5e-7


plain_is_quick = pytest.mark.parametrize(
    "option", ["plain", pytest.param("everything", marks=pytest.mark.slow)]
)


@plain_is_quick
@pytest.mark.parametrize("mode", [*JIT_MODES, "auto"])
def test_in_a_while_loop(rng, mode, option):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, mode, **helpers.OPTIONS[option])
    gradients = [helpers.random_gradients(rng, weights, 500) for _ in range(6)]
    stacked = {k: np.stack([g[k] for g in gradients]) for k in weights}

    @tf.function
    def train(stacked):
        applied = tf.constant(0)
        for i in tf.range(6):
            result = pair.optimizer.apply([stacked[key][i] for key in weights])
            applied += tf.cast(result.applied, tf.int32)
        return applied

    applied = train({k: tf.constant(v) for k, v in stacked.items()})
    for gradient in gradients:
        pair.reference.apply(gradient)
    assert applied == pair.reference.iterations == pair.optimizer.iterations
    assert pair.error() <= 1e-6


@plain_is_quick
@pytest.mark.parametrize("mode", [*JIT_MODES, "auto"])
@pytest.mark.parametrize("outer_jit", JIT_MODES)
def test_in_the_callers_compiled_function(rng, outer_jit, mode, option):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    options = dict(helpers.OPTIONS[option])
    if outer_jit and mode is False:
        # XLA has no kernel for TensorFlow's fused AMSGrad.
        options["amsgrad"] = False
    pair = Pair(weights, mode, **options)

    @tf.function(jit_compile=outer_jit)
    def step(gradients):
        return pair.optimizer.apply(gradients).applied

    for _ in range(4):
        gradients = helpers.random_gradients(rng, weights, 500)
        tensors = helpers.to_gradients(gradients.values())
        applied = step(tensors)
        assert bool(applied) is pair.reference.apply(gradients)[0]
    assert pair.error() <= 1e-6
    if outer_jit and option == "plain":
        check_inlined(step, tensors)


def check_inlined(step, tensors):
    """Asserts that the update is in the caller's own program."""
    hlo = step.experimental_get_compiler_ir(tensors)(stage="hlo")
    _, entry = hlo.split("\nENTRY ")
    for shape in (r"3,5", "5", ""):
        # XLA makes a square root of the power later.
        root = rf"f32\[{shape}\]\S* (sqrt|power)\("
        assert re.search(root, entry)
    assert "call(" not in entry


@both_modes
def test_in_a_conditional(rng, jit_compile):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile)

    @tf.function
    def step(gradients, wanted):
        if wanted:
            pair.optimizer.apply(gradients)

    for wanted in (True, False, True):
        gradients = helpers.random_gradients(rng, weights)
        tensors = helpers.to_gradients(gradients.values())
        step(tensors, tf.constant(wanted))
        if wanted:
            pair.reference.apply(gradients)
    assert pair.optimizer.iterations == 2
    assert pair.error() <= 5e-7


@pytest.mark.parametrize("mode", [*JIT_MODES, "auto"])
def test_variables_on_another_device(rng, mode):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    with tf.device("/cpu:3"):
        pair = Pair(weights, mode)
    pair.optimizer = tf_adamw.AdamW(jit_compile=mode)
    pair.optimizer.build(pair.variables)
    pair.train(rng, 2)
    step = tf.function(lambda gradients: pair.optimizer.apply(gradients))
    gradients = helpers.random_gradients(rng, weights)
    step(helpers.to_gradients(gradients.values()))
    pair.reference.apply(gradients)
    assert pair.error() <= 5e-7


def test_variables_on_two_devices(rng):
    """No single XLA program can hold them: "auto" finds another way."""
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, "auto")
    with tf.device("/cpu:1"):
        moved = tf.Variable(weights["kernel"], name="kernel")
    pair.variables["kernel"] = moved
    pair.optimizer = tf_adamw.AdamW(jit_compile="auto")
    pair.optimizer.build(pair.variables)
    pair.train(rng, 3)
    slot = pair.optimizer.get_slot(moved, "momentum")
    assert slot.device == moved.device
    step = tf.function(lambda gradients: pair.optimizer.apply(gradients))
    gradients = helpers.random_gradients(rng, weights)
    step(helpers.to_gradients(gradients.values()))
    pair.reference.apply(gradients)
    assert pair.error() <= 5e-7


@both_modes
def test_one_device_strategy(rng, jit_compile):
    strategy = tf.distribute.OneDeviceStrategy("/cpu:2")
    weights = helpers.random_weights(rng, helpers.SHAPES)
    with strategy.scope():
        pair = Pair(weights, jit_compile)
    step = tf.function(lambda g: strategy.run(pair.optimizer.apply, (g,)))
    for _ in range(3):
        gradients = helpers.random_gradients(rng, weights)
        step(helpers.to_gradients(gradients.values()))
        pair.reference.apply(gradients)
    slot = pair.optimizer.get_slot(pair.variables["bias"], "velocity")
    assert slot.device.endswith("CPU:2")
    assert pair.error() <= 5e-7
