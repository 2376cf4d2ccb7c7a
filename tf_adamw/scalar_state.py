"""The scalars of the state: how they are read, set, and placed."""

from __future__ import annotations

import weakref
from typing import Any

import tensorflow as tf

from tf_adamw import placement
from tf_adamw.counters import Counters
from tf_adamw.hyperparameters import Hyperparameters

# Of the state in checkpoints: docs/checkpoint_format.md tells the versions.
FORMAT_VERSION = 2


class ScalarState(tf.Module):
    """Holds the counters and the hyperparameters.

    They are created with the optimizer, and move once it is known where the
    weights are.
    """

    def __init__(
        self,
        name: str,
        hyperparameters: Hyperparameters,
        counters: Counters,
        accumulation_steps: int | None,
    ) -> None:
        super().__init__(name=name)
        self.hyperparameters = hyperparameters
        self.counters = counters
        with tf.init_scope():
            self.format_version = tf.Variable(
                FORMAT_VERSION, False, dtype=tf.int64, name="format_version"
            )
        self.gradient_accumulation_steps = accumulation_steps
        self._built = False
        self._settled = False
        self._readers: weakref.WeakSet[Any] = weakref.WeakSet()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._fixed:
            raise TypeError(
                f"{name} is fixed when the optimizer is made: pass it to "
                "AdamW; only learning_rate and weight_decay can be assigned."
            )
        # A `tf.Module` would track what is assigned to a property, too.
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # Attributes that programs have been traced with.
    _fixed: frozenset[str] = frozenset()

    @property
    def iterations(self) -> tf.Variable:
        """The number of updates applied, an int64 scalar variable."""
        self._settle()
        return self.counters.iterations

    @property
    def learning_rate(self) -> Any:
        """The learning rate: assignable unless it is a schedule or callable.

        A number or a variable reads as the `tf.Variable` that holds it; a
        schedule reads as its value for the next step.
        """
        return self._hyperparameter("learning_rate")

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.hyperparameters.assign("learning_rate", value)

    @property
    def weight_decay(self) -> Any:
        """The weight decay, as `learning_rate`."""
        return self._hyperparameter("weight_decay")

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        self.hyperparameters.assign("weight_decay", value)

    def _hyperparameter(self, name: str) -> Any:
        self._settle()
        calls = self.counters.calls(
            self.gradient_accumulation_steps, self.counters.position()
        )
        return self.hyperparameters.current(name, calls)

    def _settle(self) -> None:
        """Places the scalars under the strategy that is about to read them.

        What a traced function has read must not move when `build` comes.
        """
        if self._built:
            return
        if tf.distribute.has_strategy() and not self._settled:
            self._settled = True
            self._place(tf.distribute.get_strategy(), "")
        if not tf.executing_eagerly():
            self._readers.add(_traced_function())

    def _place(self, owner: tf.distribute.Strategy | None, device: str) -> None:
        """Moves the scalars where the weights are."""
        held = [*self.counters.held(), *self.hyperparameters.held()]
        if all(placement.fits(scalar, owner, device) for scalar in held):
            return
        # Outside of strategies the `tf.function` that builds traces again.
        retraced = not tf.distribute.has_strategy() and _traced_function()
        if any(reader is not retraced for reader in self._readers):
            raise ValueError(
                "A tf.function has read learning_rate, iterations or the loss "
                "scale before the weights were known, and they are elsewhere: "
                "call build() first."
            )
        self.format_version = placement.moved(
            self.format_version, owner, device
        )
        self.counters.place(owner, device)
        self.hyperparameters.place(owner, device)


def _traced_function() -> Any:
    """The graph of the outermost `tf.function` that is being traced."""
    if tf.executing_eagerly():
        return None
    graph = tf.compat.v1.get_default_graph()
    while getattr(graph, "outer_graph", None) is not None:
        if not getattr(graph.outer_graph, "building_function", False):
            break
        graph = graph.outer_graph
    return graph
