"""tf_adamw.checkpoint.restore: Keras layers and others in lists of a module."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_adamw
from tf_adamw.checkpoint import restore


def dense(name=None):
    layer = keras.layers.Dense(2, use_bias=False, name=name)
    layer.build([None, 2])
    return layer


def module():
    made = tf.Module()
    made.w = tf.Variable(tf.zeros([2, 2]), name="w")
    return made


def sequential():
    layers = [keras.layers.Dense(2, use_bias=False) for _ in range(2)]
    return keras.Sequential([keras.Input([2]), *layers])


def named(*names):
    return [dense(name) for name in names]


def variables(value):
    """Those of lists, dicts, layers and modules, each once, in their order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        found = [v for part in value for v in variables(part)]
    elif isinstance(value, keras.layers.Layer):
        found = value.trainable_variables
    else:
        found = [getattr(value, "w", value)]
    return list({id(v): v for v in found}.values())


# What is made first, what later, and of which former variable, if of any, each
# later one is.
KINDS = {
    "list": (lambda: [dense(), dense(), dense()],) * 2 + ([0, 1, 2],),
    "nested": (lambda: [[dense(), dense()], [dense()]],) * 2 + ([0, 1, 2],),
    "dict": (lambda: {"p": dense(), "q": dense()},) * 2 + ([0, 1],),
    "mixed": (lambda: [module(), dense(), module()],) * 2 + ([0, 1, 2],),
    "models": (lambda: [sequential(), sequential()],) * 2 + ([0, 1, 2, 3],),
    "variables": (lambda: [dense().kernel, dense().kernel],) * 2 + ([0, 1],),
    "one name": (lambda: named("a", "a"),) * 2 + ([0, 1],),
    "exchanged": (lambda: named("a", "b"), lambda: named("b", "a"), [1, 0]),
    "exchanged numbers": (
        lambda: named("l_1", "l_2"),
        lambda: named("l_2", "l_1"),
        [1, 0],
    ),
    "inserted": (
        lambda: named("l_1", "l_2"),
        lambda: named("l_1", "l_9", "l_2"),
        [0, None, 1],
    ),
    "first removed": (
        lambda: named("l_1", "l_2", "l_3"),
        lambda: named("l_2", "l_3"),
        [1, 2],
    ),
    "first added": (
        lambda: named("l_1", "l_2"),
        lambda: named("l_0", "l_1", "l_2"),
        [None, 0, 1],
    ),
    "moved on": (
        lambda: named("l_0", "l_1", "l_2"),
        lambda: named("l_1", "l_2", "l_3"),
        [1, 2, None],
    ),
}


def saved_state(make):
    root = tf.Module()
    root.held = make()
    optimizer = tf_adamw.AdamW(jit_compile=False)
    optimizer.build(variables(root.held))
    checkpoint = tf.train.Checkpoint(root=root, optimizer=optimizer)
    return checkpoint, variables(root.held), optimizer


@pytest.mark.filterwarnings("ignore:Several variables have the same name")
@pytest.mark.parametrize("kind", KINDS)
def test_each_gets_its_own(kind, tmp_path):
    first, later, of = KINDS[kind]
    keras.utils.clear_session()
    checkpoint, weights, optimizer = saved_state(first)
    for number, weight in enumerate(weights, 1):
        weight.assign(tf.fill([2, 2], float(number)))
    optimizer.apply([tf.convert_to_tensor(w) for w in weights], weights)
    path = checkpoint.save(tmp_path / "c")
    # In the same session: Keras goes on counting.
    checkpoint, others, other = saved_state(later)
    before = [tf.identity(w) for w in others]
    report = restore(checkpoint, path)
    assert not report.mismatched
    for weight, start, place in zip(others, before, of, strict=True):
        momentum = other.get_slot(weight, "momentum")
        if place is None:
            np.testing.assert_array_equal(weight, start)
            np.testing.assert_array_equal(momentum, np.zeros([2, 2]))
            continue
        np.testing.assert_array_equal(weight, weights[place])
        expected = optimizer.get_slot(weights[place], "momentum")
        np.testing.assert_array_equal(momentum, expected)
