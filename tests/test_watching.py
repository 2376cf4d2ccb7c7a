"""`write_summaries`: what a reader finds in the event file."""

import math

import pytest
import tensorflow as tf

import helpers
import strategies
import tf_adamw
from helpers import Pair, both_modes

pytestmark = pytest.mark.core

GROUPS = {"all": ".", "matrices": "kernel"}
NORMS = {
    f"adamw/{kind}/{group}"
    for kind in ("update_norm", "weight_norm")
    for group in GROUPS
}


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, helpers.SHAPES)


def written(folder):
    """{(tag, step): value} of the scalars in a folder, each written once."""
    found = {}
    for path in sorted(folder.glob("events*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                assert (value.tag, event.step) not in found
                number = float(tf.make_ndarray(value.tensor))
                found[value.tag, event.step] = number
    return found


def tags(found, step):
    return {tag for tag, at in found if at == step}


def new_pair(weights, jit_compile, **options):
    pair = Pair(weights, jit_compile)
    pair.optimizer = tf_adamw.AdamW(
        0.125, jit_compile=jit_compile, norm_groups=GROUPS, **options
    )
    pair.optimizer.build(pair.variables)
    return pair


def ones(weights, value=1.0):
    return [tf.fill(w.shape, tf.constant(value)) for w in weights.values()]


def train(optimizer, weights, steps, folder, call=lambda step: step):
    """Steps and their summaries; returns the results."""

    def step(gradients):
        result = optimizer.apply(gradients)
        tf_adamw.write_summaries(optimizer, result)
        return result

    step = call(step)
    with tf.summary.create_file_writer(str(folder)).as_default():
        return [step(ones(weights)) for _ in range(steps)]


@both_modes
@pytest.mark.parametrize("way", ["eager", "function"])
def test_values(weights, tmp_path, way, jit_compile):
    pair = new_pair(weights, jit_compile, global_clipnorm=0.5)
    call = tf.function if way == "function" else lambda step: step
    results = train(pair.optimizer, weights, 3, tmp_path, call)
    found = written(tmp_path)
    expected = {}
    for step, result in enumerate(results, start=1):
        expected["adamw/learning_rate", step] = 0.125
        expected["adamw/grad_norm", step] = float(result.grad_norm)
        for group in GROUPS:
            for kind in ("update_norm", "weight_norm"):
                norm = float(getattr(result, kind)[group])
                expected[f"adamw/{kind}/{group}", step] = norm
    assert found == expected
    assert all(map(math.isfinite, found.values()))


def test_plain_optimizer_has_a_rate_alone(weights, tmp_path):
    optimizer = tf_adamw.AdamW(helpers.LinearDecay(), name="other")
    optimizer.build(helpers.as_variables(weights))
    train(optimizer, weights, 2, tmp_path)
    found = written(tmp_path)
    assert {tag for tag, _ in found} == {"other/learning_rate"}
    assert {step for _, step in found} == {1, 2}
    # The rate that the optimizer shows at that time.
    assert found["other/learning_rate", 2] == float(optimizer.learning_rate)


@both_modes
def test_norms_of_applied_updates_alone(weights, tmp_path, jit_compile):
    """A window that is open has none, and a step that was skipped."""
    pair = new_pair(
        weights, jit_compile, loss_scale_factor="dynamic", clipnorm=1.0
    )
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        for step, value in enumerate([1.0, math.nan, 1.0, math.inf]):
            result = pair.optimizer.apply(ones(weights, value))
            tf_adamw.write_summaries(pair.optimizer, result, step)
    found = written(tmp_path)
    always = {"adamw/learning_rate", "adamw/loss_scale"}
    for step in range(4):
        norms = {*NORMS, "adamw/grad_norm"} if step % 2 == 0 else set()
        assert tags(found, step) == always | norms
    assert found["adamw/loss_scale", 1] == found["adamw/loss_scale", 0] / 2


@pytest.mark.parametrize("way", ["eager", "function"])
def test_windows(weights, tmp_path, way):
    pair = new_pair(weights, False, gradient_accumulation_steps=2)

    def step(gradients, number):
        result = pair.optimizer.apply(gradients)
        tf_adamw.write_summaries(pair.optimizer, result, number)

    step = tf.function(step) if way == "function" else step
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        for number in range(4):
            step(ones(weights), tf.constant(number, tf.int64))
    found = written(tmp_path)
    assert tags(found, 0) == tags(found, 2) == {"adamw/learning_rate"}
    assert tags(found, 1) == tags(found, 3) == {"adamw/learning_rate", *NORMS}


@pytest.mark.parametrize("way", ["eager", "function"])
def test_record_if(weights, tmp_path, way):
    pair = new_pair(weights, False)
    optimizer = pair.optimizer
    call = tf.function if way == "function" else lambda step: step
    with tf.summary.record_if(lambda: optimizer.iterations % 2 == 0):
        train(optimizer, weights, 4, tmp_path, call)
    found = written(tmp_path)
    assert {step for _, step in found} == {2, 4}
    assert tags(found, 4) == {"adamw/learning_rate", *NORMS}


def test_no_writer_and_no_record(weights, tmp_path):
    pair = new_pair(weights, False)
    result = pair.optimizer.apply(ones(weights))
    tf_adamw.write_summaries(pair.optimizer, result)
    tf.function(lambda: tf_adamw.write_summaries(pair.optimizer, result))()
    with tf.summary.record_if(False):
        train(pair.optimizer, weights, 2, tmp_path)
    assert written(tmp_path) == {}


@pytest.mark.parametrize("name", ["mirrored_2", "central_2", "one_device"])
@pytest.mark.parametrize("where", ["in scope", "outside", "in a function"])
def test_results_of_replicas(weights, tmp_path, where, name):
    strategy = strategies.named(name)
    with strategy.scope():
        variables = helpers.as_variables(weights)
    optimizer = tf_adamw.AdamW(
        0.125, jit_compile=False, norm_groups=GROUPS, clipnorm=0.5
    )
    optimizer.build(variables)

    def step(gradients):
        result = strategy.run(optimizer.apply, (gradients,))
        if where == "in a function":
            tf_adamw.write_summaries(optimizer, result)
        return result

    step = tf.function(step)
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        for _ in range(2):
            result = step(ones(weights))
            if where == "in scope":
                with strategy.scope():
                    tf_adamw.write_summaries(optimizer, result)
            elif where == "outside":
                tf_adamw.write_summaries(optimizer, result)
    found = written(tmp_path)
    assert {step for _, step in found} == {1, 2}
    assert tags(found, 2) == {"adamw/learning_rate", "adamw/grad_norm", *NORMS}
    local = strategy.experimental_local_results
    for group in GROUPS:
        norm = float(local(result.weight_norm[group])[0])
        assert found[f"adamw/weight_norm/{group}", 2] == norm
