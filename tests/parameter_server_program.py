"""What each process of a ParameterServerStrategy does in the tests.

    parameter_server_program.py FOLDER ACTION [ACTION ...]

Parameter servers and workers serve. The chief does the actions in order:
"train", "save", "restore:PATH", "fail:PATH", "concurrently" and "refuse". What
it found goes to FOLDER/chief-0.npz.
"""

import pathlib
import sys
from unittest import mock

import numpy as np
import tensorflow as tf

import cluster
import joined_batch
import tf_adamw
from joined_batch import Model, batch, loss, tensors
from parameter_server_runs import (
    AVERAGED,
    CONCURRENT,
    CONCURRENT_STEPS,
    CONTINUED,
    CONTINUED_TO,
    RUNS,
    STEPS,
    Run,
)


class Partitioner:
    """One strategy for sharded and for whole variables."""

    shards = 1

    def __call__(self, shape, dtype, **_):
        partitioners = tf.distribute.experimental.partitioners
        return partitioners.FixedShardsPartitioner(self.shards)(shape, dtype)


PARTITIONER = Partitioner()


class Training(joined_batch.Training):
    """The model and the optimizer of a run, on the parameter servers."""

    def __init__(self, coordinator, run):
        self.coordinator = coordinator
        self.strategy = coordinator.strategy
        self.run = run
        PARTITIONER.shards = run.shards
        with self.strategy.scope():
            super().__init__(
                Model(),
                tf_adamw.AdamW(**{"learning_rate": 0.01, **run.options}),
            )
            if run.build == "inside":
                self._build()
        if run.build == "outside":
            self._build()
        self._step = tf.function(self._scheduled)

    def _build(self):
        model = self.model
        self.optimizer.build(
            {
                "model": model,
                "dict": model.by_key(),
                "list": list(model.by_key().values()),
                "shards": list(model.trainable_variables),
            }[self.run.given]
        )

    def train(self, first, last):
        """Steps first to last - 1, one after the other; what they return."""
        results = []
        for number in range(first, last):
            part = tensors(batch(number, dict(self.run.bad).get(number)))
            result = self.coordinator.schedule(self._step, (part,))
            self.coordinator.join()
            results.append(result.fetch())
        return [np.stack(column) for column in zip(*results, strict=True)]

    def train_concurrently(self, steps):
        """Steps that the workers do at the same time."""
        for number in range(steps):
            self.coordinator.schedule(self._step, (tensors(batch(number)),))
        self.coordinator.join()

    def _scheduled(self, part):
        if self.run.replica:
            return self.strategy.run(self.apply, (part,))
        return self.apply(part)

    def apply(self, part, table=True):
        """One step, with the variables as `given` says."""
        if self.run.given in ("model", "shards"):
            return super().apply(part, table)
        variables = list(self.model.by_key().values())
        # Of a sharded variable as a whole a tape has no gradient.
        sources = [getattr(v, "variables", v) for v in variables]
        with tf.GradientTape() as tape:
            scaled = self.optimizer.scale_loss(loss(self.model, part, table))
        grads = tape.gradient(scaled, sources)
        if self.run.given == "list":
            grads = [joined(parts) for parts in grads]
        return joined_batch.returned(self.optimizer.apply(grads, variables))

    def found(self):
        """Also devices, and how often an update uses variables where."""
        found = super().found()
        for key, variable in self.model.by_key().items():
            found["devices", key] = devices(variable)
            for name, slot in self.optimizer.slots[key].items():
                found[f"{name} devices", key] = devices(slot)
        for place, count in self._uses().items():
            found["uses", place] = np.array(count)
        return found

    def _uses(self):
        variables = list(self.model.by_key().values())

        @tf.function
        def update():
            zeros = [
                [tf.zeros(part.shape) for part in getattr(v, "variables", [v])]
                for v in variables
            ]
            grads = [parts[0] if len(parts) == 1 else parts for parts in zeros]
            return self.optimizer.apply(grads, variables)

        nodes = update.get_concrete_function().graph.as_graph_def().node
        read = {n.name for n in nodes if n.op == "ReadVariableOp"}
        counts = {"worker": 0, "servers": 0}
        for node in nodes:
            used = {name.split(":")[0] for name in node.input} & read
            place = "servers" if "/job:ps" in node.device else "worker"
            counts[place] += len(used)
        return counts


