"""TensorFlow Probability: its loops, its distributions' variables."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tf_adamw
from numpy_adamw import NumpyAdamW

tfd = tfp.distributions
LossNotDecreasing = tfp.optimizer.convergence_criteria.LossNotDecreasing
# Whether TFP compiles the whole loop.
loops = pytest.mark.parametrize("jit_loop", [False, True])
orders = pytest.mark.parametrize("build_first", [True, False])
STEPS = 20


def normal():
    """A normal distribution to be fitted."""
    scale = tfp.util.TransformedVariable(
        [1.0, 0.5], tfp.bijectors.Softplus(), name="scale"
    )
    return tfd.MultivariateNormalDiag(
        tf.Variable([0.0, -1.0], name="loc"), scale
    )


def joint():
    """Two distributions, of three variables."""
    parts = [tfd.Normal(tf.Variable(1.0, name="mean"), 0.5), normal()]
    return tfd.JointDistributionSequential(parts)


SURROGATES = {
    "normal": (normal, lambda x: -tf.reduce_sum((x - 2.0) ** 2, -1)),
    "joint": (joint, lambda y, x: -((y + 1) ** 2) - tf.reduce_sum(x**2, -1)),
}


def fit(surrogate, kind, optimizer, jit_loop=False, seed=(1, 2)):
    """Of each step, the gradients and what became of the variables."""
    return tfp.vi.fit_surrogate_posterior(
        SURROGATES[kind][1],
        surrogate,
        optimizer,
        STEPS,
        trace_fn=lambda step: (step.gradients, step.parameters),
        sample_size=4,
        trainable_variables=surrogate.trainable_variables,
        jit_compile=jit_loop,
        seed=seed,
    )


@loops
@orders
@pytest.mark.parametrize("kind", SURROGATES)
def test_fit_surrogate_posterior(kind, build_first, jit_loop):
    surrogate = SURROGATES[kind][0]()
    variables = surrogate.trainable_variables
    start = {v.ref(): v.numpy() for v in variables}
    optimizer = tf_adamw.AdamW(0.05)
    if build_first:
        optimizer.build(variables)
    gradients, traced = fit(surrogate, kind, optimizer, jit_loop)
    assert optimizer.iterations == STEPS
    for variable in variables:
        # TFP has an order of its own.
        (place,) = (
            place
            for place, values in enumerate(traced)
            if np.array_equal(values[-1], variable)
        )
        reference = NumpyAdamW({"x": start[variable.ref()]}, learning_rate=0.05)
        for gradient, value in zip(
            gradients[place].numpy(), traced[place], strict=True
        ):
            reference.apply({"x": gradient})
            np.testing.assert_allclose(
                value, reference.weights["x"], rtol=2e-6, atol=2e-7
            )


@pytest.mark.parametrize("kind", SURROGATES)
def test_fit_goes_on_from_a_checkpoint(kind, tmp_path):
    """Of a joint distribution by its variables: TensorFlow saves no other."""

    def made():
        surrogate = SURROGATES[kind][0]()
        optimizer = tf_adamw.AdamW(0.05, use_ema=True)
        optimizer.build(surrogate.trainable_variables)
        variables = list(surrogate.trainable_variables)
        saved = tf.train.Checkpoint(variables=variables, optimizer=optimizer)
        return surrogate, optimizer, saved

    surrogate, optimizer, saved = made()
    fit(surrogate, kind, optimizer)
    path = saved.save(tmp_path / "checkpoint")
    fit(surrogate, kind, optimizer, seed=(3, 4))
    again, optimizer, saved = made()
    saved.restore(path).assert_consumed()
    fit(again, kind, optimizer, seed=(3, 4))
    for one, other in zip(
        surrogate.trainable_variables, again.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_fit_finds_the_posterior():
    """The exact one: of a mean, given 24 normal observations."""
    observed = np.random.default_rng(1).normal(1.0, 2.0, 24).astype(np.float32)
    exact = tfd.Normal(observed.sum() / 4 / (1 + 6), 7**-0.5)
    scale = tfp.util.TransformedVariable(1.0, tfp.bijectors.Exp(), name="scale")
    surrogate = tfd.Normal(tf.Variable(0.0, name="mean"), scale)
    before = float(tfd.kl_divergence(surrogate, exact))

    def log_joint(mean):
        likelihood = tfd.Normal(mean[..., None], 2.0).log_prob(observed)
        prior = tfd.Normal(0.0, 1.0).log_prob(mean)
        return prior + tf.reduce_sum(likelihood, -1)

    steps = 400
    optimizer = tf_adamw.AdamW(
        lambda step: 0.1 * (1 - tf.cast(step, tf.float32) / steps),
        weight_decay=0.0,
    )
    tfp.vi.fit_surrogate_posterior(
        log_joint, surrogate, optimizer, steps, sample_size=256, seed=(1, 2)
    )
    assert before > 0.5
    assert tfd.kl_divergence(surrogate, exact) < 0.001


@loops
@orders
@pytest.mark.parametrize("full_trace", [True, False])
def test_minimize_ends_when_it_has_converged(full_trace, build_first, jit_loop):
    x = tf.Variable([1.0, -2.0], name="x")
    reference = NumpyAdamW({"x": x.numpy()}, learning_rate=0.1)
    optimizer = tf_adamw.AdamW(0.1)
    if build_first:
        optimizer.build([x])
    losses = tfp.math.minimize(
        lambda: tf.reduce_sum((x - 3.0) ** 2),
        200,
        optimizer,
        convergence_criterion=LossNotDecreasing(atol=0.01, min_num_steps=5),
        trainable_variables=[x],
        return_full_length_trace=full_trace,
        jit_compile=jit_loop,
    )
    done = int(optimizer.iterations)
    assert 10 < done < 200
    assert len(losses) == (200 if full_trace else done)
    for step in range(done):
        expected = np.sum((reference.weights["x"] - 3) ** 2)
        np.testing.assert_allclose(losses[step], expected, rtol=1e-5, atol=1e-5)
        reference.apply({"x": 2 * (reference.weights["x"] - 3)})
    np.testing.assert_allclose(x, reference.weights["x"], rtol=5e-6)


def test_minimize_takes_the_variables_that_it_has_seen():
    x, y = tf.Variable(1.0, name="x"), tf.Variable(5.0, name="y")
    optimizer = tf_adamw.AdamW(0.1)
    tfp.math.minimize(lambda: x**2, 3, optimizer)
    assert y.numpy() == 5.0
    assert x.numpy() < 1.0
    assert list(optimizer.slots) == ["x"]


def test_keys_of_a_distribution():
    """Its paths, which do not depend on what the variables are called."""
    optimizer = tf_adamw.AdamW()
    optimizer.build(tfd.Normal(tf.Variable(0.0), tf.Variable(1.0)))
    assert sorted(optimizer.slots) == ["_loc", "_scale"]
