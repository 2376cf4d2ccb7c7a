"""Behaviours of Keras 3's AdamW that are not to be repeated, row by row."""

import json

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import Pair, both_modes, compiled_is_slow

pytestmark = pytest.mark.core


def restored(pair, tmp_path, jit_compile, **options):
    """A pair of other options, with the weights and state of the first."""
    checkpoint = helpers.checkpoint_of(pair.optimizer, pair.variables)
    path = checkpoint.save(tmp_path / "checkpoint")
    start = {k: np.zeros_like(w) for k, w in pair.reference.weights.items()}
    start = {k: w.astype(np.float32) for k, w in start.items()}
    other = Pair(start, jit_compile, **options)
    helpers.checkpoint_of(other.optimizer, other.variables).restore(path)
    return other


@compiled_is_slow
def test_row_1_bfloat16_variables_move(jit_compile):
    start = np.ones([4], helpers.NUMPY_DTYPE["bfloat16"])
    pair = Pair({"w": start}, jit_compile, learning_rate=0.01)
    for _ in range(20):
        pair.step({"w": np.ones_like(start)})
    # 20 steps of 0.01, rounded to multiples of 2^-8 on the way.
    assert np.all(pair.variables["w"].numpy().astype(float) < 0.85)
    pair.check_moments()


@compiled_is_slow
def test_row_2_float16_with_tiny_gradients(jit_compile):
    start = np.ones([4], np.float16)
    pair = Pair({"w": start}, jit_compile, learning_rate=0.25, weight_decay=0.0)
    pair.step({"w": np.full_like(start, 1e-5)})
    expected = pair.reference.weights["w"]
    np.testing.assert_allclose(pair.variables["w"], expected, atol=2.0**-12)


@compiled_is_slow
@pytest.mark.parametrize("dtype", helpers.NUMPY_DTYPE)
@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm", None])
def test_row_2_zero_gradients_give_zero_update(clipping, dtype, jit_compile):
    start = np.ones([4], helpers.NUMPY_DTYPE[dtype])
    options = {clipping: 1.0} if clipping else {}
    pair = Pair({"w": start}, jit_compile, weight_decay=0.0, **options)
    for _ in range(3):
        pair.step({"w": np.zeros_like(start)})
    np.testing.assert_array_equal(pair.variables["w"].numpy(), start)


@both_modes
def test_row_4_one_inf_changes_nothing(rng, jit_compile):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile, global_clipnorm=1.0, skip_nonfinite=True)
    pair.train(rng, 2)
    variables = pair.variables.values()
    before = helpers.snapshot(pair.optimizer, variables)
    gradients = helpers.random_gradients(rng, weights)
    gradients["bias"][2] = np.inf
    result, _ = pair.step(gradients)
    assert not result.applied
    assert helpers.snapshot(pair.optimizer, variables) == before


@compiled_is_slow
def test_row_5_accumulation_and_overwrite_in_a_function(rng, jit_compile):
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    weights = helpers.random_weights(rng, helpers.SHAPES)
    with strategy.scope():
        pair = Pair(
            weights,
            jit_compile,
            gradient_accumulation_steps=2,
            use_ema=True,
            ema_overwrite_frequency=2,
        )
    variables = list(pair.variables.values())

    @tf.function
    def step(gradients):
        strategy.run(lambda g: pair.optimizer.apply(g, variables), (gradients,))

    for _ in range(8):
        gradients = helpers.random_gradients(rng, weights)
        step(helpers.to_gradients(gradients.values()))
        pair.reference.apply(gradients)
    assert pair.error() <= 2e-6


@compiled_is_slow
def test_row_6_restore_within_a_window(jit_compile, tmp_path):
    options = {"gradient_accumulation_steps": 2, "beta_1": 0.0}
    pair = Pair({"w": np.ones(3, np.float32)}, jit_compile, **options)
    pair.step({"w": np.full(3, 1.0, np.float32)})
    other = restored(pair, tmp_path, jit_compile, **options)
    np.testing.assert_array_equal(other.slot("w", "accumulator"), 1.0)
    result, _ = other.step({"w": np.full(3, 7.0, np.float32)})
    assert result.applied
    np.testing.assert_array_equal(other.slot("w", "momentum"), 4.0)


