"""The tool that traces TPU programs, on steps whose programs are known."""

import pytest
import tensorflow as tf

from tpu_scripts.aot import tracing
from tpu_scripts.aot.tracing import Program, make_strategy, trace

pytestmark = pytest.mark.core

SHAPE = (3, 5)
X = tf.TensorSpec(SHAPE, name="x")
FLAG = tf.TensorSpec([], tf.bool, name="flag")


@pytest.fixture
def strategy():
    """A strategy of 8 replicas, in a graph of its own."""
    with tf.Graph().as_default():
        yield make_strategy(8)


def variable(strategy, **options):
    with strategy.scope():
        return tf.Variable(tf.ones(SHAPE), name="w", **options)


def all_reduce(value):
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def types(operations):
    return [operation.split()[0] for operation in operations]


@pytest.mark.parametrize("replicas", [8, 256])
@pytest.mark.parametrize("kind", ["ON_WRITE", "ON_READ"])
def test_variables_live_on_every_core(replicas, kind):
    with tf.Graph().as_default():
        strategy = make_strategy(replicas)
        w = variable(
            strategy,
            synchronization=tf.VariableSynchronization[kind],
            aggregation=tf.VariableAggregation.SUM,
        )
        program = trace(strategy, lambda x: w.assign(all_reduce(x)), X)
    assert strategy.num_replicas_in_sync == replicas
    devices = strategy.extended.worker_devices
    assert {*devices} == {
        f"/job:worker/replica:0/task:{task}/device:TPU:{core}"
        for task in range(replicas // tracing.CORES_PER_HOST)
        for core in range(tracing.CORES_PER_HOST)
    }
    (handles,) = program.state().values()
    assert [handle.device for handle in handles] == [*devices]
    assert program.host_operations() == []


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.int32])
def test_all_reduces_show_dtype_and_shape(strategy, dtype):
    def step(x):
        return all_reduce([tf.cast(x, dtype), tf.constant(1.0)])

    tensor, scalar = trace(strategy, step, X).all_reduces()
    assert (tensor.dtype, tensor.shape, tensor.branches) == (dtype, SHAPE, ())
    assert (scalar.dtype, scalar.shape) == (tf.float32, ())


def test_all_reduces_of_indexed_slices_are_dense(strategy):
    def step(x):
        rows = tf.IndexedSlices(x[:2], tf.constant([2, 2]), tf.constant(SHAPE))
        return all_reduce(rows)

    (reduction,) = trace(strategy, step, X).all_reduces()
    assert reduction.shape == SHAPE


@pytest.mark.parametrize("branch", ["then_branch", "else_branch"])
def test_all_reduces_show_their_branch(strategy, branch):
    def step(x, flag):
        choices = [lambda: all_reduce(x), lambda: x]
        if branch == "else_branch":
            choices.reverse()
        return tf.cond(flag, *choices), all_reduce(x)

    program = trace(strategy, step, X, FLAG)
    outer, inner = sorted(program.all_reduces(), key=lambda o: len(o.path))
    assert outer.branches == ()
    ((conditional, found),) = inner.branches
    assert program.inside[conditional].type in ("If", "StatelessIf")
    assert found == branch


def test_branches_of_a_switch(strategy):
    def step(x):
        choices = [lambda: x, lambda: all_reduce(x), lambda: all_reduce(-x)]
        return tf.switch_case(tf.cast(x[0, 0], tf.int32), choices)

    reductions = trace(strategy, step, X).all_reduces()
    assert [o.branches[0][1] for o in reductions] == ["branches"] * 2


def test_functions_and_loops_are_searched(strategy):
    """A loop or a call is no conditional; a conditional within one is."""

    @tf.function
    def inner(x):
        return tf.cond(x[0, 0] > 0, lambda: all_reduce(x), lambda: x)

    def step(x):
        loop = tf.while_loop(
            lambda i, _: i < 3, lambda i, x: (i + 1, all_reduce(x)), (0, x)
        )
        return loop, inner(x)

    looped, chosen = trace(strategy, step, X).all_reduces()
    assert [attribute for _, attribute in looped.path] == ["body"]
    assert looped.branches == ()
    assert [attribute for _, attribute in chosen.path] == ["f", "then_branch"]
    assert len(chosen.branches) == 1


def on_the_cpu(x):
    with tf.device("/CPU:0"):
        return x + 1.0


HOST = {
    "PrintV2": lambda x: tf.print(x),
    "EagerPyFunc": lambda x: tf.py_function(lambda y: y, [x], tf.float32),
    "Assert": lambda x: tf.Assert(x[0, 0] > 0, [x]),
    "AddV2": on_the_cpu,
    "Exp": lambda x: tf.compat.v1.tpu.outside_compilation(tf.exp, x),
}


@pytest.mark.parametrize("within", ["the step", "a conditional"])
@pytest.mark.parametrize("operation", HOST)
def test_operations_that_leave_the_core_are_found(strategy, operation, within):
    def step(x, flag):
        call = HOST[operation]
        if within == "the step":
            return call(x)

        def then():
            call(x)
            return 0

        return tf.cond(flag, then, lambda: 1)

    found = trace(strategy, step, X, FLAG).host_operations()
    assert operation in types(found)


def test_a_variable_without_replicas_is_found(strategy):
    w = tf.Variable(tf.ones(SHAPE), name="w")
    program = trace(strategy, lambda x: x + w, X)
    (handles,) = program.state().values()
    assert len(handles) == 1
    assert types(program.host_operations()) == ["Placeholder"]


def test_a_value_of_the_host_is_found(strategy):
    value = tf.constant(2.0)
    program = trace(strategy, lambda x: x * value, X)
    assert types(program.host_operations()) == ["Placeholder"]


def test_what_is_done_with_the_results_is_found(strategy):
    @tf.function
    def run(x):
        return strategy.reduce("SUM", strategy.run(tf.exp, (x,)), axis=None)

    program = Program(run.get_concrete_function(X))
    assert types(program.host_operations()) == ["AddN"]
