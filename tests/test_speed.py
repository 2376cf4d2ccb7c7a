"""What a step costs, told from its programs: how large they are and which.

Times are measured by `tpu_scripts.benchmark`.
"""

import concurrent.futures
import gc
import multiprocessing
import os

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import JIT_MODES, UNIT_ROUNDOFF, Pair, both_modes

pytestmark = pytest.mark.core

FUSED_OP = "ResourceApplyAdam"


def shapes(count, shape=(4, 3)):
    return {f"v{number}": shape for number in range(count)}


def graph_of_a_step(optimizer, weights):
    """The graph of a caller's function of the gradients."""
    step = tf.function(lambda gradients: optimizer.apply(gradients).applied)
    specs = [tf.TensorSpec(w.shape, w.dtype) for w in weights.values()]
    return step.get_concrete_function(specs).graph.as_graph_def()


def is_compiled(graph):
    return any(f.attr["_XlaMustCompile"].b for f in graph.library.function)


@both_modes
def test_graph_nodes_per_variable(rng, jit_compile):
    """A variable's gradient and resources alone are four; Keras has 47."""
    nodes = {}
    for count in (50, 150):
        weights = helpers.random_weights(rng, shapes(count))
        pair = Pair(weights, jit_compile)
        graph = graph_of_a_step(pair.optimizer, weights)
        assert is_compiled(graph) is jit_compile
        nodes[count] = len(helpers.all_nodes(graph))
    per_variable = (nodes[150] - nodes[50]) / 100
    assert 4 <= per_variable <= 8
    # What a step has once: its scalars, its counters.
    assert nodes[50] - 50 * per_variable <= 100


ALIKE = {  # key: dtype and shape
    "plain_1": ("float32", (3, 4)),
    "plain_2": ("float32", (3, 4)),
    "excluded": ("float32", (3, 4)),
    "half": ("float32", (3, 4)),
    "half_excluded": ("float32", (3, 4)),
    "double": ("float32", (3, 4)),
    "held_quarter": ("float32", (3, 4)),
    "held_triple": ("float32", (3, 4)),
    "transposed": ("float32", (4, 3)),
    "flat": ("float32", (12,)),
    "scalar": ("float32", ()),
    "empty": ("float32", (0, 4)),
    "wide": ("float64", (3, 4)),
    "wide_excluded": ("float64", (3, 4)),
    "wide_held_quarter": ("float64", (3, 4)),
    "bfloat16": ("bfloat16", (3, 4)),
    "bfloat16_excluded": ("bfloat16", (3, 4)),
    "bfloat16_half": ("bfloat16", (3, 4)),
    "float16": ("float16", (3, 4)),
}
MULTIPLIERS = {"half": 0.5, "double": 2.0, "quarter": 0.25, "triple": 3.0}


@both_modes
@pytest.mark.parametrize(
    "option", ["plain", "amsgrad", "ema", "ema_overwrite", "accumulation"]
)
def test_alike_variables_are_not_confused(rng, option, jit_compile):
    """One shape and another dtype, decay or factor on the learning rate."""
    weights = {
        key: helpers.random_weights(rng, {key: shape}, dtype)[key]
        for key, (dtype, shape) in ALIKE.items()
    }
    options = {
        "learning_rate": 0.01,
        "weight_decay": 1.0,
        "exclude_from_weight_decay": ["excluded"],
        "learning_rate_multipliers": MULTIPLIERS,
        **helpers.OPTIONS[option],
    }
    pair = Pair(weights, jit_compile, **options)
    # The last two are held outside.
    options["learning_rate_multipliers"] = {
        key: tf.Variable(value) if key in ("quarter", "triple") else value
        for key, value in MULTIPLIERS.items()
    }
    pair.optimizer = tf_adamw.AdamW(jit_compile=jit_compile, **options)
    pair.optimizer.build(pair.variables)
    for _ in range(6):
        pair.train(rng, 1)
        check_each(pair, overwritten=option == "ema_overwrite")
    pair.check_moments()


