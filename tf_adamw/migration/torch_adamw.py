"""PyTorch's AdamW, and its Adam as far as it does not decay.

The file is what `torch.save(optimizer.state_dict(), path)` writes, or holds
that under a key. It is loaded with `weights_only=True`: no object in it is
unpickled but tensors, numbers and what contains them.

    w <- w - lr * wd * w - lr * (m / (1 - beta_1^t)) / (root + eps)
    root = sqrt(v / (1 - beta_2^t)), with AMSGrad of the largest v so far
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tf_adamw.migration.source import Source, correction

_SLOTS = {
    "exp_avg": "momentum",
    "exp_avg_sq": "velocity",
    "max_exp_avg_sq": "velocity_max",
}
# Of those optimizers that know betas, only Adam and AdamW have the last one.
_GROUP = ("params", "lr", "betas", "eps", "weight_decay", "amsgrad")


def read(path: str, source: str, given: Mapping[str, float]) -> Source:
    """Reads a file of PyTorch: see `readers.read`."""
    del source
    loaded = _loaded(path)
    state_dict = _state_dict(loaded, path)
    groups = state_dict["param_groups"]
    _check_groups(groups, given)
    names = _names(groups)
    settings = {
        "learning_rate": max(float(group["lr"]) for group in groups),
        "weight_decay": max(float(group["weight_decay"]) for group in groups),
        "beta_1": float(groups[0]["betas"][0]),
        "beta_2": float(groups[0]["betas"][1]),
        "epsilon": float(groups[0]["eps"]),
        **given,
    }
    steps, slots = _slots(state_dict["state"], names)
    iterations = max(steps.values(), default=0)
    ignored = _align(slots, steps, iterations, settings)
    coupled = groups[0].get("decoupled_weight_decay") is False
    positional = all(name.isdecimal() for name in names.values())
    return Source(
        optimizer="PyTorch Adam" if coupled else "PyTorch AdamW",
        iterations=iterations,
        slots=slots,
        settings=settings,
        positional=positional,
        algorithm_1=True,
        decayed=_by_name(groups, names, _decays),
        multipliers=_by_name(groups, names, _multipliers),
        options={"amsgrad": True} if groups[0]["amsgrad"] else {},
        weights={} if positional else _weights(loaded, names.values()),
        output_first=True,
        ignored=ignored,
        notes=_notes(groups),
    )


def _loaded(path: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "Reading PyTorch's files needs PyTorch: pip install torch"
        ) from error
    try:
        _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path!r} is no file of PyTorch, or has other objects than "
            "tensors and numbers, which are not unpickled: write it by "
            "torch.save(optimizer.state_dict(), path)."
        ) from error
    except Exception as error:  # a damaged file has many ways to fail
        reason = str(error).partition("\n")[0] or type(error).__name__
        missing = not os.path.exists(path)
        kind = "" if missing else "damaged, cut off, or no file of PyTorch: "
        raise ValueError(f"Cannot read {path!r}: {kind}{reason}") from error


def _check_sums(path: str) -> None:
    """PyTorch reads its files without looking at their checksums."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged!r} is wrong")


def _state_dict(loaded: Any, path: str) -> Mapping[str, Any]:
    """The optimizer's part of a file."""
    found = dict(_state_dicts(loaded, "the file"))
    if len(found) == 1:
        return next(iter(found.values()))
    names = f": {', '.join(found)}" if found else ""
    raise ValueError(
        f"{path!r} holds {len(found)} optimizers{names}; it has to be one: "
        "write it by torch.save(optimizer.state_dict(), path)."
    )


