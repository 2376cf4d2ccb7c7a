"""Gradients that are missing, sparse, bad or the same on the replicas."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import strategies
from strategies import ReplicaPair

pytestmark = pytest.mark.core

SHAPES = {"kernel": (3, 5), "bias": (5,), "scale": ()}
QUICK = [("mirrored_2", False), ("central_2", False)]
every_place = pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(*place, marks=() if place in QUICK else pytest.mark.slow)
        for place in strategies.SEVERAL_REPLICAS
    ],
)


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, SHAPES)


def run(pair, step, way="function"):
    """`strategy.run(step)`, in a function or eagerly."""
    if way == "eager":
        return pair.strategy.run(step)
    return tf.function(lambda: pair.strategy.run(step), autograph=False)()


def replica():
    return tf.distribute.get_replica_context().replica_id_in_sync_group


@every_place
def test_missing_gradients(rng, weights, name, mode):
    """None on all replicas: left alone, with all that belongs to it."""
    strategy = strategies.named(name)
    pair = ReplicaPair(strategy, weights, mode, use_ema=True, amsgrad=True)
    pair.train(rng, 2)
    slots = pair.optimizer.slots["bias"].values()
    alone = [pair.variables["bias"], *slots]
    before = [pair.copies(variable) for variable in alone]
    variables = list(pair.variables.values())
    for way in ("eager", "function"):
        parts = pair.random_parts(rng)
        stacked = {key: tf.constant(part) for key, part in parts.items()}

        def step(stacked=stacked):
            kernel, scale = stacked["kernel"], stacked["scale"]
            grads = [kernel[replica()], None, scale[replica()]]
            return pair.optimizer.apply(grads, variables)

        run(pair, step, way)
        pair.reference.apply(pair.joined({**parts, "bias": None}))
        pair.bound.add_update()
    np.testing.assert_equal([pair.copies(v) for v in alone], before)
    pair.check()


@every_place
def test_no_gradient_at_all_is_refused(weights, name, mode):
    pair = ReplicaPair(strategies.named(name), weights, mode)

    def step():
        return pair.optimizer.apply([None] * len(weights))

    for way in ("eager", "function"):
        helpers.refused(pair, lambda way=way: run(pair, step, way), "gradient")


@every_place
def test_subsets_in_any_order(rng, weights, name, mode):
    pair = ReplicaPair(strategies.named(name), weights, mode, clipnorm=0.5)
    for keys in (["scale", "bias"], ["kernel"], ["bias", "kernel", "scale"]):
        parts = pair.random_parts(rng)
        pair.train_on([{key: parts[key] for key in keys}])
        pair.check()
    assert pair.reference.iterations == 3


ROWS = [[3, 0, 3], [0, 0, 4], [1, 3, 2], [4, 4, 4]]  # of each replica


@every_place
@pytest.mark.parametrize(
    "options",
    [{"global_clipnorm": 0.5}, {"gradient_accumulation_steps": 2}],
)
def test_sparse_gradients_equal_the_dense_one(rng, options, name, mode):
    """Rows that repeat, within a replica and across replicas, are added up."""
    strategy = strategies.named(name)
    weights = helpers.random_weights(rng, {"table": (5, 2), "bias": (2,)})
    pair = ReplicaPair(strategy, weights, mode, **options)
    rows = tf.constant(ROWS)
    for _ in range(4):
        values = strategies.random_parts(rng, {"rows": np.ones((1, 2))}, 12)
        values = values["rows"].reshape(4, 3, 2).astype(np.float32)
        bias = pair.random_parts(rng)["bias"]
        dense = np.zeros((pair.count, 5, 2))
        for number in range(pair.count):
            np.add.at(dense[number], ROWS[number], values[number])

        given = tf.constant(values), rows, tf.constant(bias)

        def step(given=given):
            values, rows, bias = (part[replica()] for part in given)
            table = tf.IndexedSlices(values, rows, [5, 2])
            return pair.optimizer.apply([table, bias])

        run(pair, step)
        joined = pair.joined({"table": dense, "bias": bias})
        if pair.reference.apply(joined)[0]:
            pair.bound.add_update()
    pair.check()


@pytest.mark.parametrize("name", ["mirrored_2", "central_2"])
def test_embedding_that_replicas_read_in_part(rng, name):
    """Gradients as a tape makes them, of rows that one replica alone reads."""
    strategy = strategies.named(name)
    weights = helpers.random_weights(rng, {"table": (5, 2)})
    pair = ReplicaPair(strategy, weights, "auto")
    table = pair.variables["table"]

    def step():
        with tf.GradientTape() as tape:
            ids = tf.where(tf.equal(replica(), 0), [0, 1, 1], [3, 1, 0])
            loss = tf.reduce_sum(tf.gather(table, ids))
        (gradient,) = tape.gradient(loss, [table])
        assert isinstance(gradient, tf.IndexedSlices)
        return pair.optimizer.apply([gradient], [table])

    for way in ("eager", "function"):
        run(pair, step, way)
    momentum = 0.19 * np.array([[2.0], [3.0], [0.0], [1.0], [0.0]])
    found = pair.slot("table", "momentum")
    np.testing.assert_allclose(found, momentum * np.ones(2), rtol=1e-6)


@every_place
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_bad_gradient_of_one_replica(rng, weights, bad, name, mode):
    """Nobody changes anything; then training goes on."""
    options = {"skip_nonfinite": True, "use_ema": True}
    pair = ReplicaPair(strategies.named(name), weights, mode, **options)
    pair.train(rng, 2)
    for of in range(pair.count):
        before = [pair.copies(variable) for variable in pair.state()]
        parts = pair.random_parts(rng)
        parts["bias"][of, 2] = bad
        pair.train_on([parts])
        after = [pair.copies(variable) for variable in pair.state()]
        np.testing.assert_equal(after, before)
        pair.train(rng, 1)
    pair.check()
    assert pair.reference.iterations == 2 + pair.count


@every_place
def test_infinities_that_cancel(rng, weights, name, mode):
    """Their sum is NaN."""
    pair = ReplicaPair(
        strategies.named(name), weights, mode, skip_nonfinite=True
    )
    parts = pair.random_parts(rng)
    parts["bias"][0, 2], parts["bias"][1, 2] = np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        pair.train_on([parts])
    pair.check()
    assert pair.reference.iterations == 0


@pytest.mark.parametrize("name", ["mirrored_2", "mirrored_4", "central_2"])
@pytest.mark.parametrize("aggregation", ["sum", "mean"])
@pytest.mark.parametrize("way", ["eager", "function"])
@pytest.mark.parametrize("window", [None, 2])
def test_one_gradient_for_all_replicas(window, way, aggregation, name):
    """The very same tensor on each of them: it counts once for each."""
    pair = ReplicaPair(
        strategies.named(name),
        {"w": np.ones(2, np.float32)},
        False,
        aggregation=aggregation,
        gradient_accumulation_steps=window,
    )
    gradient = tf.constant([1.0, 3.0])
    for _ in range(window or 1):
        run(pair, lambda: pair.optimizer.apply([gradient]), way)
    share = pair.count if aggregation == "sum" else 1
    expected = np.array([0.1, 0.3]) * share
    np.testing.assert_allclose(pair.slot("w", "momentum"), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["mirrored_2", "central_2"])
def test_gradients_that_are_arguments(weights, name):
    """Of the function around `run`: they are on no replica's device yet."""
    pair = ReplicaPair(strategies.named(name), weights, "auto")

    @tf.function
    def step(gradients):
        pair.strategy.run(pair.optimizer.apply, (gradients,))

    step([tf.ones_like(w) for w in weights.values()])
    for key in weights:
        np.testing.assert_allclose(pair.slot(key, "momentum"), 0.2, rtol=1e-6)


@every_place
def test_gradients_that_nearly_cancel(name, mode):
    """Exact in float32, and far off had they been added in bfloat16."""
    weights = {"w": np.ones(3, helpers.NUMPY_DTYPE["bfloat16"])}
    pair = ReplicaPair(strategies.named(name), weights, mode)
    parts = np.zeros((pair.count, 3), weights["w"].dtype)
    parts[0], parts[-1] = 256.0, 1.0
    pair.train_on([{"w": parts}])
    np.testing.assert_allclose(pair.slot("w", "momentum"), 25.7, rtol=1e-6)


def test_variables_of_two_dtypes(mirrored, rng):
    """Collectives pack one dtype at a time."""
    weights = helpers.random_weights(rng, {"a": (3,), "c": (4,)})
    weights["b"] = helpers.random_weights(rng, {"b": (2,)}, "float64")["b"]
    weights["d"] = helpers.random_weights(rng, {"d": (2,)}, "bfloat16")["d"]
    for window in (None, 2):
        pair = ReplicaPair(
            mirrored, weights, "auto", gradient_accumulation_steps=window
        )
        pair.train(rng, window or 1)
        assert pair.optimizer.iterations.numpy() == 1
        pair.check_copies()
        pair.check_moments()