def check_each(pair, overwritten):
    """Asserts weights and averages; goes on from the weights."""
    for key, variable in pair.variables.items():
        dtype = variable.dtype.name
        expected = pair.reference.weights[key]
        error = helpers.relative_error(variable.numpy(), expected)
        if dtype in ("bfloat16", "float16"):
            # Half a unit and what float32 adds; an average of weights that
            # were rounded is half a unit off before.
            bound = (2 if overwritten else 1.01) * UNIT_ROUNDOFF[dtype]
        else:
            bound = {"float32": 2e-6, "float64": 1e-13}[dtype]
            if pair.reference.use_ema:
                average = pair.reference.slots["average"][key]
                actual = pair.slot(key, "average")
                np.testing.assert_allclose(actual, average, rtol=bound)
        assert error <= bound, key
        # Roundings of low precision would add up.
        pair.reference.weights[key] = variable.numpy().astype(np.float64)


@pytest.mark.parametrize("mode", [*JIT_MODES, "auto"])
def test_which_ops_a_mode_takes(rng, mode):
    """However many variables there are."""
    weights = helpers.random_weights(rng, shapes(300))
    pair = Pair(weights, mode)
    graph = graph_of_a_step(pair.optimizer, weights)
    xla = JIT_MODES[0] if mode == "auto" else mode
    assert is_compiled(graph) is xla
    fused = [node for node in helpers.all_nodes(graph) if node.op == FUSED_OP]
    assert len(fused) == (0 if xla else 300)


@pytest.mark.parametrize("outer_jit", JIT_MODES)
def test_many_in_the_callers_function(rng, outer_jit):
    weights = helpers.random_weights(rng, shapes(300))
    pair = Pair(weights, "auto")

    @tf.function(jit_compile=outer_jit)
    def step(gradients):
        return pair.optimizer.apply(gradients).applied

    for _ in range(4):
        gradients = helpers.random_gradients(rng, weights)
        assert step(helpers.to_gradients(gradients.values()))
        pair.reference.apply(gradients)
    assert step.experimental_get_tracing_count() == 1
    assert pair.error() <= 1e-6
    pair.check_moments()


def caller(called, jit_compile):
    """Does one step of a small model, eagerly or in a function."""
    weights = {k: np.ones(s, np.float32) for k, s in helpers.SHAPES.items()}
    variables = helpers.as_variables(weights)
    optimizer = tf_adamw.AdamW(jit_compile=jit_compile)
    optimizer.build(variables)
    ordered = list(variables.values())
    in_function = tf.function(lambda gradients: optimizer.apply(gradients))

    def step():
        gradients = helpers.to_gradients(weights.values())
        if called == "eagerly":
            return optimizer.apply(gradients, ordered)
        return in_function(gradients)

    return step


def resident():
    """The memory of this process, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


both_calls = pytest.mark.parametrize("called", ["eagerly", "in a function"])


@both_modes
@both_calls
def test_a_call_leaves_no_object(called, jit_compile):
    step = caller(called, jit_compile)
    for _ in range(50):
        step()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(1000):
        step()
    gc.collect()
    # One object for each call would be a thousand.
    assert len(gc.get_objects()) - before < 100


def growth(called, jit_compile):
    """By how many bytes 10,000 calls make this process larger."""
    step = caller(called, jit_compile)
    for _ in range(1000):
        step()
    gc.collect()
    before = resident()
    for _ in range(10_000):
        step()
    gc.collect()
    return resident() - before


@pytest.mark.slow
@both_modes
@both_calls
def test_10_000_calls_take_no_memory(called, jit_compile):
    """In a new process: in this one other tests' memory comes and goes."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as executor:
        grown = executor.submit(growth, called, jit_compile).result(300)
    # 100 bytes a call, less than one tensor takes.
    assert grown < 10_000 * 100
