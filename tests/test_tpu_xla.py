"""What the tool says of XLA, on steps of which it is known."""

import re

import pytest
import tensorflow as tf

from tpu_scripts.aot.lowering import hlo, unknown_operations
from tpu_scripts.aot.tracing import make_strategy, trace

SHAPE = (3, 5)
X = tf.TensorSpec(SHAPE, name="x")
FLAG = tf.TensorSpec([], tf.bool, name="flag")

UNKNOWN = {
    "AsString": lambda x: tf.strings.length(tf.strings.as_string(x)),
    "EagerPyFunc": lambda x: tf.py_function(lambda y: y, [x], tf.float32),
    "ListDiff": lambda x: tf.raw_ops.ListDiff(x=x[0], y=x[1]).out,
}


@pytest.fixture
def program():
    """Updates by the reduced argument if a flag is set; returns the root."""
    with tf.Graph().as_default():
        strategy = make_strategy(8)
        with strategy.scope():
            w = tf.Variable(tf.ones(SHAPE))

        def step(x, flag):
            def then():
                context = tf.distribute.get_replica_context()
                w.assign_sub(context.all_reduce("SUM", x))
                return True

            tf.cond(flag, then, lambda: False)
            return tf.sqrt(w)

        return trace(strategy, step, X, FLAG)


@pytest.fixture(params=UNKNOWN)
def unknown(request):
    """An operation that XLA does not know, and a program with it."""
    with tf.Graph().as_default():
        strategy = make_strategy(8)
        return request.param, trace(strategy, UNKNOWN[request.param], X)


@pytest.mark.core
def test_known_operations(program):
    assert unknown_operations(program) == []


@pytest.mark.core
def test_unknown_operations(unknown):
    operation, program = unknown
    found = unknown_operations(program)
    assert operation in {line.split()[0] for line in found}


@pytest.mark.core
def test_unknown_dtypes():
    with tf.Graph().as_default():
        strategy = make_strategy(8)
        program = trace(strategy, lambda: tf.raw_ops.Shape(input="text"))
    (found,) = unknown_operations(program)
    assert found.startswith("Shape ")


def test_hlo_is_the_program_of_a_replica(program):
    text = hlo(program)
    assert text.count(" all-reduce(") == 1
    assert "replica_groups={{0,1,2,3,4,5,6,7}}" in text
    assert text.count("may-alias") == 1
    _, entry = text.split("\nENTRY ")
    assert re.search(r"-> \(f32\[3,5\], f32\[3,5\]\)", entry)
    assert entry.count(" conditional(") == 1
    assert entry.count(" sqrt(") == 1
    assert entry.count(" all-reduce(") == 0


def test_hlo_is_refused(unknown):
    operation, program = unknown
    with pytest.raises(ValueError, match=operation):
        hlo(program)
