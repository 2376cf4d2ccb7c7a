"""What several test files share."""

import re

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import tf_adamw
from numpy_adamw import NumpyAdamW


def _host_has_xla():
    """False for the tensorflow-tpu wheel, whose XLA compiles for TPUs only."""
    try:
        tf.function(lambda x: x + 1.0, jit_compile=True)(tf.constant(1.0))
    except tf.errors.OpError:
        return False
    return True


JIT_MODES = [True, False] if _host_has_xla() else [False]
both_modes = pytest.mark.parametrize("jit_compile", JIT_MODES)
# Where another test of the file compiles: that is most of the time that one
# takes.
compiled_is_slow = pytest.mark.parametrize(
    "jit_compile",
    [
        pytest.param(mode, marks=pytest.mark.slow if mode else ())
        for mode in JIT_MODES
    ],
)

# Half the distance between neighbours, relative to the larger number.
UNIT_ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}
NUMPY_DTYPE = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
SHAPES = {"kernel": (3, 5), "bias": (5,), "scale": ()}
WORST_ERRORS = {}


def record(label, error):
    """Keeps the worst error of a label, printed when the tests end."""
    WORST_ERRORS[label] = max(WORST_ERRORS.get(label, 0.0), float(error))


def relative_error(actual, expected):
    """The largest elementwise |actual - expected| / |expected|."""
    actual = np.asarray(actual, np.float64)
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    both_zero = (actual == 0) & (expected == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(actual - expected) / np.abs(expected)
    return np.max(np.where(both_zero, 0.0, error), initial=0.0)


def random_weights(rng, shapes, dtype="float32"):
    """Weights of order one, 0.5 <= |w| < 2, that `dtype` holds exactly."""
    weights = {}
    for key, shape in shapes.items():
        size = rng.uniform(0.5, 2.0, shape)
        sign = rng.choice([-1.0, 1.0], shape)
        weights[key] = np.asarray(size * sign).astype(NUMPY_DTYPE[dtype])
    return weights


def random_gradients(rng, weights, scale=1.0):
    """One normally distributed gradient per weight, in the weights' dtype."""
    return {
        key: np.asarray(scale * rng.standard_normal(w.shape)).astype(w.dtype)
        for key, w in weights.items()
    }


def as_variables(weights):
    """{key: tf.Variable} with the given values and names."""
    return {k: tf.Variable(w, name=k) for k, w in weights.items()}


def values(variables):
    """{key: NumPy array} of {key: variable}."""
    return {k: v.numpy() for k, v in variables.items()}


def snapshot(optimizer, variables=()):
    """The bytes of all state of the optimizer and of the given variables."""
    return [
        (v.name, v.dtype, v.shape, v.numpy().tobytes())
        for v in [*optimizer.variables, *variables]
    ]


def refused(pair, call, *words):
    """Asserts one line with the words, and state and weights as before."""
    before = snapshot(pair.optimizer, pair.variables.values())
    with pytest.raises((ValueError, TypeError)) as refusal:
        call()
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), message
    after = snapshot(pair.optimizer, pair.variables.values())
    assert after == before


def all_nodes(graph):
    """The nodes of a GraphDef and those of each function in its library."""
    nested = [n for f in graph.library.function for n in f.node_def]
    return [*graph.node, *nested]


def operations(function):
    """The operations of a concrete function, of nested functions too."""
    return [node.op for node in all_nodes(function.graph.as_graph_def())]


def to_gradients(arrays):
    """A list of tensors; None stays None."""
    return [None if a is None else tf.constant(a) for a in arrays]


def checkpoint_of(optimizer, variables):
    """A checkpoint of an optimizer and its {key: variable}."""
    model = tf.train.Checkpoint(**variables)
    return tf.train.Checkpoint(model=model, optimizer=optimizer)


def checkpoint_values(path):
    """{key: array} of a checkpoint, without TensorFlow's own two entries."""
    reader = tf.train.load_checkpoint(path)
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    return {
        name.removesuffix(suffix): np.asarray(reader.get_tensor(name))
        for name in reader.get_variable_to_shape_map()
        if name.endswith(suffix) and not name.startswith("save_counter")
    }


