r"""Trains a byte-level transformer language model with tf_adamw.AdamW.

With no flag at all it learns the sources of Python's standard library in
about two minutes on two CPU cores:

    python -m tpu_scripts.train_lm

The same on two replicas, in one process and in two:

    python -m tpu_scripts.train_lm --strategy=mirrored
    python -m tpu_scripts.train_lm --strategy=multi_worker --workers_local=2

On a TPU VM, reading and writing a bucket, with other text:

    python -m tpu_scripts.train_lm --strategy=tpu --precision=bfloat16 \
      --data='gs://bucket/text/*.txt' --model_dir=gs://bucket/run \
      --layers=12 --width=768 --heads=12 --sequence_length=1024 \
      --batch_size=256 --steps=100000 --steps_per_loop=100

A run that was killed goes on from its last checkpoint when the same command
is given again, and ends with the same weights; under another strategy or on
another number of replicas, with the same up to rounding. --helpfull lists the
flags of all libraries too.
"""

import atexit
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

# Before TensorFlow is loaded: its own notes would bury the progress line.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
import tqdm
from absl import app, flags

from tf_adamw import AdamW, fuse_on_cpu
from tf_adamw.flags import adamw_from_flags
from tpu_scripts import (
    lm_checkpoints,
    lm_data,
    lm_export,
    lm_flags,
    lm_plot,
    lm_run,
    lm_strategy,
    lm_workers,
)
from tpu_scripts.lm_trainer import Trainer

FLAGS = flags.FLAGS
CONFIG_FLAGS = lm_flags.define_flags()


class Run(NamedTuple):
    """One run, ready to start."""

    strategy: tf.distribute.Strategy
    corpus: lm_data.Corpus
    trainer: Trainer
    model_dir: str  # what the flag says, or a new directory
    output_dir: str  # the same, except on workers that are not the chief


def main(argv: list[str]) -> None:
    """Trains, evaluates, exports, and prints a sample."""
    del argv
    if FLAGS.workers_local:
        sys.exit(lm_workers.run_workers(FLAGS.workers_local))
    lm_workers.end_with_launcher()
    fuse_on_cpu()
    try:
        run = prepare()
        manager = restore(run)
    except ValueError as error:
        lm_flags.fail(str(error))
    print(f"run: {run.model_dir}")
    if step := int(run.trainer.step):
        print(f"resumed at step {step}")
    try:
        history, held_out = train(run, manager)
        if lm_strategy.is_chief(run.strategy):
            finish(run, manager.latest_checkpoint, history, held_out)
    except lm_run.DirectoryError as error:
        lm_flags.fail(str(error))
    lm_strategy.wait_for_workers(run.strategy)


def prepare() -> Run:
    """Makes all that a run needs; writes its directory last.

    Raises:
      ValueError: the flags, the data, the devices and the directory do not
        fit together. Nothing has been written then.
    """
    corpus = lm_data.read_corpus(
        FLAGS.data or [lm_data.standard_library()], FLAGS.held_out_fraction
    )
    config = lm_flags.run_config(CONFIG_FLAGS, corpus)
    if FLAGS.model_dir:
        defaults = {name: FLAGS[name].default for name in CONFIG_FLAGS}
        lm_run.check_directory(FLAGS.model_dir, config, defaults)
    strategy = lm_strategy.make_strategy(
        FLAGS.strategy, FLAGS.tpu, FLAGS.logical_cpus
    )
    trainer = Trainer(
        strategy,
        corpus,
        lm_flags.model_config(),
        make_optimizer,
        FLAGS.batch_size,
        FLAGS.jit_compile,
    )
    chief = lm_strategy.is_chief(strategy)
    model_dir = output_dir = FLAGS.model_dir
    if not (chief and model_dir):
        output_dir = tempfile.mkdtemp(prefix="train_lm_")
    if not chief:
        atexit.register(shutil.rmtree, output_dir, ignore_errors=True)
    lm_run.create_directory(output_dir, config)
    return Run(strategy, corpus, trainer, model_dir or output_dir, output_dir)


