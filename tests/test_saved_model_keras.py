"""A Keras 3 model in a SavedModel, as docs/saved_model.md has it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_adamw

STEPS, MIDDLE = 6, 3
BATCH = [
    tf.TensorSpec([8, 6], name="x"),
    tf.TensorSpec([8, 3], name="y"),
]


def make_model():
    """One with variables that are not trained: the averages of a batch."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input([6]),
            keras.layers.Dense(8, activation="tanh", name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(3, name="out"),
        ],
        name="net",
    )


class Trainer(tf.Module):
    """Holds the model's variables, and not the model."""

    def __init__(self):
        super().__init__()
        model = make_model()
        self.weights = [v.value for v in model.variables]
        # LiteRT computes 1 - beta_2**t with an error of 2**-24: of no weight
        # beside 0.1.
        self.optimizer = tf_adamw.AdamW(
            learning_rate=0.01,
            weight_decay=0.05,
            beta_2=0.9,
            exclude_from_weight_decay=["bias", "norm"],
            jit_compile=False,  # for the sake of time
        )
        self.optimizer.build(model)

        @tf.function(input_signature=BATCH)
        def train_step(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
            variables = model.trainable_variables
            self.optimizer.minimize(loss, variables, tape)
            mean = model.get_layer("norm").moving_mean
            return {
                "loss": loss,
                "kernel": tf.identity(variables[0]),
                "mean": tf.identity(mean),
            }

        self.train_step = train_step

    def checkpoint(self):
        return tf.train.Checkpoint(
            weights=self.weights, optimizer=self.optimizer
        )


def batch():
    rng = np.random.default_rng(0)
    return {
        spec.name: np.float32(rng.standard_normal(spec.shape)) for spec in BATCH
    }


def train(step):
    """The results of as many steps as the live trainer has done."""
    return [
        {name: np.array(value) for name, value in step(**batch()).items()}
        for _ in range(STEPS)
    ]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The path of an export, and what the live trainer did after it."""
    trainer = Trainer()
    path = str(tmp_path_factory.mktemp("keras"))
    tf.saved_model.save(
        trainer, path, signatures={"train_step": trainer.train_step}
    )
    results = train(trainer.train_step)
    assert results[-1]["loss"] < 0.95 * results[0]["loss"]
    return path, results


def assert_same(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            # To the largest one: the others have its roundings.
            scale = np.abs(value).max()
            np.testing.assert_allclose(
                one[name] / scale, value / scale, rtol=0, **tolerance
            )


def test_it_trains_as_saved_model_cli_runs_it(exported):
    """By the loader of `saved_model_cli run`, without its start of Python."""
    path, expected = exported
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], path)
        signature = loaded.signature_def["train_step"]
        outputs = {k: info.name for k, info in signature.outputs.items()}

        def step(**given):
            feed = {signature.inputs[k].name: v for k, v in given.items()}
            return session.run(outputs, feed)

        found = train(step)
    assert_same(found, expected, atol=5e-7)


def test_it_trains_on_litert(exported):
    path, expected = exported
    flatbuffer = tf.lite.TFLiteConverter.from_saved_model(path).convert()
    interpreter = tf.lite.Interpreter(model_content=flatbuffer)
    step = interpreter.get_signature_runner("train_step")
    assert_same(train(step), expected, atol=5e-7)


def test_it_comes_back(exported, tmp_path):
    """From where it was loaded, and from the export itself."""
    path, expected = exported
    loaded = tf.saved_model.load(path)
    for number in range(MIDDLE):
        found = loaded.train_step(**to_tensors(batch()))
        assert found["loss"] == expected[number]["loss"]
    there = tf.train.Checkpoint(
        weights=loaded.weights, optimizer=loaded.optimizer
    ).write(str(tmp_path / "there"))
    back = Trainer()
    for checkpoint, number in (
        (there, MIDDLE),
        (f"{path}/variables/variables", 0),
    ):
        tf_adamw.checkpoint.restore(back.checkpoint(), checkpoint)
        found = back.train_step(**to_tensors(batch()))
        assert_same([found], [expected[number]], atol=0)


def to_tensors(arrays):
    return {name: tf.constant(array) for name, array in arrays.items()}
