"""The state of TF-Addons' AdamW and of AdamWeightDecay is taken over.

The latter is the Model Garden's and Hugging Face's. Their checkpoints are
checked-in files, see migration_files/make_legacy.py; here are their steps as
their documentation has them.
"""

import importlib.util
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from keras_training import refusal
from next_step import Imported
from tf_adamw import migration

FILES = pathlib.Path(__file__).parent / "migration_files"
RATE = 2.0**-6
# Legacy optimizers keep their hyperparameters in float32.
BETA_1, BETA_2 = np.float64(np.float32(0.9)), np.float64(np.float32(0.999))


def made():
    """The script that made the files."""
    spec = importlib.util.spec_from_file_location(
        "make_legacy", FILES / "make_legacy.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = made()
EXCLUDED = ("encoder/bias", "layer_norm/gamma")


class Documented:
    """Both optimizers in float64, from their documentation.

    Args:
      decay: {name: what its weight is multiplied by and loses in a step}.
      epsilon: "epsilon hat".
    """

    def __init__(self, decay, epsilon):
        self.decay, self.epsilon, self.steps = decay, epsilon, 0
        self.weights = {k: np.float64(w) for k, w in MADE.arrays(0).items()}
        self.m = {k: np.zeros_like(w) for k, w in self.weights.items()}
        self.v = {k: np.zeros_like(w) for k, w in self.weights.items()}

    def step(self):
        """Returns the gradients."""
        self.steps += 1
        t = self.steps
        gradients = MADE.arrays(t)
        for key, g in gradients.items():
            g = np.float64(g)
            self.weights[key] -= self.decay.get(key, 0.0) * self.weights[key]
            self.m[key] = BETA_1 * self.m[key] + (1 - BETA_1) * g
            self.v[key] = BETA_2 * self.v[key] + (1 - BETA_2) * g**2
            rate = RATE * np.sqrt(1 - BETA_2**t) / (1 - BETA_1**t)
            root = np.sqrt(self.v[key])
            self.weights[key] -= rate * self.m[key] / (root + self.epsilon)
        return gradients


def documented(name):
    if name == "tfa_adamw":
        return Documented(dict.fromkeys(MADE.SHAPES, 2.0**-8), 1e-7)
    return Documented({"encoder/kernel": RATE * 0.01}, 1e-6)


GIVEN = {
    "tfa_adamw": {},
    "adam_weight_decay": {"weight_decay": 0.01, "epsilon": 1e-6},
}
files = pytest.mark.parametrize("name", GIVEN)


@files
def test_files_are_as_documented(name):
    """They hold what the documented steps lead to."""
    source = migration.read(name, FILES / name / "checkpoint", **GIVEN[name])
    assert source.iterations == MADE.STEPS
    run = documented(name)
    for _ in range(MADE.STEPS):
        run.step()
    for key in MADE.SHAPES:
        slots = source.slots[f"model/{key}"]
        # Four steps of float32, which also rounds 1 - beta and 1 - beta^t.
        for actual, expected in (
            (slots["momentum"], run.m[key]),
            (slots["velocity"], run.v[key]),
            (source.weights[f"model/{key}"], run.weights[key]),
        ):
            np.testing.assert_allclose(actual, expected, 4e-5, 4e-7)


@files
def test_next_step_of_files(name):
    source = migration.read(name, FILES / name / "checkpoint", **GIVEN[name])
    run = documented(name)
    while run.steps < MADE.STEPS:
        run.step()
    # The documented steps go on from the file's numbers.
    for key in MADE.SHAPES:
        run.m[key] = np.float64(source.slots[f"model/{key}"]["momentum"])
        run.v[key] = np.float64(source.slots[f"model/{key}"]["velocity"])
        run.weights[key] = np.float64(source.weights[f"model/{key}"])
    weights = {k: np.float32(w) for k, w in run.weights.items()}
    options = {}
    if name == "adam_weight_decay":
        options["exclude_from_weight_decay"] = EXCLUDED
    heir = Imported(source, weights, **options)
    assert heir.report.complete
    label = {"tfa_adamw": "TF-Addons AdamW, documented, checkpoint"}.get(
        name, "AdamWeightDecay, documented, checkpoint"
    )
    for _ in range(3):
        gradients = run.step()
        heir.step(gradients, run.weights, label)


def test_what_their_files_tell():
    source = migration.read("tfa_adamw", FILES / "tfa_adamw" / "checkpoint")
    assert source.optimizer == "TF-Addons AdamW"
    assert source.decay_coupling == "none"
    assert source.settings["weight_decay"] == 2.0**-8
    assert source.weight_decay() == 2.0**-2
    assert source.arguments()["decay_coupling"] == "none"
    assert source.arguments()["weight_decay"] == 2.0**-8
    assert source.assumed == {"epsilon"}
    path = FILES / "adam_weight_decay" / "checkpoint"
    source = migration.read("adam_weight_decay", path)
    assert source.decay_coupling == "learning_rate"
    assert source.assumed == {"epsilon", "weight_decay"}
    assert source.settings["weight_decay"] == 0
    (note,) = source.notes
    assert "global_clipnorm" in note


def test_a_weight_decay_that_is_a_schedule(tmp_path):
    optimizer = MADE.AdamW(lambda: 2.0**-8, learning_rate=RATE)
    model, variables = MADE.model_of(MADE.arrays(0))
    gradients = map(tf.constant, MADE.arrays(1).values())
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    path = tf.train.Checkpoint(model=model, optimizer=optimizer).write(
        str(tmp_path / "checkpoint")
    )
    with pytest.raises(ValueError, match="by weight_decay") as error:
        migration.read("tfa_adamw", path)
    refusal(error, path)
    source = migration.read("tfa_adamw", path, weight_decay=0.5)
    assert source.settings["weight_decay"] == 0.5
