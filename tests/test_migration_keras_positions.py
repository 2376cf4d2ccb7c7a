"""The order of the variables of Keras 3's optimizers is known."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import helpers
from keras_training import Trained, refusal
from tf_adamw import migration

pytestmark = pytest.mark.filterwarnings(
    "ignore:You are saving your model as an HDF5 file"
)

EMA = {"use_ema": True, "ema_momentum": 0.75}
few_formats = pytest.mark.parametrize(
    "kind", [".weights.h5", ".keras", "checkpoint"]
)


def trained(rng, steps=3, **options):
    options = {"learning_rate": 2e-3, **options}
    return Trained(rng, keras, keras.optimizers.AdamW(**options), steps)


@few_formats
def test_accumulated_gradients(rng, tmp_path, kind):
    options = {"gradient_accumulation_steps": 3}
    run = trained(rng, steps=6, **options)
    path = run.save(tmp_path, kind)
    given = {} if kind == ".keras" else options
    source = migration.read("keras", path, **given)
    assert source.iterations == 2
    assert source.options == options
    imported = run.imported(source)
    for _ in range(2):
        gradients = run.step()
        imported.optimizer.apply(helpers.to_gradients(gradients.values()))
        for key, gradient in gradients.items():
            imported.largest[key] = np.maximum(
                imported.largest[key], np.abs(gradient)
            )
    assert imported.optimizer.iterations == 2
    label = f"Keras 3 AdamW, accumulation, {kind}"
    run.check(imported, label, steps=1)
    assert imported.optimizer.iterations == 3


@few_formats
def test_an_unfinished_window(rng, tmp_path, kind):
    options = {"gradient_accumulation_steps": 3}
    run = trained(rng, steps=7, **options)
    path = run.save(tmp_path, kind)
    if kind != ".keras":
        with pytest.raises(ValueError, match="say by gradient_acc") as error:
            migration.read("keras", path)
        refusal(error, path)
    source = migration.read("keras", path, **options)
    assert source.iterations == 2
    assert source.ignored == ("gradients of 1 of 3 calls",)


SLOTS = {
    "momentum": "_momentums",
    "velocity": "_velocities",
    "velocity_max": "_velocity_hats",
    "average": "_model_variables_moving_average",
}


@pytest.mark.parametrize("calls", [None, 2])
@pytest.mark.parametrize("ema", [{}, EMA], ids=["", "ema"])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("scheduled", [False, True])
def test_order_of_variables(rng, tmp_path, calls, ema, amsgrad, scheduled):
    """The positions in the file are those of Keras's own lists."""
    rate = 1e-3
    if scheduled:
        rate = keras.optimizers.schedules.ExponentialDecay(1e-3, 10, 0.5)
    window = {"gradient_accumulation_steps": calls} if calls else {}
    options = {"learning_rate": rate, "amsgrad": amsgrad, **ema, **window}
    run = trained(rng, **options)
    used = {*ema, *(["amsgrad"] if amsgrad else []), *window}
    for kind in (".weights.h5", ".keras", ".h5", "checkpoint"):
        path = run.save(tmp_path, kind)
        source = migration.read("keras", path, **window)
        assert source.iterations == 3 // (calls or 1)
        assert ("learning_rate" in source.settings) != scheduled
        assert set(source.options) | {"ema_momentum"} == used | {"ema_momentum"}
        for slot, name in SLOTS.items():
            theirs = getattr(run.optimizer, name, [])
            ours = [s[slot] for s in source.slots.values() if slot in s]
            assert len(ours) == len(theirs)
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b.numpy())


def test_names_that_repeat(tmp_path):
    """A checkpoint then has positions, and weights by them."""
    ones = np.ones([2], np.float32)
    variables = [keras.Variable(i * ones, name="w") for i in (1.0, 2.0)]
    optimizer = keras.optimizers.AdamW()
    optimizer.apply([ones, 2 * ones], variables)
    path = tf.train.Checkpoint(optimizer=optimizer).write(str(tmp_path / "c"))
    source = migration.read("keras", path)
    assert source.positional
    for i, variable in enumerate(variables):
        np.testing.assert_array_equal(source.weights[str(i)], variable.numpy())
