"""Checkpoints that go from one strategy to another."""

import copy
import itertools

import numpy as np
import pytest
import tensorflow as tf

import helpers
import strategies
import tf_adamw
from strategies import ReplicaPair

pytestmark = pytest.mark.core

SHAPES = {"kernel": (3, 5), "bias": (5,)}
PLACES = ["default", "one_device", "mirrored_2", "mirrored_4", "central_2"]
# What test_crossing.py has not.
PAIRS = [
    pytest.param(*pair, marks=pytest.mark.slow if "mirrored_4" in pair else ())
    for pair in itertools.product(PLACES, PLACES)
    if "central_2" in pair
]
FOUR = pytest.param("mirrored_4", marks=pytest.mark.slow)
every_place = pytest.mark.parametrize(
    "name", [FOUR if name == "mirrored_4" else name for name in PLACES]
)
# Five steps end in the middle of a window and of an overwrite by 3.
OPTIONS = helpers.OPTIONS["everything"]


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, SHAPES)


def bits(path):
    saved = helpers.checkpoint_values(path)
    return {key: (v.dtype, v.tobytes()) for key, v in saved.items()}


@pytest.mark.parametrize(("first", "then"), PAIRS)
def test_saved_on_one_restored_on_another(rng, weights, first, then, tmp_path):
    """Against the reference; test_crossing.py has all other pairs."""
    pair = ReplicaPair(strategies.named(first), weights, False, **OPTIONS)
    pair.train(rng, 5)
    path = pair.saved(tmp_path)
    strategy = strategies.named(then)
    for built in (False, True):
        other = pair.resumed_on(strategy, path, False, built=built, **OPTIONS)
        other.check()
        assert bits(other.saved(tmp_path)) == bits(path)
    other.train(rng, 5)
    other.check()
    assert other.reference.iterations == 5


@every_place
def test_keys_do_not_depend_on_the_strategy(weights, name, tmp_path):
    pair = ReplicaPair(strategies.named(name), weights, False, **OPTIONS)
    slots = ("momentum", "velocity", "velocity_max", "average", "accumulator")
    expected = {f"slots/{key}/{slot}" for key in SHAPES for slot in slots}
    expected |= {
        "format_version",
        "counters/iterations",
        "counters/window_position",
    }
    prefix = "optimizer/"
    assert {
        key.removeprefix(prefix)
        for key in helpers.checkpoint_values(pair.saved(tmp_path))
        if key.startswith(prefix)
    } == expected | {"hyperparameters/weight_decay"}


@pytest.mark.parametrize("first", ["default", "mirrored_2", FOUR])
@pytest.mark.parametrize("then", ["mirrored_2", FOUR, "central_2"])
@pytest.mark.parametrize("way", ["eager", "function"])
def test_restore_before_a_lazy_build_in_run(
    rng, weights, first, then, way, tmp_path
):
    """What the first step creates in the replicas has the restored values."""
    pair = ReplicaPair(strategies.named(first), weights, False)
    pair.train(rng, 3)
    path = pair.saved(tmp_path)
    zeros = {key: np.zeros_like(w) for key, w in weights.items()}
    other = ReplicaPair(strategies.named(then), zeros, False, built=False)
    checkpoint = helpers.checkpoint_of(other.optimizer, other.variables)
    status = checkpoint.restore(path)
    other.reference, other.bound = pair.reference, pair.bound
    other.bound.pair = other
    other.train(rng, 2, way=way)
    status.assert_consumed()
    other.check()
    assert other.reference.iterations == 5


def test_going_on_is_bit_identical(mirrored, rng, weights, tmp_path):
    """Between two windows, with what is compiled already and anew."""
    pair = ReplicaPair(mirrored, weights, "auto", **OPTIONS)
    pair.train(rng, 6)
    path = pair.saved(tmp_path)
    reference = copy.deepcopy(pair.reference)
    steps = [pair.random_parts(rng) for _ in range(3)]
    pair.train_on(steps)
    expected = bits(pair.saved(tmp_path))
    checkpoint = helpers.checkpoint_of(pair.optimizer, pair.variables)
    checkpoint.restore(path).assert_consumed()
    other = ReplicaPair(mirrored, weights, "auto", **OPTIONS)
    checkpoint = helpers.checkpoint_of(other.optimizer, other.variables)
    checkpoint.restore(path).assert_consumed()
    for again in (pair, other):
        again.reference = copy.deepcopy(reference)
        again.train_on(steps)
        again.check_copies()
        assert bits(again.saved(tmp_path)) == expected


@every_place
def test_a_failure_half_way(rng, weights, name, tmp_path, monkeypatch):
    """Every replica gets its own sum of the window back."""
    pair = ReplicaPair(strategies.named(name), weights, False, **OPTIONS)
    pair.train(rng, 5)
    path = pair.saved(tmp_path)
    pair.train(rng, 2)
    before = [pair.copies(variable) for variable in pair.state()]
    read = tf.train.Checkpoint.read

    def failing(*args):
        read(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(tf.train.Checkpoint, "read", failing)
    checkpoint = helpers.checkpoint_of(pair.optimizer, pair.variables)
    with pytest.raises(KeyboardInterrupt):
        tf_adamw.checkpoint.restore(checkpoint, path)
    after = [pair.copies(variable) for variable in pair.state()]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", ["mirrored_2", FOUR, "central_2"])
def test_options_switched_on_at_a_restore(rng, weights, name, tmp_path):
    """Averages start from the weights; nothing else is where it was not."""
    strategy = strategies.named(name)
    pair = ReplicaPair(strategy, weights, False)
    pair.train(rng, 3)
    path = pair.saved(tmp_path)
    other = ReplicaPair(
        strategy,
        weights,
        False,
        use_ema=True,
        gradient_accumulation_steps=2,
        loss_scale_factor="dynamic",
    )
    checkpoint = helpers.checkpoint_of(other.optimizer, other.variables)
    checkpoint.restore(path).expect_partial()
    for key, variable in other.variables.items():
        np.testing.assert_array_equal(variable, pair.variables[key])
        for slot in ("momentum", "velocity"):
            found = other.slot(key, slot)
            np.testing.assert_array_equal(found, pair.slot(key, slot))
        average = other.slot(key, "average")
        np.testing.assert_array_equal(average, pair.variables[key])
        assert not np.any(other.slot(key, "accumulator"))
    assert other.optimizer.loss_scale == 2.0**15
    other.check_copies()


def test_a_model_that_is_saved_as_a_whole(mirrored, tmp_path):
    """A tf.Module that has both the weights and the optimizer."""
    with mirrored.scope():
        module = tf.Module()
        module.w = tf.Variable([1.0, 2.0])
        module.optimizer = tf_adamw.AdamW(gradient_accumulation_steps=2)
        module.optimizer.build([module.w])
    mirrored.run(lambda: module.optimizer.apply([2.0 * module.w], [module.w]))
    path = tf.train.Checkpoint(module).save(tmp_path / "checkpoint")
    saved = helpers.checkpoint_values(path)
    (accumulator,) = (k for k in saved if k.endswith("/accumulator"))
    np.testing.assert_array_equal(saved[accumulator], [4.0, 8.0])
