"""The state of Keras 3's and tf_keras's AdamW and Adam is taken over."""

import keras
import numpy as np
import pytest
import tf_keras

import helpers
import tf_adamw
from keras_training import FORMATS, Trained
from next_step import Imported
from tf_adamw import migration

pytestmark = pytest.mark.filterwarnings(
    "ignore:You are saving your model as an HDF5 file"
)

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}
PEOPLE = {"keras": "Keras 3", "tf_keras": "tf_keras"}
EMA = {"use_ema": True, "ema_momentum": 0.75}
OPTIONS = {
    "plain": {},
    "AMSGrad": {"amsgrad": True},
    "EMA": EMA,
    "AMSGrad and EMA": {"amsgrad": True, **EMA},
}
CASES = [("plain", kind) for kind in FORMATS] + [
    pytest.param(option, kind, marks=pytest.mark.slow)
    for option, kind in (
        ("AMSGrad", ".weights.h5"),
        ("EMA", ".weights.h5"),
        ("EMA", ".h5"),
        ("AMSGrad and EMA", ".weights.h5"),
    )
]
CASES += [("AMSGrad and EMA", "checkpoint")]
both = pytest.mark.parametrize("library", LIBRARIES)
few_formats = pytest.mark.parametrize(
    "kind", [".weights.h5", ".keras", "checkpoint"]
)
all_formats = pytest.mark.parametrize(
    "kind", [".weights.h5", ".keras", "checkpoint", ".h5"]
)


def made(library, name="AdamW", **options):
    options = {"learning_rate": 2e-3, **options}
    return getattr(LIBRARIES[library].optimizers, name)(**options)


def trained(rng, library, steps=3, scale=1.0, **options):
    optimizer = made(library, **options)
    return Trained(rng, LIBRARIES[library], optimizer, steps, scale)


def settings(library, kind, **wanted):
    """What a file does not tell: it is given."""
    if kind in (".keras", ".h5"):
        return {}
    rate = {"learning_rate": 2e-3} if library == "tf_keras" else {}
    return {**rate, **wanted}


@both
@pytest.mark.parametrize(("option", "kind"), CASES)
def test_next_step(rng, tmp_path, library, kind, option):
    run = trained(rng, library, weight_decay=0.05, **OPTIONS[option])
    path = run.save(tmp_path, kind)
    given = settings(library, kind, weight_decay=0.05)
    source = migration.read(library, path, **given)
    assert source.optimizer == f"{PEOPLE[library]} AdamW"
    assert source.iterations == 3
    told = {"ema_momentum": 0.75} if "EMA" in option else {}
    # XLA's compilations take long.
    xla = option == "plain" and kind in (".keras", "checkpoint")
    imported = run.imported(source, jit_compile=xla, **told)
    assert not imported.report.seeded and not imported.report.left_over
    run.check(imported, f"{PEOPLE[library]} AdamW, {option}, {kind}")
    if "EMA" in option:
        run.check_averages(imported)


@both
def test_next_step_of_a_long_run(rng, tmp_path, library):
    """Keras computes 1 - beta^t in float32: late, it is 1."""
    run = trained(rng, library, weight_decay=0.05)
    run.optimizer._iterations.assign(50_000)
    source = migration.read(library, run.save(tmp_path, ".keras"))
    assert source.iterations == 50_000
    imported = run.imported(source, jit_compile=True)
    label = f"{PEOPLE[library]} AdamW, after 50000 steps, .keras"
    run.check(imported, label, corrections=False)


@both
@pytest.mark.parametrize("kind", [".keras", ".h5", "checkpoint"])
def test_what_is_told(rng, tmp_path, library, kind):
    run = trained(rng, library, weight_decay=0.05, beta_1=0.8, **EMA)
    source = migration.read(library, run.save(tmp_path, kind))
    rate = float(np.float32(2e-3))
    assert source.settings["learning_rate"] == rate
    if kind == "checkpoint":
        unknown = {"weight_decay", "beta_1", "beta_2", "epsilon"}
        assert source.assumed == unknown
        assert source.settings["weight_decay"] == 0.004
        assert source.options == {"use_ema": True}
        assert "ema_momentum" in " ".join(source.notes)
    else:
        assert not source.assumed
        assert source.settings == {
            "learning_rate": rate,
            "weight_decay": 0.05,
            "beta_1": 0.8,
            "beta_2": 0.999,
            "epsilon": 1e-7,
        }
        assert source.options == EMA
        assert run.imported(source).report.complete


@both
@few_formats
def test_adam_does_not_decay(rng, tmp_path, library, kind):
    run = trained(rng, library, name="Adam")
    # The file has positions alone: nothing tells Adam from AdamW.
    unknown = library == "tf_keras" and kind == ".weights.h5"
    decay = {"weight_decay": 0.0} if unknown else {}
    given = settings(library, kind, **decay)
    source = migration.read(library, run.save(tmp_path, kind), **given)
    assert source.settings["weight_decay"] == 0
    imported = run.imported(source)
    notes = imported.report.notes
    assert not any("excluded" in note for note in notes)
    clips = [note for note in notes if "clipped" in note]
    assert len(clips) == (kind != ".keras")
    run.check(imported, f"{PEOPLE[library]} Adam, {kind}")


