"""Steps whose state is tensors, lowered by the kernels of TPUs.

The tensorflow-tpu wheel has these, and none for the host. Any other TensorFlow
has the host's, which also lower steps with variables: there the two forms are
the same program. That the two kinds of kernels make the same program of each
option's step is for `.ci/run tpu` to show.
"""

import pytest
import tensorflow as tf

from helpers import JIT_MODES
from tpu_canonical import canonical
from tpu_scripts.aot import functional, lowering
from tpu_scripts.aot.tracing import make_strategy, trace
from tpu_steps import OPTIONS, called, conditional, traced

pytestmark = pytest.mark.core

ON_TPU = True not in JIT_MODES
QUICK = ("plain", "global_clipnorm", "all_dynamic")
X = tf.TensorSpec([4, 2])
GROUPS = [[0, 1, 2, 3]]
COLLECTIVES = {
    "CrossReplicaSum": (
        "all-reduce",
        lambda x: tf.raw_ops.CrossReplicaSum(input=x, group_assignment=GROUPS),
    ),
    "AllToAll": (
        "all-to-all",
        lambda x: tf.raw_ops.AllToAll(
            input=x,
            group_assignment=GROUPS,
            concat_dimension=1,
            split_dimension=0,
            split_count=4,
        ),
    ),
}
REFUSED = {
    "AsString": lambda w, x: tf.strings.length(tf.strings.as_string(x)),
    "ListDiff": lambda w, x: tf.raw_ops.ListDiff(x=x[0], y=x[1]).out,
    "ResourceGather": lambda w, x: tf.raw_ops.ResourceGather(
        resource=w.handle, indices=[0], dtype=tf.float32
    ),
}


def check(program):
    """Asserts what holds for every program. Returns the lowered text."""
    text = functional.hlo(program)
    assert text.count(" all-reduce(") == len(program.all_reduces())
    if not ON_TPU:
        assert canonical(text) == canonical(lowering.hlo(program))
    return text


def traced_on_variable(step):
    """Traces a step on one variable of X's shape, and on X."""
    with tf.Graph().as_default():
        strategy = make_strategy(4)
        with strategy.scope():
            w = tf.Variable(tf.ones(X.shape))
        return trace(strategy, lambda x: step(w, x), X)


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(option, marks=() if option in QUICK else pytest.mark.slow)
        for option in OPTIONS
    ],
)
def test_options(option):
    check(traced(**OPTIONS[option]).program)


few_options = pytest.mark.parametrize(
    "option", ["plain", pytest.param("all_dynamic", marks=pytest.mark.slow)]
)


@few_options
@pytest.mark.parametrize("aggregation", ["mean", "none"])
def test_aggregations(aggregation, option):
    options = {**OPTIONS[option], "aggregation": aggregation}
    check(traced(**options).program)


def looped(optimizer, variables, gradients):
    def body(i, total):
        optimizer.apply(gradients, variables)
        return i + 1, total + variables[0]

    start = (0, tf.zeros_like(variables[0]))
    return tf.while_loop(lambda i, _: i < 3, body, start)


@few_options
@pytest.mark.parametrize("step", [looped, conditional, called])
def test_ways_to_write_a_step(step, option):
    check(traced(step, **OPTIONS[option]).program)


def test_state_is_threaded_through():
    """Each way to assign, in the order that the program has."""

    def step(w, x):
        def double():
            w.assign(w * 2.0)
            return 1

        w.assign_add(x)
        before = tf.identity(w)
        tf.cond(x[0, 0] > 0.0, double, lambda: 0)
        w.assign_sub(x)
        return before

    function, specs, updates = functional.functional(
        traced_on_variable(step), lambda node: None
    )
    assert specs == [tf.TensorSpec([], tf.int32), X, X]
    assert updates == {1: 2}
    run = tf.function(function.python_function, autograph=False)
    x, w = tf.fill([4, 2], 3.0), tf.fill([4, 2], 5.0)
    before, after = run(tf.constant(0), x, w)
    tf.debugging.assert_equal(before, w + x)
    tf.debugging.assert_equal(after, (w + x) * 2.0 - x)
    _, after = run(tf.constant(0), -x, w)
    tf.debugging.assert_equal(after, w)


@pytest.mark.parametrize("operation", COLLECTIVES)
def test_collectives(operation):
    """By the TPU's own kernels; the host has none, and says so."""
    instruction, collective = COLLECTIVES[operation]
    lowered = tf.function(
        collective, jit_compile=True
    ).experimental_get_compiler_ir(X)
    if ON_TPU:
        text = lowered(stage="hlo", platform_name="TPU")
        assert text.count(f" {instruction}(") == 1
        assert "replica_groups={{0,1,2,3}}" in text
    else:
        with pytest.raises(ValueError, match=operation):
            lowered(stage="hlo")


@pytest.mark.parametrize("operation", REFUSED)
def test_refusals(operation):
    program = traced_on_variable(REFUSED[operation])
    with pytest.raises(ValueError, match=operation):
        functional.hlo(program)


SAME = (
    """
ENTRY %first (x: f32[2], y: f32[2]) -> f32[2] {
  %x = f32[2] parameter(0), metadata={op_name="x"}
  %y = f32[2] parameter(1)
  %unused = f32[2] add(f32[2] %x, f32[2] %y)
  %two = f32[2] constant({2, 2})
  %product = f32[2] multiply(f32[2] %x, f32[2] %two)
  ROOT %sum = f32[2] add(f32[2] %product, f32[2] %y)
}
""",
    """
ENTRY %second (x.1: f32[2], y.2: f32[2]) -> f32[2] {
  %constant.3 = f32[2] constant({2, 2})
  %y.2 = f32[2] parameter(1)
  %x.1 = f32[2] parameter(0)
  %copy = f32[2] copy(f32[2] %y.2)
  %tuple = (f32[2], f32[2]) tuple(f32[2] %x.1, f32[2] %copy)
  %taken = f32[2] get-tuple-element((f32[2], f32[2]) %tuple), index=1
  %multiply.4 = f32[2] multiply(f32[2] %x.1, f32[2] %constant.3)
  ROOT %add.5 = f32[2] add(f32[2] %multiply.4, f32[2] %taken)
}
""",
)
CHANGES = {
    "constant": ("{2, 2}", "{2, 3}"),
    "opcode": ("= f32[2] multiply", "= f32[2] divide"),
    "operand": ("%product, f32[2] %y)", "%product, f32[2] %x)"),
    "parameter": ("parameter(0)", "parameter(2)"),
    "shape": ("ROOT %sum = f32[2]", "ROOT %sum = f32[3]"),
}


def test_same_programs():
    first, second = map(canonical, SAME)
    assert first == second
    assert len(first) == 5


@pytest.mark.parametrize("change", CHANGES)
def test_different_programs(change):
    text, _ = SAME
    assert text.count(CHANGES[change][0]) == 1
    changed = text.replace(*CHANGES[change])
    assert canonical(changed).keys() != canonical(text).keys()
