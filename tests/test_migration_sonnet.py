"""The state of Sonnet's Adam is taken over."""

import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf

import helpers
from next_step import Imported, float32_corrections
from tf_adamw import migration

KEYS = ("kernel", "bias", "scale")


class Trained:
    """A snt.optimizers.Adam after some steps."""

    def __init__(self, rng, steps=7, dtype="float32", scale=1.0, **options):
        weights = helpers.random_weights(rng, helpers.SHAPES, dtype)
        self.rng, self.scale, self.dtype = rng, scale, dtype
        self.variables = helpers.as_variables(weights)
        self.optimizer = snt.optimizers.Adam(**options)
        for _ in range(steps):
            self.step()
        # Where the weight is zero, the step is the update.
        self.variables["bias"].assign(np.zeros(5, dtype))

    def weights(self):
        return helpers.values(self.variables)

    def step(self):
        gradients = helpers.random_gradients(
            self.rng, self.weights(), self.scale
        )
        self.optimizer.apply(
            helpers.to_gradients(gradients.values()),
            list(self.variables.values()),
        )
        return gradients

    def read(self, folder, **given):
        model = tf.train.Checkpoint(**self.variables)
        checkpoint = tf.train.Checkpoint(model=model, opt=self.optimizer)
        path = checkpoint.save(folder / "checkpoint")
        return migration.read("sonnet", path, **given)

    def imported(self, source, **options):
        return Imported(source, self.weights(), **options)

    def check(self, imported, label, steps=3):
        for _ in range(steps):
            gradients = self.step()
            o = imported.optimizer
            corrections = 0.0
            if self.dtype == "float32":
                t = int(o.iterations) + 1
                corrections = float32_corrections(o.beta_1, o.beta_2, t)
            imported.step(gradients, self.weights(), label, corrections)


@pytest.mark.parametrize("steps", [1, 7, 60])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_next_step(rng, tmp_path, dtype, steps):
    # Sonnet makes float32 of Python's numbers.
    settings = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999}
    settings["epsilon"] = 1e-8
    wide = {name: np.float64(value) for name, value in settings.items()}
    trained = Trained(rng, steps, dtype, **wide if dtype == "float64" else {})
    source = trained.read(tmp_path, learning_rate=1e-3)
    assert source.positional
    assert source.assumed == {"beta_1", "beta_2", "epsilon"}
    imported = trained.imported(source)
    assert imported.report.complete
    assert imported.report.mapped == dict(zip(KEYS, "012", strict=True))
    trained.check(imported, f"Sonnet Adam, {dtype}")


def test_next_step_where_epsilon_matters(rng, tmp_path):
    settings = {"beta1": 0.8, "beta2": 0.95}
    trained = Trained(rng, 4, scale=1e-8, **settings)
    source = trained.read(tmp_path, beta_1=0.8, beta_2=0.95)
    imported = trained.imported(source)
    # The root of the velocity is of epsilon's size.
    ratio = np.sqrt(imported.slot("scale", "velocity")) / 1e-8
    assert 0.1 < ratio < 1.0
    trained.check(imported, "Sonnet Adam, gradients of 1e-8, float32", 1)


def test_settings_that_are_variables(rng, tmp_path):
    trained = Trained(
        rng, learning_rate=tf.Variable(3e-3), epsilon=tf.Variable(1e-5)
    )
    source = trained.read(tmp_path, epsilon=1e-5)
    assert source.settings["learning_rate"] == 3e-3
    assert source.assumed == {"beta_1", "beta_2"}
    trained.check(trained.imported(source), None)


def test_more_than_ten_variables_keep_their_order(tmp_path):
    variables = [tf.Variable(tf.zeros([i + 1])) for i in range(12)]
    optimizer = snt.optimizers.Adam()
    optimizer.apply([tf.ones([i + 1]) for i in range(12)], variables)
    path = tf.train.Checkpoint(optimizer).save(tmp_path / "checkpoint")
    source = migration.read("sonnet", path)
    sizes = [slots["momentum"].size for slots in source.slots.values()]
    assert sizes == list(range(1, 13))


def test_refused(tmp_path):
    with pytest.raises(ValueError, match="is damaged or missing"):
        migration.read("sonnet", tmp_path / "none")
    (tmp_path / "file.h5").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(ValueError, match="no checkpoint of TensorFlow") as e:
        migration.read("sonnet", tmp_path / "file.h5")
    assert "\n" not in str(e.value)
    w = tf.Variable([1.0])
    path = tf.train.Checkpoint(w=w).save(tmp_path / "model")
    with pytest.raises(ValueError, match="has 0 optimizers of Sonnet"):
        migration.read("sonnet", path)
    two = {name: snt.optimizers.Adam() for name in ("g", "d")}
    for optimizer in two.values():
        optimizer.apply([tf.constant([1.0])], [w])
    path = tf.train.Checkpoint(**two).save(tmp_path / "two")
    with pytest.raises(ValueError, match=r"has 2 optimizers .*: 'd', 'g'") as e:
        migration.read("sonnet", path)
    assert "\n" not in str(e.value)
