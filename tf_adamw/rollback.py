"""All of a change to variables, or nothing of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from tf_adamw import placement, replicas, sharding
from tf_adamw.keys import unwrapped
from tf_adamw.object_graph import is_variable


@contextlib.contextmanager
def unchanged_on_failure(values: Iterable[Any]) -> Iterator[None]:
    """Gives variables back the values that they had, if the block fails."""
    variables = [
        copy
        for value in values
        if is_variable(value)
        for part in sharding.in_shards([unwrapped(value)])
        for copy in replicas.copies(part)
    ]
    before = [variable.numpy() for variable in variables]
    try:
        yield
    except BaseException:
        for variable, value in zip(variables, before, strict=True):
            with placement.beside(variable):
                variable.assign(value)
        raise
