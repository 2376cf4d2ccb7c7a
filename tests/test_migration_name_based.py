"""The state of TensorFlow 1's Adam and AdamW is taken over."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
from helpers import SHAPES
from next_step import Imported, float32_corrections
from tf_adamw import migration

pytestmark = pytest.mark.core

tf1 = tf.compat.v1


class Trained:
    """A tf.compat.v1.train.AdamOptimizer in a session, after some steps."""

    def __init__(
        self,
        rng,
        steps=7,
        scale=1.0,
        decay=0.0,
        scope=None,
        counted=True,
        **options,
    ):
        self.rng, self.scale = rng, scale
        start = helpers.random_weights(rng, SHAPES)
        with tf.Graph().as_default():
            self.session = tf1.Session()
            self.variables = {
                key: tf1.get_variable(f"model/{key}", initializer=value)
                for key, value in start.items()
            }
            self.fed = {
                key: tf1.placeholder(tf.float32, value.shape)
                for key, value in start.items()
            }
            step = tf1.train.get_or_create_global_step() if counted else None
            decayed = [v.assign_sub(decay * v) for v in self.variables.values()]
            with (
                tf1.variable_scope(scope or tf1.get_variable_scope()),
                tf.control_dependencies(decayed if decay else []),
            ):
                self.train = tf1.train.AdamOptimizer(**options).apply_gradients(
                    [(self.fed[k], self.variables[k]) for k in SHAPES],
                    global_step=step,
                )
            zero = self.variables["bias"].assign(tf.zeros([5]))
            self.saver = tf1.train.Saver()
            self.session.run(tf1.global_variables_initializer())
        for _ in range(steps):
            self.step()
        # Where the weight is zero, the step is the update.
        self.session.run(zero)

    def weights(self):
        return self.session.run(self.variables)

    def step(self):
        gradients = helpers.random_gradients(
            self.rng, self.weights(), self.scale
        )
        feed = {self.fed[key]: gradients[key] for key in SHAPES}
        self.session.run(self.train, feed)
        return gradients

    def read(self, folder, **given):
        path = str(folder / "model.ckpt")
        with self.session.graph.as_default():
            self.saver.save(self.session, path, write_meta_graph=False)
        return migration.read("tf1", path, **given)

    def check(self, imported, label, steps=3):
        for _ in range(steps):
            gradients = self.step()
            o = imported.optimizer
            t = int(o.iterations) + 1
            # Each power is the one before times beta, rounded: no better.
            corrections = float32_corrections(o.beta_1, o.beta_2, t)
            imported.step(gradients, self.weights(), label, corrections)


@pytest.mark.parametrize("steps", [0, 1, 7, 300])
def test_next_step(rng, tmp_path, steps):
    trained = Trained(rng, steps)
    source = trained.read(tmp_path, learning_rate=1e-3)
    assert source.iterations == steps
    assert set(source.slots) == {f"model/{key}" for key in SHAPES}
    imported = Imported(source, trained.weights())
    assert imported.report.complete
    for key, weight in trained.weights().items():
        np.testing.assert_array_equal(source.weights[f"model/{key}"], weight)
    trained.check(imported, "TensorFlow 1 Adam, float32")


def test_next_step_where_epsilon_matters(rng, tmp_path):
    settings = {"beta1": 0.8, "beta2": 0.95}
    trained = Trained(rng, 4, scale=1e-8, **settings)
    source = trained.read(tmp_path, beta_1=0.8, beta_2=0.95)
    imported = Imported(source, trained.weights())
    # The root of the velocity is of epsilon's size.
    ratio = np.sqrt(imported.slot("scale", "velocity")) / 1e-8
    assert 0.1 < ratio < 1.0
    trained.check(imported, "TensorFlow 1 Adam, gradients of 1e-8, float32")


@pytest.mark.parametrize("rate", [1e-3, 0.25])
def test_adamw_decays_whatever_the_rate(rng, tmp_path, rate):
    options = {"name": "AdamW", "learning_rate": rate, "decay": 0.02}
    trained = Trained(rng, **options)
    source = trained.read(tmp_path, weight_decay=0.02, learning_rate=rate)
    assert source.decay_coupling == "none"
    imported = Imported(source, trained.weights())
    assert imported.report.complete
    trained.check(imported, "TensorFlow 1 AdamW, float32")


def test_adamw_whose_decay_is_not_given(rng, tmp_path):
    source = Trained(rng, 1, name="AdamW", decay=0.02).read(tmp_path)
    assert source.optimizer == "TensorFlow 1 AdamW"
    assert "weight_decay" not in source.settings
    with pytest.raises(ValueError, match="give weight_decay= to read") as e:
        source.arguments()
    assert "\n" not in str(e.value)
    assert source.arguments(weight_decay=0.5)["weight_decay"] == 0.5


def test_an_optimizer_in_a_scope(rng, tmp_path):
    trained = Trained(rng, scope="optimize")
    source = trained.read(tmp_path)
    assert set(source.slots) == {f"model/{key}" for key in SHAPES}
    trained.check(Imported(source, trained.weights()), None)


def powers_after(updates, beta):
    power = np.float32(beta)
    for _ in range(updates):
        power *= np.float32(beta)
    return power


@pytest.mark.parametrize(
    ("updates", "step", "counted"),
    [
        (10, 999, 10),  # the powers, not the global step
        (700, None, 700),
        (5000, None, 5000),  # beta_1's is 0
        (60000, None, pytest.approx(60000, abs=60000 * 2**-24 / 1e-3)),
        (100000, 100000, 100000),  # both are 0
        (100000, None, pytest.approx(87300, abs=100)),  # so many, or more
    ],
)
def test_updates_are_counted_by_the_powers(tmp_path, updates, step, counted):
    beta_1, beta_2 = (powers_after(updates, b) for b in (0.9, 0.999))
    values = {
        "w": np.ones(2, np.float32),
        "w/Adam": np.ones(2, np.float32),
        "w/Adam_1": np.ones(2, np.float32),
        "beta1_power": beta_1,
        "beta2_power": beta_2,
    }
    if step is not None:
        values["global_step"] = np.int64(step)
    source = migration.read("tf1", written(tmp_path, values))
    assert source.iterations == counted


def written(folder, values):
    prefix = str(folder / "model.ckpt")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=list(values.values()),
    )
    return prefix


@pytest.mark.parametrize("name", ["beta1", "beta2"])
def test_betas_that_are_not_those_given(rng, tmp_path, name):
    trained = Trained(rng, **{name: 0.98})
    with pytest.raises(ValueError, match="give those of the training") as e:
        trained.read(tmp_path)
    assert "\n" not in str(e.value)
    given = {name.replace("beta", "beta_"): 0.98}
    assert trained.read(tmp_path, **given).iterations == 7


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("beta2_power", "has to have one variable 'beta2_power'"),
        ("w/Adam_1", "has the slots of 0 optimizers"),
        ("w", "has the slots of 0 optimizers"),
    ],
)
def test_refused(tmp_path, missing, words):
    values = {
        "w": np.ones(2, np.float32),
        "w/Adam": np.ones(2, np.float32),
        "w/Adam_1": np.ones(2, np.float32),
        "beta1_power": powers_after(3, 0.9),
        "beta2_power": powers_after(3, 0.999),
    }
    del values[missing]
    with pytest.raises(ValueError, match=words) as refusal:
        migration.read("tf1", written(tmp_path, values))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("source", ["tf1", "bert"])
def test_files_of_others_refused(tmp_path, source):
    (tmp_path / "file.h5").write_bytes(b"\x89HDF\r\n" + bytes(100))
    with pytest.raises(ValueError, match="none of TensorFlow's") as refusal:
        migration.read(source, tmp_path / "file.h5")
    assert "\n" not in str(refusal.value)


def test_two_optimizers_refused(tmp_path):
    values = {
        name: np.float32([1.0])
        for name in ("w", "w/Adam", "w/Adam_1", "u", "u/AdamW", "u/AdamW_1")
    }
    values |= {n: np.float32(0.5) for n in ("beta1_power", "beta2_power")}
    with pytest.raises(ValueError, match="2 optimizers: Adam, AdamW"):
        migration.read("tf1", written(tmp_path, values))
    values["d/beta1_power"] = np.float32(0.5)
    with pytest.raises(ValueError, match=r"one variable 'beta1_power'.* has 2"):
        migration.read("tf1", written(tmp_path, values))
