"""What XLA makes of the program of a TPU's replica, on any machine."""

import functools
from typing import Any

import tensorflow as tf

from tpu_scripts.aot import graph as tpu_graph
from tpu_scripts.aot import private
from tpu_scripts.aot.tracing import Program

# Calls are taken apart before kernels are looked for; the all-reduce has one
# for TPUs alone.
_KNOWN = {"PartitionedCall", "StatefulPartitionedCall", "CrossReplicaSum"}


@functools.cache
def device():
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


def unknown_operations(program: Program) -> list[str]:
    """Types and names of operations of a program that XLA has no kernel for.

    To be called outside of the program's `tf.Graph`.
    """
    kind = device()
    return sorted(
        {
            f"{o.type} {o.node.name}"
            for o in program.operations
            if o.type not in _KNOWN and not _has_kernel(o.node, kind)
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
        for kernel in private.registered_kernels(node.op)
    )


def _types(value):
    """The dtypes in an attribute, which is one or a list of them."""
    return {value.type} if value.type else {*value.list.type}


def hlo(program: Program, stage: str = "hlo") -> Any:
    """Lowers a program to an HLO module, which is not optimized.

    To be called outside of the program's `tf.Graph`.

    Args:
      program: the program.
      stage: "hlo" for a text, "hlo_serialized" for an HloModuleProto.

    Returns:
      The module. Its parameters are in the order of `program.inputs()`, but
      for the variables, which come last (TensorFlow's order of captures).

    Raises:
      ValueError: if XLA cannot compile an operation, or needs to know when it
        compiles what is known at run time only.
    """
    zeros = functools.cache(tf.zeros)  # variables of equal values share them
    variables = {
        name: tf.Variable(
            zeros(
                tf.TensorShape(handles[0].get_attr("shape")),
                handles[0].get_attr("dtype"),
            )
        )
        for name, handles in program.state().items()
    }
    arguments = program.arguments()
    graph, results = tpu_graph.standalone(program, "_in_xla", for_any_device)

    @tf.function(jit_compile=True, autograph=False)
    def replica(*given):
        inputs = {n: tf.identity(v.handle) for n, v in variables.items()}
        inputs.update(zip(arguments, given, strict=True))
        return tpu_graph.call(graph, results, inputs)

    lowered = replica.experimental_get_compiler_ir(*arguments.values())
    return lowered(stage=stage)


def for_any_device(node):
    """Exchanges what only TPUs have a kernel for."""
    if node.op == "CrossReplicaSum":
        node.op = "XlaAllReduce"
        node.attr["reduce_op"].s = b"Add"
        node.attr["mode"].s = b"CrossReplica"
    elif node.op == "AllToAll":
        _call_all_to_all(node)


_ALL_TO_ALL = """
func.func public @main(%x: tensor<{type}>) -> tensor<{type}> {{
  %y = "stablehlo.all_to_all"(%x) {{
    split_dimension = {axis} : i64, concat_dimension = {axis} : i64,
    split_count = {count} : i64,
    replica_groups = dense<[{group}]> : tensor<1x{count}xi64>
  }} : (tensor<{type}>) -> tensor<{type}>
  return %y : tensor<{type}>
}}
"""
_MLIR_TYPES = {tf.int32: "i32", tf.int64: "i64", tf.float32: "f32"}


def _call_all_to_all(node):
    """TensorFlow has no other operation that becomes an all-to-all.

    TPUStrategy makes one, over all replicas, to hand replica 0's value of a
    counter to the others.
    """
    attributes = node.attr
    dtype, count = attributes["T"].type, attributes["split_count"].i
    shape = attributes["_output_shapes"].list.shape[0]
    sizes = [str(dim.size) for dim in shape.dim]
    split, concat = (
        attributes[f"{name}_dimension"].i for name in ("split", "concat")
    )
    if split != concat or tf.as_dtype(dtype) not in _MLIR_TYPES:
        raise ValueError(
            f"AllToAll {node.name} of {tf.as_dtype(dtype).name} from dimension "
            f"{split} to {concat}: this tool has it for counters only."
        )
    module = _ALL_TO_ALL.format(
        type="x".join([*sizes, _MLIR_TYPES[tf.as_dtype(dtype)]]),
        axis=split,
        count=count,
        group=[*range(count)],
    )
    value, _, *waits = node.input
    node.op, node.input[:] = "XlaCallModule", [value, *waits]
    for name in ("T", "split_dimension", "concat_dimension", "split_count"):
        del attributes[name]
    attributes["version"].i = 5
    attributes["module"].s = module.encode()
    attributes["Tin"].list.type.append(dtype)
    attributes["Tout"].list.type.append(dtype)
    attributes["Sout"].list.shape.append(shape)
