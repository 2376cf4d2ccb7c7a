"""tf_adamw.checkpoint.restore: which objects and files it is given."""

from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

import tf_adamw
from checkpoint_model import train
from restore_runs import Run
from tf_adamw.checkpoint import restore

pytestmark = pytest.mark.core


def test_a_directory_is_its_latest_checkpoint(tmp_path):
    run = Run(1)
    run.checkpoint.save(tmp_path / "checkpoint")
    train(run.optimizer, run.model, 1, 2)
    latest = run.checkpoint.save(tmp_path / "checkpoint")
    other = Run(0)
    assert restore(other.checkpoint, tmp_path).path == latest
    assert restore(other.checkpoint, f"{latest}.index").path == latest
    assert other.optimizer.iterations == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="no checkpoint in"):
        restore(other.checkpoint, empty)


def test_a_checkpoint_with_a_root(tmp_path):
    """tf.train.Checkpoint(module) has the module's children at its top."""
    module = tf.Module()
    module.w = tf.Variable([1.0, 2.0])
    module.optimizer = tf_adamw.AdamW()
    module.optimizer.build([module.w])
    module.optimizer.apply([tf.constant([1.0, -1.0])])
    path = tf.train.Checkpoint(module).save(tmp_path / "checkpoint")
    expected = module.w.numpy()
    module.optimizer.apply([tf.constant([1.0, -1.0])])
    report = restore(tf.train.Checkpoint(module), path, strict=True)
    assert "w" in report.restored
    np.testing.assert_array_equal(module.w, expected)
    assert module.optimizer.iterations == 1


class Words(tf.train.experimental.PythonState):
    """Python state."""

    def __init__(self, words):
        super().__init__()
        self.words = words

    def serialize(self):
        return " ".join(self.words)

    def deserialize(self, string_value):
        self.words = string_value.decode().split()


def test_objects_that_are_no_variables(tmp_path):
    run = Run(1)
    words = Words(["a", "b"])
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    table.insert(["a"], tf.constant([1], tf.int64))
    checkpoint = tf.train.Checkpoint(
        optimizer=run.optimizer, words=words, table=table
    )
    path = checkpoint.save(tmp_path / "checkpoint")
    words.words = []
    table.insert(["a"], tf.constant([2], tf.int64))
    report = restore(checkpoint, path, strict=True)
    assert {"words", "table"} <= set(report.restored)
    assert words.words == ["a", "b"]
    assert table.lookup(tf.constant("a")) == 1


def test_keys_with_slashes_and_dots(tmp_path):
    def make():
        variables = {"a/b": tf.Variable([1.0]), "a.S": tf.Variable([2.0])}
        optimizer = tf_adamw.AdamW()
        optimizer.build(variables)
        return optimizer, list(variables.values())

    optimizer, variables = make()
    optimizer.apply([tf.constant([1.0]), tf.constant([2.0])], variables)
    path = tf.train.Checkpoint(optimizer=optimizer).save(tmp_path / "c")
    other, variables = make()
    checkpoint = tf.train.Checkpoint(optimizer=other)
    report = restore(checkpoint, path, strict=True)
    assert "optimizer/slots/a.S/momentum" in report.restored
    assert "optimizer/slots/a/b/momentum" in report.restored
    np.testing.assert_allclose(
        other.get_slot(variables[0], "momentum"), [0.1], rtol=1e-6
    )
    np.testing.assert_allclose(
        other.get_slot(variables[1], "momentum"), [0.2], rtol=1e-6
    )
    model = tf.train.Checkpoint(optimizer=tf_adamw.AdamW())
    model.optimizer.build({"other": tf.Variable([1.0])})
    with pytest.warns(UserWarning, match="No slot"):
        report = restore(model, path)
    assert "optimizer/slots/a.S/velocity" in report.left_over


def test_an_iterator_is_restored(tmp_path):
    """Its state is of a dtype that NumPy has not."""
    model = tf.Module()
    model.w = tf.Variable([1.0, 2.0])
    model.numbers = iter(tf.data.Dataset.range(10))
    next(model.numbers)
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.save(tmp_path / "checkpoint")
    next(model.numbers)
    restore(checkpoint, path, strict=True)
    assert next(model.numbers) == 1


def test_weights_that_were_one_are_two(tmp_path):
    model = tf.Module()
    model.a = model.b = tf.Variable([1.0, 2.0])
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    model = tf.Module()
    model.a, model.b = tf.Variable([0.0, 0.0]), tf.Variable([0.0, 0.0])
    restore(tf.train.Checkpoint(model=model), path, strict=True)
    np.testing.assert_array_equal(model.a, [1.0, 2.0])
    np.testing.assert_array_equal(model.b, [1.0, 2.0])


