"""One compiled program per step, and which kind of program it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw.registry import Parameter

XLA = "xla"  # one program, compiled by XLA
FUSED = "fused"  # one graph of TensorFlow's fused ops
INLINE = "inline"  # operations for XLA, in a program that compiles them

Step = Callable[..., Any]


class Programs:
    """The step's programs, one for each set of variables with gradients.

    A plain object, so that a `tf.Module` that has it does not track the
    functions.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._functions: dict[Any, Callable[..., Any]] = {}

    def run(
        self,
        mode: str,
        parameters: Sequence[Parameter],
        gradients: Sequence[tf.Tensor],
        live: dict[str, tf.Tensor],
    ) -> Any:
        """Runs `step(mode, parameters, gradients, live)` as one program.

        Args:
          mode: XLA, FUSED or INLINE.
          parameters: those with a gradient.
          gradients: tensors of the parameters' shapes.
          live: scalars that were read outside of the program.

        Returns:
          What the step returns.
        """
        if mode == INLINE:
            return self._step(mode, parameters, gradients, live)
        signature = (mode, *(p.key for p in parameters))
        function = self._functions.get(signature)
        if function is None:
            function = tf.function(
                functools.partial(self._step, mode, parameters),
                jit_compile=mode == XLA,
                autograph=False,
            )
            self._functions[signature] = function
        device = parameters[0].variable.device
        if mode != XLA or device == _default_device():
            return function(list(gradients), live)
        # A compiled function does not follow its variables by itself. Named
        # only where it has to be, the device stays out of SavedModels.
        with tf.device(device):
            return function(list(gradients), live)

    def clear(self) -> None:
        """Forgets the programs, after what they were traced from changed."""
        self._functions.clear()


def _default_device() -> str:
    with tf.init_scope():
        return tf.zeros([]).device


def choose_mode(jit_compile: bool | str, devices: Iterable[str]) -> str:
    """Returns how a step over variables on `devices` is to be run.

    Raises:
      ValueError: if `jit_compile` is True where XLA cannot serve.
    """
    devices = set(devices)
    if isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy):
        return INLINE
    if jit_compile is False:
        return FUSED
    if len(devices) == 1 and has_xla(next(iter(devices))):
        return XLA
    if jit_compile == "auto":
        return FUSED
    reason = (
        f"the variables are on several devices: {', '.join(sorted(devices))}"
        if len(devices) > 1
        else f"this TensorFlow has no XLA for {next(iter(devices))}"
    )
    raise ValueError(
        f'jit_compile=True cannot serve here: {reason}. Use "auto" or False.'
    )


@functools.cache
def has_xla(device: str) -> bool:
    """Whether this TensorFlow compiles for `device`, found out by trying.

    There is no public way to ask. The `tensorflow-tpu` wheel, for one, has no
    XLA for the host's CPU.
    """
    with tf.init_scope():
        if not tf.executing_eagerly():
            return True
        try:
            with tf.device(device):
                tf.function(lambda x: x + 1.0, jit_compile=True)(tf.zeros([]))
        except (tf.errors.OpError, ValueError):
            return False
    return True
