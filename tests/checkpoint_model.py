"""The model of the checkpoint tests and of the goldens."""

import numpy as np
import tensorflow as tf

import helpers


class Layer(tf.Module):
    """A kernel and a bias."""

    def __init__(self, rows, columns):
        super().__init__()
        self.kernel = tf.Variable(tf.ones([rows, columns]))
        self.bias = tf.Variable(tf.ones([columns]))


class Model(tf.Module):
    """Five variables, one of them bfloat16, at four depths of names."""

    def __init__(self):
        super().__init__()
        self.layers = [Layer(3, 5), Layer(5, 2)]
        self.scale = tf.Variable(tf.ones([2], tf.bfloat16))

    def by_key(self):
        """{key: variable} with the keys that the optimizer derives."""
        variables = {"scale": self.scale}
        for number, layer in enumerate(self.layers):
            variables[f"layers/{number}/kernel"] = layer.kernel
            variables[f"layers/{number}/bias"] = layer.bias
        return variables


class Wide(tf.Module):
    """A float64 variable beside a float32 one."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(tf.ones([3, 2], tf.float64))
        self.bias = tf.Variable(tf.ones([2]))

    def by_key(self):
        """{key: variable} with the keys that the optimizer derives."""
        return {"kernel": self.kernel, "bias": self.bias}


class Falling(tf.Module):
    """A schedule with a variable."""

    def __init__(self):
        super().__init__()
        self.peak = tf.Variable(2.0**-6)

    def __call__(self, step):
        return self.peak / (1.0 + tf.cast(step, self.peak.dtype))


# Goldens beside those of helpers.OPTIONS: what hyperparameters can be.
OF_HYPERPARAMETERS = ("float64", "variables")


def made(option):
    """The model and the optimizer's options of a golden."""
    if option == "float64":
        names = {"beta_1": 0.875, "beta_2": 0.984375, "epsilon": 2.0**-20}
        return Wide(), {k: tf.Variable(v) for k, v in names.items()}
    if option == "variables":
        decay = tf.Variable(2.0**-4, dtype=tf.float64)
        return Model(), {"learning_rate": Falling(), "weight_decay": decay}
    return Model(), helpers.OPTIONS[option]


def train(optimizer, model, first, last, scale=1.0):
    """Steps first to last - 1, with the gradients of their numbers."""
    variables = model.by_key()
    for number in range(first, last):
        rng = np.random.default_rng(number)
        gradients = helpers.random_gradients(
            rng, helpers.values(variables), scale
        )
        optimizer.apply(
            helpers.to_gradients(gradients.values()), variables.values()
        )


def saved_values(optimizer, model, path):
    """{checkpoint key: array} of what a checkpoint written now holds."""
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    return helpers.checkpoint_values(checkpoint.save(path / "values"))
