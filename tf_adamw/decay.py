"""How the weight decay depends on the learning rate."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_adamw import arguments
from tf_adamw.keys import unwrapped

COUPLINGS = ("learning_rate", "schedule", "none")


def base_rate(coupling: str, learning_rate: Any, given: Any) -> float | None:
    """Returns what `decay_coupling="schedule"` divides the rate by.

    Args:
      coupling: `decay_coupling`.
      learning_rate: as the optimizer was given it.
      given: `base_learning_rate`, or None: then the number that the learning
        rate is, or what a schedule of Keras warms up to or starts from.

    Returns:
      A number; None for another coupling.

    Raises:
      ValueError: if it is not to be found, or not positive, or given for
        another coupling.
    """
    if coupling != "schedule":
        if given is not None:
            raise ValueError(
                'base_learning_rate is for decay_coupling="schedule", got '
                f"{given!r} with {coupling!r}."
            )
        return None
    found = _named_by(learning_rate) if given is None else given
    if found is None:
        raise ValueError(
            'decay_coupling="schedule" needs base_learning_rate: '
            f"{learning_rate!r} does not tell it."
        )
    return arguments.number("base_learning_rate", found)


def factor(
    coupling: str, learning_rate: tf.Tensor, base: float | None
) -> tf.Tensor | float:
    """Returns what the weight decay is multiplied by at a step.

    ```none
    "learning_rate"  lr
    "schedule"       lr / base
    "none"           1
    ```
    """
    if coupling == "none":
        return 1.0
    if coupling == "learning_rate":
        return learning_rate
    return learning_rate / tf.constant(base, learning_rate.dtype)


def _named_by(learning_rate: Any) -> Any:
    held = unwrapped(learning_rate)
    if isinstance(held, tf.Variable):
        return held if tf.executing_eagerly() else None
    if callable(held):
        # CosineDecay with a warm-up starts at initial_learning_rate and rises
        # to warmup_target; PiecewiseConstantDecay has values.
        for name in ("warmup_target", "initial_learning_rate"):
            if getattr(held, name, None) is not None:
                return getattr(held, name)
        values = getattr(held, "values", None)
        return max(values) if isinstance(values, (list, tuple)) else None
    return None if arguments.plain_number(held) is None else held
