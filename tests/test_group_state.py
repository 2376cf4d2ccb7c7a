"""What is shown and saved of groups, later variables, and shards."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute.sharded_variable import ShardedVariable

import strategies
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


def new_variables():
    return {k: tf.Variable(tf.ones(s), name=k) for k, s in SHAPES.items()}


def built(variables, **options):
    optimizer = tf_adamw.AdamW(jit_compile=False, **options)
    optimizer.build(variables)
    return optimizer


def rows_of(optimizer):
    """{key: {column: cell}} of its summary."""
    head, *lines = (
        re.split(r"\s{2,}", line) for line in optimizer.summary().splitlines()
    )
    return {cells[0]: dict(zip(head, cells, strict=False)) for cells in lines}


@pytest.mark.parametrize("strategy", ["default", "mirrored_1"])
def test_summary_shows_factors(strategy):
    with strategies.named(strategy).scope():
        variables = new_variables()
        rate, decay = tf.Variable(0.5), tf.Variable(0.125)
    optimizer = built(
        variables,
        exclude_from_weight_decay="bias",
        learning_rate_multipliers={"head": rate, "gamma": 0},
        weight_decay_multipliers={"layer_0": decay, "layer_1": 0.0},
    )
    rate.assign(0.375)
    rows = rows_of(optimizer)
    shown = {key: (rows[key]["rate"], rows[key]["decayed"]) for key in SHAPES}
    assert shown == {
        "encoder/layer_0/kernel": ("1", "0.125"),
        "encoder/layer_0/bias": ("1", "no"),
        "encoder/layer_1/kernel": ("1", "no"),
        "encoder/LayerNorm/gamma": ("0", "yes"),
        "head/kernel": ("0.375", "yes"),
        "head/bias": ("0.375", "no"),
    }


def test_groups_change_no_checkpoint_key(tmp_path):
    names = []
    for number in range(2):
        variables = new_variables()
        options = {
            "exclude_from_weight_decay": lambda key: "bias" in key,
            "learning_rate_multipliers": [
                (variables["head/bias"], tf.Variable(0.5)),
                ("encoder", 0.0),
            ],
            "weight_decay_multipliers": {"kernel": tf.Variable(0.5)},
            "norm_groups": {"all": "."},
        }
        optimizer = built(variables, **(options if number else {}))
        optimizer.apply([tf.ones_like(v) for v in variables.values()])
        path = tf.train.Checkpoint(o=optimizer).save(tmp_path / str(number))
        names.append([name for name, _ in tf.train.list_variables(path)])
    assert names[0] == names[1]


@both_modes
def test_variables_that_are_built_later(jit_compile):
    variables = new_variables()
    first = dict(list(variables.items())[:2])
    optimizer = tf_adamw.AdamW(
        jit_compile=jit_compile,
        learning_rate_multipliers=[("layer_0|bias", 0.0)],
        norm_groups={"all": "."},
    )
    for some in (first, variables):
        optimizer.build(some)
        result = optimizer.apply(
            list(map(tf.ones_like, some.values())), some.values()
        )
    changed = {k for k, v in variables.items() if np.any(v.numpy() != 1)}
    assert changed == set(SHAPES) - {*first, "head/bias"}
    squares = sum(np.sum(v.numpy() ** 2) for v in variables.values())
    assert float(result.weight_norm["all"]) == pytest.approx(squares**0.5)


@pytest.mark.parametrize("kind", ["number", "variable"])
@pytest.mark.parametrize("by", ["pattern", "variable", "shard", "predicate"])
def test_sharded_variables(by, kind):
    """They are one variable: one row, one key, one norm."""
    shards = [tf.Variable(tf.ones((n, 2)), name=f"t/part_{n}") for n in (2, 1)]
    table = ShardedVariable(shards, name="table")
    variables = {"table": table, "bias": tf.Variable(tf.ones(3), name="bias")}
    chosen = {
        "pattern": "table",
        "variable": table,
        "shard": [table],
        "predicate": lambda key: key == "table",
    }[by]
    half, none = map(
        {"number": float, "variable": tf.Variable}[kind], (0.5, 0.0)
    )
    optimizer = built(
        variables,
        learning_rate=0.5,
        weight_decay=0.25,
        learning_rate_multipliers=[(chosen, half)],
        weight_decay_multipliers=[(chosen, half), ("bias", none)],
        norm_groups={"table": chosen},
    )
    row = rows_of(optimizer)["table"]
    assert (row["rate"], row["decayed"]) == ("0.5", "0.5")
    config = json.loads(json.dumps(optimizer.get_config()))
    other = tf_adamw.AdamW.from_config(config)
    other.build(variables)
    for one in (optimizer, other):
        for variable in (*shards, variables["bias"]):
            variable.assign(tf.ones(variable.shape))
        gradients = [tf.zeros((3, 2)), tf.zeros(3)]
        result = one.apply(gradients, [table, variables["bias"]])
        for shard in shards:
            assert np.all(shard.numpy() == 1 - 0.5 * 0.5 * 0.5 * 0.25)
        assert np.all(variables["bias"].numpy() == 1)
        change = float(result.update_norm["table"])
        assert change == pytest.approx(np.sqrt(6 * 0.03125**2))
