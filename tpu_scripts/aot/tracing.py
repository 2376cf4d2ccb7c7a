"""What a TPUStrategy makes of a training step, on a machine without a TPU.

In a `tf.Graph` variables stay symbolic, so that no device has to exist: a real
`tf.distribute.TPUStrategy` then traces the program that each replica runs.
Nothing here runs it, or compiles it for a TPU.

    with tf.Graph().as_default():
        strategy = make_strategy(8)
        with strategy.scope():
            w = tf.Variable(tf.ones([3]))
        program = trace(strategy, step, tf.TensorSpec([3]))
    program.all_reduces(), program.host_operations()
    lowering.unknown_operations(program), lowering.hlo(program)
"""

import collections
import dataclasses
import math
import re

import numpy as np
import tensorflow as tf

CORES_PER_HOST = 4

_Device = collections.namedtuple("_Device", "name device_type")


class _Resolver(tf.distribute.cluster_resolver.TPUClusterResolver):
    """Describes hosts and TPU cores that do not exist."""

    def __init__(self, hosts, cores):
        super().__init__("local")
        self._hosts, self._cores = hosts, cores

    def get_tpu_system_metadata(self):
        kinds = ["CPU:0", *(f"TPU:{core}" for core in range(self._cores))]
        host = "/job:worker/replica:0/task"
        return tf.tpu.experimental.TPUSystemMetadata(
            num_cores=self._hosts * self._cores,
            num_hosts=self._hosts,
            num_of_cores_per_host=self._cores,
            topology=None,
            devices=[
                _Device(f"{host}:{task}/device:{kind}", kind[:3])
                for task in range(self._hosts)
                for kind in kinds
            ],
        )


def make_strategy(replicas: int) -> tf.distribute.TPUStrategy:
    """A TPUStrategy of that many replicas; to be used within a `tf.Graph`."""
    cores = math.gcd(replicas, CORES_PER_HOST)
    hosts = replicas // cores
    coordinates = [
        [[core, host, 0, 0] for core in range(cores)] for host in range(hosts)
    ]
    topology = tf.tpu.experimental.Topology(
        mesh_shape=[cores, hosts, 1, 1],
        device_coordinates=np.array(coordinates, np.int32),
    )
    assignment = tf.tpu.experimental.DeviceAssignment.build(
        topology, num_replicas=replicas
    )
    return tf.distribute.TPUStrategy(_Resolver(hosts, cores), assignment)


def trace(strategy, step, *specs):
    """Traces `strategy.run(step, args)`.

    Args:
      strategy: from `make_strategy`.
      step: what each replica runs.
      *specs: a `tf.TensorSpec` for each argument of `step`.

    Returns:
      The `Program`.
    """

    @tf.function(autograph=False)
    def run(*args):
        return strategy.run(step, args)

    return Program(run.get_concrete_function(*specs))


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of a graph or of a function that it calls.

    Attributes:
      node: its NodeDef.
      path: the functions that it is in, from the outside in, as pairs of the
        operation that calls one and the attribute that names it.
    """

    node: tf.compat.v1.NodeDef
    path: tuple[tuple[str, str], ...] = ()

    @property
    def type(self):
        return self.node.op

    @property
    def sources(self):
        """Names of the operations that it reads."""
        return [source(n) for n in self.node.input if not n.startswith("^")]

    @property
    def dtype(self):
        """The dtype of what it works on."""
        attributes = self.node.attr
        return tf.as_dtype(attributes["T"].type or attributes["dtype"].type)

    @property
    def shape(self):
        """The static shape of its first output."""
        shapes = self.node.attr["_output_shapes"].list.shape
        return tuple(tf.TensorShape(shapes[0]))

    @property
    def branches(self):
        """Those of `path` that are branches of conditionals."""
        return tuple(pair for pair in self.path if "branch" in pair[1])

    def leaves_core(self):
        """Whether it reaches the host, or runs where its device says."""
        return (
            bool(_HOST.search(self.type))
            or any("outside_compilation" in name for name in self.node.attr)
            or self.node.device not in ("", "/device:TPU_REPLICATED_CORE:0")
        )


def source(name):
    """The operation in an input's name: "node", "node:1" or "^node"."""
    return name.removeprefix("^").split(":")[0]


