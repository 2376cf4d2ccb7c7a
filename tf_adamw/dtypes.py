"""Which dtype the state and the arithmetic of a variable have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf


def arithmetic_dtype(dtype: tf.DType) -> tf.DType:
    """The dtype of moments and arithmetic for a variable of `dtype`.

    float64 for float64; float32 for float32, bfloat16 and float16.
    """
    return tf.float64 if dtype == tf.float64 else tf.float32


def widen(tensor: tf.Tensor) -> tf.Tensor:
    """Casts float16 and bfloat16 to float32 and leaves the rest alone."""
    return tf.cast(tensor, arithmetic_dtype(tensor.dtype))


def widest(dtypes: Iterable[tf.DType]) -> tf.DType:
    """The largest of several floating dtypes."""
    return max(dtypes, key=lambda dtype: dtype.size)


def scalar(value: Any, dtype: tf.DType) -> tf.Tensor:
    """Returns a number, tensor or variable in `dtype`.

    `tf.cast` takes Python numbers through float32.
    """
    if tf.is_tensor(value):
        return tf.cast(value, dtype)
    return tf.constant(value, dtype)


def times(factor: tf.Tensor | float, value: tf.Tensor) -> tf.Tensor:
    """Returns `factor * value`, or `value` itself where the factor is 1.0."""
    if not tf.is_tensor(factor) and factor == 1.0:
        return value
    return scalar(factor, value.dtype) * value
