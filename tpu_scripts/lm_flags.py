"""The flags of `train_lm`, and what they say about a run."""

import os
from typing import Any, NoReturn

from absl import flags, logging

from tf_adamw import flags as adamw_flags
from tpu_scripts import command_line, lm_data, lm_model, lm_strategy

flags.disclaim_key_flags()

# What a run is made of besides the optimizer: it cannot change on resuming.
_FIXED = (
    "layers",
    "width",
    "heads",
    "sequence_length",
    "batch_size",
    "held_out_fraction",
    "precision",
    "seed",
)

# Where the optimizer's own defaults are not those of this training.
OPTIMIZER_DEFAULTS: dict[str, Any] = {
    "learning_rate": 3e-3,
    "learning_rate_schedule": "cosine",
    "warmup_steps": 100,
    "weight_decay": 0.1,
    "beta_2": 0.98,
    "global_clipnorm": 1.0,
    "exclude_from_weight_decay": ["norm"],
}


def define_flags() -> list[str]:
    """Defines all flags.

    Returns:
      The names of those that make up the configuration of a run.
    """
    define_model_flags()
    _define_data_flags()
    _define_run_flags()
    _define_strategy_flags()
    optimizer = adamw_flags.define_adamw_flags(**OPTIMIZER_DEFAULTS)
    flags.register_multi_flags_validator(
        ["precision", "loss_scale_factor"],
        lambda values: (
            values["precision"] != "float16" or values["loss_scale_factor"]
        ),
        "--precision=float16 needs --loss_scale_factor, dynamic for example",
    )
    flags.register_multi_flags_validator(
        ["steps", "gradient_accumulation_steps"],
        lambda values: (
            values["steps"] % (values["gradient_accumulation_steps"] or 1) == 0
        ),
        "--steps must be a multiple of --gradient_accumulation_steps",
    )
    flags.register_validator(
        "aggregation",
        lambda value: value != "none",
        "the gradients of this program's replicas are not reduced yet",
    )
    return [*_FIXED, *optimizer]


def define_model_flags() -> None:
    """Defines the flags of the model, its batches and its seed."""
    flags.DEFINE_integer("layers", 4, "Transformer blocks.", lower_bound=1)
    flags.DEFINE_integer("width", 128, "Hidden size.", lower_bound=1)
    flags.DEFINE_integer("heads", 4, "Attention heads.", lower_bound=1)
    flags.DEFINE_integer(
        "sequence_length", 128, "Bytes per training example.", lower_bound=1
    )
    flags.DEFINE_integer(
        "batch_size", 8, "Examples per step, over all replicas.", lower_bound=1
    )
    flags.DEFINE_enum(
        "precision",
        "float32",
        list(lm_model.COMPUTE_DTYPES),
        "Dtype of the activations; the weights are float32 always.",
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Seed of the initial weights and of the order of the data.",
        lower_bound=0,
        upper_bound=2**31 - 1,
    )
    flags.register_multi_flags_validator(
        ["width", "heads"],
        lambda values: values["width"] % values["heads"] == 0,
        "--width must be a multiple of --heads",
    )


def _define_data_flags() -> None:
    flags.DEFINE_list(
        "data",
        None,
        "Comma-separated files and globs of text to learn. Default: the "
        "modules of this Python's standard library.",
    )
    flags.DEFINE_float(
        "held_out_fraction",
        0.05,
        "Share of the text to evaluate on and never train on.",
    )
    flags.register_validator(
        "held_out_fraction",
        lambda value: 0 < value <= 0.5,
        "must be a number in (0, 0.5]",
    )


def _define_run_flags() -> None:
    flags.DEFINE_integer("steps", 1500, "Training steps.", lower_bound=1)
    flags.DEFINE_integer(
        "steps_per_loop",
        20,
        "Steps in one call of the compiled loop; the host looks in between.",
        lower_bound=1,
    )
    flags.DEFINE_string(
        "model_dir",
        None,
        "Directory of checkpoints, events, curves and export; a run found in "
        "it is resumed. Default: a new temporary directory.",
    )
    flags.register_validator(
        "model_dir",
        lambda value: not set(value or "") & set("*?[]\\"),
        "TensorFlow takes a name with one of *?[]\\ for a pattern",
    )
    flags.DEFINE_integer(
        "checkpoint_interval",
        600,
        "Steps between checkpoints, each with a held-out evaluation.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "keep_checkpoints", 3, "Checkpoints to keep.", lower_bound=1
    )
    flags.DEFINE_string(
        "prompt", "def ", "What the sample printed at the end begins with."
    )
    flags.DEFINE_integer(
        "sample_bytes", 300, "Length of that sample.", lower_bound=1
    )


def _define_strategy_flags() -> None:
    flags.DEFINE_enum(
        "strategy", "default", lm_strategy.KINDS, "Where to train."
    )
    flags.DEFINE_string(
        "tpu",
        None,
        "Name of the TPU for --strategy=tpu; `local` on a TPU VM (default).",
    )
    flags.register_multi_flags_validator(
        ["strategy", "tpu"],
        lambda values: values["tpu"] is None or values["strategy"] == "tpu",
        "--tpu needs --strategy=tpu",
    )
    flags.DEFINE_integer(
        "logical_cpus",
        2,
        "Replicas of --strategy=mirrored where there is no GPU.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "workers_local",
        0,
        "Workers that --strategy=multi_worker starts on this machine, without "
        "its GPUs. 0: this is one worker, TF_CONFIG tells which.",
        lower_bound=0,
    )
    flags.register_multi_flags_validator(
        ["strategy", "workers_local"],
        lambda values: (
            not values["workers_local"] or values["strategy"] == "multi_worker"
        ),
        "--workers_local needs --strategy=multi_worker",
    )


def parse(argv: list[str]) -> list[str]:
    """Parses the command line; one line and exit code 2 if it is wrong."""
    rest = command_line.parse("train_lm", argv)
    if flags.FLAGS["warmup_steps"].using_default_value:
        # A short training has a short warm-up.
        length = flags.FLAGS.decay_steps or flags.FLAGS.steps
        flags.FLAGS.warmup_steps = min(flags.FLAGS.warmup_steps, length // 10)
    if flags.FLAGS["verbosity"].using_default_value:
        # TensorFlow's own notes would bury the progress line.
        flags.FLAGS.verbosity = logging.WARNING
    if len(rest) > 1:
        fail(f"{rest[1]!r} is not a flag")
    if flags.FLAGS.workers_local and "TF_CONFIG" in os.environ:
        fail("--workers_local starts a cluster, TF_CONFIG is that of another")
    return rest


def fail(message: str) -> NoReturn:
    """Ends the program with one line on stderr and exit code 2."""
    command_line.fail("train_lm", message)


def model_config() -> lm_model.ModelConfig:
    """The model that the flags describe."""
    values = flags.FLAGS
    return lm_model.ModelConfig(
        layers=values.layers,
        width=values.width,
        heads=values.heads,
        context=values.sequence_length,
        precision=values.precision,
        seed=values.seed,
    )


def run_config(names: list[str], corpus: lm_data.Corpus) -> dict[str, Any]:
    """What must be the same when a run is resumed, JSON-able."""
    config = {name: flags.FLAGS[name].value for name in names}
    if config["learning_rate_schedule"] == "cosine":
        # The number of steps may grow, the length of the schedule not.
        config["decay_steps"] = config["decay_steps"] or flags.FLAGS.steps
    config["data"] = f"{corpus.files} files, SHA-256 {corpus.digest}"
    return config
