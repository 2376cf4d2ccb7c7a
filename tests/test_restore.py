"""tf_adamw.checkpoint.restore: what matches is restored, and a report."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
from checkpoint_model import Model, train
from restore_runs import EVERYTHING, Named, Run
from tf_adamw.checkpoint import restore

pytestmark = pytest.mark.core


def schedule(step):
    return 1e-3 / (1.0 + tf.cast(step, tf.float32))


SWITCHED = {
    "amsgrad": ({"amsgrad": True}, {"velocity_max"}, set()),
    "ema": ({"use_ema": True}, {"average"}, set()),
    "accumulation": (
        {"gradient_accumulation_steps": 2},
        {"accumulator"},
        {"counters/window_position"},
    ),
    "loss_scale": (
        {"loss_scale_factor": "dynamic"},
        set(),
        {"counters/good_updates", "hyperparameters/loss_scale"},
    ),
    "constant_loss_scale": ({"loss_scale_factor": 8.0}, set(), set()),
    "schedule": ({"learning_rate": schedule}, set(), set()),
    "exclusions": ({"exclude_from_weight_decay": ["bias"]}, set(), set()),
    "multipliers": ({"learning_rate_multipliers": {"bias": 2.0}}, set(), set()),
}


@pytest.fixture
def saved(tmp_path):
    """A run without options, and the path of its checkpoint."""
    run = Run(3)
    return run, run.checkpoint.save(tmp_path / "checkpoint")


def paths(slot_names, scalars=(), keys=None):
    """What a report calls slots and scalars of the optimizer."""
    return {
        f"optimizer/slots/{key}/{name}"
        for key in keys or Model().by_key()
        for name in slot_names
    } | {f"optimizer/{name}" for name in scalars}


QUICK = ("plain", "dynamic_loss_scale", "everything")


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(option, marks=() if option in QUICK else pytest.mark.slow)
        for option in helpers.OPTIONS
    ],
)
def test_a_full_match(option, tmp_path):
    options = helpers.OPTIONS[option]
    run = Run(5, **options)
    path = run.checkpoint.save(tmp_path / "checkpoint")
    expected = list(run.bits().values())
    train(run.optimizer, run.model, 5, 7, run.scale)
    for other in (run, Run(0, **options), Run(2, **options)):
        report = restore(other.checkpoint, path, strict=True)
        assert report.complete
        assert len(report.restored) == len(expected) - 1  # format_version
        assert list(other.bits().values()) == expected


@pytest.mark.parametrize("switched", SWITCHED)
@pytest.mark.parametrize("on", [True, False])
def test_options_switched_at_resume(switched, on, tmp_path):
    """No other slot's key moves; what is missing is seeded and reported."""
    options, slots, scalars = SWITCHED[switched]
    first, then = ({}, options) if on else (options, {})
    run = Run(4, **first)
    path = run.checkpoint.save(tmp_path / "checkpoint")
    other = Run(2, **then)  # not as it was made: averages, sums have values
    report = restore(other.checkpoint, path)
    rate = (
        set() if switched != "schedule" else {"hyperparameters/learning_rate"}
    )
    lacking = paths(slots, scalars if on else scalars | rate)
    assert set(report.seeded) == (lacking if on else paths((), rate))
    assert set(report.left_over) == (
        paths((), rate) if on else paths(slots, scalars)
    )
    assert not report.mismatched
    for name in ("momentum", "velocity"):
        for key, value in run.slots(name).items():
            np.testing.assert_array_equal(other.slots(name)[key], value)
    assert other.optimizer.iterations == run.optimizer.iterations
    for key, weight in run.weights().items():
        np.testing.assert_array_equal(other.weights()[key], weight)


class Schedule(tf.Module):
    """A schedule with a variable."""

    def __init__(self):
        super().__init__()
        self.peak = tf.Variable(1e-3)

    def __call__(self, step):
        return self.peak / (1.0 + tf.cast(step, tf.float32))


@pytest.mark.parametrize("on", [True, False])
def test_a_schedule_with_variables_is_switched(on, tmp_path):
    """The same path is a variable's and an object's."""
    options = [{"learning_rate": 0.5}, {"learning_rate": Schedule()}]
    first, then = options if on else options[::-1]
    run = Run(3, **first)
    path = run.checkpoint.save(tmp_path / "checkpoint")
    other = Run(0, **then)
    report = restore(other.checkpoint, path)
    number = "optimizer/hyperparameters/learning_rate"
    names = (number, f"{number}/peak")
    assert report.left_over == (names[0 if on else 1],)
    assert report.seeded == (names[1 if on else 0],)
    assert not report.mismatched
    rate = other.optimizer.hyperparameters.learning_rate
    if on:
        assert rate.peak == np.float32(1e-3)
    else:
        assert rate == 0.5
    train(other.optimizer, other.model, 3, 4)


