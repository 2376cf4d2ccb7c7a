"""The state of legacy Keras optimizers is taken over.

Here is that of tf_keras, and what is refused; see test_migration_addons.py.
"""

import pathlib

import numpy as np
import pytest
import tf_keras

from keras_training import Trained, refusal
from next_step import Imported
from tf_adamw import migration

pytestmark = pytest.mark.filterwarnings(
    "ignore:You are saving your model as an HDF5 file"
)

FILES = pathlib.Path(__file__).parent / "migration_files"
SOURCES = ("tf_keras_legacy", "tfa_adamw", "adam_weight_decay")
Adam = tf_keras.optimizers.legacy.Adam
both_formats = pytest.mark.parametrize("kind", [".h5", "checkpoint"])


def trained(rng, optimizer=None, steps=3, scale=1.0, **options):
    options = {"learning_rate": 2e-3, **options}
    return Trained(rng, tf_keras, optimizer or Adam(**options), steps, scale)


def imported(run, source, **options):
    """Checkpoints have paths of objects, in the order of the model."""
    names = dict(zip(source.slots, run.variables, strict=True))
    options = {"jit_compile": False, **options}
    return Imported(source, run.weights(), names, **options)


@both_formats
@pytest.mark.parametrize("amsgrad", [False, True])
def test_next_step(rng, tmp_path, kind, amsgrad):
    run = trained(rng, amsgrad=amsgrad)
    source = migration.read("tf_keras_legacy", run.save(tmp_path, kind))
    assert source.optimizer == "tf_keras legacy Adam"
    assert source.iterations == 3
    unknown = {"weight_decay"} | ({"epsilon"} if kind != ".h5" else set())
    assert source.assumed == unknown
    assert source.options == ({"amsgrad": True} if amsgrad else {})
    heir = imported(run, source)
    assert heir.report.complete
    name = f"tf_keras legacy Adam{', AMSGrad' * amsgrad}, {kind}"
    run.check(heir, name)


def test_next_step_of_a_long_run(rng, tmp_path):
    """Keras computes 1 - beta^t in float32: late, it is 1."""
    run = trained(rng)
    run.optimizer.iterations.assign(50_000)
    path = run.save(tmp_path, "checkpoint")
    source = migration.read("tf_keras_legacy", path)
    label = "tf_keras legacy Adam, after 50000 steps, checkpoint"
    heir = imported(run, source, jit_compile=True)
    run.check(heir, label, corrections=False)


def test_next_step_where_epsilon_matters(rng, tmp_path):
    run = trained(rng, scale=1e-6)
    path = run.save(tmp_path, "checkpoint")
    source = migration.read("tf_keras_legacy", path)
    label = "tf_keras legacy Adam, gradients of 1e-6, checkpoint"
    run.check(imported(run, source), label)


@both_formats
def test_a_decaying_rate(rng, tmp_path, kind):
    """That of the next step is taken, and said to fall on."""
    run = trained(rng, decay=0.5)
    source = migration.read("tf_keras_legacy", run.save(tmp_path, kind))
    assert np.isclose(source.settings["learning_rate"], 2e-3 / (1 + 0.5 * 3))
    (note,) = source.notes
    assert "decay=0.5" in note
    label = f"tf_keras legacy Adam, decay, {kind}"
    run.check(imported(run, source), label, steps=1)


@both_formats
def test_a_schedule_is_no_number(rng, tmp_path, kind):
    schedule = tf_keras.optimizers.schedules.ExponentialDecay(1e-3, 10, 0.5)
    run = trained(rng, learning_rate=schedule)
    source = migration.read("tf_keras_legacy", run.save(tmp_path, kind))
    assert "learning_rate" not in source.settings
    rate = float(schedule(3))
    source = migration.read(
        "tf_keras_legacy", run.save(tmp_path, kind), learning_rate=rate
    )
    label = f"tf_keras legacy Adam, a schedule, {kind}"
    run.check(imported(run, source), label, steps=1)


def test_clips_in_a_file(rng, tmp_path):
    run = trained(rng, clipnorm=0.5)
    source = migration.read("tf_keras_legacy", run.save(tmp_path, ".h5"))
    assert source.options == {"clipnorm": 0.5}
    run.check(imported(run, source), None, steps=1)
    # AdamW clips in one way only.
    run = trained(rng, clipnorm=0.5, clipvalue=0.25)
    source = migration.read("tf_keras_legacy", run.save(tmp_path, ".h5"))
    assert source.options == {"clipnorm": 0.5}
    assert source.ignored == ("clipvalue=0.25",)


@both_formats
def test_loss_scale_optimizer(rng, tmp_path, kind):
    wrapped = tf_keras.mixed_precision.LossScaleOptimizer(
        Adam(2e-3), initial_scale=1.0
    )
    run = trained(rng, wrapped)
    source = migration.read("tf_keras_legacy", run.save(tmp_path, kind))
    assert source.iterations == 3
    assert source.ignored == ("loss_scale",)
    run.check(imported(run, source), None)


