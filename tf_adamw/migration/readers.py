"""Which reader reads which optimizer's file."""

from __future__ import annotations

import importlib
from typing import Any

from tf_adamw import arguments
from tf_adamw.migration.source import SETTINGS, Source

# {source: module}: each has `read(path, source, given)`. They are imported
# when they are used: some need a package of their own.
SOURCES = {
    "keras": "keras3",
    "tf_keras": "tf_keras",
    "tf_keras_legacy": "legacy",
    "tfa_adamw": "legacy",
    "adam_weight_decay": "legacy",
    "tf1": "name_based",
    "bert": "name_based",
    "sonnet": "sonnet",
    "torch": "torch_adamw",
    "optax": "optax_adamw",
}


def read(source: str, path: str, **given: Any) -> Source:
    """Reads the state of another optimizer from its file.

    Args:
      source: one of `SOURCES`.
      path: of the file, or the prefix of the checkpoint.
      **given: settings that the file does not tell, or that are to count
        instead of those that it tells: `learning_rate`, `weight_decay`,
        `beta_1`, `beta_2`, `epsilon`, as the source defines them, and
        `gradient_accumulation_steps`. Those that are neither told nor given
        are the source library's defaults.

    Returns:
      A `Source`.

    Raises:
      ValueError: if the source is not known, a setting is out of its range, or
        the file is not one of the source's.
      TypeError: if a setting is not known.
      ImportError: if the package that reads the file is missing.
    """
    if source not in SOURCES:
        raise ValueError(
            f"source must be one of {', '.join(SOURCES)}, got {source!r}."
        )
    settings = (*SETTINGS, "gradient_accumulation_steps")
    for name in given:
        if name not in settings:
            raise TypeError(
                f"{name!r} is no setting; there are {', '.join(settings)}."
            )
    for name in SETTINGS:
        if name in given:
            given[name] = arguments.number(name, given[name])
    module = importlib.import_module(f"tf_adamw.migration.{SOURCES[source]}")
    return module.read(str(path).removesuffix(".index"), source, given)
