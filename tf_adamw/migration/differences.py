"""How an optimizer's settings differ from those of the source's next step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from tf_adamw.migration.source import CLIPS, SETTINGS, Source
from tf_adamw.state import OptimizerState

# What changes a step and is on only if somebody wanted it.
_OPTIONS = (
    "amsgrad",
    *CLIPS,
    "use_ema",
    "ema_overwrite_frequency",
    "gradient_accumulation_steps",
)


def differences(
    optimizer: OptimizerState, source: Source, mapped: Mapping[str, str]
) -> Iterator[str]:
    """Says, one by one, which settings are not the source's.

    Args:
      optimizer: the `AdamW`.
      source: the other one.
      mapped: `{key: the source's name}`.
    """
    wanted = source.numbers(*coupling_of(optimizer))
    for name in SETTINGS:
        assumed = name in source.assumed
        assigned = optimizer.hyperparameters.owns(name) and not assumed
        if name in wanted and assigned:
            continue
        value = _next_value(optimizer, name, source.counter)
        if name not in wanted:
            yield (
                f"{name} is {value:g}, the file of {source.optimizer} does "
                "not tell its own"
            )
        elif not math.isclose(value, wanted[name], rel_tol=1e-6):
            yield (
                f"{name} is {value:g}, the next step of {source.optimizer} "
                f"has {wanted[name]:g}{' (assumed)' if assumed else ''}"
            )
    yield from _options(optimizer, source)
    yield from _treatments(optimizer, source, mapped)
    yield from source.unlike


def coupling_of(optimizer: OptimizerState) -> tuple[str, float | None]:
    """What a source's weight decay is to be put in terms of."""
    return optimizer.decay_coupling, optimizer.base_learning_rate


def _next_value(optimizer: OptimizerState, name: str, counter: int) -> float:
    """A setting's value in the step after `counter` updates."""
    calls = counter * (optimizer.gradient_accumulation_steps or 1)
    value: Any = optimizer.hyperparameters.current(
        name, tf.constant(calls, tf.int64)
    )
    return float(tf.convert_to_tensor(value))


def _options(optimizer: OptimizerState, source: Source) -> Iterator[str]:
    for name, value in source.options.items():
        own = getattr(optimizer, name)
        if own != value:
            yield f"{name} is {own!r}, {source.optimizer} has {value!r}"
    for name in _OPTIONS:
        own = getattr(optimizer, name)
        if own and name not in source.options and name not in source.untold:
            yield f"{name} is {own!r}, {source.optimizer} has none"


def _treatments(
    optimizer: OptimizerState, source: Source, mapped: Mapping[str, str]
) -> Iterator[str]:
    decays = source.settings.get("weight_decay") != 0
    for parameter in optimizer.parameters:
        if parameter.key not in mapped or parameter.part:
            continue
        name = mapped[parameter.key]
        decayed = source.decayed.get(name, parameter.decayed)
        if decays and decayed != parameter.decayed:
            here, there = ("is", "not") if parameter.decayed else ("not", "is")
            yield (
                f"{parameter.key} {here} decayed here, {there} in "
                f"{source.optimizer}"
            )
        for what, own, theirs, counts in (
            (
                "weight decay",
                parameter.decay_multiplier,
                source.decay_multipliers,
                decays and parameter.decayed,
            ),
            ("learning rate", parameter.multiplier, source.multipliers, True),
        ):
            factor = float(tf.convert_to_tensor(own))
            wanted = theirs.get(name, 1.0)
            if not counts or wanted is None:
                continue
            if not math.isclose(factor, wanted, rel_tol=1e-6):
                yield (
                    f"{parameter.key} has the {what} multiplier {factor:g}, "
                    f"in {source.optimizer} it is {wanted:g}"
                )


def notes(optimizer: OptimizerState, source: Source) -> Iterator[str]:
    """Says what to know about the settings."""
    yield from source.notes
    yield from _untold(source)
    for name, value in source.assigned(*coupling_of(optimizer)).items():
        hyperparameters = optimizer.hyperparameters
        own = hyperparameters.plain(name)
        replaced = hyperparameters.owns(name) and not math.isclose(
            own, value, rel_tol=1e-6
        )
        if replaced:
            yield f"{name}, which was {own:g}, is the source's: {value:g}"
    if source.algorithm_1:
        yield (
            f"epsilon = {source.epsilon:.9g} is exact in the next step; that "
            f"of {source.optimizer} grows to {source.settings['epsilon']:g}: "
            f"later it is off by at most {source.epsilon_error:.2%} of it"
        )
    if source.counter != source.iterations:
        yield (
            f"iterations is {source.counter - source.iterations} more than "
            f"the {source.iterations} of {source.optimizer}, which does not "
            "correct the moments' bias: subtract as much in a schedule"
        )
    decay = source.settings.get("weight_decay")
    if decay and optimizer.decay_coupling != source.decay_coupling:
        times = {"learning_rate": " times the learning rate", "none": ""}
        yield (
            f"{source.optimizer} decays by weight_decay = {decay:g}"
            f"{times[source.decay_coupling]}, decay_coupling is "
            f"{optimizer.decay_coupling!r}: what decays alike in the next step "
            "does not when the learning rate changes; make AdamW with "
            f"decay_coupling={source.decay_coupling!r}"
        )


def _untold(source: Source) -> Iterator[str]:
    """What the file does not tell, and which of its weights are meant."""
    if len(source.weights_at) == 1:
        yield f"the weights in the file are those at {source.weights_at[0]}"
    elif source.weights_at:
        yield (
            f"the file has weights at {' and at '.join(source.weights_at)}, "
            "and does not tell whose the state is: none are taken"
        )
    if "clipnorm" in source.untold:
        yield "the file does not tell whether gradients were clipped"
    if source.settings.get("weight_decay") != 0 and not source.decayed:
        yield (
            "the file does not tell which variables were excluded from the "
            "weight decay"
        )
    if source.assumed:
        told = ", ".join(
            f"{name}={source.settings[name]:g}"
            for name in SETTINGS
            if name in source.assumed and name in source.settings
        )
        yield f"the file does not tell, assumed: {told}"
