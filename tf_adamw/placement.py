"""Where state is created: under the weights' strategy, on their device."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

from tf_adamw import replicas

T = TypeVar("T")


def create(owner: tf.distribute.Strategy | None, make: Callable[[], T]) -> T:
    """Calls `make`, which creates variables, under a strategy.

    Args:
      owner: the strategy; None for plain variables on the current device.
      make: called once, outside of any `tf.function`.

    Returns:
      What `make` returns.
    """

    def made() -> T:
        with tf.init_scope():
            if owner is None:
                return make()
            with owner.scope():
                return make()

    with tf.init_scope():
        current = (
            tf.distribute.get_strategy()
            if tf.distribute.has_strategy()
            else None
        )
        inside = not tf.distribute.in_cross_replica_context()
        here = current is None or (current is owner and not inside)
        if here or not tf.executing_eagerly():
            return made()
    # A strategy can be left by no other means: a new thread is in none.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(made).result()


def fits(
    variable: tf.Variable, owner: tf.distribute.Strategy | None, device: str
) -> bool:
    """Whether a scalar is where `moved` would move it."""
    if owner is not None:
        return replicas.home(variable) is owner
    if replicas.replicated(variable):
        return False
    # Any parameter server will do.
    there = replicas.remote(device) and replicas.remote(variable.device)
    return there or variable.device == device


def moved(
    variable: tf.Variable,
    owner: tf.distribute.Strategy | None,
    device: str,
) -> tf.Variable:
    """Returns a scalar variable, or a copy of it where the weights are.

    One program cannot read variables of several devices, and replicas that
    share a counter would each count. The optimizer may be made before it is
    known where the weights are.

    Args:
      variable: the scalar.
      owner: the strategy whose replicated variables the weights are, or None.
      device: where the weights are if there is no such strategy.
    """
    if fits(variable, owner, device):
        return variable
    with tf.init_scope():
        value = replicas.copies(variable)[0].read_value()

    def make() -> tf.Variable:
        return tf.Variable(
            tf.identity(value),
            trainable=False,
            name=variable.name.rsplit(":", 1)[0],
        )

    if owner is not None:
        made = create(owner, make)
        plain = not replicas.replicated(made) and replicas.home(made) is None
        return variable if plain and made.device == variable.device else made

    def on_device() -> tf.Variable:
        with tf.device(device):
            return make()

    return create(None, on_device)


def beside(variable: tf.Variable) -> contextlib.AbstractContextManager:
    """Where a parameter server has the variable, that is where to compute."""
    if replicas.remote(variable.device):
        return tf.device(variable.device)
    return contextlib.nullcontext()
