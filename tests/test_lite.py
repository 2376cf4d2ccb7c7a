"""The train step on LiteRT: what it needs, and that it trains."""

import contextlib
import io
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

import saved_model_module as module
import tf_adamw

README = pathlib.Path(__file__).parent.parent / "README.md"
STEPS = 6


def documented():
    """[(arguments, operations)] of the README's table, the first for any."""
    table = README.read_text().split("| argument | operations |")[1]
    table = table.split("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    return [(a.strip(" `"), set(re.findall(r"\w+", ops))) for a, ops in rows]


def converted(path, functions, root):
    """The flatbuffer of a SavedModel, without Select TF operations."""
    tf.saved_model.save(root, str(path), signatures=functions)
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(path), signature_keys=list(functions)
    )
    return converter.convert()


def operations(flatbuffer):
    """The names of the operations of all its subgraphs."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        tf.lite.experimental.Analyzer.analyze(model_content=flatbuffer)
    return set(re.findall(r"^  Op#\d+ (\w+)\(", printed.getvalue(), re.M))


class Root(tf.Module):
    """A model and its optimizer."""

    def __init__(self, **options):
        super().__init__()
        self.model = module.Model()
        self.optimizer = tf_adamw.AdamW(**options)
        self.optimizer.build(self.model)

    @tf.function(
        input_signature=[
            {k: tf.TensorSpec(s) for k, s in module.SHAPES.items()}
        ]
    )
    def apply(self, gradients):
        """A step on these gradients."""
        variables = self.model.by_key()
        result = self.optimizer.apply_gradients(
            [(gradients[key], variables[key]) for key in variables]
        )
        return {"applied": result.applied}

    @tf.function(
        input_signature=[
            tf.TensorSpec([module.BATCH, 3], name="x"),
            tf.TensorSpec([module.BATCH, 1], name="y"),
        ]
    )
    def train_step(self, x, y):
        """A step on a batch, and the weights after it."""
        result = self.optimizer.minimize(
            lambda: tf.reduce_mean((self.model(x) - y) ** 2),
            self.model.trainable_variables,
        )
        weights = self.model.by_key()
        return {
            "applied": result.applied,
            **{key: tf.identity(weights[key]) for key in weights},
        }

    @tf.function(input_signature=[tf.TensorSpec([], name="rate")])
    def set_learning_rate(self, rate):
        """The rate from now on."""
        self.optimizer.learning_rate = rate
        return {"rate": tf.identity(self.optimizer.learning_rate)}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=() if row in (0, 11) else pytest.mark.slow)
        for row in range(12)
    ],
)
def test_the_operations_are_those_of_the_readme(row, tmp_path):
    rows = documented()
    assert len(rows) == 12
    arguments, more = rows[row]
    options = {} if row == 0 else eval(f"dict({arguments})")
    root = Root(**options)
    found = operations(converted(tmp_path, {"apply": root.apply}, root))
    assert found == rows[0][1] | more


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param("plain", "auto", marks=pytest.mark.slow),
        ("plain", False),
        ("rich", "auto"),
    ],
)
def test_it_trains(name, mode, tmp_path):
    """As the live step, but for exp(x) - 1, which is expm1 in TensorFlow.

    An error of 2^-24, one unit in the last place of exp(x), is in
    1 - beta_2^t, at least 0.001, one of 6e-5, relative. The step size has the
    square root of that: 3e-5.
    """
    options = {**module.options(name), "learning_rate": 0.125}
    root = Root(jit_compile=mode, **options)
    functions = {
        "train_step": root.train_step,
        "set_learning_rate": root.set_learning_rate,
    }
    flatbuffer = converted(tmp_path, functions, root)
    interpreter = tf.lite.Interpreter(model_content=flatbuffer)
    train_step = interpreter.get_signature_runner("train_step")
    before, moved = module.Model().by_key(), dict.fromkeys(module.SHAPES, 0.0)
    for number in range(STEPS):
        if number == STEPS // 2:
            root.set_learning_rate(tf.constant(0.03125))
            rate = np.float32(0.03125)
            interpreter.get_signature_runner("set_learning_rate")(rate=rate)
        found = train_step(**module.batch(number))
        expected = root.train_step(**module.tensors(number))
        assert bool(found["applied"]) == bool(expected["applied"])
        for key, start in before.items():
            weight = expected[key].numpy()
            moved[key] += np.abs(weight - start)
            bound = 3e-5 * moved[key] + 2e-6 * np.abs(weight)
            assert np.all(np.abs(found[key] - weight) <= bound)
        before = {key: expected[key].numpy() for key in before}
