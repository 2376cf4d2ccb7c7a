"""Text as bytes, and windows of it in a deterministic, resumable order."""

import dataclasses
import hashlib
import sysconfig
from collections.abc import Sequence

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The bytes to train on and those held out, uint8 arrays."""

    train: np.ndarray
    held_out: np.ndarray
    files: int
    digest: str  # of the digests of all files, in order


def standard_library() -> str:
    """The glob of the Python standard library's own modules."""
    return f"{sysconfig.get_paths()['stdlib']}/*.py"


def read_corpus(patterns: Sequence[str], held_out_fraction: float) -> Corpus:
    """Reads all files that the patterns match.

    The files are put in the order of their SHA-256: it depends on nothing but
    their contents, a file that occurs twice counts once, and the end of the
    text, which is held out, is a random sample of the files. The cut is
    between two files, unless the share held out would then be wrong by more
    than a half: then it is in the middle of a file.

    Args:
      patterns: paths and globs, anything that `tf.io.gfile` understands.
      held_out_fraction: the share of the bytes to hold out, in (0, 1).

    Returns:
      The corpus.

    Raises:
      ValueError: a pattern matches no file, or a file cannot be read.
    """
    texts = {}
    for path in _matching_files(patterns):
        try:
            text = tf.io.gfile.GFile(path, "rb").read()
        except tf.errors.OpError as error:
            raise ValueError(
                f"--data: cannot read {path!r}: {error.message}"
            ) from error
        texts[hashlib.sha256(text).digest()] = text
    digests = sorted(texts)
    joined = np.frombuffer(b"".join(texts[d] for d in digests), np.uint8)
    split = _split([len(texts[d]) for d in digests], held_out_fraction)
    return Corpus(
        train=joined[:split],
        held_out=joined[split:],
        files=len(texts),
        digest=hashlib.sha256(b"".join(digests)).hexdigest(),
    )


def _split(lengths: Sequence[int], held_out_fraction: float) -> int:
    """Where the text is cut, in bytes."""
    ends = np.cumsum(lengths)
    held_out = int(ends[-1] * held_out_fraction)
    wanted = int(ends[-1]) - held_out
    nearest = int(ends[np.argmin(np.abs(ends - wanted))])
    return nearest if abs(nearest - wanted) <= held_out / 2 else wanted


def _matching_files(patterns: Sequence[str]) -> list[str]:
    paths: set[str] = set()
    for pattern in patterns:
        # A path as it stands comes first: it may contain glob characters.
        found = (
            [pattern]
            if tf.io.gfile.exists(pattern)
            else tf.io.gfile.glob(pattern)
        )
        files = [path for path in found if not tf.io.gfile.isdir(path)]
        if not files:
            raise ValueError(f"--data: {pattern!r} matches no file")
        paths.update(files)
    return sorted(paths)


def window_count(text: np.ndarray, length: int) -> int:
    """The number of windows of `length` + 1 bytes, `length` apart."""
    return max(0, (len(text) - 1) // length)


def full_batches(text: np.ndarray, length: int, batch_size: int) -> int:
    """The number of batches of windows, without a smaller last one."""
    return window_count(text, length) // batch_size


def training_windows(
    text: np.ndarray,
    length: int,
    batch_size: int,
    first_step: int,
    seed: int,
    context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Batches of shuffled windows, without end.

    The windows of step s are a pure function of `seed` and s: example
    i = s * batch_size + j is window `shuffle(i % n)` of epoch i // n, where
    each epoch has its own permutation, computed and not stored. To resume is
    to start at `first_step`.

    Args:
      text: uint8 [bytes].
      length: bytes to predict per window.
      batch_size: examples per step over all input pipelines.
      first_step: the step to begin with.
      seed: seed of the permutations.
      context: which of the input pipelines this one is; each reads a
        disjoint part of every step's examples. One pipeline by default.

    Returns:
      A dataset of int32 [batch per replica, length + 1].
    """
    windows = window_count(text, length)

    def shuffled(example: tf.Tensor) -> tf.Tensor:
        epoch = example // windows
        return tf.random.experimental.index_shuffle(
            example % windows, tf.stack([seed, epoch]), windows - 1
        )

    # Infinite, as workers see: they need not agree on whether there is more.
    examples = tf.data.Dataset.counter(first_step * batch_size).map(shuffled)
    return _batches(examples, text, length, batch_size, context)


def held_out_windows(
    text: np.ndarray,
    length: int,
    batch_size: int,
    context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """The windows of the text in order, once, in full batches only.

    Args and result are those of `training_windows`.
    """
    full = full_batches(text, length, batch_size)
    windows = tf.data.Dataset.range(full * batch_size)
    return _batches(windows, text, length, batch_size, context)


def _batches(
    windows: tf.data.Dataset,
    text: np.ndarray,
    length: int,
    batch_size: int,
    context: tf.distribute.InputContext | None,
) -> tf.data.Dataset:
    """The given windows of the text, this pipeline's share, in batches."""
    context = context or tf.distribute.InputContext()
    text = tf.constant(text)

    def read(window: tf.Tensor) -> tf.Tensor:
        piece = tf.slice(text, [window * length], [length + 1])
        return tf.cast(piece, tf.int32)

    return (
        windows.shard(context.num_input_pipelines, context.input_pipeline_id)
        .map(read)
        .batch(
            context.get_per_replica_batch_size(batch_size),
            drop_remainder=True,
        )
        .prefetch(tf.data.AUTOTUNE)
    )


def unigram_bits(corpus: Corpus, length: int, batch_size: int) -> float:
    """Bits per held-out byte under the byte frequencies of the training text.

    Every count is one higher than seen, so that no byte is impossible. The
    bytes are those that the model has to predict in `held_out_windows`.
    """
    text = corpus.held_out
    predicted = full_batches(text, length, batch_size) * batch_size * length
    counts = np.bincount(corpus.train, minlength=256) + 1.0
    bits = -np.log2(counts / counts.sum())
    return float(bits[text[1 : 1 + predicted]].mean())
