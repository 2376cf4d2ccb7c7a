"""What the weight decay is multiplied by, against formulas and papers."""

import json

import numpy as np
import pytest
import tensorflow as tf

import helpers
import strategies
import tf_adamw
from error_bounds import ErrorBound
from helpers import LinearDecay, Pair, both_modes
from numpy_adamw import NumpyAdamW
from strategies import ReplicaPair

pytestmark = pytest.mark.core

COUPLINGS = ("learning_rate", "schedule", "none")
every_coupling = pytest.mark.parametrize("coupling", COUPLINGS)


@pytest.fixture
def weights(rng):
    return helpers.random_weights(rng, helpers.SHAPES)


def options_of(coupling, base=2.0**-5):
    base = {"base_learning_rate": base} if coupling == "schedule" else {}
    return {"decay_coupling": coupling, **base}


def train(pair, rng, steps, dtype="float32"):
    """Steps whose errors are within the bound."""
    bound = ErrorBound(pair, dtype)
    weights = helpers.values(pair.variables)
    for _ in range(steps):
        gradients = helpers.random_gradients(rng, weights)
        if pair.step(gradients)[1][0]:
            bound.add_update()
    bound.check(fused=pair.optimizer.jit_compile is False)


@both_modes
@every_coupling
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("steps", [None, 2])
def test_schedules_and_groups(rng, steps, dtype, coupling, jit_compile):
    """Both schedules fall, exactly; a multiplier scales the decay, too."""
    weights = helpers.random_weights(rng, helpers.SHAPES, dtype)
    pair = Pair(
        weights,
        jit_compile,
        learning_rate=LinearDecay(),
        weight_decay=LinearDecay(2.0**-3),
        gradient_accumulation_steps=steps,
        learning_rate_multipliers={"kernel": 0.5},
        weight_decay_multipliers={"e": 0.25, "bias": 0.0},
        use_ema=True,
        **options_of(coupling),
    )
    train(pair, rng, 12, dtype)


@both_modes
@every_coupling
def test_bfloat16(rng, coupling, jit_compile):
    shapes = {"kernel": (3, 5), "bias": (5,)}
    weights = helpers.random_weights(rng, shapes, "bfloat16")
    options = {"learning_rate": 0.125, "weight_decay": 0.25}
    options |= options_of(coupling, 0.25)
    pair = Pair(weights, jit_compile, **options)
    for _ in range(6):
        pair.train(rng, 1)
        for key, variable in pair.variables.items():
            expected = pair.reference.weights[key]
            actual = variable.numpy().astype(np.float64)
            unit = 2.0**-7 * 2.0 ** np.floor(np.log2(np.abs(expected)))
            assert np.all(np.abs(actual - expected) <= 0.501 * unit)
            pair.reference.weights[key] = actual


def addons(weight, gradient, m, v, t, lr, wd):
    """`tfa.optimizers.AdamW`: the variable decays, then Adam updates it."""
    weight = weight - wd * weight
    m = 0.9 * m + 0.1 * gradient
    v = 0.999 * v + 0.001 * gradient**2
    rate = lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    return weight - rate * m / (np.sqrt(v) + 1e-12), m, v


def pytorch(weight, gradient, m, v, t, lr, wd):
    """`torch.optim.AdamW`, as its documentation has it."""
    weight = weight - lr * wd * weight
    m = 0.9 * m + 0.1 * gradient
    v = 0.999 * v + 0.001 * gradient**2
    m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
    return weight - lr * m_hat / (np.sqrt(v_hat) + 1e-12), m, v


def paper(weight, gradient, m, v, t, lr, wd):
    """Algorithm 2 of Loshchilov and Hutter: eta is 1 at the base rate, 2^-5."""
    eta = lr / 2.0**-5
    new, m, v = pytorch(weight, gradient, m, v, t, 2.0**-5, 0)
    return weight + eta * (new - weight - wd * weight), m, v


FORMULAS = {"none": addons, "learning_rate": pytorch, "schedule": paper}


@both_modes
@every_coupling
@pytest.mark.parametrize("rate", [0.0, 2.0**-6])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_formulas_of_others(rng, weights, scale, rate, coupling, jit_compile):
    """At a rate of zero and with gradients of zero, too."""
    optimizer = tf_adamw.AdamW(
        rate,
        2.0**-4,
        epsilon=1e-12,
        jit_compile=jit_compile,
        **options_of(coupling),
    )
    variables = helpers.as_variables(weights)
    optimizer.build(variables)
    state = {
        k: (w.astype(np.float64), np.zeros_like(w), np.zeros_like(w))
        for k, w in weights.items()
    }
    for t in range(1, 9):
        gradients = helpers.random_gradients(rng, weights, scale)
        optimizer.apply(helpers.to_gradients(gradients.values()))
        for key, gradient in gradients.items():
            state[key] = FORMULAS[coupling](
                *(state[key][:1]),
                gradient.astype(np.float64),
                *state[key][1:],
                t,
                rate,
                2.0**-4,
            )
    for key, variable in variables.items():
        np.testing.assert_allclose(variable.numpy(), state[key][0], rtol=3e-6)
        if rate == 0 and coupling != "none":
            assert variable.numpy().tobytes() == weights[key].tobytes()
        moved = optimizer.get_slot(variable, "momentum").numpy().any()
        assert moved == (scale > 0)
    assert int(optimizer.iterations) == 8


