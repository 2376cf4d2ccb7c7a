"""Optimizers whose state looks like Adam's are refused, or named in a note."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
import tf_keras

from keras_training import Trained, refusal
from optax_training import flattened
from tf_adamw import migration

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}
OPTAX = {
    name: getattr(optax, name)
    for name in (
        "adabelief",
        "adamax",
        "adamaxw",
        "lamb",
        "nadam",
        "nadamw",
        "radam",
        "yogi",
    )
}
OPTAX["acprop"] = optax.contrib.acprop
OPTAX["adopt"] = optax.contrib.adopt


def saved(folder, transformation):
    """A file of Optax's state before the first step."""
    state = transformation.init({"w": jnp.ones([3, 4])})
    path = folder / "state.npz"
    np.savez(path, **flattened(state))
    return path


@pytest.mark.parametrize("name", OPTAX)
def test_what_optax_has_the_same_state_of(tmp_path, name):
    path = saved(tmp_path, OPTAX[name](1e-3))
    assert name in " ".join(migration.read("optax", path).notes)


# By default it has an eps_root.
ADABELIEF = optax.inject_hyperparams(optax.adabelief)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (optax.novograd, r"'w' has the shapes \(3, 4\) and \(\)"),
        (optax.optimistic_adam_v2, "is_initial_step', which is no part of"),
        (optax.contrib.galore, "base_optimizer_state/.*, which is no part of"),
        (optax.contrib.sophia, "hessian_fn_state/.*, which is no part of"),
        (ADABELIEF, "AdamW has no eps_root"),
    ],
)
@pytest.mark.filterwarnings("ignore:Specifying a key")
def test_what_optax_tells_apart(tmp_path, kind, words):
    with pytest.raises(ValueError, match=words) as error:
        migration.read("optax", saved(tmp_path, kind(1e-3)))
    assert "\n" not in str(error.value)


def test_muon(tmp_path):
    """It has an Adam for what is no matrix."""
    path = tmp_path / "state.npz"
    tree = {"w": jnp.ones([3, 4]), "b": jnp.ones(4)}
    np.savez(path, **flattened(optax.contrib.muon(1e-3).init(tree)))
    with pytest.raises(ValueError, match="ns_coeffs', which is no part of"):
        migration.read("optax", path)


def test_a_layer_called_projector(tmp_path):
    """The names of others are none of a model's."""
    tree = {"projector": {"ns": jnp.ones(3)}}
    state = optax.adamw(1e-3).init(tree)
    np.savez(tmp_path / "state.npz", **flattened(jax.device_get(state)))
    assert migration.read("optax", tmp_path / "state.npz").slots


def trained(rng, library, name, **options):
    """A model of an optimizer with a name that tells nothing."""
    module = LIBRARIES[library]
    optimizers = module.optimizers
    if name.startswith("legacy."):
        optimizers = optimizers.legacy
    kind = getattr(optimizers, name.removeprefix("legacy."))
    return Trained(rng, module, kind(1e-3, name="own", **options), 1)


@pytest.mark.parametrize(
    ("library", "name", "kind"),
    [
        ("keras", "Lamb", "checkpoint"),
        ("keras", "Lamb", ".weights.h5"),
        ("keras", "Adamax", ".weights.h5"),
        ("keras", "Adadelta", ".weights.h5"),
        ("tf_keras", "Adamax", ".weights.h5"),
        ("tf_keras", "Adadelta", ".weights.h5"),
        ("tf_keras", "Nadam", ".weights.h5"),
        ("tf_keras_legacy", "legacy.Adamax", "checkpoint"),
    ],
)
def test_what_keras_has_the_same_state_of(rng, tmp_path, library, name, kind):
    run = trained(rng, library.removesuffix("_legacy"), name)
    source = migration.read(library, run.save(tmp_path, kind))
    (note,) = [note for note in source.notes if "the same state" in note]
    assert name.removeprefix("legacy.") in note


@pytest.mark.parametrize(
    ("library", "name", "kind"),
    [
        ("keras", "Adamax", "checkpoint"),
        ("tf_keras", "Nadam", "checkpoint"),
        ("tf_keras_legacy", "legacy.Nadam", "checkpoint"),
    ],
)
def test_what_keras_tells_apart(rng, tmp_path, library, name, kind):
    path = trained(rng, library.removesuffix("_legacy"), name).save(
        tmp_path, kind
    )
    with pytest.raises(ValueError, match=r"Adam\b") as error:
        migration.read(library, path)
    refusal(error, path)
    assert ("momentum_cache" in str(error.value)) == (name == "legacy.Nadam")


@pytest.mark.parametrize(
    ("library", "kind"),
    [
        ("keras", ".weights.h5"),
        ("keras", "checkpoint"),
        ("tf_keras", "checkpoint"),
    ],
)
def test_a_name_that_tells(rng, tmp_path, library, kind):
    """An AdamW of the name that it has by default needs no note."""
    module = LIBRARIES[library]
    run = Trained(rng, module, module.optimizers.AdamW(1e-3), 1)
    source = migration.read(library, run.save(tmp_path, kind))
    assert "the same state" not in " ".join(source.notes)
