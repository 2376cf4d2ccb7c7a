"""The state of Optax's adamw is taken over, from NumPy's files and Orbax's."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_training import DTYPES, FORMATS, MASK, SHAPES, Trained, flattened
from tf_adamw import migration


@pytest.mark.parametrize(
    "steps", [1, 7, pytest.param(300, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_next_step(rng, tmp_path, dtype, steps):
    wide = contextlib.nullcontext()
    if dtype == "float64":
        wide = jax.enable_x64(True)
    with wide:
        trained = Trained(rng, optax.adamw(2e-3), steps, dtype)
        source = trained.read(tmp_path, learning_rate=2e-3)
        assert source.assumed == {"weight_decay", "beta_1", "beta_2", "epsilon"}
        imported = trained.imported(source)
        assert imported.report.complete
        trained.check(imported, f"Optax adamw, {dtype}")


@pytest.mark.parametrize("form", FORMATS)
def test_formats(rng, tmp_path, form):
    trained = Trained(rng, optax.adamw(2e-3, weight_decay=0.1))
    given = {"learning_rate": 2e-3, "weight_decay": 0.1}
    source = trained.read(tmp_path, form, **given)
    assert set(source.slots) == set(SHAPES)
    label = "NumPy" if form == "npz" else "Orbax"
    trained.check(trained.imported(source), f"Optax adamw, {label}, float32")


def test_next_step_where_epsilon_matters(rng, tmp_path):
    settings = {"b1": 0.8, "b2": 0.95}
    trained = Trained(rng, optax.adamw(1e-3, **settings), 4, scale=1e-8)
    given = {"learning_rate": 1e-3, "beta_1": 0.8, "beta_2": 0.95}
    imported = trained.imported(trained.read(tmp_path, **given))
    # The root of the velocity is of epsilon's size.
    ratio = np.sqrt(imported.slot("scale", "velocity")) / 1e-8
    assert 0.1 < ratio < 1.0
    trained.check(imported, "Optax adamw, gradients of 1e-8, float32", 1)


@pytest.mark.parametrize("form", ["npz", "standard"])
@pytest.mark.parametrize("case", ["train_state", "chain", "masked_decay"])
def test_where_it_is(rng, tmp_path, case, form):
    adamw = optax.adamw(1e-3, mask=MASK if case == "masked_decay" else None)
    if case == "chain":
        adamw = optax.chain(optax.clip_by_global_norm(1e9), adamw)
    trained = Trained(rng, adamw)

    def wrap(trained):
        if case != "train_state":
            return trained.state
        return {
            "step": 7,
            "params": trained.params,
            "opt_state": trained.state,
        }

    source = trained.read(tmp_path, form, wrap, learning_rate=1e-3)
    options = {}
    if case == "masked_decay":
        options["exclude_from_weight_decay"] = ["dense/bias"]
    trained.check(trained.imported(source, **options), None)
    assert set(source.weights) == (
        set(SHAPES) if case == "train_state" else set()
    )


def test_weights_of_a_train_state(rng, tmp_path):
    trained = Trained(rng, optax.adamw(1e-3))
    source = trained.read(
        tmp_path,
        wrap=lambda trained: {
            "params": trained.params,
            "opt_state": trained.state,
        },
    )
    for key, weight in trained.weights().items():
        np.testing.assert_array_equal(source.weights[key], weight)


def test_multi_transform(rng, tmp_path):
    labels = {"dense": {"kernel": "a", "bias": "b"}, "scale": "a"}
    both = {
        "a": optax.adamw(1e-3, weight_decay=0.1),
        "b": optax.adamw(1e-3, weight_decay=0.0),
    }
    trained = Trained(rng, optax.multi_transform(both, labels))
    given = {"learning_rate": 1e-3, "weight_decay": 0.1}
    source = trained.read(tmp_path, **given)
    imported = trained.imported(
        source, exclude_from_weight_decay=["dense/bias"]
    )
    assert set(imported.report.mapped) == set(SHAPES)
    trained.check(imported, None)


def test_injected_hyperparameters(rng, tmp_path):
    adamw = optax.inject_hyperparams(optax.adamw)(
        learning_rate=3e-3, b1=0.8, b2=0.95, eps=1e-5, weight_decay=0.1
    )
    trained = Trained(rng, adamw)
    source = trained.read(tmp_path)
    assert source.settings == {
        "learning_rate": 3e-3,
        "weight_decay": 0.1,
        "beta_1": 0.8,
        "beta_2": 0.95,
        "epsilon": 1e-5,
    }
    assert not source.assumed
    trained.check(trained.imported(source), None)


def test_an_injected_schedule_is_not_told(rng, tmp_path):
    adamw = optax.inject_hyperparams(optax.adamw)(
        learning_rate=optax.linear_schedule(1e-3, 0.0, 100)
    )
    source = Trained(rng, adamw).read(tmp_path)
    assert "learning_rate" not in source.settings
    assert source.settings["weight_decay"] == 1e-4


def test_multi_transform_with_two_rates(rng, tmp_path):
    labels = {"dense": {"kernel": "a", "bias": "b"}, "scale": "a"}
    both = {"a": optax.adamw(1e-3), "b": optax.adamw(5e-4)}
    trained = Trained(rng, optax.multi_transform(both, labels))
    source = trained.read(tmp_path, learning_rate=1e-3)
    rates = {"learning_rate_multipliers": {"dense/bias": 0.5}}
    imported = trained.imported(source, **rates)
    assert imported.report.complete
    assert "2 states are joined" in " ".join(imported.report.notes)
    trained.check(imported, None)


def test_adam_looks_the_same(rng, tmp_path):
    trained = Trained(rng, optax.adam(1e-3))
    source = trained.read(tmp_path, learning_rate=1e-3)
    assert "if it was that, weight_decay=0.0" in " ".join(source.notes)
    source = trained.read(tmp_path, learning_rate=1e-3, weight_decay=0.0)
    assert "optax.adam " not in " ".join(source.notes)
    trained.check(trained.imported(source), None)


@pytest.mark.parametrize("micro_steps", [6, 7])
def test_multi_steps(rng, tmp_path, micro_steps):
    wrapped = optax.MultiSteps(optax.adamw(1e-3), 2)
    trained = Trained(rng, wrapped, micro_steps)
    source = trained.read(tmp_path)
    assert source.iterations == 3
    assert len(source.ignored) == micro_steps % 2
    state = trained.state.inner_opt_state[0]
    for key, value in flattened(state.nu).items():
        np.testing.assert_array_equal(source.slots[key]["velocity"], value)


@pytest.mark.parametrize("form", ["npz", "standard"])
def test_bfloat16_momenta(rng, tmp_path, form):
    trained = Trained(rng, optax.adamw(1e-3, mu_dtype=jnp.bfloat16))
    source = trained.read(tmp_path, form)
    for key, value in flattened(trained.state[0].mu).items():
        assert any(note.startswith("mu has 2 bytes") for note in source.notes)
        momentum = source.slots[key]["momentum"]
        assert momentum.dtype == np.float32
        np.testing.assert_array_equal(momentum, value.astype(np.float32))


def as_adamw(**changes):
    """The values in a file of a state of adamw, with changes."""
    return {
        "count": np.int32(3),
        "mu/w": np.ones(2, np.float32),
        "nu/w": np.ones(2, np.float32),
        **changes,
    }


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"w": np.ones(2)}, "no state of optax.adamw"),
        (as_adamw(**{"nu_max/w": np.ones(2)}), "optax.amsgrad"),
        (as_adamw(**{"mu/b": np.ones(2)}), "'b' is in one of mu and nu"),
        (
            {f"{n}/{k}": v for n in "ab" for k, v in as_adamw().items()},
            "2 states of optax.adamw with a variable 'w'",
        ),
        (
            as_adamw(
                **{
                    "b/count": np.int32(4),
                    "b/mu/b": np.ones(2),
                    "b/nu/b": np.ones(2),
                }
            ),
            "different counts: 3, 4",
        ),
    ],
)
def test_refused(tmp_path, values, words):
    path = tmp_path / "state.npz"
    np.savez(path, **values)
    with pytest.raises(ValueError, match=words) as refusal:
        migration.read("optax", path)
    assert "\n" not in str(refusal.value)


def test_eps_root_refused(rng, tmp_path):
    adamw = optax.inject_hyperparams(optax.adamw)(1e-3, eps_root=1e-6)
    with pytest.raises(ValueError, match="no eps_root, and it is 1e-06"):
        Trained(rng, adamw).read(tmp_path)


@pytest.mark.parametrize("bytes_left", [0, 1, 300])
def test_damaged_files_refused(rng, tmp_path, bytes_left):
    path = tmp_path / "state.npz"
    np.savez(path, **as_adamw())
    path.write_bytes(path.read_bytes()[:bytes_left])
    with pytest.raises(ValueError, match=r"state\.npz' is neither") as refusal:
        migration.read("optax", path)
    assert "\n" not in str(refusal.value)


def test_pickles_are_not_read(tmp_path):
    path = tmp_path / "state.npz"
    np.savez(path, **as_adamw(extra=np.array([{}], object)))
    with pytest.raises(ValueError, match=r"state\.npz' is neither"):
        migration.read("optax", path)


def test_directories_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no Orbax checkpoint.*0 have"):
        migration.read("optax", tmp_path)
    # That of a CheckpointManager.
    for step in ("9", "10"):
        (tmp_path / step).mkdir()
    with pytest.raises(ValueError, match=r"the steps 9, 10: give .*/10'"):
        migration.read("optax", tmp_path)
    (tmp_path / "_METADATA").write_text("{}")
    with pytest.raises(ValueError, match=r"Cannot read .* damaged"):
        migration.read("optax", tmp_path)


def test_an_orbax_checkpoint_without_its_arrays(rng, tmp_path):
    trained = Trained(rng, optax.adamw(1e-3))
    trained.read(tmp_path, "standard")
    (metadata,) = tmp_path.rglob("_METADATA")
    metadata.write_text(metadata.read_text()[:100])
    with pytest.raises(ValueError, match=r"Cannot read .* damaged") as refusal:
        migration.read("optax", metadata.parent)
    assert "\n" not in str(refusal.value)


def test_files_of_others_refused(tmp_path):
    (tmp_path / "file.h5").write_bytes(b"\x89HDF\r\n" + bytes(100))
    with pytest.raises(ValueError, match="another kind") as refusal:
        migration.read("optax", tmp_path / "file.h5")
    assert "pickle" not in str(refusal.value)
