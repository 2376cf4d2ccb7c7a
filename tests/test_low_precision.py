"""bfloat16 and float16 variables: arithmetic and slots in float32.

The variable holds w rounded to its dtype after each step. Started from the
very weights that it holds, one step gives the exact new weight to half a
unit in the last place, and to float32 rounding beyond that: decay and update
are not rounded apart. Run freely beside a reference that rounds likewise, a
weight that falls within float32 rounding of the middle between two
neighbours may go to the other one: a difference of one unit.
"""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

import helpers
from helpers import NUMPY_DTYPE, UNIT_ROUNDOFF, Pair, compiled_is_slow

pytestmark = pytest.mark.core

LOW_PRECISION = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
SHAPES = {"kernel": (5, 7), "bias": (3,), "scale": (), "empty": (0,)}
OPTIONS = st.fixed_dictionaries(
    {
        "learning_rate": st.sampled_from([1e-3, 0.1]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "beta_1": st.sampled_from([0.0, 0.9]),
        "beta_2": st.sampled_from([0.9, 0.999]),
        "amsgrad": st.booleans(),
        "global_clipnorm": st.sampled_from([None, 1.0]),
        "loss_scale_factor": st.sampled_from([None, 128.0]),
        "gradient_accumulation_steps": st.sampled_from([None, 3]),
    }
)


def spacing(values, dtype):
    """The distance between neighbours of `dtype` at the values."""
    exponent = np.floor(np.log2(np.maximum(np.abs(values), 2.0**-14)))
    return 2.0**exponent * 2 * UNIT_ROUNDOFF[dtype]


def units_apart(pair, dtype):
    """The largest error of a weight in units of its last place."""
    errors = []
    for key, variable in pair.variables.items():
        actual = variable.numpy().astype(np.float64)
        expected = pair.reference.weights[key]
        largest = np.maximum(np.abs(actual), np.abs(expected))
        error = np.abs(actual - expected) / spacing(largest, dtype)
        errors.append(np.max(error, initial=0.0))
    return max(errors)


def take_over_weights(pair):
    """Starts the reference's next step from the variables' weights."""
    for key, variable in pair.variables.items():
        pair.reference.weights[key] = variable.numpy().astype(np.float64)


def check_slots(pair):
    for variable in pair.variables.values():
        for name in ("momentum", "velocity"):
            slot = pair.optimizer.get_slot(variable, name)
            wide = variable.dtype == tf.float64
            assert slot.dtype == (tf.float64 if wide else tf.float32)
    pair.check_moments()


@LOW_PRECISION
@compiled_is_slow
@hypothesis.settings(max_examples=8)
@hypothesis.given(OPTIONS, st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_each_step_rounds_once(dtype, jit_compile, options, steps, seed):
    rng = np.random.default_rng(seed)
    weights = helpers.random_weights(rng, SHAPES, dtype)
    pair = Pair(weights, jit_compile, **options)
    for _ in range(steps):
        pair.train(rng, 1, options["loss_scale_factor"] or 1.0)
        assert units_apart(pair, dtype) <= 0.5 + 1e-3
        take_over_weights(pair)
    check_slots(pair)


@LOW_PRECISION
@helpers.both_modes
def test_free_run_stays_within_one_unit(rng, dtype, jit_compile):
    weights = helpers.random_weights(rng, SHAPES, dtype)
    round_to = NUMPY_DTYPE[dtype]
    pair = Pair(weights, jit_compile, round_to=round_to, learning_rate=0.01)
    pair.train(rng, 50)
    assert units_apart(pair, dtype) <= 1.0
    helpers.record(
        f"{dtype} weights, units, 50 steps", units_apart(pair, dtype)
    )


@LOW_PRECISION
@compiled_is_slow
def test_average_is_float32(rng, dtype, jit_compile):
    weights = helpers.random_weights(rng, SHAPES, dtype)
    pair = Pair(weights, jit_compile, learning_rate=0.1, use_ema=True)
    for _ in range(5):
        pair.train(rng, 1)
        take_over_weights(pair)
    check_slots(pair)
    average = pair.optimizer.get_slot(pair.variables["kernel"], "average")
    assert average.dtype == tf.float32
    half_unit = UNIT_ROUNDOFF[dtype] * 2.0
    # The average may be taken before or after the rounding of w.
    np.testing.assert_allclose(
        average, pair.reference.slots["average"]["kernel"], atol=half_unit
    )


@LOW_PRECISION
@compiled_is_slow
def test_accumulator_is_float32(rng, dtype, jit_compile):
    """A sum of 64 gradients of 1 + 2^-7 would stall in bfloat16."""
    weights = helpers.random_weights(rng, {"w": (4,)}, dtype)
    pair = Pair(weights, jit_compile, gradient_accumulation_steps=65)
    gradient = np.full(4, 1 + 2.0**-7, NUMPY_DTYPE[dtype])
    for _ in range(64):
        pair.step({"w": gradient})
    accumulator = pair.optimizer.get_slot(pair.variables["w"], "accumulator")
    assert accumulator.dtype == tf.float32
    np.testing.assert_array_equal(accumulator, 64 * gradient.astype(float))


@helpers.both_modes
def test_unscaled_gradients_are_float32(jit_compile):
    """2^-10 / 2^16 is zero in float16."""
    weights = {"w": np.ones(3, np.float16)}
    pair = Pair(weights, jit_compile, loss_scale_factor=2.0**16, beta_1=0.0)
    pair.step({"w": np.full(3, 2.0**-10, np.float16)})
    np.testing.assert_array_equal(pair.slot("w", "momentum"), 2.0**-26)


@helpers.both_modes
def test_dtypes_side_by_side(rng, jit_compile):
    """Each variable is computed as if it were alone."""
    weights = {
        dtype: helpers.random_weights(rng, {"w": (3, 2)}, dtype)["w"]
        for dtype in NUMPY_DTYPE
    }
    pair = Pair(weights, jit_compile, weight_decay=0.1)
    pair.train(rng, 1)
    for dtype, variable in pair.variables.items():
        error = helpers.relative_error(
            variable.numpy(), pair.reference.weights[dtype]
        )
        assert error <= 2.1 * UNIT_ROUNDOFF[dtype]
    take_over_weights(pair)
    check_slots(pair)
