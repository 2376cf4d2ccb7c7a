"""The checkpoints of a run: the newest good one is the one to go on from.

A kill leaves a checkpoint that is not finished, a full disk or a copy that was
cut off a damaged one. Those are passed over: what is left of the first kind is
deleted, the files of the second get other names. A file that cannot be read for
another reason, which may be gone in a minute, ends the program.
"""

import os
import re
import sys
from typing import NamedTuple

import tensorflow as tf

import tf_adamw.checkpoint
from tf_adamw.checkpoint_file import CheckpointFile
from tpu_scripts import lm_run

_NOTHING, _DAMAGED = -1, -2  # in place of a checkpoint's number
_FILE = re.compile(r"ckpt-(\d+)(?:\.(index)|\.(data-)|_(temp))")
_LEFT = re.compile(r"ckpt-\d+_temp|checkpoint\.tmp")
_ASIDE = "damaged-"  # what the names of passed over files begin with then
# TensorFlow's own file of the last checkpoint, and of all it may delete.
_STATE = "checkpoint"
_ENTRY = re.compile(
    rb'^(all_)?model_checkpoint_paths?: "(?:[^"]*/)?ckpt-(\d+)"$', re.MULTILINE
)


class _Found(NamedTuple):
    """What a directory of checkpoints holds."""

    numbers: set[int]  # of the checkpoints of which there is any file
    whole: set[int]  # of those with an index and data
    begun: set[int]  # of those that were being saved when a kill came
    state: bool  # whether there is a file that names the last one
    last: int | None  # what that file says, if it can be read
    listed: set[int]
    by_hand: bool  # whether that file is one that TensorFlow does not write

    def is_unfinished(self, number: int) -> bool:
        """Whether a kill explains that it cannot be read."""
        return number in self.begun - self.listed

    def candidates(self) -> set[int]:
        """Those to try, the newest first.

        Not those after the one that the state file names, except if that file
        is none the wiser: a kill came before it was written, or a copy after.
        """
        if self.last is None:
            return self.numbers
        older = {n for n in self.numbers if n < self.last}
        unknown = set() if self.by_hand else self.numbers - self.listed
        return {self.last} | older | unknown


def restore_newest(
    checkpoint: tf.train.Checkpoint,
    directory: str,
    strategy: tf.distribute.Strategy,
) -> int | None:
    """Restores the newest checkpoint that can be read.

    It says on stderr which newer ones there are, and why it cannot read them or
    does not try.

    Args:
      checkpoint: what to restore.
      directory: the directory of the checkpoints; it may be absent.
      strategy: each of its workers calls this, and restores the same one.

    Returns:
      The number of the checkpoint, or None if none has been finished yet.

    Raises:
      ValueError: there are checkpoints and none can be read, or one is not of
        this program: nothing has changed then; or not all workers can read
        one; or one cannot be read for another reason than damage.
    """
    found = _look(directory)
    bad: dict[int, str] = {}
    limit = sys.maxsize
    while True:
        number = _restore_below(checkpoint, directory, found, limit, bad)
        numbers = _of_all_workers(strategy, number)
        if number == _DAMAGED or len(set(numbers)) == 1:
            break
        if min(numbers) < 0:
            raise ValueError(
                f"--model_dir: some workers find a checkpoint in {directory!r} "
                "and some find none: all have to read the same directory"
            )
        limit = min(numbers)
    reasons = [bad[n] for n in sorted(bad) if not found.is_unfinished(n)]
    if number == _DAMAGED:
        rest = "; no older one can be read either" if reasons[1:] else ""
        raise ValueError(f"--model_dir: {reasons[-1]}{rest}")
    state = os.path.join(directory, _STATE)
    if number == _NOTHING:
        if found.state:
            raise ValueError(f"--model_dir: {state!r} names no checkpoint")
        return None
    if found.last is None:
        reasons.append(f"{state!r} names no checkpoint: looking for its files")
    if newer := found.whole - found.candidates():
        names = ", ".join(f"ckpt-{n}" for n in sorted(newer))
        reasons.append(
            f"{state!r} names ckpt-{found.last}; there are newer ones, which "
            f"will be overwritten or deleted: {names}"
        )
    for reason in reversed(reasons):
        print(f"train_lm: {reason}", file=sys.stderr)
    return number


