"""Regular expressions on keys: what is decayed, and at which rate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw.keys import own_name, raw_variable
from tf_adamw.registry import Parameter

Exclusion = str | Any | Callable[[str], bool]


class Exclusions:
    """What `exclude_from_weight_decay` was given, in the order given."""

    def __init__(self, given: Any = None) -> None:
        self.patterns: list[str] = []
        self.variables: list[Any] = []
        self.predicate: Callable[[str], bool] | None = None
        if given is None:
            return
        if _is_predicate(given):
            self.predicate = given
            return
        entries = [given] if isinstance(given, str) else list(given)
        self.patterns = [e for e in entries if isinstance(e, str)]
        self.variables = [e for e in entries if not isinstance(e, str)]
        _check("exclude_from_weight_decay", self.patterns, self.variables)

    def extended(self, patterns: Iterable[str], variables: Iterable[Any]):
        """Returns a copy with more entries."""
        copy = Exclusions()
        copy.predicate = self.predicate
        copy.patterns = [*self.patterns, *patterns]
        copy.variables = [*self.variables, *variables]
        _check("exclude_from_weight_decay", copy.patterns, copy.variables)
        return copy

    def resolve(self, parameters: Sequence[Parameter]) -> set[str]:
        """Returns the keys of the parameters that are not decayed.

        Raises:
          ValueError: if a pattern or a variable matches no parameter.
        """
        excluded = set()
        for pattern in self.patterns:
            matched = _matched("exclude_from_weight_decay", pattern, parameters)
            excluded.update(parameter.key for parameter in matched)
        by_ref = {p.variable.ref(): p.key for p in parameters}
        for variable in self.variables:
            ref = raw_variable(variable).ref()
            if ref not in by_ref:
                raise ValueError(
                    "exclude_from_weight_decay was given the variable "
                    f"{own_name(variable)!r}, which is not one of those "
                    f"passed to build(): {_listed(parameters)}."
                )
            excluded.add(by_ref[ref])
        if self.predicate is not None:
            excluded.update(p.key for p in parameters if self.predicate(p.key))
        return excluded


def resolve_multipliers(
    multipliers: Mapping[str, Any], parameters: Sequence[Parameter]
) -> dict[str, float | tf.Variable]:
    """Returns the factor of each key that a pattern matches, the first's.

    Raises:
      ValueError: if a pattern matches no parameter.
    """
    factors: dict[str, float | tf.Variable] = {}
    for pattern, factor in multipliers.items():
        for parameter in _matched(
            "learning_rate_multipliers", pattern, parameters
        ):
            factors.setdefault(parameter.key, factor)
    return factors


def check_pattern(argument: str, pattern: Any) -> None:
    """Refuses what is not a regular expression.

    Raises:
      ValueError: naming the argument and the pattern.
    """
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{argument}: {pattern!r} is not a regular expression ({error})."
        ) from None


def _check(
    argument: str, patterns: Iterable[str], variables: Iterable[Any]
) -> None:
    for pattern in patterns:
        check_pattern(argument, pattern)
    for variable in variables:
        raw_variable(variable)


def _is_predicate(given: Any) -> bool:
    return callable(given) and not isinstance(given, (tf.Variable, str))


def _matched(
    argument: str, pattern: str, parameters: Sequence[Parameter]
) -> list[Parameter]:
    matched = [
        parameter
        for parameter in parameters
        if re.search(pattern, parameter.key)
        or re.search(pattern, parameter.name)
    ]
    if not matched:
        raise ValueError(
            f"{argument}: the pattern {pattern!r} matches none of the "
            f"variables {_listed(parameters)}."
        )
    return matched


def _listed(parameters: Sequence[Parameter], limit: int = 20) -> str:
    keys = [parameter.key for parameter in parameters]
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
