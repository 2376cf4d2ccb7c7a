"""What is given to the optimizer: gradients, variables, patterns, scalars."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import Pair, both_modes, refused

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def pair():
    """Whatever is refused changes nothing: one serves all tests."""
    rng = np.random.default_rng(1)
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, "auto", use_ema=True)
    pair.train(rng, 1)
    return pair


def slices(indices):
    return tf.IndexedSlices(tf.ones(len(indices)), indices)


BAD_GRADIENTS = {
    "ragged": (
        lambda: tf.ragged.constant([[1.0], [2.0, 3.0]]),
        "bias.*RaggedTensor",
    ),
    "sparse": (
        lambda: tf.sparse.from_dense(tf.ones([5])),
        "bias.*SparseTensor",
    ),
    "text": (lambda: "gradient", "bias.*str"),
    "jagged": (lambda: [[1.0], [2.0, 3.0]], "bias.*list"),
    "object": (object, "bias.*object"),
    "dtype": (lambda: tf.ones([5], tf.float64), "bias.*float64.*float32"),
    "row": (lambda: slices(tf.constant([5])), "bias.*row 5.*5 rows"),
    "negative row": (lambda: slices(tf.constant([0, -1])), "bias.*row -1"),
    "NumPy row": (lambda: slices(np.array([5])), "bias.*row 5.*5 rows"),
}


@pytest.mark.parametrize("kind", BAD_GRADIENTS)
def test_what_is_no_gradient(pair, kind):
    make, message = BAD_GRADIENTS[kind]
    gradients = [tf.ones([3, 5]), make(), tf.ones([])]
    refused(pair, lambda: pair.optimizer.apply(gradients), message)


def test_sparse_gradient_of_a_scalar(pair):
    gradients = [None, None, slices(tf.constant([0]))]
    refused(pair, lambda: pair.optimizer.apply(gradients), "scale.*shape")


WRONG_CALLS = {
    "no gradients": (lambda o, v: o.apply(None), "grads.*NoneType"),
    "dict of gradients": (lambda o, v: o.apply({"w": 1.0}), "grads.*dict"),
    "one gradient": (lambda o, v: o.apply(tf.ones([5]), [v]), "grads.*list"),
    "one variable": (
        lambda o, v: o.apply([tf.ones([5])], v),
        "trainable_variables.*list",
    ),
    "dict of pairs": (
        lambda o, v: o.apply_gradients({"w": v}),
        "grads_and_vars.*dict",
    ),
    "no pairs": (
        lambda o, v: o.apply_gradients([tf.ones([5])]),
        "grads_and_vars.*pairs",
    ),
    "build one": (lambda o, v: o.build(v), "variables.*list"),
    "build text": (lambda o, v: o.build("kernel"), "variables.*list.*str"),
    "build none": (lambda o, v: o.build(None), "variables.*list.*NoneType"),
    "build a number": (lambda o, v: o.build({"a": 3}), "3"),
    "build no key": (lambda o, v: o.build({1: v}), "key.*1"),
    "build empty key": (lambda o, v: o.build({"": v}), "key.*''"),
    "build a vague shape": (
        lambda o, v: o.build(
            {"vague": tf.Variable([1.0], shape=tf.TensorShape([None]))}
        ),
        "vague.*shape",
    ),
    "minimize one": (
        lambda o, v: o.minimize(lambda: tf.reduce_sum(v), v),
        "var_list.*list",
    ),
    "finalize one": (
        lambda o, v: o.finalize_variable_values(v),
        "trainable_variables|var_list",
    ),
    "exclude a number": (
        lambda o, v: o.exclude_from_weight_decay(var_names=[3]),
        "exclude_from_weight_decay.*3",
    ),
    "exclude bytes": (
        lambda o, v: o.exclude_from_weight_decay(var_names=[b"bias"]),
        "exclude_from_weight_decay.*bias",
    ),
    "exclude a bad pattern": (
        lambda o, v: o.exclude_from_weight_decay(var_names=["("]),
        r"exclude_from_weight_decay.*\(",
    ),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_wrong_call(pair, call):
    run, message = WRONG_CALLS[call]
    bias = pair.variables["bias"]
    refused(pair, lambda: run(pair.optimizer, bias), message)


@both_modes
def test_a_variable_as_gradient_is_read_before_the_decay(jit_compile):
    """0.5 w^2 has w as its gradient; both paths see the old one."""
    options = {"learning_rate": 0.1, "weight_decay": 1.0}
    pair = Pair({"w": np.float32([1.0, 2.0])}, jit_compile, **options)
    w = pair.variables["w"]
    for _ in range(3):
        pair.reference.apply({"w": w.numpy()})
        pair.optimizer.apply([w], [w])
        pair.check_moments()
        assert pair.error() <= 1e-6


def decayed(optimizer, variables):
    """The keys that a step without gradients moves."""
    before = helpers.values(variables)
    zeros = [tf.zeros_like(variable) for variable in variables.values()]
    optimizer.apply(zeros, list(variables.values()))
    after = helpers.values(variables)
    return {k for k in variables if not np.array_equal(before[k], after[k])}


def named_variables():
    names = {"kernel": "is", "bias": "b", "scale": "bias_scale"}
    return {k: tf.Variable([1.0], name=name) for k, name in names.items()}


@pytest.mark.parametrize("form", ["pattern", "variable", "list"])
@pytest.mark.parametrize("how", ["constructor", "var_names", "var_list"])
def test_one_exclusion_needs_no_list(form, how):
    variables = named_variables()
    given = {
        "pattern": "^bias$",
        "variable": variables["bias"],
        "list": ["^bias$"],
    }[form]
    options = {"learning_rate": 0.5, "weight_decay": 0.5}
    if how == "constructor":
        optimizer = tf_adamw.AdamW(exclude_from_weight_decay=given, **options)
    else:
        optimizer = tf_adamw.AdamW(**options)
        optimizer.exclude_from_weight_decay(**{how: given})
    optimizer.build(variables)
    assert decayed(optimizer, variables) == {"kernel", "scale"}


@pytest.mark.parametrize("built", [True, False])
def test_config_excludes_the_same_variables(built):
    """A variable's name may be another one's key."""

    def crossed():
        return {
            "w": tf.Variable([1.0], name="v"),
            "x": tf.Variable([1.0], name="w"),
            "layer/w": tf.Variable([1.0], name="u"),
        }

    variables = crossed()
    excluded = "w" if built else "layer/w"
    optimizer = tf_adamw.AdamW(
        0.5, 0.5, exclude_from_weight_decay=[variables[excluded]]
    )
    if built:
        optimizer.build(variables)
    config = optimizer.get_config()
    optimizer.build(variables)
    expected = set(variables) - {excluded}
    assert decayed(optimizer, variables) == expected
    again = tf_adamw.AdamW.from_config(config=config)
    fresh = crossed()
    again.build(fresh)
    assert decayed(again, fresh) == expected


@both_modes
def test_order_of_the_variables_makes_no_program(rng, jit_compile):
    evaluations = []

    def schedule(step):
        evaluations.append(step)
        return 0.01 / tf.cast(step + 1, tf.float32)

    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile)
    pair.optimizer = tf_adamw.AdamW(schedule, jit_compile=jit_compile)
    pair.reference.learning_rate = lambda step: 0.01 / (step + 1)
    pair.optimizer.build(pair.variables)
    keys = list(weights)
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0], [2, 0, 1]):
        gradients = helpers.random_gradients(rng, weights)
        pair.step({keys[place]: gradients[keys[place]] for place in order})
    assert len(evaluations) == 1
    assert pair.error() <= 1e-6
