"""finite: what is finite, what is NaN, and square roots, against NumPy.

TensorFlow takes numbers below the normal range for zero on a CPU, in and out
of XLA, and gives zero for results there; NumPy does not.
"""

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import helpers
from helpers import NUMPY_DTYPE, both_modes
from tf_adamw import finite

pytestmark = pytest.mark.core

SIZE = 32  # one shape, so that each program is compiled once
ARITHMETIC = pytest.mark.parametrize("dtype", ["float32", "float64"])
EVERY_DTYPE = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("float64", marks=pytest.mark.slow),
        "float32",
        pytest.param("float16", marks=pytest.mark.slow),
        "bfloat16",
    ],
)


def limits(dtype):
    return ml_dtypes.finfo(NUMPY_DTYPE[dtype])


def special(dtype):
    """The numbers at the ends of a dtype's ranges, and what is no number."""
    info = limits(dtype)
    edges = [
        info.max,
        np.nextafter(info.max, NUMPY_DTYPE[dtype](0)),
        info.tiny,
        info.tiny / NUMPY_DTYPE[dtype](2),
        info.smallest_subnormal,
        np.inf,
        0.0,
        1.0,
    ]
    return [np.nan, *(float(e) for e in edges), *(-float(e) for e in edges)]


def arrays(dtype):
    """Arrays of SIZE floats, the special ones among them."""
    width = 64 if dtype == "float64" else 32
    one = st.floats(width=width) | st.sampled_from(special(dtype))
    return st.lists(one, min_size=SIZE, max_size=SIZE).map(
        lambda numbers: rounded(numbers, dtype)
    )


def rounded(numbers, dtype):
    # Beyond the largest number of a narrow dtype is infinity.
    with np.errstate(over="ignore"):
        return np.array(numbers).astype(NUMPY_DTYPE[dtype])


def normal(values, dtype):
    """The values; those below the normal range as zeros of their sign."""
    below = np.abs(values) < limits(dtype).tiny
    return np.where(below, np.copysign(0, values), values)


def check_on(dtype, jit_compile, function, check):
    """Calls `check` with many arrays and what `function` makes of them."""
    compiled = tf.function(function, jit_compile=jit_compile, autograph=False)

    @hypothesis.settings(max_examples=100)
    @hypothesis.given(arrays(dtype))
    def on_any(values):
        check(values, compiled(tf.constant(values)).numpy())

    on_any()


@EVERY_DTYPE
@both_modes
def test_all_finite(dtype, jit_compile):
    def check(values, found):
        assert found == np.all(np.isfinite(values.astype(np.float64)))

    check_on(dtype, jit_compile, finite.all_finite, check)


@EVERY_DTYPE
@both_modes
def test_all_finite_of_one_element(dtype, jit_compile):
    """Where nothing else can hide a wrong verdict."""
    verdict = tf.function(
        lambda values: tf.map_fn(
            finite.all_finite, values, fn_output_signature=tf.bool
        ),
        jit_compile=jit_compile,
        autograph=False,
    )
    values = rounded(special(dtype), dtype)
    expected = np.isfinite(values.astype(np.float64))
    np.testing.assert_array_equal(verdict(tf.constant(values)), expected)
    assert 0 < np.sum(expected) < len(expected)


@both_modes
def test_all_finite_of_nothing(jit_compile):
    verdict = tf.function(finite.all_finite, jit_compile=jit_compile)
    assert verdict(tf.zeros([0, 3]))


@EVERY_DTYPE
@both_modes
def test_is_nan(dtype, jit_compile):
    def check(values, found):
        expected = np.isnan(values.astype(np.float64))
        np.testing.assert_array_equal(found, expected)

    check_on(dtype, jit_compile, finite.is_nan, check)


@ARITHMETIC
@both_modes
def test_root(dtype, jit_compile):
    """XLA's is the nearest number, bit for bit.

    TensorFlow's own kernel may approximate: within two units.
    """

    def root(values):
        return finite.root(tf.abs(values), compiled=jit_compile)

    def check(values, found):
        expected = np.sqrt(normal(np.abs(values), dtype))
        if jit_compile:
            np.testing.assert_array_equal(found, expected)
        else:
            rtol = 4 * helpers.UNIT_ROUNDOFF[dtype]
            np.testing.assert_allclose(found, expected, rtol=rtol)

    check_on(dtype, jit_compile, root, check)


@ARITHMETIC
@both_modes
def test_a_root_is_no_power(dtype, jit_compile):
    """That would take many times as long."""
    root = tf.function(
        lambda values: finite.root(values, compiled=jit_compile),
        jit_compile=jit_compile,
    )
    values = tf.ones([1000], dtype)
    if jit_compile:
        hlo = root.experimental_get_compiler_ir(values)(stage="optimized_hlo")
        assert hlo.count(" sqrt(") == 1
        assert " power(" not in hlo
    else:
        operations = helpers.operations(root.get_concrete_function(values))
        assert "Sqrt" in operations
        assert "Pow" not in operations