@both_formats
def test_weights_are_taken_over(rng, tmp_path, kind):
    run = trained(rng)
    source = migration.read("tf_keras_legacy", run.save(tmp_path, kind))
    names = dict(zip(source.slots, run.variables, strict=True))
    zeros = {k: np.zeros_like(w) for k, w in run.weights().items()}
    heir = Imported(source, zeros, names, jit_compile=False)
    migration.import_state(heir.optimizer, source, names=names, weights=True)
    for key, weight in run.weights().items():
        np.testing.assert_array_equal(heir.variables[key], weight)


def test_a_model_with_less_and_more(rng, tmp_path):
    """What the one lacks is seeded, what the other lacks is left over."""
    run = trained(rng)
    source = migration.read("tf_keras_legacy", run.save(tmp_path, ".h5"))
    weights = run.weights()
    del weights["norm/gamma"]
    weights["new/kernel"] = np.ones([2, 2], np.float32)
    heir = Imported(source, weights, jit_compile=False)
    assert heir.report.seeded == ("new/kernel",)
    assert heir.report.left_over == ("norm/gamma",)
    assert not heir.slot("new/kernel", "velocity").any()


@pytest.mark.parametrize("source", SOURCES)
def test_each_other_refused(rng, tmp_path, source):
    paths = {
        "tf_keras_legacy": trained(rng).save(tmp_path, "checkpoint"),
        **{name: str(FILES / name / "checkpoint") for name in SOURCES[1:]},
    }
    for name, path in paths.items():
        if name != source:
            with pytest.raises(ValueError, match=r"expected|if it is") as error:
                migration.read(source, path)
            refusal(error, path)
    paths = [trained(rng).save(tmp_path, ".h5")]
    optimizer = tf_keras.optimizers.AdamW()
    paths.append(trained(rng, optimizer).save(tmp_path, "checkpoint"))
    for path in paths[source == "tf_keras_legacy" :]:
        with pytest.raises(ValueError, match=r"[Ee]xpected") as error:
            migration.read(source, path)
        refusal(error, path)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Adam", {"tf_keras_legacy", "tfa_adamw"}),
        ("AdamW", {"tfa_adamw"}),
        ("AdamW_1", {"tfa_adamw"}),
        ("AdamWeightDecay", {"adam_weight_decay"}),
        ("mine", set(SOURCES)),
    ],
)
def test_labels_tell_classes(rng, tmp_path, label, expected):
    """A decay that is no number is in no checkpoint: the name tells."""
    path = trained(rng, Adam(name=label)).save(tmp_path, "checkpoint")
    for source in SOURCES:
        if source in expected:
            assert migration.read(source, path, weight_decay=0.5).slots
        else:
            with pytest.raises(ValueError, match=r"is Adam\w*; exp") as error:
                migration.read(source, path, weight_decay=0.5)
            refusal(error, path)


@both_formats
@pytest.mark.parametrize("name", ["SGD", "Nadam", "Adamax"])
def test_other_optimizers_refused(rng, tmp_path, kind, name):
    optimizer = getattr(tf_keras.optimizers.legacy, name)()
    path = trained(rng, optimizer).save(tmp_path, kind)
    with pytest.raises(ValueError, match=r"[Ee]xpected") as error:
        migration.read("tf_keras_legacy", path)
    refusal(error, path)


@pytest.mark.parametrize("kind", [".h5", "checkpoint"])
def test_optimizers_without_state_refused(rng, tmp_path, kind):
    path = trained(rng, steps=0).save(tmp_path, kind)
    with pytest.raises(ValueError, match=r"state|slots") as error:
        migration.read("tf_keras_legacy", path)
    refusal(error, path)


@pytest.mark.parametrize("kind", [".keras", ".weights.h5", "optimizer alone"])
def test_files_without_slots_refused(rng, tmp_path, kind):
    """Keras writes no state of legacy optimizers there."""
    path = trained(rng).save(tmp_path, kind)
    with pytest.raises(ValueError, match="checkpoint") as error:
        migration.read("tf_keras_legacy", path)
    refusal(error, path)


@both_formats
def test_truncated_files_refused(rng, tmp_path, kind):
    path = trained(rng).save(tmp_path, kind)
    file = pathlib.Path(path)
    if kind == "checkpoint":
        file = file.with_name(f"{file.name}.data-00000-of-00001")
    data = file.read_bytes()
    for part in (0.0, 0.01, 0.5, 0.98):
        file.write_bytes(data[: int(part * len(data))])
        with pytest.raises(ValueError, match=r"damaged|no \.keras") as error:
            migration.read("tf_keras_legacy", path)
        refusal(error, path)


def test_a_missing_file_refused(tmp_path):
    with pytest.raises(ValueError, match="neither") as error:
        migration.read("tfa_adamw", tmp_path / "missing")
    refusal(error, tmp_path / "missing")
