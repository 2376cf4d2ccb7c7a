"""The steps that are compiled: the optimizer's alone, Keras's, train_lm's."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

from tf_adamw import AdamW
from tpu_scripts.aot.floor import count, floor, size
from tpu_scripts.aot.shapes import Shapes
from tpu_scripts.aot.tracing import Program, make_strategy, trace
from tpu_scripts.lm_model import LanguageModel, ModelConfig
from tpu_scripts.lm_training import check_batch_size, train_step


@dataclasses.dataclass(frozen=True)
class Step:
    """A step, traced as the program of a TPU's replica.

    Attributes:
      program: the program.
      parameters: the number of the model's parameters.
      variables: the number of the model's variables.
      state_bytes: what the step keeps: weights, slots, counters.
      floor: bytes of HBM that the step has to move at least: in a micro-step
        that only accumulates, and in one that updates. None if the step does
        more than to optimize.
    """

    program: Program
    parameters: int
    variables: int
    state_bytes: int
    floor: tuple[int, int] | None = None


def optimizer_step(
    make_optimizer: Callable[[], AdamW],
    shapes: Shapes,
    replicas: int,
    dtype: tf.DType = tf.float32,
) -> Step:
    """The step of an optimizer, given each replica's gradients.

    Args:
      make_optimizer: makes the optimizer.
      shapes: of the variables, by key.
      replicas: their number.
      dtype: of the variables and gradients.
    """
    with tf.Graph().as_default():
        strategy = make_strategy(replicas)
        with strategy.scope():
            variables = {
                key: tf.Variable(tf.zeros(shape, dtype), name=key)
                for key, shape in shapes.items()
            }
            optimizer = make_optimizer()
            optimizer.build(variables)

        def step(*gradients: tf.Tensor) -> list[tf.Tensor]:
            result = optimizer.apply(gradients, [*variables.values()])
            return [tensor for tensor in result if tensor is not None]

        specs = [tf.TensorSpec(shape, dtype) for shape in shapes.values()]
        program = trace(strategy, step, *specs)
        return _measured(program, optimizer, [*variables.values()], specs)


def keras_step(
    options: dict[str, Any],
    shapes: Shapes,
    replicas: int,
    dtype: tf.DType = tf.float32,
) -> Step:
    """The same of `keras.optimizers.AdamW`.

    Args:
      options: its arguments.
      shapes: of the variables, by key.
      replicas: their number.
      dtype: of the variables and gradients.

    Raises:
      ValueError: Keras is not installed.
    """
    try:
        import keras
    except ImportError as error:
        raise ValueError(
            "--optimizer=keras needs: pip install keras"
        ) from error
    with tf.Graph().as_default():
        strategy = make_strategy(replicas)
        with strategy.scope():
            variables = [
                keras.Variable(tf.zeros(shape, dtype), dtype=dtype.name)
                for shape in shapes.values()
            ]
            optimizer = keras.optimizers.AdamW(**options)
            optimizer.build(variables)

        def step(*gradients: tf.Tensor) -> tuple[()]:
            optimizer.apply(list(gradients), variables)
            return ()

        specs = [tf.TensorSpec(shape, dtype) for shape in shapes.values()]
        # Within a tf.Graph `==` compares identities: that a window ends Keras
        # finds by one.
        with mock.patch.object(tf.Tensor, "__eq__", _equal):
            program = trace(strategy, step, *specs)
        return _measured(program, optimizer, variables, specs)


def _equal(tensor: tf.Tensor, other: Any) -> Any:
    return False if other is None else tf.equal(tensor, other)


def lm_step(
    make_optimizer: Callable[[], AdamW],
    config: ModelConfig,
    batch_size: int,
    replicas: int,
) -> Step:
    """The training step of train_lm: forward, backward, update.

    Args:
      make_optimizer: makes the optimizer.
      config: of the model.
      batch_size: examples over all replicas.
      replicas: their number.

    Raises:
      ValueError: the batch cannot be divided among them.
    """
    check_batch_size(batch_size, replicas)
    with tf.Graph().as_default():
        strategy = make_strategy(replicas)
        with strategy.scope(), tf.variable_creator_scope(_of_zeros):
            model = LanguageModel(config)
            optimizer = make_optimizer()
            optimizer.build(model)

        def step(windows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return train_step(model, optimizer, windows, batch_size)

        own = [batch_size // replicas, config.context + 1]
        program = trace(strategy, step, tf.TensorSpec(own, tf.int32))
        return _measured(program, optimizer, model.trainable_variables)


def _of_zeros(create: Callable[..., tf.Variable], **options: Any) -> Any:
    """Makes a variable without its values: 256 copies would not fit here."""
    value = options["initial_value"]
    if isinstance(value, np.ndarray):
        options["initial_value"] = tf.zeros(value.shape, value.dtype)
    return create(**options)


def _measured(
    program: Program,
    optimizer: Any,
    weights: Sequence[Any],
    gradients: Sequence[tf.TensorSpec] | None = None,
) -> Step:
    least_and_most = None
    if gradients is not None:
        reduces = bool(program.all_reduces())
        least_and_most = floor(optimizer, weights, gradients, reduces)
    return Step(
        program,
        parameters=count(weights),
        variables=len(weights),
        state_bytes=size(weights) + size(optimizer.variables),
        floor=least_and_most,
    )
