"""The files of a checkpoint: its objects, its tensors, and their damage."""

from __future__ import annotations

import collections
import errno
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

# `tf.train.CheckpointView` has the graph without the keys of its tensors.
from tensorflow.core.protobuf import trackable_object_graph_pb2

from tf_adamw.keys import few

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SUFFIX = "/.ATTRIBUTES/"
_VARIABLE = "VARIABLE_VALUE"

# What may be otherwise in a minute, or is up to the user: no damage.
_TRANSIENT = (
    MemoryError,
    OSError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnauthenticatedError,
    tf.errors.UnavailableError,
)
# TensorFlow's reader tells the system's reason, and a bucket's, as text only.
_SYSTEM = {os.strerror(n) for n in errno.errorcode if n != errno.ENOENT}
_BUCKET = re.compile(r"libcurl code|HTTP response code (?!404)")


class DamagedCheckpointError(ValueError):
    """The files of a checkpoint are missing, cut off, or overwritten."""


class CheckpointFile:
    """The objects and tensors in the files of a checkpoint.

    Args:
      path: the prefix of the files.

    Raises:
      DamagedCheckpointError: if they are missing or damaged.
      ValueError: if they hold no objects, or TensorFlow cannot open files of
        that name.
      tf.errors.OpError: if they cannot be read for another reason, which may
        be gone in a minute; so do the methods.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._open_files()
        self._reader = self._read(
            # `tf.train.load_checkpoint` prefers a directory of that name.
            lambda: tf.compat.v1.train.NewCheckpointReader(path)
        )
        self.shapes: Mapping[str, list[int]] = (
            self._reader.get_variable_to_shape_map()
        )
        self.dtypes: Mapping[str, tf.DType] = (
            self._reader.get_variable_to_dtype_map()
        )
        if _GRAPH not in self.shapes:
            raise ValueError(
                f"The checkpoint {path!r} holds variables by name, not "
                "objects (as those of 'tf1' and 'bert' of tf_adamw.migration)."
            )
        graph = trackable_object_graph_pb2.TrackableObjectGraph()
        self._read(
            lambda: graph.ParseFromString(self._reader.get_tensor(_GRAPH))
        )
        self.nodes = graph.nodes
        self._check_graph()

    def _check_graph(self) -> None:
        """The checksums say nothing of what another program has written."""
        count = len(self.nodes)
        for number, node in enumerate(self.nodes):
            others = [child.node_id for child in node.children]
            others += [n for pair in self.slots(number) for n in pair]
            lacking = [n for n in others if not 0 <= n < count]
            # Of what is no variable a key may be the beginning of several.
            lacking += [
                k
                for k in self.keys(number)
                if self.is_variable(number) and k not in self.shapes
            ]
            if lacking:
                raise self._damaged(f"it has no {lacking[0]!r}")
        if not count:
            raise self._damaged("it has no objects")

    def _damaged(self, reason: str) -> DamagedCheckpointError:
        return DamagedCheckpointError(
            f"The checkpoint {self.path!r} is damaged or missing: {reason}"
        )

    def _open_files(self) -> None:
        """Opens the files, since the errors of this have types."""
        folder, name = os.path.split(self.path)
        folder = folder or os.curdir
        try:
            _open(f"{self.path}.index")
            # Not by a glob: a name may have characters of a pattern.
            for other in tf.io.gfile.listdir(folder):
                if other.startswith(f"{name}.data-"):
                    _open(os.path.join(folder, other))
        except tf.errors.NotFoundError as error:
            raise self._missing(folder, name) from error

    def _missing(self, folder: str, name: str) -> DamagedCheckpointError:
        there = []
        if tf.io.gfile.isdir(folder):
            there = sorted(tf.io.gfile.listdir(folder))
        if f"{name}.index" in there:
            reason = f"no {name + '.data-*'!r} can be opened"
        else:
            others = [n[:-6] for n in there if n.endswith(".index")]
            reason = (
                f"there is no {name + '.index'!r}; there are: {few(others)}."
            )
        return self._damaged(reason)

    def tensor(self, key: str) -> Any:
        """Reads one tensor: an array, or bytes.

        Raises:
          DamagedCheckpointError: if it is damaged.
        """
        return self._read(lambda: self._reader.get_tensor(key))

    def number(self, node: int) -> int:
        """Reads an integer.

        Raises:
          DamagedCheckpointError: if the object is none, or damaged.
        """
        keys = self.keys(node)
        key = keys[0] if keys else ""
        if self.shapes.get(key) != [] or not self.dtypes[key].is_integer:
            raise self._damaged(f"{key!r} is no integer")
        return int(self.tensor(key))

    def check(self) -> None:
        """Reads every tensor, which compares the checksums.

        Raises:
          DamagedCheckpointError: if one is damaged.
        """
        for key, dtype in self.dtypes.items():
            if dtype == tf.variant:  # of an iterator; NumPy has none
                self._read(lambda key=key: self._variant(key))
            else:
                self.tensor(key)

    def _variant(self, key: str) -> tf.Tensor:
        return tf.raw_ops.RestoreV2(
            prefix=self.path,
            tensor_names=[key],
            shape_and_slices=[""],
            dtypes=[tf.variant],
        )

    def children(self, node: int) -> dict[str, int]:
        """The objects that an object depends on, by name."""
        found = self.nodes[node].children
        return {child.local_name: child.node_id for child in found}

    def keys(self, node: int) -> list[str]:
        """The keys of an object's own tensors."""
        attributes = self.nodes[node].attributes
        return [attribute.checkpoint_key for attribute in attributes]

    def slots(self, node: int) -> list[tuple[int, int]]:
        """The slots that an optimizer of TensorFlow's own keeps by variable.

        Returns:
          Pairs of the variable's and the slot's number.
        """
        return [
            (slot.original_variable_node_id, slot.slot_variable_node_id)
            for slot in self.nodes[node].slot_variables
        ]

    def has_state(self, node: int) -> bool:
        """Whether there is anything to restore of an object itself."""
        return bool(self.keys(node) or self.slots(node))

    def own_name(self, node: int) -> str:
        """The name that a variable had by itself; for others, nothing."""
        names = [
            attribute.full_name
            for attribute in self.nodes[node].attributes
            if attribute.name == _VARIABLE
        ]
        return names[0] if names else ""

    def paths(self) -> dict[int, tuple[str, ...]]:
        """The shortest path to every object."""
        found: dict[int, tuple[str, ...]] = {0: ()}
        queue = collections.deque([0])
        while queue:
            node = queue.popleft()
            for name, child in self.children(node).items():
                if child not in found:
                    found[child] = (*found[node], name)
                    queue.append(child)
        return found

    def is_variable(self, node: int) -> bool:
        """Whether an object was a variable."""
        attributes = self.nodes[node].attributes
        return any(attribute.name == _VARIABLE for attribute in attributes)

    def _read(self, how: Callable[[], Any]) -> Any:
        """Reads, and once again before it says that there is damage."""
        try:
            return how()
        except Exception as error:
            if not _may_be_damage(error):
                raise
        self._open_files()
        try:
            return how()
        # A file that is cut off or overwritten has many ways to fail.
        except Exception as error:
            if not _may_be_damage(error):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            if "Failed to find any matching files" in reason:
                raise ValueError(
                    f"TensorFlow cannot open the checkpoint {self.path!r}: it "
                    "takes the name for a pattern, because of one of *?[\\"
                ) from error
            raise self._damaged(reason) from error


def _open(path: str) -> None:
    with tf.io.gfile.GFile(path, "rb") as file:
        file.read(1)


def _may_be_damage(error: Exception) -> bool:
    if isinstance(error, _TRANSIENT):
        return False
    text = str(error)
    reason = text.rpartition("; ")[2].strip()
    return reason not in _SYSTEM and not _BUCKET.search(text)


def key_name(key: str) -> str:
    """A checkpoint's key as a path: without suffix and escapes."""
    path = key.split(_SUFFIX)[0]
    return re.sub(r"\.(S|\.)", lambda m: "/" if m[1] == "S" else ".", path)
