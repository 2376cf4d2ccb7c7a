"""Which of the source's variables is which of the optimizer's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from tf_adamw.keys import few
from tf_adamw.migration.source import Source
from tf_adamw.registry import Parameter

Names = (
    Mapping[str, str | None]
    | Sequence[str | None]
    | Callable[[str], str | None]
)


def matched(
    source: Source, keys: Sequence[str], names: Names | None
) -> dict[str, str]:
    """Returns `{key: the source's name}`, as `import_state` describes it.

    Raises:
      ValueError: if `names` does not fit the source or the keys, two of the
        source's variables would be one, or none fits.
    """
    in_order = isinstance(names, Sequence)
    if in_order or (source.positional and not callable(names)):
        return _by_position(source, keys, names)
    if not callable(names):
        for name in names or {}:
            if name not in source.slots:
                raise ValueError(
                    f"names has {name!r}; the variables of {source.optimizer} "
                    f"are {few(source.slots, 5)}."
                )
    mapped: dict[str, str] = {}
    for name in source.slots:
        key = _key_of(source, name, keys, names)
        if key is None:
            continue
        if key in mapped:
            raise ValueError(
                f"Both {mapped[key]!r} and {name!r} of {source.optimizer} "
                f"would be {key!r}: say by names which one is."
            )
        mapped[key] = name
    if not mapped:
        raise ValueError(
            f"None of the variables of {source.optimizer} fits: it has "
            f"{few(source.slots, 5)}; this optimizer has {few(keys, 5)}. Say "
            "by names which is which."
        )
    return {key: mapped[key] for key in keys if key in mapped}


def _by_position(
    source: Source,
    keys: Sequence[str],
    names: Mapping[str, str] | Sequence[str] | None,
) -> dict[str, str]:
    positions = list(source.slots)
    if isinstance(names, Mapping):
        for position in names:
            if position not in source.slots:
                raise ValueError(
                    f"names has {position!r}; {source.optimizer} only counts "
                    f"its variables, {few(positions, 5)}: pass names, the list "
                    "of keys in its order."
                )
        order = [names.get(position) for position in positions]
    else:
        order = list(keys if names is None else names)
    if len(order) != len(positions):
        raise ValueError(
            f"{source.optimizer} has state for {len(positions)} variables, "
            f"and there are {len(order)}: pass names, the list of keys in its "
            "order."
        )
    unknown = [key for key in order if key is not None and key not in keys]
    if unknown:
        raise ValueError(f"names has {unknown[0]!r}; {_there_are(keys)}.")
    given = [key for key in order if key is not None]
    if len(set(given)) < len(given):
        raise ValueError("names has a key twice.")
    found = zip(order, positions, strict=True)
    return {key: position for key, position in found if key is not None}


def _key_of(
    source: Source,
    name: str,
    keys: Sequence[str],
    names: Mapping[str, str | None] | Callable[[str], str | None] | None,
) -> str | None:
    given = names(name) if callable(names) else (names or {}).get(name)
    if given is not None:
        if given not in keys:
            raise ValueError(
                f"names makes {given!r} of {name!r}; {_there_are(keys)}."
            )
        return given
    if callable(names) or name in (names or {}):
        return None
    alias = source.aliases.get(name)
    return _alike(name, keys) or (alias and _alike(alias, keys)) or None


def _alike(name: str, keys: Sequence[str]) -> str | None:
    """The one key that is the name, or ends it, or ends with it."""
    if name in keys:
        return name
    # "block/dense/kernel" ends with "dense/kernel", and with "kernel".
    endings = [key for key in keys if name.endswith(f"/{key}")]
    if endings:
        return max(endings, key=len)
    longer = [key for key in keys if key.endswith(f"/{name}")]
    return longer[0] if len(longer) == 1 else None


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The source's arrays by key, in the variables' shapes."""

    slots: dict[str, dict[str, np.ndarray]]
    weights: dict[str, np.ndarray]
    axes: dict[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def transposed(self) -> tuple[str, ...]:
        """The keys of those that were."""
        return tuple(self.axes)


def fitted(
    source: Source,
    mapped: Mapping[str, str],
    by_key: Mapping[str, Sequence[Parameter]],
    transpose: Mapping[str, Sequence[int]],
) -> Fitted:
    """Returns the slots and the weights by key, in the variables' shapes.

    Raises:
      ValueError: if a pattern of `transpose` matches no key, a shape does not
        fit, or a slot has a value that no Adam's has.
    """
    _check_patterns(transpose, mapped)
    found, wrong = Fitted({}, {}), []
    for key, name in mapped.items():
        shape = _shape(by_key[key])
        axes = _axes(key, len(shape), transpose)
        arrays = {**source.slots[name]}
        if name in source.weights:
            arrays["weights"] = source.weights[name]
        for slot, array in arrays.items():
            array = np.asarray(array)
            if axes and array.ndim == len(axes):
                array = np.transpose(array, axes)
            if array.shape != shape:
                wrong.append(f"{key} {shape} <- {name}/{slot} {array.shape}")
            arrays[slot] = array
        if "weights" in arrays:
            found.weights[key] = arrays.pop("weights")
        found.slots[key] = arrays
        if axes:
            found.axes[key] = axes
        elif source.output_first and shape[-2:-1] == shape[-1:] != ():
            found.notes.append(
                f"{key} is square, and no transpose matches it: "
                f"{source.optimizer} has kernels as [out, in]"
            )
    if wrong:
        raise ValueError(
            f"Shapes do not fit: {few(wrong, 5)}. Say by names which variable "
            "is which (None leaves one out), or by transpose how its axes go."
        )
    _check_values(source, mapped, found)
    return found


def _check_patterns(transpose: Iterable[str], keys: Iterable[str]) -> None:
    for pattern in transpose:
        if not any(re.search(pattern, key) for key in keys):
            raise ValueError(
                f"transpose has the pattern {pattern!r}, which matches none "
                f"of {few(keys, 5)}."
            )


def _check_values(
    source: Source, mapped: Mapping[str, str], found: Fitted
) -> None:
    """Refuses what would make every later weight NaN."""
    for key, slots in found.slots.items():
        for slot, array in slots.items():
            wrong = None
            if np.iscomplexobj(array):
                wrong = "complex numbers"
            elif not np.all(np.isfinite(np.asarray(array, np.float64))):
                wrong = "a number that is not finite"
            elif slot.startswith("velocity") and np.any(array < 0):
                wrong = "a negative number"
            if wrong:
                raise ValueError(
                    f"The {slot} of {mapped[key]!r} of {source.optimizer} has "
                    f"{wrong}: no Adam can go on from it."
                )


def _axes(
    key: str, rank: int, transpose: Mapping[str, Sequence[int]]
) -> Sequence[int] | None:
    for pattern, axes in transpose.items():
        if re.search(pattern, key) and rank == len(axes):
            return axes
    return None


def _shape(parameters: Sequence[Parameter]) -> tuple[int, ...]:
    first = parameters[0]
    shaped = first.variable if first.whole is None else first.whole
    return tuple(shaped.shape)


def _there_are(keys: Sequence[str]) -> str:
    return f"the keys are {few(keys, 5)}"
