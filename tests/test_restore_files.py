"""tf_adamw.checkpoint.restore: files that are whole, and make no sense."""

import pathlib

import pytest
import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import (
    TrackableObjectGraph,
)

from restore_runs import Run
from tf_adamw.checkpoint import DamagedCheckpointError, restore

pytestmark = pytest.mark.core

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
ITERATIONS = "optimizer/counters/iterations/.ATTRIBUTES/VARIABLE_VALUE"
VERSION = "optimizer/format_version/.ATTRIBUTES/VARIABLE_VALUE"


def written_anew(path, change):
    """Writes the checkpoint after a change, with the right checksums."""
    reader = tf.train.load_checkpoint(path)
    tensors = {
        k: reader.get_tensor(k) for k in reader.get_variable_to_dtype_map()
    }
    change(tensors)
    tf.raw_ops.SaveV2(
        prefix=f"{path}-changed",
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return f"{path}-changed"


def another_graph(change):
    def changed(tensors):
        graph = TrackableObjectGraph()
        graph.ParseFromString(tensors[GRAPH])
        change(graph)
        tensors[GRAPH] = graph.SerializeToString()

    return changed


def nowhere(number):
    return another_graph(
        lambda graph: setattr(graph.nodes[0].children[0], "node_id", number)
    )


WRITTEN_WRONG = {
    "garbage": lambda tensors: tensors.update({GRAPH: b"\xff\xfe\0garbage"}),
    "numbers": lambda tensors: tensors.update({GRAPH: [1.0, 2.0]}),
    "empty": lambda tensors: tensors.update({GRAPH: b""}),
    "object": nowhere(999),
    "negative": nowhere(-1),
    "slot": another_graph(
        lambda graph: graph.nodes[0].slot_variables.add(
            original_variable_node_id=999
        )
    ),
    "tensor": lambda tensors: tensors.pop(ITERATIONS),
    "version": lambda tensors: tensors.update({VERSION: [2, 2]}),
    "text": lambda tensors: tensors.update({VERSION: b"two"}),
    "fraction": lambda tensors: tensors.update({VERSION: 1.5}),
}


@pytest.mark.parametrize("wrong", WRITTEN_WRONG)
def test_a_file_that_was_written_wrong(tmp_path, wrong):
    path = Run(3).checkpoint.save(tmp_path / "checkpoint")
    path = written_anew(path, WRITTEN_WRONG[wrong])
    other = Run(2)
    before = other.bits()
    with pytest.raises(DamagedCheckpointError, match="damaged") as error:
        restore(other.checkpoint, path)
    assert path in str(error.value) and "\n" not in str(error.value)
    assert other.bits() == before


def test_a_directory_whose_newest_has_lost_its_index(tmp_path):
    run = Run(1)
    good, newest = (run.checkpoint.save(tmp_path / "c") for _ in range(2))
    pathlib.Path(f"{newest}.index").unlink()
    with pytest.raises(DamagedCheckpointError, match="there are: c-1") as error:
        restore(run.checkpoint, tmp_path)
    assert newest in str(error.value)
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(DamagedCheckpointError, match="there are: c-1"):
        restore(run.checkpoint, tmp_path)
    restore(run.checkpoint, good, strict=True)