def make_optimizer() -> AdamW:
    """The optimizer of the flags; its schedule spans the whole training."""
    return adamw_from_flags(decay_steps=FLAGS.steps)


def restore(run: Run) -> tf.train.CheckpointManager:
    """Goes on from the last good checkpoint, if there is one.

    Raises:
      ValueError: there are checkpoints, and none can be read.
    """
    trainer = run.trainer
    checkpoint = tf.train.Checkpoint(
        model=trainer.model, optimizer=trainer.optimizer, step=trainer.step
    )
    read, written = (
        os.path.join(directory, "checkpoints")
        for directory in (run.model_dir, run.output_dir)
    )
    last = lm_checkpoints.restore_newest(checkpoint, read, run.strategy)
    return lm_checkpoints.manage(
        checkpoint,
        written,
        last if written == read else None,
        FLAGS.keep_checkpoints,
    )


def train(
    run: Run, manager: tf.train.CheckpointManager
) -> tuple[lm_run.History, float]:
    """Trains up to the last step, from wherever the run is now.

    Returns:
      The history of the whole run, and the bits per held-out byte.

    Raises:
      DirectoryError: the disk is full, for example.
    """
    trainer = run.trainer
    first = int(trainer.step)
    with lm_run.writing(run.output_dir):
        history = lm_run.History(run.output_dir, first)
        events = tf.summary.create_file_writer(
            os.path.join(run.output_dir, "events")
        )
    held_out = math.nan if first < FLAGS.steps else trainer.evaluate()
    progress = tqdm.tqdm(
        total=FLAGS.steps,
        initial=first,
        unit="step",
        disable=not lm_strategy.is_chief(run.strategy),
    )
    with progress, events.as_default():
        for step in loop_ends(first):
            record = trainer.train(step - int(trainer.step))
            if step % FLAGS.checkpoint_interval == 0 or step == FLAGS.steps:
                record["held_out"] = held_out = trainer.evaluate()
            with lm_run.writing(run.output_dir):
                history.append(record)
                lm_run.write_summaries(record)
                if "held_out" in record:
                    events.flush()
                    save(run, manager, step)
            progress.set_postfix_str(lm_run.describe(record))
            progress.update(step - progress.n)
    return history, held_out


def save(run: Run, manager: tf.train.CheckpointManager, step: int) -> None:
    """Writes a checkpoint; every worker has to call it, at the same step."""
    manager.save(step)
    if not lm_strategy.is_chief(run.strategy):  # nobody will read it
        tf.io.gfile.rmtree(manager.directory)


def loop_ends(step: int) -> Iterator[int]:
    """The steps at which a call of the training loop ends.

    The host looks every `--steps_per_loop` steps, at every checkpoint, and
    at the last step.
    """
    interval = FLAGS.checkpoint_interval
    while step < FLAGS.steps:
        checkpoint = (step // interval + 1) * interval
        step = min(step + FLAGS.steps_per_loop, checkpoint, FLAGS.steps)
        yield step


def finish(
    run: Run, checkpoint: str, history: lm_run.History, held_out: float
) -> None:
    """Draws the curves, exports the model, loads it and prints a sample."""
    unigram = lm_data.unigram_bits(
        run.corpus, FLAGS.sequence_length, FLAGS.batch_size
    )
    curves = os.path.join(run.output_dir, "curves.png")
    export = os.path.join(run.output_dir, "export")
    exported = lm_export.ExportedModel(
        lm_flags.model_config(), make_optimizer(), checkpoint
    )
    with lm_run.writing(run.output_dir):
        lm_plot.plot_history(history, unigram, curves)
        exported.save(export, FLAGS.batch_size)
    text = lm_export.sample(
        export, FLAGS.prompt, FLAGS.sample_bytes, FLAGS.seed
    )
    print(f"sample of the exported model:\n{text}\n")
    print(f"curves: {curves}")
    print(f"export: {export}")
    print(
        f"held-out text: {held_out:.3f} bits per byte, "
        f"by a unigram model {unigram:.3f}"
    )


if __name__ == "__main__":
    app.run(main, flags_parser=lm_flags.parse)
