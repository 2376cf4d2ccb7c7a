"""The rest of Keras's rows, and what other optimizers taught."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import Pair, both_modes

pytestmark = pytest.mark.core

NUMBER_FORMS = {
    "float": lambda x: x,
    "numpy": np.float64,
    "numpy32": np.float32,
    "array": np.array,
    "tensor": tf.constant,
    "variable": tf.Variable,
    "callable": lambda x: lambda: x,
    "tensor_callable": lambda x: lambda: tf.constant(x),
}


@both_modes
@pytest.mark.parametrize("form", NUMBER_FORMS)
def test_row_13_every_form_of_a_number(rng, form, jit_compile):
    numbers = {
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "beta_1": 0.5,
        "beta_2": 0.99,
        "epsilon": 1e-3,
    }
    make = NUMBER_FORMS[form]
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile, **numbers)
    pair.optimizer = tf_adamw.AdamW(
        jit_compile=jit_compile, **{k: make(v) for k, v in numbers.items()}
    )
    pair.optimizer.build(pair.variables)
    pair.train(rng, 20)
    assert pair.error() <= 2e-6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", "0.1"),
        ("learning_rate", None),
        ("learning_rate", np.float32(-1.0)),
        ("weight_decay", -0.5),
        ("weight_decay", float("nan")),
        ("weight_decay", None),
        ("beta_1", 1.5),
        ("beta_1", -0.25),
        ("beta_1", 1.0),
        ("beta_2", 1.0),
        ("beta_2", float("nan")),
        ("epsilon", -1.0),
        ("epsilon", 0.0),
        ("epsilon", float("inf")),
        ("clipnorm", -1.0),
        ("clipvalue", float("nan")),
        ("global_clipnorm", -0.5),
        ("ema_momentum", 1.5),
        ("ema_momentum", -0.5),
        ("ema_overwrite_frequency", 0),
        ("ema_overwrite_frequency", 2.5),
        ("loss_scale_factor", 0.0),
        ("loss_scale_factor", -2.0),
        ("gradient_accumulation_steps", 0),
        ("gradient_accumulation_steps", 1.5),
        ("jit_compile", "always"),
    ],
)
def test_row_14_bad_values_are_refused(name, value):
    arguments = {name: value}
    if name.startswith("ema"):
        arguments["use_ema"] = True
    with pytest.raises((ValueError, TypeError)) as refusal:
        tf_adamw.AdamW(**arguments)
    message = str(refusal.value)
    assert name in message
    assert str(value).strip("'") in message
    assert "\n" not in message


def test_row_14_two_kinds_of_clipping_are_refused():
    with pytest.raises(ValueError, match=r"clipnorm.*clipvalue"):
        tf_adamw.AdamW(clipnorm=1.0, clipvalue=1.0)


def traced_operations(variable_count, jit_compile):
    """The operations of one step of a schedule, nested functions included."""
    evaluations = []

    def schedule(step):
        evaluations.append(step)
        return 0.5 / tf.cast(step + 1, tf.float32)

    variables = [
        tf.Variable([1.0], name=f"w{i}") for i in range(variable_count)
    ]
    optimizer = tf_adamw.AdamW(schedule, jit_compile=jit_compile)
    optimizer.build(variables)
    evaluations.clear()
    step = tf.function(lambda gradients: optimizer.apply(gradients))
    gradients = [tf.TensorSpec([1])] * variable_count
    found = helpers.operations(step.get_concrete_function(gradients))
    assert len(evaluations) == 1
    return found


@both_modes
def test_row_15_scalars_once_per_step(jit_compile):
    few = traced_operations(10, jit_compile)
    many = traced_operations(20, jit_compile)
    # The formula's own operations, reads and writes. test_neighbours.py
    # counts those of Keras.
    assert (len(many) - len(few)) / 10 <= 28
    for name in ("Pow", "Exp", "Expm1", "Log", "Log1p"):
        assert many.count(name) == few.count(name) <= 4


@both_modes
def test_row_16_build_outside_the_scope(rng, jit_compile):
    strategy = tf.distribute.OneDeviceStrategy("/cpu:1")
    weights = helpers.random_weights(rng, helpers.SHAPES)
    with strategy.scope():
        variables = helpers.as_variables(weights)
    optimizer = tf_adamw.AdamW(jit_compile=jit_compile)
    optimizer.build(variables)
    slot = optimizer.get_slot(variables["kernel"], "momentum")
    assert slot.device.endswith("CPU:1")
    gradients = [tf.ones_like(w) for w in variables.values()]
    strategy.run(optimizer.apply, (gradients,))
    assert optimizer.iterations == 1


@both_modes
def test_row_16_lazy_build_in_strategy_run(rng, jit_compile):
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    weights = helpers.random_weights(rng, helpers.SHAPES)
    with strategy.scope():
        pair = Pair(weights, jit_compile)
        pair.optimizer = tf_adamw.AdamW(jit_compile=jit_compile)
    variables = list(pair.variables.values())

    @tf.function
    def step(gradients):
        return strategy.run(
            lambda g: pair.optimizer.apply(g, variables), (gradients,)
        )

    for _ in range(3):
        gradients = helpers.random_gradients(rng, weights)
        assert step(helpers.to_gradients(gradients.values())).applied
        pair.reference.apply(gradients)
    assert pair.error() <= 5e-7


@both_modes
def test_row_17_apply_adds_unknown_variables(jit_compile):
    first, second = tf.Variable([1.0], name="a"), tf.Variable([1.0], name="b")
    optimizer = tf_adamw.AdamW(jit_compile=jit_compile)
    optimizer.apply([tf.ones([1])], [first])
    optimizer.apply([tf.ones([1])] * 2, [first, second])
    for variable, momentum in ((first, 0.19), (second, 0.1)):
        slot = optimizer.get_slot(variable, "momentum")
        np.testing.assert_allclose(slot, [momentum], rtol=1e-6)


@both_modes
def test_decay_at_zero_gradient(rng, jit_compile):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile, learning_rate=0.01, weight_decay=0.5)
    zeros = {k: np.zeros_like(w) for k, w in weights.items()}
    for _ in range(10):
        pair.step(zeros)
    assert pair.error() <= 1e-6
    for key, variable in pair.variables.items():
        expected = weights[key] * (1 - 0.01 * 0.5) ** 10
        np.testing.assert_allclose(variable, expected, rtol=2e-6)


@pytest.mark.parametrize("when", ["constructor", "method", "multiplier"])
def test_pattern_that_matches_nothing_is_refused(when):
    variables = helpers.as_variables({"kernel": [1.0], "bias": [1.0]})
    arguments = {
        "constructor": {"exclude_from_weight_decay": ["bias", "LayerNorm"]},
        "method": {},
        "multiplier": {"learning_rate_multipliers": {"LayerNorm": 0.5}},
    }
    optimizer = tf_adamw.AdamW(**arguments[when])
    with pytest.raises(ValueError, match=r"LayerNorm.*(kernel|bias)"):
        if when == "method":
            optimizer.build(variables)
            optimizer.exclude_from_weight_decay(var_names=["LayerNorm"])
        optimizer.build(variables)


@both_modes
@pytest.mark.parametrize("beta_1", [0, 0.0])
def test_beta_1_zero(rng, beta_1, jit_compile):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile, beta_1=beta_1)
    pair.train(rng, 20)
    assert pair.error() <= 2e-6


@both_modes
def test_variable_inserted_in_the_middle(rng, jit_compile, tmp_path):
    """Each variable finds its own slots; the new one starts from zero."""
    weights = helpers.random_weights(rng, {"a": (2,), "c": (2,)})
    pair = Pair(weights, jit_compile)
    pair.train(rng, 3)
    checkpoint = helpers.checkpoint_of(pair.optimizer, pair.variables)
    path = checkpoint.save(tmp_path / "checkpoint")
    weights = {"a": weights["a"], "b": weights["a"], "c": weights["c"]}
    other = Pair(weights, jit_compile)
    helpers.checkpoint_of(other.optimizer, other.variables).restore(path)
    for key in ("a", "c"):
        expected = pair.slot(key, "momentum")
        np.testing.assert_array_equal(other.slot(key, "momentum"), expected)
    np.testing.assert_array_equal(other.slot("b", "momentum"), 0.0)


def test_summary_shows_what_is_decayed():
    optimizer = tf_adamw.AdamW(exclude_from_weight_decay=["bias"])
    optimizer.build(helpers.as_variables({"kernel": [1.0], "bias": [1.0]}))
    lines = optimizer.summary().splitlines()
    kernel, bias = (
        next(line for line in lines if key in line)
        for key in ("kernel", "bias")
    )
    assert kernel.replace("kernel", "") != bias.replace("bias", "")


@both_modes
def test_decay_reads_the_weight_of_the_gradient(jit_compile):
    """A gradient made of w in the same function sees w before the decay."""
    w = tf.Variable([2.0])
    optimizer = tf_adamw.AdamW(
        0.5, 0.5, beta_1=0.0, beta_2=0.0, jit_compile=jit_compile
    )
    optimizer.build([w])

    @tf.function
    def step():
        optimizer.apply([w * w], [w])

    step()
    assert optimizer.get_slot(w, "momentum").numpy() == [4.0]
    np.testing.assert_allclose(w, [2.0 - 0.5 * 0.5 * 2.0 - 0.5], rtol=1e-6)
