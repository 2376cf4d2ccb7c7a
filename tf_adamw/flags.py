"""absl flags for every hyperparameter of `AdamW`.

```python
from tf_adamw import flags as adamw_flags

adamw_flags.define_adamw_flags(learning_rate=3e-4)

def main(argv):
    optimizer = adamw_flags.adamw_from_flags(decay_steps=10_000)
```
"""

import functools
import inspect
from typing import Any

from absl import flags

from tf_adamw.adamw import SPARSE_UPDATES, AdamW
from tf_adamw.aggregation import CHOICES as AGGREGATIONS
from tf_adamw.arguments import COUNT, RANGES, UP_TO_1, Range
from tf_adamw.decay import COUPLINGS
from tf_adamw.flag_values import (
    OrWord,
    check_groups,
    check_multipliers,
    check_patterns,
    either,
    grouped,
    in_range,
    multiplier,
)
from tf_adamw.loss_scale import DynamicLossScale

# The flags belong to the module that calls `define_adamw_flags`: it is there
# that `--help` should list them.
flags.disclaim_key_flags()

_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")
_JIT_COMPILE = {"auto": "auto", "true": True, "false": False}
_DYNAMIC = {  # the flags of a DynamicLossScale's fields
    "initial_loss_scale": "initial",
    "loss_scale_growth_interval": "growth_interval",
    "loss_scale_growth_factor": "factor",
}
# What a flag takes besides numbers; `none` unsets what a program sets.
_WORDS = {"loss_scale_factor": ("dynamic", "none")}

_RANGES = {
    **RANGES,
    **{name: RANGES[f"DynamicLossScale.{f}"] for name, f in _DYNAMIC.items()},
    "warmup_steps": Range("an integer >= 0", lambda x: x >= 0),
    "decay_steps": COUNT,
    "final_learning_rate_fraction": UP_TO_1,
}
_FLOAT = flags.FloatParser()
_INTEGER = flags.IntegerParser()

_NUMBERS: dict[str, tuple[flags.ArgumentParser, str]] = {
    "learning_rate": (_FLOAT, "The rate, a schedule's highest one."),
    "warmup_steps": (_INTEGER, "Steps in which the rate rises from 0."),
    "decay_steps": (
        _INTEGER,
        "Length of the cosine schedule, its warm-up included. Default: that "
        "of the training.",
    ),
    "final_learning_rate_fraction": (
        _FLOAT,
        "Where the cosine ends, as a share of the learning rate.",
    ),
    "weight_decay": (_FLOAT, "Decay of the weights."),
    "base_learning_rate": (
        _FLOAT,
        "What --decay_coupling=schedule divides the rate by. Default: the "
        "learning rate.",
    ),
    "beta_1": (_FLOAT, "Decay of the momentum."),
    "beta_2": (_FLOAT, "Decay of the velocity."),
    "epsilon": (_FLOAT, "Added to the root of the velocity."),
    "clipnorm": (_FLOAT, "Largest norm of a variable's gradient."),
    "clipvalue": (_FLOAT, "Largest absolute value in a gradient."),
    "global_clipnorm": (_FLOAT, "Largest norm of all gradients."),
    "ema_momentum": (_FLOAT, "Decay of the average of the weights."),
    "ema_overwrite_frequency": (
        _INTEGER,
        "Updates after which, each time, the weights become their average.",
    ),
    "loss_scale_factor": (
        _FLOAT,
        "Factor of the loss in float16; dynamic: one that follows the "
        "gradients, and skips updates that are not finite.",
    ),
    "initial_loss_scale": (_FLOAT, "The dynamic loss scale's first value."),
    "loss_scale_growth_interval": (
        _INTEGER,
        "Good updates in a row after which the dynamic loss scale grows.",
    ),
    "loss_scale_growth_factor": (
        _FLOAT,
        "What the dynamic loss scale is multiplied by then, and divided by "
        "after a bad update.",
    ),
    "gradient_accumulation_steps": (
        _INTEGER,
        "Steps whose mean gradient makes one update.",
    ),
}
_BOOLEANS = {
    "amsgrad": "Divide by the largest velocity so far.",
    "use_ema": "Keep an exponential moving average of the weights.",
    "skip_nonfinite": "Skip steps whose gradient is infinite or NaN.",
}
_CHOICES = {
    "learning_rate_schedule": (
        ["constant", "cosine"],
        "What the rate does after the warm-up.",
    ),
    "decay_coupling": (
        list(COUPLINGS),
        "What the weight decay is multiplied by: the rate, the rate over "
        "--base_learning_rate, or nothing.",
    ),
    "sparse_updates": (
        list(SPARSE_UPDATES),
        "What becomes of rows that an embedding's gradient has not; lazy: "
        "nothing.",
    ),
    "aggregation": (
        list(AGGREGATIONS),
        "How the gradients of the replicas are reduced.",
    ),
    "jit_compile": (list(_JIT_COMPILE), "Use XLA; auto: where it works best."),
}
_PATTERNS = {
    "exclude_from_weight_decay": (
        "Regular expression of variables without weight decay"
    ),
    "learning_rate_multipliers": (
        "REGEX=FACTOR: the rate of the variables that match is multiplied by "
        "the factor; the first match counts"
    ),
    "weight_decay_multipliers": ("REGEX=FACTOR: likewise of the weight decay"),
    "norm_groups": (
        "NAME=REGEX: variables of whose updates and weights the norms are "
        "computed"
    ),
}
_ARGUMENTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(AdamW).parameters.items()
    if name != "name"
}
_DEFAULTS = {
    "learning_rate_schedule": "constant",
    "warmup_steps": 0,
    "decay_steps": None,
    "final_learning_rate_fraction": 0.0,
    **{name: getattr(DynamicLossScale, f) for name, f in _DYNAMIC.items()},
    **_ARGUMENTS,
}


