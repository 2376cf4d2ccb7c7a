"""What each process of a MultiWorkerMirroredStrategy does in the tests.

    multi_worker_program.py FOLDER ACTION [ACTION ...]

The actions are done in order: "train", "save", "restore:FOLDER" and
"job:FOLDER" or "job:FOLDER:stop". What was found goes to FOLDER/worker-0.npz
and so on.
"""

import pathlib
import sys
import tempfile
import threading

import numpy as np
import tensorflow as tf

import cluster
import joined_batch
import tf_adamw
from joined_batch import Model, batch, loss, part_of, tensors
from multi_worker_runs import (
    CONTINUED,
    CONTINUED_TO,
    JOB,
    JOB_SAVES_EVERY,
    JOB_STOPS_AT,
    RUNS,
    STEPS,
)


class Training(joined_batch.Training):
    """The model and the optimizer of a run, under the strategy."""

    def __init__(self, strategy, run):
        self.strategy = strategy
        self.run = run
        with strategy.scope():
            super().__init__(
                Model(),
                tf_adamw.AdamW(**{"learning_rate": 0.01, **run.options}),
            )
            if run.build == "twice":
                first = {"bias": self.model.bias, "table": self.model.table}
                self.optimizer.build(first)
            if run.build in ("inside", "twice"):
                self.optimizer.build(self.model)
        if run.build == "outside":
            self.optimizer.build(self.model)
        self.step = tf.function(self._step)
        self.loop = tf.function(self._loop)

    def train(self, first, last):
        """Steps first to last - 1: what they return, (applied, norms)."""
        parts = self.parts(first, last)
        if self.run.device_loop:
            return self.loop(self.stacked(parts))
        results = [
            self.step(tensors(part), self.run.has_table(number))
            for number, part in zip(range(first, last), parts, strict=True)
        ]
        return [tf.stack(column) for column in zip(*results, strict=True)]

    def parts(self, first, last):
        """This worker's parts of the batches."""
        index = self.strategy.cluster_resolver.task_id
        count = self.strategy.num_replicas_in_sync
        return [
            part_of(batch(i, dict(self.run.bad).get(i)), index, count)
            for i in range(first, last)
        ]

    def stacked(self, parts):
        return tensors({k: np.stack([p[k] for p in parts]) for k in parts[0]})

    def _step(self, part, table=True):
        return self.strategy.run(self.apply, (part, table))

    def _loop(self, parts):
        steps = parts["rows"].shape[0]
        applied = tf.TensorArray(tf.bool, steps)
        norms = tf.TensorArray(tf.float32, steps)
        for i in tf.range(steps):
            result = self._step({k: stack[i] for k, stack in parts.items()})
            applied = applied.write(i, result[0])
            norms = norms.write(i, result[1])
        return applied.stack(), norms.stack()

    def apply(self, part, table=True):
        """One step of a replica."""
        if self.optimizer.aggregation != "none":
            return super().apply(part, table)
        given = list(self.model.trainable_variables)
        with tf.GradientTape() as tape:
            value = loss(self.model, part, table)
        pairs = [
            (gradient, variable)
            for gradient, variable in zip(
                tape.gradient(value, given), given, strict=True
            )
            if gradient is not None
        ]
        grads, variables = zip(*pairs, strict=True)
        context = tf.distribute.get_replica_context()
        grads = context.all_reduce("sum", grads)
        return joined_batch.returned(self.optimizer.apply(grads, variables))

    def found(self):
        """Also this worker's copies; the sums of a window differ in them."""
        found = super().found()
        variables = [*self.optimizer.variables, *self.model.variables]
        for i, variable in enumerate(variables):
            if "accumulator" not in variable.name:
                copies = self.strategy.experimental_local_results(variable)
                found["copy", f"{i} {variable.name}"] = copies[0].numpy()
        return found

    def collectives(self):
        """The numbers of all-reduces: run always, and in conditionals."""
        if self.run.device_loop:
            given = (self.stacked(self.parts(0, STEPS)),)
            function = self.loop.get_concrete_function(*given)
        else:
            given = (tensors(self.parts(0, 1)[0]), True)
            function = self.step.get_concrete_function(*given)
        graph = function.graph.as_graph_def()
        library = {f.signature.name: f.node_def for f in graph.library.function}
        counts = {"always": 0, "conditional": 0}
        _count_collectives(graph.node, library, "always", counts)
        return counts


