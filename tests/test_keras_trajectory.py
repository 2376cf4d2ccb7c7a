"""The trajectories of Keras 3's AdamW and of torch.optim.AdamW.

float64 runs agree within 1e-13, relative, per element, after 20 steps, and
float32 runs within 2e-6. Keras rounds its learning rate, decay and betas to
float32 whatever the variables' dtype: in float64 runs they are dyadic. Its
float32 bias correction is good to 5 digits only: the first updates are off
by that much of a learning rate.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import helpers
import tf_adamw

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}
RATE = 2.0**-10
EXACT = {"beta_1": 0.875, "beta_2": 1 - 2.0**-10, "weight_decay": 2.0**-8}
DEFAULTS = {"float32": {}, "float64": EXACT}
OPTIONS = {
    "plain": {},
    "other_betas": {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 2.0**-10},
    "decay": {"weight_decay": 0.125},
    "amsgrad": {"amsgrad": True},
    "clipnorm": {"clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.25},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "ema": {"use_ema": True, "ema_momentum": 0.75},
    "ema_overwrite": {
        "use_ema": True,
        "ema_momentum": 0.75,
        "ema_overwrite_frequency": 3,
    },
    "loss_scale": {"loss_scale_factor": 1024.0},
    "accumulation": {"gradient_accumulation_steps": 4},
    "accumulation_clipped": {
        "gradient_accumulation_steps": 2,
        "global_clipnorm": 0.5,
    },
    "accumulation_amsgrad_schedule": {
        "gradient_accumulation_steps": 2,
        "amsgrad": True,
        "learning_rate": keras.optimizers.schedules.PiecewiseConstantDecay(
            [5, 11, 30], [RATE, 4 * RATE, 2 * RATE, RATE / 2]
        ),
    },
}
# Keras computes these in float32, where XLA rounds otherwise.
CURVED = {
    "cosine_schedule": {
        "learning_rate": keras.optimizers.schedules.CosineDecay(
            0.0, 15, alpha=0.1, warmup_target=2 * RATE, warmup_steps=5
        ),
    },
    "polynomial_schedule": {
        "learning_rate": keras.optimizers.schedules.PolynomialDecay(
            2 * RATE, 10, RATE / 4
        ),
    },
}


def keras_variables(weights):
    return [
        keras.Variable(w, dtype=w.dtype, name=k) for k, w in weights.items()
    ]


def trained(optimizer, variables, gradients, steps):
    """The weights after the given steps; gradients repeat when they end."""
    optimizer.build(variables)
    step = tf.function(lambda grads: optimizer.apply(grads, variables))
    for number in range(steps):
        given = gradients[number % len(gradients)]
        step([tf.constant(g) for g in given.values()])
    return [v.value.numpy() for v in variables]


def worst_error(actual, expected):
    pairs = zip(actual, expected, strict=True)
    return max(helpers.relative_error(a, e) for a, e in pairs)


def check_against_keras(rng, dtype, jit_compile, chosen):
    options = {"learning_rate": RATE, **DEFAULTS[dtype], **chosen}
    weights = helpers.random_weights(rng, helpers.SHAPES, dtype)
    gradients = [helpers.random_gradients(rng, weights, 3.0) for _ in range(20)]
    steps = 20 * options.get("gradient_accumulation_steps", 1)
    actual, expected = (
        trained(optimizer, keras_variables(weights), gradients, steps)
        for optimizer in (
            tf_adamw.AdamW(jit_compile=jit_compile, **options),
            keras.optimizers.AdamW(**options),
        )
    )
    error = worst_error(actual, expected)
    helpers.record(f"{dtype} weights, Keras, 20 steps", error)
    assert error <= TOLERANCE[dtype]


CASES = [
    (option, dtype, mode)
    if (dtype, mode) == ("float32", False)
    or (option, dtype) == ("plain", "float32")
    else pytest.param(option, dtype, mode, marks=pytest.mark.slow)
    for option in OPTIONS
    for dtype in ("float32", "float64")
    for mode in helpers.JIT_MODES
]


@pytest.mark.parametrize(("option", "dtype", "jit_compile"), CASES)
def test_keras(rng, option, dtype, jit_compile):
    check_against_keras(rng, dtype, jit_compile, OPTIONS[option])


@helpers.both_modes
@pytest.mark.parametrize("schedule", CURVED)
def test_keras_schedules(rng, schedule, jit_compile):
    check_against_keras(rng, "float32", jit_compile, CURVED[schedule])


@helpers.both_modes
@DTYPES
def test_keras_exclusions(rng, dtype, jit_compile):
    """By name and by variable, with no gradient but for the decay."""
    weights = helpers.random_weights(rng, helpers.SHAPES, dtype)
    zeros = [{k: np.zeros_like(w) for k, w in weights.items()}]
    results = []
    for optimizer in (
        tf_adamw.AdamW(RATE, 0.125, jit_compile=jit_compile),
        keras.optimizers.AdamW(RATE, 0.125),
    ):
        variables = keras_variables(weights)
        optimizer.exclude_from_weight_decay(
            var_list=[variables[0]], var_names=["bi.s"]
        )
        results.append(trained(optimizer, variables, zeros, 20))
    assert worst_error(*results) <= TOLERANCE[dtype]
    np.testing.assert_array_equal(results[0][0], weights["kernel"])
    np.testing.assert_array_equal(results[0][1], weights["bias"])
    assert abs(results[0][2]) < abs(weights["scale"])


@helpers.both_modes
@DTYPES
def test_keras_finalized_average(rng, dtype, jit_compile):
    weights = helpers.random_weights(rng, helpers.SHAPES, dtype)
    gradients = [helpers.random_gradients(rng, weights) for _ in range(20)]
    options = {"learning_rate": RATE, **DEFAULTS[dtype], **OPTIONS["ema"]}
    results = []
    for optimizer in (
        tf_adamw.AdamW(jit_compile=jit_compile, **options),
        keras.optimizers.AdamW(**options),
    ):
        variables = keras_variables(weights)
        trained(optimizer, variables, gradients, 20)
        optimizer.finalize_variable_values(variables)
        results.append([v.value.numpy() for v in variables])
    assert worst_error(*results) <= TOLERANCE[dtype]


@pytest.mark.parametrize("amsgrad", [False, True])
@helpers.both_modes
@DTYPES
def test_torch_over_100_steps(rng, dtype, jit_compile, amsgrad):
    """Torch adds its epsilon to the root of the corrected second moment.

    Ours is added before the correction: epsilon sqrt(1 - beta_2^t) each step.
    """
    torch_epsilon, beta_2 = 1e-3, 0.999
    weights = helpers.random_weights(rng, helpers.SHAPES, dtype)
    epsilon = tf.Variable(torch_epsilon, dtype=dtype)
    variables = helpers.as_variables(weights)
    optimizer = tf_adamw.AdamW(
        RATE, 0.125, 0.9, beta_2, epsilon, amsgrad, jit_compile=jit_compile
    )
    optimizer.build(variables)
    parameters = [torch.tensor(w, requires_grad=True) for w in weights.values()]
    peer = torch.optim.AdamW(
        parameters,
        lr=RATE,
        betas=(0.9, beta_2),
        eps=torch_epsilon,
        weight_decay=0.125,
        amsgrad=amsgrad,
    )
    for t in range(1, 101):
        gradients = helpers.random_gradients(rng, weights, 1.0 + 3.0 / t)
        epsilon.assign(torch_epsilon * np.sqrt(1 - beta_2**t))
        optimizer.apply(helpers.to_gradients(gradients.values()))
        for parameter, gradient in zip(
            parameters, gradients.values(), strict=True
        ):
            parameter.grad = torch.tensor(gradient)
        peer.step()
    actual = helpers.values(variables).values()
    error = worst_error(actual, [p.detach().numpy() for p in parameters])
    helpers.record(f"{dtype} weights, torch, 100 steps", error)
    assert error <= TOLERANCE[dtype]
