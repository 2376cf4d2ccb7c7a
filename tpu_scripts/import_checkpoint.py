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

import functools
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Before TensorFlow is loaded: its own notes would bury the report.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import app, flags, logging

import tf_adamw
from tf_adamw import migration
from tf_adamw.migration.source import SETTINGS
from tpu_scripts import command_line, import_flags

# These the checkpoint holds, if the file tells them or they are given.
_HELD = ("learning_rate", "weight_decay")


def run(values: flags.FlagValues) -> None:
    """Does what the flags say.

    Raises:
      ValueError: if the file or the flags do not fit. Nothing is written then.
      ImportError: if the package that reads the file is missing.
      OSError, tf.errors.OpError: if it cannot be read, or nothing written.
    """
    if values.output:
        check_output(values.output)
    given = {
        name: values[name].value
        for name in (*SETTINGS, "gradient_accumulation_steps")
        if values[name].value is not None
    }
    source = migration.read(values.source, values.input, **given)
    transpose = import_flags.axes_of(values.transpose)
    names = keys_of(source, values.variables, values.rename)
    variables = make_variables(source, names, transpose, values.dtype)
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
    # Written before anything is printed: it may fail.
    written = None
    if not values.dry_run:
        written = write(values.output, optimizer, variables if weights else {})
    print(report)
    print_arguments(arguments)
    if source.weights and not weights:
        missing = next(name for name in names if name not in source.weights)
        print(f"\nno weights: the file has some, but none of {missing!r}")
    if written:
        print(f"\nwritten: {written}")
    if written and weights:
        dtypes = sorted({v.dtype.name for v in variables.values()})
        print(f"weights are {', '.join(dtypes)}; --dtype has others written")


def check_output(folder: str) -> None:
    """Refuses one that has a checkpoint, or where no folder can be."""
    there = folder
    while there and not tf.io.gfile.exists(there):
        there = os.path.dirname(there)
    if there and not tf.io.gfile.isdir(there):
        raise ValueError(f"--output: {there!r} is no directory.")
    if tf.train.latest_checkpoint(folder):
        raise ValueError(f"--output: {folder!r} has a checkpoint.")


def print_arguments(arguments: Mapping[str, Any]) -> None:
    """Prints them as Python has them."""
    print("\ntf_adamw.AdamW(")
    for name, value in arguments.items():
        print(f"    {name}={value!r},")
    print(")")


def keys_of(
    source: migration.Source, variables: str | None, rename: Sequence[str]
) -> dict[str, str]:
    """Returns {the source's name: key} of what it has state or weights of."""
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
    return {
        name: key
        for name, key in zip(source.slots, given, strict=True)
        if source.slots[name] or name in source.weights
    }


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
    dtype: str | None = None,
) -> dict[str, tf.Variable]:
    """Returns {key: variable} of the shapes that the optimizer's state has.

    Of the weights' dtype, if there are any, and none is given.
    """
    variables = {}
    for name, key in names.items():
        slots = source.slots[name]
        like = slots["momentum"] if slots else source.weights[name]
        kind = dtype or source.weights.get(name, like).dtype
        shape = list(like.shape)
        for pattern, axes in transpose.items():
            if re.search(pattern, key) and len(axes) == len(shape):
                shape = [shape[axis] for axis in axes]
                break
        variables[key] = tf.Variable(tf.zeros(shape, kind), name=key)
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
    arguments = source.arguments()
    if excluded:
        arguments["exclude_from_weight_decay"] = excluded
    for argument, of in {
        "learning_rate_multipliers": source.multipliers,
        "weight_decay_multipliers": source.decay_multipliers,
    }.items():
        factors = {
            f"^{re.escape(key)}$": of[name]
            for name, key in names.items()
            if of.get(name) not in (None, 1.0)
        }
        if factors:
            arguments[argument] = factors
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
    except (ValueError, ImportError, OSError, tf.errors.OpError) as error:
        command_line.fail("import_checkpoint", str(error))


if __name__ == "__main__":
    import_flags.define_flags()
    parse = functools.partial(command_line.parse, "import_checkpoint")
    app.run(main, flags_parser=parse)
