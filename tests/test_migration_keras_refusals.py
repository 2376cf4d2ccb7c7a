"""Files that are not those of Keras 3's or tf_keras's Adams are refused."""

import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from keras_training import FORMATS, Trained, refusal, sequential
from tf_adamw import migration

pytestmark = pytest.mark.filterwarnings(
    "ignore:You are saving your model as an HDF5 file"
)

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}
PEOPLE = {"keras": "Keras 3", "tf_keras": "tf_keras"}
both = pytest.mark.parametrize("library", LIBRARIES)
every_format = pytest.mark.parametrize("kind", FORMATS)


def made(library, name="AdamW"):
    return getattr(LIBRARIES[library].optimizers, name)(2e-3)


def trained(rng, library, steps=1, name="AdamW"):
    return Trained(rng, LIBRARIES[library], made(library, name), steps)


@both
@pytest.mark.parametrize("kind", [".keras", ".weights.h5", "checkpoint"])
@pytest.mark.parametrize(
    "name",
    [
        "SGD",
        pytest.param("Nadam", marks=pytest.mark.slow),
        pytest.param("Adamax", marks=pytest.mark.slow),
    ],
)
def test_other_optimizers_refused(rng, tmp_path, library, kind, name):
    if (library, kind, name != "SGD") == ("tf_keras", ".weights.h5", True):
        # Such a file tells neither names nor the class: it is as Adam's.
        name = "RMSprop"
    run = trained(rng, library, 1, name=name)
    path = run.save(tmp_path, kind)
    with pytest.raises(ValueError, match="AdamW or Adam") as error:
        migration.read(library, path)
    refusal(error, path)


@pytest.mark.parametrize("kind", [".weights.h5", "checkpoint"])
def test_lamb_refused(rng, tmp_path, kind):
    """It has the variables of Adam and another name."""
    path = trained(rng, "keras", 1, name="Lamb").save(tmp_path, kind)
    with pytest.raises(ValueError, match="is 'lamb") as error:
        migration.read("keras", path)
    refusal(error, path)


@both
@every_format
def test_optimizers_without_state_refused(rng, tmp_path, library, kind):
    run = trained(rng, library, 0)
    fresh = made(library)
    run.model.compile(fresh, "mse")
    run.optimizer = fresh
    path = run.save(tmp_path, kind)
    with pytest.raises(ValueError, match="state") as error:
        migration.read(library, path)
    refusal(error, path)


@both
@pytest.mark.parametrize("kind", [".keras", ".weights.h5", ".h5"])
def test_models_without_optimizer_refused(tmp_path, library, kind):
    path = str(tmp_path / f"file{kind}")
    model = sequential(LIBRARIES[library])
    (model.save_weights if kind == ".weights.h5" else model.save)(path)
    with pytest.raises(ValueError, match="no optimizer's state") as error:
        migration.read(library, path)
    refusal(error, path)


@both
@every_format
def test_the_other_library_refused(rng, tmp_path, library, kind):
    run = trained(rng, library, 1)
    path = run.save(tmp_path, kind)
    (other,) = set(LIBRARIES) - {library}
    if (library, kind) == ("tf_keras", ".weights.h5"):
        # Nothing in it tells them apart: but for a schedule they are alike.
        source = migration.read(other, path)
        assert "learning_rate" not in source.settings
        return
    with pytest.raises(ValueError, match=PEOPLE[other]) as error:
        migration.read(other, path)
    refusal(error, path)


@both
@pytest.mark.parametrize("kind", FORMATS[:4])
def test_truncated_files_refused(rng, tmp_path, library, kind):
    path = trained(rng, library, 1).save(tmp_path, kind)
    file = pathlib.Path(path)
    if kind == "checkpoint":
        file = file.with_name(f"{file.name}.data-00000-of-00001")
    data = file.read_bytes()
    for part in (0.0, 0.01, 0.3, 0.6, 0.98):
        file.write_bytes(data[: int(part * len(data))])
        with pytest.raises(ValueError, match=r"damaged|no \.keras") as error:
            migration.read(library, path)
        refusal(error, path)


def test_a_damaged_index_and_a_flipped_bit(rng, tmp_path):
    run = trained(rng, "keras", 1)
    path = run.save(tmp_path, ".keras")
    data = bytearray(pathlib.Path(path).read_bytes())
    data[len(data) // 2] ^= 64
    pathlib.Path(path).write_bytes(data)
    with pytest.raises(ValueError, match="damaged") as error:
        migration.read("keras", path)
    refusal(error, path)
    path = run.save(tmp_path, "checkpoint")
    index = pathlib.Path(f"{path}.index")
    index.write_bytes(index.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged") as error:
        migration.read("keras", path)
    refusal(error, path)


@both
def test_paths_refused(rng, tmp_path, library):
    with pytest.raises(ValueError, match="neither") as error:
        migration.read(library, tmp_path / "missing")
    refusal(error, tmp_path / "missing")
    path = tmp_path / "notes.txt"
    path.write_text("no model")
    with pytest.raises(ValueError, match=r"no \.keras") as error:
        migration.read(library, path)
    refusal(error, path)
    run = trained(rng, library, 1)
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(optimizer=run.optimizer), str(tmp_path), 1
    )
    latest = manager.save()
    with pytest.raises(ValueError, match="is a folder") as error:
        migration.read(library, tmp_path)
    assert repr(latest) in refusal(error, tmp_path)


@both
def test_two_optimizers_refused(rng, tmp_path, library):
    runs = [trained(rng, library, 1) for _ in range(2)]
    path = tf.train.Checkpoint(a=runs[0].optimizer, b=runs[1].optimizer).write(
        str(tmp_path / "both")
    )
    with pytest.raises(ValueError, match="'a', 'b'") as error:
        migration.read(library, path)
    refusal(error, path)


def test_without_h5py(rng, tmp_path, monkeypatch):
    path = trained(rng, "keras", 1).save(tmp_path, ".weights.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py"):
        migration.read("keras", path)


def test_options_that_positions_cannot_tell_are_refused(tmp_path):
    """One weight, and nothing that tells an average from a velocity."""
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]
    )
    optimizer = keras.optimizers.AdamW(amsgrad=True, name="own")
    model.compile(optimizer, "mse")
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    ones = [tf.ones(v.shape) for v in model.trainable_variables]
    optimizer.apply(ones, model.trainable_variables)
    for variable in optimizer.variables[2:]:
        variable.assign(np.ones(variable.shape))
    path = str(tmp_path / "file.weights.h5")
    model.save_weights(path)
    with pytest.raises(ValueError, match="different options") as error:
        migration.read("keras", path)
    refusal(error, path)
