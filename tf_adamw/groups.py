"""Groups of variables: factors on rate and decay, and norms to report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import arguments
from tf_adamw.keys import as_list, few, unwrapped
from tf_adamw.patterns import Selection, check_pattern
from tf_adamw.registry import Parameter

Factor = float | tf.Variable


class Multipliers:
    """Factors for groups of variables.

    A plain object: a `tf.Module` would save variables in a dict of its own.

    Args:
      argument: its name, for the messages.
      given: a dict, or a list of pairs, of what selects variables (see
        `Selection`) and factors: numbers of at least 0, or scalar variables.

    Raises:
      ValueError: if it is neither, or an entry is invalid.
    """

    def __init__(self, argument: str, given: Any = None) -> None:
        self.argument = argument
        self.entries = [
            (Selection(argument, selector), _factor(argument, selector, factor))
            for selector, factor in _pairs(argument, given)
        ]

    def resolve(self, parameters: Sequence[Parameter]) -> dict[str, Factor]:
        """Returns the factor of each key: that of the first entry it fits.

        Raises:
          ValueError: if a pattern or a variable matches no parameter, or an
            entry none that the ones before it leave.
        """
        resolved: dict[str, Factor] = {}
        for selection, factor in self.entries:
            keys = selection.resolve(parameters)
            if keys and keys <= set(resolved):
                raise ValueError(
                    f"{self.argument}: {selection} selects only variables that "
                    "entries before it select, and the first counts: "
                    f"{few(sorted(keys), 5)}."
                )
            resolved.update(dict.fromkeys(keys - set(resolved), factor))
        return resolved

    def variables(self) -> Iterator[tuple[str, tf.Variable]]:
        """The factors that are variables, and names to tell them apart."""
        for place, (selection, factor) in enumerate(self.entries):
            if isinstance(factor, tf.Variable):
                what = ", ".join([str(place), *map(repr, selection.patterns)])
                yield f"{self.argument}[{what}]", factor

    def current(
        self, factor: Factor, live: Mapping[str, tf.Tensor]
    ) -> float | tf.Tensor | tf.Variable:
        """Returns the value of a factor where the step was given one."""
        for name, variable in self.variables():
            if variable is factor:
                return live.get(name, factor)
        return factor


def is_zero(factor: Factor) -> bool:
    """Whether a factor is 0 for good; one in a variable can change."""
    return not isinstance(factor, tf.Variable) and factor == 0.0


def layerwise_decay(rate: float, layers: Sequence[str]) -> dict[str, float]:
    """Returns `learning_rate_multipliers` that fall from layer to layer.

    ```none
    multiplier of layers[i] = rate^(len(layers) - 1 - i)
    ```

    The last layer, and variables that match no pattern, keep the whole rate.

    Args:
      rate: in (0, 1].
      layers: regular expressions from the input's layer to the output's. Where
        a key fits several the first counts: "block_1/", for "block_1" is in
        "block_10" too.

    Raises:
      ValueError: if the rate is out of range, or no layer or one twice.

    References:
      Clark et al., 2020 (ELECTRA): https://arxiv.org/abs/2003.10555
      Bao et al., 2022 (BEiT): https://arxiv.org/abs/2106.08254
    """
    rate = arguments.number("layerwise_decay: rate", rate)
    layers = [layers] if isinstance(layers, str) else layers
    layers = as_list("layerwise_decay: layers", layers)
    for layer in layers:
        check_pattern("layerwise_decay: layers", layer)
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(
            f"layerwise_decay: layers must be different patterns, got {layers}."
        )
    last = len(layers) - 1
    return {layer: rate ** (last - i) for i, layer in enumerate(layers)}


class NormGroups:
    """The groups of variables whose norms `apply` returns.

    A plain object, as `Multipliers`.

    Args:
      given: a dict of names and of what selects variables, or None.

    Raises:
      ValueError: if it is neither.
    """

    def __init__(self, given: Any = None) -> None:
        argument = "norm_groups"
        given = {} if given is None else given
        if not isinstance(given, Mapping) or not all(
            isinstance(name, str) for name in given
        ):
            raise ValueError(
                f"{argument} must be a dict of names and patterns, got "
                f"{given!r}."
            )
        self.selections = {
            name: Selection(argument, given[name]) for name in given
        }

    @property
    def names(self) -> list[str]:
        """Of the groups."""
        return list(self.selections)

    def resolve(self, parameters: Sequence[Parameter]) -> dict[str, list[str]]:
        """Returns for each key the names of its groups.

        Raises:
          ValueError: if a pattern or a variable matches no parameter.
        """
        groups: dict[str, list[str]] = {p.key: [] for p in parameters}
        for name, selection in self.selections.items():
            for key in selection.resolve(parameters):
                groups[key].append(name)
        return groups


def _pairs(argument: str, given: Any) -> list[tuple[Any, Any]]:
    pairs = given.items() if isinstance(given, Mapping) else given
    pairs = [] if pairs is None else pairs
    if not isinstance(pairs, Iterable) or isinstance(pairs, str):
        pairs = [given]
    pairs = list(pairs)
    if not all(isinstance(p, (tuple, list)) and len(p) == 2 for p in pairs):
        raise ValueError(
            f"{argument} must be a dict of patterns and factors, or a list of "
            f"pairs of a pattern, a variable or a predicate and a factor, got "
            f"{given!r}."
        )
    return pairs


def _factor(argument: str, selector: Any, factor: Any) -> Factor:
    factor = unwrapped(factor)
    what = f"{argument}: the factor of {selector!r}"
    held = isinstance(factor, tf.Variable)
    if held:
        arguments.floating_scalar(what, factor)
        if not tf.executing_eagerly():
            return factor
    plain = arguments.plain_number(factor)
    if plain is None or not arguments.accepts(arguments.FROM_0, plain):
        raise ValueError(
            f"{what} must be {arguments.FROM_0.text} or a tf.Variable, got "
            f"{factor!r}."
        )
    return factor if held else plain
