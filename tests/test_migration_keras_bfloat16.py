"""The state of bfloat16 variables, which HDF5 does not know."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tf_adamw
from tf_adamw import migration

pytestmark = pytest.mark.filterwarnings(
    "ignore:You are saving your model as an HDF5 file"
)

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}
LISTS = {
    "momentum": "_momentums",
    "velocity": "_velocities",
    "average": "_model_variables_moving_average",
}


def trained(library, **options):
    """A model of bfloat16 weights, after two steps."""
    module = LIBRARIES[library]
    layer = module.layers.Dense(5, name="dense", dtype="bfloat16")
    model = module.Sequential([module.Input((3,)), layer])
    model.compile(module.optimizers.AdamW(1e-3, **options), "mse")
    variables = model.trainable_variables
    for step in (1.0, 3.0):
        gradients = [
            tf.cast(step * (1 + np.arange(np.prod(v.shape))), tf.bfloat16)
            for v in variables
        ]
        pairs = zip(gradients, variables, strict=True)
        model.optimizer.apply_gradients(
            [(tf.reshape(g, v.shape), v) for g, v in pairs]
        )
    return model


def saved(model, folder, kind):
    path = str(folder / f"file{kind}")
    if kind == ".weights.h5":
        model.save_weights(path)
    elif kind == "":
        objects = {"model": model, "optimizer": model.optimizer}
        return tf.train.Checkpoint(**objects).write(path)
    else:
        model.save(path)
    return path


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("kind", "ema"),
    [(".keras", False), (".weights.h5", True), (".h5", False), ("", True)],
)
def test_it_is_read_and_taken_over(tmp_path, library, kind, ema):
    model = trained(library, use_ema=ema)
    path = saved(model, tmp_path, kind)
    source = migration.read(library, path, learning_rate=1e-3)
    assert source.iterations == 2
    optimizer = tf_adamw.AdamW(**source.arguments())
    variables = {
        name: tf.Variable(tf.zeros(v.shape, tf.bfloat16))
        for name, v in zip(
            ("kernel", "bias"), model.trainable_variables, strict=True
        )
    }
    optimizer.build(variables)
    weights = kind in (".h5", "")
    names = list(variables)
    migration.import_state(optimizer, source, names=names, weights=weights)
    for i, name in enumerate(variables):
        for slot, listed in LISTS.items():
            if slot == "average" and not ema:
                continue
            theirs = getattr(model.optimizer, listed)[i]
            ours = optimizer.get_slot(variables[name], slot)
            np.testing.assert_array_equal(
                ours, tf.cast(tf.convert_to_tensor(theirs), tf.float32)
            )
        if weights:
            theirs = tf.convert_to_tensor(model.trainable_variables[i])
            np.testing.assert_array_equal(variables[name], theirs)
