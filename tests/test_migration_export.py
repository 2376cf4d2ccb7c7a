"""The state is given to Keras and to PyTorch, which go on with it."""

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from export_training import OPTIONS, ORDER, SHAPES, Trained
from next_step import Compared, float32_corrections
from tf_adamw import migration
from tf_adamw.migration import export_state


class InKeras:
    """Variables of Keras, and its AdamW."""

    def __init__(self, trained, arguments):
        weights = trained.weights()
        self.variables = {
            key: keras.Variable(weights[key], dtype=weights[key].dtype.name)
            for key in ORDER
        }
        self.optimizer = keras.optimizers.AdamW(**arguments)
        excluded = [
            p.key for p in trained.optimizer.parameters if not p.decayed
        ]
        if excluded:
            self.optimizer.exclude_from_weight_decay(
                var_list=[self.variables[key] for key in excluded]
            )
        self.optimizer.build(list(self.variables.values()))

    def load(self, path):
        with h5py.File(path) as file:
            self.optimizer.load_own_variables(file["optimizer/vars"])

    def step(self, gradients):
        self.optimizer.apply([tf.constant(gradients[key]) for key in ORDER])
        return {key: v.numpy() for key, v in self.variables.items()}


@pytest.mark.parametrize("option", OPTIONS)
def test_keras_goes_on(rng, tmp_path, option):
    trained = Trained(rng, **OPTIONS[option])
    path = tmp_path / "state.weights.h5"
    arguments = export_state(trained.optimizer, path, "keras", keys=ORDER)
    there = InKeras(trained, arguments)
    there.load(path)
    assert int(there.optimizer.iterations) == 7
    o = trained.optimizer
    corrections = float32_corrections(o.beta_1, o.beta_2, 8)
    if option in ("clipped", "everything"):
        # The norm of at most 21 squares, and the division by it, in both.
        corrections += 2 * 24 * helpers.UNIT_ROUNDOFF["float32"]
    trained.check(there.step, "to Keras AdamW, float32", corrections)


def test_keras_goes_on_averaging(rng, tmp_path):
    trained = Trained(rng, use_ema=True, ema_momentum=0.75)
    path = tmp_path / "state.weights.h5"
    arguments = export_state(trained.optimizer, path, "keras", keys=ORDER)
    there = InKeras(trained, arguments)
    there.load(path)
    gradients = trained.gradients()
    trained.step(gradients)
    there.step(gradients)
    trained.optimizer.finalize_variable_values()
    there.optimizer.finalize_variable_values(list(there.variables.values()))
    for key, average in trained.weights().items():
        # Updates are 1e-3; those of the two are equal within 2e-5.
        np.testing.assert_allclose(
            there.variables[key].numpy(), average, rtol=2e-7, atol=2e-8
        )


def test_keras_goes_on_where_epsilon_matters(rng, tmp_path):
    trained = Trained(rng, 4, scale=1e-7, beta_1=0.8, beta_2=0.95)
    path = tmp_path / "state.weights.h5"
    arguments = export_state(trained.optimizer, path, "keras", keys=ORDER)
    there = InKeras(trained, arguments)
    there.load(path)
    label = "to Keras AdamW, gradients of 1e-7, float32"
    trained.check(there.step, label, float32_corrections(0.8, 0.95, 5))


def schedule(step):
    return 1e-3 / (1.0 + tf.cast(step, tf.float32))


