"""What an import matches, refuses and gives back, of any source."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import helpers
from made_sources import SETTINGS, SHAPES, built, refused, source_of
from tf_adamw import migration
from tf_adamw.migration import assignment

pytestmark = pytest.mark.core


def test_everything_is_taken_over():
    optimizer, variables = built()
    source = source_of()
    report = migration.import_state(optimizer, source, strict=True)
    assert report.complete
    assert report.mapped == {"kernel": "kernel", "bias": "bias"}
    assert int(optimizer.iterations) == 7
    for key, variable in variables.items():
        for name in ("momentum", "velocity"):
            np.testing.assert_array_equal(
                optimizer.get_slot(variable, name), source.slots[key][name]
            )


@pytest.mark.parametrize(
    ("keys", "name", "key"),
    [
        (["a/kernel", "kernel"], "kernel", "kernel"),
        (["a/kernel", "bias"], "kernel", "a/kernel"),
        (["kernel", "dense/kernel"], "net/dense/kernel", "dense/kernel"),
        (["ernel", "kernel"], "net/dense/kernel", "kernel"),
        # Several end with it: no length tells which one is meant.
        (["a/kernel", "bb/kernel"], "kernel", None),
        (["net/dense/kernel", "target_net/dense/kernel"], "dense/kernel", None),
        (["akernel"], "kernel", None),
    ],
)
def test_names_that_end_alike(keys, name, key):
    optimizer, variables = built(dict.fromkeys(keys, (2, 3)))
    source = source_of({name: (2, 3)})
    if key is None:
        refused(optimizer, variables, source, "None of the variables")
    else:
        report = migration.import_state(optimizer, source)
        assert report.mapped == {key: name}


def test_two_that_would_be_one():
    optimizer, variables = built({"kernel": (2, 3)})
    source = source_of({"a/kernel": (2, 3), "b/kernel": (2, 3)})
    refused(optimizer, variables, source, "Both 'a/kernel' and 'b/kernel'")
    migration.import_state(optimizer, source, names={"a/kernel": None})
    np.testing.assert_array_equal(
        optimizer.get_slot(variables["kernel"], "velocity"),
        source.slots["b/kernel"]["velocity"],
    )


@pytest.mark.parametrize(
    ("positional", "names", "words"),
    [
        (False, {"nope": "kernel"}, "names has 'nope'; .* kernel, bias"),
        (False, {"kernel": "nope"}, "names makes 'nope' of 'kernel'"),
        (False, lambda name: "nope", "names makes 'nope' of 'kernel'"),
        (False, ["kernel"], "state for 2 variables, and there are 1"),
        (False, ["kernel", "kernel"], "names has a key twice"),
        (True, {"2": "kernel"}, "names has '2'; Other only counts"),
        (True, {"kernel": "kernel"}, "names has 'kernel'; Other only counts"),
        (True, {"0": "nope"}, "names has 'nope'; the keys are"),
    ],
)
def test_names_that_do_not_exist(positional, names, words):
    optimizer, variables = built()
    shapes = dict(zip("01", SHAPES.values(), strict=True))
    source = source_of(shapes if positional else SHAPES, positional=positional)
    refused(optimizer, variables, source, words, names=names)


@pytest.mark.parametrize(
    ("positional", "names"),
    [
        (False, {"kernel": None}),
        (False, [None, "bias"]),
        (False, lambda name: None if name == "kernel" else name),
        (True, {"0": None, "1": "bias"}),
        (True, {"1": "bias"}),
        (True, [None, "bias"]),
    ],
)
def test_none_leaves_one_out(positional, names):
    """Here it is one of another shape, that would stop the import."""
    optimizer, variables = built({"kernel": (4, 4), "bias": (3,)})
    shapes = dict(zip("01", SHAPES.values(), strict=True))
    source = source_of(shapes if positional else SHAPES, positional=positional)
    if not positional:
        refused(optimizer, variables, source, r"Shapes .*None leaves one out")
    report = migration.import_state(optimizer, source, names=names)
    first, second = source.slots
    assert report.mapped == {"bias": second}
    assert report.seeded == ("kernel",)
    assert report.left_over == (first,)
    assert not optimizer.get_slot(variables["kernel"], "velocity").numpy().any()


@pytest.mark.parametrize("positional", [False, True])
def test_weights_of_some_only(positional):
    optimizer, variables = built()
    shapes = dict(zip("01", SHAPES.values(), strict=True))
    source = source_of(shapes if positional else SHAPES, positional=positional)
    words = "has no weights of (theirs|kernel, bias)"
    refused(optimizer, variables, source, words, weights=True)
    first, second = source.slots
    source = dataclasses.replace(
        source, weights={first: np.full((2, 3), 5.0, np.float32)}
    )
    words = f"has no weights of (theirs|{second})"
    refused(optimizer, variables, source, words, weights=True)
    migration.import_state(
        optimizer, source, names=["kernel", None], weights=True
    )
    assert (variables["kernel"].numpy() == 5).all()
    assert (variables["bias"].numpy() == 1).all()


@pytest.mark.parametrize(
    ("slot", "value", "words"),
    [
        ("momentum", np.nan, "momentum of 'bias' .* not finite"),
        ("velocity", np.nan, "velocity of 'bias' .* not finite"),
        ("velocity", np.inf, "velocity of 'bias' .* not finite"),
        ("velocity", -1e-30, "velocity of 'bias' .* negative"),
        ("velocity_max", -1.0, "velocity_max of 'bias' .* negative"),
    ],
)
def test_values_that_no_adam_has(slot, value, words):
    optimizer, variables = built(amsgrad=True)
    source = source_of()
    for slots in source.slots.values():
        slots["velocity_max"] = slots["velocity"].copy()
    source.slots["bias"][slot][1] = value
    refused(optimizer, variables, source, words)
    migration.import_state(optimizer, source, names={"bias": None})


def test_complex_moments():
    source = source_of()
    source.slots["bias"]["momentum"] = np.full(3, 1j)
    refused(*built(), source, "momentum of 'bias' .* complex numbers")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_weights_that_no_variable_has(value):
    """What float64 holds and float32 does not is among them."""
    optimizer, variables = built()
    weights = {n: np.ones(s) for n, s in SHAPES.items()}
    weights["bias"][1] = value
    source = source_of(weights=weights)
    words = "weight of 'bias' .* not finite in float32"
    refused(optimizer, variables, source, words, weights=True)
    migration.import_state(optimizer, source)
    optimizer, variables = built(dtype="float64")
    if np.isfinite(value):
        migration.import_state(optimizer, source, weights=True)
        assert variables["bias"].numpy()[1] == value


def test_moments_that_only_float64_holds():
    source = source_of()
    source.slots["bias"]["velocity"] = np.full(3, 1e60)
    words = "velocity of 'bias' .* not finite in float32"
    refused(*built(), source, words)
    optimizer, variables = built(dtype="float64")
    migration.import_state(optimizer, source)
    velocity = optimizer.get_slot(variables["bias"], "velocity")
    assert (velocity.numpy() == 1e60).all()


@pytest.mark.parametrize(
    ("transpose", "words"),
    [
        ({"kernel": (0, 0)}, "'kernel'.* each axis from 0 on once"),
        ({"kernel": (1,)}, "'kernel'.* each axis from 0 on once"),
        ({"kernel": "10"}, "'kernel'.* each axis from 0 on once"),
        ({"(": (1, 0)}, r"'\(' is no regular expression"),
    ],
)
def test_axes_that_are_none(transpose, words):
    refused(*built(), source_of(), words, transpose=transpose)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", np.nan),
        ("weight_decay", np.nan),
        ("weight_decay", -0.5),
    ],
)
def test_settings_out_of_range(name, value):
    """They are refused before anything else is said or done."""
    # 0.3 has more digits than a float32 holds.
    optimizer, variables = built(dtype="float64", learning_rate=0.3)
    source = source_of(settings={**SETTINGS, name: value})
    refused(optimizer, variables, source, f"{name} must be a finite number")


def test_a_failure_gives_everything_back(monkeypatch):
    optimizer, variables = built(dtype="float64", learning_rate=0.3)
    config = optimizer.get_config()
    before = helpers.snapshot(optimizer, variables.values())
    assert config["learning_rate"] == 0.3

    def fail(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(assignment, "_assign_weights", fail)
    weights = {n: np.zeros(s, np.float32) for n, s in SHAPES.items()}
    with pytest.raises(RuntimeError):
        migration.import_state(
            optimizer, source_of(weights=weights), weights=True
        )
    assert helpers.snapshot(optimizer, variables.values()) == before
    assert optimizer.get_config() == config
    # Its next step is that of an optimizer that knows all digits.
    other, others = built(dtype="float64", learning_rate=0.3)
    for one, its in ((optimizer, variables), (other, others)):
        gradients = [tf.ones_like(variable) for variable in its.values()]
        one.apply(gradients, list(its.values()))
    for key, variable in variables.items():
        np.testing.assert_array_equal(variable, others[key])


def test_square_kernels_of_a_source_with_outputs_first():
    shapes = {"square": (3, 3), "kernel": (2, 3), "bias": (3,)}
    source = source_of(shapes, output_first=True)
    optimizer, variables = built(shapes)
    report = migration.import_state(optimizer, source)
    (note,) = [note for note in report.notes if "square" in note]
    assert note.startswith("square is square, and no transpose matches it")
    assert "transposed" not in str(report)
    transpose = {"^square$": (1, 0), "bias": (1, 0)}
    report = migration.import_state(optimizer, source, transpose=transpose)
    assert not any("square" in note for note in report.notes)
    assert "square <- square, transposed" in str(report).replace("\n", ";")
    # An array of one dimension has no axes to swap.
    assert report.transposed == ("square",)
    np.testing.assert_array_equal(
        optimizer.get_slot(variables["square"], "velocity"),
        source.slots["square"]["velocity"].T,
    )
