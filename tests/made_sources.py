"""Sources of an import that no file holds, and optimizers that take them."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from tf_adamw import migration

SETTINGS = {
    "learning_rate": 0.5,
    "weight_decay": 0.25,
    "beta_1": 0.75,
    "beta_2": 0.875,
    "epsilon": 2.0**-10,
}
SHAPES = {"kernel": (2, 3), "bias": (3,)}


def moments(shape, number=1):
    array = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    return {"momentum": -number * array, "velocity": number * array}


def source_of(shapes=SHAPES, without=(), **fields):
    """A source with other moments in each variable."""
    slots = {n: moments(s, i + 1) for i, (n, s) in enumerate(shapes.items())}
    settings = {n: v for n, v in SETTINGS.items() if n not in without}
    fields = {
        "iterations": 7,
        "settings": settings,
        "decayed": dict.fromkeys(slots, True),
    } | fields
    return migration.Source("Other", slots=slots, **fields)


def built(shapes=SHAPES, dtype="float32", **options):
    variables = {
        key: tf.Variable(np.ones(shape, dtype)) for key, shape in shapes.items()
    }
    optimizer = tf_adamw.AdamW(**{**SETTINGS, **options})
    optimizer.build(variables)
    return optimizer, variables


def refused(optimizer, variables, source, words, **options):
    """It is refused in a line, and nothing has changed."""
    before = helpers.snapshot(optimizer, variables.values())
    config = optimizer.get_config()
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=words) as refusal:
            migration.import_state(
                optimizer, source, dry_run=dry_run, **options
            )
        assert "\n" not in str(refusal.value)
    assert helpers.snapshot(optimizer, variables.values()) == before
    assert optimizer.get_config() == config
