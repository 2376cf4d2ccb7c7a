"""State on replicas: where it is built, and what reads and replaces it."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

import helpers
import strategies
import tf_adamw
from strategies import ReplicaPair

pytestmark = pytest.mark.core

SHAPES = {"kernel": (3, 5), "bias": (5,)}
ACCUMULATION = {"gradient_accumulation_steps": 2}
AVERAGES = {"learning_rate": 0.1, "use_ema": True, "ema_momentum": 0.75}
every_strategy = pytest.mark.parametrize(
    "name",
    [
        "one_device",
        pytest.param("mirrored_1", marks=pytest.mark.slow),
        "mirrored_2",
        pytest.param("mirrored_4", marks=pytest.mark.slow),
        "central_2",
    ],
)


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, SHAPES)


def place(strategy, where):
    inside = where == "in scope"
    return strategy.scope() if inside else contextlib.nullcontext()


@every_strategy
@pytest.mark.parametrize("made_in_scope", [True, False])
@pytest.mark.parametrize("build", ["in scope", "outside"])
def test_build(rng, weights, build, made_in_scope, name):
    strategy = strategies.named(name)
    options = {**AVERAGES, **ACCUMULATION}
    pair = ReplicaPair(
        strategy,
        weights,
        False,
        made_in_scope=made_in_scope,
        built=False,
        **options,
    )
    with place(strategy, build):
        pair.optimizer.build(pair.variables)
    pair.check_copies()
    before = [id(variable) for variable in pair.optimizer.variables]
    with place(strategy, build):
        pair.optimizer.build(pair.variables)
    assert [id(v) for v in pair.optimizer.variables] == before
    pair.train(rng, 5)
    pair.check()


@every_strategy
@pytest.mark.parametrize("made_in_scope", [True, False])
@pytest.mark.parametrize(
    ("way", "mode"),
    [
        ("eager", False),
        pytest.param("function", "auto", marks=pytest.mark.slow),
        ("loop", False),
    ],
)
def test_lazy_build_in_run(rng, weights, way, mode, made_in_scope, name):
    strategy = strategies.named(name)
    pair = ReplicaPair(
        strategy,
        weights,
        mode,
        made_in_scope=made_in_scope,
        built=False,
        **ACCUMULATION,
    )
    pair.train(rng, 5, way=way)
    pair.check()


@pytest.mark.parametrize("name", ["mirrored_2", "central_2"])
@pytest.mark.parametrize("lazily", [True, False])
@pytest.mark.parametrize(
    "way", ["eager", pytest.param("function", marks=pytest.mark.slow)]
)
def test_more_variables_later(rng, weights, way, lazily, name):
    strategy = strategies.named(name)
    pair = ReplicaPair(strategy, weights, "auto", built=False, **AVERAGES)
    pair.optimizer.build({"bias": pair.variables["bias"]})
    for _ in range(2):
        pair.train_on([{"bias": pair.random_parts(rng)["bias"]}], way)
    if not lazily:
        pair.optimizer.build(pair.variables)
    pair.train(rng, 2, way=way)
    pair.check()


@pytest.mark.parametrize("name", ["mirrored_2", "central_2"])
@pytest.mark.parametrize("where", ["in scope", "outside", "in run"])
@pytest.mark.parametrize(
    "mode", [pytest.param("auto", marks=pytest.mark.slow), False]
)
def test_learning_rate_is_assignable(rng, weights, mode, where, name):
    strategy = strategies.named(name)
    pair = ReplicaPair(strategy, weights, mode, made_in_scope=False)

    def assign(value):
        pair.optimizer.learning_rate = value

    for rate in (0.25, 0.5, 0.125):
        if where == "in run":
            strategy.run(assign, (tf.constant(rate),))
        else:
            with place(strategy, where):
                assign(rate)
        assert set(pair.copies(pair.optimizer.learning_rate)) == {rate}
        pair.reference.learning_rate = rate
        pair.train(rng, 1)
        pair.check()


def bits(pair):
    return [[c.tobytes() for c in pair.copies(v)] for v in pair.state()]


def check_averages_are_the_weights(pair):
    for key, variable in pair.variables.items():
        average = pair.slot(key, "average").astype(np.float32)
        for copy in pair.copies(variable):
            np.testing.assert_array_equal(copy, average)


@every_strategy
@pytest.mark.parametrize("raises", [True, False])
def test_averaged_weights(rng, weights, raises, name):
    """After it the weights are what they were, bit for bit, on all replicas."""
    pair = ReplicaPair(strategies.named(name), weights, False, **AVERAGES)
    pair.train(rng, 3)
    before = bits(pair)
    expected = pytest.raises(KeyError) if raises else contextlib.nullcontext()
    with expected, pair.optimizer.averaged_weights():
        assert bits(pair) != before
        check_averages_are_the_weights(pair)
        if raises:
            raise KeyError
    assert bits(pair) == before
    pair.train(rng, 2)
    pair.check()


def test_averaged_weights_restore_copies_that_differ(mirrored, weights):
    """A model may let its replicas drift apart: each gets its own back."""
    pair = ReplicaPair(mirrored, weights, "auto", use_ema=True)
    with mirrored.scope():
        own = tf.Variable(
            [1.0],
            synchronization=tf.VariableSynchronization.ON_WRITE,
            aggregation=tf.VariableAggregation.MEAN,
        )
    pair.optimizer.build([own])
    for number, copy in enumerate(mirrored.experimental_local_results(own)):
        copy.assign([float(number)])
    with pair.optimizer.averaged_weights():
        pass
    assert [copy[0] for copy in pair.copies(own)] == [0.0, 1.0]


@pytest.mark.parametrize("name", ["mirrored_2", "central_2"])
def test_averaged_weights_are_refused_in_run(weights, name):
    strategy = strategies.named(name)
    pair = ReplicaPair(strategy, weights, "auto", use_ema=True)

    def swap():
        with pair.optimizer.averaged_weights():
            pass

    helpers.refused(pair, lambda: strategy.run(swap), "averaged_weights", "run")


@every_strategy
@pytest.mark.parametrize("where", ["outside", "in scope", "in run", "function"])
def test_finalize_variable_values(rng, weights, where, name):
    strategy = strategies.named(name)
    pair = ReplicaPair(strategy, weights, False, **AVERAGES)
    pair.train(rng, 3)
    finalize = pair.optimizer.finalize_variable_values
    if where == "in run":
        strategy.run(finalize)
    elif where == "function":
        tf.function(lambda: strategy.run(finalize))()
    else:
        with place(strategy, where):
            finalize()
    pair.check_copies()
    check_averages_are_the_weights(pair)


@every_strategy
def test_minimize_and_apply_gradients(weights, name):
    """On each replica, of its own loss; with Keras's keyword arguments."""
    strategy = strategies.named(name)
    momenta = []
    for way in ("minimize", "apply_gradients"):
        pair = ReplicaPair(strategy, weights, "auto", loss_scale_factor=8.0)
        kernel, bias = pair.variables.values()

        def loss(kernel=kernel, bias=bias):
            context = tf.distribute.get_replica_context()
            replica = tf.cast(context.replica_id_in_sync_group, tf.float32)
            return (1.0 + replica) * tf.reduce_sum(bias * kernel * kernel)

        def step(
            loss=loss, optimizer=pair.optimizer, way=way, on=(kernel, bias)
        ):
            if way == "minimize":
                return optimizer.minimize(loss, var_list=list(on))
            with tf.GradientTape() as tape:
                scaled = optimizer.scale_loss(loss())
            grads = tape.gradient(scaled, on)
            pairs = zip(grads, on, strict=True)
            return optimizer.apply_gradients(grads_and_vars=pairs)

        total = sum(range(1, pair.count + 1))
        strategy.run(step)
        expected = {
            "kernel": 0.1 * total * 2 * weights["bias"] * weights["kernel"],
            "bias": 0.1 * total * (weights["kernel"] ** 2).sum(0),
        }
        for key, value in expected.items():
            momentum = pair.slot(key, "momentum")
            np.testing.assert_allclose(momentum, value, rtol=1e-6)
        momenta.append([pair.slot(key, "momentum") for key in weights])
    np.testing.assert_array_equal(
        np.concatenate([m.ravel() for m in momenta[0]]),
        np.concatenate([m.ravel() for m in momenta[1]]),
    )


def test_summary_and_config(mirrored, weights):
    pair = ReplicaPair(mirrored, weights, "auto", aggregation="mean")
    assert "kernel" in pair.optimizer.summary()
    config = pair.optimizer.get_config()
    again = tf_adamw.AdamW.from_config(config)
    assert again.get_config() == config
    assert again.aggregation == "mean"
