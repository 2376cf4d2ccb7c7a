"""Numbers at the ends of what the dtypes hold, and what is no number."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import Pair, both_modes

pytestmark = pytest.mark.core

# The argument in the constructor, and what float32 or anything makes of it.
NO_NUMBERS = [
    ("epsilon", 1e-46),
    ("learning_rate", 1e300),
    ("weight_decay", 1e300),
    ("beta_1", 1 - 1e-9),
    ("beta_2", 1 - 1e-17),
    ("loss_scale_factor", 1e-50),
    ("loss_scale_factor", 1e300),
    ("clipnorm", 1e-46),
    ("learning_rate", True),
    ("learning_rate", np.bool_(True)),
    ("learning_rate", np.complex64(0.1)),
    ("learning_rate", 0.1 + 0j),
    ("learning_rate", b"0.1"),
    ("learning_rate", [0.1]),
    ("learning_rate", np.float32([0.1])),
    ("epsilon", "1e-7"),
]
NO_NUMBER_TENSORS = [
    lambda: tf.constant(True),
    lambda: tf.constant("0.5"),
    lambda: tf.constant(0.5 + 0j),
    lambda: tf.constant([0.5]),
    lambda: tf.Variable([0.5]),
    lambda: tf.Variable(1),
    lambda: tf.Variable(-0.5),
]


@pytest.mark.parametrize(("name", "value"), NO_NUMBERS)
def test_what_float32_cannot_hold_is_refused(name, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=f"^{name} must be .*got ") as info:
            tf_adamw.AdamW(**{name: value})
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["learning_rate", "beta_2"])
@pytest.mark.parametrize("make", NO_NUMBER_TENSORS)
def test_tensors_that_are_no_numbers_are_refused(name, make):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        tf_adamw.AdamW(**{name: make()})


@pytest.mark.parametrize(
    "value", [1, np.int64(1), np.float16(1), tf.constant(1), tf.constant(1.0)]
)
def test_numbers_of_every_dtype(value):
    assert float(tf_adamw.AdamW(value).learning_rate) == 1.0


@both_modes
@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm"])
def test_norm_that_overflows_is_not_finite(rng, clipping, jit_compile):
    """1e20 is finite, its square is not."""
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile, skip_nonfinite=True, **{clipping: 1.0})
    pair.train(rng, 1)
    before = helpers.snapshot(pair.optimizer, pair.variables.values())
    gradients = [tf.fill(w.shape, np.float32(1e20)) for w in weights.values()]
    result = pair.optimizer.apply(gradients)
    assert not result.applied and np.isnan(result.grad_norm)
    after = helpers.snapshot(pair.optimizer, pair.variables.values())
    assert after == before
    pair.train(rng, 1)
    pair.check_moments()


@both_modes
@pytest.mark.parametrize("bound", [1e-9, 0.1, 1e6])
def test_clipvalue_is_exact_for_float16(bound, jit_compile):
    """float16 holds neither 1e-9 nor 1e6, and 0.1 to three digits."""
    pair = Pair({"w": np.ones(3, np.float16)}, jit_compile, clipvalue=bound)
    pair.step({"w": np.float16([60000.0, -1.0, 0.0])})
    pair.check_moments()
    limit = np.float64(np.float32(bound))
    expected = 0.1 * np.clip([60000.0, -1.0, 0.0], -limit, limit)
    np.testing.assert_allclose(pair.slot("w", "momentum"), expected, rtol=1e-6)


def test_scale_that_the_loss_cannot_hold_is_refused():
    pair = Pair(
        {"w": np.ones(2, np.float16)}, "auto", loss_scale_factor=2.0**17
    )
    w = pair.variables["w"]
    loss = tf.constant(1.0, tf.float16)
    words = ("loss_scale_factor", "131072", "float16", "65504")
    helpers.refused(pair, lambda: pair.optimizer.scale_loss(loss), *words)
    helpers.refused(
        pair,
        lambda: pair.optimizer.minimize(lambda: tf.reduce_sum(w), [w]),
        *words,
    )
    assert pair.optimizer.scale_loss(tf.cast(loss, tf.float32)) == 2.0**17


@both_modes
@pytest.mark.parametrize("with_tape", [True, False])
def test_minimize_scales_once(rng, with_tape, jit_compile):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile, loss_scale_factor=64.0)
    variables = list(pair.variables.values())

    def loss():
        return tf.add_n([tf.reduce_sum(v**2) for v in variables])

    for _ in range(2):
        gradients = {k: 2 * v.numpy() for k, v in pair.variables.items()}
        if with_tape:
            with tf.GradientTape() as tape:
                value = loss()
            pair.optimizer.minimize(value, variables, tape=tape)
        else:
            pair.optimizer.minimize(loss, variables)
        pair.reference.apply({k: 64.0 * g for k, g in gradients.items()})
        pair.check_moments()
    assert pair.error() <= 1e-6


def small_decay_run(rng, weight_decay, jit_compile):
    """Weights in [1, 2) after 10 steps, in float64."""
    weights = {"w": rng.uniform(1.1, 1.9, 4096).astype(np.float32)}
    pair = Pair(
        weights,
        jit_compile,
        learning_rate=1e-4,
        weight_decay=weight_decay,
        epsilon=1.0,
    )
    pair.train(rng, 10)
    return pair.variables["w"].numpy().astype(np.float64)


@both_modes
def test_decay_below_half_a_digit(jit_compile):
    """With lr * wd = 2e-8 the fused path's own subtraction loses it."""
    with_decay, without = (
        small_decay_run(np.random.default_rng(1), decay, jit_compile)
        for decay in (2e-4, 0.0)
    )
    kept = 10 * 2e-8 * np.mean(without) if jit_compile else 0.0
    found = np.mean(without - with_decay)
    np.testing.assert_allclose(found, kept, rtol=0.05)


@both_modes
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("accumulation", [None, 2])
def test_more_updates_than_int32_holds(accumulation, dtype, jit_compile):
    """The corrections of the bias are 1 then; the update is not NaN."""
    w = tf.Variable([1.0, 2.0, -3.0], dtype=dtype)
    optimizer = tf_adamw.AdamW(
        0.01,
        use_ema=True,
        ema_overwrite_frequency=7,
        gradient_accumulation_steps=accumulation,
        jit_compile=jit_compile,
    )
    optimizer.build([w])
    expected = w.numpy().astype(np.float64)
    g = np.array([0.1, -0.2, 0.3])
    (slots,) = optimizer.slots.values()
    slots["momentum"].assign(g)
    slots["velocity"].assign(g * g)
    for count in (2**31 - 2, 2**31 - 1, 2**31, 2**32 - 2):
        optimizer.iterations.assign(count)
        for _ in range(accumulation or 1):
            optimizer.apply([tf.constant(g, dtype)], [w])
        assert optimizer.iterations.numpy() == count + 1
        step = g / (np.abs(g) + 1e-7)
        expected = expected - 0.01 * (0.004 * expected + step)
        rtol = 1e-6 if dtype == tf.float32 else 1e-14
        np.testing.assert_allclose(w.numpy(), expected, rtol=rtol)
