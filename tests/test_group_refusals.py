"""Groups that are refused, and what the messages say."""

import re

import numpy as np
import pytest
import tensorflow as tf

import tf_adamw

pytestmark = pytest.mark.core

KEYS = (
    "encoder/layer_0/kernel",
    "encoder/layer_1/kernel",
    "encoder/LayerNorm/gamma",
    "head/kernel",
    "head/bias",
)
MULTIPLIERS = ("learning_rate_multipliers", "weight_decay_multipliers")
ARGUMENTS = ("exclude_from_weight_decay", *MULTIPLIERS, "norm_groups")
every_argument = pytest.mark.parametrize("argument", ARGUMENTS)


def given(argument, selector):
    """{argument: what selects by it}."""
    if argument == "norm_groups":
        return {argument: {"chosen": selector}}
    return {
        argument: [(selector, 0.5)] if argument in MULTIPLIERS else selector
    }


def new_variables():
    return {key: tf.Variable(1.0, name=f"model/{key}") for key in KEYS}


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("layernorm/gamma", {"encoder/LayerNorm/gamma"}),
        ("layer_norm", {"encoder/LayerNorm/gamma"}),
        ("^HEAD[.]bias$", {"head/bias"}),
        ("LayerNrom", {"encoder/LayerNorm/gamma"}),
        (r"head/kernal$", {"head/kernel"}),
        (r"head/kernel:0", {"head/kernel"}),
        ("gama|head-bias", {"encoder/LayerNorm/gamma", "head/bias"}),
        ("zebra", set()),
        ("^$", set()),
    ],
)
@every_argument
def test_near_misses(argument, pattern, near):
    optimizer = tf_adamw.AdamW(**given(argument, ["kernel", pattern]))
    with pytest.raises(ValueError, match=f"^{argument}") as refusal:
        optimizer.build(new_variables())
    message = str(refusal.value)
    assert repr(pattern) in message and "\n" not in message
    told = message.partition("Near misses:")[2]
    assert near <= set(re.findall("'(.*?)'", told))
    assert bool(told) == bool(near)
    if near:  # the list of all keys comes last
        assert message.index("Near misses") < message.index(" Of: ")


def test_near_misses_are_few():
    variables = {f"layers/{i}/kernel": tf.Variable(1.0) for i in range(300)}
    optimizer = tf_adamw.AdamW(learning_rate_multipliers={"Kernel": 0.5})
    with pytest.raises(ValueError) as refusal:
        optimizer.build(variables)
    assert len(str(refusal.value)) < 1000
    assert "Near misses: 'layers/0/kernel'" in str(refusal.value)


@every_argument
def test_a_predicate_in_a_list(argument):
    selector = ["kernel", lambda key: "bias" in key]
    with pytest.raises(ValueError, match=f"^{argument}.* alone") as refusal:
        tf_adamw.AdamW(**given(argument, selector))
    assert "\n" not in str(refusal.value)


@every_argument
def test_a_variable_that_was_not_built(argument):
    other = tf.Variable(1.0, name="other")
    optimizer = tf_adamw.AdamW(**given(argument, ["kernel", other]))
    with pytest.raises(ValueError, match=f"^{argument}.*'other'"):
        optimizer.build(new_variables())


@pytest.mark.parametrize("argument", MULTIPLIERS)
@pytest.mark.parametrize("kind", ["pattern", "variable", "predicate"])
def test_an_entry_for_which_nothing_is_left(argument, kind):
    """Entries before it have all that it selects."""
    variables = new_variables()
    selector = {
        "pattern": "head/kernel",
        "variable": variables["head/kernel"],
        "predicate": lambda key: key == "head/kernel",
    }[kind]
    entries = [("layer", 0.5), ("head", 0.25), (selector, 2.0)]
    optimizer = tf_adamw.AdamW(**{argument: entries})
    with pytest.raises(ValueError, match=f"^{argument}.*head/kernel") as error:
        optimizer.build(variables)
    assert "\n" not in str(error.value)
    tf_adamw.AdamW(**{argument: entries[::-1]}).build(variables)


def test_the_method_tells_near_misses_and_changes_nothing():
    variables = new_variables()
    optimizer = tf_adamw.AdamW(exclude_from_weight_decay=["bias"])
    optimizer.build(variables)
    before = optimizer.summary(), optimizer.get_config()
    with pytest.raises(ValueError, match=r"Near misses: .*LayerNorm/gamma"):
        optimizer.exclude_from_weight_decay(var_names=["kernel", "layernorm"])
    assert (optimizer.summary(), optimizer.get_config()) == before


WRONG = [
    "kernel",
    0.5,
    [("kernel",)],
    [("kernel", 0.5, 1.0)],
    ["ab"],
    ("kernel", 0.5),
    {"(": 0.5},
    {1: 0.5},
    [(["kernel", lambda key: True], 0.5)],
    {"kernel": -1.0},
    {"kernel": float("inf")},
    {"kernel": True},
    {"kernel": "0.5"},
    {"kernel": None},
    {"kernel": [0.5]},
    {"kernel": tf.Variable(-1.0)},
    {"kernel": tf.Variable(float("nan"))},
    {"kernel": tf.Variable([0.5])},
    {"kernel": tf.Variable(1)},
]


@pytest.mark.parametrize("value", WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("argument", MULTIPLIERS)
def test_factors_that_are_none_are_refused(argument, value):
    with pytest.raises((ValueError, TypeError), match=f"^{argument}") as error:
        tf_adamw.AdamW(**{argument: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "value",
    ["kernel", ["kernel"], {1: "kernel"}, {"a": "("}, {"a": 1}],
    ids=str,
)
def test_norm_groups_that_are_none_are_refused(value):
    with pytest.raises((ValueError, TypeError), match=r"^norm_groups"):
        tf_adamw.AdamW(norm_groups=value)


def test_layerwise_decay():
    layers = ["embed", *(f"layer_{i}/" for i in range(3)), "head"]
    rates = tf_adamw.layerwise_decay(0.5, layers)
    assert rates == dict(
        zip(layers, [0.0625, 0.125, 0.25, 0.5, 1.0], strict=True)
    )
    assert list(rates) == layers
    assert tf_adamw.layerwise_decay(1.0, "head") == {"head": 1.0}
    assert tf_adamw.layerwise_decay(np.float32(0.5), ("a",)) == {"a": 1.0}


@pytest.mark.parametrize(
    ("rate", "layers"),
    [
        (0.0, ["a"]),
        (1.5, ["a"]),
        (float("nan"), ["a"]),
        ("0.5", ["a"]),
        (True, ["a"]),
        (0.5, []),
        (0.5, ["a", "b", "a"]),
        (0.5, None),
    ],
    ids=str,
)
def test_layerwise_decay_refuses(rate, layers):
    with pytest.raises((ValueError, TypeError), match=r"^layerwise_decay") as e:
        tf_adamw.layerwise_decay(rate, layers)
    assert "\n" not in str(e.value)
