"""PyTorch's AdamW, trained by random gradients."""

import numpy as np
import torch

import helpers
from next_step import Imported
from tf_adamw import migration

SHAPES = {"kernel": (3, 5), "bias": (5,), "scale": ()}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# PyTorch's kernels are the other way round.
TRANSPOSE = {"kernel": (1, 0)}


def turned(array):
    return array.T if array.ndim == 2 else array


class Trained:
    """A torch.optim.AdamW after some steps."""

    def __init__(
        self, rng, steps=7, dtype="float32", scale=1.0, groups=None, **options
    ):
        weights = helpers.random_weights(rng, SHAPES, dtype)
        self.rng, self.scale = rng, scale
        self.tensors = {
            key: torch.nn.Parameter(torch.tensor(turned(w)))
            for key, w in weights.items()
        }
        groups = groups or [(list(SHAPES), {})]
        kind = options.pop("kind", torch.optim.AdamW)
        self.optimizer = kind(
            [
                {"params": [self.tensors[key] for key in keys], **own}
                for keys, own in groups
            ],
            **options,
        )
        self.order = [key for keys, _ in groups for key in keys]
        for _ in range(steps):
            self.step()
        # Where the weight is zero, the step is the update.
        self.tensors["bias"].data.zero_()

    def weights(self):
        """As AdamW has them."""
        return {
            key: turned(tensor.detach().numpy().copy())
            for key, tensor in self.tensors.items()
        }

    def step(self, skip=()):
        """Random gradients for all but some; returns them, as AdamW's."""
        gradients = helpers.random_gradients(
            self.rng, self.weights(), self.scale
        )
        for key in skip:
            gradients.pop(key)
        for key, tensor in self.tensors.items():
            gradient = gradients.get(key)
            tensor.grad = (
                None
                if gradient is None
                else torch.tensor(turned(np.asarray(gradient)))
            )
        self.optimizer.step()
        return gradients

    def read(self, tmp_path, wrap=lambda state: state, **given):
        path = tmp_path / "optimizer.pt"
        torch.save(wrap(self.optimizer.state_dict()), path)
        return migration.read("torch", path, **given)

    def imported(self, source, **options):
        names = None if not source.positional else self.order
        return Imported(source, self.weights(), names, TRANSPOSE, **options)

    def check(self, imported, label, steps=3):
        """The next step, and a few more."""
        for _ in range(steps):
            gradients = self.step()
            imported.step(gradients, self.weights(), label)
