"""Checkpoints of each version of the format, with every option."""

import hashlib
import importlib.util
import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from checkpoint_model import OF_HYPERPARAMETERS, made, saved_values
from helpers import UNIT_ROUNDOFF, compiled_is_slow
from numpy_adamw import NumpyAdamW
from tf_adamw.scalar_state import FORMAT_VERSION

pytestmark = pytest.mark.core

GOLDENS = pathlib.Path(__file__).parent / "goldens"
FOLDERS = {1: GOLDENS, 2: GOLDENS / "format_2"}
PAGE = GOLDENS.parents[1] / "docs" / "checkpoint_format.md"
VERSION = "optimizer/format_version"
LISTED = [
    *((version, option) for version in FOLDERS for option in helpers.OPTIONS),
    *((2, option) for option in OF_HYPERPARAMETERS),
]
every_golden = pytest.mark.parametrize(("version", "option"), LISTED)


def golden_values(version, option):
    return json.loads((FOLDERS[version] / option / "values.json").read_text())


def restored(version, option, jit_compile="auto"):
    """An optimizer and a model with the golden's state."""
    model, options = made(option)
    optimizer = tf_adamw.AdamW(jit_compile=jit_compile, **options)
    optimizer.build(model)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    path = str(FOLDERS[version] / option / "checkpoint")
    if version == FORMAT_VERSION:
        checkpoint.read(path).assert_consumed()
    else:
        tf_adamw.checkpoint.restore(checkpoint, path, strict=True)
    return optimizer, model


def test_no_golden_has_changed():
    """SHA256SUMS gets lines for new goldens; its lines stay as they are."""
    lines = (GOLDENS / "SHA256SUMS").read_text().splitlines()
    expected = {name: digest for digest, name in map(str.split, lines)}
    found = {
        path.relative_to(GOLDENS).as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for version, option in LISTED
        for path in (FOLDERS[version] / option).iterdir()
    }
    assert found == expected


def test_every_version_has_its_goldens():
    assert list(FOLDERS) == list(range(1, FORMAT_VERSION + 1))


@pytest.mark.parametrize("option", [*helpers.OPTIONS, *OF_HYPERPARAMETERS])
def test_no_golden_is_written_again(option):
    path = GOLDENS / "make_golden.py"
    spec = importlib.util.spec_from_file_location("make_golden", path)
    make_golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_golden)
    with pytest.raises(SystemExit, match=f"{option} exists"):
        make_golden.write(option)


@every_golden
def test_every_value_is_restored_and_saved_under_its_key(
    version, option, tmp_path
):
    golden = golden_values(version, option)
    saved = saved_values(*restored(version, option), tmp_path)
    golden[VERSION] = FORMAT_VERSION
    assert set(saved) == set(golden)
    for key, value in saved.items():
        np.testing.assert_array_equal(value.astype(float), golden[key], key)


@every_golden
def test_values_are_distinct_per_key(version, option):
    golden = golden_values(version, option)
    first = [np.ravel(value)[0] for value in golden.values()]
    assert len(set(first)) == len(first)


def names_of_the_page():
    """What the first column of docs/checkpoint_format.md's table names."""
    table = PAGE.read_text().split("| below the optimizer |")[1]
    for row in table.split("\n\n")[0].splitlines()[2:]:
        names = re.findall(r"`([^`]+)`", row.split("|")[1])
        folder = names[0].rpartition("/")[0]
        for name in names:
            yield name if "/" in name or not folder else f"{folder}/{name}"


def test_every_row_of_the_page_is_in_a_golden():
    held = [key for golden in LISTED for key in golden_values(*golden)]
    names = list(names_of_the_page())
    assert "hyperparameters/epsilon" in names and len(names) == 17
    for name in names:
        pattern = re.compile(f"optimizer/{name.replace('<key>', '[^/]+')}")
        assert any(map(pattern.fullmatch, held)), name


def hyperparameters(option, golden):
    """The options, with the numbers that the golden has."""
    options = dict(made(option)[1])
    for name in (
        "learning_rate",
        "weight_decay",
        "beta_1",
        "beta_2",
        "epsilon",
    ):
        key = f"optimizer/hyperparameters/{name}"
        if key in golden:
            options[name] = golden.get(f"{key}_float64", golden[key])
    peak = golden.get("optimizer/hyperparameters/learning_rate/peak")
    if peak is not None:
        options["learning_rate"] = lambda step: peak / (1 + step)
    return options


def reference_of(option, golden):
    """The reference in the golden's state."""
    options = hyperparameters(option, golden)
    weights = {k: golden[f"model/{k}"] for k in made(option)[0].by_key()}
    reference = NumpyAdamW(weights, **options)
    for name, slot in reference.slots.items():
        for key in weights:
            escaped = key.replace("/", ".S")
            value = golden.get(f"optimizer/slots/{escaped}/{name}")
            if value is not None:
                slot[key] = np.array(value)
    counters = "optimizer/counters/"
    reference.iterations = golden[counters + "iterations"]
    reference.position = golden.get(counters + "window_position", 0)
    reference.averaged = set(weights)
    if reference.loss_scale_rule:
        reference.good_updates = golden[counters + "good_updates"]
        scale = "optimizer/hyperparameters/loss_scale"
        reference.loss_scale = golden[scale]
    return reference


@compiled_is_slow
@every_golden
def test_next_step_continues(rng, version, option, jit_compile):
    reference = reference_of(option, golden_values(version, option))
    optimizer, model = restored(version, option, jit_compile)
    variables = model.by_key()
    # The golden's dynamic scale is small; what it leaves is of order one.
    scale = reference.loss_scale if reference.loss_scale_rule else 1.0
    values = helpers.values(variables)
    gradients = helpers.random_gradients(rng, values, scale)
    result = optimizer.apply(
        helpers.to_gradients(gradients.values()), variables.values()
    )
    applied, _ = reference.apply(gradients)
    assert applied and result.applied
    for key, variable in variables.items():
        expected = reference.weights[key]
        dtype = variable.dtype.name
        rounding = 4 * UNIT_ROUNDOFF["float32"]
        if dtype == "float64":
            rounding = 4 * UNIT_ROUNDOFF[dtype]
        elif dtype != "float32":
            rounding += UNIT_ROUNDOFF[dtype]
        actual = variable.numpy().astype(float)
        np.testing.assert_allclose(actual, expected, rtol=rounding)
        for name in ("momentum", "velocity"):
            slot = optimizer.get_slot(variable, name)
            expected = reference.slots[name][key]
            np.testing.assert_allclose(slot, expected, rtol=2e-6)
