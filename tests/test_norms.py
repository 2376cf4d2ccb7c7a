"""Norms of groups: against NumPy on the weights before and after a step."""

import numpy as np
import pytest
import tensorflow as tf

import helpers
import strategies
import tf_adamw
from helpers import Pair, both_modes

pytestmark = pytest.mark.core

GROUPS = {
    "all": ".",
    "matrices": ["kernel"],
    "others": lambda key: key != "kernel",
    "none": lambda key: False,
}
MEMBERS = {
    "all": {"kernel", "bias", "scale"},
    "matrices": {"kernel"},
    "others": {"bias", "scale"},
    "none": set(),
}
OPTIONS = {
    "plain": {},
    "amsgrad": {"amsgrad": True, "clipvalue": 0.5},
    "clipnorm": {"clipnorm": 0.5},
    "ema": {"use_ema": True, "ema_momentum": 0.75},
    "groups": {
        "learning_rate_multipliers": {"kernel": 0.5, "bias": 0.0},
        "exclude_from_weight_decay": ["kernel"],
        "decay_coupling": "none",
    },
}


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, helpers.SHAPES)


def norm(arrays):
    squares = [np.sum(np.square(np.float64(a))) for a in arrays]
    return np.sqrt(np.sum(squares))


def check(result, before, after, rtol=1e-6):
    """Asserts the norms of {key: array} before and after a step."""
    assert set(result.update_norm) == set(result.weight_norm) == set(GROUPS)
    for group, keys in MEMBERS.items():
        change = [np.float64(after[k]) - np.float64(before[k]) for k in keys]
        for found, expected in (
            (result.update_norm[group], norm(change)),
            (result.weight_norm[group], norm([after[k] for k in keys])),
        ):
            assert found.dtype == tf.float32 and found.shape == ()
            np.testing.assert_allclose(float(found), expected, rtol=rtol)


def check_nan(result):
    for norms in (result.update_norm, result.weight_norm):
        assert set(norms) == set(GROUPS)
        assert all(np.isnan(float(value)) for value in norms.values())


@both_modes
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_against_numpy(rng, dtype, option, jit_compile):
    """Of bfloat16 weights the norm is that of what they changed by."""
    weights = helpers.random_weights(rng, helpers.SHAPES, dtype)
    options = {"learning_rate": 0.05, "norm_groups": GROUPS, **OPTIONS[option]}
    optimizer = tf_adamw.AdamW(jit_compile=jit_compile, **options)
    variables = helpers.as_variables(weights)
    optimizer.build(variables)
    for _ in range(3):
        before = helpers.values(variables)
        gradients = helpers.random_gradients(rng, weights)
        result = optimizer.apply(helpers.to_gradients(gradients.values()))
        check(result, before, helpers.values(variables))


@both_modes
def test_variables_without_a_gradient(rng, weights, jit_compile):
    """They have not changed, and their weights count."""
    optimizer = tf_adamw.AdamW(
        0.05, jit_compile=jit_compile, norm_groups=GROUPS
    )
    variables = helpers.as_variables(weights)
    optimizer.build(variables)
    for missing in ("kernel", "bias", "scale", None):
        before = helpers.values(variables)
        given = {k: tf.ones_like(v) for k, v in weights.items() if k != missing}
        result = optimizer.apply(given.values(), [variables[k] for k in given])
        check(result, before, helpers.values(variables))
        if missing == "kernel":
            assert float(result.update_norm["matrices"]) == 0


@both_modes
@pytest.mark.parametrize("frequency", [1, 2])
def test_before_an_average_overwrites(rng, weights, frequency, jit_compile):
    """As of a step without it, from the same weights and moments."""
    average = {"use_ema": True, "ema_momentum": 0.75}
    options = {"learning_rate": 0.05, "norm_groups": GROUPS}
    pairs = []
    for more in ({}, {**average, "ema_overwrite_frequency": frequency}):
        variables = helpers.as_variables(weights)
        optimizer = tf_adamw.AdamW(jit_compile=jit_compile, **options, **more)
        optimizer.build(variables)
        pairs.append((optimizer, variables))
    for _ in range(4):
        gradients = helpers.random_gradients(rng, weights)
        for variable, like in zip(
            pairs[0][1].values(), pairs[1][1].values(), strict=True
        ):
            variable.assign(like)
        before = helpers.values(pairs[0][1])
        tensors = helpers.to_gradients(gradients.values())
        _, result = (optimizer.apply(tensors) for optimizer, _ in pairs)
        # Rounding of the weights, next to the change.
        check(result, before, helpers.values(pairs[0][1]), rtol=1e-5)
    changed = [
        not np.array_equal(*v)
        for v in zip(
            helpers.values(pairs[0][1]).values(),
            helpers.values(pairs[1][1]).values(),
            strict=True,
        )
    ]
    assert all(changed)


