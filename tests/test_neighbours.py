"""Variables of every kind of library: the right numbers, and checkpoints."""

import keras
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

import helpers
import tf_adamw
from helpers import both_modes
from numpy_adamw import NumpyAdamW

INPUTS = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)


class Affine(tf.Module):
    """One layer as a plain tf.Module."""

    def __init__(self):
        super().__init__()
        self.w = tf.Variable(
            np.linspace(0.5, 1.5, 6).reshape(3, 2), dtype=tf.float32
        )
        self.b = tf.Variable([0.5, -0.5])

    def __call__(self, inputs):
        return tf.tanh(inputs @ self.w + self.b)


def keras_3_model():
    # Named: Keras numbers what it names itself across all models of a process.
    dense = keras.layers.Dense(2, "tanh", name="dense")
    model = keras.Sequential([dense], name="model")
    model.build((None, 3))
    return model


def tf_keras_model():
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, "tanh")])
    model.build((None, 3))
    return model


def sonnet_module():
    module = snt.nets.MLP([4, 2], activation=tf.tanh)
    module(INPUTS)
    return module


MODELS = {
    "tf.Module": Affine,
    "Keras 3": keras_3_model,
    "tf_keras": tf_keras_model,
    "Sonnet": sonnet_module,
}
every_model = pytest.mark.parametrize("kind", MODELS)


def train(optimizer, model, steps, reference=None):
    """Steps on the model's own loss, of the reference likewise."""
    variables = list(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(INPUTS) - 0.25) ** 2)
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss, gradients

    losses = []
    for _ in range(steps):
        loss, gradients = step()
        losses.append(float(loss))
        if reference is not None:
            reference.apply(dict(enumerate(g.numpy() for g in gradients)))
    return losses


def weights(model):
    return [np.array(v.numpy()) for v in model.trainable_variables]


@both_modes
@every_model
def test_model_trains(kind, jit_compile):
    model = MODELS[kind]()
    optimizer = tf_adamw.AdamW(0.01, jit_compile=jit_compile)
    optimizer.build(model)
    reference = NumpyAdamW(dict(enumerate(weights(model))), learning_rate=0.01)
    losses = train(optimizer, model, 10, reference)
    assert losses[-1] < losses[0]
    for number, value in enumerate(weights(model)):
        expected = reference.weights[number]
        np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-7)


@both_modes
@every_model
def test_model_resumes(kind, jit_compile, tmp_path):
    model = MODELS[kind]()
    optimizer = tf_adamw.AdamW(0.01, jit_compile=jit_compile)
    optimizer.build(model)
    train(optimizer, model, 3)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.save(tmp_path / "checkpoint")
    train(optimizer, model, 3)
    expected = weights(model)
    model = MODELS[kind]()
    optimizer = tf_adamw.AdamW(0.01, jit_compile=jit_compile)
    optimizer.build(model)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    checkpoint.restore(path).assert_existing_objects_matched()
    train(optimizer, model, 3)
    for value, goal in zip(weights(model), expected, strict=True):
        np.testing.assert_array_equal(value, goal)


