"""Counters and settings in files that no training has, refused in a line."""

import keras
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
import tf_keras
import torch

from keras_training import Trained
from made_sources import SETTINGS, built, source_of
from tf_adamw import migration

WORDS = "must be a whole number >= 0, got"


def refused(source, path, words, **given):
    with pytest.raises(ValueError, match=words) as refusal:
        migration.read(source, path, **given)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "count", [-1, 2**63, 0.5, np.nan, np.inf, "7", None, [7]]
)
def test_of_any_source(count):
    with pytest.raises(ValueError, match=f"iterations of Other {WORDS}"):
        source_of(iterations=count)


@pytest.mark.parametrize("count", [0, 2**31 - 1, 2**31, 2**53, 2**63 - 1])
def test_all_that_int64_holds_are_taken(count):
    optimizer, _ = built()
    migration.import_state(optimizer, source_of(iterations=count))
    assert int(optimizer.iterations) == count


@pytest.mark.parametrize("name", ["beta_1", "beta_2"])
@pytest.mark.parametrize("value", [-0.5, 1.0, 2.0, np.nan])
def test_betas(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"{name} must be a number in \[0, 1"):
        source_of(settings={**SETTINGS, name: value})
    refused("bert", tmp_path / "none", f"{name} must be", **{name: value})


@pytest.mark.parametrize(
    "step", [-3, np.nan, np.inf, 2.5, torch.tensor([1.0, 2.0])]
)
def test_torch(tmp_path, step):
    tensor = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([("w", tensor)])
    tensor.grad = torch.ones(3)
    optimizer.step()
    state_dict = optimizer.state_dict()
    state_dict["state"][0]["step"] = step
    torch.save(state_dict, tmp_path / "file.pt")
    refused("torch", tmp_path / "file.pt", f"step of 'w' .*{WORDS}")


@pytest.mark.parametrize("count", [-1, np.nan, np.int32([3, 3])])
def test_optax(tmp_path, count):
    """One of each device is what Flax has that was not unreplicated."""
    ones = np.ones(np.shape(count), np.float32)
    values = {"0/count": count, "0/mu/w": ones, "0/nu/w": ones}
    values["hyperparams/learning_rate"] = ones
    np.savez(tmp_path / "state.npz", **values)
    refused("optax", tmp_path / "state.npz", f"0/count .*{WORDS}")


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@pytest.mark.parametrize("kind", [".keras", "checkpoint"])
def test_keras(rng, tmp_path, library, kind):
    module = {"keras": keras, "tf_keras": tf_keras}[library]
    run = Trained(rng, module, module.optimizers.AdamW(1e-3), 1)
    run.optimizer.iterations.assign(-2)
    refused(library, run.save(tmp_path, kind), f"counter in .*{WORDS} -2")


def test_tf_keras_legacy(rng, tmp_path):
    run = Trained(rng, tf_keras, tf_keras.optimizers.legacy.Adam(1e-3), 1)
    run.optimizer.iterations.assign(-2)
    path = run.save(tmp_path, "checkpoint")
    refused("tf_keras_legacy", path, f"counter in .*{WORDS} -2")


def test_sonnet(tmp_path):
    variable = tf.Variable([1.0, 2.0])
    optimizer = snt.optimizers.Adam(1e-3)
    optimizer.apply([tf.ones(2)], [variable])
    optimizer.step.assign(-2)
    path = tf.train.Checkpoint(opt=optimizer).write(tmp_path / "checkpoint")
    refused("sonnet", path, f"opt/step in .*{WORDS} -2")


def saved(folder, **values):
    path = str(folder / "checkpoint")
    tensors = {name.replace("__", "/"): v for name, v in values.items()}
    tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(v) for v in tensors.values()],
    )
    return path


ONES = np.ones(3, np.float32)


@pytest.mark.parametrize("step", [np.int64(-1), np.int64([1, 2])])
def test_bert(tmp_path, step):
    path = saved(
        tmp_path, w=ONES, w__adam_m=ONES, w__adam_v=ONES, global_step=step
    )
    refused("bert", path, f"global_step in .*{WORDS}")


@pytest.mark.parametrize("power", [np.nan, np.inf, -0.5, 1.5, [0.9, 0.9]])
def test_tf1(tmp_path, power):
    path = saved(
        tmp_path,
        w=ONES,
        w__Adam=ONES,
        w__Adam_1=ONES,
        beta1_power=np.float32(power),
        beta2_power=np.float32(0.999),
    )
    refused("tf1", path, "beta1_power in .* must be a power of a number")
