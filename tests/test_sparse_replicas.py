"""`sparse_updates="lazy"` on several replicas, each with rows of its own."""

import numpy as np
import pytest
import tensorflow as tf

import cluster
import helpers
import strategies
import tf_adamw
from rowwise import RowPair, Slices, random_slices

pytestmark = pytest.mark.core

SHAPES = {"table": (9, 3), "bias": (3,)}
ROWS = [[3, 0, 3], [0, 8, 4], [1, 3, 2], [4, 4, 4]]  # of each replica
QUICK = [("mirrored_2", False), ("central_2", False)]
every_place = pytest.mark.parametrize(
    ("name", "mode"),
    [
        place
        if place in QUICK
        else pytest.param(*place, marks=pytest.mark.slow)
        for place in strategies.SEVERAL_REPLICAS
    ],
)


class ReplicaRowPair(RowPair):
    """A lazy optimizer on replicas, and the reference of the whole batch."""

    def __init__(self, strategy, weights, mode, aggregation="sum", **options):
        with strategy.scope():
            super().__init__(weights, mode, aggregation=aggregation, **options)
        self.strategy = strategy
        self.count = strategy.num_replicas_in_sync
        self.aggregation = aggregation

    def parts(self, rng, rows, scale=1.0):
        """For each replica Slices of the table, and a bias."""
        weights = helpers.values(self.tables)
        # One sign for all replicas: a batch's parts do not cancel.
        sign = rng.choice([-1.0, 1.0], SHAPES["table"])
        parts = []
        for indices in rows[: self.count]:
            found = random_slices(rng, weights["table"], indices, scale=scale)
            values = np.abs(found.values) * sign[found.indices]
            found = found._replace(values=np.float32(values))
            bias = np.float32(scale * (1 + rng.integers(0, 8, 3)))
            parts.append((found, bias))
        if self.aggregation == "none":
            parts = parts[:1] * self.count
        return parts

    def joined(self, parts):
        """The gradients of the whole batch."""
        if self.aggregation == "none":
            return dict(zip(self.tables, parts[0], strict=True))
        share = self.count if self.aggregation == "mean" else 1
        values = [found.values / share for found, _ in parts]
        indices = [found.indices for found, _ in parts]
        table = Slices(np.concatenate(values), np.concatenate(indices))
        bias = sum(np.float64(bias) for _, bias in parts) / share
        return {"table": table, "bias": bias}

    def runner(self, parts):
        """A function without arguments that does one step."""
        variables = list(self.tables.values())

        def replica():
            context = tf.distribute.get_replica_context()
            number = tf.convert_to_tensor(context.replica_id_in_sync_group)
            table, bias = parts[int(tf.get_static_value(number))]
            given = [table.tensor(), tf.constant(bias)]
            return self.optimizer.apply(given, variables)

        return lambda: self.strategy.run(replica)

    def step_on(self, parts, eager=False):
        """One step, compared as `step` does."""
        run = self.runner(parts)
        run = run if eager else tf.function(run, autograph=False)

        def of_first(*_):
            local = self.strategy.experimental_local_results
            results = run()
            applied = [bool(one) for one in local(results.applied)]
            assert len(set(applied)) == 1
            norm = results.grad_norm
            norm = None if norm is None else local(norm)[0]
            return tf_adamw.ApplyResult(local(results.applied)[0], norm)

        result = self.step(self.joined(parts), of_first)
        self.check_copies()
        return result

    def check_copies(self):
        """Asserts that all replicas have the same bits."""
        local = self.strategy.experimental_local_results
        for variable in [*self.optimizer.variables, *self.tables.values()]:
            copies = {copy.numpy().tobytes() for copy in local(variable)}
            assert len(copies) == 1, variable.name


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, SHAPES)


@every_place
@pytest.mark.parametrize("aggregation", ["sum", "mean", "none"])
def test_rows_of_all_replicas(rng, weights, aggregation, name, mode):
    strategy = strategies.named(name)
    options = {"global_clipnorm": 2.0, "use_ema": True}
    pair = ReplicaRowPair(strategy, weights, mode, aggregation, **options)
    for number in range(4):
        pair.step_on(pair.parts(rng, ROWS), eager=number % 2)
    pair.check()


