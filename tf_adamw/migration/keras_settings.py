"""The settings of Keras's optimizers, from their configs and defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tf_adamw.migration.source import SETTINGS

DEFAULTS = {
    "learning_rate": 1e-3,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-7,
}
# tf_keras uses only the first one that is given.
_CLIPS = ("clipnorm", "global_clipnorm", "clipvalue")
_DEFAULT_NAMES = {"adam": "Adam", "adamw": "AdamW", "adam_w": "AdamW"}
_OTHERS = (
    "adabelief|adadelta|adafactor|adagrad|adamax|ftrl|lamb|lars|lion|muon|"
    "nadam|novograd|radam|rectified_?adam|rms_?prop|sgdw?|yogi|"
    "schedule_?free.*"
)


def known_class(
    path: str, config: Mapping[str, Any] | None, label: str, default: str
) -> str:
    """Returns "AdamW" or "Adam", or what else a config says.

    Args:
      path: of the file, for the message.
      config: `{"class_name": ..., "config": ...}`, or None.
      label: the optimizer's name, which is made of its class by default.
      default: the class where neither tells it.

    Raises:
      ValueError: if the name is that of another optimizer of Keras.
    """
    if config is not None:
        return str(config.get("class_name", "")).split(">")[-1]
    name = re.sub(r"_\d+$", "", label).lower()
    if re.fullmatch(_OTHERS, name):
        raise ValueError(
            f"The optimizer in {path!r} is {label!r}; expected AdamW or Adam."
        )
    return _DEFAULT_NAMES.get(name, default)


def check_class(path: str, name: str, expected: tuple[str, ...]) -> None:
    """Checks the class that a config tells.

    Raises:
      ValueError: if it is not one of the expected.
    """
    if name not in expected:
        raise ValueError(
            f"The optimizer in {path!r} is {name}; expected "
            f"{' or '.join(expected)}."
        )


def check_version(path: str, version: str, major: str, expected: str) -> None:
    """Checks the version of Keras that a file tells, if it does.

    Raises:
      ValueError: if its first number is not `major`.
    """
    if version and version.split(".")[0] != major:
        raise ValueError(
            f"{path!r} was written by Keras {version}; expected {expected}."
        )


def told(config: Mapping[str, Any]) -> dict[str, float]:
    """The settings that a config tells, without schedules."""
    found = {n: config.get(n) for n in SETTINGS}
    numbers = {n: v for n, v in found.items() if isinstance(v, (int, float))}
    if "weight_decay" in config and config["weight_decay"] is None:
        numbers["weight_decay"] = 0.0
    return {n: float(v) for n, v in numbers.items()}


def options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The other arguments of AdamW that a config has in use."""
    used: dict[str, Any] = {}
    if config.get("amsgrad"):
        used["amsgrad"] = True
    if config.get("use_ema"):
        used["use_ema"] = True
        used["ema_momentum"] = config["ema_momentum"]
        if config.get("ema_overwrite_frequency"):
            used["ema_overwrite_frequency"] = config["ema_overwrite_frequency"]
    for name in ("loss_scale_factor", "gradient_accumulation_steps"):
        if config.get(name):
            used[name] = config[name]
    return {**used, **dict(list(clips(config).items())[:1])}


def clips(config: Mapping[str, Any]) -> dict[str, float]:
    """The clips that a config has; tf_keras uses only the first."""
    return {name: config[name] for name in _CLIPS if config.get(name)}


def merged(
    told: Mapping[str, float],
    given: Mapping[str, Any],
    defaults: Mapping[str, float],
) -> tuple[dict[str, float], frozenset[str]]:
    """Returns the settings, and which of them are assumed.

    What is given counts before what the file tells, and that before the
    library's defaults.
    """
    given = {name: given[name] for name in SETTINGS if name in given}
    settings = {**defaults, **told, **given}
    assumed = frozenset(set(defaults) - set(told) - set(given))
    return {n: float(v) for n, v in settings.items()}, assumed


def notes(options: Mapping[str, Any]) -> tuple[str, ...]:
    """What a file without a config does not tell."""
    if options.get("use_ema") and "ema_momentum" not in options:
        return (
            "the file does not tell ema_momentum and ema_overwrite_frequency",
        )
    return ()


def same_state(
    config: Mapping[str, Any] | None, label: str, others: Sequence[str]
) -> tuple[str, ...]:
    """Says which others it may be, where neither config nor name tells.

    Args:
      config: `{"class_name": ..., "config": ...}`, or None.
      label: the optimizer's name, or "".
      others: whose state is the same.
    """
    own = re.sub(r"_\d+$", "", label).lower()
    if config is not None or own in _DEFAULT_NAMES or not others:
        return ()
    verb = "has" if len(others) == 1 else "have"
    return (
        f"{' and '.join(others)} {verb} the same state, and the file does not "
        "tell which it is: AdamW cannot go on with theirs",
    )