def define_adamw_flags(
    flag_values: flags.FlagValues = flags.FLAGS, **defaults: Any
) -> list[str]:
    """Defines one flag for every hyperparameter of `AdamW`.

    Args:
      flag_values: where to define them.
      **defaults: values to use in place of `AdamW`'s own defaults, by the
        flag's name.

    Returns:
      The names of the flags.

    Raises:
      TypeError: a name in `defaults` is no flag.
    """
    if unknown := sorted(set(defaults) - set(_DEFAULTS)):
        raise TypeError(f"define_adamw_flags: no such flags: {unknown}")
    values = {**_DEFAULTS, **defaults}
    _define_numbers(flag_values, values)
    for name, text in _BOOLEANS.items():
        flags.DEFINE_bool(name, values[name], text, flag_values=flag_values)
    for name, (choices, text) in _CHOICES.items():
        flags.DEFINE_enum(
            name,
            str(values[name]).lower(),
            choices,
            text,
            flag_values=flag_values,
            case_sensitive=False,
        )
    for name, text in _PATTERNS.items():
        flags.DEFINE_multi_string(
            name, values[name], text, flag_values=flag_values
        )
    for name, check in (
        ("exclude_from_weight_decay", check_patterns),
        ("learning_rate_multipliers", check_multipliers),
        ("weight_decay_multipliers", check_multipliers),
        ("norm_groups", check_groups),
    ):
        flags.register_validator(name, check, flag_values=flag_values)
    return list(values)


def adamw_from_flags(
    flag_values: flags.FlagValues = flags.FLAGS,
    decay_steps: int | None = None,
) -> AdamW:
    """Makes the optimizer that the flags describe.

    Args:
      flag_values: where the flags were defined.
      decay_steps: the length of a cosine schedule in steps, its warm-up
        included, where `--decay_steps` is not given.

    Returns:
      The optimizer.

    Raises:
      ValueError: a schedule is asked for and Keras is not installed, or a
        cosine schedule has no step left after the warm-up.
    """
    arguments: dict[str, Any] = {
        name: flag_values[name].value for name in _ARGUMENTS
    }
    if arguments["loss_scale_factor"] == "dynamic":
        fields = {f: flag_values[name].value for name, f in _DYNAMIC.items()}
        arguments["loss_scale_factor"] = DynamicLossScale(**fields)
    arguments |= {
        "learning_rate": learning_rate_from_flags(flag_values, decay_steps),
        "norm_groups": grouped(flag_values.norm_groups or []),
        "jit_compile": _JIT_COMPILE[flag_values.jit_compile],
    }
    for name in ("learning_rate_multipliers", "weight_decay_multipliers"):
        arguments[name] = list(map(multiplier, arguments[name] or []))
    return AdamW(**arguments)


def learning_rate_from_flags(
    flag_values: flags.FlagValues = flags.FLAGS,
    decay_steps: int | None = None,
) -> Any:
    """Makes the learning rate that the flags describe.

    Args:
      flag_values: as in `adamw_from_flags`.
      decay_steps: likewise.

    Returns:
      A number, or one of Keras's schedules.

    Raises:
      ValueError: as in `adamw_from_flags`.
    """
    rate, warmup = flag_values.learning_rate, flag_values.warmup_steps
    constant = flag_values.learning_rate_schedule == "constant"
    if constant and not warmup:
        return rate
    total = flag_values.decay_steps or decay_steps
    if not constant and (total is None or total <= warmup):
        raise ValueError(
            f"--decay_steps={total} must be an integer larger than "
            f"--warmup_steps={warmup}"
        )
    try:
        from keras.optimizers import schedules
    except ImportError as error:
        raise ValueError(
            "--learning_rate_schedule and --warmup_steps need Keras 3: "
            "pip install keras"
        ) from error
    return schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else rate,
        warmup_target=rate if warmup else None,
        warmup_steps=warmup,
        decay_steps=1 if constant else total - warmup,
        # A cosine that ends where it begins is a constant.
        alpha=1.0 if constant else flag_values.final_learning_rate_fraction,
    )


def _define_numbers(
    flag_values: flags.FlagValues, values: dict[str, Any]
) -> None:
    for name, (parser, text) in _NUMBERS.items():
        allowed = _RANGES[name]
        optional = ("none",) if _DEFAULTS[name] is None else ()
        words = _WORDS.get(name, optional)
        flags.DEFINE(
            OrWord(parser, words) if words else parser,
            name,
            values[name],
            f"{text} {allowed.text.capitalize()}.",
            flag_values,
            flags.ArgumentSerializer(),
        )
        flags.register_validator(
            name,
            functools.partial(in_range, allowed, words),
            f"must be {either(allowed.text, words)}",
            flag_values,
        )
    flags.register_multi_flags_validator(
        _CLIPS,
        lambda given: sum(v is not None for v in given.values()) <= 1,
        f"at most one of --{', --'.join(_CLIPS)} may be set; one that is set "
        "by default is unset by =none",
        flag_values,
    )