@lm_run.naming_the_flag()
def manage(
    checkpoint: tf.train.Checkpoint,
    directory: str,
    restored: int | None,
    keep: int,
) -> tf.train.CheckpointManager:
    """Removes what a kill has left, and makes what saves from now on.

    It renames the checkpoints that were passed over, and says so on stderr.

    Args:
      checkpoint: what to save.
      directory: where, nobody else may write there.
      restored: the number of the checkpoint that the run goes on from.
      keep: how many checkpoints to keep.

    Returns:
      What saves: it counts the checkpoints newer than `restored` as the
      oldest ones, to be overwritten or deleted first.

    Raises:
      ValueError: the directory cannot be written; or `restored` is None, and
        there is a good checkpoint.
    """
    found = _look(directory)
    if restored is not None:
        aside = {
            number
            for number in found.candidates() & found.numbers
            if number > restored and not _is_left(directory, found, number)
        }
        for number in sorted(aside, reverse=True):
            _put_aside(directory, number)
        _write_state(directory, found.numbers - aside, restored)
    else:
        for number in found.numbers:
            if not _is_left(directory, found, number):
                raise ValueError(
                    f"--model_dir: ckpt-{number} in {directory!r} could not "
                    "be read, and can now: start again"
                )
        _remove(directory, re.compile(r"ckpt-\d+\."))
    # Last: they tell an unfinished checkpoint from a damaged one.
    _remove(directory, _LEFT)
    return tf.train.CheckpointManager(checkpoint, directory, keep)


def _is_left(directory: str, found: _Found, number: int) -> bool:
    """Whether it was being saved when a kill came, and cannot be read."""
    if number not in found.whole or not found.is_unfinished(number):
        return found.is_unfinished(number)
    try:
        CheckpointFile(os.path.join(directory, f"ckpt-{number}")).check()
    except tf_adamw.checkpoint.DamagedCheckpointError:
        return True
    return False


def _put_aside(directory: str, number: int) -> None:
    """Renames the files, so that the run does not delete them."""
    prefix = f"ckpt-{number}."
    for name in _names(directory):
        if name.startswith(prefix):
            tf.io.gfile.rename(
                os.path.join(directory, name),
                os.path.join(directory, _ASIDE + name),
                overwrite=True,
            )
    print(
        f"train_lm: renamed {prefix}* in {directory!r} to {_ASIDE}{prefix}*",
        file=sys.stderr,
    )


def _write_state(directory: str, numbers: set[int], last: int) -> None:
    """Writes TensorFlow's list of the checkpoints, what it deletes first first.

    It wants to know when each was saved: only the order matters here.
    """
    lines = [f'model_checkpoint_path: "ckpt-{last}"\n']
    ordered = sorted(numbers, key=lambda number: (number <= last, number))
    for time, number in enumerate(ordered, 1):
        lines.append(f'all_model_checkpoint_paths: "ckpt-{number}"\n')
        lines.append(f"all_model_checkpoint_timestamps: {time}\n")
    lm_run.write_text(os.path.join(directory, _STATE), "".join(lines))


def _names(directory: str) -> list[str]:
    """What is in the directory, if it is there."""
    try:
        # `isdir` and `listdir` say "not found" whatever went wrong.
        tf.io.gfile.stat(directory)
    except tf.errors.NotFoundError:
        return []
    return [name.rstrip("/") for name in tf.io.gfile.listdir(directory)]


def _remove(directory: str, pattern: re.Pattern[str]) -> None:
    for name in filter(pattern.match, _names(directory)):
        path = os.path.join(directory, name)
        if tf.io.gfile.isdir(path):
            tf.io.gfile.rmtree(path)
        else:
            tf.io.gfile.remove(path)


@lm_run.naming_the_flag()
def _look(directory: str) -> _Found:
    index, data, begun = set(), set(), set()
    names = _names(directory)
    for match in filter(None, map(_FILE.match, names)):
        where = index if match[2] else data if match[3] else begun
        where.add(int(match[1]))
    entries = []
    if state := _STATE in names:
        path = os.path.join(directory, _STATE)
        with tf.io.gfile.GFile(path, "rb") as file:
            entries = _ENTRY.findall(file.read())
    last = [int(number) for every, number in entries if not every]
    return _Found(
        numbers=index | data,
        whole=index & data,
        begun=begun,
        state=state,
        last=last[0] if last else None,
        listed={int(number) for _, number in entries},
        by_hand=not any(every for every, _ in entries),
    )


@lm_run.naming_the_flag()
def _restore_below(
    checkpoint: tf.train.Checkpoint,
    directory: str,
    found: _Found,
    limit: int,
    bad: dict[int, str],
) -> int:
    """Restores the newest that can be read, with at most that number.

    Adds to `bad` those that cannot, and why.
    """
    for number in sorted(found.candidates() - bad.keys(), reverse=True):
        if number > limit:
            continue
        path = os.path.join(directory, f"ckpt-{number}")
        try:
            tf_adamw.checkpoint.restore(checkpoint, path, strict=True)
            return number
        except tf_adamw.checkpoint.DamagedCheckpointError as error:
            bad[number] = " ".join(str(error).split())
    damaged = any(not found.is_unfinished(number) for number in bad)
    return _DAMAGED if damaged else _NOTHING


def _of_all_workers(strategy: tf.distribute.Strategy, value: int) -> list[int]:
    """The values that all workers of a cluster call this with."""

    @tf.function
    def gather() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return context.all_gather(tf.constant([value]), axis=0)

    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return [value]
    values = strategy.experimental_local_results(strategy.run(gather))[0]
    return values.numpy().tolist()
