"""What each process of a cluster does in test_crossing.py.

    crossing_program.py FOLDER PLACE [PLACE ...]

Saves, says so by the file FOLDER/PLACE.saved, and goes on with all places'
checkpoints as soon as FOLDER/go is there. What it found goes to
FOLDER/PLACE.npz.
"""

import sys

import tensorflow as tf

import cluster
import crossing


def main(folder, *places):
    cluster.end_with_test()
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if "ps" in resolver.cluster_spec().jobs:
        parameter_server(resolver, folder, places)
    else:
        multi_worker(resolver, folder, places)


def multi_worker(resolver, folder, places):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    cluster.ready()
    cross(
        "multi_worker_2", folder, places, strategy, None, not resolver.task_id
    )
    # Nobody leaves before all are done.
    strategy.run(
        lambda: tf.distribute.get_replica_context().all_reduce(
            "sum", tf.ones([])
        )
    )


def parameter_server(resolver, folder, places):
    if resolver.task_type != "chief":
        # Not at the top: MultiWorkerMirroredStrategy has to come before any
        # operation.
        from parameter_server_program import serve

        serve(resolver)
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    cluster.ready()

    def call(function, given):
        coordinator.schedule(function, (given,))
        coordinator.join()

    cross("parameter_server", folder, places, strategy, call, True)


def cross(place, folder, places, strategy, call, chief):
    trainings, states = crossing.save(folder, place, strategy, call, chief)
    if chief:
        open(f"{folder}/{place}.saved", "w").close()
    crossing.wait_for(f"{folder}/go")
    states |= crossing.go_on(folder, places, trainings, strategy, call)
    if chief:
        cluster.write_results(
            f"{folder}/{place}.npz",
            {
                (" from ".join(found), name): value
                for found, state in states.items()
                for name, value in state.items()
            },
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
