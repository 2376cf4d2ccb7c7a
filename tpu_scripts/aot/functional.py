"""The program of a TPU's replica as a function of tensors alone.

Where there is no TPU, the TPU's own kernels lower functions without variables
only: here the value of each variable is an argument, and a result if the
program assigns it.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tpu_scripts.aot import lowering
from tpu_scripts.aot.tracing import Program

# What chooses among the branches of a conditional.
_CHOICES = {
    "If": "cond",
    "StatelessIf": "cond",
    "Case": "branch_index",
    "StatelessCase": "branch_index",
}
_ASSIGNED = {
    "AssignVariableOp": lambda old, new: new,
    "AssignAddVariableOp": tf.add,
    "AssignSubVariableOp": tf.subtract,
}


class Functional(NamedTuple):
    """A program as a function of tensors.

    Attributes:
      function: a `tf.function` of the program's arguments and of the values of
        its variables. It returns the program's results and the new values of
        the variables that the program assigns.
      specs: a `tf.TensorSpec` for each parameter.
      updates: for each variable that the program assigns, which result is its
        new value, and which parameter its old one.
    """

    function: Any
    specs: list[tf.TensorSpec]
    updates: dict[int, int]


def functional(program: Program, change: Callable[[Any], None]) -> Functional:
    """Makes a function of tensors of a program.

    To be called outside of the program's `tf.Graph`.

    Args:
      program: the program.
      change: is called with a copy of each NodeDef, and may change it.

    Returns:
      The `Functional`. Its parameters and results are in the order in which
      `lowering.hlo` has them.

    Raises:
      ValueError: if the program does with a variable what no step does.
    """
    handles = program.state()
    arguments = program.arguments()
    specs = [*arguments.values()]
    for handle, *_ in handles.values():
        shape, dtype = (handle.get_attr(key) for key in ("shape", "dtype"))
        specs.append(tf.TensorSpec(shape, dtype))
    nodes = [operation.node for operation in program.inside.values()]
    body = _Body([*arguments, *handles], nodes, program.results())
    given = [*[None] * len(arguments), *handles]
    interpreter = _Interpreter(program.graph.library, change)
    updates = {}

    @tf.function(jit_compile=True, autograph=False)
    def function(*tensors):
        results, state, assigned = interpreter.run(body, given, tensors)
        for result, name in enumerate(assigned, len(results)):
            updates[result] = given.index(name)
        return results + [state[name] for name in assigned]

    function.get_concrete_function(*specs)
    return Functional(function, specs, updates)


def hlo(program: Program, stage: str = "hlo") -> Any:
    """Lowers a program by the kernels of TPUs, or of the host.

    The tensorflow-tpu wheel has those of TPUs, any other TensorFlow those of
    the host. To be called outside of the program's `tf.Graph`.

    Args:
      program: the program.
      stage: "hlo" for a text, "hlo_serialized" for an HloModuleProto.

    Returns:
      The HLO module of its `Functional`, which is not optimized.

    Raises:
      ValueError: if there is no kernel for an operation, or the program does
        with a variable what no step does.
    """
    platform, change = "TPU", lambda node: None
    if lowering.device() == "XLA_CPU_JIT":
        platform, change = None, lowering.for_any_device
    function, specs, _ = functional(program, change)
    lowered = function.experimental_get_compiler_ir(*specs)
    return lowered(stage=stage, platform_name=platform)


class _Body(NamedTuple):
    """What a graph or a function does: NodeDefs, and names of tensors."""

    arguments: list[str]
    nodes: list[Any]
    results: list[str]


class _Interpreter:
    """Makes operations again, in the graph of the moment.

    The handle of a variable is the variable's name instead of a tensor, and
    `state` holds the values that variables have, by name.
    """

    def __init__(self, library, change):
        self._change = change
        self._bodies = {
            f.signature.name: _Body(
                [argument.name for argument in f.signature.input_arg],
                f.node_def,
                [f.ret[result.name] for result in f.signature.output_arg],
            )
            for f in library.function
        }

    def run(self, body, given, tensors):
        """Does what a body does.

        Args:
          body: the body.
          given: for each of its arguments the variable whose handle it takes,
            or None.
          tensors: for each of its arguments a tensor: the variable's value
            instead of its handle.

        Returns:
          The results that are no handles; {variable: value}; the variables
          that were assigned.
        """
        pairs = [*zip(given, tensors, strict=True)]
        before = {name: tensor for name, tensor in pairs if name}
        state = dict(before)
        arguments = [name or tensor for name, tensor in pairs]
        results = self._run(body, arguments, state)
        assigned = [name for name in state if state[name] is not before[name]]
        return [r for r in results if not _is_handle(r)], state, assigned

    def _run(self, body, arguments, state):
        values = dict(zip(body.arguments, arguments, strict=True))
        # Each operation comes after those that it depends on.
        for node in body.nodes:
            inputs = [values[n] for n in node.input if not n.startswith("^")]
            parts = self._make(node, inputs, state)
            # A graph numbers all outputs, a function those of each part.
            flat = [*itertools.chain(*parts.values())]
            for prefix, outputs in {"": flat, **parts}.items():
                for i, value in enumerate(outputs):
                    name = ":".join(filter(None, (node.name, prefix, str(i))))
                    values[name] = value
            if flat:
                values[node.name] = flat[0]
        return [values[name] for name in body.results]

    def _make(self, node, inputs, state):
        """Makes an operation. Returns its outputs by the names in its OpDef."""
        bodies = {
            key: [self._bodies[f.name] for f in functions]
            for key, value in node.attr.items()
            if (functions := [*value.list.func] or [value.func])[0].name
        }
        if "f" in bodies:
            return {"output": self._run(*bodies["f"], inputs, state)}
        if bodies:
            return {"output": self._control_flow(node, bodies, inputs, state)}
        if any(map(_is_handle, inputs)):
            return _on_variable(node, *inputs, state=state)
        node = tf.compat.v1.NodeDef.FromString(node.SerializeToString())
        self._change(node)
        attributes = {k: v for k, v in node.attr.items() if k[0] != "_"}
        graph = tf.compat.v1.get_default_graph()
        return _parts(graph.create_op(node.op, inputs, attrs=attributes))

    def _control_flow(self, node, bodies, inputs, state):
        """Makes a conditional or a loop that takes and returns the state."""
        arguments, choice = {}, _CHOICES.get(node.op)
        if choice:
            arguments[choice], *inputs = inputs
        order = [*range(len(inputs))]
        if choice != "branch_index":  # XLA passes variables last
            order.sort(key=lambda i: _is_handle(inputs[i]))
        given = [inputs[i] if _is_handle(inputs[i]) else None for i in order]
        names = [name for name in given if name]
        tensors = [
            state[name] if name else inputs[i]
            for i, name in zip(order, given, strict=True)
        ]
        changed = set()
        for key, several in bodies.items():
            returned = [] if key == "cond" else names
            functions = [
                self._function(
                    body._replace(arguments=[body.arguments[i] for i in order]),
                    given,
                    returned,
                    changed,
                ).get_concrete_function(*tensors)
                for body in several
            ]
            arguments[key] = functions if key == "branches" else functions[0]
        if choice:
            arguments["Tout"] = [o.dtype for o in functions[0].outputs]
        outputs = getattr(tf.raw_ops, node.op)(input=tensors, **arguments)
        own = outputs[: len(outputs) - len(names)]
        new = zip(names, outputs[len(own) :], strict=True)
        state.update({name: value for name, value in new if name in changed})
        own = iter(own)
        return (
            [*own]
            if choice
            else [i if _is_handle(i) else next(own) for i in inputs]
        )

    def _function(self, body, given, returned, changed):
        """A `tf.function` of `run` that also returns some variables' values.

        The variables that are assigned are added to the set `changed`.
        """

        def function(*tensors):
            results, state, assigned = self.run(body, given, tensors)
            changed.update(assigned)
            return results + [state[name] for name in returned]

        return tf.function(function, autograph=False)


def _is_handle(value):
    return isinstance(value, str)


def _on_variable(node, name, *operands, state):
    if node.op == "Identity":
        return {"output": [name]}
    if node.op == "ReadVariableOp":
        return {"value": [state[name]]}
    if node.op not in _ASSIGNED:
        raise ValueError(f"{node.op} {node.name}: no step does that")
    state[name] = _ASSIGNED[node.op](state[name], *operands)
    return {}


def _parts(operation):
    """The outputs of an operation, by the names in its OpDef."""
    outputs, parts = iter(operation.outputs), {}
    for part in operation.op_def.output_arg:
        count = 1
        if part.number_attr:
            count = operation.get_attr(part.number_attr)
        elif part.type_list_attr:
            count = len(operation.get_attr(part.type_list_attr))
        parts[part.name] = [*itertools.islice(outputs, count)]
    return parts
