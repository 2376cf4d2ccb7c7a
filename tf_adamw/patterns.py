"""Which variables an argument means: patterns, variables, a predicate."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import sharding
from tf_adamw.keys import as_list, few, own_name, raw_variable, unwrapped
from tf_adamw.registry import Parameter, listed

# A comment in a regular expression: made of the name of one variable.
_ONE = "(?#one)"


class Selection:
    """What an argument selects variables by.

    Args:
      argument: its name, for the messages.
      given: regular expressions, searched in the keys and, where none
        matches, in the variables' own names; variables; a list of both; or a
        predicate on the key.

    Raises:
      ValueError: if it is none of these.
    """

    def __init__(self, argument: str, given: Any = None) -> None:
        self.argument = argument
        self.patterns: list[str] = []
        self.variables: list[Any] = []
        self.predicate: Callable[[str], bool] | None = None
        if callable(given) and not is_variable(given):
            self.predicate = given
            return
        for entry in self._entries(given):
            if is_variable(entry):
                self.variables.append(entry)
            elif callable(entry):
                raise ValueError(
                    f"{argument}: a predicate is given alone, not in a list, "
                    f"got {entry!r}."
                )
            else:
                check_pattern(argument, entry)
                self.patterns.append(entry)

    def __str__(self) -> str:
        named = [*map(repr, self.patterns), *map(own_name, self.variables)]
        return ", ".join(named) or "the predicate"

    def extended(self, patterns: Any, variables: Any) -> Selection:
        """Returns a copy with more entries."""
        copy = Selection(
            self.argument,
            [*self._entries(patterns), *self._entries(variables)],
        )
        copy.predicate = self.predicate
        copy.patterns[:0] = self.patterns
        copy.variables[:0] = self.variables
        return copy

    def _entries(self, given: Any) -> list[Any]:
        """A list of patterns and variables; one alone is a list of one."""
        if given is None:
            return []
        if hasattr(given, "deref"):  # of a dict with `variable.ref()`
            given = given.deref()
        alone = isinstance(given, str) or is_variable(given)
        return [given] if alone else as_list(self.argument, given)

    def resolve(self, parameters: Sequence[Parameter]) -> set[str]:
        """Returns the keys of the parameters that are selected.

        Raises:
          ValueError: if a pattern or a variable matches no parameter, or a
            pattern of one variable, of a configuration, several.
        """
        selected: set[str] = set()
        for pattern in self.patterns:
            selected |= self._matched(pattern, parameters)
        by_ref = {p.variable.ref(): p.key for p in parameters}
        for variable in self.variables:
            first = next(iter(sharding.shards(variable)), variable)
            ref = raw_variable(first).ref()
            if ref not in by_ref:
                raise ValueError(
                    f"{self.argument} was given the variable "
                    f"{own_name(variable)!r}, which is not one of those "
                    f"passed to build(): {listed(parameters)}."
                )
            selected.add(by_ref[ref])
        if self.predicate is not None:
            selected.update(p.key for p in parameters if self.predicate(p.key))
        return selected

    def _matched(
        self, pattern: str, parameters: Sequence[Parameter]
    ) -> set[str]:
        # The keys come first, so that a pattern that fits one key alone
        # selects one variable alone.
        by_key = {p.key for p in parameters if re.search(pattern, p.key)}
        by_name = {p.key for p in parameters if re.search(pattern, p.name)}
        matched = by_key or by_name
        if pattern.endswith(_ONE):
            matched = by_name or by_key
            if len(matched) > 1:
                raise ValueError(
                    f"{self.argument}: {pattern!r} is of one variable, and "
                    f"{few(sorted(matched))} have its name: call build() "
                    "before get_config()."
                )
        if not matched:
            keys = [p.key for p in parameters]
            near = near_misses(pattern.removesuffix(_ONE), keys)
            raise ValueError(
                f"{self.argument}: the pattern {pattern!r} matches no variable."
                + (f" Near misses: {', '.join(map(repr, near))}." * bool(near))
                + f" Of: {listed(parameters)}."
            )
        return matched

    def as_patterns(
        self, parameters: Sequence[Parameter], name: Callable[[Any], str]
    ) -> list[str]:
        """Returns patterns; a variable becomes one that fits its key alone.

        Args:
          parameters: those built so far, from which a predicate selects.
          name: says the key of a variable.

        Raises:
          ValueError: if a predicate was given and nothing is built.
        """
        keys = [name(variable) for variable in self.variables]
        if self.predicate is not None:
            if not parameters:
                raise ValueError(
                    f"{self.argument} has a predicate, which has no JSON form: "
                    "call build() before get_config(), or give patterns."
                )
            every = dict.fromkeys(parameter.key for parameter in parameters)
            keys += [key for key in every if self.predicate(key)]
        one = "" if parameters else _ONE
        return [*self.patterns, *(f"^{re.escape(key)}${one}" for key in keys)]


def near_misses(pattern: str, keys: Sequence[str], limit: int = 3) -> list[str]:
    """Returns keys that somebody who wrote `pattern` may have meant.

    First those that differ in case and separators alone ("layer_norm" and
    "LayerNorm"), then those that have a part that is spelled alike.
    """
    import difflib  # milliseconds that only a mistake needs

    every = {key: {*re.split(r"[/.]", key), key} for key in keys}
    plain = {
        key: {re.sub(r"[^a-z0-9]", "", part.lower()) for part in parts}
        for key, parts in every.items()
    }
    words = sorted(set().union(*plain.values()))
    near: list[str] = []
    for alternative in pattern.lower().split("|"):
        literal = re.sub(r"\\[a-z]|[^a-z0-9]", "", alternative)
        if literal:
            found = [word for word in words if literal in word]
            found += difflib.get_close_matches(literal, words, limit, 0.7)
            near += [k for word in found for k in keys if word in plain[k]]
    return list(dict.fromkeys(near))[:limit]


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


def is_variable(given: Any) -> bool:
    """Whether it is a variable, Keras's and sharded ones included."""
    if sharding.shards(given):
        return True
    return isinstance(unwrapped(given), tf.Variable)
