"""Runs the programs that a TPUStrategy has for TPUs on logical CPUs.

Each replica's program is the one that was traced, its all-reduces exchanged
for a collective of the CPUs. Numbers are those of CPUs, but everything else is
what TPUs would do.
"""

import itertools

import tensorflow as tf

from tpu_scripts.aot import graph as tpu_graph

# Far from the keys of other strategies' collectives in the same process.
_group_keys = itertools.count(10**6)


class Replicas:
    """The replicas of a `tracing.Program`, and their state.

    Attributes:
      state: for each replica its variables, by name.
    """

    def __init__(self, program, start, count):
        """Makes the replicas, outside of the program's `tf.Graph`.

        Args:
          program: the program.
          start: the values of its variables by name, the same everywhere.
          count: the number of replicas that it was traced for.
        """
        devices = tf.config.list_logical_devices("CPU")[:count]
        if len(devices) < count:
            raise ValueError(f"{count} replicas on {len(devices)} CPUs")
        group = next(_group_keys)
        self.state, self._replicas = [], []
        for number, device in enumerate(devices):
            with tf.device(device.name):
                variables = {n: tf.Variable(v) for n, v in start.items()}
            self.state.append(variables)
            on_device = _OnDevice(
                device.name, group_size=count, group_key=group
            )
            graph, results = tpu_graph.standalone(
                program, f"_{group}_{number}", on_device
            )
            self._replicas.append((on_device, graph, results))
        self._variables = {
            name: handles[0].name for name, handles in program.state().items()
        }
        self._arguments = [*program.arguments()]
        self._function = tf.function(self._run, autograph=False)

    def run(self, arguments):
        """Runs one step on all replicas.

        Args:
          arguments: for each replica a list of its arguments.

        Returns:
          For each replica a list of its results.
        """
        options = tf.config.optimizer
        before = options.get_experimental_options()
        # It turns additions about, not in the same way on all devices.
        options.set_experimental_options({"disable_meta_optimizer": True})
        try:
            return self._function(
                tf.nest.map_structure(tf.convert_to_tensor, arguments)
            )
        finally:
            options.set_experimental_options(before)

    def _run(self, arguments):
        results = []
        for number, (on_device, graph, names) in enumerate(self._replicas):
            # TPUStrategy puts an argument of its own before the others.
            given = [tf.constant(number), *arguments[number]]
            inputs = dict(zip(self._arguments, given, strict=True))
            with tf.device(on_device.name):
                for name, variable in self._variables.items():
                    handle = self.state[number][variable].handle
                    inputs[name] = tf.identity(handle)
                results.append(tpu_graph.call(graph, names, inputs))
        return results


class _OnDevice:
    """Changes the operations of one replica to those of its device."""

    def __init__(self, name, **group):
        self.name = name
        self._group = group
        self._reductions = []  # a function is gone when nobody holds it

    def __call__(self, node):
        node.device = self.name
        if node.op != "CrossReplicaSum":
            return
        # A call: its output's name is that of the original operation's.
        dtype = node.attr["T"].type
        value, _, *waits = node.input
        node.input[:] = [value, *waits]
        node.op = "StatefulPartitionedCall"
        node.attr["f"].func.name = self._reduction(tf.as_dtype(dtype)).name
        for name in ("Tin", "Tout"):
            node.attr[name].list.type.append(dtype)
        del node.attr["T"]

    def _reduction(self, dtype):
        @tf.function(autograph=False)
        def reduction(value):
            return tf.raw_ops.CollectiveReduce(
                input=value,
                instance_key=len(self._reductions) + 1,
                merge_op="Add",
                final_op="Id",
                subdiv_offsets=[0],
                timeout_seconds=30.0,  # of a replica that does not take part
                **self._group,
            )

        with tf.device(self.name):
            made = reduction.get_concrete_function(tf.TensorSpec(None, dtype))
        self._reductions.append(made)
        return made
