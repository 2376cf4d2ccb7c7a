"""Optax's adamw, trained by random gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import helpers
from next_step import Imported, float32_corrections
from tf_adamw import migration

# As JAX nests them: its keys are dense/kernel, dense/bias, scale.
SHAPES = {"dense/kernel": (3, 5), "dense/bias": (5,), "scale": ()}
DTYPES = ("float32", "float64")
MASK = {"dense": {"kernel": True, "bias": False}, "scale": True}
FORMATS = ("npz", "pytree", "standard", "manager")


def nested(flat):
    return {
        "dense": {n: flat[f"dense/{n}"] for n in ("kernel", "bias")},
        "scale": flat["scale"],
    }


def flattened(tree):
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in found
    }


def save(tree, folder, form):
    """Writes a tree in one of `FORMATS`; returns the path."""
    path = folder / form
    if form == "npz":
        np.savez(f"{path}.npz", **flattened(tree))
        return f"{path}.npz"
    if form == "pytree":
        ocp.PyTreeCheckpointer().save(path, tree)
    elif form == "standard":
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)
    else:
        with ocp.CheckpointManager(path) as manager:
            manager.save(7, args=ocp.args.StandardSave(tree))
        path = path / "7"
    return str(path)


class Trained:
    """Parameters and a transformation's state after some steps."""

    def __init__(self, rng, transformation, steps=7, dtype="float32", scale=1):
        self.rng, self.scale = rng, scale
        self.update = jax.jit(transformation.update)
        weights = helpers.random_weights(rng, SHAPES, dtype)
        # Where the weight is zero, the step is the update.
        weights["dense/bias"] = np.zeros_like(weights["dense/bias"])
        self.params = jax.tree.map(jnp.asarray, nested(weights))
        self.state = transformation.init(self.params)
        start = self.params
        for _ in range(steps):
            self.step()
        self.params = start

    def weights(self):
        return {key: flattened(self.params)[key] for key in SHAPES}

    def step(self):
        gradients = helpers.random_gradients(
            self.rng, self.weights(), self.scale
        )
        updates, self.state = self.update(
            jax.tree.map(jnp.asarray, nested(gradients)),
            self.state,
            self.params,
        )
        self.params = optax.apply_updates(self.params, updates)
        return gradients

    def read(
        self, folder, form="npz", wrap=lambda trained: trained.state, **given
    ):
        return migration.read("optax", save(wrap(self), folder, form), **given)

    def imported(self, source, **options):
        return Imported(source, self.weights(), **options)

    def check(self, imported, label, steps=3):
        for _ in range(steps):
            gradients = self.step()
            o = imported.optimizer
            t = int(o.iterations) + 1
            corrections = float32_corrections(o.beta_1, o.beta_2, t)
            if self.params["scale"].dtype == np.float64:
                corrections = 0.0
            imported.step(gradients, self.weights(), label, corrections)