@every_model
def test_exclusion_by_name(kind):
    """Every library's biases are found by a pattern on their keys."""
    model = MODELS[kind]()
    pattern = "b$" if kind in ("tf.Module", "Sonnet") else "bias$"
    optimizer = tf_adamw.AdamW(0.5, exclude_from_weight_decay=[pattern])
    optimizer.build(model)
    before = weights(model)
    zeros = [tf.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    for old, new in zip(before, weights(model), strict=True):
        factor = 1 - 0.5 * 0.004 if old.ndim > 1 else 1.0
        np.testing.assert_allclose(new, old * factor, rtol=2e-7)


@both_modes
def test_plain_variables(rng, jit_compile):
    start = helpers.random_weights(rng, helpers.SHAPES)
    variables = [tf.Variable(w) for w in start.values()]
    optimizer = tf_adamw.AdamW(jit_compile=jit_compile)
    with pytest.warns(UserWarning, match="_1"):
        optimizer.build(variables)
    reference = NumpyAdamW(start)
    for _ in range(5):
        gradients = helpers.random_gradients(rng, start)
        optimizer.apply(helpers.to_gradients(gradients.values()), variables)
        reference.apply(gradients)
    for variable, expected in zip(
        variables, reference.weights.values(), strict=True
    ):
        np.testing.assert_allclose(variable, expected, rtol=1e-6)


@both_modes
@pytest.mark.parametrize("build_first", [True, False])
def test_tfp_minimize(build_first, jit_compile):
    x = tf.Variable([1.0, -2.0], name="x")
    y = tf.Variable(0.5, name="y")
    reference = NumpyAdamW({"x": x.numpy(), "y": 0.5}, learning_rate=0.01)
    optimizer = tf_adamw.AdamW(0.01, jit_compile=jit_compile)
    if build_first:
        optimizer.build([x, y])
    losses = tfp.math.minimize(
        lambda: tf.reduce_sum((x - 3.0) ** 2) + (y - 1.0) ** 2,
        num_steps=20,
        optimizer=optimizer,
        trainable_variables=[x, y],
    )
    for _ in range(20):
        at = reference.weights
        reference.apply({"x": 2 * (at["x"] - 3), "y": 2 * (at["y"] - 1)})
    assert losses.shape == (20,)
    assert optimizer.iterations == 20
    for key, variable in (("x", x), ("y", y)):
        expected = reference.weights[key]
        np.testing.assert_allclose(variable, expected, rtol=1e-6)


def test_keras_keys_are_paths():
    model = keras_3_model()
    optimizer = tf_adamw.AdamW()
    optimizer.build(model.trainable_variables)
    for variable in model.trainable_variables:
        assert variable.path in optimizer.summary()


@both_modes
@pytest.mark.parametrize("kind", ["Keras 3", "tf_keras"])
def test_keras_variables_as_hyperparameters_stay_live(kind, jit_compile):
    make = {
        "Keras 3": lambda x: keras.Variable(x, trainable=False),
        "tf_keras": lambda x: tf_keras.backend.variable(x),
    }[kind]
    start = {"kernel": np.float32([8.0, -9.0]), "bias": np.float32([7.0])}
    settings = {
        "learning_rate": [0.125, 0.5],
        "weight_decay": [0.25, 0.0],
        "beta_1": [0.5, 0.75],
        "beta_2": [0.875, 0.5],
        "epsilon": [0.5, 0.25],
    }
    held = {name: make(first) for name, (first, _) in settings.items()}
    factor = make(0.5)
    optimizer = tf_adamw.AdamW(
        learning_rate_multipliers={"kernel": factor},
        jit_compile=jit_compile,
        **held,
    )
    variables = helpers.as_variables(start)
    optimizer.build(variables)
    reference = NumpyAdamW(
        start,
        learning_rate_multipliers={"kernel": 0.5},
        **{name: first for name, (first, _) in settings.items()},
    )

    def step_and_compare():
        gradients = {"kernel": np.float32([1.0, -2.0]), "bias": [0.5]}
        optimizer.apply(list(gradients.values()))
        reference.apply(gradients)
        for key, variable in variables.items():
            expected = reference.weights[key]
            np.testing.assert_allclose(variable, expected, rtol=1e-6)

    step_and_compare()
    for name, (_, second) in settings.items():
        held[name].assign(second)
        setattr(reference, name, second)
        step_and_compare()
    factor.assign(0.0)
    reference.multipliers["kernel"] = 0.0
    step_and_compare()


def operations_of_a_step(make_optimizer, count):
    variables = [keras.Variable([1.0], name=f"w{i}") for i in range(count)]
    optimizer = make_optimizer()
    optimizer.build(variables)
    step = tf.function(lambda gradients: optimizer.apply(gradients, variables))
    function = step.get_concrete_function([tf.TensorSpec([1])] * count)
    return len(helpers.operations(function))


@both_modes
def test_half_of_the_operations_of_keras(jit_compile):
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 100)

    def per_variable(make_optimizer):
        few, many = (operations_of_a_step(make_optimizer, n) for n in (10, 20))
        return (many - few) / 10

    ours = per_variable(
        lambda: tf_adamw.AdamW(schedule, jit_compile=jit_compile)
    )
    assert 2 * ours <= per_variable(lambda: keras.optimizers.AdamW(schedule))


@pytest.mark.parametrize("aggregation", ["mean", "none"])
def test_sonnet_replicator(aggregation):
    """Sonnet's strategy, whose variables are ON_READ; reduced by it or us."""
    strategy = snt.distribute.Replicator(
        ["/cpu:0", "/cpu:1"],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    single = sonnet_module()
    with strategy.scope():
        module = sonnet_module()
        optimizer = tf_adamw.AdamW(0.01, aggregation=aggregation)
    for ours, theirs in zip(module.variables, single.variables, strict=True):
        ours.assign(theirs)
    optimizer.build(module)

    @tf.function
    def step(inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((module(inputs) - 0.25) ** 2)
        variables = module.trainable_variables
        gradients = tape.gradient(loss, variables)
        if aggregation == "none":
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce("mean", gradients)
        optimizer.apply(gradients, variables)

    halves = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(
            np.split(INPUTS, 2)[context.replica_id_in_sync_group]
        )
    )
    for _ in range(5):
        strategy.run(step, args=(halves,))
    train(tf_adamw.AdamW(0.01), single, 5)
    for ours, expected in zip(module.variables, weights(single), strict=True):
        one, other = strategy.experimental_local_results(ours)
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, expected, rtol=2e-6, atol=2e-7)
