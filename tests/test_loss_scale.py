"""The dynamic loss scale, on one device and on replicas."""

import json

import numpy as np
import pytest
import tensorflow as tf

import helpers
import strategies
import tf_adamw
from helpers import both_modes, compiled_is_slow
from strategies import ReplicaPair
from tf_adamw import DynamicLossScale, aggregation

pytestmark = pytest.mark.core

SHAPES = {"kernel": (3, 5), "bias": (5,)}
slow = pytest.mark.slow
FOUR = pytest.param("mirrored_4", marks=slow)
PLACES = ["default", "one_device", "mirrored_2", FOUR, "central_2"]
every_place = pytest.mark.parametrize("name", PLACES)


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, SHAPES)


def scales(pair):
    """The loss scale on each replica, and as read outside."""
    variable = pair.optimizer.hyperparameters.loss_scale
    return {*pair.copies(variable), pair.optimizer.loss_scale.numpy()}


def train_and_follow(pair, rng, bad=(), steps=12, way="function"):
    """Steps, some with an infinity on one replica; the scales after each."""
    followed = []
    for number in range(steps):
        parts = pair.random_parts(rng)
        if number in bad:
            parts["bias"][number % pair.count, 2] = np.inf
        pair.train_on([parts], way)
        assert scales(pair) == {pair.reference.loss_scale}
        followed.append(pair.reference.loss_scale)
    return followed


def test_defaults():
    """As the issue has them: 2^15, 2,000 good steps, factor 2."""
    assert DynamicLossScale() == DynamicLossScale(2.0**15, 2000, 2.0)
    optimizer = tf_adamw.AdamW(loss_scale_factor="dynamic")
    assert optimizer.loss_scale_factor == DynamicLossScale()
    assert optimizer.loss_scale.dtype == tf.float32
    assert optimizer.loss_scale == 2.0**15
    assert optimizer.scale_loss(tf.constant(3.0)) == 3 * 2.0**15
    assert tf_adamw.AdamW(loss_scale_factor=8.0).loss_scale == 8.0
    assert tf_adamw.AdamW().loss_scale is None


@every_place
@pytest.mark.parametrize("way", ["eager", pytest.param("function", marks=slow)])
def test_follows_the_gradients(rng, weights, way, name):
    """Halved at 3, 4 and 9; doubled by three good steps in a row."""
    rule = DynamicLossScale(initial=64.0, growth_interval=3)
    pair = ReplicaPair(
        strategies.named(name), weights, "auto", loss_scale_factor=rule
    )
    found = train_and_follow(pair, rng, (3, 4, 9), way=way)
    good, halved = [64.0, 64.0, 128.0], [64.0, 32.0]
    assert found == [*good, *halved, 32, 32, 64, 64, 32, 32, 32]
    assert pair.reference.iterations == 9
    pair.check()


@compiled_is_slow
@every_place
def test_bad_step_changes_the_scale_alone(rng, weights, name, jit_compile):
    pair = ReplicaPair(
        strategies.named(name),
        weights,
        jit_compile,
        loss_scale_factor=DynamicLossScale(),
        use_ema=True,
    )
    pair.train(rng, 2)
    own = pair.optimizer
    moving = [own.hyperparameters.loss_scale, own.counters.good_updates]
    moving = {variable.ref() for variable in moving}
    kept = [v for v in pair.state() if v.ref() not in moving]
    before = [pair.copies(variable) for variable in kept]
    for number in range(3):
        train_and_follow(pair, rng, [0], 1)
        assert own.loss_scale == 2.0 ** (14 - number)
        assert own.counters.good_updates.numpy() == 0
    np.testing.assert_equal([pair.copies(v) for v in kept], before)
    pair.train(rng, 2)
    pair.check()


