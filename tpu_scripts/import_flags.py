"""The flags of `import_checkpoint`."""

import os
import re
from collections.abc import Sequence

from absl import flags

from tf_adamw.migration import SOURCES
from tf_adamw.migration.source import SETTINGS

flags.disclaim_key_flags()


_STRINGS = {
    "input": "The file, or the prefix of the checkpoint.",
    "output": "The directory of the new checkpoint.",
    "variables": "The keys in the source's order: with commas between them, "
    "or a file with one a line.",
}
_REPEATED = {
    "rename": "REGEX=REPLACEMENT: makes keys of the source's names, as re.sub "
    "does; one after the other.",
    "transpose": "REGEX=AXES: of the keys that match, as numpy.transpose does: "
    "'kernel$=1,0'.",
}
_BOOLEANS = {
    "strict": "Refuse to leave anything behind.",
    "dry_run": "Only report.",
}


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines all flags."""
    flags.DEFINE_enum(
        "source", None, list(SOURCES), "Whose file it is.", flag_values=values
    )
    for name, text in _STRINGS.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    for name, text in _REPEATED.items():
        flags.DEFINE_multi_string(name, [], text, flag_values=values)
    for name, text in _BOOLEANS.items():
        flags.DEFINE_bool(name, False, text, flag_values=values)
    flags.DEFINE_enum(
        "dtype",
        None,
        ["float16", "bfloat16", "float32", "float64"],
        "Of the weights in the checkpoint: that of the training's variables. "
        "By default the one that they are read in.",
        flag_values=values,
    )
    text = "The source's {}, where its file does not tell it, or not rightly."
    for name in SETTINGS:
        flags.DEFINE_float(name, None, text.format(name), flag_values=values)
    name = "gradient_accumulation_steps"
    flags.DEFINE_integer(name, None, text.format(name), flag_values=values)
    flags.mark_flags_as_required(["source", "input"], flag_values=values)
    flags.register_multi_flags_validator(
        ["output", "dry_run"],
        lambda given: bool(given["output"]) != given["dry_run"],
        "either --output or --dry_run is needed",
        flag_values=values,
    )


def axes_of(transpose: Sequence[str]) -> dict[str, list[int]]:
    """Returns {pattern: axes}."""
    axes = {
        pattern: [int(axis) for axis in value.split(",")]
        for pattern, value in split("transpose", transpose, r"\d+(,\d+)*")
    }
    for pattern, order in axes.items():
        if sorted(order) != list(range(len(order))):
            raise ValueError(
                f"--transpose: {pattern!r} has to have each axis from 0 on "
                f"once, it has {order}."
            )
    return axes


def renamed(names: Sequence[str], rename: Sequence[str]) -> list[str]:
    """Applies --rename."""
    keys = list(names)
    for pattern, replacement in split("rename", rename):
        if not any(re.search(pattern, key) for key in keys):
            raise ValueError(
                f"--rename: {pattern!r} matches none of {', '.join(keys[:5])}"
                f"{' ...' * (len(keys) > 5)}."
            )
        try:
            keys = [re.sub(pattern, replacement, key) for key in keys]
        except re.error as error:
            raise ValueError(
                f"--rename: {replacement!r} is no replacement: {error}."
            ) from error
    return keys


def split(
    flag: str, items: Sequence[str], allowed: str = ".*"
) -> list[tuple[str, str]]:
    """Pairs of what is before and after the last "="."""
    pairs = []
    for item in items:
        pattern, separator, value = item.rpartition("=")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"--{flag}: {pattern!r} is no regular expression: {error}."
            ) from error
        if not separator or not re.fullmatch(allowed, value):
            raise ValueError(f"--{flag}={item!r} is not as --help has it.")
        pairs.append((pattern, value))
    return pairs


def list_of(variables: str | None) -> list[str] | None:
    """What --variables lists, itself or in a file."""
    if variables is None:
        return None
    if os.path.isfile(variables):
        with open(variables, encoding="utf-8") as file:
            lines = [line.strip() for line in file.read().splitlines()]
        return [line for line in lines if line]
    return [key.strip() for key in variables.split(",")]