@both_modes
@pytest.mark.parametrize("rate", [0.125, tf.constant(0.125), "variable"])
def test_base_is_the_number_that_was_given(rng, weights, rate, jit_compile):
    """Whatever the rate is assigned later."""
    if isinstance(rate, str):
        rate = tf.Variable(0.125)
    options = {"weight_decay": 0.25, "decay_coupling": "schedule"}
    pair = Pair(weights, jit_compile, learning_rate=0.125, **options)
    pair.reference.base_learning_rate = 0.125
    pair.optimizer = tf_adamw.AdamW(rate, jit_compile=jit_compile, **options)
    pair.optimizer.build(pair.variables)
    for number in (0.125, 0.03125, 0.5):
        pair.optimizer.learning_rate = pair.reference.learning_rate = number
        pair.train(rng, 1)
    pair.optimizer.weight_decay = pair.reference.weight_decay = 0.0625
    pair.train(rng, 1)
    assert pair.error() <= 5e-6
    config = json.loads(json.dumps(pair.optimizer.get_config()))
    assert config["learning_rate"] == 0.5
    assert config["base_learning_rate"] == 0.125
    assert config["decay_coupling"] == "schedule"
    pair.optimizer = tf_adamw.AdamW.from_config(config)
    pair.optimizer.build(pair.variables)
    values = helpers.values(pair.variables)
    pair.reference = NumpyAdamW(values, **options, base_learning_rate=0.125)
    pair.reference.learning_rate, pair.reference.weight_decay = 0.5, 0.0625
    pair.train(rng, 1)
    assert pair.error() <= 5e-6


class Named:
    """A schedule with the attributes of one of Keras's."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __call__(self, step):
        return tf.constant(2.0**-6)


@pytest.mark.parametrize(
    ("attributes", "base"),
    [
        ({"initial_learning_rate": 0.5}, 0.5),
        ({"initial_learning_rate": 0.0, "warmup_target": 0.25}, 0.25),
        ({"initial_learning_rate": 0.5, "warmup_target": None}, 0.5),
        ({"values": [0.125, 0.75, 0.25]}, 0.75),
        ({"values": (0.125, 0.5)}, 0.5),
    ],
)
def test_base_that_a_schedule_names(attributes, base):
    optimizer = tf_adamw.AdamW(Named(**attributes), decay_coupling="schedule")
    assert optimizer.base_learning_rate == base
    told = {"base_learning_rate": 0.0625, "decay_coupling": "schedule"}
    optimizer = tf_adamw.AdamW(Named(**attributes), **told)
    assert optimizer.base_learning_rate == 0.0625


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": lambda: 0.1},
        {"learning_rate": LinearDecay()},
        {"learning_rate": Named(initial_learning_rate=0.0)},
        {"learning_rate": Named(values=None)},
        {"learning_rate": 0.0},
        *(
            {"base_learning_rate": base}
            for base in (0.0, -1.0, float("nan"), float("inf"), "0.1", True)
        ),
        *(
            {"decay_coupling": other, "base_learning_rate": 0.1}
            for other in ("none", "learning_rate")
        ),
    ],
    ids=range(13),
)
def test_bases_that_are_refused(options):
    with pytest.raises(ValueError, match="base_learning_rate") as refusal:
        tf_adamw.AdamW(**{"decay_coupling": "schedule", **options})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("word", ["lr", "", None, True, ["none"]], ids=str)
def test_couplings_that_are_refused(word):
    with pytest.raises(ValueError, match=r"^decay_coupling .*'schedule'"):
        tf_adamw.AdamW(decay_coupling=word)


@every_coupling
@pytest.mark.parametrize("mode", ["auto", False])
def test_two_replicas(rng, weights, mode, coupling):
    pair = ReplicaPair(
        strategies.named("mirrored_2"),
        weights,
        mode,
        learning_rate=LinearDecay(),
        weight_decay=2.0**-3,
        learning_rate_multipliers={"kernel": 0.5},
        weight_decay_multipliers={"bias": 2.0},
        **options_of(coupling),
    )
    pair.train(rng, 6)
    pair.check()
    pair.optimizer.weight_decay = pair.reference.weight_decay = 0.0
    pair.train(rng, 2)
    pair.check()


@every_coupling
@pytest.mark.parametrize(
    "mode", [pytest.param("auto", marks=pytest.mark.slow), False]
)
@pytest.mark.parametrize(
    ("rate", "scale"), [(0.0, 0.0), (0.0, 1.0), (2.0**-6, 0.0)]
)
def test_nothing_but_decay_on_two_replicas(
    rng, weights, rate, scale, mode, coupling
):
    """At a rate of zero or with gradients of zero."""
    options = {"learning_rate": rate, "weight_decay": 2.0**-4}
    pair = ReplicaPair(
        strategies.named("mirrored_2"),
        weights,
        mode,
        **options,
        **options_of(coupling),
    )
    pair.train(rng, 8, scale)
    pair.check()
    factor = {"learning_rate": rate, "schedule": rate / 2.0**-5, "none": 1.0}
    kept = (1 - factor[coupling] * 2.0**-4) ** 8
    for key, variable in pair.variables.items():
        for copy in pair.copies(variable):
            np.testing.assert_allclose(copy, kept * weights[key], 2e-6)
            if kept == 1:
                assert copy.tobytes() == weights[key].tobytes()
        assert pair.slot(key, "momentum").any() == (scale > 0)
