"""The programs that a TPUStrategy makes of steps, run on CPUs in its place."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import SHAPES
from numpy_adamw import NumpyAdamW
from tpu_replicas import Replicas
from tpu_steps import OPTIONS, apply, traced

pytestmark = pytest.mark.core

REPLICAS = 4
VARIED = (
    "plain",
    "mean",
    "global_clipnorm",
    "ema_overwrite",
    "schedule",
    "accumulation",
    "everything",
    "all_dynamic",
)
QUICK = ("plain", "accumulation", "all_dynamic")


class Run:
    """The replicas of a step and the float64 reference, side by side."""

    def __init__(self, rng, step=apply, **options):
        weights = helpers.random_weights(rng, SHAPES)
        made = traced(step, REPLICAS, **options)
        # The same variables in the same order, but with values.
        variables = helpers.as_variables(weights)
        optimizer = tf_adamw.AdamW(**options)
        optimizer.build(variables)
        held = [*made.variables.values(), *made.optimizer.variables]
        values = [*variables.values(), *optimizer.variables]
        local = made.strategy.experimental_local_results
        start = {
            local(variable)[0].handle.op.name: value.numpy()
            for variable, value in zip(held, values, strict=True)
        }
        self.replicas = Replicas(made.program, start, REPLICAS)
        aggregation = options.pop("aggregation", "sum")
        self._reduce = {"sum": np.sum, "mean": np.mean}.get(aggregation)
        options.pop("jit_compile", None)
        self.reference = NumpyAdamW(weights, **options)

    def step(self, gradients, left_out=()):
        """One step on {key: the gradients of all replicas}.

        Args:
          gradients: as said.
          left_out: keys of gradients that the step does not pass on.
        """
        results = self.replicas.run(
            [[g[number] for g in gradients.values()] for number in range(4)]
        )
        applied, norm = self.reference.apply(
            {
                key: None if key in left_out else self._reduce(parts, axis=0)
                for key, parts in gradients.items()
            }
        )
        for result in results:
            assert result[0].numpy() == applied
            for found in result[1:]:
                expected = norm if applied else np.nan
                np.testing.assert_allclose(found, expected, 1e-6)

    def values(self, name):
        """The value of a variable on each replica."""
        return [state[name].numpy() for state in self.replicas.state]

    def check(self):
        """Asserts that replicas agree to the bit, and with the reference."""
        for name in self.replicas.state[0]:
            values = self.values(name)
            if not name.endswith("accumulator"):
                assert len({value.tobytes() for value in values}) == 1, name
        for key, weights in self.reference.weights.items():
            error = helpers.relative_error(self.values(key)[0], weights)
            helpers.record("TPU programs, weights", error)
            assert error <= 1e-6


def random_gradients(rng):
    """{key: the gradients of all replicas}."""
    return {
        key: np.float32(100 * rng.standard_normal((REPLICAS, *shape)))
        for key, shape in SHAPES.items()
    }


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(option, marks=() if option in QUICK else pytest.mark.slow)
        for option in VARIED
    ],
)
def test_replicas_do_what_one_would_with_all_gradients(rng, option):
    run = Run(rng, **OPTIONS[option])
    for _ in range(7):
        run.step(random_gradients(rng))
    run.check()


@pytest.mark.parametrize("option", ["plain", "everything"])
def test_reduced_gradients_are_not_reduced_again(rng, option):
    run = Run(rng, aggregation="none", **OPTIONS[option])
    run._reduce = lambda parts, axis: parts[0]
    for _ in range(5):
        gradients = random_gradients(rng)
        run.step({k: np.stack([g[0]] * 4) for k, g in gradients.items()})
    run.check()


@pytest.mark.parametrize(
    ("option", "value"),
    [("skip_nonfinite", np.nan), ("dynamic", np.inf), ("all_dynamic", -np.inf)],
)
def test_one_bad_replica_makes_all_skip(rng, option, value):
    run = Run(rng, **OPTIONS[option])
    for number in range(8):
        gradients = random_gradients(rng)
        if number in (2, 3, 6):
            gradients["bias"][number % REPLICAS, 1] = value
        run.step(gradients)
    assert 0 < run.reference.iterations < 6
    run.check()


def test_a_window_is_shared_by_all_replicas(rng):
    """A checkpoint has the sum of the replicas' own sums."""
    run = Run(rng, gradient_accumulation_steps=4)
    for _ in range(6):
        run.step(random_gradients(rng))
    for key, total in run.reference.slots["accumulator"].items():
        own = run.values(f"{key}/accumulator")
        np.testing.assert_allclose(np.sum(own, axis=0), total, 1e-5, 1e-3)
    run.check()


@pytest.mark.parametrize("option", ["plain", "accumulation", "all_dynamic"])
def test_in_a_loop_on_the_device(rng, option):
    def steps(optimizer, variables, gradients):
        def body(number, _):
            return number + 1, optimizer.apply(gradients, variables).applied

        return tf.while_loop(lambda n, _: n < 3, body, (0, False))[1]

    run = Run(rng, steps, **OPTIONS[option])
    for _ in range(3):
        gradients = random_gradients(rng)
        reduced = {k: np.sum(g, axis=0) for k, g in gradients.items()}
        for _ in range(2):
            run.reference.apply(reduced)
        run.step(gradients)
    run.check()


@pytest.mark.parametrize("option", ["plain", "accumulation"])
def test_rows_are_summed_within_and_across_replicas(rng, option):
    def step(optimizer, variables, gradients):
        halves = tf.concat([gradients[0] / 2.0] * 2, axis=0)
        indices, shape = tf.constant([0, 1, 2] * 2), tf.constant((3, 5))
        rows = tf.IndexedSlices(halves, indices, shape)
        return optimizer.apply([rows, *gradients[1:]], variables).applied

    run = Run(rng, step, **OPTIONS[option])
    for _ in range(4):
        gradients = random_gradients(rng)
        run.step(gradients)
    run.check()


def test_no_gradient_at_the_end_of_a_window(rng):
    def step(optimizer, variables, gradients):
        kernel, bias, scale = gradients
        optimizer.apply([kernel, bias, scale], variables)
        return optimizer.apply([kernel, None, scale], variables).applied

    run = Run(rng, step, gradient_accumulation_steps=2)
    for _ in range(3):
        gradients = random_gradients(rng)
        run.reference.apply({k: np.sum(g, 0) for k, g in gradients.items()})
        run.step(gradients, left_out=["bias"])
    run.check()
