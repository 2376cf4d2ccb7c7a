"""The directory of one run: its configuration and its history."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

_CONFIG = "config.json"
# What TensorFlow puts around the message of an op that failed.
_OP = re.compile(r"^\{\{.*?\}\} | \[Op:\w+\]")


class DirectoryError(ValueError):
    """A directory cannot be written any more, in the middle of a run."""


@contextlib.contextmanager
def naming_the_flag() -> Iterator[None]:
    """Turns the errors of the file system into ValueErrors."""
    try:
        yield
    except tf.errors.OpError as error:
        raise ValueError(f"--model_dir: {error.message}") from error


@contextlib.contextmanager
def writing(directory: str) -> Iterator[None]:
    """Turns the errors of files below the directory into DirectoryErrors.

    What fails in it for another reason, as that a worker is gone, does not
    name a file, and stays as it is.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if os.path.join(directory, "") not in error.message:
            raise
        reason = _OP.sub("", error.message)
        raise DirectoryError(
            f"cannot write to {directory!r}: {reason}"
        ) from error


@naming_the_flag()
def check_directory(
    directory: str, config: dict[str, Any], defaults: dict[str, Any]
) -> None:
    """Checks that a run with this configuration may use the directory.

    Args:
      directory: a directory that is absent, empty, or that of a run.
      config: the configuration, JSON-able.
      defaults: the values of what the configuration of an older run lacks.

    Raises:
      ValueError: it holds a run of another configuration, or other files, or
        cannot be read.
    """
    if not tf.io.gfile.exists(directory):
        return
    if not tf.io.gfile.isdir(directory):
        raise ValueError(f"--model_dir: {directory!r} is not a directory")
    path = os.path.join(directory, _CONFIG)
    if not tf.io.gfile.exists(path):
        # A run that was killed at its very start leaves the partial one.
        if {*tf.io.gfile.listdir(directory)} - {_partial(_CONFIG)}:
            raise ValueError(
                f"--model_dir: {directory!r} holds files but no {_CONFIG}: "
                "it is not the directory of a run"
            )
        return
    try:
        with tf.io.gfile.GFile(path) as file:
            found = json.load(file)
    except ValueError as error:
        raise ValueError(f"--model_dir: cannot read {path!r}") from error
    if not isinstance(found, dict):
        raise ValueError(f"--model_dir: {path!r} is not that of a run")
    given, defaults = json.loads(json.dumps([config, defaults]))
    for name in sorted({*found, *given}):
        old, new = found.get(name, defaults.get(name)), given.get(name)
        if old != new:
            raise ValueError(
                f"--model_dir: the run in {directory!r} has "
                f"{name}={old!r}, not {new!r}{_remedy(name, old, new)}"
            )


def _remedy(name: str, old: Any, new: Any) -> str:
    # Nobody has to have given this flag: its default is the training's length.
    if name == "decay_steps" and None not in (old, new):
        return f": --decay_steps={old} keeps the schedule"
    return ""


@naming_the_flag()
def create_directory(directory: str, config: dict[str, Any]) -> None:
    """Makes the directory, with the configuration in it.

    Raises:
      ValueError: it cannot be written.
    """
    tf.io.gfile.makedirs(directory)
    write_text(
        os.path.join(directory, _CONFIG), json.dumps(config, indent=2) + "\n"
    )


def write_text(path: str, text: str) -> None:
    """Writes a file so that a kill leaves the old one or the new one."""
    partial = _partial(path)
    with tf.io.gfile.GFile(partial, "w") as file:
        file.write(text)
    tf.io.gfile.rename(partial, path, overwrite=True)


def _partial(path: str) -> str:
    return f"{path}.partial"


class History:
    """What the host saw, one record for each call of the training loop.

    A file of JSON lines; resumed at step s it keeps the records up to s, so
    that it always tells of the whole run, each step once.

    Args:
      directory: the directory of the run.
      step: the step that the run is resumed at.
    """

    def __init__(self, directory: str, step: int):
        self._path = os.path.join(directory, "history.jsonl")
        self.records: list[dict[str, float]] = []
        if tf.io.gfile.exists(self._path):
            with tf.io.gfile.GFile(self._path) as file:
                self.records = [
                    record
                    for record in map(_parse, file)
                    if record.get("step", step + 1) <= step
                ]
        write_text(self._path, "".join(map(_line, self.records)))

    def append(self, record: dict[str, float]) -> None:
        """Adds one record, in the file too."""
        self.records.append(record)
        with tf.io.gfile.GFile(self._path, "a") as file:
            file.write(_line(record))

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """The steps of all records that have the value, and the values."""
        found = [record for record in self.records if name in record]
        return [r["step"] for r in found], [r[name] for r in found]


def write_summaries(record: dict[str, float]) -> None:
    """Writes a record as scalars to the default summary writer."""
    for name, value in record.items():
        if name != "step":
            tf.summary.scalar(name, value, record["step"])


def describe(record: dict[str, float]) -> str:
    """A record in a few words, for the progress line."""
    shown = {
        "loss": "{:.3f} bits/byte",
        "learning_rate": "rate {:.2e}",
        "gradient_norm": "gradient {:.2f}",
        "loss_scale": "scale {:g}",
        "tokens_per_second": "{:,.0f} tokens/s",
    }
    return ", ".join(
        text.format(record[name])
        for name, text in shown.items()
        if name in record
    )


def _line(record: dict[str, float]) -> str:
    return json.dumps(record) + "\n"


def _parse(line: str) -> dict[str, float]:
    try:
        return json.loads(line)
    except ValueError:  # cut off by a kill
        return {}