@both
@pytest.mark.parametrize("kind", [".keras", "checkpoint"])
def test_next_step_where_epsilon_matters(rng, tmp_path, library, kind):
    run = trained(rng, library, scale=1e-6)
    source = migration.read(library, run.save(tmp_path, kind))
    imported = run.imported(source)
    # The root of the velocity is of epsilon's size.
    ratio = np.sqrt(imported.slot("first/kernel", "velocity")) / 1e-7
    assert 0.1 < np.median(ratio) < 10.0
    label = f"{PEOPLE[library]} AdamW, gradients of 1e-6, {kind}"
    run.check(imported, label)


@both
@pytest.mark.parametrize("kind", [".keras", "checkpoint"])
def test_excluded_variables(rng, tmp_path, library, kind):
    optimizer = made(library, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "norm"])
    run = Trained(rng, LIBRARIES[library], optimizer)
    path = run.save(tmp_path, kind)
    given = settings(library, kind, weight_decay=0.5)
    source = migration.read(library, path, **given)
    excluded = {"exclude_from_weight_decay": ["bias", "norm"]}
    imported = run.imported(source, **excluded)
    assert "excluded" in " ".join(imported.report.notes)
    run.check(imported, f"{PEOPLE[library]} AdamW, exclusions, {kind}")


@pytest.mark.slow
@both
@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clips(rng, tmp_path, library, clip):
    run = trained(rng, library, **{clip: 0.5})
    source = migration.read(library, run.save(tmp_path, ".keras"))
    assert source.options == {clip: 0.5}
    imported = run.imported(source)
    run.check(imported, f"{PEOPLE[library]} AdamW, {clip}, .keras", 1)


@pytest.mark.slow
@both
@few_formats
def test_a_schedule_is_no_number(rng, tmp_path, library, kind):
    schedules = LIBRARIES[library].optimizers.schedules
    schedule = schedules.PiecewiseConstantDecay([3], [1e-3, 2e-3])
    run = trained(rng, library, learning_rate=schedule)
    source = migration.read(library, run.save(tmp_path, kind))
    assert "learning_rate" not in source.settings
    assert "learning_rate" not in source.arguments()
    ours = keras.optimizers.schedules.PiecewiseConstantDecay([3], [1e-3, 2e-3])
    imported = run.imported(source, learning_rate=ours)
    run.check(imported, f"{PEOPLE[library]} AdamW, a schedule, {kind}", 1)


@pytest.mark.slow
@both
@all_formats
def test_loss_scale_optimizer(rng, tmp_path, library, kind):
    inner = made(library, weight_decay=0.05)
    if library == "keras":
        optimizer = keras.optimizers.LossScaleOptimizer(inner, 1.0)
    else:
        optimizer = tf_keras.mixed_precision.LossScaleOptimizer(
            inner, dynamic=False, initial_scale=1.0
        )
    run = Trained(rng, LIBRARIES[library], optimizer)
    path = run.save(tmp_path, kind)
    given = settings(library, kind, weight_decay=0.05)
    source = migration.read(library, path, **given)
    assert source.iterations == 3
    run.check(run.imported(source), None)


@both
def test_models_with_layers_in_another_order(rng, tmp_path, library):
    """Names find their variables; positions are said."""
    run = trained(rng, library)
    order = ("square", "last", "norm", "first")
    theirs = run.weights()
    weights = {
        key: theirs[key]
        for layer in order
        for key in theirs
        if key.startswith(layer)
    }
    assert list(weights) != list(theirs)
    named = migration.read(library, run.save(tmp_path, "checkpoint"))
    positional = migration.read(library, run.save(tmp_path, ".keras"))
    assert positional.positional and not named.positional
    with pytest.raises(ValueError, match="Shapes do not fit"):
        Imported(positional, weights)
    imported = [
        Imported(named, weights, jit_compile=False),
        Imported(positional, weights, list(theirs), jit_compile=False),
    ]
    assert imported[0].report.mapped.keys() == weights.keys()
    for key in weights:
        for name in ("momentum", "velocity"):
            slots = [i.slot(key, name) for i in imported]
            np.testing.assert_array_equal(*slots)
    run.check(imported[0], None)


@both
@pytest.mark.parametrize("kind", [".h5", "checkpoint"])
def test_weights_are_taken_over(rng, tmp_path, library, kind):
    run = trained(rng, library)
    source = migration.read(library, run.save(tmp_path, kind))
    zeros = {k: np.zeros_like(w) for k, w in run.weights().items()}
    names = list(zeros) if source.positional else None
    imported = Imported(source, zeros, names, jit_compile=False)
    migration.import_state(
        imported.optimizer, source, names=names, weights=True
    )
    for key, weight in run.weights().items():
        np.testing.assert_array_equal(imported.variables[key], weight)
    run.check(imported, None)


@both
def test_dry_run_and_strict(rng, tmp_path, library):
    run = trained(rng, library)
    source = migration.read(library, run.save(tmp_path, ".keras"))
    optimizer = tf_adamw.AdamW(**source.arguments())
    variables = helpers.as_variables(run.weights())
    optimizer.build(variables)
    before = helpers.snapshot(optimizer, variables.values())
    report = migration.import_state(optimizer, source, dry_run=True)
    assert report.complete and report.iterations == 3
    assert list(report.mapped) == list(variables)
    assert helpers.snapshot(optimizer, variables.values()) == before
    other = tf_adamw.AdamW(**{**source.arguments(), "beta_2": 0.98})
    other.build(variables)
    with pytest.raises(ValueError, match=r"beta_2 is 0\.98, .* has 0\.999"):
        migration.import_state(other, source, strict=True)
    assert migration.import_state(optimizer, source, strict=True) == report
