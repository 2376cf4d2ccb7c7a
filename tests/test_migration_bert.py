"""The state of BERT's optimizer is taken over."""

import importlib.util
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from next_step import Imported
from tf_adamw import migration

pytestmark = pytest.mark.core

FILES = pathlib.Path(__file__).parent / "migration_files"


def make_bert():
    path = FILES / "make_bert.py"
    spec = importlib.util.spec_from_file_location("make_bert", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bert(rng):
    made = make_bert()
    given = {"learning_rate": made.LEARNING_RATE}
    source = migration.read("bert", made.PREFIX, **given)
    assert source.iterations == 3
    assert set(source.slots) == set(made.SHAPES)
    decayed = {name for name, decays in source.decayed.items() if decays}
    assert decayed == set(made.DECAYED)
    excluded = [f"^{re.escape(n)}$" for n in made.SHAPES if n not in decayed]
    imported = Imported(
        source, source.weights, exclude_from_weight_decay=excluded
    )
    assert imported.report.complete
    weights, m, v = (
        {k: np.float64(a) for k, a in arrays.items()}
        for arrays in (
            source.weights,
            {k: s["momentum"] for k, s in source.slots.items()},
            {k: s["velocity"] for k, s in source.slots.items()},
        )
    )
    for _ in range(4):
        gradients = {
            k: g.astype(np.float32) for k, g in made.gradients_of(rng).items()
        }
        made.step(
            weights, m, v, {k: np.float64(g) for k, g in gradients.items()}
        )
        imported.step(gradients, weights, "BERT's optimizer, float32")


def test_bert_counts_on_where_the_bias_has_vanished():
    made = make_bert()
    source = migration.read("bert", made.PREFIX)
    t = source.counter + 1
    for beta in (0.9, 0.999):
        assert np.float32(1.0 - beta**t) == 1.0
    imported = Imported(source, source.weights)
    assert int(imported.optimizer.iterations) == source.counter
    assert any(
        str(source.counter - 3) in note for note in imported.report.notes
    )


def test_bert_without_its_optimizer_refused(tmp_path):
    path = str(tmp_path / "model.ckpt")
    tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=["bert/w"],
        shape_and_slices=[""],
        tensors=[np.float32([1.0])],
    )
    with pytest.raises(ValueError, match="no state of BERT's optimizer"):
        migration.read("bert", path)


@pytest.mark.parametrize("damage", ["missing", "index", "cut", "changed"])
def test_damaged_files_refused(tmp_path, damage):
    made = make_bert()
    for file in made.PREFIX.parent.glob("model*"):
        content = file.read_bytes()
        if damage == "index" and file.suffix == ".index":
            content = content[:100]
        if damage == "cut" and file.suffix != ".index":
            content = content[:-20]
        if damage == "changed" and file.suffix != ".index":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if damage != "missing":
            (tmp_path / file.name).write_bytes(content)
    path = tmp_path / made.PREFIX.name
    with pytest.raises(ValueError, match="is damaged or missing") as refusal:
        migration.read("bert", path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
