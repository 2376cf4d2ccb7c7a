"""The steps that benchmark times: that they are AdamW's, and their size."""

import numpy as np
import pytest
import tensorflow as tf

from numpy_adamw import NumpyAdamW
from tpu_scripts.bench import (
    c_programs,
    graph,
    jax_programs,
    memory,
    peers,
    program,
    tf_programs,
    torch_programs,
)

SHAPES = {"kernel": (7, 5), "bias": (5,), "scale": ()}
PROGRAMS = {
    module.__name__.rpartition(".")[2]: module
    for module in (c_programs, jax_programs, tf_programs, torch_programs)
}
# The papers' epsilon, added to the root of the corrected second moment.
CORRECTED_EPSILON = {"optax": 1e-8, "sonnet": 1e-8}
CORRECTED_EPSILON |= {"torch-fused": 1e-8, "torch-foreach": 1e-8}
WITHOUT_DECAY = ("adam-op", "sonnet")
RUNS = [
    (peer, mode, mode in ("function", "loop"))
    for peer, found in peers.PEERS.items()
    for mode in found.modes
    if mode in peers.CALLS
]
CALLS = 3


def reference(peer, steps, made):
    """The weights after that many steps, by key."""
    adamw = NumpyAdamW(
        dict(zip(SHAPES, program.weights(SHAPES), strict=True)),
        learning_rate=program.LEARNING_RATE,
        weight_decay=0 if peer in WITHOUT_DECAY else program.WEIGHT_DECAY,
    )
    given = dict(zip(SHAPES, program.gradients(SHAPES), strict=True))
    for step in range(1, steps + 1):
        if peer in CORRECTED_EPSILON:
            corrected = CORRECTED_EPSILON[peer]
            adamw.epsilon = corrected * np.sqrt(1 - adamw.beta_2**step)
        adamw.apply(adamw.weights if made else given)
    return adamw.weights


@pytest.mark.parametrize(("peer", "mode", "made"), RUNS)
def test_every_peer_takes_adamw_steps(peer, mode, made):
    module = PROGRAMS[peers.PEERS[peer].programs]
    stepper = module.make(peer, SHAPES, mode, made)
    stepper.trace()
    for _ in range(CALLS):
        stepper()
    steps = CALLS * (peers.LOOP_STEPS if mode == "loop" else 1)
    # A rounding of a weight below one for each of the few operations on it,
    # and of an update: beta_2 and its powers in float32 are right to 1e-4.
    tolerance = steps * (4 * 2.0**-25 + 1e-4 * program.LEARNING_RATE)
    for index, (key, expected) in enumerate(
        reference(peer, steps, made).items()
    ):
        actual = stepper.read(index)
        assert actual.shape == SHAPES[key]
        assert np.abs(actual - expected).max() <= tolerance, key


def test_functions_count_once():
    @tf.function
    def inner(x):
        return x + x

    @tf.function
    def outer(x):
        return inner(x) * inner(x)

    spec = tf.TensorSpec([2])
    own = graph.count_nodes(inner.get_concrete_function(spec))
    twice = graph.count_nodes(outer.get_concrete_function(spec))
    # Two calls, a product and an identity of its own.
    assert twice == own + 4


def test_peak_of_memory_counts_what_is_gone():
    memory.restart_peak()
    before = memory.resident_bytes()
    size = 2**26
    np.ones(size, np.uint8)
    assert memory.peak_bytes() >= before + 0.9 * size