@compiled_is_slow
def test_row_7_average_moves_on_real_updates_only(rng, jit_compile):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(
        weights,
        jit_compile,
        learning_rate=0.01,
        gradient_accumulation_steps=3,
        use_ema=True,
        ema_momentum=0.5,
        ema_overwrite_frequency=2,
    )
    for micro_step in range(1, 13):
        before = pair.slot("kernel", "average")
        pair.train(rng, 1)
        if micro_step % 3:
            after = pair.slot("kernel", "average")
            np.testing.assert_array_equal(after, before)
        assert pair.error() <= 2e-6


@compiled_is_slow
@pytest.mark.parametrize(
    "options",
    [{}, {"global_clipnorm": 0.5}, {"gradient_accumulation_steps": 2}],
)
def test_row_9_duplicate_rows_are_summed_first(options, jit_compile):
    slices = tf.IndexedSlices(
        tf.constant([[1.0, 2.0], [3.0, 4.0], [-5.0, 6.0]]),
        tf.constant([3, 0, 3]),
        tf.constant([5, 2]),
    )
    runs = []
    for gradient in (slices, tf.convert_to_tensor(slices)):
        w = tf.Variable(np.linspace(1, 2, 10).reshape(5, 2), dtype=tf.float32)
        optimizer = tf_adamw.AdamW(0.01, jit_compile=jit_compile, **options)
        for _ in range(4):
            optimizer.apply([gradient], [w])
        slots = [optimizer.get_slot(w, n) for n in ("momentum", "velocity")]
        runs.append([value.numpy() for value in (w, *slots)])
    for actual, expected in zip(*runs, strict=True):
        np.testing.assert_array_equal(actual, expected)


@compiled_is_slow
@pytest.mark.parametrize(
    "added",
    [
        {"use_ema": True},
        {"gradient_accumulation_steps": 2},
        {"amsgrad": True},
        {"loss_scale_factor": 2.0},
        {"learning_rate": helpers.LinearDecay()},
    ],
)
def test_row_10_switching_an_option_shifts_no_key(
    rng, added, jit_compile, tmp_path
):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    for before, after in (({}, added), (added, {})):
        pair = Pair(weights, jit_compile, **before)
        pair.train(rng, 4)
        other = restored(pair, tmp_path, jit_compile, **after)
        assert other.optimizer.iterations == pair.optimizer.iterations
        for key in helpers.SHAPES:
            for name in ("momentum", "velocity"):
                expected = pair.slot(key, name)
                np.testing.assert_array_equal(other.slot(key, name), expected)


@compiled_is_slow
def test_row_11_late_average_starts_from_the_weights(
    rng, jit_compile, tmp_path
):
    weights = helpers.random_weights(rng, helpers.SHAPES)
    pair = Pair(weights, jit_compile)
    pair.train(rng, 5)
    other = restored(pair, tmp_path, jit_compile, use_ema=True)
    with other.optimizer.averaged_weights():
        for key, variable in other.variables.items():
            expected = pair.variables[key].numpy()
            np.testing.assert_array_equal(variable.numpy(), expected)
    other.optimizer.apply(
        helpers.to_gradients(helpers.random_gradients(rng, weights).values())
    )
    for key, variable in other.variables.items():
        average = other.slot(key, "average").astype(np.float32)
        np.testing.assert_array_equal(average, variable.numpy())


@compiled_is_slow
def test_row_12_config_keeps_exclusions(jit_compile):
    def decayed(optimizer):
        variables = helpers.as_variables({"kernel": [1.0], "bias": [1.0]})
        optimizer.build(variables)
        optimizer.apply([tf.zeros([1]), tf.zeros([1])])
        return {k for k, v in variables.items() if v.numpy()[0] != 1.0}

    optimizer = tf_adamw.AdamW(0.1, 0.1, jit_compile=jit_compile)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    config = json.loads(json.dumps(optimizer.get_config()))
    assert decayed(optimizer) == {"kernel"}
    assert decayed(tf_adamw.AdamW.from_config(config)) == {"kernel"}


@compiled_is_slow
def test_row_12_exclusion_after_build_is_honoured(jit_compile):
    variables = helpers.as_variables({"kernel": [1.0], "bias": [1.0]})
    optimizer = tf_adamw.AdamW(0.1, 0.1, jit_compile=jit_compile)
    optimizer.build(variables)
    optimizer.apply([tf.zeros([1]), tf.zeros([1])])
    assert variables["bias"].numpy()[0] == np.float32(0.99)
    optimizer.exclude_from_weight_decay(var_list=[variables["bias"]])
    optimizer.apply([tf.zeros([1]), tf.zeros([1])])
    assert variables["bias"].numpy()[0] == np.float32(0.99)
    assert variables["kernel"].numpy()[0] < 0.985
