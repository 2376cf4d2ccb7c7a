"""Groups and decay of Keras's variables and schedules."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_adamw

schedules = keras.optimizers.schedules


def new_model():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, name="first"),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.Dense(2, name="head"),
        ],
        name="model",
    )
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    return model


def step(optimizer, model):
    return optimizer.apply(
        [tf.zeros(v.shape) for v in model.trainable_variables]
    )


def changes(optimizer, model):
    """{path: how much the decay took}, of weights of one."""
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    step(optimizer, model)
    return {
        v.path: pytest.approx(float(np.max(1 - v.numpy())), 1e-5)
        for v in model.trainable_variables
    }


def again(optimizer, model):
    config = json.loads(json.dumps(optimizer.get_config()))
    other = tf_adamw.AdamW.from_config(config)
    other.build(model)
    return other


@pytest.mark.parametrize("held", ["number", "keras", "tf"])
def test_variables_in_every_argument(held):
    model = new_model()
    (first, norm, head) = model.layers
    make = {"number": float, "keras": keras.Variable, "tf": tf.Variable}[held]
    optimizer = tf_adamw.AdamW(
        0.5,
        0.25,
        exclude_from_weight_decay=[norm.gamma, head.bias],
        learning_rate_multipliers=[
            (first.trainable_variables, make(0.5)),
            (head.kernel, make(2.0)),
        ],
        weight_decay_multipliers=[(first.kernel, make(0.5))],
        norm_groups={"head": head.trainable_variables, "norm": [norm.beta]},
        jit_compile=False,
    )
    optimizer.build(model)
    expected = {
        first.kernel.path: 0.03125,
        first.bias.path: 0.0625,
        norm.gamma.path: 0.0,
        norm.beta.path: 0.125,
        head.kernel.path: 0.25,
        head.bias.path: 0.0,
    }
    assert changes(optimizer, model) == expected
    other = again(optimizer, model)
    assert changes(other, model) == expected
    for one in (optimizer, other):
        changes(one, model)
        norms = step(one, model).weight_norm
        assert float(norms["norm"]) == pytest.approx(2 * 0.875**2)
        assert float(norms["head"]) == pytest.approx((8 * 0.75**4 + 2) ** 0.5)


@pytest.mark.parametrize("make", [keras.Variable, tf.Variable])
def test_a_variable_of_keras_freezes(make):
    model = new_model()
    factor = make(0.0)
    optimizer = tf_adamw.AdamW(
        learning_rate_multipliers={"head": factor}, jit_compile=False
    )
    optimizer.build(model)
    run = tf.function(
        lambda: optimizer.apply(
            [tf.ones(v.shape) for v in model.trainable_variables]
        )
    )
    moved = []
    for number in (0.0, 1.0, 0.0):
        factor.assign(number)
        before = model.get_layer("head").kernel.numpy()
        run()
        after = model.get_layer("head").kernel.numpy()
        moved.append(before.tobytes() != after.tobytes())
    assert moved == [False, True, False]
    assert run.experimental_get_tracing_count() == 1


def test_near_misses_are_paths():
    optimizer = tf_adamw.AdamW(exclude_from_weight_decay=["Norm/Gamma"])
    with pytest.raises(
        ValueError, match=r"Near misses: '[a-z_0-9/]*norm/gamma'"
    ):
        optimizer.build(new_model())


SCHEDULES = {
    "cosine": (schedules.CosineDecay(0.5, 10), 0.5),
    "warm-up": (
        schedules.CosineDecay(0.0, 10, warmup_target=0.25, warmup_steps=4),
        0.25,
    ),
    "restarts": (schedules.CosineDecayRestarts(0.5, 10), 0.5),
    "exponential": (schedules.ExponentialDecay(0.5, 10, 0.5), 0.5),
    "polynomial": (schedules.PolynomialDecay(0.5, 10), 0.5),
    "inverse": (schedules.InverseTimeDecay(0.5, 10, 0.5), 0.5),
    "piecewise": (
        schedules.PiecewiseConstantDecay([2, 4], [0.125, 0.5, 0.25]),
        0.5,
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_decay_follows_a_schedule(name):
    """Here w <- w - lr / base * wd * w, with gradients of zero."""
    schedule, base = SCHEDULES[name]
    model = new_model()
    optimizer = tf_adamw.AdamW(
        schedule, 0.25, decay_coupling="schedule", jit_compile=False
    )
    optimizer.build(model)
    assert optimizer.base_learning_rate == base
    other = again(optimizer, model)
    for one in (optimizer, other):
        weight = np.ones([])
        for variable in model.trainable_variables:
            variable.assign(np.ones(variable.shape))
        for number in range(6):
            step(one, model)
            weight = weight - float(schedule(number)) / base * 0.25 * weight
        for variable in model.trainable_variables:
            np.testing.assert_allclose(variable.numpy(), weight, rtol=2e-6)


def test_base_of_a_keras_variable():
    rate = keras.Variable(0.5)
    model = new_model()
    optimizer = tf_adamw.AdamW(
        rate, 0.25, decay_coupling="schedule", jit_compile=False
    )
    optimizer.build(model)
    rate.assign(0.25)
    assert all(change == 0.125 for change in changes(optimizer, model).values())
    assert again(optimizer, model).base_learning_rate == 0.5
