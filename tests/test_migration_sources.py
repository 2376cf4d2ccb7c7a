"""Every source goes through `import_checkpoint`."""

import pathlib

import keras
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
import tf_keras
import torch

import helpers
from import_command import restored, run
from keras_training import Trained
from tf_adamw import migration

FILES = pathlib.Path(__file__).parent / "migration_files"
SHAPES = {"kernel": (3, 5), "bias": (5,)}
COUNTED = {"variables": ",".join(SHAPES)}


def in_keras(library, optimizer):
    return lambda rng, folder: (
        Trained(rng, library, optimizer(1e-3)).save(folder, "checkpoint"),
        {},
    )


def in_torch(rng, folder):
    tensors = [torch.nn.Parameter(torch.ones(s)) for s in SHAPES.values()]
    optimizer = torch.optim.AdamW(tensors)
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "run.pt")
    return folder / "run.pt", COUNTED


def in_optax(rng, folder):
    arrays = {"0/count": np.int32(3)}
    for key, shape in SHAPES.items():
        arrays[f"0/mu/{key}"] = np.float32(rng.standard_normal(shape))
        arrays[f"0/nu/{key}"] = np.float32(rng.uniform(size=shape))
    np.savez(folder / "state.npz", **arrays)
    return folder / "state.npz", {}


def in_sonnet(rng, folder):
    variables = [tf.Variable(tf.ones(shape)) for shape in SHAPES.values()]
    optimizer = snt.optimizers.Adam(1e-3)
    optimizer.apply([tf.ones(s) for s in SHAPES.values()], variables)
    checkpoint = tf.train.Checkpoint(optimizer=optimizer)
    return checkpoint.write(str(folder / "sonnet")), COUNTED


def in_tf1(rng, folder):
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        w = v1.get_variable("model/w", initializer=tf.ones([5]))
        step = v1.train.AdamOptimizer(1e-3).minimize(w * w)
        session.run(v1.global_variables_initializer())
        session.run(step)
        saver = v1.train.Saver()
        path = saver.save(session, f"{folder}/tf1", write_meta_graph=False)
    return path, {}


def in_files(name):
    return lambda rng, folder: (FILES / name, {})


MAKERS = {
    "keras": in_keras(keras, keras.optimizers.AdamW),
    "tf_keras": in_keras(tf_keras, tf_keras.optimizers.AdamW),
    "tf_keras_legacy": in_keras(tf_keras, tf_keras.optimizers.legacy.Adam),
    "tfa_adamw": in_files("tfa_adamw/checkpoint"),
    "adam_weight_decay": in_files("adam_weight_decay/checkpoint"),
    "tf1": in_tf1,
    "bert": in_files("bert/model.ckpt-3"),
    "sonnet": in_sonnet,
    "torch": in_torch,
    "optax": in_optax,
}


def test_every_source_is_here():
    assert MAKERS.keys() == migration.SOURCES.keys()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*.*")}


@pytest.fixture(params=MAKERS)
def given(request, rng, tmp_path):
    """The flags of a file that is there."""
    (tmp_path / "old").mkdir()
    path, more = MAKERS[request.param](rng, tmp_path / "old")
    return {"source": request.param, "input": path, **more}


def test_dry_run(given, tmp_path):
    """It reports every variable, and writes nothing."""
    source = migration.read(given["source"], given["input"])
    before = [contents(tmp_path), contents(FILES)]
    out = run(**given, dry_run="true")
    assert [contents(tmp_path), contents(FILES)] == before
    assert out.startswith(f"{source.optimizer}: state of {len(source.slots)} ")
    assert f", iterations = {source.counter}\n" in out
    for name in source.slots:
        assert f" <- {name}\n" in out
    assert "tf_adamw.AdamW(" in out
    assert "written" not in out


def test_import(given, tmp_path):
    """A training's restore finds the file's state under the keys."""
    source = migration.read(given["source"], given["input"])
    out = run(**given, output=tmp_path / "new")
    keys = given.get("variables", ",".join(source.slots)).split(",")
    slots = dict(zip(keys, source.slots.values(), strict=True))
    zeros = {k: np.zeros_like(held["momentum"]) for k, held in slots.items()}
    optimizer, variables, report = restored(out, tmp_path / "new", zeros)
    assert int(optimizer.iterations) == source.counter
    assert not report.left_over
    for key, held in slots.items():
        for name, array in held.items():
            slot = optimizer.get_slot(variables[key], name)
            np.testing.assert_array_equal(slot, array, err_msg=key)
    named = dict(zip(keys, source.slots, strict=True))
    if source.weights:
        for key, value in helpers.values(variables).items():
            np.testing.assert_array_equal(value, source.weights[named[key]])
