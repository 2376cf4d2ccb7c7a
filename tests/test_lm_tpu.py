"""The training step of train_lm as a TPUStrategy makes a program of it."""

import pytest
import tensorflow as tf

import helpers
import lm_small
from tpu_scripts.aot.lowering import hlo, unknown_operations
from tpu_scripts.aot.tracing import make_strategy, trace
from tpu_scripts.lm_model import LanguageModel
from tpu_scripts.lm_training import make_train_loop, train_step


def traced(replicas, **options):
    """The program, and the shapes of the model's variables."""
    with tf.Graph().as_default():
        strategy = make_strategy(replicas)
        with strategy.scope():
            model = LanguageModel(lm_small.CONFIG)
            optimizer = lm_small.make_optimizer(**options)
            optimizer.build(model)
        batch = lm_small.BATCH

        def step(windows):
            return train_step(model, optimizer, windows, batch * replicas)

        windows = tf.TensorSpec([batch, lm_small.CONFIG.context + 1], tf.int32)
        program = trace(strategy, step, windows)
    return program, [tuple(v.shape) for v in model.trainable_variables]


@pytest.mark.parametrize(
    "replicas", [8, pytest.param(256, marks=pytest.mark.slow)]
)
def test_one_program_without_the_host(replicas):
    program, shapes = traced(replicas)
    reductions = program.all_reduces()
    assert sorted(o.shape for o in reductions) == sorted(shapes)
    assert program.host_operations() == []
    assert unknown_operations(program) == []
    assert hlo(program).count(" all-reduce(") == len(shapes)


def test_one_reduction_per_window():
    program, shapes = traced(
        8, gradient_accumulation_steps=4, loss_scale_factor="dynamic"
    )
    reductions = program.all_reduces()
    assert sorted(o.shape for o in reductions) == sorted(shapes)
    (branch,) = {o.branches for o in reductions}
    assert len(branch) == 1
    assert program.host_operations() == []
    assert unknown_operations(program) == []


class Zeros:
    """Stands in for a distributed iterator."""

    def __next__(self):
        return tf.zeros([lm_small.BATCH, lm_small.CONFIG.context + 1], tf.int32)


def test_the_training_loop_is_traced_with_its_steps():
    with tf.Graph().as_default():
        strategy = make_strategy(8)
        with strategy.scope():
            model = LanguageModel(lm_small.CONFIG)
            optimizer = lm_small.make_optimizer()
        loop = make_train_loop(strategy, model, optimizer, 8, False)
        optimizer.build(model)
        steps = tf.TensorSpec([], tf.int32)
        traced_loop = loop.get_concrete_function(Zeros(), steps)
    found = helpers.operations(traced_loop)
    assert found.count("TPUReplicateMetadata") == 1
    assert found.count("CrossReplicaSum") == len(model.trainable_variables)
