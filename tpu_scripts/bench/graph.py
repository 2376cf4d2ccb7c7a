"""The size of a traced function."""

import tensorflow as tf


def count_nodes(function: tf.types.experimental.ConcreteFunction) -> int:
    """Counts the nodes of a function and of all functions that it reaches.

    Args:
      function: the function; its arguments are no nodes. Every function that
        it reaches counts once, however often it is called.
    """
    library = {
        found.signature.name: found
        for found in function.graph.as_graph_def().library.function
    }
    own = function.function_def
    waiting, reached, nodes = [own], {own.signature.name}, 0
    while waiting:
        body = waiting.pop().node_def
        nodes += len(body)
        for name in _called(body) & library.keys() - reached:
            reached.add(name)
            waiting.append(library[name])
    return nodes


def _called(nodes) -> set[str]:
    """The names that may be those of functions."""
    names = set()
    for node in nodes:
        names.add(node.op)
        for value in node.attr.values():
            names.add(value.func.name)
            names.update(func.name for func in value.list.func)
    return names
