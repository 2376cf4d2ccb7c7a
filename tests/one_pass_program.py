"""Steps in a process with XLA's option for one loop, or without.

    python one_pass_program.py {early,late,never} RESULTS [OPTION ...]

Calls `fuse_on_cpu` before XLA is used, after it, or never. Writes what it sees,
and the state and the errors of 20 steps with each of the named options.
"""

import sys

import numpy as np
import tensorflow as tf

import tf_adamw
from tf_adamw import one_pass, scalars, update_rule

SHAPES = {"kernel": (33, 65), "bias": (5,), "scale": ()}
SHAPE = (100, 30)  # of what only the loops over the variable have
DTYPES = ("float32", "float64", "bfloat16")
LOOPS = ("plain", "amsgrad", "ema", "ema_overwrite")
STEPS = 20


def main(when, results, *options):
    """Writes {name: array} to `results`."""
    if when == "early":
        tf_adamw.fuse_on_cpu()
    import helpers  # uses XLA

    if when == "late":
        tf_adamw.fuse_on_cpu()
    found = {}
    if True in helpers.JIT_MODES:
        for dtype in DTYPES:
            variable = tf.Variable(0.0, dtype=dtype)
            wide = tf.float64 if dtype == "float64" else tf.float32
            found[f"serves/{dtype}"] = one_pass.serves(variable, wide)
        for option in LOOPS:
            found[f"loops/{option}"] = loops(helpers.OPTIONS[option])
        for dtype in ("float32", "float64"):
            found.update(one_update(dtype, found[f"serves/{dtype}"]))
    for option in options:
        for dtype in DTYPES:
            found.update(train(helpers, option, dtype))
    np.savez(results, **found)


def loops(options):
    """How many loops a step over one variable has."""
    variable = tf.Variable(tf.ones(SHAPE))
    optimizer = tf_adamw.AdamW(jit_compile="auto", **options)
    optimizer.build([variable])
    step = tf.function(
        lambda gradient: optimizer.apply([gradient]).applied, jit_compile=True
    )
    compiled = step.experimental_get_compiler_ir(tf.ones(SHAPE))
    _, entry = compiled(stage="optimized_hlo").split("\nENTRY ")
    array = f"f32[{SHAPE[0]},{SHAPE[1]}]"
    return sum(
        array in line.partition(" fusion(")[0]
        for line in entry.splitlines()
        if " fusion(" in line
    )


def state(dtype):
    """Weights, momentum, velocity and a gradient, some steps on."""
    rng = np.random.default_rng(2)
    numbers = rng.standard_normal((3, 10_000))
    weights = rng.uniform(0.5, 2.0, 10_000)
    velocity = np.square(numbers[1]) * 0.1
    return np.stack([weights, numbers[0], velocity, numbers[2]]).astype(dtype)


def step_scalars(dtype):
    """The scalars of a step that moves the weights little."""
    values = {
        "alpha": 1e-3,
        "decay": 1e-4,
        "epsilon": 1e-7,
        "one_minus_beta_1": 0.1,
        "one_minus_beta_2": 1e-3,
    }
    return scalars.Scalars(
        **{k: tf.constant(v, dtype) for k, v in values.items()}
    )


def one_update(dtype, in_one_pass):
    """What one update makes of `state`, in the form that serves."""
    *old, gradient = state(dtype)
    variables = [tf.Variable(value) for value in old]

    @tf.function(jit_compile=True, autograph=False)
    def update(gradient):
        new = update_rule.update(
            *(variable.read_value() for variable in variables),
            None,
            gradient,
            step_scalars(dtype),
            compiled=True,
            one_pass=in_one_pass,
        )
        for variable, value in zip(variables, new, strict=False):
            variable.assign(value)

    update(tf.constant(gradient))
    names = ("weights", "momentum", "velocity")
    return {
        f"update/{dtype}/{name}": variable.numpy()
        for name, variable in zip(names, variables, strict=True)
    }


def train(helpers, option, dtype):
    """Trains beside the reference; returns the errors and the weights."""
    rng = np.random.default_rng(3)
    options = helpers.OPTIONS[option]
    weights = helpers.random_weights(rng, SHAPES, dtype)
    low = dtype == "bfloat16"
    round_to = helpers.NUMPY_DTYPE[dtype] if low else None
    pair = helpers.Pair(
        weights, helpers.JIT_MODES[0], round_to=round_to, **options
    )
    window = options.get("gradient_accumulation_steps", 1)
    scale = helpers.gradient_scale(options)
    pair.train(rng, STEPS * window, scale)
    pair.check_moments()
    found = {"error": pair.error(), "updates": pair.optimizer.iterations}
    if options.get("use_ema"):
        found["average"] = max(
            helpers.relative_error(
                pair.slot(key, "average"), pair.reference.slots["average"][key]
            )
            for key in weights
        )
    return {f"{option}/{dtype}/{name}": value for name, value in found.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