def _count_collectives(nodes, library, place, counts):
    for node in nodes:
        counts[place] += node.op.startswith("CollectiveReduce")
        inner = "conditional" if node.op in ("If", "StatelessIf") else place
        for attribute in node.attr.values():
            for called in (attribute.func, *attribute.list.func):
                if called.name:
                    nested = library[called.name]
                    _count_collectives(nested, library, inner, counts)


class Actions:
    """The actions of this process, and what it found."""

    def __init__(self, strategy, folder):
        self.strategy = strategy
        self.folder = pathlib.Path(folder)
        self.index = strategy.cluster_resolver.task_id
        self.results = {}
        self._trained = {}

    def train(self):
        """All runs; then the averages of one of them."""
        for name, run in RUNS.items():
            training = self._trained[name] = Training(self.strategy, run)
            applied, norms = training.train(0, STEPS)
            self._keep(name, training)
            self.results[name, "steps", "applied"] = applied.numpy()
            self.results[name, "steps", "norms"] = norms.numpy()
            for place, count in training.collectives().items():
                self.results[name, "all-reduces", place] = np.array(count)
        training = self._trained["averages"]
        with training.optimizer.averaged_weights():
            self._keep("within", training)
        self._keep("after", training)
        training.optimizer.finalize_variable_values()
        self._keep("finalized", training)

    def save(self):
        """Saves runs in mid-window, then goes on with them."""
        for name in CONTINUED:
            training = self._trained[name]
            # All have to save; only the chief's checkpoint is used.
            folder = tempfile.mkdtemp() if self.index else str(self.folder)
            training.checkpoint.write(f"{folder}/{name}")
            training.train(STEPS, CONTINUED_TO)
            self._keep(f"continued {name}", training)

    def restore(self, folder):
        """Goes on with the runs as another cluster has saved them."""
        for name in CONTINUED:
            training = Training(self.strategy, RUNS[name])
            path = f"{folder}/{name}"
            training.checkpoint.read(path).assert_consumed()
            self._keep(f"restored {name}", training)
            training.train(STEPS, CONTINUED_TO)
            self._keep(f"continued {name}", training)

    def job(self, folder, stop=""):
        """Trains from the last checkpoint on; the last worker may stop."""
        trainings = {name: Training(self.strategy, RUNS[name]) for name in JOB}
        step = tf.Variable(0, dtype=tf.int64)
        checkpoint = tf.train.Checkpoint(
            step=step, **{n: t.checkpoint for n, t in trainings.items()}
        )
        last = tf.train.latest_checkpoint(folder)
        if last is not None:
            checkpoint.restore(last).assert_consumed()
        self.results["job", "began", "at"] = step.numpy()
        own_folder = tempfile.mkdtemp() if self.index else folder
        manager = tf.train.CheckpointManager(checkpoint, own_folder, 2)
        for number in range(int(step), STEPS):
            if stop and self.index and number == JOB_STOPS_AT:
                (self.folder / "stopped").touch()
                threading.Event().wait()
            for training in trainings.values():
                training.train(number, number + 1)
            step.assign_add(1)
            if (number + 1) % JOB_SAVES_EVERY == 0:
                manager.save(number + 1)
        for name, training in trainings.items():
            self._keep(f"job {name}", training)

    def _keep(self, name, training):
        for parts, array in training.found().items():
            self.results[(name, *parts)] = array


def main(folder, *actions):
    cluster.end_with_test()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    cluster.ready()
    doing = Actions(strategy, folder)
    for action in actions:
        name, *arguments = action.split(":")
        getattr(doing, name)(*arguments)
    path = doing.folder / f"worker-{doing.index}.npz"
    cluster.write_results(path, doing.results)
    # Nobody leaves before all are done.
    strategy.run(
        lambda: tf.distribute.get_replica_context().all_reduce(
            "sum", tf.ones([])
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
