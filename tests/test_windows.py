"""Accumulation windows that a checkpoint or a build cuts in two."""

import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import Pair, both_modes, refused

pytestmark = pytest.mark.core

SHAPES = {"kernel": (3, 5), "bias": (5,)}


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, SHAPES)


@both_modes
@pytest.mark.parametrize(
    ("first", "position", "then", "applied"),
    [
        (4, 3, 2, [True, False, True]),
        (4, 3, 3, [True, False, False, True]),
        (4, 2, 3, [True, False, False, True]),
        (2, 1, 4, [False, False, True, False, False, False, True]),
    ],
)
def test_another_length_within_a_window(
    rng, weights, first, position, then, applied, jit_compile, tmp_path
):
    """The mean is that of the micro-steps that were in the window."""
    pair = Pair(weights, jit_compile, gradient_accumulation_steps=first)
    pair.train(rng, first + position)
    other = pair.resumed(
        tmp_path, jit_compile, gradient_accumulation_steps=then
    )
    updates = 1
    for expected in applied:
        gradients = helpers.random_gradients(rng, weights)
        result, (reference, _) = other.step(gradients)
        assert bool(result.applied) is reference is expected
        updates += expected
        assert other.optimizer.iterations == updates
    other.check_moments()
    assert other.error() <= 1e-6


@both_modes
def test_another_overwrite_frequency(rng, weights, jit_compile, tmp_path):
    options = {"use_ema": True, "ema_momentum": 0.5}
    pair = Pair(weights, jit_compile, ema_overwrite_frequency=3, **options)
    pair.train(rng, 4)
    other = pair.resumed(
        tmp_path, jit_compile, ema_overwrite_frequency=2, **options
    )
    other.reference.ema_overwrite_frequency = 2
    other.train(rng, 6)
    assert other.error() <= 1e-6


@both_modes
def test_build_after_a_traced_window_is_refused(rng, weights, jit_compile):
    """The trace would leave the new variable's sum alone."""
    pair = Pair(weights, jit_compile, gradient_accumulation_steps=2)
    step = tf.function(lambda gradients: pair.optimizer.apply(gradients))
    added = tf.Variable([1.0, 2.0], name="added")
    for number in range(4):
        gradients = helpers.random_gradients(rng, weights)
        step(helpers.to_gradients(gradients.values()))
        pair.reference.apply(gradients)
        if number in (0, 1):
            refused(
                pair,
                lambda: pair.optimizer.build({"added": added}),
                "added",
                "gradient_accumulation_steps",
            )
            refused(
                pair,
                lambda: pair.optimizer.apply([tf.ones([2])], [added]),
                "added",
            )
    pair.check_moments()
    assert pair.error() <= 1e-6


@both_modes
def test_build_between_eager_windows(rng, weights, jit_compile):
    """A variable that comes later starts with a sum of zero."""
    pair = Pair(weights, jit_compile, gradient_accumulation_steps=2)
    pair.optimizer = tf_adamw.AdamW(
        gradient_accumulation_steps=2, jit_compile=jit_compile
    )
    pair.optimizer.build({"kernel": pair.variables["kernel"]})
    for _ in range(3):
        gradients = helpers.random_gradients(rng, weights)
        pair.step({"kernel": gradients["kernel"]})
    pair.optimizer.build(pair.variables)
    pair.train(rng, 3)
    pair.check_moments()
    assert pair.error() <= 1e-6


@both_modes
@pytest.mark.parametrize(
    "options",
    [
        {"loss_scale_factor": 3.0, "global_clipnorm": 0.5},
        {"gradient_accumulation_steps": 3, "loss_scale_factor": 64.0},
    ],
)
def test_moments_show_every_factor(rng, weights, options, jit_compile):
    """Adam's weights do not: they are the same for gradients twice as big."""
    pair = Pair(weights, jit_compile, **options)
    pair.train(rng, 12, helpers.gradient_scale(options))
    pair.check_moments()
    assert pair.error() <= 1e-6
