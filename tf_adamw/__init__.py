"""AdamW for TensorFlow on accelerators."""

from tf_adamw import checkpoint, migration
from tf_adamw.adamw import AdamW
from tf_adamw.loss_scale import DynamicLossScale
from tf_adamw.step import ApplyResult

__version__ = "0.1.0"

__all__ = [
    "AdamW",
    "ApplyResult",
    "DynamicLossScale",
    "__version__",
    "checkpoint",
    "migration",
]
