"""Lazy steps: several tables, and rows that are not there."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import both_modes
from rowwise import RowPair, random_slices

pytestmark = pytest.mark.core


@both_modes
def test_traces_are_few_for_several_tables(rng, monkeypatch, jit_compile):
    """XLA's: one whenever one of them exceeds its largest power of two."""
    functions, make = [], tf.function

    def kept(*args, **options):
        functions.append(make(*args, **options))
        return functions[-1]

    monkeypatch.setattr(tf, "function", kept)
    weights = helpers.random_weights(rng, dict.fromkeys("abc", (40, 3)))
    pair = RowPair(weights, jit_compile)
    for _ in range(20):
        gradients = {}
        for name, like in weights.items():
            indices = rng.integers(0, 40, rng.integers(0, 33))
            gradients[name] = random_slices(rng, like, indices)
        pair.step(gradients)
    count = sum(f.experimental_get_tracing_count() for f in functions)
    assert 1 <= count <= (3 * 6 + 1 if jit_compile else 4)


@both_modes
def test_a_row_out_of_range_in_a_function_changes_nothing(jit_compile):
    table = tf.Variable(tf.ones([20, 3]), name="table")
    bias = tf.Variable(tf.ones([3]), name="bias")
    optimizer = tf_adamw.AdamW(
        0.1, sparse_updates="lazy", jit_compile=jit_compile
    )
    optimizer.build([table, bias])

    @tf.function
    def step(indices):
        slices = tf.IndexedSlices(tf.ones([2, 3]), indices)
        return optimizer.apply([slices, tf.ones([3])]).applied

    step(tf.constant([1, 2]))
    before = helpers.snapshot(optimizer, [table, bias])
    for row in (20, -1):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"table.* has a row beyond"
        ):
            step(tf.constant([1, row]))
        assert helpers.snapshot(optimizer, [table, bias]) == before
    np.testing.assert_array_equal(table[5:], np.ones([15, 3]))