def test_what_is_missing_starts_again(saved):
    """The average from the weights, not from what the optimizer had."""
    path = saved[1]
    other = Run(5, **EVERYTHING)
    restore(other.checkpoint, path)
    for key, variable in other.model.by_key().items():
        slot = {
            name: other.optimizer.get_slot(variable, name)
            for name in other.optimizer.slots[key]
        }
        np.testing.assert_array_equal(
            slot["average"], tf.cast(variable, tf.float32)
        )
        assert not np.any(slot["velocity_max"])
        assert not np.any(slot["accumulator"])
    counters = other.optimizer.counters
    assert counters.window_position == 0
    assert counters.good_updates == 0
    assert other.optimizer.loss_scale == 64.0
    assert counters.iterations == 3


def layer_paths(name, kinds=("kernel", "bias"), model=True):
    """What reports call a layer's weights and slots."""
    slots = ("momentum", "velocity")
    found = paths(slots, keys=[f"{name}/{kind}" for kind in kinds])
    if model:
        found |= {f"model/{name}/{kind}" for kind in kinds}
    return found


@pytest.fixture
def two_layers(tmp_path):
    run = Run(3, Named(one=(3, 4), two=(4, 2)))
    return run, run.checkpoint.save(tmp_path / "two")


def check_layer(run, other, name):
    for slot in ("momentum", "velocity"):
        for kind in ("kernel", "bias"):
            key = f"{name}/{kind}"
            np.testing.assert_array_equal(
                run.slots(slot)[key], other.slots(slot)[key]
            )
            np.testing.assert_array_equal(
                run.weights()[key], other.weights()[key]
            )


def test_a_layer_is_added(two_layers):
    run, path = two_layers
    other = Run(0, Named(between=(4, 4), one=(3, 4), two=(4, 2)))
    report = restore(other.checkpoint, path)
    assert set(report.seeded) == layer_paths("between")
    assert not report.left_over and not report.mismatched
    check_layer(run, other, "one")
    check_layer(run, other, "two")
    train(other.optimizer, other.model, 3, 5)


def test_a_layer_is_removed(two_layers):
    run, path = two_layers
    other = Run(0, Named(two=(4, 2)))
    report = restore(other.checkpoint, path)
    assert set(report.left_over) == layer_paths("one")
    assert not report.seeded and not report.mismatched
    check_layer(run, other, "two")


def test_a_layer_is_renamed(two_layers):
    run, path = two_layers
    other = Run(0, Named(first=(3, 4), two=(4, 2)))
    report = restore(other.checkpoint, path)
    assert set(report.left_over) == layer_paths("one")
    assert set(report.seeded) == layer_paths("first")
    check_layer(run, other, "two")


def test_a_layer_has_another_shape(two_layers):
    run, path = two_layers
    other = Run(2, Named(one=(3, 4), two=(4, 5)))
    weights = other.weights()
    report = restore(other.checkpoint, path)
    assert set(report.mismatched) == layer_paths("two")
    why = report.mismatched["model/two/kernel"]
    assert "(4, 2) in the checkpoint" in why and "(4, 5) here" in why
    check_layer(run, other, "one")
    for kind in ("kernel", "bias"):
        key = f"two/{kind}"
        np.testing.assert_array_equal(other.weights()[key], weights[key])
        assert not np.any(other.slots("momentum")[key])


def test_a_variable_has_another_dtype(two_layers):
    _, path = two_layers
    model = Named(one=(3, 4), two=(4, 2))
    model.two.bias = tf.Variable(tf.ones([2], tf.bfloat16))
    report = restore(Run(0, model).checkpoint, path)
    assert set(report.mismatched) == {"model/two/bias"}


@pytest.mark.parametrize("at_first", [True, False])
def test_a_layer_is_frozen(at_first, tmp_path):
    """Weights go on; the state starts with what is trained again."""
    shapes = {"one": (3, 4), "two": (4, 2)}
    models = [Named(("one/kernel",), **shapes), Named(**shapes)]
    if not at_first:
        models.reverse()
    run = Run(3, models[0])
    path = run.checkpoint.save(tmp_path / "checkpoint")
    other = Run(0, models[1])
    report = restore(other.checkpoint, path)
    frozen = layer_paths("one", ["kernel"], model=False)
    assert set(report.seeded) == (frozen if at_first else set())
    assert set(report.left_over) == (set() if at_first else frozen)
    np.testing.assert_array_equal(run.model.one.kernel, other.model.one.kernel)
    check_layer(run, other, "two")


def test_the_report_prints_everything(two_layers):
    _, path = two_layers
    other = Run(0, Named(first=(3, 4), two=(4, 5)))
    with pytest.warns(UserWarning, match="No slot"):
        report = restore(other.checkpoint, path)
    lines = str(report).splitlines()
    assert lines[0] == f"{path}: {len(report.restored)} restored"
    for name in (*report.seeded, *report.left_over):
        assert f"  {name}" in lines
    for name, why in report.mismatched.items():
        assert f"  {name}: {why}" in lines
