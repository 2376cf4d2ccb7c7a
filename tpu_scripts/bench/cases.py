"""The sets of variables that the optimizers are run on."""

import math

from tpu_scripts.aot import shapes

Shapes = shapes.Shapes


def _one() -> Shapes:
    return {"kernel": (8192, 8192)}


def _thousand() -> Shapes:
    return {f"kernel_{i}": (64, 16) for i in range(1000)}


def _scalars() -> Shapes:
    return {f"scalar_{i}": () for i in range(10_000)}


_MADE = {"one": _one, "thousand": _thousand, "scalars": _scalars}
NAMES = (*shapes.NAMED, *_MADE)


def read(name: str) -> Shapes:
    """Returns the shapes of a case by key.

    Args:
      name: one of `NAMES`, or a JSON file as `shapes.read` takes it.

    Raises:
      ValueError: it is neither.
    """
    if name in _MADE:
        return _MADE[name]()
    try:
        return shapes.read(name)
    except ValueError as error:
        raise ValueError(
            f"--cases={name} is not one of {', '.join(NAMES)}, nor a JSON "
            f'file like {{"kernel": [768, 3072]}}: {error.__cause__}'
        ) from error


def count(shapes_by_key: Shapes) -> int:
    """The number of parameters."""
    return sum(math.prod(shape) for shape in shapes_by_key.values())
