"""Restores what matches of a checkpoint, and reports what did not."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from tf_adamw import replicas
from tf_adamw.checkpoint_file import CheckpointFile, DamagedCheckpointError
from tf_adamw.comparison import Report, compare, counts
from tf_adamw.keys import few
from tf_adamw.object_graph import Found, found_below, is_variable
from tf_adamw.rollback import unchanged_on_failure
from tf_adamw.scalar_state import FORMAT_VERSION
from tf_adamw.slots import start_again
from tf_adamw.state import OptimizerState

__all__ = ["DamagedCheckpointError", "Report", "restore"]

# Written by `tf.train.Checkpoint.save`, not by `write`.
_SAVE_COUNTER = "save_counter"


def restore(
    checkpoint: tf.train.Checkpoint, path: str, *, strict: bool = False
) -> Report:
    """Restores what matches, after `build`.

    Like `checkpoint.restore(path)`, but: layers may have been added, removed,
    or have other shapes; options of the optimizer may have been switched;
    every tensor of the file is read and compared with its checksum before
    anything changes; if something fails later, every variable is given back
    the value that it had. An optimizer that has been used before does not keep
    state that the checkpoint lacks. Objects with other state than variables
    (tables, iterators) are restored where the checkpoint has it, last.

    Args:
      checkpoint: holds the objects, the optimizers among them built. Objects
        are matched by their paths in it; the layers of a Keras 3 model by
        their names, since their paths count layers, and by their order, where
        Keras has numbered them anew. Slots that have the names of Keras
        variables go with these variables.
      path: of the checkpoint, as `save` returned it; or a directory, whose
        latest checkpoint is taken.
      strict: whether to refuse anything but a full match.

    Returns:
      A `Report`.

    Warns when a checkpoint had updates and none of its slots has the keys of
    the optimizer: it was built otherwise.

    Raises:
      TypeError: if `checkpoint` is none.
      DamagedCheckpointError: a ValueError, if the files are missing or damaged.
      tf.errors.OpError: if they cannot be read for another reason.
      ValueError: if they are of a later version, nothing matches, an optimizer
        is not built, an object that is no variable cannot take its state, or
        `strict` and not everything matches; also in a `tf.function`,
        `strategy.run` or `averaged_weights()`. All variables are as they were.
    """
    if not isinstance(checkpoint, tf.train.Checkpoint):
        raise TypeError(
            "restore takes a tf.train.Checkpoint, such as "
            "tf.train.Checkpoint(model=model, optimizer=optimizer), got "
            f"{type(checkpoint).__name__}."
        )
    replicas.check_outside("restore")
    file = CheckpointFile(_prefix(path))
    file.check()
    _ = checkpoint.save_counter  # makes it
    found = found_below(_children(checkpoint), file)
    optimizers = _optimizers(checkpoint)
    versions = {id(optimizer.format_version) for optimizer in optimizers}
    _check_versions([f for f in found if id(f.value) in versions], file)
    silent = {f.name for f in found if id(f.value) in versions}
    report, matching = compare(found, file, {*silent, _SAVE_COUNTER})
    if not report.restored:
        raise ValueError(
            f"Nothing in the checkpoint {file.path!r} has the path of one of "
            f"these objects. It has: {few(report.left_over)}; they have: "
            f"{few(report.seeded)}."
        )
    if strict and not report.complete:
        raise ValueError(
            f"The checkpoint {file.path!r} does not match: {counts(report)}."
        )
    restored = {id(f.value) for f in matching}
    with unchanged_on_failure(f.value for f in found):
        _read_variables(matching, file.path)
        for optimizer in optimizers:
            _start_missing(optimizer, restored)
        _read_others(matching, file)
    for optimizer in optimizers:
        _warn_of_other_keys(optimizer, restored, report)
    return report


def _prefix(path: str) -> str:
    path = str(path).removesuffix(".index")
    if tf.io.gfile.exists(f"{path}.index") or not tf.io.gfile.isdir(path):
        return path
    # Not `latest_checkpoint`: that is None if the latest has lost its index.
    state = tf.train.get_checkpoint_state(path)
    if state is not None and state.model_checkpoint_path:
        return state.model_checkpoint_path
    there = sorted(tf.io.gfile.listdir(path))
    others = [n[:-6] for n in there if n.endswith(".index")]
    if others:
        raise DamagedCheckpointError(
            f"The file 'checkpoint' in {path!r} names no checkpoint; there "
            f"are: {few(others)}."
        )
    raise ValueError(f"There is no checkpoint in {path!r}.")


def _children(checkpoint: tf.train.Checkpoint) -> dict[str, Any]:
    """What a checkpoint has at its top; of one with a root, the root's too."""
    children = tf.train.TrackableView.children(checkpoint)
    root = children.pop("root", None)
    if root is None:
        return children
    return {**tf.train.TrackableView.children(root), **children}