def _state_dicts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Those in a file, one level of lists and dicts below its own."""
    if isinstance(value, Mapping):
        if {"state", "param_groups"} <= set(value):
            yield name, value
            return
        items = [(repr(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    else:
        return
    for key, item in items:
        if isinstance(item, (Mapping, list, tuple)):
            yield from _state_dicts(item, key)


def _check_groups(
    groups: Sequence[Mapping[str, Any]], given: Mapping[str, float]
) -> None:
    """Refuses what no AdamW can go on with."""
    for group in groups:
        if missing := [name for name in _GROUP if name not in group]:
            raise ValueError(
                "This is no state of PyTorch's Adam or AdamW: a group of its "
                f"parameters has no {missing[0]!r}."
            )
        if group.get("maximize"):
            raise ValueError("AdamW minimizes, this PyTorch AdamW maximized.")
        if (
            group.get("decoupled_weight_decay", True) is False
            and group["weight_decay"]
        ):
            raise ValueError(
                f"PyTorch's Adam with weight_decay={group['weight_decay']} "
                "adds it to the gradient; AdamW decays the weights."
            )
    for what, name, values in (
        ("amsgrad", "amsgrad", {bool(g["amsgrad"]) for g in groups}),
        ("beta_1", "betas[0]", {float(g["betas"][0]) for g in groups}),
        ("beta_2", "betas[1]", {float(g["betas"][1]) for g in groups}),
        ("epsilon", "eps", {float(g["eps"]) for g in groups}),
        (
            "weight_decay",
            "weight_decay, other than 0",
            {float(g["weight_decay"]) for g in groups} - {0.0},
        ),
    ):
        if len(values) > 1 and what not in given:
            raise ValueError(
                f"The groups differ in {name}: "
                f"{', '.join(map(str, sorted(values)))}; AdamW has one value"
                + (f": give {what}." if what != "amsgrad" else ".")
            )


def _notes(groups: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    if any(
        group["weight_decay"] and "decoupled_weight_decay" not in group
        for group in groups
    ):
        return (
            "written by an old PyTorch, whose Adam and AdamW have the same "
            "files: if it was Adam, which adds its weight decay to the "
            "gradient, AdamW cannot go on with it",
        )
    return ()


def _names(groups: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """`{what the state is filed under: name}`, in the order of the groups."""
    ids = [i for group in groups for i in group["params"]]
    if all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
        return dict(zip(ids, names, strict=True))
    if all(isinstance(i, str) for i in ids):
        return {i: i for i in ids}
    return {i: str(position) for position, i in enumerate(ids)}


def _slots(
    state: Mapping[Any, Mapping[str, Any]], names: Mapping[Any, str]
) -> tuple[dict[str, int], dict[str, dict[str, np.ndarray]]]:
    """The steps and the slots by name; a parameter never stepped has none."""
    steps: dict[str, int] = {}
    slots: dict[str, dict[str, np.ndarray]] = {}
    for i, name in names.items():
        slots[name] = {}
        if not (held := state.get(i)):
            continue
        if missing := {"step", "exp_avg", "exp_avg_sq"} - set(held):
            raise ValueError(
                "This is no state of PyTorch's Adam or AdamW: that of "
                f"parameter {name!r} has no {min(missing)!r}."
            )
        steps[name] = round(float(held["step"]))
        slots[name] = {
            slot: _array(held[key])
            for key, slot in _SLOTS.items()
            if key in held
        }
    return steps, slots


def _array(tensor: Any) -> np.ndarray:
    """As NumPy knows it: float32 for the smaller types, float64 as it is."""
    tensor = tensor.detach()
    return (tensor if tensor.element_size() == 8 else tensor.float()).numpy()


def _align(
    slots: Mapping[str, dict[str, np.ndarray]],
    steps: Mapping[str, int],
    iterations: int,
    settings: Mapping[str, float],
) -> tuple[str, ...]:
    """Gives every parameter the moments it would have after `iterations`.

    PyTorch corrects the bias by each parameter's own count, AdamW by one for
    all. The corrected moments are kept. Says which those were.
    """
    behind = {n: step for n, step in steps.items() if step < iterations}
    for name, step in behind.items():
        for slot, value in slots[name].items():
            beta = settings["beta_1" if slot == "momentum" else "beta_2"]
            factor = correction(beta, iterations) / correction(beta, step)
            slots[name][slot] = value * np.asarray(factor, value.dtype)
    return tuple(
        f"the step of {name}, {step}: it counts as {iterations}, its moments "
        "are scaled to that, and its next steps differ from PyTorch's"
        for name, step in behind.items()
    )


def _by_name(
    groups: Sequence[Mapping[str, Any]], names: Mapping[Any, str], values: Any
) -> dict[str, Any]:
    """Per parameter what `values` says per group."""
    pairs = zip(groups, values(groups), strict=True)
    return {names[i]: value for group, value in pairs for i in group["params"]}


def _decays(groups: Sequence[Mapping[str, Any]]) -> list[bool]:
    return [bool(group["weight_decay"]) for group in groups]


def _multipliers(groups: Sequence[Mapping[str, Any]]) -> list[float]:
    rates = [float(group["lr"]) for group in groups]
    return [rate / max(rates) if max(rates) else 1.0 for rate in rates]


def _weights(loaded: Any, names: Any) -> dict[str, np.ndarray]:
    """Those of the model's `state_dict` in the same file, if there is one."""
    names = list(names)
    for value in loaded.values():
        if isinstance(value, Mapping) and all(name in value for name in names):
            return {name: _array(value[name]) for name in names}
    return {}
