"""What the flags of `flags.py` accept."""

import math
import re
from collections.abc import Sequence
from typing import Any

from absl import flags

from tf_adamw.arguments import FROM_0, Range, accepts


class OrWord(flags.ArgumentParser):
    """Takes some words too, `none` as None."""

    def __init__(
        self, parser: flags.ArgumentParser, words: Sequence[str]
    ) -> None:
        self._parser, self._words = parser, words
        self.syntactic_help = either(parser.syntactic_help, words)

    def parse(self, argument: Any) -> Any:
        """Returns the word, None for `none`, or what the parser makes."""
        if argument in self._words:
            return None if argument == "none" else argument
        return self._parser.parse(argument)


def either(what: str, words: Sequence[str]) -> str:
    """The syntax or the range of a flag that takes some words too."""
    return " or ".join([", ".join([what, *words[:-1]]), *words[-1:]])


def in_range(
    allowed: Range, words: Sequence[str], value: float | str | None
) -> bool:
    """Whether a flag accepts the value, parsed: a number or a word."""
    if value is None or isinstance(value, str):
        return (value or "none") in words
    return accepts(allowed, value)


def check_patterns(patterns: list[str] | None) -> bool:
    """Returns True.

    Raises:
      ValidationError: one is not a regular expression.
    """
    for pattern in patterns or []:
        try:
            re.compile(pattern)
        except re.error as error:
            raise flags.ValidationError(
                f"{pattern!r} is not a regular expression: {error}"
            ) from error
    return True


def check_multipliers(items: list[str] | None) -> bool:
    """Returns True.

    Raises:
      ValidationError: one is not REGEX=FACTOR.
    """
    return check_patterns([multiplier(item)[0] for item in items or []])


def check_groups(items: list[str] | None) -> bool:
    """Returns True.

    Raises:
      ValidationError: one is not NAME=REGEX.
    """
    patterns = grouped(items or []).values()
    return check_patterns([pattern for same in patterns for pattern in same])


def grouped(items: Sequence[str]) -> dict[str, list[str]]:
    """Returns the patterns of each name, of NAME=REGEX.

    Raises:
      ValidationError: one is not of that form.
    """
    groups: dict[str, list[str]] = {}
    for item in items:
        name, separator, pattern = item.partition("=")
        if not separator or not name:
            raise flags.ValidationError(f"{item!r} is not NAME=REGEX")
        groups.setdefault(name, []).append(pattern)
    return groups


def multiplier(item: str) -> tuple[str, float]:
    """Returns REGEX=FACTOR as a pair.

    Raises:
      ValidationError: it is none.
    """
    pattern, separator, factor = item.rpartition("=")
    try:
        number = float(factor)
    except ValueError:
        number = math.nan
    if not separator or not accepts(FROM_0, number):
        raise flags.ValidationError(
            f"{item!r} is not REGEX=FACTOR with {FROM_0.text}"
        )
    return pattern, number
