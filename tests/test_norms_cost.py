"""Norms cost nothing where they are not asked for, and are no more programs."""

import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import Pair, both_modes

pytestmark = pytest.mark.core

GROUPS = {"all": ".", "matrices": ["kernel"], "none": lambda key: False}


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, helpers.SHAPES)


def graph_of(weights, jit_compile, **options):
    """The graph of a step in a function of the caller's."""
    optimizer = tf_adamw.AdamW(jit_compile=jit_compile, **options)
    optimizer.build(helpers.as_variables(weights))
    step = tf.function(lambda gradients: optimizer.apply(gradients))
    return step.get_concrete_function(list(map(tf.constant, weights.values())))


@both_modes
def test_no_cost_when_not_asked_for(weights, jit_compile):
    """No sum, and the same operations whatever is selected by nothing."""
    plain = helpers.operations(graph_of(weights, jit_compile))
    assert not {"Sum", "Square", "L2Loss", "Einsum", "MatMul"} & set(plain)
    none = graph_of(weights, jit_compile, norm_groups={})
    assert sorted(helpers.operations(none)) == sorted(plain)
    asked = graph_of(weights, jit_compile, norm_groups=GROUPS)
    assert "Sum" in helpers.operations(asked)


@both_modes
def test_no_norms_when_not_asked_for(weights, jit_compile):
    for groups in (None, {}):
        pair = Pair(weights, jit_compile)
        pair.optimizer = tf_adamw.AdamW(
            jit_compile=jit_compile, norm_groups=groups
        )
        pair.optimizer.build(pair.variables)
        result = pair.optimizer.apply(list(map(tf.ones_like, weights.values())))
        assert result.update_norm is None and result.weight_norm is None


@both_modes
def test_one_program_when_asked_for(weights, functions, jit_compile):
    """In a graph one call for XLA, and the same around it; eagerly, too."""
    outer = []
    for groups in (None, GROUPS):
        graph = graph_of(weights, jit_compile, norm_groups=groups).graph
        nodes = graph.as_graph_def().node
        calls = [node for node in nodes if "PartitionedCall" in node.op]
        compiled = [n for n in calls if n.attr["_XlaMustCompile"].b]
        assert len(calls) == len(compiled) == int(jit_compile)
        outer.append(sorted(node.op for node in nodes if node.op != "Identity"))
    assert not jit_compile or outer[0] == outer[1]
    del functions[:]
    optimizer = tf_adamw.AdamW(jit_compile=jit_compile, norm_groups=GROUPS)
    optimizer.build(helpers.as_variables(weights))
    for _ in range(3):
        optimizer.apply(list(map(tf.ones_like, weights.values())))
    traced = [f.experimental_get_tracing_count() for f in functions]
    # The second is the trace that alike variables share, inside of the first.
    assert all(count <= 1 for count in traced) and traced[0] == 1
