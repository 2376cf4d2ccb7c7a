"""Save, restore before or after build, go on as if never stopped."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from checkpoint_model import Model, saved_values, train
from helpers import both_modes, compiled_is_slow

pytestmark = pytest.mark.core


def fresh(option, jit_compile):
    options = helpers.OPTIONS[option]
    return tf_adamw.AdamW(jit_compile=jit_compile, **options), Model()


def bits(optimizer, model, path):
    saved = saved_values(optimizer, model, path)
    return {key: (v.dtype, v.tobytes()) for key, v in saved.items()}


@compiled_is_slow
@helpers.every_option
def test_going_on_is_bit_identical(option, jit_compile, tmp_path):
    """5 steps are in the middle of a window of 2 and of an overwrite by 3."""
    scale = helpers.gradient_scale(helpers.OPTIONS[option])
    optimizer, model = fresh(option, jit_compile)
    optimizer.build(model)
    train(optimizer, model, 0, 5, scale)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.save(tmp_path / "checkpoint")
    train(optimizer, model, 5, 8, scale)
    expected = bits(optimizer, model, tmp_path)
    for build_first in (True, False):
        optimizer, model = fresh(option, jit_compile)
        if build_first:
            optimizer.build(model)
        checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
        status = checkpoint.restore(path)
        optimizer.build(model)
        status.assert_consumed()
        train(optimizer, model, 5, 8, scale)
        assert bits(optimizer, model, tmp_path) == expected


@both_modes
def test_restore_before_a_lazy_build(jit_compile, tmp_path):
    """The first apply creates the slots, with the values restored."""
    variables = helpers.as_variables({"a": [1.0, 2.0], "b": [3.0]})
    optimizer = tf_adamw.AdamW(jit_compile=jit_compile)

    def step(optimizer, variables):
        gradients = [tf.constant([0.5, -1.0]), tf.constant([2.0])]
        optimizer.apply(gradients, list(variables.values()))

    step(optimizer, variables)
    checkpoint = helpers.checkpoint_of(optimizer, variables)
    path = checkpoint.save(tmp_path / "checkpoint")
    step(optimizer, variables)
    others = helpers.as_variables({"a": [0.0, 0.0], "b": [0.0]})
    other = tf_adamw.AdamW(jit_compile=jit_compile)
    status = helpers.checkpoint_of(other, others).restore(path)
    step(other, others)
    status.assert_consumed()
    assert other.iterations == 2
    for key in variables:
        np.testing.assert_array_equal(others[key], variables[key])


@both_modes
def test_restore_between_two_steps(jit_compile, tmp_path):
    """What is compiled already works on the restored values."""
    optimizer, model = fresh("plain", jit_compile)
    optimizer.build(model)
    train(optimizer, model, 0, 2)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.save(tmp_path / "checkpoint")
    train(optimizer, model, 2, 4)
    expected = bits(optimizer, model, tmp_path)
    checkpoint.restore(path).assert_consumed()
    assert optimizer.iterations == 2
    train(optimizer, model, 2, 4)
    assert bits(optimizer, model, tmp_path) == expected


@compiled_is_slow
@pytest.mark.parametrize("to_strategy", [True, False])
def test_strategy_does_not_matter(to_strategy, jit_compile, tmp_path):
    strategies = [
        tf.distribute.get_strategy(),
        tf.distribute.OneDeviceStrategy("/cpu:1"),
    ]
    first, second = strategies if to_strategy else strategies[::-1]
    with first.scope():
        optimizer, model = fresh("everything", jit_compile)
        optimizer.build(model)
        train(optimizer, model, 0, 3, 1024.0)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.save(tmp_path / "checkpoint")
    expected = bits(optimizer, model, tmp_path)
    with second.scope():
        optimizer, model = fresh("everything", jit_compile)
        optimizer.build(model)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    checkpoint.restore(path).assert_consumed()
    assert bits(optimizer, model, tmp_path) == expected


def test_keys(tmp_path):
    """The grammar is frozen: checkpoints depend on it."""
    model = Model()
    optimizer = tf_adamw.AdamW(
        amsgrad=True, use_ema=True, gradient_accumulation_steps=2
    )
    optimizer.build(model)
    slots = ("momentum", "velocity", "velocity_max", "average", "accumulator")
    expected = {
        "format_version",
        "counters/iterations",
        "counters/window_position",
        "hyperparameters/learning_rate",
        "hyperparameters/weight_decay",
    }
    for key in model.by_key():
        escaped = key.replace("/", ".S")
        expected |= {f"slots/{escaped}/{slot}" for slot in slots}
    saved = saved_values(optimizer, model, tmp_path)
    prefix = "optimizer/"
    assert {
        key.removeprefix(prefix) for key in saved if key.startswith(prefix)
    } == expected


def test_keys_of_a_list_are_names(tmp_path):
    variables = [
        tf.Variable([1.0], name="outer/w"),
        tf.Variable([2.0], name="outer/b"),
    ]
    optimizer = tf_adamw.AdamW()
    optimizer.build(variables)
    path = tf.train.Checkpoint(optimizer=optimizer).save(tmp_path / "c")
    saved = helpers.checkpoint_values(path)
    assert "optimizer/slots/outer.Sw/momentum" in saved
    assert "optimizer/slots/outer.Sb/velocity" in saved


def test_other_keys_at_resume_are_noticed(tmp_path):
    model = Model()
    optimizer = tf_adamw.AdamW()
    optimizer.build(model)
    variables = model.by_key().values()
    optimizer.apply([tf.ones_like(v) for v in variables], variables)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.save(tmp_path / "checkpoint")
    model = Model()
    variables = list(model.by_key().values())
    optimizer = tf_adamw.AdamW()
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    checkpoint.restore(path).expect_partial()
    with pytest.warns(UserWarning, match="built with other keys"):
        optimizer.build({f"v{n}": v for n, v in enumerate(variables)})
