"""The arrays in an Orbax checkpoint, or in NumPy's `.npz`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

_ORBAX = "_METADATA"


def read(path: str) -> dict[str, np.ndarray]:
    """Returns `{path: array}`; the paths are JAX's, joined by "/".

    Args:
      path: of a file of NumPy or a directory of Orbax.

    Raises:
      ValueError: if it is neither, or damaged.
      ImportError: if Orbax is missing.
    """
    return _orbax(path) if os.path.isdir(path) else _npz(path)


def _npz(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # a damaged one has many ways to fail
        # NumPy's advice would be to unpickle what is in it.
        reason = str(error).partition("\n")[0]
        if "pickle" in reason:
            reason = "it is a file of another kind"
        raise ValueError(
            f"{path!r} is neither an Orbax checkpoint nor a file of "
            f"numpy.savez: {reason}"
        ) from error


def _orbax(path: str) -> dict[str, np.ndarray]:
    try:
        import jax
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError(
            "Reading Orbax's checkpoints needs Orbax: "
            "pip install orbax-checkpoint"
        ) from error
    folder = _folder(path)
    try:
        checkpointer = ocp.PyTreeCheckpointer()
        metadata = checkpointer.metadata(folder).item_metadata
        if metadata is None:
            raise ValueError(f"what {_ORBAX} describes is not there")
        tree = metadata.tree
        # To NumPy, wherever it was: not to the devices that saved it.
        arguments = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
        )
        restored = checkpointer.restore(folder, restore_args=arguments)
    except Exception as error:  # a damaged one has many ways to fail
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"Cannot read {folder!r}, it is damaged or incomplete: {reason}"
        ) from error
    return dict(_leaves(restored, ""))


def _folder(path: str) -> str:
    """The directory itself, or the one item that a manager's step has."""
    path = os.path.abspath(path)
    if os.path.exists(os.path.join(path, _ORBAX)):
        return path
    items = [
        os.path.join(path, name)
        for name in sorted(os.listdir(path))
        if os.path.exists(os.path.join(path, name, _ORBAX))
    ]
    if len(items) == 1:
        return items[0]
    steps = [name for name in os.listdir(path) if name.isdecimal()]
    hint = (
        f" It has the steps {', '.join(sorted(steps, key=int))}: give one, "
        f"{os.path.join(path, max(steps, key=int))!r}."
        if steps
        else ""
    )
    raise ValueError(
        f"{path!r} is no Orbax checkpoint: it, or one directory in it, has to "
        f"have {_ORBAX!r}; {len(items)} have.{hint}"
    )


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, np.ndarray]]:
    items: Iterable[tuple[Any, Any]]
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        if tree is not None:
            yield path, np.asarray(tree)
        return
    for name, item in items:
        yield from _leaves(item, f"{path}/{name}" if path else str(name))
