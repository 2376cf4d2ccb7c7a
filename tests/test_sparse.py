"""`sparse_updates="lazy"`: rows are what AdamW makes of them alone.

Rows that a gradient does not have stay as they are, to the bit: `RowPair.step`
asserts it of every step.
"""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import JIT_MODES, UNIT_ROUNDOFF
from rowwise import RowPair, Slices, random_slices

pytestmark = pytest.mark.core

SHAPES = {"kernel": (7, 3), "bias": (5,), "scale": ()}
RANKS = {"vector": (6,), "matrix": (6, 2), "cube": (6, 2, 2)}
EVERYTHING = {
    name: value
    for name, value in helpers.OPTIONS["everything"].items()
    if name != "gradient_accumulation_steps"  # is refused
}
OPTIONS = {
    **helpers.OPTIONS,
    "everything": EVERYTHING,
    "coupling_none": {"decay_coupling": "none", "weight_decay": 0.01},
    "coupling_schedule": {
        "decay_coupling": "schedule",
        "learning_rate": helpers.LinearDecay(),
        "base_learning_rate": 0.25,
    },
    "decay_multipliers": {"weight_decay_multipliers": {"kernel": 8.0}},
    "no_rate": {"learning_rate_multipliers": {"e": 1.0, "bias": 0.0}},
    "skip_and_clip": {"skip_nonfinite": True, "clipnorm": 0.5},
}
del OPTIONS["accumulation"]  # is refused
quick_modes = pytest.mark.parametrize(
    "jit_compile",
    [
        pytest.param(mode, marks=pytest.mark.slow) if mode else mode
        for mode in JIT_MODES
    ],
)


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, SHAPES)


@pytest.mark.parametrize("option", OPTIONS)
@quick_modes
def test_options(rng, weights, option, jit_compile):
    options = OPTIONS[option]
    pair = RowPair(weights, jit_compile, **options)
    pair.train(rng, 7, helpers.gradient_scale(options))
    assert pair.reference.iterations > 2
    pair.check()


@helpers.both_modes
def test_all_options_together(rng, weights, jit_compile):
    options = OPTIONS["everything"]
    pair = RowPair(weights, jit_compile, **options)
    pair.train(rng, 6, helpers.gradient_scale(options))
    pair.check()


INDICES = [
    [3],
    [],
    [3, 3, 3],
    [6, 0, 6, 0, 2],
    [0, 1, 2, 3, 4, 5, 6],
    [6, 5, 4, 3, 2, 1, 0],
]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@quick_modes
def test_indices(rng, weights, dtype, jit_compile):
    """None, all, repeated, in any order."""
    like = weights.pop("kernel")
    pair = RowPair({"kernel": like}, jit_compile, amsgrad=True)
    for indices in INDICES:
        pair.step({"kernel": random_slices(rng, like, indices, dtype)})
    pair.check()


@helpers.both_modes
def test_no_rows_count_as_a_step(weights, jit_compile):
    pair = RowPair({"kernel": weights["kernel"]}, jit_compile)
    none = Slices(np.zeros((0, 3), np.float32), np.zeros([0], np.int32))
    result = pair.step({"kernel": none})
    assert result.applied
    assert pair.optimizer.iterations.numpy() == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@quick_modes
def test_ranks(rng, dtype, jit_compile):
    weights = helpers.random_weights(rng, RANKS, dtype)
    pair = RowPair(weights, jit_compile, use_ema=True, clipnorm=2.0)
    pair.train(rng, 4, rows=8)
    pair.check()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@quick_modes
def test_low_precision(rng, dtype, jit_compile):
    """From the weights that they hold, rows are rounded once."""
    weights = helpers.random_weights(rng, RANKS, dtype)
    pair = RowPair(weights, jit_compile, learning_rate=0.125)
    for _ in range(4):
        for name, row in pair.variables.items():
            pair.reference.weights[name] = row.numpy().astype(np.float64)
        pair.train(rng, 1)
        assert pair.error() <= UNIT_ROUNDOFF[dtype] + 4e-6
    pair.check_moments()
    for slot in pair.optimizer.slots["matrix"].values():
        assert slot.dtype == tf.float32


@helpers.both_modes
def test_a_table_of_those_rows_alone(rng, jit_compile):
    """The dense step of the same optimizer there."""
    table = helpers.random_weights(rng, {"table": (50, 8)})["table"]
    rows = [31, 7, 44, 12]
    lazy, dense = (
        tf_adamw.AdamW(
            global_clipnorm=1.0, use_ema=True, jit_compile=jit_compile, **kind
        )
        for kind in ({"sparse_updates": "lazy"}, {})
    )
    whole, part = tf.Variable(table), tf.Variable(table[rows])
    lazy.build({"table": whole})
    dense.build({"table": part})
    for _ in range(5):
        gradient = np.float32(rng.standard_normal((4, 8)))
        lazy.apply([Slices(gradient, np.array(rows)).tensor()])
        dense.apply([tf.constant(gradient)])
    pairs = [(whole, part)]
    for name, slot in dense.slots["table"].items():
        pairs.append((lazy.slots["table"][name], slot))
    for found, expected in pairs:
        error = helpers.relative_error(found.numpy()[rows], expected.numpy())
        assert error <= 1e-6