def _optimizers(checkpoint: tf.train.Checkpoint) -> list[OptimizerState]:
    objects = tf.train.TrackableView(checkpoint).descendants()
    optimizers = [o for o in objects if isinstance(o, OptimizerState)]
    for optimizer in optimizers:
        optimizer.check_settable()
    return optimizers


def _check_versions(versions: Sequence[Found], file: CheckpointFile) -> None:
    for place in versions:
        if place.node is None:
            continue
        version = file.number(place.node)
        if not 0 < version <= FORMAT_VERSION:
            raise ValueError(
                f"{place.name} is {version} in the checkpoint {file.path!r}; "
                f"this version of tf_adamw reads up to {FORMAT_VERSION}."
            )


def _read_variables(matching: Sequence[Found], path: str) -> None:
    """Lets TensorFlow restore these variables and no others."""
    # It gives an object of the checkpoint to one object: variables that were
    # one and are several take turns.
    turns: list[dict[int | None, Found]] = []
    for place in matching:
        if not is_variable(place.value):
            continue
        turn = next((t for t in turns if place.node not in t), None)
        if turn is None:
            turn = {}
            turns.append(turn)
        turn[place.node] = place
    for turn in turns:
        _read(turn.values(), path).assert_existing_objects_matched()


def _read_others(matching: Sequence[Found], file: CheckpointFile) -> None:
    """Restores what is no variable; TensorFlow adds what is below it."""
    for place in matching:
        if is_variable(place.value):
            continue
        # Slots of TensorFlow's own optimizers come with their variables.
        with_slots = bool(file.slots(place.node))
        variables = [p for p in matching if with_slots and is_variable(p.value)]
        try:
            _read([place, *variables], file.path)
        except Exception as error:  # each kind fails in its own ways
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{place.name} cannot be restored from {file.path!r}: {reason}"
            ) from error


def _read(places: Iterable[Found], path: str) -> Any:
    # Dicts, since they take every name: objects have attributes already.
    tree: dict[str, Any] = {}
    for place in places:
        *parents, name = place.there
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                break  # it is below an object that is restored itself
        else:
            branch[name] = place.value
    holder = tf.Module()
    holder.tree = tree
    return tf.train.Checkpoint(root=holder.tree).read(path).expect_partial()


def _start_missing(optimizer: OptimizerState, restored: set[int]) -> None:
    """Lets the state that the checkpoint lacks start again."""
    for parameter in optimizer.parameters:
        for name, slot in optimizer.slots[parameter.key].items():
            if id(slot) not in restored:
                start_again(parameter, name)
    for counter in optimizer.counters.held():
        if id(counter) not in restored:
            counter.assign(tf.zeros([], counter.dtype))
    scale = optimizer.hyperparameters.loss_scale
    if scale is not None and id(scale) not in restored:
        scale.assign(optimizer.loss_scale_factor.initial)
    optimizer.format_version.assign(FORMAT_VERSION)


def _warn_of_other_keys(
    optimizer: OptimizerState, restored: set[int], report: Report
) -> None:
    slots = [id(s) for held in optimizer.slots.values() for s in held.values()]
    left = [name for name in report.left_over if "/slots/" in name]
    if left and not restored.intersection(slots):
        warnings.warn(
            f"No slot of {report.path!r} was restored: it has {few(left)}; "
            f"this optimizer has the keys {few(list(optimizer.slots))}. Build "
            "it the same way as the one that was saved: with the model, with "
            "a list, or with a dict.",
            stacklevel=3,
        )
