"""Where an import goes: Keras's own optimizers, replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import helpers
import tf_adamw
import tf_adamw.keras
import tf_adamw.tf_keras
from made_sources import SETTINGS, SHAPES, built, moments, refused, source_of
from tf_adamw import migration

LIBRARIES = {
    "keras": (keras, tf_adamw.keras.AdamW),
    "tf_keras": (tf_keras, tf_adamw.tf_keras.AdamW),
}
NAMES = ["kernel", "bias"]


def adapter_of(library):
    """An optimizer that is not built, and a model for it."""
    module, kind = LIBRARIES[library]
    model = module.Sequential(
        [module.Input([2]), module.layers.Dense(3, name="dense")]
    )
    return kind(**SETTINGS), model


def twin_of(model):
    """An AdamW on variables of the same values, with the same keys."""
    weights = dict(zip(NAMES, model.get_weights(), strict=True))
    variables = helpers.as_variables(weights)
    optimizer = tf_adamw.AdamW(**SETTINGS)
    optimizer.build(variables)
    return optimizer, variables


@pytest.mark.parametrize("library", LIBRARIES)
def test_import_into_an_adapter(library):
    """It goes on as the AdamW that it stands for."""
    adapter, model = adapter_of(library)
    adapter.build(model.trainable_variables)
    alone, variables = twin_of(model)
    source = source_of()
    report = migration.import_state(adapter, source, strict=True)
    migration.import_state(alone, source)
    assert report.iterations == int(adapter.iterations) == 7
    gradients = [np.float32(moments(s)["velocity"]) for s in SHAPES.values()]
    tensors = helpers.to_gradients(gradients)
    adapter.apply_gradients(
        list(zip(tensors, model.trainable_variables, strict=True))
    )
    alone.apply(tensors, list(variables.values()))
    for weight, expected in zip(
        model.get_weights(), variables.values(), strict=True
    ):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_adapter_that_is_not_built(library, tmp_path):
    adapter, _ = adapter_of(library)
    with pytest.raises(ValueError, match="build"):
        migration.import_state(adapter, source_of())
    with pytest.raises(ValueError, match="after the optimizer's build"):
        migration.export_state(adapter, tmp_path / "a.pt", "torch")


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("target", ["keras", "torch"])
def test_export_of_an_adapter(library, target, tmp_path):
    """The file is that of the AdamW that it stands for."""
    adapter, model = adapter_of(library)
    adapter.build(model.trainable_variables)
    alone, _ = twin_of(model)
    read = []
    for number, optimizer in enumerate((adapter, alone)):
        migration.import_state(optimizer, source_of())
        path = tmp_path / f"{number}.weights.h5"
        arguments = migration.export_state(optimizer, path, target)
        assert arguments["betas" if target == "torch" else "beta_1"]
        read.append(migration.read(target, path))
    first, second = read
    assert first.iterations == second.iterations == 7
    for one, two in zip(
        first.slots.values(), second.slots.values(), strict=True
    ):
        for name, array in two.items():
            np.testing.assert_array_equal(one[name], array)


@pytest.mark.parametrize("other", [None, tf.Module()])
def test_other_optimizers_are_refused(other, tmp_path):
    for call in (
        lambda: migration.import_state(other, source_of()),
        lambda: migration.export_state(other, tmp_path / "a.pt", "torch"),
    ):
        with pytest.raises(TypeError, match=r"a tf_adamw\.AdamW, .*, got "):
            call()
    assert not list(tmp_path.iterdir())


def on_replicas(strategy, optimizer, variables):
    """A step of the mean of the same gradients on each; returns the copies."""
    gradients = {k: moments(s)["velocity"] for k, s in SHAPES.items()}

    @tf.function
    def step():
        strategy.run(
            lambda: optimizer.apply(
                [tf.constant(g) for g in gradients.values()],
                list(variables.values()),
            )
        )

    step()
    held = [*optimizer.variables, *variables.values()]
    return [
        [c.numpy() for c in strategy.experimental_local_results(v)]
        for v in held
    ]


def test_import_on_replicas(mirrored):
    """Every copy has the state, and goes on with it, bit for bit."""
    weights = {k: moments(s)["momentum"] for k, s in SHAPES.items()}
    source = source_of(weights=weights)
    after = []
    for strategy in (mirrored, tf.distribute.get_strategy()):
        with strategy.scope():
            optimizer, variables = built(aggregation="none")
        report = migration.import_state(
            optimizer, source, weights=True, strict=True
        )
        assert report.complete
        for key, variable in variables.items():
            for copy in strategy.experimental_local_results(variable):
                np.testing.assert_array_equal(copy, weights[key])
        after.append(on_replicas(strategy, optimizer, variables))
    copies, alone = after
    for found, (expected,) in zip(copies, alone, strict=True):
        for copy in found:
            assert copy.tobytes() == expected.tobytes()


def test_a_refusal_on_replicas(mirrored):
    with mirrored.scope():
        optimizer, variables = built()
    source = source_of(shapes={"kernel": (2, 3), "bias": (4,)})
    refused(optimizer, variables, source, "Shapes do not fit")
