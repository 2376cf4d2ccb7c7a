"""Variables on several devices, and strategies outside of their scope."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import strategies
import tf_adamw
from helpers import Pair, both_modes, refused

pytestmark = pytest.mark.core

SHAPES = {"kernel": (3, 5), "bias": (5,)}


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, SHAPES)


def on_devices(weights, mode, **options):
    """A pair whose bias is on another device than the rest, not yet built."""
    pair = Pair(weights, mode, **options)
    with tf.device("/cpu:1"):
        moved = tf.Variable(weights["bias"], name="bias")
    pair.variables["bias"] = moved
    pair.optimizer = tf_adamw.AdamW(jit_compile=mode, **options)
    return pair


def step_on(pair, rng, keys):
    gradients = helpers.random_gradients(rng, helpers.values(pair.variables))
    pair.step({key: gradients[key] for key in keys})


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},
        {"use_ema": True, "ema_momentum": 0.5},
        {"global_clipnorm": 0.5},
    ],
)
def test_subsets_of_variables_on_two_devices(rng, weights, options):
    """No single XLA program can hold them: "auto" finds another way."""
    pair = on_devices(weights, "auto", **options)
    pair.optimizer.build(pair.variables)
    for keys in (["bias"], ["kernel"], ["kernel", "bias"], ["kernel"]):
        step_on(pair, rng, keys)
    assert pair.optimizer.iterations == pair.reference.iterations > 1
    pair.check_moments(fused=True)
    assert pair.error() <= 1e-6
    for key in pair.reference.averaged:
        expected = pair.reference.slots["average"][key]
        average = pair.slot(key, "average")
        np.testing.assert_allclose(average, expected, rtol=1e-6)


@pytest.mark.parametrize("first", ["kernel", "bias"])
@pytest.mark.parametrize("lazily", [True, False])
def test_building_one_device_after_the_other(rng, weights, first, lazily):
    pair = on_devices(weights, "auto")
    later = "bias" if first == "kernel" else "kernel"
    for key in (first, later):
        if not lazily:
            pair.optimizer.build({key: pair.variables[key]})
        step_on(pair, rng, [key])
    for keys in ([later], [first, later]):
        step_on(pair, rng, keys)
    for key in (first, later):
        variable = pair.variables[key]
        slots = pair.optimizer.slots[key].values()
        assert {slot.device for slot in slots} == {variable.device}
    assert pair.optimizer.iterations == 4
    pair.check_moments(fused=True)
    assert pair.error() <= 1e-6


@pytest.mark.parametrize("mode", ["auto", False])
@pytest.mark.parametrize("held", ["learning_rate", "multiplier"])
def test_scalar_variable_on_another_device(rng, weights, held, mode):
    value = {"learning_rate": 0.01, "multiplier": 0.5}[held]
    with tf.device("/cpu:2"):
        scalar = tf.Variable(value)

    def options(x):
        if held == "learning_rate":
            return {held: x}
        return {"learning_rate_multipliers": {"kernel": x}}

    pair = Pair(weights, mode, **options(value))
    pair.optimizer = tf_adamw.AdamW(jit_compile=mode, **options(scalar))
    pair.optimizer.build(pair.variables)
    pair.train(rng, 2)
    step = tf.function(lambda gradients: pair.optimizer.apply(gradients))
    gradients = helpers.random_gradients(rng, weights)
    step(helpers.to_gradients(gradients.values()))
    pair.reference.apply(gradients)
    assert pair.error() <= 1e-6


def test_xla_alone_cannot_serve_two_devices(rng, weights):
    pair = on_devices(weights, True)
    pair.optimizer.build(pair.variables)
    refused(
        pair,
        lambda: step_on(pair, rng, weights),
        "jit_compile=True",
        "CPU:0",
        "CPU:1",
    )


@pytest.mark.parametrize("mode", ["auto", False])
@pytest.mark.parametrize("where", ["in scope", "in run", "in a function"])
def test_mirrored_strategy_of_one_replica(rng, weights, where, mode):
    strategy = strategies.named("mirrored_1")
    with strategy.scope():
        pair = Pair(weights, mode)

    def run(gradients):
        return strategy.run(pair.optimizer.apply, (gradients,))

    apply = {
        "in scope": pair.optimizer.apply,
        "in run": run,
        "in a function": tf.function(run),
    }[where]
    for _ in range(3):
        gradients = helpers.random_gradients(rng, weights)
        with strategy.scope():
            apply(helpers.to_gradients(gradients.values()))
        pair.reference.apply(gradients)
    assert pair.optimizer.iterations.numpy() == 3
    pair.check_moments()
    assert pair.error() <= 1e-6


@both_modes
def test_scalars_stay_live_after_build_moved_them(rng, weights, jit_compile):
    with tf.device("/cpu:3"):
        pair = Pair(weights, jit_compile)
    optimizer = tf_adamw.AdamW(0.5, jit_compile=jit_compile)
    pair.optimizer = optimizer
    optimizer.build(pair.variables)
    rate, iterations = optimizer.learning_rate, optimizer.iterations
    rate.assign(0.01)
    pair.reference.learning_rate = 0.01
    pair.train(rng, 3)
    assert rate is optimizer.learning_rate
    assert iterations is optimizer.iterations
    np.testing.assert_array_equal(iterations.numpy(), 3)
    assert pair.error() <= 1e-6
