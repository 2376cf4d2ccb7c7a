"""tf_adamw.checkpoint.restore: Keras has numbered layers anew.

A layer without a name is called "dense_1" by what was made before it. Every
layer here has the same shape: nothing but the right one may be taken.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_adamw
from tf_adamw.checkpoint import restore


def numbered(model):
    """Gives each weight values of its own, which do not depend on names."""
    for number, variable in enumerate(model.variables):
        variable.assign(tf.fill(variable.shape, number + 1.0))
    return model


def sequential(names, model="net"):
    layers = [
        keras.layers.Dropout(0.5)
        if name == "dropout"
        else keras.layers.Dense(4, name=name)
        for name in names
    ]
    return keras.Sequential([keras.Input([4]), *layers], name=model)


class Attributes(keras.Model):
    """Its layers have object paths that count nothing."""

    def __init__(self, order):
        super().__init__()
        for name in order:
            setattr(self, name, keras.layers.Dense(4))

    def call(self, x):
        return self.second(self.first(x))


class Run:
    """A model and an optimizer whose moments tell whose they are."""

    def __init__(self, model, steps=0):
        self.model = model
        self.optimizer = tf_adamw.AdamW(jit_compile=False)
        self.optimizer.build(model)
        self.checkpoint = tf.train.Checkpoint(
            model=model, optimizer=self.optimizer
        )
        if steps:
            numbered(model)
        for _ in range(steps):
            self.optimizer.apply([v * 0.125 for v in model.trainable_variables])

    def state(self, layer):
        variables = layer.trainable_variables
        slots = [
            self.optimizer.get_slot(v, name)
            for v in variables
            for name in ("momentum", "velocity")
        ]
        return [value.numpy() for value in [*variables, *slots]]


def denses(model):
    return [layer for layer in model.layers if layer.trainable_variables]


def assert_layers(run, other, pairs):
    """{place of the layer here: place of the layer that was saved}."""
    for here, there in pairs.items():
        for found, expected in zip(
            other.state(denses(other.model)[here]),
            run.state(denses(run.model)[there]),
            strict=True,
        ):
            np.testing.assert_array_equal(found, expected)


def saved(tmp_path, names):
    run = Run(sequential(names), 2)
    return run, run.checkpoint.save(tmp_path / "checkpoint")


def dense(*numbers):
    return ["dense" + (f"_{n}" if n else "") for n in numbers]


DROPPED = [*dense(1), "dropout", *dense(2, 3)]


@pytest.mark.parametrize("names", [dense(1, 2, 3), dense(7, 9, 11), DROPPED])
def test_layers_are_numbered_anew(names, tmp_path):
    """One was made before the model; another without state may come in."""
    run, path = saved(tmp_path, dense(0, 1, 2))
    other = Run(sequential(names))
    report = restore(other.checkpoint, path, strict=True)
    assert_layers(run, other, {0: 0, 1: 1, 2: 2})
    key = f"optimizer/slots/net/{names[0]}/bias/velocity"
    there = "optimizer/slots/net/dense/bias/velocity"
    assert report.moved[key] == there
    assert f"  {key}: {there}" in str(report).splitlines()


def test_the_next_step_after_that(tmp_path):
    run, path = saved(tmp_path, dense(0, 1, 2))
    other = Run(sequential(dense(1, 2, 3)))
    restore(other.checkpoint, path)
    for each in (run, other):
        variables = each.model.trainable_variables
        each.optimizer.apply([tf.ones_like(v) for v in variables])
    assert_layers(run, other, {0: 0, 1: 1, 2: 2})


@pytest.mark.parametrize(
    ("names", "others", "pairs"),
    [
        (dense(0, 1, 2), dense(0, 1), {0: 0, 1: 1}),
        (dense(0, 1), dense(0, 1, 2), {0: 0, 1: 1}),
        # Keras leaves no gap: these are given by hand.
        (dense(0, 1, 2, 3), dense(0, 2, 3), {0: 0, 1: 2, 2: 3}),
        (dense(0, 2, 3), dense(0, 1, 2, 3), {0: 0, 2: 1, 3: 2}),
        # The name is new, and the place another's who is gone.
        (dense(0, 1, 2), dense(0, 1, 5), {0: 0, 1: 1, 2: 2}),
    ],
)
def test_names_and_order_agree(names, others, pairs, tmp_path):
    run, path = saved(tmp_path, names)
    other = Run(sequential(others))
    assert not restore(other.checkpoint, path).mismatched
    assert_layers(run, other, pairs)


@pytest.mark.filterwarnings("ignore:No slot")
@pytest.mark.parametrize(
    ("names", "others", "sure"),
    [
        (dense(0, 1, 2), dense(1, 2, 3, 4), set()),
        (dense(0, 1, 2), dense(1, 2), set()),
        (dense(0, 1, 2), dense(0, 2, 1), {0}),
        (dense(0, 1, 2), dense(0, 2, 3), {0}),
    ],
)
def test_nobody_can_tell(names, others, sure, tmp_path):
    """Numbered anew, or moved? What is not certain starts again."""
    run, path = saved(tmp_path, names)
    other = Run(sequential(others), 1)
    before = [other.state(layer) for layer in denses(other.model)]
    with pytest.raises(ValueError, match="does not match") as error:
        restore(other.checkpoint, path, strict=True)
    assert "\n" not in str(error.value)
    report = restore(other.checkpoint, path)
    assert_layers(run, other, {n: n for n in sure})
    for n, layer in enumerate(denses(other.model)):
        if n not in sure:
            kernel, bias, *slots = other.state(layer)
            np.testing.assert_array_equal(kernel, before[n][0])
            np.testing.assert_array_equal(bias, before[n][1])
            assert not any(map(np.any, slots))
            slot = f"optimizer/slots/net/{layer.name}/kernel/momentum"
            assert "by its place another" in report.mismatched[slot]
    unsure = len(others) - len(sure)
    assert len(report.mismatched) == 6 * unsure
    assert len(report.left_over) == 6 * (len(names) - len(sure))


def test_layers_that_are_attributes(tmp_path):
    """Weights by their paths; slots, which have numbers, beside them."""
    keras.utils.clear_session()
    models = []
    for before in (0, 1):
        keras.utils.clear_session()
        for _ in range(before):
            keras.layers.Dense(1)
        models.append(Attributes(["first", "second"]))
        models[-1](tf.zeros([1, 4]))
    run, other = Run(models[0], 2), Run(models[1])
    assert set(run.optimizer.slots) != set(other.optimizer.slots)
    restore(other.checkpoint, run.checkpoint.save(tmp_path / "c"), strict=True)
    for name in ("first", "second"):
        layers = [getattr(each.model, name) for each in (run, other)]
        for found, expected in zip(
            other.state(layers[1]), run.state(layers[0]), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


def two_models(order):
    """Two alike, made in an order: Keras numbers them so."""
    keras.utils.clear_session()
    return {name: sequential([None], None) for name in order}


def test_two_models_made_in_the_other_order(tmp_path):
    made = two_models("ab")
    for number, model in enumerate(made.values()):
        model.trainable_variables[0].assign(tf.fill([4, 4], number + 1.0))
    path = tf.train.Checkpoint(**made).save(tmp_path / "checkpoint")
    made = two_models("ba")
    restore(tf.train.Checkpoint(**made), path, strict=True)
    for name, number in (("a", 1.0), ("b", 2.0)):
        kernel = made[name].trainable_variables[0]
        np.testing.assert_array_equal(kernel, np.full([4, 4], number))


def both_models(order):
    """Two models that one optimizer trains."""
    made = two_models(order)
    variables = [v for name in "ab" for v in made[name].trainable_variables]
    optimizer = tf_adamw.AdamW(jit_compile=False)
    optimizer.build(variables)
    return variables, optimizer, tf.train.Checkpoint(opt=optimizer, **made)


def test_slots_of_two_models_made_in_the_other_order(tmp_path):
    variables, optimizer, checkpoint = both_models("ab")
    optimizer.apply(
        [tf.fill(v.shape, n + 1.0) for n, v in enumerate(variables)]
    )
    path = checkpoint.save(tmp_path / "checkpoint")
    again, other, checkpoint = both_models("ba")
    assert again[0].path != variables[0].path
    restore(checkpoint, path, strict=True)
    for here, there in zip(again, variables, strict=True):
        np.testing.assert_array_equal(here, there)
        for slot in ("momentum", "velocity"):
            np.testing.assert_array_equal(
                other.get_slot(here, slot), optimizer.get_slot(there, slot)
            )


def test_another_model_of_the_same_names_is_new(tmp_path):
    run, path = saved(tmp_path, dense(0))
    student, teacher = Run(sequential(dense(0))), sequential(dense(0))
    checkpoint = tf.train.Checkpoint(
        model=student.model, optimizer=student.optimizer, teacher=teacher
    )
    before = teacher.get_weights()
    with pytest.raises(ValueError, match="2 not in it"):
        restore(checkpoint, path, strict=True)
    report = restore(checkpoint, path)
    assert len(report.seeded) == 2
    assert all(name.startswith("teacher/") for name in report.seeded)
    for found, expected in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert_layers(run, student, {0: 0})


def test_a_variable_with_the_name_of_a_models(tmp_path):
    backup = tf.Variable(tf.fill([4, 4], 7.0), name="net/dense/kernel")
    path = tf.train.Checkpoint(w=backup).save(tmp_path / "checkpoint")
    model = sequential(dense(0))
    before = model.get_weights()
    checkpoint = tf.train.Checkpoint(w=tf.Variable(tf.zeros([4, 4])), m=model)
    report = restore(checkpoint, path)
    assert report.restored == ("w",) and len(report.seeded) == 2
    for found, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
