"""Step 4: the reduction of the gradients across replicas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tensorflow as tf


def check_strategy(variables: Iterable[tf.Variable] = ()) -> None:
    """Refuses a strategy whose replicas would drift apart.

    Args:
      variables: the current strategy is checked, and that of each of these.

    Raises:
      ValueError: if more than one replica is in sync.
    """
    strategies = [tf.distribute.get_strategy()]
    for variable in variables:
        if isinstance(variable, tf.distribute.DistributedValues):
            strategies.append(variable.distribute_strategy)
    for strategy in strategies:
        if strategy.num_replicas_in_sync == 1:
            continue
        raise ValueError(
            f"{type(strategy).__name__} has {strategy.num_replicas_in_sync} "
            "replicas in sync; this version of AdamW supports one: the default "
            "strategy, OneDeviceStrategy, or another strategy of one replica."
        )


def aggregate(gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the gradients reduced across replicas: of one, its own."""
    return list(gradients)
