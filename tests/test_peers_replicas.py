"""What other optimizers get wrong on several replicas, row by row."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import strategies
import tf_adamw
from strategies import ReplicaPair

pytestmark = pytest.mark.core

every_strategy = pytest.mark.parametrize("name", ["mirrored_2", "central_2"])
both_modes = pytest.mark.parametrize(
    "mode", [pytest.param("auto", marks=pytest.mark.slow), False]
)
FOUR = pytest.param("mirrored_4", marks=pytest.mark.slow)
SMALL = {"w": np.ones(1, np.float32)}


def gradients(first, second):
    """One step's gradients of `SMALL` on two replicas."""
    return {"w": np.array([[first], [second]], np.float32)}


def momenta(pair):
    """The momentum on each replica that has one."""
    copies = pair.copies(pair.optimizer.slots["w"]["momentum"])
    return [copy.item() for copy in copies]


@both_modes
@every_strategy
@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm"])
def test_row_3_clips_after_the_reduction(clipping, name, mode):
    """Gradients of 10 and 30 with a bound of 1 have a norm of 1, not 2."""
    pair = ReplicaPair(
        strategies.named(name), SMALL, mode, beta_1=0.0, **{clipping: 1.0}
    )
    pair.train_on([gradients(10.0, 30.0)])
    assert set(momenta(pair)) == {1.0}

    def step():
        return pair.optimizer.apply([tf.constant([20.0])])

    result = pair.strategy.run(step)
    local = pair.strategy.experimental_local_results(result.grad_norm)
    assert {norm.numpy() for norm in local} == {40.0}


@both_modes
@every_strategy
def test_row_3_clips_values_after_the_reduction(name, mode):
    pair = ReplicaPair(
        strategies.named(name), SMALL, mode, beta_1=0.0, clipvalue=1.0
    )
    pair.train_on([gradients(-30.0, 30.25)])
    assert set(momenta(pair)) == {0.25}


@both_modes
@every_strategy
def test_row_5_accumulation_and_overwrite_in_a_function(rng, name, mode):
    """Four micro-steps on two replicas equal one batch of eight parts."""
    weights = helpers.random_weights(rng, {"kernel": (3, 5), "bias": (5,)})
    options = {"use_ema": True, "ema_overwrite_frequency": 2}
    pair = ReplicaPair(
        strategies.named(name),
        weights,
        mode,
        gradient_accumulation_steps=4,
        **options,
    )
    whole = helpers.Pair(weights, mode, **options)
    for _ in range(4):
        steps = [pair.random_parts(rng) for _ in range(4)]
        pair.train_on(steps, "function")
        mean = {
            key: np.sum([s[key] for s in steps], (0, 1), np.float64) / 4
            for key in weights
        }
        whole.step({key: g.astype(np.float32) for key, g in mean.items()})
    pair.check()
    for key, variable in whole.variables.items():
        found = pair.variables[key]
        np.testing.assert_allclose(found, variable, rtol=1e-6)


@both_modes
@every_strategy
@pytest.mark.parametrize("then", ["mirrored_2", FOUR, "central_2"])
def test_row_6_restore_within_a_window(then, name, mode, tmp_path):
    """The momentum is 4, with both replicas' part of the window."""
    options = {"gradient_accumulation_steps": 2, "beta_1": 0.0}
    pair = ReplicaPair(strategies.named(name), SMALL, mode, **options)
    pair.train_on([gradients(1.0, 3.0)])
    path = pair.saved(tmp_path)
    other = pair.resumed_on(strategies.named(then), path, mode, **options)
    rest = np.zeros((other.count, 1), np.float32)
    rest[-1] = 4.0
    other.train_on([{"w": rest}])
    assert set(momenta(other)) == {4.0}


@both_modes
@every_strategy
def test_row_7_average_moves_on_real_updates_only(rng, name, mode):
    pair = ReplicaPair(
        strategies.named(name),
        SMALL,
        mode,
        learning_rate=0.01,
        gradient_accumulation_steps=3,
        use_ema=True,
        ema_momentum=0.5,
        ema_overwrite_frequency=2,
    )
    average = pair.optimizer.slots["w"]["average"]
    for micro_step in range(1, 13):
        before = pair.copies(average)
        pair.train(rng, 1)
        if micro_step % 3:
            np.testing.assert_array_equal(pair.copies(average), before)
        pair.check()


@both_modes
@every_strategy
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_row_8_bad_gradient_of_the_second_replica(bad, name, mode):
    rule = tf_adamw.DynamicLossScale(initial=2.0**15)
    pair = ReplicaPair(
        strategies.named(name), SMALL, mode, loss_scale_factor=rule
    )
    pair.train_on([gradients(1.0, bad)])
    assert all(copy == 1.0 for copy in pair.copies(pair.variables["w"]))
    scale = pair.optimizer.hyperparameters.loss_scale
    assert set(pair.copies(scale)) == {2.0**14}
    pair.train_on([gradients(1.0, 1.0)])
    pair.check()
    assert pair.reference.iterations == 1


@both_modes
@every_strategy
def test_row_16_build_outside_the_scope(rng, name, mode):
    strategy = strategies.named(name)
    pair = ReplicaPair(strategy, SMALL, mode, made_in_scope=False, built=False)
    pair.optimizer.build(pair.variables)
    pair.train(rng, 3)
    pair.check()


@both_modes
@every_strategy
@pytest.mark.parametrize("way", ["eager", "function", "run of a function"])
def test_row_16_lazy_build_in_run(rng, way, name, mode):
    strategy = strategies.named(name)
    pair = ReplicaPair(strategy, SMALL, mode, built=False)
    pair.train(rng, 3, way=way)
    pair.check()


@both_modes
@pytest.mark.parametrize("name", ["mirrored_1", "mirrored_2", "central_2"])
@pytest.mark.parametrize("way", ["eager", "function"])
def test_decay_at_zero_gradient(rng, way, name, mode):
    """TensorFlow 1's AdamW lost it under a MirroredStrategy."""
    weights = helpers.random_weights(rng, {"kernel": (3, 5), "bias": (5,)})
    options = {"learning_rate": 0.01, "weight_decay": 0.5}
    pair = ReplicaPair(strategies.named(name), weights, mode, **options)
    pair.train(rng, 10, scale=0.0, way=way)
    for key, variable in pair.variables.items():
        expected = weights[key] * (1 - 0.01 * 0.5) ** 10
        for copy in pair.copies(variable):
            np.testing.assert_allclose(copy, expected, rtol=2e-6)


@pytest.mark.parametrize("first", ["mirrored_1", "mirrored_2"])
@pytest.mark.parametrize("then", ["mirrored_1", "mirrored_2", FOUR])
def test_restorable_on_another_replica_count(rng, first, then, tmp_path):
    weights = helpers.random_weights(rng, {"kernel": (3, 5), "bias": (5,)})
    pair = ReplicaPair(strategies.named(first), weights, False)
    pair.train(rng, 3)
    path = pair.saved(tmp_path)
    other = pair.resumed_on(strategies.named(then), path, False)
    other.train(rng, 3)
    other.check()


@pytest.mark.parametrize("mode", helpers.JIT_MODES)
@pytest.mark.parametrize("window", [None, 2])
def test_jit_compile_on_replicas(mirrored, rng, window, mode):
    """The reduction is outside of what XLA compiles."""
    weights = helpers.random_weights(rng, {"kernel": (3, 5), "bias": (5,)})
    pair = ReplicaPair(
        mirrored, weights, mode, gradient_accumulation_steps=window
    )
    pair.train(rng, 4, way="loop")
    pair.check()
