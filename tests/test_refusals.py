"""Every refusal names the culprit and comes before anything changes."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import Pair, both_modes, refused

pytestmark = pytest.mark.core


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, helpers.SHAPES)


@pytest.fixture(params=[False, True], ids=["eager", "in a function"])
def call_apply(request):
    """apply, called eagerly or in a tf.function."""
    if not request.param:
        return lambda optimizer, *arguments: optimizer.apply(*arguments)
    # Autograph would wrap the message in the lines of the user's function.
    return lambda optimizer, *arguments: tf.function(
        lambda: optimizer.apply(*arguments), autograph=False
    )()


@both_modes
def test_wrong_shape(rng, weights, jit_compile, call_apply):
    pair = Pair(weights, jit_compile)
    pair.train(rng, 1)
    gradients = [tf.ones([3, 5]), tf.ones([4]), tf.ones([])]
    refused(
        pair,
        lambda: call_apply(pair.optimizer, gradients),
        "bias",
        r"\(4,\)|\[4\]",
        r"\(5,\)|\[5\]",
    )


@both_modes
def test_broadcastable_shape(rng, weights, jit_compile, call_apply):
    pair = Pair(weights, jit_compile)
    gradients = [tf.ones([1, 5]), tf.ones([5]), tf.ones([])]
    refused(pair, lambda: call_apply(pair.optimizer, gradients), "kernel")


@both_modes
def test_wrong_dtype(rng, weights, jit_compile, call_apply):
    pair = Pair(weights, jit_compile)
    gradients = [tf.ones([3, 5]), tf.ones([5]), tf.ones([], tf.float64)]
    refused(
        pair,
        lambda: call_apply(pair.optimizer, gradients),
        "scale",
        "float64",
        "float32",
    )


@both_modes
def test_integer_gradient(rng, weights, jit_compile, call_apply):
    pair = Pair(weights, jit_compile)
    gradients = [tf.ones([3, 5]), tf.ones([5], tf.int32), tf.ones([])]
    refused(
        pair, lambda: call_apply(pair.optimizer, gradients), "bias", "int32"
    )


@both_modes
def test_all_gradients_missing(rng, weights, jit_compile, call_apply):
    pair = Pair(weights, jit_compile)
    refused(
        pair,
        lambda: call_apply(pair.optimizer, [None] * 3),
        "grad",
        "None",
    )


@both_modes
def test_wrong_number_of_gradients(rng, weights, jit_compile, call_apply):
    pair = Pair(weights, jit_compile)
    refused(
        pair, lambda: call_apply(pair.optimizer, [tf.ones([])]), r"\b1\b", "3"
    )
    variables = list(pair.variables.values())
    refused(
        pair,
        lambda: call_apply(pair.optimizer, [tf.ones([])], variables),
        r"\b1\b",
        "3",
    )


@both_modes
def test_a_variable_twice(rng, weights, jit_compile, call_apply):
    pair = Pair(weights, jit_compile)
    bias = pair.variables["bias"]
    refused(
        pair,
        lambda: call_apply(pair.optimizer, [tf.ones([5])] * 2, [bias, bias]),
        "bias",
    )


@pytest.mark.parametrize("dtype", [tf.int32, tf.complex64, tf.bool])
def test_variables_that_are_not_real_numbers(weights, dtype):
    pair = Pair(weights, "auto")
    wrong = tf.Variable(tf.cast([1, 0], dtype), name="wrong")
    for call in (
        lambda: pair.optimizer.build({"wrong": wrong}),
        lambda: pair.optimizer.build([wrong]),
        lambda: pair.optimizer.apply([tf.cast([1, 0], dtype)], [wrong]),
    ):
        refused(pair, call, "wrong", dtype.name)


def test_one_bad_variable_of_several_builds_nothing():
    optimizer = tf_adamw.AdamW()
    before = len(optimizer.variables)
    good, wrong = tf.Variable([1.0]), tf.Variable([1])
    with pytest.raises((ValueError, TypeError)):
        optimizer.build([good, wrong])
    assert len(optimizer.variables) == before


def test_apply_before_build_without_variables():
    with pytest.raises(ValueError, match="build"):
        tf_adamw.AdamW().apply([tf.ones([2])])


@pytest.mark.parametrize("thing", [tf.ones([2]), 3, None, "kernel"])
def test_build_with_what_is_no_variable(thing):
    optimizer = tf_adamw.AdamW()
    with pytest.raises((ValueError, TypeError)):
        optimizer.build([thing])
    assert len(optimizer.variables) == 4


def test_unknown_slot(weights):
    pair = Pair(weights, "auto")
    kernel = pair.variables["kernel"]
    refused(
        pair,
        lambda: pair.optimizer.get_slot(kernel, "speed"),
        "speed",
        "momentum",
        "velocity",
    )
    refused(pair, lambda: pair.optimizer.get_slot(kernel, "average"), "average")
    stranger = tf.Variable([1.0], name="stranger")
    refused(
        pair,
        lambda: pair.optimizer.get_slot(stranger, "momentum"),
        "stranger",
    )


def test_averaging_and_finalizing_a_stranger(weights):
    pair = Pair(weights, "auto", use_ema=True)
    stranger = tf.Variable([1.0], name="stranger")
    refused(
        pair,
        lambda: pair.optimizer.finalize_variable_values([stranger]),
        "stranger",
    )


def test_minimize_a_tensor_without_a_tape(weights):
    pair = Pair(weights, "auto")
    variables = list(pair.variables.values())
    refused(
        pair,
        lambda: pair.optimizer.minimize(tf.constant(1.0), variables),
        "tape",
    )


def test_excluding_after_build_refuses_what_matches_nothing(weights):
    pair = Pair(weights, "auto")
    optimizer = pair.optimizer
    refused(
        pair,
        lambda: optimizer.exclude_from_weight_decay(var_names=["bias", "Norm"]),
        "Norm",
    )
    # Nor did the pattern that does match take effect.
    zeros = [tf.zeros_like(v) for v in pair.variables.values()]
    optimizer.learning_rate = 0.5
    optimizer.apply(zeros)
    assert np.all(pair.variables["bias"].numpy() != weights["bias"])


def test_repeated_names_are_numbered_with_one_warning():
    variables = [tf.Variable([float(i)], name="w") for i in range(3)]
    optimizer = tf_adamw.AdamW()
    with pytest.warns(UserWarning, match="w_1") as caught:
        optimizer.build(variables)
    assert len(caught) == 1
    keys = {"w", "w_1", "w_2"}
    assert all(key in optimizer.summary() for key in keys)


def test_of_many_repeated_names_a_few_are_shown():
    variables = [tf.Variable([1.0], name="w") for _ in range(300)]
    shown = "w_1, w_2, w_3 and 296 more"
    with pytest.warns(UserWarning, match=shown) as caught:
        tf_adamw.AdamW().build(variables)
    assert len(str(caught[0].message)) < 300
