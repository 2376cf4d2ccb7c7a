r"""Makes a checkpoint of tf_adamw.AdamW of another optimizer's file.

What would happen, of an optimizer of PyTorch whose parameters have names:

    python -m tpu_scripts.import_checkpoint --source=torch \
      --input=optimizer.pt --rename='\.=/' \
      --rename='dense/weight$=dense/kernel' --transpose='kernel$=1,0' --dry_run

The checkpoint is written with --output=DIRECTORY. It holds the state of the
optimizer and, as `variables`, the weights that the file has. In the training:

    optimizer = tf_adamw.AdamW(...)  # the arguments that this prints
    optimizer.build(variables)       # {key: variable}
    tf_adamw.checkpoint.restore(
        tf.train.Checkpoint(optimizer=optimizer, variables=variables),
        "DIRECTORY",
    )

Sources that only count their variables (torch without names, sonnet) need
--variables: their keys in the order in which they were counted.
"""

import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Before TensorFlow is loaded: its own notes would bury the report.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import app, flags, logging

import tf_adamw
from tf_adamw import migration
from tf_adamw.migration.source import SETTINGS
from tpu_scripts import import_flags

# These the checkpoint holds, if the file tells them or they are given.
_HELD = ("learning_rate", "weight_decay")


def run(values: flags.FlagValues) -> None:
    """Does what the flags say.

    Raises:
      ValueError: if the file or the flags do not fit. Nothing is written then.
      ImportError: if the package that reads the file is missing.
    """
    if values.output and tf.train.latest_checkpoint(values.output):
        raise ValueError(f"--output: {values.output!r} has a checkpoint.")
    given = {
        name: values[name].value
        for name in (*SETTINGS, "gradient_accumulation_steps")
        if values[name].value is not None
    }
    source = migration.read(values.source, values.input, **given)
    transpose = import_flags.axes_of(values.transpose)
    names = {
        name: key
        for name, key in keys_of(
            source, values.variables, values.rename
        ).items()
        if source.slots[name] or name in source.weights
    }
    variables = make_variables(source, names, transpose)
    arguments = adamw_arguments(source, names)
    optimizer = tf_adamw.AdamW(**unless_assumed(source, arguments))
    optimizer.build(variables)
    weights = all(name in source.weights for name in names)
    report = migration.import_state(
        optimizer,
        source,
        names=names.get,
        transpose=transpose,
        weights=weights,
        strict=values.strict,
        dry_run=values.dry_run,
    )
    print(report)
    print_arguments(arguments)
    if source.weights and not weights:
        missing = next(name for name in names if name not in source.weights)
        print(f"\nno weights: the file has some, but none of {missing!r}")
    if not values.dry_run:
        written = write(values.output, optimizer, variables if weights else {})
        print(f"\nwritten: {written}")


def print_arguments(arguments: Mapping[str, Any]) -> None:
    """Prints them as Python has them."""
    print("\ntf_adamw.AdamW(")
    for name, value in arguments.items():
        print(f"    {name}={value!r},")
    print(")")


def keys_of(
    source: migration.Source, variables: str | None, rename: Sequence[str]
) -> dict[str, str]:
    """Returns {the source's name: key}."""
    given = import_flags.list_of(variables)
    if given is None:
        if source.positional:
            raise ValueError(
                f"{source.optimizer} only counts its variables: pass "
                f"--variables, the keys of: {shapes(source)}."
            )
        given = list(source.slots)
    if len(given) != len(source.slots):
        raise ValueError(
            f"--variables has {len(given)} keys, for {len(source.slots)}: "
            f"{shapes(source)}."
        )
    given = import_flags.renamed(given, rename)
    if repeated := {key for key in given if given.count(key) > 1}:
        raise ValueError(f"Two variables would have the key {min(repeated)!r}.")
    return dict(zip(source.slots, given, strict=True))


def shapes(source: migration.Source, limit: int = 20) -> str:
    """What there is, for who has to name it."""
    listed = [
        f"{name} {slots['momentum'].shape if slots else 'without state'}"
        for name, slots in source.slots.items()
    ]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def make_variables(
    source: migration.Source,
    names: Mapping[str, str],
    transpose: Mapping[str, Sequence[int]],
) -> dict[str, tf.Variable]:
    """Returns {key: variable} of the shapes that the optimizer's state has."""
    variables = {}
    for name, key in names.items():
        slots = source.slots[name]
        like = slots["momentum"] if slots else source.weights[name]
        shape = list(like.shape)
        for pattern, axes in transpose.items():
            if re.search(pattern, key) and len(axes) == len(shape):
                shape = [shape[axis] for axis in axes]
                break
        variables[key] = tf.Variable(tf.zeros(shape, like.dtype), name=key)
    return variables


def adamw_arguments(
    source: migration.Source, names: Mapping[str, str]
) -> dict[str, Any]:
    """Returns those of the training's AdamW."""
    excluded = [
        f"^{re.escape(key)}$"
        for name, key in names.items()
        if not source.decayed.get(name, True)
    ]
    factors = {
        f"^{re.escape(key)}$": source.multipliers[name]
        for name, key in names.items()
        if source.multipliers.get(name) not in (None, 1.0)
    }
    arguments = source.arguments()
    if excluded:
        arguments["exclude_from_weight_decay"] = excluded
    if factors:
        arguments["learning_rate_multipliers"] = factors
    return arguments


def unless_assumed(
    source: migration.Source, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Keeps out of the checkpoint what only the training's program knows.

    Restored, a mere default would count instead of what that says. Callables
    are in no checkpoint: here they return what AdamW would have.
    """
    defaults = inspect.signature(tf_adamw.AdamW).parameters
    unknown = [
        name
        for name in _HELD
        if name in source.assumed or name not in arguments
    ]
    values = {n: arguments.get(n, defaults[n].default) for n in unknown}
    return {**arguments, **{n: lambda v=v: v for n, v in values.items()}}


def write(
    folder: str, optimizer: tf_adamw.AdamW, variables: Mapping[str, tf.Variable]
) -> str:
    """Writes the checkpoint; returns its path."""
    objects = {"variables": dict(variables)} if variables else {}
    checkpoint = tf.train.Checkpoint(optimizer=optimizer, **objects)
    return checkpoint.save(os.path.join(folder, "checkpoint"))


def main(argv: Sequence[str]) -> None:
    """Ends with one line on stderr, and exit code 2, if something is wrong."""
    logging.set_verbosity(logging.WARNING)
    try:
        if argv[1:]:
            raise ValueError(f"{argv[1]!r} is no flag.")
        run(flags.FLAGS)
    except (ValueError, ImportError) as error:
        line = " ".join(str(error).split())
        print(f"import_checkpoint: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    import_flags.define_flags()
    app.run(main)
