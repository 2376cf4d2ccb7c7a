"""Steps on the replicas of a strategy against the joined batch's reference."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import four_replicas
import helpers
import strategies
import tf_adamw
from helpers import LinearDecay
from strategies import ReplicaPair

pytestmark = pytest.mark.core

AVERAGES = {"use_ema": True, "ema_momentum": 0.75}
OPTIONS = {
    "plain": {},
    "clipnorm, averages": {"clipnorm": 0.5, **AVERAGES},
    "clipvalue, amsgrad": {"clipvalue": 0.25, "amsgrad": True},
    "global_clipnorm, overwrite": {
        "global_clipnorm": 0.5,
        "ema_overwrite_frequency": 3,
        **AVERAGES,
    },
    "constant scale, exclusion": {
        "loss_scale_factor": 1024.0,
        "skip_nonfinite": True,
        "exclude_from_weight_decay": ["bias"],
    },
    "dynamic scale, multipliers": {
        "loss_scale_factor": tf_adamw.DynamicLossScale(growth_interval=3),
        "learning_rate_multipliers": {"kernel": 0.5},
    },
    "schedules, accumulation": {
        "learning_rate": LinearDecay(),
        "weight_decay": LinearDecay(2.0**-3),
        "gradient_accumulation_steps": 2,
    },
    "mean": {"aggregation": "mean", "global_clipnorm": 0.5},
    "mean, accumulation": {
        "aggregation": "mean",
        "gradient_accumulation_steps": 3,
    },
    "none, accumulation": {
        "aggregation": "none",
        "clipnorm": 0.5,
        "gradient_accumulation_steps": 2,
    },
    "none": {"aggregation": "none", **AVERAGES},
    "everything": helpers.OPTIONS["everything"],
}
every_place = pytest.mark.parametrize(("name", "mode"), strategies.PLACES)


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, helpers.SHAPES)


def train_20_updates(pair, rng, way="function"):
    """Checks after the first step too: nothing has averaged out there."""
    micro_steps = 20 * pair.reference.window
    pair.train(rng, 1, way=way)
    pair.check()
    pair.train(rng, micro_steps - 1, way=way)
    pair.check(f"float32 weights, 20 steps, replicas: {pair.count}")
    assert pair.reference.iterations == 20


# One replica has nothing to reduce, whatever the options; for the others it
# is the same code, compiled for more replicas or for one copy.
FEW = ["plain", "mean, accumulation", "everything"]
ALL = [("mirrored_2", "auto"), ("mirrored_2", False), ("central_2", False)]
QUICK = [("mirrored_2", "auto", "everything"), ("mirrored_2", False, "plain")]
QUICK += [("central_2", False, option) for option in OPTIONS]
CASES = [
    case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow)
    for place in strategies.PLACES
    for option in (OPTIONS if place in ALL else FEW)
    for case in [(*place, option)]
]


@pytest.mark.parametrize(("name", "mode", "option"), CASES)
def test_one_step_and_20(rng, weights, name, mode, option):
    strategy = strategies.named(name)
    pair = ReplicaPair(strategy, weights, mode, **OPTIONS[option])
    train_20_updates(pair, rng)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("mirrored_2", "plain"),
        pytest.param("mirrored_2", "everything", marks=pytest.mark.slow),
        pytest.param("central_2", "everything", marks=pytest.mark.slow),
        ("one_device", "plain"),
    ],
)
@pytest.mark.parametrize("way", [w for w in strategies.WAYS if w != "function"])
def test_every_way_to_call_it(rng, weights, way, name, option):
    options = dict(OPTIONS[option])
    pair = ReplicaPair(strategies.named(name), weights, "auto", **options)
    train_20_updates(pair, rng, way)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["eager", "function"])
@pytest.mark.parametrize("mode", helpers.JIT_MODES)
def test_explicit_modes(rng, weights, mode, way):
    strategy = strategies.named("mirrored_2")
    pair = ReplicaPair(strategy, weights, mode, global_clipnorm=0.5)
    train_20_updates(pair, rng, way)


@pytest.mark.slow
@every_place
def test_float64(rng, name, mode):
    weights = helpers.random_weights(rng, helpers.SHAPES, "float64")
    strategy = strategies.named(name)
    pair = ReplicaPair(strategy, weights, mode, global_clipnorm=0.5, **AVERAGES)
    train_20_updates(pair, rng)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param("mirrored_2", "auto", marks=pytest.mark.slow),
        ("mirrored_2", False),
        pytest.param("central_2", "auto", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("steps", [None, 3])
def test_low_precision(rng, name, mode, dtype, steps):
    """Gradients are added up in float32, and weights rounded once."""
    shapes = {"kernel": (3, 5), "bias": (5,)}
    weights = helpers.random_weights(rng, shapes, dtype)
    pair = ReplicaPair(
        strategies.named(name),
        weights,
        mode,
        learning_rate=0.1,
        gradient_accumulation_steps=steps,
        loss_scale_factor=64.0,
    )
    for _ in range(10 * (steps or 1)):
        pair.train(rng, 1)
        pair.check_copies()
        for key, variable in pair.variables.items():
            expected = pair.reference.weights[key]
            actual = variable.numpy().astype(np.float64)
            unit = 2 * helpers.UNIT_ROUNDOFF[dtype]
            unit = unit * 2.0 ** np.floor(np.log2(np.abs(expected)))
            assert np.all(np.abs(actual - expected) <= 0.501 * unit)
            pair.reference.weights[key] = actual
    pair.check_moments()


@pytest.mark.parametrize("name", ["mirrored_2", "central_2"])
@pytest.mark.parametrize(
    "mode", [pytest.param("auto", marks=pytest.mark.slow), False]
)
@pytest.mark.parametrize("where", ["in scope", "outside", "callable"])
def test_hyperparameters_of_the_users(rng, weights, where, mode, name):
    """Variables that the user assigns between steps, and callables."""
    strategy = strategies.named(name)
    pair = ReplicaPair(strategy, weights, mode, built=False)
    with tf.device(None) if where != "in scope" else strategy.scope():
        rate = tf.Variable(0.01)
        factor = tf.Variable(0.5)
    pair.optimizer = tf_adamw.AdamW(
        (lambda: rate) if where == "callable" else rate,
        learning_rate_multipliers={"kernel": factor},
        jit_compile=mode,
    )
    pair.optimizer.build(pair.variables)
    pair.held_outside = [v for v in (rate, factor) if where != "in scope"]
    for value, multiplier in ((0.01, 0.5), (0.03, 2.0), (0.001, 0.25)):
        rate.assign(value)
        factor.assign(multiplier)
        pair.reference.learning_rate = float(np.float32(value))
        pair.reference.multipliers = {"kernel": multiplier}
        pair.train(rng, 2)
        pair.check()


@pytest.mark.slow
def test_default_collectives_of_4_replicas():
    """In a process of its own: see `strategies.named`."""
    path = os.pathsep.join(filter(None, sys.path))
    result = subprocess.run(
        [sys.executable, four_replicas.__file__],
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
