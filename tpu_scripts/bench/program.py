"""What a worker times."""

import abc
from collections.abc import Iterator, Sequence

import numpy as np

from tpu_scripts.bench.cases import Shapes

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01


class Program(abc.ABC):
    """Steps of one optimizer on one set of variables.

    Weights are float32 and start as `weights` gives them. The gradients are
    those of `gradients`, or, made within the step, equal to the weights.
    """

    @abc.abstractmethod
    def trace(self) -> int | None:
        """Traces the step without running it.

        Returns:
          The number of nodes of its graph, or None if it has none.
        """

    @abc.abstractmethod
    def __call__(self) -> None:
        """Runs one call, to its end."""

    @abc.abstractmethod
    def read(self, index: int) -> np.ndarray:
        """A copy of the weights of one variable."""


def weights(shapes: Shapes) -> Iterator[np.ndarray]:
    """The initial weights, uniform in [-0.5, 0.5)."""
    return _uniform(shapes, 0.5, seed=0)


def gradients(shapes: Shapes) -> Iterator[np.ndarray]:
    """The gradients that are given, uniform in [-0.01, 0.01)."""
    return _uniform(shapes, 0.01, seed=1)


def _uniform(shapes: Shapes, limit: float, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    for shape in shapes.values():
        values = np.asarray(generator.random(shape, np.float32))
        values -= np.float32(0.5)
        values *= np.float32(2 * limit)
        yield values


def smallest(shapes: Sequence[tuple[int, ...]]) -> int:
    """The index of the variable with the fewest elements."""
    return int(np.argmin([np.prod(shape) for shape in shapes]))
