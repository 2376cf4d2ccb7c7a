"""Names that Keras has numbered: "dense", "dense_1", "dense_2"."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any


def named_by_hand(value: Any) -> bool:
    """Whether a layer's name is not the one that Keras gives it: "dense_1"."""
    name = getattr(value, "name", None)
    if not isinstance(name, str) or not hasattr(value, "variables"):
        return False
    kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", type(value).__name__)
    kind = re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
    return re.fullmatch(rf"{kind}(_[1-9]\d*)?", name) is None


def paired(
    here: Mapping[str, str], there: Mapping[str, str]
) -> tuple[dict[str, str | None], set[str]]:
    """Pairs names that are the same up to their numbers.

    Args:
      here: `{child: name}`, in order.
      there: the same of the checkpoint.

    Returns:
      `{child here: child there}`, None where names and order do not agree and
      nothing decides; and the children there of these names.
    """
    pairs: dict[str, str | None] = {}
    taken = set()
    groups = _by_words(there)
    for words, own in _by_words(here).items():
        others = groups.get(words, {})
        children, children_there = list(own), list(others)
        matched, sure = _matched([*own.values()], [*others.values()])
        if not sure:
            pairs |= dict.fromkeys(children)
            taken.update(children_there)
        for n, m in matched:
            pairs[children[n]] = children_there[m]
            taken.add(children_there[m])
    return pairs, taken


def alike(one: str, other: str) -> bool:
    """Whether names differ in numbers alone, or in what is before them.

    Keras leaves a model's name out of the names in a model that it loads.
    """
    parts, more = sorted((one.split("/"), other.split("/")), key=len)
    ends = zip(reversed(parts), reversed(more), strict=False)
    return all(_split(a)[0] == _split(b)[0] for a, b in ends)


def _split(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The words of a name, and the number behind each: 0 if there is none."""
    words: list[str] = []
    numbers: list[int] = []
    numbered = True
    for word in re.split("[/_]", name):
        if word.isdecimal() and not numbered:
            numbers[-1] = int(word)
            numbered = True
        else:
            words.append(word)
            numbers.append(0)
            numbered = False
    return tuple(words), tuple(numbers)


def _by_words(
    names: Mapping[str, str],
) -> dict[tuple[str, ...], dict[str, tuple[int, ...]]]:
    groups: dict[tuple[str, ...], dict[str, tuple[int, ...]]] = {}
    for child, name in names.items():
        words, numbers = _split(name)
        groups.setdefault(words, {})[child] = numbers
    return groups


def _matched(
    here: Sequence[tuple[int, ...]], there: Sequence[tuple[int, ...]]
) -> tuple[list[tuple[int, int]], bool]:
    """Pairs places in lists of numbers.

    Returns:
      The pairs, and whether they are certain: each number has moved by the same
      step; or those at one place are the same, or are in one of the lists only;
      or there are gaps, which Keras leaves none of, so that somebody has given
      these names.
    """
    if not there:
        return [], True
    ranks = list(zip(here, there, strict=False))
    by_rank = [(n, n) for n in range(len(ranks))]
    as_many = len(here) == len(there)
    steps = {tuple(map(operator.sub, a, b)) for a, b in ranks}
    if len(steps) == 1 and (as_many or not any(map(any, steps))):
        return by_rank, True
    both = [a for a in here if a in there]
    if as_many and all(a == b or not {a, b} & {*both} for a, b in ranks):
        return by_rank, True
    once = 0 < len(both) == len({*both})
    same_order = both == [b for b in there if b in here]
    if not as_many and once and same_order and len(steps) > 1:
        return [(here.index(a), there.index(a)) for a in both], True
    return [(n, n) for n, (a, b) in enumerate(ranks) if a == b], False
