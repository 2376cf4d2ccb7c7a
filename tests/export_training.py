"""AdamW, trained by random gradients, for others to go on with."""

import numpy as np

import helpers
import tf_adamw
from next_step import Compared

SHAPES = {"kernel": (3, 5), "bias": (5,), "scale": ()}
# Another order than that of the keys.
ORDER = ["scale", "kernel", "bias"]
TRANSPOSE = {"kernel": (1, 0)}
OPTIONS = {
    "plain": {},
    "settings": {
        "learning_rate": 3e-3,
        "weight_decay": 0.1,
        "beta_1": 0.8,
        "beta_2": 0.95,
        "epsilon": 1e-5,
    },
    "amsgrad": {"amsgrad": True},
    "excluded": {"exclude_from_weight_decay": ["bias", "scale"]},
    "clipped": {"global_clipnorm": 0.5},
    "average": {"use_ema": True, "ema_momentum": 0.75},
    "window": {"gradient_accumulation_steps": 2},
    "everything": {
        "amsgrad": True,
        "use_ema": True,
        "gradient_accumulation_steps": 2,
        "clipnorm": 0.5,
    },
}
NOT_IN_TORCH = ("clipped", "average", "window", "everything")


class Trained:
    """An AdamW after some updates."""

    def __init__(self, rng, updates=7, dtype="float32", scale=1.0, **options):
        self.rng, self.scale = rng, scale
        self.variables = helpers.as_variables(
            helpers.random_weights(rng, SHAPES, dtype)
        )
        self.optimizer = tf_adamw.AdamW(**options)
        self.optimizer.build(self.variables)
        self.window = self.optimizer.gradient_accumulation_steps or 1
        for _ in range(updates * self.window):
            self.step(self.gradients())
        # Where the weight is zero, the step is the update.
        self.variables["bias"].assign(np.zeros(5, dtype))

    def weights(self):
        return helpers.values(self.variables)

    def gradients(self):
        return helpers.random_gradients(self.rng, self.weights(), self.scale)

    def step(self, gradients):
        self.optimizer.apply(
            helpers.to_gradients(gradients.values()),
            list(self.variables.values()),
        )

    def check(self, step, label=None, corrections=0.0, epsilon=None, steps=3):
        """Compares the next step, and a few more.

        Args:
          step: does the other one's, given gradients; returns its weights.
          label: as `Compared.step` takes it.
          corrections: likewise.
          epsilon: as `Compared` takes it.
          steps: how many.
        """
        compared = Compared(self.optimizer, self.variables, epsilon)
        for _ in range(steps):
            gradients = self.gradients()
            for _ in range(self.window - 1):  # their mean is exact
                self.step(gradients)
                step(gradients)
            compared.step(gradients, step(gradients), label, corrections)
