"""What is refused on replicas, in one line, and strategies of the users'."""

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


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, SHAPES)


@pytest.fixture
def pair(mirrored, weights):
    return ReplicaPair(mirrored, weights, "auto")


def ones(pair):
    return [tf.ones_like(variable) for variable in pair.variables.values()]


def function(inner):
    return tf.function(inner, autograph=False)


@pytest.mark.parametrize("in_a_function", [True, False])
@pytest.mark.parametrize("where", ["in scope", "outside"])
@pytest.mark.parametrize("window", [None, 2])
def test_apply_outside_of_run(mirrored, weights, window, where, in_a_function):
    """Each replica updates its own copies: somebody has to be one."""
    pair = ReplicaPair(
        mirrored, weights, "auto", gradient_accumulation_steps=window
    )
    scope = mirrored.scope() if where == "in scope" else None

    def apply():
        return pair.optimizer.apply(ones(pair))

    with scope or contextlib.nullcontext():
        helpers.refused(
            pair,
            function(apply) if in_a_function else apply,
            "kernel",
            "MirroredStrategy",
            "2",
            r"run\(\)",
        )


@pytest.mark.parametrize("built", [True, False])
def test_variables_of_another_strategy(pair, built):
    other = strategies.reducing_to_one(2)
    with other.scope():
        theirs = tf.Variable([1.0], name="theirs")
        optimizer = tf_adamw.AdamW()
        if built:
            optimizer.build([theirs])
    pair.optimizer = optimizer
    helpers.refused(
        pair,
        lambda: pair.strategy.run(lambda: optimizer.apply([[1.0]], [theirs])),
        "theirs",
        "MirroredStrategy",
        "run",
    )


@pytest.mark.parametrize("name", ["mirrored_2", "central_2"])
@pytest.mark.parametrize("built", [True, False])
def test_plain_variables_in_run(weights, built, name):
    """All replicas would update the same variable."""
    strategy = strategies.named(name)
    plain = tf.Variable([1.0], name="plain")
    pair = ReplicaPair(strategy, weights, "auto")
    pair.optimizer = tf_adamw.AdamW()
    if built:
        pair.optimizer.build([plain])
    helpers.refused(
        pair,
        lambda: strategy.run(
            lambda: pair.optimizer.apply([tf.ones([1])], [plain])
        ),
        "plain",
        type(strategy).__name__,
        "scope",
    )
    np.testing.assert_array_equal(plain, [1.0])


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("first", ["mirrored", "plain", "together"])
def test_mixed_variables_in_build(mirrored, first, inside):
    with mirrored.scope():
        replicated = {"replicated": tf.Variable([1.0])}
        optimizer = tf_adamw.AdamW()
    plain = {"plain": tf.Variable([1.0])}
    then = {**plain, **replicated}
    if first == "mirrored":
        optimizer.build(replicated)
        then = plain
    elif first == "plain":
        optimizer.build(plain)
        then = replicated
    before = helpers.snapshot(optimizer)
    scope = mirrored.scope() if inside else contextlib.nullcontext()
    with scope, pytest.raises(ValueError) as refusal:
        optimizer.build(then)
    message = str(refusal.value)
    for word in ("'plain'", "'replicated'", "MirroredStrategy"):
        assert word in message
    assert "\n" not in message
    assert helpers.snapshot(optimizer) == before


@pytest.mark.parametrize("name", ["mirrored_2", "mirrored_4", "central_2"])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("in_a_function", [True, False])
@pytest.mark.parametrize("missing", [["bias"], ["kernel"]])
def test_gradients_of_different_variables(
    weights, missing, in_a_function, window, name
):
    """What is None on one replica only, others would wait for."""
    strategy = strategies.named(name)
    pair = ReplicaPair(
        strategy, weights, "auto", gradient_accumulation_steps=window
    )
    replicas = iter(range(pair.count * 2))

    def step():
        grads = ones(pair)
        if next(replicas) == 1:
            grads = [
                None if key in missing else gradient
                for key, gradient in zip(weights, grads, strict=True)
            ]
        return pair.optimizer.apply(grads)

    def run():
        return strategy.run(step)

    helpers.refused(
        pair,
        function(run) if in_a_function else run,
        type(strategy).__name__,
        "None",
    )


