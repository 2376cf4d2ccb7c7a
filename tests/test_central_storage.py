"""Several replicas that share one copy: CentralStorageStrategy.

The tests of replicas run on it, too; here is what differs from strategies
whose replicas have copies of their own.
"""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import strategies
from strategies import ReplicaPair

pytestmark = pytest.mark.core

SHAPES = {"kernel": (3, 5), "bias": (5,)}
both_modes = pytest.mark.parametrize("mode", ["auto", False])


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, SHAPES)


@pytest.fixture
def strategy():
    return strategies.named("central_2")


def per_replica(strategy, parts):
    """A distributed value: an element of the parts for each replica."""
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )


def apply_outside(pair, parts, apply=None):
    """Apply in cross-replica context, and the same for the reference."""
    scale = np.float32(pair.reference.loss_scale)
    gradients = [per_replica(pair.strategy, scale * p) for p in parts.values()]
    variables = [pair.variables[key] for key in parts]
    apply = apply or pair.optimizer.apply
    with pair.strategy.scope():
        result = apply(gradients, variables)
    applied, norm = pair.reference.apply(pair.joined(parts))
    assert bool(result.applied) == applied
    if applied:
        pair.bound.add_update()
        if result.grad_norm is not None:
            np.testing.assert_allclose(result.grad_norm, norm, rtol=1e-5)


@both_modes
@pytest.mark.parametrize("aggregation", ["sum", "mean", "none"])
@pytest.mark.parametrize(
    "options",
    [
        {"global_clipnorm": 0.5, "loss_scale_factor": 64.0},
        {"gradient_accumulation_steps": 3, "use_ema": True},
    ],
)
def test_outside_of_run(rng, strategy, weights, options, aggregation, mode):
    """There it reduces what the replicas have."""
    options = {"aggregation": aggregation, **options}
    pair = ReplicaPair(strategy, weights, mode, **options)
    for _ in range(7):
        apply_outside(pair, pair.random_parts(rng))
    pair.check()


@both_modes
def test_outside_of_run_in_a_function(rng, strategy, weights, mode):
    pair = ReplicaPair(strategy, weights, mode, clipnorm=0.5)
    function = tf.function(lambda *args: pair.optimizer.apply(*args))
    for _ in range(3):
        apply_outside(pair, pair.random_parts(rng), function)
    pair.check()


def test_lazy_build_outside_of_run(rng, strategy, weights):
    pair = ReplicaPair(strategy, weights, "auto", built=False)
    for _ in range(2):
        apply_outside(pair, pair.random_parts(rng))
    pair.check()


def test_inside_and_outside_in_turns(rng, strategy, weights):
    """The one accumulator is added to from both."""
    pair = ReplicaPair(strategy, weights, "auto", gradient_accumulation_steps=3)
    for _ in range(3):
        apply_outside(pair, pair.random_parts(rng))
        pair.train(rng, 1)
    pair.check()
    assert pair.reference.iterations == 2


def test_bad_gradient_of_one_replica_outside_of_run(rng, strategy, weights):
    pair = ReplicaPair(strategy, weights, "auto", skip_nonfinite=True)
    for bad in (False, True, False):
        parts = pair.random_parts(rng)
        if bad:
            parts["bias"][1, 0] = np.inf
        apply_outside(pair, parts)
    pair.check()
    assert pair.reference.iterations == 2


@both_modes
def test_some_gradients_outside_of_run(rng, strategy, weights, mode):
    """None for one variable, rows that repeat across replicas for another."""
    pair = ReplicaPair(strategy, weights, mode)
    pair.train(rng, 1)
    bias = pair.copies(pair.variables["bias"])
    rows = [[0, 2, 0], [2, 1, 1]]
    values = strategies.random_parts(rng, {"v": np.ones((1, 5))}, 6)["v"]
    values = values.reshape(2, 3, 5).astype(np.float32)
    dense = np.zeros((2, 3, 5))
    for number in range(2):
        np.add.at(dense[number], rows[number], values[number])
    gradient = strategy.experimental_distribute_values_from_function(
        lambda context: tf.IndexedSlices(
            values[context.replica_id_in_sync_group],
            tf.constant(rows[context.replica_id_in_sync_group]),
            [3, 5],
        )
    )
    with strategy.scope():
        pair.optimizer.apply([gradient, None])
    pair.reference.apply(pair.joined({"kernel": dense, "bias": None}))
    pair.bound.add_update()
    pair.check()
    np.testing.assert_array_equal(pair.copies(pair.variables["bias"]), bias)


def test_state_is_beside_its_variable(rng, strategy, weights):
    pair = ReplicaPair(
        strategy,
        weights,
        "auto",
        made_in_scope=False,
        use_ema=True,
        gradient_accumulation_steps=2,
        loss_scale_factor="dynamic",
    )
    for variable in pair.state():
        assert variable.device.endswith("CPU:0")
        assert len(pair.copies(variable)) == 1


def test_outside_of_the_scope_is_refused(rng, strategy, weights):
    """No strategy is current there that could reduce anything."""
    pair = ReplicaPair(strategy, weights, "auto")
    gradients = [tf.ones_like(w) for w in weights.values()]
    helpers.refused(
        pair,
        lambda: pair.optimizer.apply(gradients),
        "kernel",
        "CentralStorageStrategy",
        "2 replicas",
        "run",
    )
