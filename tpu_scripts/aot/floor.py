"""What a step of AdamW has to read from HBM and write to it at least once."""

from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import AdamW, DynamicLossScale


def floor(
    optimizer: Any,
    weights: Sequence[Any],
    gradients: Sequence[tf.TensorSpec],
    reduces: bool,
) -> tuple[int, int]:
    """Returns the bytes of the cheapest and of the costliest micro-step.

    ```none
    update      g + 2 * state        every weight and slot is read and written
                + g                  a norm or a check that all is finite has
                                     to be known before the first is written
    skip        g                    where the check finds that not all is
    accumulate  g + 2 * accumulator
    ```

    At a window's end an all-reduce takes the sum from memory: the micro-step
    accumulates and then updates, with the accumulator for g. Where nothing is
    reduced, g + accumulator takes the place of g, and no sum has to be written.
    What the all-reduce itself moves is not in it.

    Args:
      optimizer: `tf_adamw.AdamW`, or one of Keras's with the same attributes.
      weights: the model's variables.
      gradients: their specifications.
      reduces: whether replicas reduce their gradients.
    """
    state = size(weights) + size(optimizer.variables)
    gradient = size(gradients)
    skips = _skips(optimizer)
    by_norm = optimizer.clipnorm or optimizer.global_clipnorm
    passes = 2 if by_norm or skips else 1
    if not optimizer.gradient_accumulation_steps:
        if reduces and isinstance(optimizer, AdamW):
            # Their sum is in float32 at least.
            gradient = max(gradient, 4 * count(weights))
        update = passes * gradient + 2 * state
        return gradient if skips else update, update
    accumulator = sum(
        size([weight])
        if not isinstance(optimizer, AdamW)
        else size([optimizer.get_slot(weight, "accumulator")])
        for weight in weights
    )
    accumulate = gradient + 2 * accumulator
    update = 2 * (state - accumulator)
    if reduces:
        return accumulate, accumulate + passes * accumulator + update
    return accumulate, passes * (gradient + accumulator) + update


def size(arrays: Iterable[Any]) -> int:
    """The bytes of all tensors, variables or specifications together."""
    return sum(
        count([array]) * tf.as_dtype(array.dtype).size for array in arrays
    )


def count(arrays: Iterable[Any]) -> int:
    """Their elements."""
    return sum(tf.TensorShape(a.shape).num_elements() for a in arrays)


def _skips(optimizer: Any) -> bool:
    """Whether a step may find that it has nothing to update."""
    return isinstance(optimizer, AdamW) and (
        optimizer.skip_nonfinite
        or isinstance(optimizer.loss_scale_factor, DynamicLossScale)
    )