def test_moves_in_a_loop_on_the_device(mirrored, rng, weights):
    """All of it is in one function, whatever the scale turns to."""
    rule = DynamicLossScale(initial=64.0, growth_interval=2)
    pair = ReplicaPair(mirrored, weights, "auto", loss_scale_factor=rule)
    steps = [pair.random_parts(rng) for _ in range(9)]
    steps[4]["kernel"][1, 0, 0] = np.nan
    pair.train_on(steps, "loop")
    assert scales(pair) == {pair.reference.loss_scale} == {512.0}
    pair.check()


@compiled_is_slow
@pytest.mark.parametrize("name", ["default", "mirrored_2", "central_2"])
def test_moves_at_the_end_of_a_window(rng, weights, name, jit_compile):
    rule = DynamicLossScale(initial=64.0, growth_interval=2)
    pair = ReplicaPair(
        strategies.named(name),
        weights,
        jit_compile,
        loss_scale_factor=rule,
        gradient_accumulation_steps=2,
    )
    found = train_and_follow(pair, rng, [5])
    assert found == [64, 64, 64, 128, 128, 64, 64, 64, 64, 128, 128, 128]
    pair.check()


@compiled_is_slow
@pytest.mark.parametrize("initial", [1.0, 1.5, 4.0])
def test_never_below_one(rng, weights, initial, jit_compile):
    rule = DynamicLossScale(initial=initial)
    pair = ReplicaPair(
        strategies.named("mirrored_2"),
        weights,
        jit_compile,
        loss_scale_factor=rule,
    )
    found = train_and_follow(pair, rng, range(4), 4)
    assert found[-1] == 1.0
    assert pair.optimizer.iterations.numpy() == 0


@both_modes
def test_never_to_infinity(jit_compile):
    rule = DynamicLossScale(initial=2.0**126, growth_interval=1)
    w = tf.Variable([1.0])
    optimizer = tf_adamw.AdamW(loss_scale_factor=rule, jit_compile=jit_compile)
    for expected in (2.0**127, 2.0**127):
        result = optimizer.apply([optimizer.scale_loss(tf.ones([1]))], [w])
        assert result.applied
        assert optimizer.loss_scale == expected


@compiled_is_slow
def test_other_factors(rng, weights, jit_compile):
    rule = DynamicLossScale(initial=10.0, growth_interval=2, factor=4.0)
    pair = ReplicaPair(
        strategies.named("default"),
        weights,
        jit_compile,
        loss_scale_factor=rule,
    )
    found = train_and_follow(pair, rng, (2, 3), 6)
    assert found == [10.0, 40.0, 10.0, 2.5, 2.5, 10.0]
    pair.check()


@pytest.mark.parametrize("first", ["default", "mirrored_2", FOUR])
@pytest.mark.parametrize("then", PLACES)
def test_survives_a_checkpoint(rng, weights, first, then, tmp_path):
    """The count of good steps too: two of three when it is saved."""
    options = {"loss_scale_factor": DynamicLossScale(64.0, 3)}
    pair = ReplicaPair(strategies.named(first), weights, False, **options)
    train_and_follow(pair, rng, [1], 4)
    path = pair.saved(tmp_path)
    saved = helpers.checkpoint_values(path)
    assert saved["optimizer/hyperparameters/loss_scale"] == 32.0
    assert saved["optimizer/counters/good_updates"] == 2
    other = pair.resumed_on(strategies.named(then), path, False, **options)
    assert scales(other) == {32.0}
    assert train_and_follow(other, rng, [], 2) == [64.0, 64.0]
    other.check()


