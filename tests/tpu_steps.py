"""Steps of the optimizer, traced as programs of a TPUStrategy."""

from typing import NamedTuple

import tensorflow as tf

import helpers
import tf_adamw
from helpers import SHAPES
from tpu_scripts.aot.tracing import Program, make_strategy, trace

_DYNAMIC = tf_adamw.DynamicLossScale(growth_interval=3)
OPTIONS = {
    **helpers.OPTIONS,
    "mean": {"aggregation": "mean"},
    "dynamic": {"loss_scale_factor": _DYNAMIC},
    "fused": {"jit_compile": False, "amsgrad": True},
    "compiled": {"jit_compile": True},
    "all_dynamic": {
        **helpers.OPTIONS["everything"],
        "loss_scale_factor": _DYNAMIC,
    },
}


class Step(NamedTuple):
    """A traced step, and what it was traced with."""

    program: Program
    strategy: tf.distribute.Strategy
    optimizer: tf_adamw.AdamW
    variables: dict[str, tf.Variable]


def apply(optimizer, variables, gradients):
    return optimizer.apply(gradients, variables)


def conditional(optimizer, variables, gradients):
    return tf.cond(
        gradients[-1] > 0.0,
        lambda: optimizer.apply(gradients, variables).applied,
        lambda: False,
    )


def called(optimizer, variables, gradients):
    return tf.function(optimizer.apply)(gradients, variables)


def build(strategy, optimizer, variables):
    """Outside of the strategy's scope."""
    optimizer.build(variables)


def traced(step=apply, replicas=8, dtype=tf.float32, build=build, **options):
    """Traces a step on variables of SHAPES.

    Args:
      step: a function of the optimizer, a list of variables and one of
        gradients, each replica's own.
      replicas: their number.
      dtype: of the variables and gradients.
      build: a function of the strategy, the optimizer and {key: variable}.
      **options: of the optimizer.

    Returns:
      The `Step`.
    """
    with tf.Graph().as_default():
        strategy = make_strategy(replicas)
        with strategy.scope():
            variables = {
                key: tf.Variable(tf.ones(shape, dtype), name=key)
                for key, shape in SHAPES.items()
            }
        optimizer = tf_adamw.AdamW(**options)
        build(strategy, optimizer, variables)

        def replica(*gradients):
            held = list(variables.values())
            result = tf.nest.flatten(step(optimizer, held, [*gradients]))
            return [tensor for tensor in result if tensor is not None]

        specs = [tf.TensorSpec(shape, dtype) for shape in SHAPES.values()]
        program = trace(strategy, replica, *specs)
    return Step(program, strategy, optimizer, variables)
