"""Options that are switched at a restore, beside all others, and what follows.

The steps after the restore are those of the float64 reference, which begins
with what is in the file, and with what the contract says of the rest.
"""

import numpy as np
import pytest

import helpers
import tf_adamw
from checkpoint_model import Model, train
from helpers import UNIT_ROUNDOFF
from numpy_adamw import NumpyAdamW
from restore_runs import Run
from tf_adamw.checkpoint import restore

SCALE = tf_adamw.DynamicLossScale(initial=64.0, growth_interval=3)
ALL = {
    "learning_rate": helpers.LinearDecay(),
    "amsgrad": True,
    "use_ema": True,
    "ema_momentum": 0.75,
    "gradient_accumulation_steps": 2,
    "loss_scale_factor": SCALE,
    "exclude_from_weight_decay": ["bias"],
    "learning_rate_multipliers": {"kernel": 0.5},
}
RATE = "hyperparameters/learning_rate"
# By the options that are left out, or changed: the slots and the scalars that
# only those with it have, and those that only the others have.
SWITCHED = {
    "learning_rate": (None, set(), set(), {RATE}),
    "amsgrad": (None, {"velocity_max"}, set(), set()),
    "use_ema": (None, {"average"}, set(), set()),
    "gradient_accumulation_steps": (
        None,
        {"accumulator"},
        {"counters/window_position"},
        set(),
    ),
    "loss_scale_factor": (
        None,
        set(),
        {"counters/good_updates", "hyperparameters/loss_scale"},
        set(),
    ),
    "exclude_from_weight_decay": (None, set(), set(), set()),
    "learning_rate_multipliers": (None, set(), set(), set()),
    "constant_scale": (
        {"loss_scale_factor": 8.0},
        set(),
        {"counters/good_updates", "hyperparameters/loss_scale"},
        set(),
    ),
}


def without(name):
    changed = SWITCHED[name][0]
    left = {k: v for k, v in ALL.items() if k != name}
    if name == "use_ema":
        del left["ema_momentum"]
    return {**left, **(changed or {})}


def in_full(slots, scalars):
    return {
        f"optimizer/slots/{key}/{name}"
        for key in Model().by_key()
        for name in slots
    } | {f"optimizer/{name}" for name in scalars}


def reference_of(path, options):
    """The reference, with what the file has for these options."""
    saved = helpers.checkpoint_values(path)
    options = dict(options)
    if f"optimizer/{RATE}" in saved and "learning_rate" not in options:
        options["learning_rate"] = float(saved[f"optimizer/{RATE}"])
    weights = {k: saved[f"model/{k}"].astype(float) for k in Model().by_key()}
    reference = NumpyAdamW(weights, **options)
    for name, slot in reference.slots.items():
        for key in weights:
            escaped = key.replace("/", ".S")
            value = saved.get(f"optimizer/slots/{escaped}/{name}")
            if value is not None:
                slot[key] = value.astype(float)
    reference.iterations = int(saved["optimizer/counters/iterations"])
    if reference.window > 1:
        place = saved.get("optimizer/counters/window_position", 0)
        reference.position = int(place)
        if place:
            reference._seen_in_window = set(weights)
    reference.averaged = set(weights)
    if reference.loss_scale_rule:
        good = saved.get("optimizer/counters/good_updates", 0)
        reference.good_updates = int(good)
        scale = "optimizer/hyperparameters/loss_scale"
        reference.loss_scale = float(saved.get(scale, 64.0))
    return reference


def step_beside(reference, run, first, last):
    """Steps both by the gradients of these numbers, and compares."""
    variables = run.model.by_key()
    for number in range(first, last):
        rng = np.random.default_rng(number)
        gradients = helpers.random_gradients(
            rng, helpers.values(variables), reference.loss_scale
        )
        result = run.optimizer.apply(
            helpers.to_gradients(gradients.values()), variables.values()
        )
        assert bool(result.applied) == reference.apply(gradients)[0]
    steps = last - first
    for key, variable in variables.items():
        dtype = variable.dtype.name
        rounding = 4 * steps * UNIT_ROUNDOFF["float32"]
        if dtype != "float32":
            rounding += steps * UNIT_ROUNDOFF[dtype]
        np.testing.assert_allclose(
            variable.numpy().astype(float),
            reference.weights[key],
            rtol=rounding,
            atol=rounding,
        )
        for name in ("momentum", "velocity", "accumulator"):
            if name in run.optimizer.slots[key]:
                np.testing.assert_allclose(
                    run.optimizer.get_slot(variable, name),
                    reference.slots[name][key],
                    rtol=2e-6,
                    atol=1e-6,
                )


@pytest.mark.parametrize("name", SWITCHED)
@pytest.mark.parametrize("on", [True, False])
def test_one_option_beside_all_others(name, on, tmp_path):
    """No key of another option moves, and the next steps are right."""
    _, slots, scalars, instead = SWITCHED[name]
    first, then = without(name), ALL
    lacking, left = in_full(slots, scalars), in_full((), instead)
    if not on:
        first, then, lacking, left = then, first, left, lacking
    run = Run(5, **first)
    path = run.checkpoint.save(tmp_path / "checkpoint")
    other = Run(3, **then)
    report = restore(other.checkpoint, path)
    assert set(report.seeded) == lacking
    assert set(report.left_over) == left
    assert not report.mismatched and not report.moved
    for key, held in other.optimizer.slots.items():
        for slot in held.keys() & run.optimizer.slots[key].keys():
            saved = run.optimizer.slots[key][slot].numpy()
            assert held[slot].numpy().tobytes() == saved.tobytes()
    step_beside(reference_of(path, then), other, 5, 8)


def test_a_shorter_window_in_mid_window(tmp_path):
    """4, after three of a window, to 2: it is complete with the next step."""
    run = Run(7, gradient_accumulation_steps=4)
    path = run.checkpoint.save(tmp_path / "checkpoint")
    options = {"gradient_accumulation_steps": 2}
    other = Run(1, **options)
    restore(other.checkpoint, path, strict=True)
    assert other.optimizer.counters.window_position == 3
    reference = reference_of(path, options)
    assert reference.position == 3
    step_beside(reference, other, 7, 10)
    assert other.optimizer.iterations == 3


def test_a_longer_window_in_mid_window(tmp_path):
    run = Run(3, gradient_accumulation_steps=2)
    path = run.checkpoint.save(tmp_path / "checkpoint")
    options = {"gradient_accumulation_steps": 4}
    other = Run(0, **options)
    restore(other.checkpoint, path, strict=True)
    step_beside(reference_of(path, options), other, 3, 6)
    train(other.optimizer, other.model, 6, 10)
    assert other.optimizer.iterations == 3
