"""Steps of the optimizers of TensorFlow."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_adamw import AdamW, fuse_on_cpu
from tpu_scripts.bench import graph, peers, program
from tpu_scripts.bench.cases import Shapes

# What does one step from the gradients.
Apply = Callable[[Sequence[tf.Tensor]], Any]


def prepare(peer: str) -> None:
    """Starts TensorFlow's threads and compiler, so that no step has to."""
    if peer == "tf_adamw-one-pass":
        fuse_on_cpu()
    threads = int(os.environ["OMP_NUM_THREADS"])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.function(tf.square, jit_compile=True)(tf.ones([]))


def make(peer: str, shapes: Shapes, mode: str, made: bool) -> program.Program:
    """The step of an optimizer.

    Args:
      peer: its name in `peers.PEERS`.
      shapes: of the variables.
      mode: of `peers.MODES`.
      made: whether the step makes the gradients.
    """
    variables, apply = _OPTIMIZERS[peer](shapes, mode)
    gradients = None
    if not made:
        gradients = [tf.constant(g) for g in program.gradients(shapes)]
    return TensorFlowProgram(variables, apply, mode, gradients)


class TensorFlowProgram(program.Program):
    """The step of an optimizer as its caller has it.

    Args:
      variables: what it changes.
      apply: does one step from the gradients.
      mode: of `peers.MODES`.
      gradients: those that are given, or None: the step makes them.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        apply: Apply,
        mode: str,
        gradients: Sequence[tf.Tensor] | None,
    ):
        self._variables = variables
        self._arguments = () if gradients is None else (gradients,)

        def step(gradients=None):
            if gradients is None:
                gradients = make_gradients(variables)
            apply(gradients)

        def loop(gradients=None):
            for _ in tf.range(peers.LOOP_STEPS):
                step(gradients)

        self._call = step
        self._traced = mode != "eager"
        if self._traced:
            body, jit = (
                (loop, True) if mode == "loop" else (step, mode == "jit")
            )
            self._call = tf.function(body, jit_compile=jit or None)

    def trace(self) -> int | None:
        """Traces the caller's function and counts its nodes."""
        if not self._traced:
            return None
        concrete = self._call.get_concrete_function(*self._arguments)
        return graph.count_nodes(concrete)

    def __call__(self) -> None:
        """Runs one call. On CPU it returns when it is done."""
        self._call(*self._arguments)

    def read(self, index: int) -> np.ndarray:
        """A copy of the weights of one variable."""
        return tf.convert_to_tensor(self._variables[index]).numpy().copy()


def make_gradients(variables: Sequence[Any]) -> list[tf.Tensor]:
    """The gradients of half the sum of the squares: the weights."""
    with tf.GradientTape() as tape:
        losses = [tf.nn.l2_loss(tf.convert_to_tensor(v)) for v in variables]
    return tape.gradient(losses, variables)


def _make_variables(shapes: Shapes) -> list[tf.Variable]:
    named = zip(shapes, program.weights(shapes), strict=True)
    return [tf.Variable(values, name=key) for key, values in named]


def _window(mode: str) -> int | None:
    return peers.WINDOW if mode == "accumulation" else None


def _adamw(
    shapes: Shapes, mode: str, **options: Any
) -> tuple[list[tf.Variable], Apply]:
    variables = _make_variables(shapes)
    optimizer = AdamW(
        program.LEARNING_RATE,
        program.WEIGHT_DECAY,
        gradient_accumulation_steps=_window(mode),
        **options,
    )
    optimizer.build(variables)
    return variables, lambda grads: optimizer.apply(grads, variables)


def _keras(shapes: Shapes, mode: str) -> tuple[list[Any], Apply]:
    import keras

    variables = [keras.Variable(v) for v in program.weights(shapes)]
    optimizer = keras.optimizers.AdamW(
        program.LEARNING_RATE,
        program.WEIGHT_DECAY,
        gradient_accumulation_steps=_window(mode),
    )
    optimizer.build(variables)
    return variables, optimizer.apply


def _tf_keras(shapes: Shapes, mode: str) -> tuple[list[tf.Variable], Apply]:
    import tf_keras

    del mode
    variables = _make_variables(shapes)
    optimizer = tf_keras.optimizers.AdamW(
        program.LEARNING_RATE, program.WEIGHT_DECAY
    )
    optimizer.build(variables)
    return variables, lambda grads: optimizer.apply_gradients(
        zip(grads, variables, strict=True)
    )


def _sonnet(shapes: Shapes, mode: str) -> tuple[list[tf.Variable], Apply]:
    import sonnet

    del mode
    variables = _make_variables(shapes)
    optimizer = sonnet.optimizers.Adam(program.LEARNING_RATE)
    # It makes its slots in the first step, where a loop cannot.
    optimizer.apply([tf.zeros_like(v) for v in variables], variables)
    optimizer.step.assign(0)
    return variables, lambda grads: optimizer.apply(grads, variables)


def _adam_op(shapes: Shapes, mode: str) -> tuple[list[tf.Variable], Apply]:
    """TensorFlow's own Adam, its scalars computed once for all variables."""
    del mode
    variables = _make_variables(shapes)
    slots = [
        [tf.Variable(tf.zeros(shape)) for shape in shapes.values()]
        for _ in range(2)
    ]
    updates = tf.Variable(0, dtype=tf.int64)

    def apply(gradients):
        beta_1, beta_2 = tf.constant(0.9), tf.constant(0.999)
        t = tf.cast(updates.assign_add(1), tf.float32)
        scalars = {
            "beta1_power": beta_1**t,
            "beta2_power": beta_2**t,
            "lr": tf.constant(program.LEARNING_RATE),
            "beta1": beta_1,
            "beta2": beta_2,
            "epsilon": tf.constant(1e-7),
        }
        for w, m, v, g in zip(variables, *slots, gradients, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=w.handle, m=m.handle, v=v.handle, grad=g, **scalars
            )

    return variables, apply


_OPTIMIZERS = {
    "tf_adamw": _adamw,
    "tf_adamw-one-pass": functools.partial(_adamw, jit_compile=True),
    "tf_adamw-fused": functools.partial(_adamw, jit_compile=False),
    "keras": _keras,
    "tf_keras": _tf_keras,
    "sonnet": _sonnet,
    "adam-op": _adam_op,
}
