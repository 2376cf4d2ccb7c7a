"""A table of what the optimizer does to each variable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from tf_adamw.registry import Parameter

HEADER = ("key", "shape", "dtype", "decayed", "rate", "slots", "bytes")


def table(
    parameters: Sequence[Parameter],
    slots: Mapping[str, Mapping[str, tf.Variable]],
) -> str:
    """Returns a row per variable and a last one with the totals."""
    rows = [HEADER]
    total = 0
    # Shards have one key, and are one row.
    variables = list({p.key: p for p in parameters}.values())
    for parameter in variables:
        held = slots[parameter.key]
        size = sum(_bytes(variable) for variable in held.values())
        total += size
        variable = parameter.variable
        whole = variable if parameter.whole is None else parameter.whole
        shape = "x".join(map(str, whole.shape)) or "scalar"
        rows.append(
            (
                parameter.key,
                shape,
                variable.dtype.name,
                _decayed(parameter),
                _number(parameter.multiplier),
                ", ".join(held),
                f"{size:,}",
            )
        )
    decayed = sum(parameter.decayed for parameter in variables)
    rows.append(
        (
            f"{len(variables)} variables",
            "",
            "",
            f"{decayed} of {len(variables)}",
            "",
            "",
            f"{total:,}",
        )
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def _bytes(variable: tf.Variable) -> int:
    return variable.shape.num_elements() * variable.dtype.size


def _decayed(parameter: Parameter) -> str:
    """Yes, no, or the factor on the weight decay."""
    if not parameter.decayed:
        return "no"
    factor = _number(parameter.decay_multiplier)
    return "yes" if factor == "1" else factor


def _number(multiplier: float | tf.Variable) -> str:
    return f"{float(tf.convert_to_tensor(multiplier)):g}"
