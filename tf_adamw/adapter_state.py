"""The state in the files of Keras 3 and tf_keras: by name, not by position."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_adamw.adamw import AdamW
from tf_adamw.keys import few, raw_variable
from tf_adamw.registry import Parameter
from tf_adamw.scalar_state import FORMAT_VERSION
from tf_adamw.slots import start_again

_VERSION = "format_version"


def in_order(adamw: AdamW, variables: Sequence[Any]) -> list[Parameter]:
    """All parameters: those of the variables first, in their order."""
    places = {raw_variable(v).ref(): n for n, v in enumerate(variables)}
    return sorted(
        adamw.parameters,
        key=lambda p: places.get(p.variable.ref(), len(places)),
    )


def named_state(
    adamw: AdamW, parameters: Sequence[Parameter]
) -> dict[str, tf.Variable]:
    """All variables of the state, by names that no option moves.

    Args:
      adamw: the optimizer.
      parameters: all of its own, in the order that numbers them.

    Returns:
      `format_version`, `counters/<name>`, `hyperparameters/<name>` and
      `slots/<number>/<key>/<slot>`.
    """
    named = {_VERSION: adamw.format_version}
    for part in ("counters", "hyperparameters"):
        children = tf.train.TrackableView.children(getattr(adamw, part))
        for name, child in sorted(children.items()):
            if isinstance(child, tf.Variable):
                named[f"{part}/{name}"] = child
    for number, parameter in enumerate(parameters):
        for slot, variable in parameter.slots.items():
            named[f"slots/{number}/{parameter.key}/{slot}"] = variable
    return named


def one_line(name: str) -> str:
    """A name without "/", which would make groups in an HDF5 file."""
    return name.replace("/", "|")


@dataclasses.dataclass(frozen=True)
class SavedState:
    """What a file holds: arrays by names of `named_state`."""

    values: dict[str, np.ndarray]

    @classmethod
    def read(cls, store: Any, owner: str) -> SavedState | None:
        """Reads all of it; None, with a warning, if there is nothing.

        Raises:
          ValueError: if it is no state of AdamW's.
        """
        names = list(store.keys())  # a store is no iterable
        values = {name: np.asarray(store[name]) for name in names}
        if not values:
            warnings.warn(
                f"The file has no state of the optimizer {owner!r}, which "
                "stays as it is.",
                stacklevel=3,
            )
            return None
        version = values.get(_VERSION)
        if version is None:
            raise ValueError(
                f"The file has the state of another optimizer than "
                f"tf_adamw's ({few(sorted(values))}): tf_adamw.migration "
                "reads Keras's, and one in a LossScaleOptimizer is loaded with "
                "the policy mixed_float16, as it was saved."
            )
        if not 0 < int(version) <= FORMAT_VERSION:
            raise ValueError(
                f"format_version is {int(version)} in the file; this version "
                f"of tf_adamw reads up to {FORMAT_VERSION}."
            )
        return cls(values)

    def restore(self, adamw: AdamW, parameters: Sequence[Parameter]) -> None:
        """Gives a built optimizer these values.

        What the file lacks, because of an option that was switched on since,
        starts again, with a warning.

        Args:
          adamw: the optimizer.
          parameters: as for `named_state`.

        Raises:
          ValueError: if it was saved for other variables.
        """
        own = named_state(adamw, parameters)
        source, by_order = self._sources(own)
        for name, variable in own.items():
            saved = self.values.get(source[name])
            if saved is not None and saved.shape != tuple(variable.shape):
                raise ValueError(
                    f"{name} has the shape {saved.shape} in the file and "
                    f"{tuple(variable.shape)} here: it was saved for another "
                    "model."
                )
        if by_order:
            warnings.warn(
                "The file has other keys than the model. Their order matched "
                f"them: {few(_keys(map(one_line, own)))} have the state of "
                f"{few(_keys(self.values))}.",
                stacklevel=2,
            )
        lacking = [n for n in own if source[n] not in self.values]
        for name, variable in own.items():
            if name not in lacking:
                variable.assign(self.values[source[name]])
        _start_again(adamw, parameters, lacking)
        unused = sorted({*self.values} - {*source.values()})
        # Of an optimizer that was not built yet there is no slot.
        if unused or (lacking and _keys(self.values)):
            warnings.warn(
                "The file was saved with other options or variables. It lacks: "
                f"{few(lacking)}. It has more: {few(unused)}.",
                stacklevel=2,
            )

    def _sources(
        self, own: dict[str, tf.Variable]
    ) -> tuple[dict[str, str], bool]:
        """For each own name, the one in the file; whether by the order.

        Keys find each other; a layer that is trainable now, or was then, may
        be missing. If they are others, as where Keras has numbered the layers
        anew, the variables' order does, as it does for the weights.
        """
        here, there = _keys(map(one_line, own)), _keys(self.values)
        alike = matching_keys(here, there)
        by_order = len(alike) not in (len(here), len(there))
        if not by_order:
            places = {here[k]: (there[a], a) for k, a in alike.items()}
        elif len(here) == len(there):
            by_number = {number: key for key, number in there.items()}
            places = {n: (n, by_number[n]) for n in here.values()}
        else:
            raise ValueError(
                f"The file has the optimizer's state for {len(there)} "
                f"variables, the model has {len(here)}."
            )
        sources = {}
        for name in own:
            sources[name] = one_line(name)
            if name.startswith("slots/"):
                number, key = places.get(_slot(one_line(name))[0], ("", ""))
                slot = name.rsplit("/", 1)[1]
                sources[name] = f"slots|{number}|{key}|{slot}"
        return sources, by_order


def matching_keys(here: Iterable[str], there: Iterable[str]) -> dict[str, str]:
    """The saved keys of own keys, where there is no doubt.

    Keras may leave the model's name out of the paths of a model that it loads.
    """

    def ends(key: str, end: str) -> bool:
        return f"|{one_line(key)}".endswith(f"|{one_line(end)}")

    there, found = {*there}, {}
    for key in here:
        fitting = {key} & there or {
            k for k in there if ends(k, key) or ends(key, k)
        }
        if len(fitting) == 1:
            found[key] = fitting.pop()
    return found if len({*found.values()}) == len(found) else {}


def _slot(name: str) -> tuple[int, str]:
    """The number and the key in the name of a slot."""
    _, number, rest = name.split("|", 2)
    return int(number), rest.rsplit("|", 1)[0]


def _keys(names: Any) -> dict[str, int]:
    found = (_slot(name) for name in names if name.startswith("slots|"))
    return {key: number for number, key in found}


def _start_again(
    adamw: AdamW, parameters: Sequence[Parameter], lacking: list[str]
) -> None:
    for number, parameter in enumerate(parameters):
        for slot in parameter.slots:
            if f"slots/{number}/{parameter.key}/{slot}" in lacking:
                start_again(parameter, slot)
    for name in lacking:
        if name.startswith("counters/"):
            counter = getattr(adamw.counters, name.split("/")[1])
            counter.assign(tf.zeros([], counter.dtype))
    if "hyperparameters/loss_scale" in lacking:
        scale = adamw.loss_scale_factor.initial
        adamw.hyperparameters.loss_scale.assign(scale)
