"""Steps of PyTorch's AdamW, called eagerly."""

import os

import numpy as np
import torch

from tpu_scripts.bench import program
from tpu_scripts.bench.cases import Shapes


def prepare(peer: str) -> None:
    """Sets the number of threads, and loads what the first optimizer does."""
    del peer
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.optim.AdamW([torch.zeros(1)])


def make(peer: str, shapes: Shapes, mode: str, made: bool) -> program.Program:
    """The step.

    Args:
      peer: "torch-fused" or "torch-foreach".
      shapes: of the variables.
      mode: "eager".
      made: whether the step makes the gradients.
    """
    del mode
    return TorchProgram(peer.removeprefix("torch-"), shapes, made)


class TorchProgram(program.Program):
    """A step on parameters that have their gradients."""

    def __init__(self, form: str, shapes: Shapes, made: bool):
        self._made = made
        self._weights = [
            torch.nn.Parameter(torch.from_numpy(values))
            for values in program.weights(shapes)
        ]
        if not made:
            for w, g in zip(
                self._weights, program.gradients(shapes), strict=True
            ):
                w.grad = torch.from_numpy(g)
        self._optimizer = torch.optim.AdamW(
            self._weights,
            lr=program.LEARNING_RATE,
            weight_decay=program.WEIGHT_DECAY,
            **{form: True},
        )

    def trace(self) -> None:
        """There is nothing to trace."""

    def __call__(self) -> None:
        """Takes one step."""
        if self._made:
            self._optimizer.zero_grad()
            losses = [0.5 * w.square().sum() for w in self._weights]
            torch.stack(losses).sum().backward()
        self._optimizer.step()

    def read(self, index: int) -> np.ndarray:
        """A copy of the weights of one variable."""
        return self._weights[index].detach().numpy().copy()
