"""The state of an `AdamW` as a `state_dict` of PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_adamw.migration.source import correction
from tf_adamw.registry import Parameter
from tf_adamw.state import OptimizerState

_SLOTS = {
    "momentum": "exp_avg",
    "velocity": "exp_avg_sq",
    "velocity_max": "max_exp_avg_sq",
}


def write(
    optimizer: OptimizerState,
    path: str,
    parameters: Sequence[Parameter],
    slots: Mapping[str, Mapping[str, np.ndarray]],
    settings: Mapping[str, float],
) -> dict[str, Any]:
    """Writes the file: see `export_state`.

    Args:
      optimizer: the `AdamW`.
      path: of the file.
      parameters: in PyTorch's order.
      slots: by key.
      settings: the hyperparameters of the next step.

    Returns:
      The arguments of `torch.optim.AdamW`, with keys for tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "Writing PyTorch's files needs PyTorch: pip install torch"
        ) from error
    arguments = _arguments(optimizer, parameters, settings)
    groups = arguments["params"]
    # Its own `state_dict`, so that the installed version knows what is in it.
    empty = [
        {**group, "params": [torch.zeros([]) for _ in group["params"]]}
        for group in groups
    ]
    state_dict = torch.optim.AdamW(
        **{**arguments, "params": empty}
    ).state_dict()
    for group, own in zip(state_dict["param_groups"], groups, strict=True):
        group["param_names"] = own["params"]
    step = float(optimizer.iterations.numpy())
    keys = [key for group in groups for key in group["params"]]
    state_dict["state"] = {
        i: {"step": torch.tensor(step), **_state(slots[key])}
        for i, key in enumerate(keys)
    }
    torch.save(state_dict, path)
    return arguments


def _state(slots: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The slots under PyTorch's names, as tensors."""
    import torch

    return {
        name: torch.tensor(slots[slot])
        for slot, name in _SLOTS.items()
        if slot in slots
    }


def _arguments(
    optimizer: OptimizerState,
    parameters: Sequence[Parameter],
    settings: Mapping[str, float],
) -> dict[str, Any]:
    groups: dict[tuple[float, float], list[str]] = {}
    for parameter in parameters:
        rate, decay = (
            float(tf.convert_to_tensor(factor))
            for factor in (parameter.multiplier, parameter.decay_multiplier)
        )
        factors = rate, decay if parameter.decayed else 0.0
        groups.setdefault(factors, []).append(parameter.key)
    t, beta_2 = int(optimizer.iterations.numpy()) + 1, settings["beta_2"]
    grown = math.sqrt(correction(beta_2, t))
    return {
        "params": [
            {
                "params": keys,
                "lr": rate * settings["learning_rate"],
                "weight_decay": decay * settings["weight_decay"],
            }
            for (rate, decay), keys in groups.items()
        ],
        "lr": settings["learning_rate"],
        "betas": (settings["beta_1"], settings["beta_2"]),
        "eps": settings["epsilon"] / grown,
        "weight_decay": settings["weight_decay"],
        "amsgrad": optimizer.amsgrad,
    }
