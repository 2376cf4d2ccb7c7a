"""Runs `import_checkpoint` in this process, and goes on from what it wrote."""

import ast
import contextlib
import io

import tensorflow as tf
from absl import flags

import helpers
import tf_adamw
from tpu_scripts import import_checkpoint, import_flags


def command(arguments):
    """Flags of {name: value or values}."""
    return [
        f"--{name}={value}"
        for name, values in arguments.items()
        for value in (values if isinstance(values, list) else [values])
    ]


def parsed(**arguments):
    """The flags, as the program has them."""
    values = flags.FlagValues()
    import_flags.define_flags(values)
    values(["import_checkpoint", *command(arguments)])
    return values


def run(**arguments):
    """Runs it in this process; returns what it printed."""
    values = parsed(**arguments)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        import_checkpoint.run(values)
    return out.getvalue()


def arguments_in(out):
    """The arguments of AdamW that it printed."""
    text = out[out.index("tf_adamw.AdamW(") :].partition("\n)")[0] + ")"
    call = ast.parse(text).body[0].value
    return {k.arg: ast.literal_eval(k.value) for k in call.keywords}


def restored(out, folder, weights, **options):
    """An optimizer as the docstring says, and its variables."""
    variables = helpers.as_variables(weights)
    optimizer = tf_adamw.AdamW(**{**arguments_in(out), **options})
    optimizer.build(variables)
    report = tf_adamw.checkpoint.restore(
        tf.train.Checkpoint(optimizer=optimizer, variables=variables), folder
    )
    return optimizer, variables, report
