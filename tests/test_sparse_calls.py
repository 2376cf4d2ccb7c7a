"""Where a step with `sparse_updates="lazy"` may be called, and its traces.

Numbers of rows may be known when a function is traced or differ from call to
call.
"""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import JIT_MODES, both_modes
from rowwise import RowPair, Slices, random_slices
from tf_adamw import rows

pytestmark = pytest.mark.core

SHAPES = {"table": (20, 3), "bias": (3,)}


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, SHAPES)


def traces(functions):
    return sum(f.experimental_get_tracing_count() for f in functions)


def eagerly(pair):
    return pair.optimizer.apply


def in_a_function(pair, **options):
    variables = list(pair.tables.values())

    def step(values, indices, bias):
        table = tf.IndexedSlices(values, indices)
        return pair.optimizer.apply([table, bias], variables)

    call = tf.function(step, **options)
    return lambda gradients, _: call(
        gradients[0].values, gradients[0].indices, gradients[1]
    )


def in_one_for_any_number(pair, **options):
    signature = [
        tf.TensorSpec([None, 3]),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([3]),
    ]
    return in_a_function(pair, input_signature=signature, **options)


def in_a_compiled_function(pair):
    return in_a_function(pair, jit_compile=True)


def in_a_compiled_one_for_any_number(pair):
    return in_one_for_any_number(pair, jit_compile=True)


WAYS = [eagerly, in_a_function, in_one_for_any_number]
if True in JIT_MODES:
    WAYS += [in_a_compiled_function, in_a_compiled_one_for_any_number]


@pytest.mark.parametrize("way", WAYS)
@both_modes
def test_ways_to_call_a_step(rng, weights, way, jit_compile):
    pair = RowPair(weights, jit_compile, global_clipnorm=0.5, use_ema=True)
    call = way(pair)
    for count in (3, 6, 0, 6):
        gradients = pair.random(rng, rows=count)
        gradients["bias"] = helpers.random_gradients(rng, weights)["bias"]
        pair.step(gradients, call)
    pair.check()


@both_modes
@pytest.mark.parametrize("compiled", [False, *([True] * (True in JIT_MODES))])
def test_in_a_loop(rng, weights, compiled, jit_compile):
    """Of other rows in each round."""
    pair = RowPair(weights, jit_compile, skip_nonfinite=True)
    indices = tf.constant([[1, 5, 1], [7, 1, 2], [9, 9, 9], [5, 4, 7]])
    values = rng.integers(1, 9, (4, 3, 3)).astype(np.float32)
    values[2, 1] = np.inf

    @tf.function(jit_compile=compiled)
    def loop(values):
        def body(i):
            table = tf.IndexedSlices(values[i], indices[i])
            pair.optimizer.apply([table], [pair.tables["table"]])
            return i + 1

        return tf.while_loop(lambda i: i < 4, body, (0,))

    loop(tf.constant(values))
    for given in zip(values, indices.numpy(), strict=True):
        if pair.reference.apply({"table": Slices(*given)})[0]:
            pair.bound.add_update()
    assert pair.reference.iterations == 3
    pair.check()


@both_modes
def test_traces_are_few_where_numbers_differ(rng, functions, jit_compile):
    """One for each power of two: 1, 2, 4, 8, 16, 32."""
    like = helpers.random_weights(rng, {"table": (40, 3)})["table"]
    pair = RowPair({"table": like}, jit_compile)
    pair.step({"table": random_slices(rng, like, [0])})
    first = traces(functions)
    for count in (2, 3, 5, 6, 7, 8, 4, 9, 12, 31, 17, 2, 16, 32, 1, 30):
        indices = rng.integers(0, 40, count)
        pair.step({"table": random_slices(rng, like, indices)})
    assert traces(functions) <= 6 * first


@pytest.mark.parametrize("way", [in_a_function, in_one_for_any_number])
@both_modes
def test_one_trace(rng, functions, weights, way, jit_compile):
    """Of a function whose number of rows is the same, or not asked for."""
    pair = RowPair(weights, jit_compile)
    call = way(pair)
    counts = [5] * 4 if way is in_a_function else [5, 2, 0, 9]
    for number, count in enumerate(counts):
        gradients = pair.random(rng, rows=count)
        gradients["bias"] = helpers.random_gradients(rng, weights)["bias"]
        pair.step(gradients, call)
        if number == 0:
            first = traces(functions)
    assert traces(functions) == first


def test_numbers_become_powers_of_two():
    for count in [*range(70), 1000, 1024]:
        indices = np.arange(count)[::-1] % 7
        values = np.ones((count, 2), np.float32)
        given = Slices(values, indices).tensor()
        found = rows.padded(given, 7, None)
        size = found.indices.shape[0]
        assert size == (2 ** int(np.ceil(np.log2(count))) if count else 0)
        assert found.values.shape == (size, 2)
        # What is beyond the last row, XLA leaves out.
        assert set(found.indices.numpy()) <= {*indices, 7}
        np.testing.assert_array_equal(
            tf.convert_to_tensor(as_dense(found)), as_dense(given)
        )


def as_dense(slices):
    return tf.math.unsorted_segment_sum(slices.values, slices.indices, 8)[:7]


