"""Step 4: the reduction of the gradients across replicas."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def check_strategy() -> None:
    """Refuses a strategy whose replicas would drift apart.

    Raises:
      ValueError: if more than one replica is in sync.
    """
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync > 1:
        raise ValueError(
            f"{type(strategy).__name__} has {strategy.num_replicas_in_sync} "
            "replicas in sync; this version of AdamW supports one: the default "
            "strategy, OneDeviceStrategy, or another strategy of one replica."
        )


def aggregate(gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the gradients reduced across replicas: of one, its own."""
    return list(gradients)