def joined(parts):
    """The gradient of a variable, from those of its shards."""
    if parts[0] is None:
        return None
    return tf.concat([tf.convert_to_tensor(part) for part in parts], 0)


def devices(variable):
    """The devices of a variable's shards."""
    shards = getattr(variable, "variables", [variable])
    return np.array([shard.device for shard in shards])


class Actions:
    """The chief's actions, and what it found."""

    def __init__(self, coordinator, folder):
        self.coordinator = coordinator
        self.folder = pathlib.Path(folder)
        self.results = {}
        self._trained = {}

    def train(self):
        """All runs; then the averages of some."""
        for name, run in RUNS.items():
            training = self._trained[name] = self._training(run)
            applied, norms = training.train(0, STEPS)
            self._keep(name, training)
            self.results[name, "steps", "applied"] = applied
            self.results[name, "steps", "norms"] = norms
        for name in AVERAGED:
            training = self._trained[name]
            with training.optimizer.averaged_weights():
                self._keep(f"within {name}", training)
            self._keep(f"after {name}", training)

    def save(self):
        """Saves runs in mid-window, then goes on with them."""
        for name in CONTINUED:
            training = self._trained[name]
            training.checkpoint.write(str(self.folder / name))
            training.train(STEPS, CONTINUED_TO)
            self._keep(f"continued {name}", training)

    def restore(self, path):
        """Goes on with these runs as another has saved them."""
        for name in CONTINUED:
            training = self._training(RUNS[name])
            training.checkpoint.read(path).assert_consumed()
            self._keep(f"restored {name}", training)
            training.train(STEPS, CONTINUED_TO)
            self._keep(f"then continued {name}", training)

    def fail(self, path):
        """Fails to restore, when TensorFlow has read."""
        read = tf.train.Checkpoint.read
        for name in CONTINUED:
            training = self._trained[name]
            self._keep(f"before {name}", training)

            def failing(*args, name=name, training=training):
                read(*args)
                self._keep(f"half way {name}", training)
                raise KeyboardInterrupt

            with mock.patch.object(tf.train.Checkpoint, "read", failing):
                try:
                    tf_adamw.checkpoint.restore(training.checkpoint, path)
                except KeyboardInterrupt:
                    self._keep(f"after failing {name}", training)

    def concurrently(self):
        """Many steps, not one after the other."""
        for name in CONCURRENT:
            training = self._training(RUNS[name])
            training.train_concurrently(CONCURRENT_STEPS)
            self._keep(f"concurrent {name}", training)

    def refuse(self):
        """XLA cannot compile for another machine."""
        training = self._training(Run({"jit_compile": True}))
        try:
            training.train(0, 1)
        except ValueError as error:
            self.results["refused", "message", "text"] = np.array(str(error))

    def _training(self, run):
        return Training(self.coordinator, run)

    def _keep(self, name, training):
        for parts, array in training.found().items():
            self.results[(name, *parts)] = array


def serve(resolver):
    """Serves until the test ends this process."""
    server = tf.distribute.Server(
        resolver.cluster_spec(),
        job_name=resolver.task_type,
        task_index=resolver.task_id,
        protocol="grpc",
    )
    cluster.ready()
    server.join()


def main(folder, *actions):
    cluster.end_with_test()
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type != "chief":
        serve(resolver)
    # The servers' logs then say where each operation is.
    tf.debugging.set_log_device_placement(True)
    strategy = tf.distribute.ParameterServerStrategy(resolver, PARTITIONER)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    cluster.ready()
    doing = Actions(coordinator, folder)
    for action in actions:
        name, *arguments = action.split(":")
        getattr(doing, name)(*arguments)
    cluster.write_results(doing.folder / "chief-0.npz", doing.results)


if __name__ == "__main__":
    main(*sys.argv[1:])
