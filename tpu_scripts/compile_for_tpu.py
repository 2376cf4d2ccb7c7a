r"""Compiles a training step for a TPU, on a machine that has none.

The bare optimizer step on the shapes of a model, for eight replicas:

    python -m tpu_scripts.compile_for_tpu --topology=v5e:2x4 \
      --shapes=gpt2-small --use_ema --global_clipnorm=1

Keras's AdamW for comparison:

    python -m tpu_scripts.compile_for_tpu --optimizer=keras --use_ema

The whole step of train_lm, forward and backward, with train_lm's flags and
their defaults, for a pod slice of 256 replicas:

    python -m tpu_scripts.compile_for_tpu --topology=v5e:16x16 \
      --step=train_lm --layers=12 --width=768 --heads=12

It prints a table and writes the same figures as JSON. The exit code is 1, with
the compiler's message, when the compiler refuses the program.
"""

import functools
import inspect
import json
import os
import sys
from typing import Any, NoReturn

# Before TensorFlow is loaded: its own notes would bury the table.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from tf_adamw import AdamW
from tf_adamw import flags as adamw_flags
from tpu_scripts import command_line, lm_flags, lm_model
from tpu_scripts.aot import compiler, report, shapes, steps

FLAGS = flags.FLAGS
STEPS = ("optimizer", "train_lm")
OPTIMIZERS = ("adamw", "keras")
_EXAMPLES_PER_REPLICA = 8
_DECAY_STEPS = 10_000  # a schedule's length is a constant like any other


def define_flags() -> None:
    """Defines all flags."""
    flags.DEFINE_string(
        "topology",
        "v5e:2x4",
        "The slice: v5e:2x4, v6e:16x16, v4:2x2x1, whatever libtpu knows.",
    )
    flags.DEFINE_enum(
        "step", "optimizer", STEPS, "The optimizer alone, or the training."
    )
    flags.DEFINE_enum(
        "optimizer", "adamw", OPTIMIZERS, "Whose AdamW: tf_adamw's or Keras's."
    )
    flags.DEFINE_string(
        "shapes",
        "gpt2-small",
        f"Variables of --step=optimizer: {', '.join(shapes.NAMED)}, or a JSON "
        'file like {"kernel": [768, 3072]}. --precision is their dtype.',
    )
    flags.DEFINE_string(
        "json", "compile_for_tpu.json", "Where to write the figures."
    )
    flags.DEFINE_string(
        "hlo_dir", None, "Where to write the optimized HLO. Default: nowhere."
    )
    lm_flags.define_model_flags()
    helps = {
        "precision": "Dtype of the activations, or of the variables of "
        "--step=optimizer.",
        "batch_size": "Examples per step, over all replicas. Default: "
        f"{_EXAMPLES_PER_REPLICA} per replica.",
    }
    for name, text in helps.items():
        FLAGS[name].help = text
    for name in ("json", "topology"):
        flags.register_validator(name, bool, "must not be empty")
    adamw_flags.define_adamw_flags()


def main(argv: list[str]) -> None:
    """Traces, compiles, prints and writes."""
    if len(argv) > 1:
        fail(f"{argv[1]!r} is not a flag")
    try:
        _check_outputs()
        replicas = compiler.count_replicas(FLAGS.topology)
        step = make_step(replicas)
        executable = compiler.compile_program(step.program, FLAGS.topology)
    except (ImportError, ValueError) as error:
        fail(str(error))
    except compiler.CompilerError as error:
        print(f"compile_for_tpu: {error}", file=sys.stderr)
        sys.exit(1)
    found = {
        "arguments": sys.argv[1:],
        "versions": compiler.versions(),
        "step": _describe_step(),
        "topology": FLAGS.topology,
        "replicas": replicas,
    }
    found |= report.figures(step, executable)
    print(report.table(found))
    contents = {
        "figures": json.dumps(found, indent=2),
        "HLO": executable.module.text,
    }
    for name, path in _outputs().items():
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(contents[name])
        except OSError as error:
            fail(str(error))
        print(f"{name}: {path}")


def _outputs() -> dict[str, str]:
    """The files to write, by what is in them."""
    if not FLAGS.hlo_dir:
        return {"figures": FLAGS.json}
    hlo = os.path.join(FLAGS.hlo_dir, "optimized.hlo")
    return {"figures": FLAGS.json, "HLO": hlo}


def _describe_step() -> str:
    if FLAGS.step == "train_lm":
        return "train_lm"
    whose = {"adamw": "tf_adamw.AdamW", "keras": "keras.optimizers.AdamW"}
    return f"{whose[FLAGS.optimizer]} on {FLAGS.shapes}, {FLAGS.precision}"


def _check_outputs() -> None:
    """Before the minutes that a compilation may take.

    Raises:
      ValueError: a file cannot be written.
    """
    flag = {"figures": "json", "HLO": "hlo_dir"}
    for name, path in _outputs().items():
        try:
            os.makedirs(os.path.dirname(path) or os.curdir, exist_ok=True)
            is_new = not os.path.exists(path)
            with open(path, "a", encoding="utf-8"):
                pass
            if is_new:
                os.remove(path)
        except OSError as error:
            raise ValueError(f"--{flag[name]}: {error}") from error


def make_step(replicas: int) -> steps.Step:
    """Traces the step that the flags describe.

    Raises:
      ValueError: they do not fit together.
    """
    if FLAGS.step == "train_lm":
        return _lm_step(replicas)
    dtype = lm_model.COMPUTE_DTYPES[FLAGS.precision]
    found = shapes.read(FLAGS.shapes)
    if FLAGS.optimizer == "keras":
        return steps.keras_step(_keras_options(), found, replicas, dtype)
    return steps.optimizer_step(make_optimizer, found, replicas, dtype)


def _lm_step(replicas: int) -> steps.Step:
    if FLAGS.optimizer == "keras":
        raise ValueError("--step=train_lm trains with --optimizer=adamw alone")
    if FLAGS["shapes"].present:
        raise ValueError("--step=train_lm has its model's flags, not --shapes")
    for name, value in lm_flags.OPTIMIZER_DEFAULTS.items():
        FLAGS.set_default(name, value)
    FLAGS.set_default("batch_size", _EXAMPLES_PER_REPLICA * replicas)
    return steps.lm_step(
        make_optimizer, lm_flags.model_config(), FLAGS.batch_size, replicas
    )


def make_optimizer() -> AdamW:
    """The optimizer of the flags."""
    return adamw_flags.adamw_from_flags(decay_steps=_DECAY_STEPS)


def _keras_options() -> dict[str, Any]:
    """The flags as arguments of Keras's AdamW.

    It has those of tf_adamw's that are not keyword-only.
    """
    options = {}
    for name, parameter in inspect.signature(AdamW).parameters.items():
        if name in ("name", "learning_rate"):
            continue
        if parameter.kind != parameter.KEYWORD_ONLY:
            options[name] = FLAGS[name].value
        elif FLAGS[name].value != FLAGS[name].default:
            raise ValueError(f"--{name}: Keras's AdamW has no such argument")
    if FLAGS.loss_scale_factor == "dynamic":
        raise ValueError("--loss_scale_factor=dynamic: Keras's AdamW has none")
    options["learning_rate"] = adamw_flags.learning_rate_from_flags(
        decay_steps=_DECAY_STEPS
    )
    return options


def fail(message: str) -> NoReturn:
    """Ends the program with one line on stderr and exit code 2."""
    command_line.fail("compile_for_tpu", message)


if __name__ == "__main__":
    define_flags()
    parse = functools.partial(command_line.parse, "compile_for_tpu")
    app.run(main, flags_parser=parse)
