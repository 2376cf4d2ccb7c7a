"""The groups of parameters in a `state_dict` of PyTorch's optimizers."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tf_adamw.keys import few

Groups = Sequence[Mapping[str, Any]]

# Of those optimizers that know betas, only Adam and AdamW have the last one.
_HELD = ("params", "lr", "betas", "eps", "weight_decay", "amsgrad")
# `{what AdamW calls it: (where a group has it, how it is got)}`
_ALIKE = {
    "beta_1": ("betas[0]", lambda group: float(group["betas"][0])),
    "beta_2": ("betas[1]", lambda group: float(group["betas"][1])),
    "epsilon": ("eps", lambda group: float(group["eps"])),
}


def check(groups: Any, given: Mapping[str, float]) -> None:
    """Refuses what no AdamW can go on with.

    Args:
      groups: the `param_groups`.
      given: settings that count instead of those of the groups.

    Raises:
      ValueError: saying what it is.
    """
    listed = isinstance(groups, (list, tuple)) and len(groups) > 0
    if not listed or not all(isinstance(group, Mapping) for group in groups):
        raise ValueError(
            "The param_groups of PyTorch's optimizer must be a list of one "
            f"dict or more, got {groups!r:.60}."
        )
    for group in groups:
        _check_group(group)
    found: dict[str, tuple[str, set[Any]]] = {
        "amsgrad": ("amsgrad", {bool(g["amsgrad"]) for g in groups}),
        **{n: (w, {of(g) for g in groups}) for n, (w, of) in _ALIKE.items()},
        "weight_decay": ("weight_decay, other than 0", _decay_rates(groups)),
    }
    for what, (name, values) in found.items():
        if len(values) > 1 and what not in given:
            raise ValueError(
                f"The groups differ in {name}: "
                f"{', '.join(map(str, sorted(values)))}; AdamW has one value"
                + (f": give {what}." if what != "amsgrad" else ".")
            )


def _check_group(group: Mapping[str, Any]) -> None:
    if missing := [name for name in _HELD if name not in group]:
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
    names = group.get("param_names", group["params"])
    if not all(isinstance(n, (list, tuple)) for n in (group["params"], names)):
        raise ValueError("A group's params and param_names must be lists.")
    if len(names) != len(group["params"]):
        raise ValueError(
            f"A group has {len(group['params'])} params and {len(names)} "
            "param_names: they must be as many."
        )


def _decay_rates(groups: Groups) -> set[float]:
    return {float(group["weight_decay"]) for group in groups} - {0.0}


def settings(groups: Groups) -> dict[str, float]:
    """The settings of all groups; of the rates and decays, the largest."""
    return {
        "learning_rate": max(float(group["lr"]) for group in groups),
        "weight_decay": max(float(group["weight_decay"]) for group in groups),
        **{name: of(groups[0]) for name, (_, of) in _ALIKE.items()},
    }


def names(groups: Groups) -> tuple[dict[Any, str], bool]:
    """Names the parameters, by their places where they are only counted.

    Args:
      groups: those checked.

    Returns:
      `{what the state is filed under: name}`, in the order of the groups, and
      whether the names are but places.

    Raises:
      ValueError: if two parameters have one name.
    """
    ids = [i for group in groups for i in group["params"]]
    _check_unique("params", ids)
    if all("param_names" in group for group in groups):
        found = [name for group in groups for name in group["param_names"]]
        _check_unique("param_names", found)
        return dict(zip(ids, found, strict=True)), False
    if all(isinstance(i, str) for i in ids):
        return {i: i for i in ids}, False
    return {i: str(place) for place, i in enumerate(ids)}, True


def _check_unique(what: str, values: Sequence[Any]) -> None:
    counts = collections.Counter(values)
    if repeated := [value for value, count in counts.items() if count > 1]:
        raise ValueError(
            f"The groups have {repeated[0]!r} more than once in their {what}."
        )


def by_name(
    groups: Groups, named: Mapping[Any, str], values: Sequence[Any]
) -> dict[str, Any]:
    """Per parameter what `values` has per group."""
    pairs = zip(groups, values, strict=True)
    return {named[i]: value for group, value in pairs for i in group["params"]}


def decayed(groups: Groups) -> list[bool]:
    """Which groups have a weight decay."""
    return [bool(group["weight_decay"]) for group in groups]


def multipliers(groups: Groups) -> list[float]:
    """The factors on the largest learning rate."""
    rates = [float(group["lr"]) for group in groups]
    return [rate / max(rates) if max(rates) else 1.0 for rate in rates]


def decay_multipliers(groups: Groups, decay: float) -> list[float]:
    """The factors on a weight decay that was given, where groups differ."""
    if not decay or len(_decay_rates(groups)) < 2:
        return [1.0 for _ in groups]
    return [float(group["weight_decay"]) / decay or 1.0 for group in groups]


def unlike(
    groups: Groups,
    named: Mapping[Any, str],
    followed: Mapping[str, float],
    given: Mapping[str, float],
) -> Iterator[str]:
    """Says which groups have a next step that is not AdamW's.

    Args:
      groups: those checked.
      named: what `names` returned.
      followed: the settings that count.
      given: those of them that were given.
    """
    old = [g for g in groups if "decoupled_weight_decay" not in g]
    if any(g["weight_decay"] for g in old) and "weight_decay" not in given:
        yield (
            "written by an old PyTorch, whose Adam has the same file and adds "
            "its weight decay to the gradient, which AdamW does not: if it was "
            f"AdamW, give weight_decay={followed['weight_decay']:g}"
        )
    for name, (where, of) in _ALIKE.items():
        if len({of(group) for group in groups}) < 2:
            continue
        for group in groups:
            if not math.isclose(of(group), followed[name], rel_tol=1e-6):
                yield (
                    f"{where} is {of(group):g} in the group of "
                    f"{few(named[i] for i in group['params'])}, {name} is "
                    f"{followed[name]:g}"
                )
