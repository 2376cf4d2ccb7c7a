"""A Bayesian neural network with TFP: how diabetes goes on within a year.

    python -m tpu_scripts.examples.bayesian_network

Variational inference gives each weight a distribution, not a value.
"""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from absl import app, flags
from sklearn import datasets

from tf_adamw import AdamW

tfd = tfp.distributions
STEPS = flags.DEFINE_integer("steps", 1000, "Steps of variational inference.")
SIZES = [10 * 8, 8, 8, 1, 1]  # two layers' weights and biases, and the noise


def outcome(x: tf.Tensor, weights: tf.Tensor) -> tfd.Normal:
    """What each patient can expect: (patients, 10), (samples, 98) to both."""
    w1, b1, w2, b2, noise = tf.split(weights, SIZES, axis=-1)
    hidden = tf.tanh(x @ tf.reshape(w1, [-1, 10, 8]) / 10**0.5 + b1[:, None])
    return tfd.Normal(tf.linalg.matvec(hidden, w2) / 8**0.5 + b2, tf.exp(noise))


def main(_: list[str]) -> None:
    tf.random.set_seed(0)
    x, y = map(np.float32, datasets.load_diabetes(return_X_y=True))
    x, y = x / x.std(), (y - y[:330].mean()) / y[:330].std()
    x, y, test_x, test_y = x[:330], y[:330], x[330:], y[330:]

    def log_joint(weights: tf.Tensor) -> tf.Tensor:
        prior = tf.reduce_sum(tfd.Normal(0.0, 1.0).log_prob(weights), -1)
        return prior + tf.reduce_sum(outcome(x, weights).log_prob(y), -1)

    # The prior does what decay is for. First, weights that are likely:
    mean = tf.Variable(tf.random.normal([sum(SIZES)]) / 2, name="mean")
    adam = AdamW(0.02, weight_decay=0.0)
    tfp.math.minimize(lambda: -log_joint(mean[None]), 200, adam)
    # From there, the posterior: a normal distribution.
    scale = tfp.util.TransformedVariable(
        tf.fill(mean.shape, 0.1), tfp.bijectors.Softplus(), name="scale"
    )
    posterior = tfd.MultivariateNormalDiag(mean, scale)
    adam = AdamW(0.01, weight_decay=0.0)
    tfp.vi.fit_surrogate_posterior(log_joint, posterior, adam, STEPS.value)
    predicted = outcome(test_x, posterior.sample(1000))
    fit = tfp.math.reduce_logmeanexp(predicted.log_prob(test_y), axis=0)
    constant = np.mean(tfd.Normal(0.0, 1.0).log_prob(test_y))
    print(f"held-out log likelihood: {np.mean(fit):.3f}", end="")
    print(f", of the mean and variance: {constant:.3f}")
    low, high = np.quantile(predicted.sample(), [0.05, 0.95], axis=0)
    inside = np.mean((low < test_y) & (test_y < high))
    print(f"held-out outcomes in their 90% intervals: {inside:.3f}")


if __name__ == "__main__":
    app.run(main)
