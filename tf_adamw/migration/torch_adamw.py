"""PyTorch's AdamW, and its Adam as far as it does not decay.

The file is what `torch.save(optimizer.state_dict(), path)` writes, or holds
that under a key. It is loaded with `weights_only=True`: no object in it is
unpickled but tensors, numbers and what contains them.

    w <- w - lr * wd * w - lr * (m / (1 - beta_1^t)) / (root + eps)
    root = sqrt(v / (1 - beta_2^t)), with AMSGrad of the largest v so far
"""

from __future__ import annotations

import functools
import os
import pickle
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tf_adamw.migration import torch_groups
from tf_adamw.migration.source import Source, correction, count

_SLOTS = {
    "exp_avg": "momentum",
    "exp_avg_sq": "velocity",
    "max_exp_avg_sq": "velocity_max",
}
_FILE = "the file"


def read(path: str, source: str, given: Mapping[str, float]) -> Source:
    """Reads a file of PyTorch: see `readers.read`."""
    del source
    loaded = _loaded(path)
    state_dict = _state_dict(loaded, path)
    groups = state_dict["param_groups"]
    torch_groups.check(groups, given)
    names, positional = torch_groups.names(groups)
    settings = {**torch_groups.settings(groups), **given}
    state = state_dict["state"]
    steps, slots = _slots(state, names)
    iterations = max(steps.values(), default=0)
    ignored = _align(slots, steps, iterations, settings)
    coupled = groups[0].get("decoupled_weight_decay") is False
    weights = {} if positional else _weights(loaded, slots)
    by_name = functools.partial(torch_groups.by_name, groups, names)
    return Source(
        optimizer="PyTorch Adam" if coupled else "PyTorch AdamW",
        iterations=iterations,
        slots=slots,
        settings=settings,
        positional=positional,
        algorithm_1=True,
        decayed=by_name(torch_groups.decayed(groups)),
        multipliers=by_name(torch_groups.multipliers(groups)),
        decay_multipliers=by_name(
            torch_groups.decay_multipliers(groups, settings["weight_decay"])
        ),
        options={"amsgrad": True} if groups[0]["amsgrad"] else {},
        weights=next(iter(weights.values())) if len(weights) == 1 else {},
        weights_at=tuple(weights),
        output_first=True,
        ignored=(
            *ignored,
            *(f"state of {i!r}, of no group" for i in state if i not in names),
        ),
        unlike=tuple(torch_groups.unlike(groups, names, settings, given)),
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
    found = {
        name: value
        for name, value in _mappings(loaded, _FILE)
        if {"state", "param_groups"} <= set(value)
    }
    if len(found) == 1:
        return next(iter(found.values()))
    names = f": {', '.join(found)}" if found else ""
    raise ValueError(
        f"{path!r} holds {len(found)} optimizers{names}; it has to be one: "
        "write it by torch.save(optimizer.state_dict(), path)."
    )


def _mappings(
    value: Any, name: str, above: tuple[int, ...] = ()
) -> Iterator[tuple[str, Any]]:
    """All in a file but those of an optimizer, with their places in it."""
    if id(value) in above:  # it is in itself
        return
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        yield name, value
        if {"state", "param_groups"} <= set(value):
            return
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return
    for key, item in items:
        place = repr(key) if name == _FILE else f"{name}[{key!r}]"
        yield from _mappings(item, place, (*above, id(value)))


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
        counted = f"The step of {name!r} in PyTorch's file"
        steps[name] = count(held["step"], counted)
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
    all. The corrected moments are kept. Says which those were. A parameter
    whose only steps were skipped starts anew.
    """
    for name, step in steps.items():
        if step == 0 < iterations:
            slots[name].clear()
    behind = {n: step for n, step in steps.items() if 0 < step < iterations}
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


def _weights(
    loaded: Any, names: Collection[str]
) -> dict[str, dict[str, np.ndarray]]:
    """`{place in the file: weights}` of what has tensors of all names."""
    return {
        place: {name: _array(held[name]) for name in names}
        for place, held in _mappings(loaded, _FILE)
        if names and all(hasattr(held.get(n), "detach") for n in names)
    }
