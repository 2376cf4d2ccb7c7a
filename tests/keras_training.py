"""Small models of Keras 3 and tf_keras, trained by random gradients."""

import numpy as np
import tensorflow as tf

import helpers
from next_step import Imported, float32_corrections

FORMATS = (".weights.h5", ".keras", ".h5", "checkpoint", "optimizer alone")
# What the last layer's bias is called. Its weights are zero when the file is
# written: there, the step is the update.
ZERO = "last/bias"


def sequential(library, order=("first", "norm", "square", "last")):
    """A model whose layers are called by their part."""
    layers = library.layers
    made = {
        "first": lambda: layers.Dense(4, name="first"),
        "norm": lambda: layers.BatchNormalization(name="norm"),
        "square": lambda: layers.Dense(4, use_bias=False, name="square"),
        "last": lambda: layers.Dense(2, name="last"),
    }
    return library.Sequential(
        [library.Input((4,)), *(made[name]() for name in order)], name="model"
    )


class Trained:
    """A model and its optimizer after some steps.

    Args:
      rng: for weights and gradients.
      library: keras or tf_keras.
      optimizer: of that library.
      steps: how many.
      scale: of the gradients.
    """

    def __init__(self, rng, library, optimizer, steps=3, scale=1.0):
        self.rng, self.scale, self.optimizer = rng, scale, optimizer
        self.model = sequential(library)
        self.model.compile(optimizer, "mse")
        self.variables = dict(
            zip(
                map(key_of, self.model.trainable_variables),
                self.model.trainable_variables,
                strict=True,
            )
        )
        shapes = {key: v.shape for key, v in self.variables.items()}
        start = helpers.random_weights(rng, shapes)
        for key, variable in self.variables.items():
            variable.assign(start[key])
        for _ in range(steps):
            self.step()
        self.variables[ZERO].assign(np.zeros(2))

    def weights(self):
        """{key: array}, in the optimizer's order."""
        return helpers.values(self.variables)

    def step(self):
        """Applies random gradients; returns {key: array}."""
        gradients = helpers.random_gradients(
            self.rng, self.weights(), self.scale
        )
        tensors = map(tf.constant, gradients.values())
        self.optimizer.apply_gradients(
            list(zip(tensors, self.variables.values(), strict=True))
        )
        return gradients

    def save(self, folder, kind):
        """Writes the file; returns its path."""
        if kind == ".weights.h5":
            path = str(folder / "file.weights.h5")
            self.model.save_weights(path)
            return path
        if kind in (".keras", ".h5"):
            path = str(folder / f"file{kind}")
            self.model.save(path)
            return path
        objects = {"optimizer": self.optimizer}
        if kind == "checkpoint":
            objects["model"] = self.model
        return tf.train.Checkpoint(**objects).write(str(folder / "checkpoint"))

    def imported(self, source, **options):
        """An AdamW that goes on."""
        names = list(self.variables) if source.positional else None
        # Half of a test's time is XLA's compilation otherwise.
        options = {"jit_compile": False, **options}
        return Imported(source, self.weights(), names, **options)

    def check(self, imported, label, steps=2, corrections=True):
        """The next step, and a few more."""
        o = imported.optimizer
        for _ in range(steps):
            t = int(o.iterations) + 1
            gradients = self.step()
            imported.step(
                gradients,
                self.weights(),
                label,
                float32_corrections(o.beta_1, o.beta_2, t) * corrections,
            )

    def check_averages(self, imported):
        """The averages are as close as the weights they are of."""
        averages = self.optimizer._model_variables_moving_average
        for key, average in zip(self.variables, averages, strict=True):
            theirs = average.numpy()
            np.testing.assert_allclose(
                imported.slot(key, "average"),
                theirs,
                rtol=4 * imported.steps * helpers.UNIT_ROUNDOFF["float32"],
                atol=np.max(imported.bounds[key]),
            )


def key_of(variable):
    """What both libraries' variables can be called: "first/kernel"."""
    name = getattr(variable, "path", variable.name)
    return name.removeprefix("model/").split(":")[0]


def refusal(error, path):
    """Checks that a message is one line that names the file."""
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message
