"""What XLA makes of the program of a TPU's replica, on any machine."""

import functools

import tensorflow as tf

# There is no public way to ask for which devices an operation has a kernel.
from tensorflow.python.framework import kernels

import tpu_graph

# Calls are taken apart before kernels are looked for; the all-reduce has one
# for TPUs alone.
_KNOWN = {"PartitionedCall", "StatefulPartitionedCall", "CrossReplicaSum"}


@functools.cache
def _device():
    """The kind of device that TensorFlow's XLA has operations for.

    The tensorflow-tpu wheel knows what TPUs can do. In any other TensorFlow,
    what the host can do has to stand for it.
    """
    # To ask also makes XLA register its kernels, which it does when needed.
    exponential = tf.function(lambda x: tf.exp(x), jit_compile=True)
    lower = exponential.experimental_get_compiler_ir(tf.TensorSpec([]))
    try:
        lower(stage="hlo", platform_name="TPU")
    except ValueError:
        return "XLA_CPU_JIT"
    return "XLA_TPU_JIT"


def unknown_operations(program):
    """Types and names of operations of a `Program` that XLA has no kernel for.

    To be called outside of the program's `tf.Graph`.
    """
    device = _device()
    return sorted(
        {
            f"{o.type} {o.node.name}"
            for o in program.operations
            if o.type not in _KNOWN and not _has_kernel(o.node, device)
        }
    )


def _has_kernel(node, device):
    return any(
        kernel.device_type == device
        and all(
            _types(node.attr[constraint.name])
            <= {*constraint.allowed_values.list.type}
            for constraint in kernel.constraint
        )
        for kernel in kernels.get_registered_kernels_for_op(node.op).kernel
    )


def _types(value):
    """The dtypes in an attribute, which is one or a list of them."""
    return {value.type} if value.type else {*value.list.type}


def hlo(program):
    """Lowers a `tpu_program.Program` to the text of an HLO module.

    To be called outside of the program's `tf.Graph`.

    Raises:
      ValueError: if XLA cannot compile an operation, or needs to know when it
        compiles what is known at run time only.
    """
    variables = {
        name: tf.Variable(
            tf.zeros(handles[0].get_attr("shape"), handles[0].get_attr("dtype"))
        )
        for name, handles in program.state().items()
    }
    arguments = {
        name: tf.TensorSpec(operation.shape, operation.dtype)
        for name, operation in program.inputs().items()
        if name not in variables
    }
    graph, results = tpu_graph.standalone(program, "_in_xla", _for_any_device)

    @tf.function(jit_compile=True, autograph=False)
    def replica(*given):
        inputs = {n: tf.identity(v.handle) for n, v in variables.items()}
        inputs.update(zip(arguments, given, strict=True))
        return tpu_graph.call(graph, results, inputs)

    lowered = replica.experimental_get_compiler_ir(*arguments.values())
    return lowered(stage="hlo")


def _for_any_device(node):
    if node.op == "CrossReplicaSum":
        # Only TPUs have a kernel for the one, all devices for the other.
        node.op = "XlaAllReduce"
        node.attr["reduce_op"].s = b"Add"
        node.attr["mode"].s = b"CrossReplica"
