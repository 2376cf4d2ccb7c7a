"""Tables in the TPU's embedding hardware, against a model of its Adam."""

import types

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.tpu import tpu_embedding_configuration_pb2
from tensorflow.python.tpu.ops import tpu_ops

import helpers
import tf_adamw
from numpy_tpu_adam import (
    ROWS,
    UNIT,
    WIDTH,
    Hardware,
    random_gradient,
    random_table,
    ratio,
)
from tf_adamw.tpu_embedding import CorrectedRate
from tpu_scripts.aot import tracing

pytestmark = pytest.mark.core

embedding_api = tf.tpu.experimental.embedding


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.0},
        {"weight_decay": 0.001, "decay_coupling": "none"},
        {"weight_decay": 0.125, "learning_rate": 0.01},
        {
            "weight_decay": 0.001,
            "decay_coupling": "schedule",
            "learning_rate": 0.001,
            "base_learning_rate": 0.004,
        },
        {"weight_decay": 0.0, "clipvalue": 0.25},
        {"weight_decay": 0.0, "learning_rate": helpers.LinearDecay()},
        {"weight_decay": 0.0, "beta_1": 0.0, "beta_2": 0.95, "epsilon": 0.25},
    ],
    ids=[
        "plain",
        "decay",
        "rate",
        "base",
        "clipvalue",
        "schedule",
        "betas",
    ],
)
def test_tables_train_as_variables_do(rng, options):
    optimizer = tf_adamw.AdamW(**options)
    start = random_table(rng)
    w = tf.Variable(start)
    hardware = Hardware(optimizer.as_tpu_embedding_optimizer(), start)
    for _ in range(100):
        gradient = random_gradient(rng)
        hardware.step(gradient)
        optimizer.apply([tf.constant(gradient)], [w])
    hardware.check(w.numpy())


def test_a_faster_root():
    """`sqrt(v + e^2)` is `(sqrt(v) + e) / sqrt(2)` where both are equal."""
    gradient = np.array([[1.0, -2.0]])
    moves = []
    for inside in (False, True):
        optimizer = tf_adamw.AdamW(0.01, 0.0, epsilon=0.001**0.5)
        made = optimizer.as_tpu_embedding_optimizer()
        made.sum_inside_sqrt = inside
        hardware = Hardware(made, np.zeros([1, 2]))
        assert hardware.told.adam.use_sum_inside_sqrt == inside
        hardware.step(gradient)
        moves.append(hardware.table[0])
    v, e = 0.001 * np.array([1.0, 4.0]), 0.001**0.5
    expected = (np.sqrt(v) + e) / np.sqrt(v + e**2)
    np.testing.assert_allclose(expected[0], 2**0.5)
    np.testing.assert_allclose(moves[1] / moves[0], expected, 4e-5)


@pytest.mark.parametrize("sparse_updates", ["dense", "lazy"])
def test_only_some_rows_are_looked_up(rng, sparse_updates):
    optimizer = tf_adamw.AdamW(
        weight_decay=0.001, decay_coupling="none", sparse_updates=sparse_updates
    )
    start = random_table(rng)
    w = tf.Variable(start)
    hardware = Hardware(optimizer.as_tpu_embedding_optimizer(), start)
    for _ in range(30):
        rows = rng.integers(0, ROWS - 1, 4)
        parts = rng.standard_normal([4, WIDTH]).astype(np.float32)
        summed = np.zeros([ROWS, WIDTH])
        np.add.at(summed, rows, parts)
        hardware.step(summed, np.unique(rows))
        slices = tf.IndexedSlices(tf.constant(parts), rows, [ROWS, WIDTH])
        optimizer.apply([slices], [w])
    hardware.check(w.numpy())
    kept = np.array_equal(w.numpy()[-1], start[-1])
    assert kept == (sparse_updates == "lazy")


def test_tables_on_cpus(rng):
    """Lookups, their gradients and the slots of TPUEmbeddingForServing."""
    optimizer = tf_adamw.AdamW(weight_decay=0.001, decay_coupling="none")
    made = optimizer.as_tpu_embedding_optimizer()
    start = random_table(rng)
    table = embedding_api.TableConfig(
        ROWS, WIDTH, tf.constant_initializer(start), name="table"
    )
    feature = embedding_api.FeatureConfig(table)
    serving = embedding_api.TPUEmbeddingForServing(feature, made)
    serving.build()
    state = serving._variables["table"]  # 2.18 has no `variables`
    assert {*state} == {"parameters", "momenta", "velocities"}
    w = tf.Variable(start)
    hardware = Hardware(made, start)
    for _ in range(30):
        ids = tf.constant(rng.integers(0, ROWS, [3, 2]))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(3.0 * serving(ids)))
        slices = tape.gradient(loss, state["parameters"])
        hardware.step(tf.convert_to_tensor(slices))
        for name in state:
            held = "table" if name == "parameters" else name
            state[name].assign(getattr(hardware, held).astype(np.float32))
        optimizer.apply([slices], [w])
    hardware.check(w.numpy())
    for name, slot in (("momenta", "momentum"), ("velocities", "velocity")):
        expected = optimizer.get_slot(w, slot).numpy()
        error = np.abs(state[name].numpy() - expected)
        # A rounded beta, and 5 roundings a step.
        bound = (1 / (2 * (1 - optimizer.beta_2)) + 5 * 30) * UNIT
        assert np.all(error <= bound * np.max(np.abs(expected)))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"amsgrad": True}, "amsgrad"),
        ({"clipnorm": 1.0}, "clipnorm"),
        ({"global_clipnorm": 1.0}, "global_clipnorm"),
        ({"use_ema": True}, "use_ema"),
        ({"loss_scale_factor": "dynamic"}, "loss_scale_factor"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"skip_nonfinite": True}, "skip_nonfinite"),
        ({"weight_decay": lambda: 0.1}, "weight_decay"),
        ({"weight_decay": lambda step: 0.1}, "weight_decay"),
        ({"weight_decay": tf.Variable(0.1)}, "weight_decay"),
        ({"beta_1": tf.Variable(0.9)}, "beta_1"),
        ({"beta_2": lambda: 0.999}, "beta_2"),
        ({"epsilon": tf.Variable(1e-7)}, "epsilon"),
    ],
)
def test_what_the_hardware_cannot_do_is_refused(options, name):
    optimizer = tf_adamw.AdamW(**options)
    with pytest.raises(ValueError, match=f"^{name} must be ") as refusal:
        optimizer.as_tpu_embedding_optimizer()
    assert "\n" not in str(refusal.value)