@both_modes
@pytest.mark.parametrize("bad", [20, -1, 2**31 - 1])
def test_rows_out_of_range_are_refused(weights, bad, jit_compile):
    pair = RowPair(weights, jit_compile)
    pair.variables = pair.tables
    values = np.ones((3, 3), np.float32)
    table = Slices(values, np.array([1, bad, 2])).tensor()
    gradients = [table, tf.ones([3])]
    helpers.refused(
        pair,
        lambda: pair.optimizer.apply(gradients),
        "'table'",
        rf"row {bad}\b",
        "20 rows",
    )


@both_modes
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_other_numbers_of_values_are_refused(
    weights, count, traced, jit_compile
):
    """Than of indices."""
    pair = RowPair(weights, jit_compile)
    pair.variables = pair.tables
    values = np.ones((count, 3), np.float32)

    def step():
        table = Slices(values, np.array([1, 0, 2])).tensor()
        return pair.optimizer.apply([table, tf.ones([3])])

    call = tf.function(step, autograph=False) if traced else step
    helpers.refused(pair, call, "'table'", str(count), "3")


def test_accumulation_is_refused():
    with pytest.raises(ValueError, match=r"lazy.*accumulation") as refusal:
        tf_adamw.AdamW(sparse_updates="lazy", gradient_accumulation_steps=2)
    assert "\n" not in str(refusal.value)


WRONG = {
    "width": np.ones((2, 4), np.float32),
    "rank": np.ones([2], np.float32),
    "dtype": np.ones((2, 3), np.float64),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_values_that_do_not_fit_are_refused(weights, wrong):
    pair = RowPair(weights, False)
    pair.variables = pair.tables
    table = Slices(WRONG[wrong], np.array([1, 0])).tensor()
    gradients = [table, tf.ones([3])]
    helpers.refused(pair, lambda: pair.optimizer.apply(gradients), "'table'")


@both_modes
@pytest.mark.parametrize("option", ["ema_overwrite", "dynamic_loss_scale"])
def test_restored_runs_go_on_to_the_bit(
    rng, weights, option, jit_compile, tmp_path
):
    options = {**helpers.OPTIONS[option], "amsgrad": True}
    scale = helpers.gradient_scale(options)
    pair = RowPair(weights, jit_compile, **options)
    pair.train(rng, 4, scale)
    path = helpers.checkpoint_of(pair.optimizer, pair.tables).save(
        tmp_path / "checkpoint"
    )
    zeros = {key: np.zeros_like(w) for key, w in weights.items()}
    other = RowPair(zeros, jit_compile, **options)
    helpers.checkpoint_of(other.optimizer, other.tables).restore(path)
    assert other.bits() == pair.bits()
    for _ in range(3):
        gradients = pair.random(rng, scale)
        for one in (pair, other):
            one.optimizer.apply(
                [gradient.tensor() for gradient in gradients.values()]
            )
    assert other.bits() == pair.bits()


@both_modes
@pytest.mark.parametrize("traced", [False, True])
def test_gradients_of_embedding_lookup(rng, weights, traced, jit_compile):
    """Of two lookups in one table: their rows are joined by the tape."""
    pair = RowPair(weights, jit_compile)
    table, bias = pair.tables.values()

    def step(first, second):
        with tf.GradientTape() as tape:
            found = tf.nn.embedding_lookup(table, first) + bias
            again = tf.gather(table, second)
            loss = tf.reduce_sum(3.0 * found) + tf.reduce_sum(0.5 * again)
        gradients = tape.gradient(loss, [table, bias])
        assert isinstance(gradients[0], tf.IndexedSlices)
        return pair.optimizer.apply_gradients(
            zip(gradients, [table, bias], strict=True)
        )

    call = tf.function(step) if traced else step
    for _ in range(3):
        first, second = rng.integers(0, 20, (2, 4))
        untouched = pair.bits()
        call(tf.constant(first), tf.constant(second))
        dense = {
            "table": Slices(
                np.repeat([3.0, 0.5], 4)[:, None] * np.ones(3),
                np.concatenate([first, second]),
            ),
            "bias": np.full(3, 12.0),
        }
        pair.reference.apply(dense)
        pair.bound.add_update()
        for (name, slot), bits in pair.bits().items():
            if name not in pair.reference.last_magnitudes:
                assert bits == untouched[name, slot]
    pair.check()


def test_minimize(rng, weights):
    pair = RowPair({"table": weights["table"]}, False)
    table = pair.tables["table"]
    before = pair.bits()
    pair.optimizer.minimize(lambda: tf.gather(table, [4, 4])[0, 0], [table])
    changed = {
        name for (name, _), b in pair.bits().items() if b != before[name, _]
    }
    assert changed == {"table/4"}


def test_norms_of_groups(rng, weights):
    """Of the change of the rows; of all weights."""
    optimizer = tf_adamw.AdamW(
        sparse_updates="lazy", norm_groups={"embedding": ["table"]}
    )
    table = tf.Variable(weights["table"])
    optimizer.build({"table": table})
    before = table.numpy()
    gradient = random_slices(rng, before, [3, 17, 3])
    result = optimizer.apply([gradient.tensor()])
    change = np.linalg.norm(table.numpy() - before)
    np.testing.assert_allclose(result.update_norm["embedding"], change, 1e-4)
    norm = np.linalg.norm(table.numpy())
    np.testing.assert_allclose(result.weight_norm["embedding"], norm, 1e-5)