class Pair:
    """The optimizer and the float64 reference, stepped side by side."""

    def __init__(self, weights, jit_compile, round_to=None, **options):
        self.variables = as_variables(weights)
        self.optimizer = tf_adamw.AdamW(jit_compile=jit_compile, **options)
        self.optimizer.build(self.variables)
        self.reference = NumpyAdamW(weights, round_to=round_to, **options)

    def step(self, gradients):
        """Applies {key: array or None} to both; returns both results."""
        result = self.optimizer.apply(
            to_gradients(gradients.values()),
            [self.variables[key] for key in gradients],
        )
        return result, self.reference.apply(gradients)

    def train(self, rng, steps, scale=1.0):
        """Random gradients for all variables, the given number of times."""
        weights = values(self.variables)
        for _ in range(steps):
            self.step(random_gradients(rng, weights, scale))

    def error(self):
        """The largest relative error of any weight."""
        return max(
            relative_error(variable.numpy(), self.reference.weights[key])
            for key, variable in self.variables.items()
        )

    def resumed(self, folder, jit_compile, **options):
        """A pair of other options, in the state that this one has saved.

        It takes over the reference: this pair is not to be stepped again.
        """
        checkpoint = checkpoint_of(self.optimizer, self.variables)
        path = checkpoint.save(folder / "checkpoint")
        zeros = {k: np.zeros_like(w) for k, w in values(self.variables).items()}
        other = Pair(zeros, jit_compile, **options)
        checkpoint_of(other.optimizer, other.variables).restore(path)
        changed = vars(other.reference)
        other.reference = self.reference
        for name in ("amsgrad", "use_ema", "ema_momentum", "window"):
            setattr(other.reference, name, changed[name])
        return other

    def check_moments(self, tolerance=2e-6, fused=None):
        """Asserts momentum and velocity, which show a factor on gradients.

        Relative to a variable's largest element: gradients may cancel. The
        fused path rounds a beta and subtracts it from one then.
        """
        if fused is None:
            mode = self.optimizer.jit_compile
            fused = (JIT_MODES[0] if mode == "auto" else mode) is False
        for key in self.variables:
            for name, beta in (
                ("momentum", self.reference.beta_1),
                ("velocity", self.reference.beta_2),
            ):
                expected = self.reference.slots[name][key]
                rounded = UNIT_ROUNDOFF["float32"] / (2 * (1 - beta))
                bound = tolerance + (rounded if fused else 0.0)
                scale = np.max(np.abs(expected), initial=0.0)
                error = np.abs(self.slot(key, name) - expected)
                assert np.all(error <= bound * scale), (key, name, error)

    def slot(self, key, name):
        """The value of one slot of the optimizer."""
        slot = self.optimizer.get_slot(self.variables[key], name)
        return np.array(slot, np.float64)


class LinearDecay:
    """start - slope * step, exact in float32 with these dyadic numbers.

    A schedule of the step, for tensors and for Python integers.
    """

    def __init__(self, start=2.0**-6, slope=2.0**-13):
        self.start = start
        self.slope = slope

    def __call__(self, step):
        if not isinstance(step, int):
            step = tf.cast(step, tf.float32)
        return self.start - self.slope * step


OPTIONS = {
    "plain": {},
    "amsgrad": {"amsgrad": True},
    "clipnorm": {"clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.25},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "ema": {"use_ema": True, "ema_momentum": 0.75},
    "ema_overwrite": {
        "use_ema": True,
        "ema_momentum": 0.75,
        "ema_overwrite_frequency": 3,
    },
    "loss_scale": {"loss_scale_factor": 1024.0},
    "dynamic_loss_scale": {
        "loss_scale_factor": tf_adamw.DynamicLossScale(
            initial=1024.0, growth_interval=3
        )
    },
    "accumulation": {"gradient_accumulation_steps": 2},
    "exclusion": {"exclude_from_weight_decay": ["bias", "scale"]},
    "multipliers": {"learning_rate_multipliers": {"kernel": 0.5, "e": 0.25}},
    "skip_nonfinite": {"skip_nonfinite": True},
    "schedule": {"learning_rate": LinearDecay()},
    "decay_schedule": {"weight_decay": LinearDecay(2.0**-3)},
    "everything": {
        "learning_rate": LinearDecay(),
        "weight_decay": 0.0625,
        "amsgrad": True,
        "global_clipnorm": 0.5,
        "use_ema": True,
        "ema_momentum": 0.75,
        "ema_overwrite_frequency": 3,
        "loss_scale_factor": 1024.0,
        "gradient_accumulation_steps": 2,
        "exclude_from_weight_decay": ["bias"],
        "learning_rate_multipliers": {"kernel": 0.5},
        "skip_nonfinite": True,
    },
}


def gradient_scale(options):
    """What gradients are multiplied by for these options."""
    factor = options.get("loss_scale_factor") or 1.0
    return getattr(factor, "initial", factor)


every_option = pytest.mark.parametrize("option", OPTIONS)
