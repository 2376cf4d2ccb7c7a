"""Optax's adamw: its state in an Orbax checkpoint, or in NumPy's `.npz`.

Both are read as `{path: array}`; the paths are JAX's, joined by "/":
`0/count`, `0/mu/dense/kernel`, `0/nu/dense/kernel`. The node that has `count`,
`mu` and `nu` may be anywhere: in a training state, in `optax.chain`,
`optax.masked`, `optax.MultiSteps`, `optax.inject_hyperparams`.

    w <- w - lr * (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + eps)
           - lr * wd * w
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from tf_adamw.migration import optax_files
from tf_adamw.migration.source import Source, count

# Of `optax.adamw`, which has no default for the learning rate.
_DEFAULTS = {
    "weight_decay": 1e-4,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-8,
}
_INJECTED = {
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "b1": "beta_1",
    "b2": "beta_2",
    "eps": "epsilon",
}
# Of the same types, so that no file tells them apart.
_SAME_STATE = (
    "acprop",
    "adabelief",
    "adamax",
    "adamaxw",
    "adopt",
    "lamb",
    "nadam",
    "nadamw",
    "radam",
    "yogi",
)
# What optimistic_adam, muon, sophia and galore have beside that.
_OTHERS = re.compile(
    "(^|/)(is_initial_step|ns_coeffs|hessian_fn_state|base_optimizer_state)"
    "(/|$)"
)


def read(path: str, source: str, given: Mapping[str, float]) -> Source:
    """Reads a file of NumPy or a directory of Orbax: see `readers.read`."""
    del source
    values = optax_files.read(path)
    nodes = _nodes(values, path)
    iterations = _count(values, nodes)
    slots = _slots(values, nodes)
    told = _injected(values, nodes)
    return Source(
        optimizer="Optax adamw",
        iterations=iterations,
        slots=slots,
        settings={**_DEFAULTS, **told, **given},
        assumed=frozenset(_DEFAULTS) - set(told) - set(given),
        algorithm_1=True,
        # Of optax.multi_transform: each may have a rate of its own.
        multipliers=dict.fromkeys(slots) if len(nodes) > 1 else {},
        weights={
            name: _float(values[f"params/{name}"])
            for name in slots
            if f"params/{name}" in values
        },
        ignored=_unfinished(values),
        notes=tuple(_notes(values, nodes, {**told, **given})),
    )


def _notes(
    values: Mapping[str, np.ndarray],
    nodes: list[str],
    known: Mapping[str, float],
) -> Iterator[str]:
    if "weight_decay" not in known:
        yield (
            "optax.adam has the same state, and does not decay: if it was "
            "that, weight_decay=0.0"
        )
    yield (
        f"{', '.join(_SAME_STATE)} of Optax have the same state, too: AdamW "
        "cannot go on with theirs"
    )
    if any(
        value.dtype.itemsize == 2
        for node in nodes
        for name, value in values.items()
        if name.startswith(f"{node}mu/")
    ):
        yield (
            "mu has 2 bytes for each number: Optax computes its step with that "
            "precision, AdamW in float32"
        )
    if len(nodes) > 1:
        yield (
            f"{len(nodes)} states are joined: the files do not tell whether "
            "their rates and decays differ"
        )


def _nodes(values: Mapping[str, np.ndarray], path: str) -> list[str]:
    """The paths, "" or ending with "/", below which a state of Adam is."""
    nodes = sorted(
        node
        for node in (n.removesuffix("count") for n in values)
        if f"{node}count" in values
        and all(
            any(n.startswith(f"{node}{slot}/") for n in values)
            for slot in ("mu", "nu")
        )
    )
    if not nodes:
        raise ValueError(
            f"{path!r} has no state of optax.adamw: nowhere are count, mu/... "
            "and nu/... beside each other."
        )
    if others := [name for name in values if _OTHERS.search(name)]:
        raise ValueError(
            f"{path!r} has {others[0]!r}, which is no part of the state of "
            "optax.adamw: AdamW cannot go on with it."
        )
    for node in nodes:
        if any(name.startswith(f"{node}nu_max/") for name in values):
            raise ValueError(
                "optax.amsgrad takes the largest of the corrected velocities, "
                "AdamW of the velocities themselves."
            )
    return nodes


def _slots(
    values: Mapping[str, np.ndarray], nodes: list[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Of all nodes: `optax.multi_transform` has one for each label."""
    slots: dict[str, dict[str, np.ndarray]] = {}
    for node in nodes:
        for name, value in values.items():
            match = re.fullmatch(re.escape(node) + "(mu|nu)/(.+)", name)
            if match is None:
                continue
            slot = "momentum" if match[1] == "mu" else "velocity"
            if slot in slots.setdefault(match[2], {}):
                raise ValueError(
                    f"There are {len(nodes)} states of optax.adamw with a "
                    f"variable {match[2]!r}: save the one alone."
                )
            slots[match[2]][slot] = _float(value)
    for name, found in slots.items():
        if len(found) == 1:
            raise ValueError(f"{name!r} is in one of mu and nu only.")
        momentum, velocity = (a.shape for a in found.values())
        if momentum != velocity:
            raise ValueError(
                f"{name!r} has the shapes {momentum} and {velocity} in mu and "
                "nu: it is no state of optax.adamw (of novograd?)."
            )
    return slots


def _float(value: np.ndarray) -> np.ndarray:
    """As float32 but for float64; NumPy's files have bfloat16 as 2 bytes."""
    if value.dtype == np.dtype("V2"):
        value = value.view(tf.bfloat16.as_numpy_dtype)
    return value if value.dtype == np.float64 else value.astype(np.float32)


def _count(values: Mapping[str, np.ndarray], nodes: list[str]) -> int:
    counts = {
        count(values[f"{node}count"], f"{node}count in the file of Optax")
        for node in nodes
    }
    if len(counts) > 1:
        raise ValueError(
            "The states of optax.adamw have different counts: "
            f"{', '.join(map(str, sorted(counts)))}; AdamW has one."
        )
    return counts.pop()


def _injected(
    values: Mapping[str, np.ndarray], nodes: list[str]
) -> dict[str, float]:
    """The settings that `optax.inject_hyperparams` keeps in the state.

    Without those that are schedules: their value is that of the last step.
    """
    told: dict[str, float] = {}
    for name, value in values.items():
        match = re.fullmatch(r"(|.*/)hyperparams/(\w+)", name)
        if match is None or not any(
            node.startswith(f"{match[1]}inner_state/") for node in nodes
        ):
            continue
        state = f"{match[1]}hyperparams_states/{match[2]}/"
        if any(other.startswith(state) for other in values):
            continue
        # As it was written: 0.9, not the float32 next to it.
        number = float(str(value[()]))
        if match[2] == "eps_root" and number:
            raise ValueError(f"AdamW has no eps_root, and it is {number}.")
        if match[2] not in _INJECTED:
            continue
        if told.setdefault(_INJECTED[match[2]], number) != number:
            raise ValueError(
                f"The states of optax.adamw differ in {match[2]}: {number} "
                f"and {told[_INJECTED[match[2]]]}; AdamW has one value."
            )
    return told


def _unfinished(values: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """What of an unfinished window of `optax.MultiSteps` is lost."""
    return tuple(
        f"{name.removesuffix('mini_step')}acc_grads, of {int(value)} steps in "
        "an unfinished window: it starts again"
        for name, value in values.items()
        if re.fullmatch("(|.*/)mini_step", name) and value
    )