@both_modes
def test_not_a_number_while_a_window_is_open(rng, weights, jit_compile):
    optimizer = tf_adamw.AdamW(
        0.05,
        gradient_accumulation_steps=3,
        norm_groups=GROUPS,
        jit_compile=jit_compile,
    )
    variables = helpers.as_variables(weights)
    optimizer.build(variables)
    step = tf.function(lambda grads, some: optimizer.apply(grads, some))
    for number in range(6):
        before = helpers.values(variables)
        # In the last one some have a gradient from earlier in the window.
        keys = ["kernel"] if number % 3 == 2 else ["kernel", "bias"]
        tensors = [tf.ones_like(weights[k]) for k in keys]
        some = [variables[k] for k in keys]
        result = (step if number > 2 else optimizer.apply)(tensors, some)
        assert bool(result.applied) == (number % 3 == 2)
        if result.applied:
            check(result, before, helpers.values(variables))
        else:
            check_nan(result)


@both_modes
@pytest.mark.parametrize(
    "option", [{"skip_nonfinite": True}, {"loss_scale_factor": "dynamic"}]
)
def test_not_a_number_when_skipped(weights, option, jit_compile):
    pair = Pair(weights, jit_compile)
    pair.optimizer = tf_adamw.AdamW(
        0.05, jit_compile=jit_compile, norm_groups=GROUPS, **option
    )
    pair.optimizer.build(pair.variables)
    for value in (1.0, np.nan, np.inf, 2.0):
        before = helpers.values(pair.variables)
        result = pair.optimizer.apply(
            [tf.fill(w.shape, np.float32(value)) for w in weights.values()]
        )
        assert bool(result.applied) == np.isfinite(value)
        if result.applied:
            check(result, before, helpers.values(pair.variables))
        else:
            check_nan(result)


@both_modes
def test_rows_of_a_lazy_update(rng, weights, jit_compile):
    """The norm is of all weights, and of what changed of them."""
    optimizer = tf_adamw.AdamW(
        0.05, jit_compile=jit_compile, norm_groups=GROUPS, sparse_updates="lazy"
    )
    variables = helpers.as_variables(weights)
    optimizer.build(variables)
    for _ in range(2):
        before = helpers.values(variables)
        rows = tf.constant(rng.standard_normal((3, 5)), tf.float32)
        rows = tf.IndexedSlices(rows, tf.constant([2, 0, 2]), (3, 5))
        result = optimizer.apply([rows], [variables["kernel"]])
        check(result, before, helpers.values(variables))


@pytest.mark.parametrize("mode", ["auto", False])
def test_variables_on_two_devices(weights, mode):
    variables = helpers.as_variables(weights)
    with tf.device("/cpu:1"):
        variables["bias"] = tf.Variable(weights["bias"], name="bias")
    optimizer = tf_adamw.AdamW(0.05, jit_compile=mode, norm_groups=GROUPS)
    optimizer.build(variables)
    step = tf.function(lambda gradients: optimizer.apply(gradients))
    of_one = [
        None if key == "bias" else tf.ones_like(w) for key, w in weights.items()
    ]
    for call in (optimizer.apply, step):
        for gradients in ([tf.ones_like(w) for w in weights.values()], of_one):
            before = helpers.values(variables)
            result = call(gradients)
            check(result, before, helpers.values(variables))


def by_replica(strategy, result):
    """The result of each replica."""
    local = [
        strategy.experimental_local_results(value)
        for value in tf.nest.flatten(result)
    ]
    return [
        tf.nest.pack_sequence_as(result, values)
        for values in zip(*local, strict=True)
    ]


@pytest.mark.parametrize("name", ["mirrored_2", "central_2"])
@pytest.mark.parametrize("mode", ["auto", False])
@pytest.mark.parametrize("steps", [None, 2])
def test_two_replicas(rng, weights, steps, mode, name):
    """Of the reduced gradients' update: the same on both."""
    strategy = strategies.named(name)
    with strategy.scope():
        variables = helpers.as_variables(weights)
    optimizer = tf_adamw.AdamW(
        0.05,
        jit_compile=mode,
        norm_groups=GROUPS,
        global_clipnorm=0.5,
        gradient_accumulation_steps=steps,
    )
    optimizer.build(variables)

    @tf.function
    def run(stacked):
        def step(stacked):
            context = tf.distribute.get_replica_context()
            place = context.replica_id_in_sync_group
            return optimizer.apply([v[place] for v in stacked.values()])

        return strategy.run(step, (stacked,))

    for number in range(4):
        before = helpers.values(variables)
        parts = strategies.random_parts(rng, weights, 2)
        result = run({k: tf.constant(np.stack(p)) for k, p in parts.items()})
        local = by_replica(strategy, result)
        assert len(local) == (1 if name == "central_2" else 2)
        for one in local:
            if steps and number % 2 == 0:
                check_nan(one)
            else:
                check(one, before, helpers.values(variables))
        values = [np.array(tf.nest.flatten(one), np.float32) for one in local]
        assert len({value.tobytes() for value in values}) == 1
