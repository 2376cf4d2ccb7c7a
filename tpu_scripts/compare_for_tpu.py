r"""Compares tf_adamw's step with Keras's, by option, on the TPU compiler.

    python -m tpu_scripts.compare_for_tpu --topologies=v5e:2x2,v6e:2x4

One variable of 4096 x 8192 elements in float32, on each replica a gradient of
its own. Prints a Markdown table for each slice. The columns:

    floor        bytes of HBM that the update has to move at least, per
                 parameter (tpu_scripts/aot/floor.py)
    HBM          bytes that its kernels do move; with accumulation in a
                 micro-step that only accumulates / in one that updates
    all-reduce   bytes that the collectives move in HBM beside it
    temporaries  bytes that the step needs beside state and gradients
    kernels      fusions, copies and custom calls on arrays
    scalar       operations on the scalar core
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from tf_adamw import AdamW
from tpu_scripts import command_line
from tpu_scripts.aot import compiler, report, steps

FLAGS = flags.FLAGS
SHAPES = {"kernel": (4096, 8192)}


def _schedule() -> Any:
    from keras.optimizers import schedules

    return schedules.CosineDecay(1e-3, 10_000)


COMMON: dict[str, dict[str, Any]] = {
    "plain": {},
    "AMSGrad": {"amsgrad": True},
    "clipvalue": {"clipvalue": 1.0},
    "clipnorm": {"clipnorm": 1.0},
    "global_clipnorm": {"global_clipnorm": 1.0},
    "EMA": {"use_ema": True},
    "EMA that overwrites": {"use_ema": True, "ema_overwrite_frequency": 100},
    "loss scale": {"loss_scale_factor": 1024.0},
    "cosine schedule": {"learning_rate": _schedule},
    "accumulation": {"gradient_accumulation_steps": 4},
    "accumulation, EMA, global_clipnorm": {
        "gradient_accumulation_steps": 4,
        "use_ema": True,
        "global_clipnorm": 1.0,
    },
}
OURS: dict[str, dict[str, Any]] = {
    "skip_nonfinite": {"skip_nonfinite": True},
    "skip_nonfinite, global_clipnorm": {
        "skip_nonfinite": True,
        "global_clipnorm": 1.0,
    },
    "dynamic loss scale": {"loss_scale_factor": "dynamic"},
    "exclusion": {"exclude_from_weight_decay": ["kernel"]},
    "rate multiplier": {"learning_rate_multipliers": {"kernel": 0.5}},
    "decay multiplier": {"weight_decay_multipliers": {"kernel": 0.5}},
    "decay schedule": {"weight_decay": _schedule},
    "decay follows the schedule": {"decay_coupling": "schedule"},
    "decay follows nothing": {"decay_coupling": "none"},
    "norms of groups": {"norm_groups": {"all": "kernel"}},
    "mean over replicas": {"aggregation": "mean"},
    "nothing reduced": {"aggregation": "none"},
    "nothing reduced, accumulation": {
        "aggregation": "none",
        "gradient_accumulation_steps": 4,
    },
    "all of them": {
        "learning_rate": _schedule,
        "amsgrad": True,
        "global_clipnorm": 1.0,
        "use_ema": True,
        "ema_overwrite_frequency": 100,
        "loss_scale_factor": "dynamic",
        "gradient_accumulation_steps": 4,
    },
}
_HEAD = (
    "| option | floor | HBM | all-reduce | temporaries | kernels | scalar "
    "| Keras: HBM | all-reduce | temporaries | kernels | scalar |\n"
    f"|{' --- |' * 12}"
)


def main(argv: list[str]) -> None:
    """Prints the tables."""
    del argv
    for package in ("keras", "tqdm"):
        if importlib.util.find_spec(package) is None:
            print(
                f"compare_for_tpu: {package} is needed: pip install '.[train]'",
                file=sys.stderr,
            )
            sys.exit(2)
    import tqdm

    for topology in FLAGS.topologies:
        try:
            replicas = compiler.count_replicas(topology)
            print(f"{topology}, {replicas} replicas, bytes per parameter:\n")
            print(_HEAD)
            for name in tqdm.tqdm({**COMMON, **OURS}, unit="option"):
                print(f"| {' | '.join(cells(name, topology, replicas))} |")
            print(flush=True)
        except (ImportError, compiler.CompilerError) as error:
            print(f"compare_for_tpu: {error}", file=sys.stderr)
            sys.exit(1 if isinstance(error, compiler.CompilerError) else 2)


def cells(name: str, topology: str, replicas: int) -> Iterator[str]:
    """The row of an option."""
    options = {**COMMON, **OURS}[name]
    ours = steps.optimizer_step(
        lambda: AdamW(**_made(options)), SHAPES, replicas
    )
    found = report.figures(
        ours, compiler.compile_program(ours.program, topology)
    )
    yield name
    yield _range(found, "floor_bytes")
    yield from _costs(found)
    if name not in COMMON:
        yield from ["has not", *[""] * 4]
        return
    keras = steps.keras_step(_made(options), SHAPES, replicas)
    yield from _costs(
        report.figures(keras, compiler.compile_program(keras.program, topology))
    )


def _made(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v() if callable(v) else v for k, v in options.items()}


def _costs(found: dict[str, Any]) -> Iterator[str]:
    count, kernels = found["parameters"], dict(found["kernels"])
    yield _range(found, "hbm_bytes")
    yield f"{found['collective_hbm_bytes'] / count:.1f}"
    yield f"{found['memory']['temporaries'] / count:.1f}"
    scalar = kernels.pop("scalar operations", 0)
    kernels.pop("collectives", None)
    yield str(sum(kernels.values()))
    yield str(scalar)


def _range(found: dict[str, Any], name: str) -> str:
    """Of the cheapest and the costliest branches."""
    least, most = found[f"{name}_least"], found[name]
    values = [least, most] if least != most else [most]
    return " / ".join(f"{value / found['parameters']:.2f}" for value in values)


if __name__ == "__main__":
    flags.DEFINE_list(
        "topologies",
        ["v5e:2x2", "v6e:2x4"],
        "The slices, as libtpu names them.",
    )
    parse = functools.partial(command_line.parse, "compare_for_tpu")
    app.run(main, flags_parser=parse)