NUMBERS = [
    [[1, 2, 3, 1, 2], [5], [], [7, 7]],
    [[], [4, 4, 0], [2, 2, 2], [8]],
    [[], [], [], []],
    [[6, 6], [6, 6, 6], [6], []],
]


@every_place
@pytest.mark.parametrize("eager", [True, False])
def test_different_numbers_of_rows(rng, weights, eager, name, mode):
    """Also none on one replica, or on all of them."""
    pair = ReplicaRowPair(strategies.named(name), weights, mode, amsgrad=True)
    for rows in NUMBERS:
        pair.step_on(pair.parts(rng, rows), eager)
    pair.check()


@pytest.mark.parametrize("name", ["mirrored_2", "central_2"])
def test_traces_are_few(rng, weights, functions, name):
    """No more than pairs of powers of two: of 1, 2, 4 and 8."""
    pair = ReplicaRowPair(strategies.named(name), weights, False)

    def step(first, second):
        rows = [rng.integers(0, 9, count) for count in (first, second)]
        pair.step_on(pair.parts(rng, rows), eager=True)

    def traces():
        return sum(f.experimental_get_tracing_count() for f in functions)

    step(1, 1)
    first = traces()
    for count in ((1, 2), (2, 3), (5, 8), (7, 6), (8, 5), (3, 4), (6, 7)):
        step(*count)
    few = traces()
    assert few <= 5 * first  # (1, 1), (1, 2), (2, 4), (8, 8), (4, 4)


@every_place
@pytest.mark.parametrize("option", ["skip_nonfinite", "dynamic_loss_scale"])
def test_bad_row_of_one_replica(rng, weights, option, name, mode):
    options = helpers.OPTIONS[option]
    pair = ReplicaRowPair(strategies.named(name), weights, mode, **options)
    for number in range(4):
        parts = pair.parts(rng, ROWS, pair.reference.loss_scale)
        if number in (1, 2):
            parts[number - 1][0].values[1, 2] = np.inf
        pair.step_on(parts)
    assert pair.reference.iterations == 2
    pair.check()


@pytest.mark.parametrize("mode", ["auto", False])
@pytest.mark.parametrize("aggregation", ["sum", "mean", "none"])
def test_one_copy_outside_of_run(rng, weights, aggregation, mode):
    """CentralStorageStrategy, in cross-replica context."""
    strategy = strategies.named("central_2")
    pair = ReplicaRowPair(strategy, weights, mode, aggregation)
    parts = pair.parts(rng, [[3, 0, 3], [8]])

    def of(place, make):
        return strategy.experimental_distribute_values_from_function(
            lambda context: make(parts[context.replica_id_in_sync_group][place])
        )

    def apply(*_):
        with strategy.scope():
            return pair.optimizer.apply(
                [of(0, Slices.tensor), of(1, tf.constant)]
            )

    pair.step(pair.joined(parts), apply)
    pair.check()


@pytest.mark.parametrize("name", ["mirrored_2", "central_2"])
@pytest.mark.parametrize("bad", [9, -1])
def test_rows_out_of_range_are_refused(rng, weights, bad, name):
    pair = ReplicaRowPair(strategies.named(name), weights, False)
    pair.variables = pair.tables
    parts = pair.parts(rng, [[1], [2]])
    wrong = Slices(parts[1][0].values, np.array([bad]))
    parts[1] = (wrong, parts[1][1])
    helpers.refused(pair, pair.runner(parts), "'table'", str(bad))


@pytest.mark.slow
def test_tables_in_shards_on_parameter_servers(tmp_path):
    """Each server updates its rows; the others are left alone."""
    cluster.run(
        {"ps": 2, "worker": 1, "chief": 1},
        tmp_path,
        ["sparse_servers_program.py", str(tmp_path)],
        until=["chief-0"],
    )
    results = cluster.read_results(tmp_path / "chief-0.npz")
    assert results.keys() == {"plain", "ema", "clip", "whole"}
    for name, found in results.items():
        for what in ("bound", "changed"):
            assert found[what, "table"] <= 0, name
