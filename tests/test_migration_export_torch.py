"""The state is given to PyTorch, which goes on with it."""

import numpy as np
import pytest
import torch

from export_training import NOT_IN_TORCH, OPTIONS, ORDER, TRANSPOSE, Trained
from tf_adamw.migration import export_state


class InTorch:
    """Parameters of PyTorch, and its AdamW."""

    def __init__(self, trained, arguments):
        self.tensors = {
            key: torch.nn.Parameter(torch.tensor(turned(weight)))
            for key, weight in trained.weights().items()
        }
        groups = [
            {**group, "params": [self.tensors[key] for key in group["params"]]}
            for group in arguments["params"]
        ]
        self.optimizer = torch.optim.AdamW(**{**arguments, "params": groups})

    def load(self, path):
        self.optimizer.load_state_dict(torch.load(path, weights_only=True))

    def step(self, gradients):
        for key, tensor in self.tensors.items():
            gradient = turned(np.asarray(gradients[key]))
            tensor.grad = torch.tensor(gradient)
        self.optimizer.step()
        return {
            key: turned(tensor.detach().numpy().copy())
            for key, tensor in self.tensors.items()
        }


def turned(array):
    return array.T if array.ndim == 2 else array


def in_torch(trained, path):
    """Exports; returns it in PyTorch, and its epsilon."""
    arguments = export_state(
        trained.optimizer, path, "torch", keys=ORDER, transpose=TRANSPOSE
    )
    there = InTorch(trained, arguments)
    there.load(path)
    return there, there.optimizer.param_groups[0]["eps"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "option", [o for o in OPTIONS if o not in NOT_IN_TORCH]
)
def test_torch_goes_on(rng, tmp_path, option, dtype):
    trained = Trained(rng, 7, dtype, **OPTIONS[option])
    there, epsilon = in_torch(trained, tmp_path / "state.pt")
    trained.check(there.step, f"to PyTorch AdamW, {dtype}", epsilon=epsilon)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_goes_on_where_epsilon_matters(rng, tmp_path, dtype):
    trained = Trained(rng, 4, dtype, 1e-7, beta_1=0.8, beta_2=0.95)
    there, epsilon = in_torch(trained, tmp_path / "state.pt")
    label = f"to PyTorch AdamW, gradients of 1e-7, {dtype}"
    trained.check(there.step, label, epsilon=epsilon)


def test_torch_has_groups(rng, tmp_path):
    trained = Trained(
        rng,
        exclude_from_weight_decay=["bias"],
        learning_rate_multipliers={"kernel": 0.5, "bias": 0.5},
    )
    there, epsilon = in_torch(trained, tmp_path / "state.pt")
    names = [group["param_names"] for group in there.optimizer.param_groups]
    assert names == [["scale"], ["kernel"], ["bias"]]
    trained.check(there.step, "to PyTorch AdamW, float32", epsilon=epsilon)


@pytest.mark.parametrize("updates", [0, 1])
def test_torch_goes_on_from_the_start(rng, tmp_path, updates):
    trained = Trained(rng, updates)
    there, epsilon = in_torch(trained, tmp_path / "state.pt")
    trained.check(there.step, None, epsilon=epsilon)