@pytest.mark.parametrize(
    "given", ["dynamic", DynamicLossScale(8.0, 5, 4.0), 8.0, None]
)
def test_config_round_trip(given):
    optimizer = tf_adamw.AdamW(loss_scale_factor=given)
    config = json.loads(json.dumps(optimizer.get_config()))
    again = tf_adamw.AdamW.from_config(config)
    assert again.loss_scale_factor == optimizer.loss_scale_factor
    assert again.get_config() == optimizer.get_config()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("initial", 0.5),
        ("initial", -1.0),
        ("initial", float("inf")),
        ("initial", float("nan")),
        ("initial", "large"),
        ("initial", None),
        ("growth_interval", 0),
        ("growth_interval", 2.5),
        ("growth_interval", None),
        ("factor", 1.0),
        ("factor", 0.5),
        ("factor", float("inf")),
        ("factor", "two"),
    ],
)
def test_bad_fields_are_refused(field, value):
    with pytest.raises((ValueError, TypeError)) as refusal:
        tf_adamw.AdamW(loss_scale_factor=DynamicLossScale(**{field: value}))
    message = str(refusal.value)
    assert "\n" not in message
    for word in ("DynamicLossScale", field, str(value).strip("'")):
        assert word in message


@pytest.mark.parametrize("value", ["dynamical", "", 0.0, [1.0], True])
def test_bad_factors_are_refused(value):
    with pytest.raises((ValueError, TypeError), match="loss_scale_factor"):
        tf_adamw.AdamW(loss_scale_factor=value)


def small_model_step(optimizer, w):
    """A loss whose gradient, 2^-26 for each element, float16 cannot hold."""

    def loss():
        scaled_down = tf.reduce_sum(w * tf.constant(2.0**-13, w.dtype))
        return tf.constant(2.0**-13, w.dtype) * scaled_down

    return optimizer.minimize(loss, [w])


@compiled_is_slow
@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize(
    "factor", ["dynamic", pytest.param(2.0**15, marks=slow), None]
)
def test_float16_gradients_that_underflow(factor, name, jit_compile):
    """Half of 2^-24, float16's smallest: each is lost without a scale."""
    strategy = strategies.named(name)
    start = {"w": np.ones(4, np.float16)}
    pair = ReplicaPair(strategy, start, jit_compile, aggregation="mean")
    pair.optimizer = tf_adamw.AdamW(
        loss_scale_factor=factor, aggregation="mean", jit_compile=jit_compile
    )
    pair.optimizer.build(pair.variables)
    w = pair.variables["w"]
    strategy.run(lambda: small_model_step(pair.optimizer, w))
    expected = 0.0 if factor is None else 0.1 * 2.0**-26
    np.testing.assert_allclose(pair.slot("w", "momentum"), expected, rtol=1e-6)


@both_modes
def test_float16_loss_too_large_for_the_scale(jit_compile):
    """The scale comes down until the gradients fit."""
    w = tf.Variable(np.ones(2, np.float16))
    optimizer = tf_adamw.AdamW(
        loss_scale_factor="dynamic", jit_compile=jit_compile
    )
    optimizer.build([w])
    applied = []
    for _ in range(6):
        result = optimizer.minimize(lambda: tf.reduce_sum(16 * w), [w])
        applied.append(bool(result.applied))
    assert applied == [False] * 4 + [True] * 2
    assert optimizer.loss_scale == 2.0**11
    np.testing.assert_allclose(
        optimizer.get_slot(w, "momentum"), 0.19 * 16, rtol=1e-6
    )


@pytest.mark.parametrize("scale", [2.0**15, 2.0**125])
@pytest.mark.parametrize("divisor", [8, 12])
def test_a_mean_left_to_the_program(monkeypatch, scale, divisor):
    """As on TPU: no product of scale and replicas is ever made."""
    monkeypatch.setattr(aggregation, "divisor", lambda how: divisor)
    w = tf.Variable([1.0], name="w")
    optimizer = tf_adamw.AdamW(
        0.125,
        weight_decay=0.0,
        loss_scale_factor=DynamicLossScale(initial=scale),
    )
    optimizer.apply([tf.constant([0.5 * divisor * scale])], [w])
    momentum = optimizer.get_slot(w, "momentum")
    np.testing.assert_allclose(momentum, [0.05], rtol=1e-6)
