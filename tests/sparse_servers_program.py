"""Lazy updates of a table in shards, on parameter servers.

    sparse_servers_program.py FOLDER

The chief writes to FOLDER/chief-0.npz, for each case, by how much an error is
above its bound, and how many rows have changed that no gradient had.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf

import cluster
import helpers
import tf_adamw
from parameter_server_program import PARTITIONER, serve
from rowwise import RowwiseAdamW, random_slices

ROWS = 7  # shards of 4 and 3
CASES = {
    "plain": {},
    "ema": {"use_ema": True, "ema_momentum": 0.75},
    "clip": {"global_clipnorm": 0.5, "skip_nonfinite": True},
    "whole": {"clipnorm": 0.5},
}
# Of one shard, of both, of none.
INDICES = [[1, 1], [6], [0, 5, 0, 6], [], [3, 4], [2, 2, 2, 6]]


def shards(variable):
    """The shards of a variable, or itself."""
    return list(getattr(variable, "variables", [variable]))


def train(coordinator, name, options):
    """Returns the error above its bound, and the rows wrongly changed."""
    rng = np.random.default_rng(1)
    PARTITIONER.shards = 1 if name == "whole" else 2
    like = helpers.random_weights(rng, {"table": (ROWS, 3)})["table"]
    with coordinator.strategy.scope():
        table = tf.Variable(like, name="table")
        optimizer = tf_adamw.AdamW(sparse_updates="lazy", **options)
        optimizer.build({"table": table})
    reference = RowwiseAdamW({"table": like}, **options)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 3]),
            tf.TensorSpec([None], tf.int32),
        ]
    )
    def step(values, indices):
        rows = tf.IndexedSlices(values, indices, [ROWS, 3])
        return optimizer.apply([rows], [table]).applied

    changed = 0
    for indices in INDICES:
        gradient = random_slices(rng, like, indices)
        before = value(table)
        given = tuple(map(tf.constant, gradient))
        result = coordinator.schedule(step, given)
        coordinator.join()
        applied, _ = reference.apply({"table": gradient})
        changed += bool(result.fetch()) != applied
        touched = [*reference.last_magnitudes] if applied else []
        for row in range(ROWS):
            same = value(table)[row].tobytes() == before[row].tobytes()
            changed += not same and f"table/{row}" not in touched
    expected = [reference.weights[f"table/{row}"] for row in range(ROWS)]
    error = helpers.relative_error(value(table), np.stack(expected))
    return error - 2e-6, changed


def value(table):
    return np.concatenate([shard.numpy() for shard in shards(table)])


def main(folder):
    cluster.end_with_test()
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type != "chief":
        serve(resolver)
    strategy = tf.distribute.ParameterServerStrategy(resolver, PARTITIONER)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    cluster.ready()
    results = {}
    for name, options in CASES.items():
        bound, changed = train(coordinator, name, options)
        results[name, "bound", "table"] = np.array(bound)
        results[name, "changed", "table"] = np.array(changed)
    cluster.write_results(pathlib.Path(folder) / "chief-0.npz", results)


if __name__ == "__main__":
    main(*sys.argv[1:])
