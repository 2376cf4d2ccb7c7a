"""Accumulation on replicas: one reduction per window, sums that survive."""

import itertools

import numpy as np
import pytest

import helpers
import strategies
import tf_adamw
from strategies import ReplicaPair

pytestmark = pytest.mark.core

SHAPES = {"kernel": (3, 5), "bias": (5,)}
SKIPPING = {
    "skip_nonfinite": {"skip_nonfinite": True},
    "dynamic": {"loss_scale_factor": tf_adamw.DynamicLossScale(2.0**4, 2)},
}
QUICK = [("mirrored_2", False), ("central_2", False)]
every_place = pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(*place, marks=() if place in QUICK else pytest.mark.slow)
        for place in strategies.SEVERAL_REPLICAS
    ],
)
FOUR = pytest.param("mirrored_4", marks=pytest.mark.slow)


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, SHAPES)


@pytest.mark.parametrize("name", ["mirrored_2", FOUR, "central_2"])
@pytest.mark.parametrize("way", ["function", "loop"])
def test_window_equals_one_step_on_all_of_it(rng, weights, way, name):
    """The gradients are small integers: no sum is rounded."""
    strategy = strategies.named(name)
    options = {"global_clipnorm": 0.5, "learning_rate": 0.01}
    pair = ReplicaPair(
        strategy, weights, "auto", gradient_accumulation_steps=4, **options
    )
    other = helpers.Pair(weights, "auto", **options)
    for _ in range(3):
        shapes = {key: (4, pair.count, *shape) for key, shape in SHAPES.items()}
        given = {
            key: rng.integers(-8, 9, shape).astype(np.float32)
            for key, shape in shapes.items()
        }
        steps = [{key: g[i] for key, g in given.items()} for i in range(4)]
        pair.train_on(steps, way)
        other.step({key: g.sum((0, 1)) / 4 for key, g in given.items()})
    for key, variable in other.variables.items():
        for copy in pair.copies(pair.variables[key]):
            np.testing.assert_allclose(copy, variable, rtol=2e-7)
        for slot in ("momentum", "velocity"):
            expected = other.slot(key, slot)
            found = pair.slot(key, slot)
            np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-9)


@every_place
@pytest.mark.parametrize("skipping", SKIPPING)
def test_bad_window_is_dropped_on_all(rng, weights, skipping, name, mode):
    """One replica's infinity in one micro-step is everybody's."""
    strategy = strategies.named(name)
    options = {"gradient_accumulation_steps": 3, **SKIPPING[skipping]}
    pair = ReplicaPair(strategy, weights, mode, **options)
    steps = [pair.random_parts(rng) for _ in range(12)]
    steps[3]["kernel"][-1, 1, 2] = np.inf
    steps[8]["bias"][0, 3] = np.nan
    pair.train_on(steps[:3])
    before = [(v.name, pair.copies(v)) for v in slots_and_weights(pair)]
    pair.train_on(steps[3:9])
    after = [(v.name, pair.copies(v)) for v in slots_and_weights(pair)]
    np.testing.assert_equal(after, before)
    pair.train_on(steps[9:])
    pair.check()
    assert pair.reference.iterations == 2


def slots_and_weights(pair):
    slots = [
        slot
        for named in pair.optimizer.slots.values()
        for name, slot in named.items()
        if name != "accumulator"
    ]
    return [*slots, *pair.variables.values()]


@every_place
def test_variables_without_gradients_in_a_window(rng, weights, name, mode):
    """Missing in some micro-steps, and then in a whole window."""
    strategy = strategies.named(name)
    pair = ReplicaPair(strategy, weights, mode, gradient_accumulation_steps=2)
    pair.train(rng, 2)
    for key in ("kernel", "bias", "kernel", "kernel"):
        pair.train_on([{key: pair.random_parts(rng)[key]}])
    pair.check()
    pair.train(rng, 2)
    pair.check()
    assert pair.reference.iterations == 4


@pytest.mark.parametrize("name", ["mirrored_2", FOUR, "central_2"])
@pytest.mark.parametrize("aggregation", ["sum", "mean", "none"])
def test_accumulator_slot(rng, weights, aggregation, name):
    pair = ReplicaPair(
        strategies.named(name),
        weights,
        False,
        gradient_accumulation_steps=3,
        aggregation=aggregation,
    )
    for expected_zero in (False, False, True, False):
        pair.train(rng, 1)
        check_accumulators(pair, lambda key: pair.slot(key, "accumulator"))
        assert np.all(pair.slot("bias", "accumulator") == 0) == expected_zero


def check_accumulators(pair, find):
    """Sums of up to 3 micro-steps of 4 replicas, none of which cancels."""
    for key, total in pair.reference.slots["accumulator"].items():
        error = np.abs(find(key) - total)
        bound = 16 * 2.0**-24 * pair.reference._absolute[key]
        assert np.all(error <= bound), key


@pytest.mark.parametrize("name", ["mirrored_2", FOUR])
def test_accumulator_within_run_is_the_replicas_own(rng, weights, name):
    strategy = strategies.named(name)
    pair = ReplicaPair(strategy, weights, "auto", gradient_accumulation_steps=3)
    parts = [pair.random_parts(rng) for _ in range(2)]
    pair.train_on(parts)
    bias = pair.variables["bias"]
    own = strategy.run(lambda: pair.optimizer.get_slot(bias, "accumulator"))
    expected = parts[0]["bias"] + parts[1]["bias"]
    for value, of_replica in zip(
        strategy.experimental_local_results(own), expected, strict=True
    ):
        np.testing.assert_array_equal(value, of_replica)


PLACES = ["one_device", "mirrored_2", "mirrored_4", "central_2"]


QUICK_CHANGES = [("mirrored_2", "central_2"), ("central_2", "mirrored_2")]
CHANGES = [
    pytest.param(
        "sum",
        *change,
        marks=() if change in QUICK_CHANGES else pytest.mark.slow,
    )
    for change in itertools.product(PLACES, PLACES)
]
CHANGES += [("mean", "one_device", "mirrored_2")]
CHANGES += [
    pytest.param("mean", *PLACES[i : i + 2], marks=pytest.mark.slow)
    for i in (1, 2)
]


@pytest.mark.parametrize(("aggregation", "first", "then"), CHANGES)
def test_restore_within_a_window(
    rng, weights, first, then, aggregation, tmp_path
):
    """The file holds the sum over the replicas: that of the window."""
    options = {"gradient_accumulation_steps": 3, "aggregation": aggregation}
    pair = ReplicaPair(strategies.named(first), weights, False, **options)
    pair.train(rng, 5)
    path = pair.saved(tmp_path)
    saved = helpers.checkpoint_values(path)
    check_accumulators(
        pair, lambda key: saved[f"optimizer/slots/{key}/accumulator"]
    )
    other = pair.resumed_on(strategies.named(then), path, False, **options)
    check_accumulators(other, lambda key: other.slot(key, "accumulator"))
    other.train(rng, 1)
    assert other.reference.iterations == 2
    other.train(rng, 6)
    other.check()


@pytest.mark.slow
def test_another_length_after_a_restore(rng, weights, tmp_path):
    """The mean is that of the micro-steps that were in the window."""
    first, then = strategies.named("mirrored_2"), strategies.named("mirrored_4")
    pair = ReplicaPair(first, weights, "auto", gradient_accumulation_steps=4)
    pair.train(rng, 7)
    other = pair.resumed_on(
        then, pair.saved(tmp_path), False, gradient_accumulation_steps=2
    )
    other.train(rng, 5)
    assert other.reference.iterations == 4
    other.check()
