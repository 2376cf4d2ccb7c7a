"""AdamW for TensorFlow on accelerators."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from tf_adamw.adamw import AdamW
from tf_adamw.groups import layerwise_decay
from tf_adamw.loss_scale import DynamicLossScale
from tf_adamw.one_pass import fuse_on_cpu
from tf_adamw.step import ApplyResult
from tf_adamw.watching import write_summaries

if TYPE_CHECKING:
    from tf_adamw import checkpoint, migration

__version__ = "0.1.0"

__all__ = [
    "AdamW",
    "ApplyResult",
    "DynamicLossScale",
    "__version__",
    "checkpoint",
    "fuse_on_cpu",
    "layerwise_decay",
    "migration",
    "write_summaries",
]


def __getattr__(name: str) -> ModuleType:
    # Few programs need the first two, which take a third of the time that the
    # import would take. The others import Keras.
    if name in ("checkpoint", "migration", "keras", "tf_keras"):
        return importlib.import_module(f"tf_adamw.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