# Operations of a TPU's program that reach the host, or that TensorFlow runs
# there.
_HOST = re.compile(
    "Infeed|Outfeed|PyFunc|Print|Assert|Summary|HostCompute|StringFormat"
    "|^_?(Host|Xla)?(Send|Recv)"
)
# What `TPUStrategy.run` puts around the replicas' program.
_BEFORE = {"Const", "Max", "Pack", "Placeholder"}
_AFTER = {"Identity", "NoOp", "TPUCompilationResult", "TPUReplicatedOutput"}


class Program:
    """The program of one replica, and what is around it.

    Attributes:
      graph: GraphDef of the function that calls `strategy.run`.
      inside: the operations of the graph that are the replica's program, by
        name.
      outside: the others.
      operations: those of the program, in functions that it calls, too.
    """

    def __init__(self, function):
        self.graph = function.graph.as_graph_def(add_shapes=True)
        self.inside, self.outside = {}, {}
        for node in self.graph.node:
            # The metadata only marks where the program begins.
            marked = "_tpu_replicate" in node.attr
            inside = marked and node.op != "TPUReplicateMetadata"
            (self.inside if inside else self.outside)[node.name] = Operation(
                node
            )
        self._bodies = {
            f.signature.name: f.node_def for f in self.graph.library.function
        }
        self.operations = [
            operation
            for outer in self.inside.values()
            for operation in self._walk(outer)
        ]
        captured = function.captured_inputs
        placeholders = function.inputs[len(function.inputs) - len(captured) :]
        self._captured = {
            placeholder.op.name: tensor.op
            for placeholder, tensor in zip(placeholders, captured, strict=True)
        }

    def _walk(self, operation):
        yield operation
        node = operation.node
        for name, value in sorted(node.attr.items()):
            for function in (value.func, *value.list.func):
                path = (*operation.path, (node.name, name))
                for inner in self._bodies.get(function.name, ()):
                    yield from self._walk(Operation(inner, path))

    def all_reduces(self):
        """The all-reduces, each an `Operation`."""
        return [o for o in self.operations if o.type == "CrossReplicaSum"]

    def inputs(self):
        """The outside operations that the program reads, by name."""
        read = {name for o in self.inside.values() for name in o.sources}
        return {n: o for n, o in self.outside.items() if n in read}

    def arguments(self):
        """A `tf.TensorSpec` for each input that is no variable, by name."""
        return {
            name: tf.TensorSpec(operation.shape, operation.dtype)
            for name, operation in self.inputs().items()
            if operation.dtype != tf.resource
        }

    def results(self):
        """The names of the operations that are its results, in order."""
        return [
            name
            for name, operation in self.inside.items()
            if "_tpu_output_identity" in operation.node.attr
        ]

    def state(self):
        """The program's variables.

        Returns:
          For each input that is a variable, by name, the operations that make
          its handles: one per replica, or a single one that they would share.
        """
        return {
            name: [self._captured[n] for n in operation.sources or [name]]
            for name, operation in self.inputs().items()
            if operation.dtype == tf.resource
        }

    def host_operations(self):
        """What needs the host, other than to hand over arguments and results.

        Returns:
          Types and names of the operations of the program that leave the core,
          of those outside of it that depend on it, and of those that it reads
          and that are neither arguments nor replicated variables.
        """
        found = [o for o in self.operations if o.leaves_core()]
        for operation in self.inputs().values():
            if operation.type == "TPUReplicatedInput":
                before = [self.outside[name] for name in operation.sources]
                found += [o for o in before if o.type not in _BEFORE]
            else:
                found.append(operation)
        found += [o for o in self._dependants() if o.type not in _AFTER]
        return sorted({f"{o.type} {o.node.name}" for o in found})

    def _dependants(self):
        """The outside operations that depend on the program."""
        reached, size = set(self.inside), 0
        while size != len(reached):
            size = len(reached)
            for name, operation in self.outside.items():
                if any(source(n) in reached for n in operation.node.input):
                    reached.add(name)
        return [o for name, o in self.outside.items() if name in reached]
