"""Groups of variables: what selects them, and that configurations keep it."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf

import tf_adamw
from helpers import both_modes

pytestmark = pytest.mark.core

SHAPES = {
    "encoder/layer_0/kernel": (3, 2),
    "encoder/layer_0/bias": (2,),
    "encoder/layer_1/kernel": (2, 2),
    "encoder/LayerNorm/gamma": (),
    "head/kernel": (2, 3),
    "head/bias": (3,),
}
CHOSEN = {"encoder/layer_0/kernel", "head/bias"}
SELECTORS = {
    "pattern": lambda v: "layer_0/kernel|head/bias",
    "patterns": lambda v: ("0/kernel", "^head/bias$"),
    "own names": lambda v: ["^model/encoder/layer_0/kernel$", "l/head/bias"],
    "variables": lambda v: [v["head/bias"], v["encoder/layer_0/kernel"]],
    "both": lambda v: ["head/b", v["encoder/layer_0/kernel"]],
    "predicate": lambda v: lambda key: key in CHOSEN,
}
ARGUMENTS = {
    "exclude_from_weight_decay": (lambda s: s, (1.0, 0.0)),
    "learning_rate_multipliers": (lambda s: [(s, 0.5)], (0.5, 0.5)),
    "weight_decay_multipliers": (lambda s: [(s, 0.5)], (1.0, 0.5)),
}
every_argument = pytest.mark.parametrize(
    "argument", [*ARGUMENTS, "norm_groups"]
)


def given(argument, selector):
    """{argument: what selects by it}."""
    if argument == "norm_groups":
        return {argument: {"chosen": selector}}
    return {argument: ARGUMENTS[argument][0](selector)}


def new_variables(value=1.0):
    return {
        key: tf.Variable(tf.fill(shape, value), name=f"model/{key}")
        for key, shape in SHAPES.items()
    }


def built(variables, **options):
    optimizer = tf_adamw.AdamW(jit_compile=False, **options)
    optimizer.build(variables)
    return optimizer


def again(optimizer):
    """What its configuration makes, by way of JSON."""
    config = json.loads(json.dumps(optimizer.get_config()))
    made = tf_adamw.AdamW.from_config(config)
    assert json.loads(json.dumps(made.get_config())) == config
    return made


def effects(make):
    """{key: factors on the rate and on the decay}, as steps show them.

    Gradients that are large, next to epsilon, move weights of zero by the
    rate, and gradients of zero move weights of one by the decay.
    """
    found = []
    for weight, gradient, unit in ((0.0, 1e4, 0.5), (1.0, 0.0, 0.125)):
        variables = new_variables(weight)
        optimizer = make(variables)
        optimizer.build(variables)
        optimizer.learning_rate = 0.5
        optimizer.weight_decay = 0.25
        optimizer.apply(
            [tf.fill(v.shape, gradient) for v in variables.values()]
        )
        found.append(
            {
                key: float(np.max(np.abs(variable.numpy() - weight))) / unit
                for key, variable in variables.items()
            }
        )
    return {
        key: pytest.approx((found[0][key], found[1][key]), 1e-5)
        for key in SHAPES
    }


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_every_selector_in_every_argument(argument, selector):
    def make(variables):
        return built(
            variables, **given(argument, SELECTORS[selector](variables))
        )

    chosen = ARGUMENTS[argument][1]
    expected = {k: chosen if k in CHOSEN else (1.0, 1.0) for k in SHAPES}
    assert effects(make) == expected
    assert effects(lambda variables: again(make(variables))) == expected


@pytest.mark.parametrize("selector", SELECTORS)
def test_every_selector_of_norms(selector):
    variables = new_variables()
    selected = SELECTORS[selector](variables)
    first = built(variables, norm_groups={"chosen": selected})
    for optimizer in (first, again(first)):
        optimizer.build(variables)
        result = optimizer.apply([tf.ones_like(v) for v in variables.values()])
        squares = [np.sum(np.square(variables[key].numpy())) for key in CHOSEN]
        norm = float(result.weight_norm["chosen"])
        assert norm == pytest.approx(np.sqrt(sum(squares)))


@every_argument
def test_one_variable_alone(argument):
    variables = new_variables()
    optimizer = built(variables, **given(argument, variables["head/bias"]))
    config = optimizer.get_config()[argument]
    (pattern,) = config["chosen"] if argument == "norm_groups" else config
    assert [key for key in SHAPES if re.search(pattern, key)] == ["head/bias"]


def test_the_first_that_fits_counts():
    entries = [("layer_0", 0.5), ("kernel", 0.25), (".", 2.0)]
    expected = {
        "encoder/layer_0/kernel": 0.5,
        "encoder/layer_0/bias": 0.5,
        "encoder/layer_1/kernel": 0.25,
        "encoder/LayerNorm/gamma": 2.0,
        "head/kernel": 0.25,
        "head/bias": 2.0,
    }
    for name, decay in (
        ("learning_rate_multipliers", lambda rate: (rate, rate)),
        ("weight_decay_multipliers", lambda rate: (1.0, rate)),
    ):
        for form in (entries, dict(entries), map(list, entries), iter(entries)):
            made = tf_adamw.AdamW(jit_compile=False, **{name: form})
            wanted = {key: decay(rate) for key, rate in expected.items()}
            assert effects(lambda _, made=made: again(made)) == wanted


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize(
    "argument", ["learning_rate_multipliers", "weight_decay_multipliers"]
)
def test_a_pattern_before_other_kinds(argument, selector):
    """It takes one of the two variables that they select."""

    def make(variables):
        chosen = SELECTORS[selector](variables)
        given = {argument: [("kernel", 0.5), (chosen, 0.25)]}
        return built(variables, **given)

    rates = {k: 0.5 if "kernel" in k else 1.0 for k in SHAPES}
    rates["head/bias"] = 0.25
    coupled = argument == "learning_rate_multipliers"
    expected = {k: (r if coupled else 1.0, r) for k, r in rates.items()}
    assert effects(make) == expected
    assert effects(lambda variables: again(make(variables))) == expected


def test_kinds_of_selectors_in_order():
    """A variable and a predicate come before a pattern that fits, too."""

    def make(variables):
        return again(
            built(
                variables,
                learning_rate_multipliers=[
                    (variables["head/bias"], 0.25),
                    (lambda key: key.startswith("head"), 0.5),
                    ([variables["encoder/layer_0/bias"], "gamma"], 2.0),
                    ("head|kernel|bias", 4.0),
                ],
                exclude_from_weight_decay=["bias"],
                weight_decay_multipliers={"kernel": 0.5, "layer_0": 8.0},
            )
        )

    assert effects(make) == {
        "encoder/layer_0/kernel": (4.0, 2.0),
        "encoder/layer_0/bias": (2.0, 0.0),
        "encoder/layer_1/kernel": (4.0, 2.0),
        "encoder/LayerNorm/gamma": (2.0, 2.0),
        "head/kernel": (0.5, 0.25),
        "head/bias": (0.25, 0.0),
    }


@both_modes
@pytest.mark.parametrize("device", ["/cpu:0", "/cpu:1"])
def test_entries_that_share_a_pattern(jit_compile, device):
    """Each has a factor of its own, wherever that is."""
    variables = new_variables()
    with tf.device(device):
        factors = [tf.Variable(0.0), tf.Variable(1.0)]
    optimizer = tf_adamw.AdamW(
        jit_compile=jit_compile,
        learning_rate_multipliers=[
            ("head/kernel", factors[0]),
            (["head/kernel", variables["head/bias"]], factors[1]),
        ],
    )
    optimizer.build(variables)
    optimizer.apply([tf.ones_like(v) for v in variables.values()])
    changed = {k for k, v in variables.items() if np.any(v.numpy() != 1)}
    assert changed == set(SHAPES) - {"head/kernel"}


@every_argument
def test_predicate_has_no_configuration_before_build(argument):
    optimizer = tf_adamw.AdamW(**given(argument, lambda key: "bias" in key))
    with pytest.raises(ValueError, match=f"^{argument}.*predicate") as refusal:
        optimizer.get_config()
    assert "\n" not in str(refusal.value)
    optimizer.build(new_variables())
    assert "bias" in json.dumps(optimizer.get_config()[argument])


@every_argument
def test_a_name_that_repeats_stands_for_no_variable(argument):
    """Before build there are no keys: a configuration has the name."""
    names = {"a": "w", "b": "w", "c": "u"}
    variables = {k: tf.Variable([1.0], name=n) for k, n in names.items()}

    def of_another(key):
        optimizer = tf_adamw.AdamW(**given(argument, [variables[key]]))
        return tf_adamw.AdamW.from_config(optimizer.get_config())

    with pytest.raises(ValueError, match=f"^{argument}: .*a, b") as refusal:
        of_another("b").build(variables)
    assert "\n" not in str(refusal.value)
    other = of_another("c")
    other.build(variables)
    assert "u" in json.dumps(other.get_config()[argument])


def test_factors_that_are_variables_become_numbers():
    factor = tf.Variable(0.5)
    variables = new_variables()
    optimizer = built(
        variables,
        learning_rate_multipliers={"head": factor},
        weight_decay_multipliers={"kernel": factor},
    )
    factor.assign(0.25)
    config = again(optimizer).get_config()
    assert config["learning_rate_multipliers"] == {"head": 0.25}
    assert config["weight_decay_multipliers"] == {"kernel": 0.25}


@pytest.mark.parametrize("argument", list(ARGUMENTS)[1:])
def test_factors_stay_as_they_were_given(argument):
    """0.1 is no float32: float64 variables would take other steps."""

    def step(optimizer):
        variable = tf.Variable([0.3, 1.0], dtype=tf.float64, name="kernel")
        for _ in range(3):
            optimizer.apply([tf.ones_like(variable)], [variable])
        return variable.numpy()

    held = tf.Variable(0.1, dtype=tf.float64)
    both = tf_adamw.AdamW(**{argument: {"kernel": 0.1, "other": held}})
    config = again(both).get_config()
    assert config[argument] == {"kernel": 0.1, "other": 0.1}
    optimizer = tf_adamw.AdamW(**{argument: {"kernel": 0.1}})
    np.testing.assert_array_equal(step(again(optimizer)), step(optimizer))


def test_layerwise_decay():
    rates = tf_adamw.layerwise_decay(0.5, ["layer_0", "layer_1", "head"])
    expected = {
        "encoder/layer_0/kernel": 0.25,
        "encoder/layer_0/bias": 0.25,
        "encoder/layer_1/kernel": 0.5,
        "encoder/LayerNorm/gamma": 1.0,
        "head/kernel": 1.0,
        "head/bias": 1.0,
    }
    assert effects(
        lambda v: again(built(v, learning_rate_multipliers=rates))
    ) == {key: (rate, rate) for key, rate in expected.items()}
