"""A worker of a MultiWorkerMirroredStrategy that exports what it trained.

    python saved_model_worker_program.py FOLDER

Each writes the SavedModel FOLDER/<its index> and a checkpoint,
FOLDER/checkpoint-<its index>.
"""

import sys

import tensorflow as tf

import cluster

STEPS = 3


def main(folder):
    """Trains a few steps and exports."""
    cluster.end_with_test()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    cluster.ready()
    # Not earlier: it runs operations when it is imported.
    import saved_model_module as module

    index = strategy.cluster_resolver.task_id
    with strategy.scope():
        trainer = module.Trainer("rich")
    step = tf.function(module.replica_step(strategy, trainer))
    size = module.BATCH // strategy.num_replicas_in_sync
    own = slice(index * size, (index + 1) * size)
    for number in range(STEPS):
        whole = module.tensors(number)
        step(whole["x"][own], whole["y"][own])
    trainer.export(f"{folder}/{index}")
    module.checkpoint_of(trainer).write(f"{folder}/checkpoint-{index}")


if __name__ == "__main__":
    main(*sys.argv[1:])