def test_a_directory_with_the_name_of_a_checkpoint(tmp_path):
    model = tf.Module()
    model.w = tf.Variable([1.0, 2.0])
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.write(str(tmp_path / "run"))
    model.w.assign([5.0, 5.0])
    checkpoint.save(tmp_path / "run" / "checkpoint")
    restore(checkpoint, path)
    np.testing.assert_array_equal(model.w, [1.0, 2.0])


def test_slots_of_tensorflows_own_optimizers(tmp_path):
    """They are filed under the variable, and not below the optimizer."""
    w = tf.Variable([1.0, 2.0])
    own = tf_adamw.AdamW()
    own.build({"w": w})
    other = tf.compat.v1.train.MomentumOptimizer(0.1, 0.5)
    other.apply_gradients([(tf.constant([1.0, 3.0]), w)])
    checkpoint = tf.train.Checkpoint(w=w, own=own, other=other)
    path = checkpoint.save(tmp_path / "checkpoint")
    other.apply_gradients([(tf.constant([1.0, 3.0]), w)])
    report = restore(checkpoint, path, strict=True)
    assert "w/.OPTIMIZER_SLOT/other/momentum" in report.restored
    slot = other.get_slot(w, "momentum")
    np.testing.assert_array_equal(slot, [1.0, 3.0])


def test_a_slot_whose_variable_has_another_shape(tmp_path):
    w = tf.Variable([1.0, 2.0])
    momentum = tf.compat.v1.train.MomentumOptimizer
    optimizer = momentum(0.1, 0.5)
    optimizer.apply_gradients([(tf.constant([1.0, 3.0]), w)])
    other = tf.Variable(7)
    checkpoint = tf.train.Checkpoint(w=w, optimizer=optimizer, other=other)
    path = checkpoint.save(tmp_path / "checkpoint")
    w, optimizer = tf.Variable([1.0, 2.0, 3.0]), momentum(0.1, 0.5)
    optimizer.apply_gradients([(tf.constant([1.0, 3.0, 5.0]), w)])
    checkpoint = tf.train.Checkpoint(w=w, optimizer=optimizer, other=other)
    report = restore(checkpoint, path)
    assert set(report.mismatched) == {"w"}
    assert report.left_over == ("w/.OPTIMIZER_SLOT/optimizer/momentum",)
    slot = optimizer.get_slot(w, "momentum")
    np.testing.assert_array_equal(slot, [1.0, 3.0, 5.0])


def test_the_exact_rate_of_float64_variables(tmp_path):
    def make(rate):
        w = tf.Variable([1.0], dtype=tf.float64)
        optimizer = tf_adamw.AdamW(rate, 0.0)
        optimizer.build({"w": w})
        return optimizer, tf.train.Checkpoint(optimizer=optimizer)

    path = make(0.1)[1].save(tmp_path / "checkpoint")
    optimizer, checkpoint = make(0.3)
    restore(checkpoint, path, strict=True)
    assert optimizer.get_config()["learning_rate"] == 0.1


@pytest.mark.parametrize("shape", [[None], None])
def test_a_variable_whose_shape_may_change(shape, tmp_path):
    def variable(values):
        return tf.Variable(values, shape=tf.TensorShape(shape))

    path = tf.train.Checkpoint(w=variable([1.0, 2.0])).save(tmp_path / "c")
    other = variable([0.0, 0.0, 0.0])
    restore(tf.train.Checkpoint(w=other), path, strict=True)
    np.testing.assert_array_equal(other, [1.0, 2.0])


@pytest.mark.parametrize("table_first", [True, False])
def test_a_variable_in_the_place_of_a_table(table_first, tmp_path):
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    both = [table, tf.Variable([1.0])]
    first, then = both if table_first else both[::-1]
    w = tf.Variable([1.0, 2.0])
    path = tf.train.Checkpoint(w=w, x=first).save(tmp_path / "checkpoint")
    report = restore(tf.train.Checkpoint(w=w, x=then), path)
    assert report.restored == ("w",)
    assert not report.complete


def test_many_variables(tmp_path, monkeypatch):
    """What the file says of its tensors is asked for once."""
    variables = {f"v{n}": tf.Variable([float(n)]) for n in range(50)}
    path = tf.train.Checkpoint(**variables).save(tmp_path / "checkpoint")
    asked = []
    load = tf.compat.v1.train.NewCheckpointReader

    def counting(path):
        reader = load(path)
        dtypes = reader.get_variable_to_dtype_map()
        fake = mock.MagicMock(wraps=reader)
        fake.get_variable_to_dtype_map = lambda: asked.append(1) or dtypes
        return fake

    monkeypatch.setattr(tf.compat.v1.train, "NewCheckpointReader", counting)
    restore(tf.train.Checkpoint(**variables), path, strict=True)
    assert len(asked) == 1
