"""Regular expressions on keys: what is decayed, and at which rate."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import sharding
from tf_adamw.keys import as_list, own_name, raw_variable, unwrapped
from tf_adamw.registry import Parameter, listed

ARGUMENT = "exclude_from_weight_decay"


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
        for entry in _entries(given):
            if _is_variable(entry):
                self.variables.append(entry)
            else:
                check_pattern(ARGUMENT, entry)
                self.patterns.append(entry)

    def extended(self, patterns: Any, variables: Any) -> Exclusions:
        """Returns a copy with more entries."""
        copy = Exclusions([*_entries(patterns), *_entries(variables)])
        copy.predicate = self.predicate
        copy.patterns[:0] = self.patterns
        copy.variables[:0] = self.variables
        return copy

    def resolve(self, parameters: Sequence[Parameter]) -> set[str]:
        """Returns the keys of the parameters that are not decayed.

        Raises:
          ValueError: if a pattern or a variable matches no parameter.
        """
        excluded = set()
        for pattern in self.patterns:
            matched = _matched(ARGUMENT, pattern, parameters)
            excluded.update(parameter.key for parameter in matched)
        by_ref = {p.variable.ref(): p.key for p in parameters}
        for variable in self.variables:
            first = next(iter(sharding.shards(variable)), variable)
            ref = raw_variable(first).ref()
            if ref not in by_ref:
                raise ValueError(
                    "exclude_from_weight_decay was given the variable "
                    f"{own_name(variable)!r}, which is not one of those "
                    f"passed to build(): {listed(parameters)}."
                )
            excluded.add(by_ref[ref])
        if self.predicate is not None:
            excluded.update(p.key for p in parameters if self.predicate(p.key))
        return excluded


class Multipliers:
    """What `learning_rate_multipliers` was given: patterns and factors.

    A plain object: a `tf.Module` would save variables in a dict of its own
    under the patterns.
    """

    def __init__(self, factors: Mapping[str, float | tf.Variable]) -> None:
        self.factors = factors

    def resolve(
        self, parameters: Sequence[Parameter]
    ) -> dict[str, float | tf.Variable]:
        """Returns the factor of each key: that of the first pattern it fits.

        Raises:
          ValueError: if a pattern matches no parameter.
        """
        resolved: dict[str, float | tf.Variable] = {}
        for pattern, factor in self.factors.items():
            for parameter in _matched(
                "learning_rate_multipliers", pattern, parameters
            ):
                resolved.setdefault(parameter.key, factor)
        return resolved


def check_pattern(argument: str, pattern: Any) -> None:
    """Refuses what is not a regular expression in a string.

    Raises:
      ValueError: naming the argument and the pattern.
    """
    try:
        if not isinstance(pattern, str):
            raise TypeError(f"a {type(pattern).__name__}")
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{argument}: {pattern!r} is not a regular expression ({error})."
        ) from None


def _entries(given: Any) -> list[Any]:
    """A list of patterns and variables; one alone is a list of one."""
    if given is None:
        return []
    alone = isinstance(given, str) or _is_variable(given)
    return [given] if alone else as_list(ARGUMENT, given)


def _is_predicate(given: Any) -> bool:
    return callable(given) and not _is_variable(given)


def _is_variable(given: Any) -> bool:
    if sharding.shards(given):
        return True
    return isinstance(unwrapped(given), tf.Variable)


def _matched(
    argument: str, pattern: str, parameters: Sequence[Parameter]
) -> list[Parameter]:
    # The keys come first, so that a pattern that fits one key alone excludes
    # one variable alone.
    matched = [p for p in parameters if re.search(pattern, p.key)] or [
        p for p in parameters if re.search(pattern, p.name)
    ]
    if not matched:
        raise ValueError(
            f"{argument}: the pattern {pattern!r} matches none of the "
            f"variables {listed(parameters)}."
        )
    return matched