def in_a_cond(apply):
    return tf.cond(tf.constant(True), apply, apply)


def in_a_while_loop(apply):
    def body(number):
        apply()
        return number + 1

    return tf.while_loop(lambda number: number < 2, body, [tf.constant(0)])


def in_an_inner_function(apply):
    return function(apply)()


INNER = [in_a_cond, in_a_while_loop, in_an_inner_function]


@pytest.mark.parametrize("place", INNER)
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("name", ["mirrored_2", "central_2"])
def test_collectives_where_there_can_be_none(name, weights, window, place):
    """There the replicas meet outside of inner functions only."""
    strategy = strategies.named(name)
    pair = ReplicaPair(
        strategy, weights, "auto", gradient_accumulation_steps=window
    )

    def apply():
        return pair.optimizer.apply(ones(pair)).applied

    @function
    def run():
        return strategy.run(lambda: place(apply))

    helpers.refused(
        pair,
        run,
        type(strategy).__name__,
        r"tf\.cond",
        "around",
        r"run\(\)",
    )


@pytest.mark.parametrize("place", INNER)
@pytest.mark.parametrize("window", [None, 2])
def test_steps_without_collectives_work_there(mirrored, weights, window, place):
    """What is reduced already needs none."""
    pair = ReplicaPair(
        mirrored,
        weights,
        "auto",
        aggregation="none",
        gradient_accumulation_steps=window,
    )

    def apply():
        return pair.optimizer.apply(ones(pair)).applied

    function(lambda: mirrored.run(lambda: place(apply)))()
    steps = 2 if place is in_a_while_loop else 1
    pair.check_copies()
    assert pair.optimizer.iterations.numpy() == steps // (window or 1)


class UsersStrategy(tf.distribute.MirroredStrategy):
    """Somebody's own strategy, built on public pieces."""

    def __init__(self):
        operations = tf.distribute.ReductionToOneDevice()
        super().__init__(strategies.CPUS[:2], cross_device_ops=operations)


@pytest.mark.parametrize(
    "mode", [pytest.param("auto", marks=pytest.mark.slow), False]
)
@pytest.mark.parametrize("way", ["eager", "function", "loop"])
def test_strategies_of_the_users(rng, weights, way, mode):
    pair = ReplicaPair(
        UsersStrategy(),
        weights,
        mode,
        made_in_scope=False,
        gradient_accumulation_steps=2,
        skip_nonfinite=True,
    )
    pair.train(rng, 5, way=way)
    pair.check()


def hidden(variable):
    """The variable, without the way to the copy of a replica."""

    class Hidden(type(variable)):
        @property
        def handle(self):
            raise NotImplementedError

    variable.__class__ = Hidden
    return variable


@pytest.mark.parametrize("built", [True, False])
def test_strategies_that_hide_the_replicas_copies(weights, built):
    strategy = UsersStrategy()
    pair = ReplicaPair(strategy, weights, "auto", built=built)
    variables = [hidden(variable) for variable in pair.variables.values()]
    helpers.refused(
        pair,
        lambda: strategy.run(
            lambda: pair.optimizer.apply(ones(pair), variables)
        ),
        "UsersStrategy",
        "kernel",
        "handle",
    )


@pytest.mark.parametrize("value", ["max", "SUM", None, True])
def test_bad_aggregation(value):
    with pytest.raises(ValueError, match=r"aggregation.*'mean'") as refusal:
        tf_adamw.AdamW(aggregation=value)
    assert repr(value) in str(refusal.value)
    assert "\n" not in str(refusal.value)
