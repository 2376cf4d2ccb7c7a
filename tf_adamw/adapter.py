"""What the optimizers for Keras 3 and for tf_keras have in common."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from tf_adamw import configuration, placement, replicas
from tf_adamw.adamw import PLAIN_OPTIONS, AdamW
from tf_adamw.adapter_state import (
    SavedState,
    in_order,
    matching_keys,
    named_state,
    one_line,
)
from tf_adamw.groups import is_zero
from tf_adamw.hyperparameters import NAMES as HYPERPARAMETERS
from tf_adamw.keys import keyed_variables, raw_variable
from tf_adamw.registry import Parameter
from tf_adamw.step import ApplyResult

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
        # Keras gives it no variable of a model that is frozen as a whole.
        if len(variables) in (0, len(self._known)) and all(
            map(operator.is_, variables, self._known)
        ):
            return
        self.adamw.build(self._with_keys(variables))
        # A tuple, past Keras's tracking: it would count these as its own.
        object.__setattr__(self, "_known", _merged(self._known, variables))
        if self._pending is not None:
            pending, self._pending = self._pending, None
            owner = replicas.owner(
                (p.key, p.variable) for p in self.adamw.parameters
            )
            placement.create(
                owner, lambda: pending.restore(self.adamw, self._parameters)
            )

    def _with_keys(self, variables: Sequence[Any]) -> Any:
        """The variables, under the keys that a configuration had for them."""
        saved = self._saved_keys
        own = [key for key, _ in keyed_variables(variables)]
        alike = matching_keys(own, saved)
        if len(alike) < len(own) == len(saved) and all(
            map(_numbered_anew, saved, own)
        ):
            return dict(zip(saved, variables, strict=True))
        if not saved or len({*own}) < len(own):
            return variables
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
        self._constrain(grads, variables, result)
        return result

    def _constrain(
        self,
        grads: Sequence[Any],
        variables: Sequence[Any],
        result: ApplyResult,
    ) -> None:
        """Applies the constraints of the variables that the step changed."""
        for gradient, variable in zip(grads, variables, strict=True):
            constraint = getattr(variable, "constraint", None)
            if gradient is None or constraint is None:
                continue
            raw, changed = raw_variable(variable), result.applied
            factor = self.adamw._registry.get(raw).multiplier
            if is_zero(factor):
                continue
            if isinstance(factor, tf.Variable):
                changed = tf.logical_and(changed, tf.not_equal(factor, 0))
            within = tf.cast(constraint(raw), raw.dtype)
            replicas.assign(raw, tf.where(changed, within, raw))

    @property
    def _parameters(self) -> list[Parameter]:
        """All parameters, in the order of the model's variables."""
        return in_order(self.adamw, self._known)

    def _state(self) -> dict[str, tf.Variable]:
        return named_state(self.adamw, self._parameters)

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
          ValueError: as `tf_adamw.AdamW.get_config`, and for a callable that
            Keras cannot save.
        """
        keys = [p.key for p in self._parameters if p.part == 0] or [
            *self._saved_keys,
            *configuration.selected_names(self.adamw),
        ]
        config = configuration.optimizer_config(
            self.adamw, PLAIN_OPTIONS, self._described
        )
        return {**config, "keys": list(dict.fromkeys(keys))}

    def _described(self, name: str, held: Any) -> Any:
        """A number; or what Keras makes of a schedule or a function."""
        if not callable(held):
            return held
        try:
            return self._saving.serialize_keras_object(held)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} is {held!r}, which {self._saving.__name__} cannot "
                "save: give a schedule, or a function that is registered by "
                "register_keras_serializable."
            ) from error

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
        own = self._state()
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
        for name, variable in self._state().items():
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
            saved.restore(self.adamw, self._parameters)
        else:
            self._pending = saved


def _merged(known: Sequence[Any], given: Sequence[Any]) -> tuple[Any, ...]:
    """Puts together the variables known so far and those given now.

    A list of all of them and more is the model's, and has its order: which
    layers were trained first is none.
    """

    def without(some: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        refs = {raw_variable(v).ref() for v in others}
        return [v for v in some if raw_variable(v).ref() not in refs]

    new = without(given, known)
    if new and not without(known, given):
        return tuple(given)
    return (*known, *new)


def _numbered_anew(saved: str, own: str) -> bool:
    """Whether two keys differ in the numbers of automatic names at most."""
    saved, own = (re.sub(r"_\d+(?=/|$)", "", f"/{key}") for key in (saved, own))
    return saved.endswith(own) or own.endswith(saved)
