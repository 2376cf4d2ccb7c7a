"""The Adam of the TPU's embedding hardware, in float64 NumPy.

References:
  AdamParameters and OptimizationParameters:
    https://github.com/tensorflow/tensorflow/blob/v2.20.0/tensorflow/core/
    protobuf/tpu/optimization_parameters.proto
"""

import numpy as np
from tensorflow.core.protobuf.tpu import optimization_parameters_pb2

import helpers
from numpy_adamw import one_minus_power

ROWS, WIDTH = 6, 4
UNIT = helpers.UNIT_ROUNDOFF["float32"]


def random_table(rng):
    return helpers.random_weights(rng, {"table": (ROWS, WIDTH)})["table"]


def random_gradient(rng):
    return rng.standard_normal([ROWS, WIDTH]).astype(np.float32)


def ratio(t, beta_1=0.9, beta_2=0.999):
    """`alpha / lr`."""
    correction = np.sqrt(one_minus_power(beta_2, t))
    return correction / one_minus_power(beta_1, t)


def told(embedding_optimizer):
    """What the TPU is told: the fields of the proto."""
    parameters = optimization_parameters_pb2.OptimizationParameters()
    embedding_optimizer._set_optimization_parameters(parameters)
    return parameters


class Hardware:
    """One table, as an optimizer for TPU embeddings trains it.

    It is told what the TPU is told: the proto and, at each step, a learning
    rate.

    `bound` is how far an AdamW in float32 may be from the table: the bound of
    error_bounds.py; 16 roundings more in the rate; and what the hardware's
    float32 betas do. With d = u / 2, the largest error of a beta, they change
    m by at most 2 d / (1 - beta_1) of the largest |g|, and sqrt(v) by at most
    d / 2 * (1 / (1 - beta_2) + t / beta_2), relative.
    """

    def __init__(self, embedding_optimizer, table):
        self.optimizer = embedding_optimizer
        self.told = told(embedding_optimizer)
        self.start = np.array(table, np.float64)
        self.table = self.start.copy()
        self.momenta, self.velocities, self.bound, self.largest = np.zeros(
            [4, *self.start.shape]
        )
        self.steps = 0

    def step(self, gradient, looked_up=...):
        """One update, with the learning rate that it is given now."""
        adam, told = self.told.adam, self.told
        rows = ... if adam.use_non_lazy_adam else looked_up
        rate = float(self.optimizer.learning_rate())
        g = np.array(gradient, np.float64)[rows]
        if told.HasField("gradient_clipping_limits"):
            limits = told.gradient_clipping_limits
            g = np.clip(g, limits.lower.value, limits.upper.value)
        coupled = told.multiply_weight_decay_factor_by_learning_rate
        decay = told.weight_decay_factor * (rate if coupled else 1.0)
        m = adam.beta1 * self.momenta[rows] + (1 - adam.beta1) * g
        v = adam.beta2 * self.velocities[rows] + (1 - adam.beta2) * g**2
        self.momenta[rows], self.velocities[rows] = m, v
        if adam.use_sum_inside_sqrt:
            gain = rate / np.sqrt(v + adam.epsilon**2)
        else:
            gain = rate / (np.sqrt(v) + adam.epsilon)
        w = self.table[rows]
        self.table[rows] = w - decay * w - gain * m
        self._add_to_bound(rows, gain, g)

    def _add_to_bound(self, rows, gain, g):
        self.steps += 1
        beta_1, beta_2 = self.told.adam.beta1, self.told.adam.beta2
        of_betas = 1 / (1 - beta_1)
        of_betas += (1 / (1 - beta_2) + self.steps / beta_2) / 4
        roundings = 32 + 5 * self.steps + of_betas
        self.largest[rows] = np.maximum(self.largest[rows], np.abs(g))
        self.bound[rows] += 3 * UNIT * np.abs(self.table[rows])
        self.bound[rows] += roundings * UNIT * gain * self.largest[rows]

    def check(self, table):
        """Asserts that a table is within the bound, and that this is small."""
        way = np.max(np.abs(self.table - self.start))
        assert np.max(self.bound) < 0.01 * way
        error = np.abs(table - self.table)
        assert np.all(error <= self.bound), np.max(error - self.bound)