def test_not_in_a_function():
    optimizer = tf_adamw.AdamW()
    with pytest.raises(ValueError, match="outside of a"):
        tf.function(optimizer.as_tpu_embedding_optimizer)()


@pytest.mark.parametrize("kind", ["number", "variable", "schedule"])
def test_the_rate_follows_without_retracing(tmp_path, kind):
    given = tf.Variable(0.25) if kind == "variable" else 0.25
    if kind == "schedule":
        given = helpers.LinearDecay(0.25, 2.0**-10)
    optimizer = tf_adamw.AdamW(given)
    w = tf.Variable([1.0])
    optimizer.build({"w": w})
    rate = tf.function(optimizer.as_tpu_embedding_optimizer().learning_rate)

    def check(t, lr):
        expected = ratio(t) * (given(t - 1) if kind == "schedule" else lr)
        np.testing.assert_allclose(rate(), expected, 16 * UNIT)

    check(1, 0.25)
    optimizer.apply([[1.0]], [w])
    check(2, 0.25)
    optimizer.iterations.assign_add(1)
    check(3, 0.25)
    checkpoint = tf.train.Checkpoint(w=w, optimizer=optimizer)
    path = checkpoint.save(tmp_path / "checkpoint")
    optimizer.iterations.assign(99)
    if kind != "schedule":
        optimizer.learning_rate = 0.125
    check(100, 0.125)
    checkpoint.restore(path)
    check(3, 0.25)
    assert rate.experimental_get_tracing_count() == 1


def of_type(program, kind):
    return [o for o in program.operations if o.type == kind]


def in_tpu_strategy(decay, make):
    """Calls `make` with a strategy, AdamW and optimizer for two tables."""
    rate = tf.Variable(0.001)  # a number makes the decay a constant
    eager = tf_adamw.AdamW(rate, weight_decay=decay, clipvalue=0.5)
    made = [eager.as_tpu_embedding_optimizer() for _ in range(2)]
    with tf.Graph().as_default():
        strategy = tracing.make_strategy(8)
        with strategy.scope():
            optimizer = tf_adamw.AdamW()
            features = []
            for each in made:
                each.learning_rate = CorrectedRate(optimizer)
                table = embedding_api.TableConfig(8, WIDTH, optimizer=each)
                features.append(
                    embedding_api.FeatureConfig(table, output_shape=[2])
                )
            return make(strategy, optimizer, features)


def test_the_program_of_a_tpu(monkeypatch):
    """One learning rate for both tables, read before updates are counted."""
    # A graph cannot ask a TPU.
    monkeypatch.setattr(tpu_ops, "is_tpu_embedding_initialized", lambda: False)

    def make(strategy, optimizer, features):
        tables = embedding_api.TPUEmbedding(features, optimizer=None)
        tables.build()
        w = tf.Variable(tf.ones([WIDTH]))
        optimizer.build({"w": w})

        def step():
            rows = tables.dequeue()
            tables.apply_gradients([2.0 * row for row in rows])
            optimizer.apply([2.0 * w], [w])

        return tracing.trace(strategy, step)

    program = in_tpu_strategy(0.125, make)
    (send,) = of_type(program, "SendTPUEmbeddingGradients")
    assert send.node.attr["NN"].i == 1
    (counted,) = of_type(program, "AssignAddVariableOp")
    by_name = {o.node.name: o for o in program.operations}
    before, waiting = set(), [send.sources[-1]]
    while waiting:
        name = waiting.pop()
        if name in by_name:
            before.add(name)
            waiting += by_name[name].sources
    iterations = counted.sources[0]
    reads = {name for name in before if iterations in by_name[name].sources}
    assert reads and {f"^{name}" for name in reads} <= {*counted.node.input}
    config = tpu_embedding_configuration_pb2.TPUEmbeddingConfiguration()
    config.ParseFromString(send.node.attr["config"].s)
    for table in config.table_descriptor:
        parameters = table.optimization_parameters
        assert parameters.learning_rate.WhichOneof("learning_rate") == "dynamic"
        assert parameters.weight_decay_factor == 0.125
        assert parameters.multiply_weight_decay_factor_by_learning_rate
        assert parameters.gradient_clipping_limits.upper.value == 0.5
        assert parameters.adam.use_non_lazy_adam
        assert not parameters.adam.use_sum_inside_sqrt


@pytest.mark.parametrize("decay", [0.0, 0.125])
def test_sparse_cores_take_no_decay(monkeypatch, decay):
    def make(strategy, optimizer, features):
        monkeypatch.setattr(
            type(strategy.extended),
            "tpu_hardware_feature",
            types.SimpleNamespace(num_embedding_devices_per_chip=4),
        )
        return embedding_api.TPUEmbeddingV2(features)

    if not decay:
        in_tpu_strategy(decay, make)
        return
    with pytest.raises(NotImplementedError, match="weight_decay_factor"):
        in_tpu_strategy(decay, make)