@helpers.both_modes
def test_repeated_rows_are_summed_before_they_are_squared(jit_compile):
    table = tf.Variable(tf.ones([4, 1]))
    optimizer = tf_adamw.AdamW(jit_compile=jit_compile, sparse_updates="lazy")
    optimizer.build([table])
    values = np.array([[1.0], [5.0], [2.0], [4.0]], np.float32)
    optimizer.apply([Slices(values, np.array([2, 0, 2, 2])).tensor()])
    velocity = optimizer.get_slot(table, "velocity").numpy()[:, 0]
    np.testing.assert_allclose(velocity, [0.025, 0, 0.049, 0], rtol=1e-4)


@helpers.both_modes
def test_norms_are_of_the_summed_rows(jit_compile):
    table, bias = tf.Variable(tf.ones([9, 1])), tf.Variable([1.0], name="bias")
    optimizer = tf_adamw.AdamW(
        global_clipnorm=2.5, jit_compile=jit_compile, sparse_updates="lazy"
    )
    optimizer.build([table, bias])
    values = np.array([[3.0], [5.0], [-2.0]], np.float32)
    rows = Slices(values, np.array([4, 8, 8])).tensor()  # 3 and 3
    result = optimizer.apply([rows, tf.constant([7**0.5])])
    np.testing.assert_allclose(result.grad_norm, 5.0, 1e-6)
    momentum = optimizer.get_slot(table, "momentum").numpy()[:, 0]
    np.testing.assert_allclose(momentum[[4, 8]], 0.15, 1e-5)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("scale", [None, "dynamic"])
@quick_modes
def test_a_row_that_is_not_finite(rng, weights, scale, bad, jit_compile):
    """Nothing changes, nowhere. Then training goes on."""
    if scale:
        scale = tf_adamw.DynamicLossScale(initial=64.0, growth_interval=2)
        options = {"loss_scale_factor": scale}
    else:
        options = {"skip_nonfinite": True}
    pair = RowPair(weights, jit_compile, use_ema=True, **options)
    for number in range(5):
        gradients = pair.random(rng, pair.reference.loss_scale)
        if number in (1, 2):
            gradients["kernel"].values[2, 1] = bad
        pair.step(gradients)
    assert pair.reference.iterations == 3
    pair.check()


@helpers.both_modes
def test_a_bad_row_spoils_no_other(rng, jit_compile):
    like = helpers.random_weights(rng, {"table": (7, 3)})["table"]
    table = tf.Variable(like)
    optimizer = tf_adamw.AdamW(jit_compile=jit_compile, sparse_updates="lazy")
    optimizer.build([table])
    gradient = random_slices(rng, like, [2, 5, 2, 6])
    gradient.values[1] = np.nan
    optimizer.apply([gradient.tensor()])
    finite = np.isfinite(table.numpy()).all(axis=1)
    assert finite.tolist() == [True] * 5 + [False, True]


@quick_modes
def test_multipliers_that_are_variables(rng, weights, jit_compile):
    """A rate of 0 leaves rows and their state alone."""
    factor = tf.Variable(0.5)
    options = {"learning_rate_multipliers": {"kernel": factor}}
    pair = RowPair(weights, jit_compile, use_ema=True, **options)
    pair.train(rng, 2)
    factor.assign(0.0)
    gradients = pair.random(rng)
    before = pair.bits()
    pair.optimizer.apply(
        [gradients["kernel"].tensor()], [pair.tables["kernel"]]
    )
    assert pair.bits() == before
    pair.reference.iterations += 1
    factor.assign(0.25)
    pair.reference.multipliers["kernel"] = 0.25
    pair.train(rng, 2)
    pair.check()


@quick_modes
def test_dense_and_sparse_in_turns(rng, weights, jit_compile):
    pair = RowPair(weights, jit_compile, use_ema=True, global_clipnorm=0.5)
    for number in range(6):
        gradients = pair.random(rng)
        for place, key in enumerate(("kernel", "bias")):
            if number % 3 == place:
                gradients[key] = helpers.random_gradients(rng, weights)[key]
        pair.step(gradients)
    pair.check()


DRAWN = st.fixed_dictionaries(
    {
        "learning_rate": st.sampled_from([1e-3, 0.1]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "beta_1": st.sampled_from([0.0, 0.9]),
        "beta_2": st.sampled_from([0.9, 0.999]),
        "amsgrad": st.booleans(),
        "clipnorm": st.sampled_from([None, 1.0]),
        "loss_scale_factor": st.sampled_from([None, 128.0]),
        "use_ema": st.booleans(),
        "skip_nonfinite": st.booleans(),
        "exclude_from_weight_decay": st.sampled_from([(), ("bias",)]),
    }
)
TABLE_ROWS = st.lists(st.integers(0, 6), max_size=8)


@quick_modes
@hypothesis.settings(max_examples=5)
@hypothesis.given(DRAWN, st.lists(TABLE_ROWS, max_size=5), st.integers(0, 99))
def test_random_runs(jit_compile, options, steps, seed):
    rng = np.random.default_rng(seed)
    weights = helpers.random_weights(rng, SHAPES)
    pair = RowPair(weights, jit_compile, **options)
    for rows in steps:
        gradients = pair.random(rng, options["loss_scale_factor"] or 1.0)
        like = weights["kernel"] * (options["loss_scale_factor"] or 1.0)
        gradients["kernel"] = random_slices(rng, like, rows)
        pair.step(gradients)
    pair.check()
