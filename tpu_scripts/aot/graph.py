"""The program of a TPU's replica as a graph of its own."""

import itertools

import tensorflow as tf

from tpu_scripts.aot import private
from tpu_scripts.aot.tracing import source


def standalone(program, suffix, change):
    """Takes a `tracing.Program` out of the graph that it was traced in.

    Args:
      program: the program.
      suffix: for the names of the functions that it calls: under their own
        names TensorFlow knows them already, unchanged.
      change: a function that is called with each NodeDef, without what was
        only for TPUs, and changes it. It finds the shapes of the outputs in
        the attribute `_output_shapes`.

    Returns:
      A GraphDef whose inputs, the operations of `program.inputs()`, are
      missing, and the names of its results.
    """
    graph = tf.compat.v1.GraphDef()
    graph.library.CopyFrom(program.graph.library)
    graph.versions.CopyFrom(program.graph.versions)
    graph.node.extend(o.node for o in program.inside.values())
    kept = {*program.inside, *program.inputs()}
    for node in graph.node:
        node.input[:] = [n for n in node.input if source(n) in kept]
    bodies = [body.node_def for body in graph.library.function]
    for node in itertools.chain(graph.node, *bodies):
        _strip(node, suffix)
        change(node)
        node.attr.pop("_output_shapes", None)
    for body in graph.library.function:
        body.signature.name += suffix
        private.define_function(body)
    results = [f"{name}:0" for name in program.results()]
    return graph, results


def _strip(node, suffix):
    node.device = ""
    for name, value in [*node.attr.items()]:
        if name.startswith(("_tpu", "_xla", "_class")):
            del node.attr[name]
            continue
        for function in (value.func, *value.list.func):
            if function.name:
                function.name += suffix


def call(graph, results, inputs):
    """Adds the program to the current graph.

    Args:
      graph: from `standalone`.
      results: likewise.
      inputs: tensors by the names of the inputs.

    Returns:
      The results.
    """
    outputs = tf.graph_util.import_graph_def(graph, inputs, results, "")
    every = tf.compat.v1.get_default_graph().get_operations()
    with tf.control_dependencies(every):
        return [tf.identity(output) for output in outputs]
