"""What the rows of an `IndexedSlices` that have one index add up to.

In float32 to what TensorFlow makes of them, in every bit; in low precision to
their sum in float32, on one replica as on several.
"""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import strategies
import tf_adamw
from helpers import JIT_MODES, both_modes, compiled_is_slow
from tpu_scripts.aot.tracing import make_strategy, trace

pytestmark = pytest.mark.core

# A sum of 600 ones stalls at 256 in bfloat16; 90,000 is infinite in float16.
SUMS = {"bfloat16": (1.0, 600), "float16": (30000.0, 3)}
ROW, ROWS = 2, 4
both_kinds = pytest.mark.parametrize("sparse_updates", ["dense", "lazy"])
WAYS = {
    "eager": lambda step: step,
    "function": lambda step: tf.function(step, autograph=False),
}
if True in JIT_MODES:
    WAYS["compiled"] = lambda step: tf.function(
        step, autograph=False, jit_compile=True
    )
every_way = pytest.mark.parametrize("way", WAYS)


def new(dtype, **options):
    """A table of zeros, and an optimizer whose momentum is the gradient."""
    table = tf.Variable(tf.zeros([ROWS, 1], dtype), name="table")
    optimizer = tf_adamw.AdamW(beta_1=0.0, skip_nonfinite=True, **options)
    optimizer.build([table])
    return table, optimizer


def repeated(dtype, share=1):
    """A gradient that has one row many times."""
    value, count = SUMS[dtype]
    values = tf.fill([count // share, 1], tf.constant(value, dtype))
    return tf.IndexedSlices(values, tf.fill([count // share], ROW), [ROWS, 1])


def check(dtype, table, optimizer):
    value, count = SUMS[dtype]
    momentum = np.array(optimizer.get_slot(table, "momentum"))
    assert momentum.dtype == np.float32
    expected = np.where(np.arange(ROWS) == ROW, value * count, 0.0)
    np.testing.assert_array_equal(momentum[:, 0], expected)


def check_a_step(dtype, way, **options):
    table, optimizer = new(dtype, **options)
    WAYS[way](lambda: optimizer.apply([repeated(dtype)], [table]).applied)()
    check(dtype, table, optimizer)


@both_kinds
@both_modes
@every_way
def test_bfloat16_is_summed_in_float32(sparse_updates, jit_compile, way):
    check_a_step(
        "bfloat16",
        way,
        jit_compile=jit_compile,
        sparse_updates=sparse_updates,
    )


@both_kinds
@compiled_is_slow
def test_float16_does_not_overflow(sparse_updates, jit_compile):
    check_a_step(
        "float16",
        "function",
        jit_compile=jit_compile,
        sparse_updates=sparse_updates,
    )


@both_kinds
@pytest.mark.parametrize("mode", ["auto", False])
@pytest.mark.parametrize("name", ["mirrored_2", "central_2"])
def test_on_two_replicas(name, mode, sparse_updates):
    """Each has 300 of the ones."""
    strategy = strategies.named(name)
    with strategy.scope():
        table, optimizer = new(
            "bfloat16", jit_compile=mode, sparse_updates=sparse_updates
        )

    def step():
        return optimizer.apply([repeated("bfloat16", 2)], [table]).applied

    tf.function(lambda: strategy.run(step), autograph=False)()
    check("bfloat16", table, optimizer)


@both_modes
def test_in_a_window(jit_compile):
    options = {"gradient_accumulation_steps": 2}
    table, optimizer = new("bfloat16", jit_compile=jit_compile, **options)
    for _ in range(2):  # whose mean it is
        optimizer.apply([repeated("bfloat16")], [table])
    check("bfloat16", table, optimizer)


@both_kinds
def test_in_the_program_of_a_tpu(sparse_updates):
    with tf.Graph().as_default():
        strategy = make_strategy(2)
        with strategy.scope():
            table, optimizer = new("bfloat16", sparse_updates=sparse_updates)

        def step():
            return optimizer.apply([repeated("bfloat16")], [table]).applied

        program = trace(strategy, step)
    sums = [o for o in program.operations if o.type == "UnsortedSegmentSum"]
    assert sums
    for operation in sums:
        assert operation.node.attr["T"].type == tf.float32.as_datatype_enum


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)]
)
@both_modes
@every_way
def test_dense_is_what_tensorflow_makes_of_rows(rng, dtype, jit_compile, way):
    """To the bit: weights and moments, with a clip by their norm."""
    values = tf.constant(rng.standard_normal((1000, 3)), dtype)
    rows = tf.constant(rng.integers(0, 5, 1000))
    slices = tf.IndexedSlices(values, rows, tf.constant([6, 3], tf.int64))
    start = helpers.random_weights(rng, {"table": (6, 3)}, dtype)["table"]
    bits = []
    for gradient in (slices, tf.convert_to_tensor(slices)):
        table = tf.Variable(start, name="table")
        optimizer = tf_adamw.AdamW(global_clipnorm=1.0, jit_compile=jit_compile)
        optimizer.build([table])
        step = WAYS[way](lambda g, a=optimizer: a.apply([g]).applied)
        for _ in range(3):
            step(gradient)
        bits.append(helpers.snapshot(optimizer, [table]))
    assert bits[0] == bits[1]
    assert not np.array_equal(table.numpy(), start)
