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
FUSED = "fused"  # one graph of TensorFlow's fused ops
INLINE = "inline"  # operations for XLA, in a program that compiles them


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
        """Runs `step(given, *tensors)` as one program of this replica.

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


def choose_mode(jit_compile: bool | str, devices: Iterable[str]) -> str:
    """Returns how a step over variables on `devices` is to be run.

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
        return XLA
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