def test_keras_has_a_schedule_for_a_schedule(rng, tmp_path):
    class InverseTime(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return schedule(step)

    trained = Trained(rng, learning_rate=schedule)
    path = tmp_path / "state.weights.h5"
    arguments = export_state(trained.optimizer, path, "keras", keys=ORDER)
    assert arguments["learning_rate"] is schedule
    there = InKeras(trained, {**arguments, "learning_rate": InverseTime()})
    there.load(path)
    trained.check(there.step, None, float32_corrections(0.9, 0.999, 8))


@pytest.mark.parametrize("decay", [lambda: 0.5, lambda step: 0.5])
def test_keras_has_numbers_for_other_callables(rng, tmp_path, decay):
    trained = Trained(rng, weight_decay=decay, beta_1=lambda: 0.75)
    path = tmp_path / "state.weights.h5"
    arguments = export_state(trained.optimizer, path, "keras", keys=ORDER)
    assert (arguments["weight_decay"], arguments["beta_1"]) == (0.5, 0.75)
    there = InKeras(trained, arguments)
    assert there.optimizer.weight_decay == 0.5
    there.load(path)
    trained.check(there.step, None, float32_corrections(0.75, 0.999, 8))


def keras_model(arguments, wrap=lambda optimizer: optimizer):
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(5, name="dense")]
    )
    model.compile(wrap(keras.optimizers.AdamW(**arguments)), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("compiled", [True, False])
def test_a_file_of_keras_is_completed(rng, tmp_path, compiled):
    """`model.load_weights` has the weights and the state then."""
    path = str(tmp_path / "model.weights.h5")
    model = keras_model({"learning_rate": 1.0, "amsgrad": True})
    if not compiled:
        model = keras.Sequential([keras.Input((3,)), *model.layers])
    model.save_weights(path)
    kernel, bias = model.trainable_variables
    optimizer = tf_adamw.AdamW(0.01, weight_decay=0.1)
    optimizer.build({"kernel": kernel, "bias": bias})
    weights = [v.numpy() for v in (kernel, bias)]
    for _ in range(3):
        gradients = [rng.standard_normal(w.shape) for w in weights]
        optimizer.apply([tf.constant(g, tf.float32) for g in gradients])
    arguments = export_state(optimizer, path, "keras")
    other = keras_model(arguments)
    other.load_weights(path)
    for variable, weight in zip(
        other.trainable_variables, weights, strict=True
    ):
        np.testing.assert_array_equal(variable.numpy(), weight)
    rate, *slots = [v.numpy() for v in other.optimizer.variables[1:]]
    assert rate == np.float32(0.01)
    expected = [
        optimizer.get_slot(v, name)
        for v in (kernel, bias)
        for name in ("momentum", "velocity")
    ]
    for slot, value in zip(slots, expected, strict=True):
        np.testing.assert_array_equal(slot, value)
    assert int(other.optimizer.iterations) == 3


def test_keras_goes_on_scaling_the_loss(rng, tmp_path):
    """What `compile` makes of it in a float16 model; the scale is Keras's."""
    path = str(tmp_path / "model.weights.h5")
    variables = helpers.as_variables(
        helpers.random_weights(rng, {"kernel": (3, 5), "bias": (5,)})
    )
    optimizer = tf_adamw.AdamW(0.01)
    optimizer.build(variables)

    def gradients():
        return helpers.random_gradients(rng, helpers.values(variables))

    for _ in range(5):
        optimizer.apply(helpers.to_gradients(gradients().values()))
    model = keras_model({}, keras.optimizers.LossScaleOptimizer)
    model.optimizer.dynamic_scale.assign(512.0)
    model.set_weights([v.numpy() for v in variables.values()])
    model.save_weights(path)
    arguments = export_state(optimizer, path, "keras")
    assert migration.read("keras", path).iterations == 5
    other = keras_model(arguments, keras.optimizers.LossScaleOptimizer)
    other.load_weights(path)
    assert float(other.optimizer.dynamic_scale) == 512.0
    compared = Compared(optimizer, variables)
    for t in (6, 7, 8):
        new = gradients()
        other.optimizer.apply([512.0 * tf.constant(g) for g in new.values()])
        weights = [v.numpy() for v in other.trainable_variables]
        corrections = float32_corrections(0.9, 0.999, t)
        theirs = dict(zip(variables, weights, strict=True))
        compared.step(new, theirs, corrections=corrections)


def test_a_replicated_optimizer(rng, mirrored, tmp_path):
    """The file is the one of the same training on one replica."""
    weights = helpers.random_weights(rng, SHAPES)
    gradients = helpers.random_gradients(rng, weights)
    files = []
    for strategy in (mirrored, tf.distribute.get_strategy()):
        with strategy.scope():
            variables = helpers.as_variables(weights)
        optimizer = tf_adamw.AdamW(use_ema=True, aggregation="none")
        optimizer.build(variables)
        strategy.run(
            lambda o=optimizer, v=variables: o.apply(
                helpers.to_gradients(gradients.values()), list(v.values())
            )
        )
        path = tmp_path / f"{len(files)}.weights.h5"
        export_state(optimizer, path, "keras")
        with h5py.File(path) as file:
            held = file["optimizer/vars"]
            files.append([held[str(i)][()] for i in range(len(held))])
    assert len(files[0]) == 2 + 3 * len(SHAPES)
    for one, two in zip(*files, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("options", "arguments", "words"),
    [
        ({}, {"target": "jax"}, "target must be one of keras, torch"),
        ({}, {"keys": ["bias", "scale"]}, "'kernel' is in one only"),
        ({}, {"keys": [*ORDER, "bias"]}, "3 keys once, it has 4"),
        ({}, {"transpose": {"embedding": (1, 0)}}, "'embedding'.* no key"),
        ({}, {"transpose": {"kernel": (0, 0)}}, "'kernel' .* each axis"),
        ({}, {"transpose": {"(": (1, 0)}}, r"'\(' is no regular expression"),
        ({}, {"path": "state.h5"}, r"end with \.weights\.h5"),
        ({}, {"path": "none/a.weights.h5"}, "no directory '.*/none'"),
        ({}, {"path": "."}, "path: .* is a directory"),
        (
            {"learning_rate_multipliers": {"bias": 0.5}},
            {},
            "no learning rate multipliers, and 'bias' has 0.5",
        ),
    ],
)
def test_refused(rng, tmp_path, options, arguments, words):
    trained = Trained(rng, 0, **options)
    arguments = {"path": "a.weights.h5", "target": "keras", **arguments}
    path = tmp_path / arguments.pop("path")
    helpers.refused(
        trained,
        lambda: export_state(trained.optimizer, path, **arguments),
        words,
    )
    assert not list(tmp_path.iterdir())


def test_refused_within_a_window(rng, tmp_path):
    trained = Trained(rng, 0, gradient_accumulation_steps=3)
    trained.step(trained.gradients())
    for target in ("keras", "torch"):
        with pytest.raises(ValueError, match="1 steps of an unfinished window"):
            export_state(trained.optimizer, tmp_path / "a", target)


def test_refused_before_build_and_in_a_function(rng, tmp_path):
    with pytest.raises(ValueError, match="after the optimizer's build"):
        export_state(tf_adamw.AdamW(), tmp_path / "a", "torch")
    trained = Trained(rng, 0)
    with pytest.raises(ValueError, match="must be called outside"):
        tf.function(
            lambda: export_state(trained.optimizer, tmp_path / "a", "torch"),
            autograph=False,
        )()


def test_what_is_no_file_of_keras_is_kept(rng, tmp_path):
    path = tmp_path / "notes.weights.h5"
    path.write_text("important")
    with pytest.raises(ValueError, match=r"'notes\.weights\.h5' is no HDF5"):
        export_state(Trained(rng, 0).optimizer, path, "keras")
    assert path.read_text() == "important"
    assert [p.name for p in tmp_path.iterdir()] == ["notes.weights.h5"]


def test_what_a_link_leads_to_is_written(rng, tmp_path):
    file, link = tmp_path / "file", tmp_path / "link.weights.h5"
    link.symlink_to(file)
    trained = Trained(rng, 1)
    export_state(trained.optimizer, link, "keras")
    assert link.is_symlink()
    before = file.read_bytes()
    trained.step(trained.gradients())
    export_state(trained.optimizer, link, "keras")
    assert link.is_symlink()
    assert file.read_bytes() != before
    assert migration.read("keras", file).iterations == 2
