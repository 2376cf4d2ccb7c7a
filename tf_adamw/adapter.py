"""What the optimizers for Keras 3 and for tf_keras have in common."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from tf_adamw import configuration, placement, replicas
from tf_adamw.adamw import PLAIN_OPTIONS, AdamW
from tf_adamw.adapter_state import (
    SavedState,
    matching_keys,
    named_state,
    one_line,
)
from tf_adamw.hyperparameters import NAMES as HYPERPARAMETERS
from tf_adamw.keys import keyed_variables, raw_variable

# Keras's base classes set attributes of these names, which say nothing here.
OPTIONS = frozenset((*PLAIN_OPTIONS, *HYPERPARAMETERS, "loss_scale_factor")) - {
    "name",
    "learning_rate",
}


class Adapter:
    """Gives Keras what it asks of an optimizer; `adamw` does the work.

    A subclass is an optimizer of Keras's, too. Its own `__init__` calls
    Keras's and then `_set_up`.

    Attributes:
      adamw: the `tf_adamw.AdamW`, with `summary()`, `averaged_weights()`,
        `get_slot()` and the rest.
    """

    adamw: AdamW
    _saving: ClassVar[Any]  # the module of that name of Keras's

    def _set_up(self, adamw: AdamW) -> None:
        for name in OPTIONS:
            vars(self).pop(name, None)
        self._pending: SavedState | None = None
        self._known: tuple[Any, ...] = ()
        self._saved_keys: tuple[str, ...] = ()
        self._wrapped = False  # by a LossScaleOptimizer
        self.adamw = adamw
        self.name = self.adamw.name

    def __getattr__(self, name: str) -> Any:
        if name in OPTIONS and "adamw" in vars(self):
            return getattr(self.adamw, name)
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute {name!r}"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OPTIONS and "adamw" in vars(self):
            setattr(self.adamw, name, value)
        else:
            super().__setattr__(name, value)

    def _build(self, variables: Iterable[Any]) -> None:
        """Creates the state that there is not yet; restores what waits."""
        variables = list(variables)
        if 0 < len(variables) == len(self._known) and all(
            map(operator.is_, variables, self._known)
        ):
            return
        self.adamw.build(self._with_keys(variables))
        known = {raw_variable(v).ref() for v in self._known}
        new = [v for v in variables if raw_variable(v).ref() not in known]
        # A tuple, past Keras's tracking: it would count these as its own.
        object.__setattr__(self, "_known", (*self._known, *new))
        if self._pending is not None:
            pending, self._pending = self._pending, None
            owner = replicas.owner(
                (p.key, p.variable) for p in self.adamw.parameters
            )
            placement.create(owner, lambda: pending.restore(self.adamw))

    def _with_keys(self, variables: Sequence[Any]) -> Any:
        """The variables, under the keys that a configuration had for them."""
        saved = self._saved_keys
        own = [key for key, _ in keyed_variables(variables)]
        if len(saved) == len(own) and all(map(_same_kind, saved, own)):
            return dict(zip(saved, variables, strict=True))
        if not saved or len({*own}) < len(own):
            return variables
        alike = matching_keys(own, saved)
        return {alike.get(k, k): v for k, v in zip(own, variables, strict=True)}

    def _apply(
        self, grads: Sequence[Any], variables: Sequence[Any] | None
    ) -> Any:
        """Does one step, then applies the variables' constraints.

        The variables are built; without them those that are.
        """
        if variables is None:
            variables = self._known
        result = self.adamw.apply(grads, variables)
        for gradient, variable in zip(grads, variables, strict=True):
            constraint = getattr(variable, "constraint", None)
            if gradient is not None and constraint is not None:
                raw = raw_variable(variable)
                replicas.assign(raw, tf.cast(constraint(raw), raw.dtype))
        return result

    @property
    def learning_rate(self) -> Any:
        """As `tf_adamw.AdamW.learning_rate`."""
        return self._shown(self.adamw.learning_rate, "learning_rate")

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.adamw.learning_rate = value

    @property
    def iterations(self) -> Any:
        """The number of updates applied."""
        return self._shown(self.adamw.iterations, "iterations")

    def _shown(self, value: Any, name: str) -> Any:
        """A value as the library shows it: a variable may be one of its own."""
        del name
        return value

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[Any] | None = None,
        var_names: Sequence[str] | None = None,
    ) -> None:
        """As `tf_adamw.AdamW.exclude_from_weight_decay`."""
        self.adamw.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list: Any) -> None:
        """As `tf_adamw.AdamW`; `fit` calls it at its end."""
        self.adamw.finalize_variable_values(var_list)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON-able values, and the keys.

        Patterns and files know variables by their keys, and Keras gives some
        of a model that it loads another path.

        Raises:
          ValueError: as `tf_adamw.AdamW.get_config`.
        """
        built = [p.key for p in self.adamw.parameters if p.part == 0]
        config = {
            **self.adamw.get_config(),
            "keys": built or [*self._saved_keys],
        }
        for name in HYPERPARAMETERS:
            held = self.adamw.hyperparameters.plain(name)
            if callable(held):
                config[name] = self._saving.serialize_keras_object(held)
        return config

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Any:
        """Makes an optimizer from what `get_config` returned."""
        given = {n: value for n, value in config.items() if n != "keys"}
        restored = functools.partial(
            cls._saving.deserialize_keras_object, custom_objects=custom_objects
        )
        optimizer = cls(**configuration.arguments_of(given, restored))
        # Past Keras's tracking.
        keys = tuple(config.get("keys", ()))
        object.__setattr__(optimizer, "_saved_keys", keys)
        return optimizer

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Sets the variables, by their position.

        Raises:
          ValueError: if their number or shapes differ.
        """
        own = named_state(self.adamw)
        given = [tuple(weight.shape) for weight in weights]
        if given != [tuple(v.shape) for v in own.values()]:
            raise ValueError(
                f"set_weights was given {len(given)} arrays that are not of "
                f"the shapes of this optimizer's {len(own)} variables: was it "
                "made with other options?"
            )
        for variable, weight in zip(own.values(), weights, strict=True):
            variable.assign(weight)

    def save_own_variables(self, store: Any) -> None:
        """Puts the state into a file of Keras's, each variable by its name."""
        for name, variable in named_state(self.adamw).items():
            store[one_line(name)] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Gets the state from a file of Keras's; before `build`, it waits.

        Raises:
          ValueError: if it is the state of other variables, or of another
            optimizer. Nothing has changed then.
        """
        saved = SavedState.read(store, self.name)
        if saved is None:
            return
        if self.adamw.parameters:
            saved.restore(self.adamw)
        else:
            self._pending = saved


def _same_kind(saved: str, own: str) -> bool:
    """Whether two keys end alike: in "kernel", say."""
    return saved.rsplit("/", 1)[-1] == own.rsplit("/", 1)[-1]
