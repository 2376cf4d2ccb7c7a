"""One compiled program per step, and which kind of program it is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_adamw import replicas
from tf_adamw.registry import Parameter

XLA = "xla"  # one program, compiled by XLA
FUSED = "fused"  # TensorFlow's fused ops, in one graph
INLINE = "inline"  # operations for XLA, in a program that compiles them

# As measured on two cores: from as many variables on, with fewer elements than
# that on average, the fused ops are faster than XLA.
_MANY, _SMALL = 256, 8192

# Operations that may change state although they have outputs.
_WITH_CHANGES = {"If", "PartitionedCall", "StatefulPartitionedCall"}


class Given(NamedTuple):
    """What a program is traced for.

    Attributes:
      parameters: those that the gradients belong to, in their order.
      touched_only: the identities of those that take part only if their
        gradient is not zero.
      compiled: whether XLA compiles the program.
    """

    parameters: Sequence[Parameter]
    touched_only: frozenset[tuple[str, int]]
    compiled: bool


class Programs:
    """The step's programs, one for each set of variables with gradients.

    A plain object, so that a `tf.Module` that has it does not track the
    functions.
    """

    def __init__(self) -> None:
        self._functions: dict[Any, Callable[..., Any]] = {}

    def run(
        self,
        mode: str,
        step: Callable[..., Any],
        given: Given,
        *tensors: Any,
    ) -> Any:
        """Runs `step(given, *tensors)` on this replica.

        As one program, or as a part of the caller's function.

        Args:
          mode: XLA, FUSED or INLINE.
          step: a method of the optimizer.
          given: what the program is traced for.
          *tensors: what it is called with: structures of tensors.

        Returns:
          What the step returns.
        """
        if mode == INLINE:
            return step(given, *tensors)
        if mode == FUSED and _orders_its_operations():
            return _in_callers_graph(step, given, *tensors)
        signature = _signature(mode, step, given)
        if signature not in self._functions:
            self._functions[signature] = _function(mode, step, given)
        with _where(mode, given):
            return self._functions[signature](*tensors)

    def trace(
        self,
        mode: str,
        step: Callable[..., Any],
        given: Given,
        *specs: Any,
    ) -> None:
        """Traces what `run` will run later, if it is new.

        What cannot be traced is refused by that before another program has
        changed the state. In a graph nothing runs before all is traced.

        Args:
          mode: as in `run`.
          step: as in `run`.
          given: as in `run`.
          *specs: structures of tensors or of their specifications.
        """
        if mode == INLINE or not tf.executing_eagerly():
            return
        signature = _signature(mode, step, given)
        if signature in self._functions:
            return
        function = _function(mode, step, given)
        with _where(mode, given):
            function.get_concrete_function(*specs)
        self._functions[signature] = function

    def clear(self) -> None:
        """Forgets the programs, after what they were traced from changed."""
        self._functions.clear()


def one_side_of(
    predicate: tf.Tensor,
    then: Callable[[], Any],
    otherwise: Callable[[], Any],
) -> Any:
    """A `tf.cond` of which a TPU computes one side only.

    Where both sides are elementwise XLA computes those of a `tf.cond`, selects,
    and may need more passes over memory than for one of them. What a side is
    given that was computed outside is a pass over memory, too.

    Not for programs that may be exported: LiteRT has no such operation.
    """
    return tf.switch_case(tf.cast(predicate, tf.int32), [otherwise, then])


def _function(
    mode: str, step: Callable[..., Any], given: Given
) -> Callable[..., Any]:
    return tf.function(
        functools.partial(step, given),
        jit_compile=mode == XLA,
        autograph=False,
        # The number of rows of a gradient may differ from step to step.
        reduce_retracing=mode == FUSED,
    )


def _orders_its_operations() -> bool:
    """Whether this is a `tf.function`, whose graph keeps them in order."""
    outside = tf.compat.v1.executing_eagerly_outside_functions
    return tf.inside_function() and outside()


def _in_callers_graph(
    step: Callable[..., Any], given: Given, *tensors: Any
) -> Any:
    """Runs `step(given, *tensors)` as a function of its own would run.

    Such a function takes twice as long to trace, and is inlined at last. As it
    would, the step changes nothing before all tensors are there, and what
    waits for its results waits for all changes.
    """
    graph = tf.compat.v1.get_default_graph()
    start = len(graph.get_operations())
    inputs = tf.nest.flatten(tensors, expand_composites=True)
    with tf.control_dependencies(filter(tf.is_tensor, inputs)):
        ready = tf.no_op()
    with tf.control_dependencies([ready]):
        results = step(given, *tensors)
    changes = [
        operation
        for operation in graph.get_operations()[start:]
        if not operation.outputs or operation.type in _WITH_CHANGES
    ]
    with tf.control_dependencies(changes):
        done = tf.no_op()
    with tf.control_dependencies([done]):
        return tf.nest.map_structure(tf.identity, results)


def _signature(mode: str, step: Callable[..., Any], given: Given) -> Any:
    # Each replica has variables of its own to compile in.
    device = given.parameters[0].variable.device
    places = tuple(parameter.identity for parameter in given.parameters)
    return mode, step.__name__, device, places, given.touched_only


def _where(mode: str, given: Given) -> contextlib.AbstractContextManager:
    """The device to call a program on."""
    device = given.parameters[0].variable.device
    if mode != XLA or device == _default_device():
        return contextlib.nullcontext()
    # A compiled function does not follow its variables by itself. Named only
    # where it has to be, the device stays out of SavedModels.
    return tf.device(device)


def _default_device() -> str:
    with tf.init_scope():
        return tf.zeros([]).device


def choose_mode(
    jit_compile: bool | str, devices: Iterable[str], *, ops_are_faster: bool
) -> str:
    """Returns how a step over variables on `devices` is to be run.

    Args:
      jit_compile: as the optimizer's argument.
      devices: those of all variables that the step writes.
      ops_are_faster: whether the fused ops are, on a CPU.

    Raises:
      ValueError: if `jit_compile` is True where XLA cannot serve.
    """
    devices = set(devices)
    if replicas.is_tpu(tf.distribute.get_strategy()):
        return INLINE
    if jit_compile is False:
        return FUSED
    one = next(iter(devices))
    elsewhere = replicas.remote(one)
    if len(devices) == 1 and not elsewhere and has_xla(one):
        return FUSED if ops_are_faster and replicas.is_cpu(one) else XLA
    if jit_compile == "auto":
        return FUSED
    if len(devices) > 1:
        named = ", ".join(sorted(devices))
        reason = f"the variables are on several devices: {named}"
    elif elsewhere:
        reason = f"the variables are on another machine: {one}"
    else:
        reason = f"this TensorFlow has no XLA for {one}"
    raise ValueError(
        f'jit_compile=True cannot serve here: {reason}. Use "auto" or False.'
    )


def many_and_small(sizes: Sequence[int]) -> bool:
    """Whether a CPU updates variables of these sizes faster by the fused ops.

    XLA takes most of such a step to be handed every variable, and most of the
    first one to compile for each of them.
    """
    return len(sizes) >= _MANY and sum(sizes) < _SMALL * len(sizes)


def has_xla(device: str) -> bool:
    """Whether this TensorFlow compiles for `device`, found out by trying.

    There is no public way to ask. The `tensorflow-tpu` wheel, for one, has no
    XLA for the host's CPU.
    """
    with tf.init_scope():
        return not tf.executing_eagerly() or _compiles(device)


@functools.cache
def _compiles(device: str) -> bool:
    try:
        with tf.device(device):
            tf.function(lambda x: x + 1.0, jit_compile=True)(tf.zeros([]))
    except (tf.errors.OpError, ValueError):
        return False
    return True
