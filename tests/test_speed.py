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


def graph_of_a_step(optimizer, like, variables=None):
    """The graph of a caller's function of the gradients, given what is alike.

    Without `variables` it updates those that were built.
    """
    step = tf.function(lambda given: optimizer.apply(given, variables).applied)
    specs = [tf.TensorSpec(w.shape, w.dtype) for w in like]
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
        graph = graph_of_a_step(pair.optimizer, weights.values())
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


def fused_ops(graph):
    return [node for node in helpers.all_nodes(graph) if node.op == FUSED_OP]


@both_modes
def test_which_ops_a_mode_takes(rng, jit_compile):
    """However many variables there are."""
    weights = helpers.random_weights(rng, shapes(300))
    graph = graph_of_a_step(
        Pair(weights, jit_compile).optimizer, weights.values()
    )
    assert is_compiled(graph) is jit_compile
    assert len(fused_ops(graph)) == (0 if jit_compile else 300)


@pytest.mark.parametrize(
    ("count", "elements", "options", "ops"),
    [
        (256, 12, {}, True),
        (256, 12, {"global_clipnorm": 1.0, "skip_nonfinite": True}, True),
        (255, 12, {}, False),
        (256, 8192, {}, False),
        (256, 12, {"amsgrad": True}, False),
        (256, 12, {"use_ema": True}, False),
        (256, 12, {"gradient_accumulation_steps": 2}, False),
        (256, 12, {"sparse_updates": "lazy"}, False),
        (256, 12, {"norm_groups": {"all": ".*"}}, False),
        (256, 12, {"learning_rate_multipliers": {"v7": "a variable"}}, False),
    ],
)
def test_auto_takes_the_faster(rng, count, elements, options, ops):
    """XLA, but for many small variables: those take it long to be handed."""
    factors = options.get("learning_rate_multipliers")
    if factors:
        options = {"learning_rate_multipliers": {"v7": tf.Variable(0.5)}}
    weights = helpers.random_weights(rng, shapes(count, (elements,)))
    assert takes_ops(weights, options) is (ops or not JIT_MODES[0])


def test_auto_leaves_low_precision_to_xla(rng):
    """For which TensorFlow has no op that rounds once."""
    weights = helpers.random_weights(rng, shapes(255))
    weights |= helpers.random_weights(rng, {"half": (3,)}, "bfloat16")
    assert takes_ops(weights, {}) is (not JIT_MODES[0])


def takes_ops(weights, options):
    """Whether "auto" does, before `build` and after; it must not change."""
    optimizer = tf_adamw.AdamW(**options)
    variables = list(helpers.as_variables(weights).values())
    modes = [
        not is_compiled(graph_of_a_step(optimizer, variables, variables))
        for _ in range(2)
    ]
    assert modes[0] is modes[1]
    return modes[0]


def test_many_more_variables_later(rng):
    """What "auto" takes for all of them holds from their first step on."""
    weights = helpers.random_weights(rng, shapes(300))
    every = list(helpers.as_variables(weights).values())
    optimizer = tf_adamw.AdamW()
    for variables, ops in ((every[:200], False), (every, True)):
        graph = graph_of_a_step(optimizer, variables, variables)
        assert bool(fused_ops(graph)) is (ops or not JIT_MODES[0])


def test_fused_ops_stand_in_the_callers_own_graph(rng):
    """A function of their own would be traced, and then inlined."""
    weights = helpers.random_weights(rng, shapes(3))
    graph = graph_of_a_step(Pair(weights, False).optimizer, weights.values())
    assert [node.op for node in graph.node].count(FUSED_OP) == 3


@both_modes
def test_what_waits_for_the_result_waits_for_every_change(rng, jit_compile):
    """`tf.control_dependencies` takes an `ApplyResult`."""
    weights = helpers.random_weights(rng, shapes(50, (64, 64)))
    pair = Pair(weights, jit_compile, learning_rate=1.0)
    seen = []

    def look():
        values = [v.numpy() for v in pair.variables.values()]
        seen.append((values, pair.optimizer.iterations.numpy()))

    @tf.function
    def step(gradients):
        result = pair.optimizer.apply(gradients)
        with tf.control_dependencies([result]):
            tf.py_function(look, [], [])

    for updates in range(1, 4):
        gradients = helpers.random_gradients(rng, weights)
        step(helpers.to_gradients(gradients.values()))
        values, iterations = seen[-1]
        assert iterations == updates
        for value, variable in zip(
            values, pair.variables.values(), strict=True
        ):
            np.testing.assert_array_equal(value, variable.numpy())


@both_modes
def test_a_gradient_that_fails_changes_nothing(rng, jit_compile):
    """Such as one that the caller checks, in the same function."""
    weights = helpers.random_weights(rng, shapes(20))
    pair = Pair(weights, jit_compile)
    pair.train(rng, 1)
    before = helpers.values(pair.variables)

    @tf.function
    def step(gradients):
        last = tf.debugging.check_numerics(gradients[-1], "the last gradient")
        return pair.optimizer.apply([*gradients[:-1], last]).applied

    gradients = helpers.random_gradients(rng, weights)
    gradients["v19"][0, 0] = np.nan
    for _ in range(3):
        with pytest.raises(tf.errors.InvalidArgumentError, match="the last"):
            step(helpers.to_gradients(gradients.values()))
        for key, value in helpers.values(pair.variables).items():
            np.testing.assert_array_equal(value, before[key])
        assert pair.optimizer.iterations == 1


@pytest.mark.parametrize("outer_jit", JIT_MODES)
@pytest.mark.parametrize("mode", [JIT_MODES[0], "auto"])
def test_many_in_the_callers_function(rng, mode, outer_jit):
    weights = helpers.random_weights(rng, shapes(300))
    pair = Pair(weights, mode)

    @tf.function(jit_compile=outer_jit)
    def step(gradients):
        return pair.optimizer.apply(gradients).applied

    for _ in range(4):
        gradients = helpers.random_gradients(rng, weights)
        assert step(helpers.to_gradients(gradients.values()))
        pair.reference.apply(gradients)
    assert step.experimental_get_tracing_count() == 1
    assert pair.error() <= 1e-6
    pair.check_moments(fused=mode is not True)


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
