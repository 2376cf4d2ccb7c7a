"""Distribution strategies to test on, and pairs that train on them.

What the replicas add up differs from the joined batch's gradient by the
rounding of the sum. The parts of one gradient have one sign here and do not
cancel: the sum of up to 4 is off by less than 4 u, relative. A window that is
restored from a checkpoint has been added up there and is split again: 4 u
more. Both add to the bound derived in error_bounds.py.
"""

import contextlib
import functools
import tempfile

import numpy as np
import tensorflow as tf

import helpers
import tf_adamw
from error_bounds import ErrorBound
from helpers import Pair
from numpy_adamw import NumpyAdamW

CENTRAL = tf.distribute.experimental.CentralStorageStrategy
CPUS = [f"/cpu:{number}" for number in range(4)]


def mirrored(count, **options):
    """A new MirroredStrategy, by default with TensorFlow's own collectives."""
    return tf.distribute.MirroredStrategy(CPUS[:count], **options)


def reducing_to_one(count):
    """A new MirroredStrategy whose reductions do not collide with others'."""
    operations = tf.distribute.ReductionToOneDevice()
    return mirrored(count, cross_device_ops=operations)


MAKERS = {
    "default": tf.distribute.get_strategy,
    "one_device": lambda: tf.distribute.OneDeviceStrategy("/cpu:1"),
    "mirrored_1": lambda: reducing_to_one(1),
    "mirrored_2": lambda: mirrored(2),
    "mirrored_4": lambda: reducing_to_one(4),
    "central_2": lambda: CENTRAL(CPUS[:2], "/cpu:0"),
}


@functools.cache
def named(name):
    """The process's one strategy of this name.

    The default collectives of two MirroredStrategy objects in one process
    collide: "mirrored_2" alone has them.
    """
    return MAKERS[name]()


def random_parts(rng, weights, count, scale=1.0):
    """{key: one random gradient per replica}, of one sign per element."""
    parts = {}
    for key, weight in weights.items():
        sign = rng.choice([-1.0, 1.0], weight.shape)
        size = scale * np.abs(rng.standard_normal((count, *weight.shape)))
        parts[key] = np.asarray(sign * size).astype(weight.dtype)
    return parts


class ReplicaPair(Pair):
    """An optimizer on the replicas of a strategy, and its reference.

    The reference gets what the gradients of all replicas are reduced to.
    """

    def __init__(
        self,
        strategy,
        weights,
        jit_compile,
        *,
        made_in_scope=True,
        built=True,
        round_to=None,
        aggregation="sum",
        **options,
    ):
        self.strategy = strategy
        self.count = strategy.num_replicas_in_sync
        self.aggregation = aggregation
        scope = strategy.scope() if made_in_scope else contextlib.nullcontext()
        with strategy.scope():
            self.variables = helpers.as_variables(weights)
        with scope:
            self.optimizer = tf_adamw.AdamW(
                jit_compile=jit_compile, aggregation=aggregation, **options
            )
            if built:
                self.optimizer.build(self.variables)
        self.reference = NumpyAdamW(weights, round_to=round_to, **options)
        dtype = next(iter(weights.values())).dtype.name
        self.bound = _SharedBound(self, dtype)
        self.held_outside = ()  # variables of the user's, of no strategy
        self._calls = {}

    def random_parts(self, rng, scale=1.0):
        """Gradients of all variables, for each replica."""
        weights = helpers.values(self.variables)
        parts = random_parts(rng, weights, self.count, scale)
        if self.aggregation == "none":
            parts = {k: np.stack([p[0]] * self.count) for k, p in parts.items()}
        return parts

    def joined(self, parts):
        """What the parts are to be reduced to, times the loss scale."""
        reduce = {"sum": np.sum, "mean": np.mean, "none": lambda p, _: p[0]}
        scale = self.reference.loss_scale
        return {
            key: scale
            * reduce[self.aggregation](np.asarray(part, np.float64), 0)
            for key, part in parts.items()
            if part is not None
        }

    def train_on(self, steps, way="function", whole=None):
        """Steps, each with {key: gradients of the replicas}, in one way.

        What the replicas have may itself be sums of a `whole` batch's parts,
        which the reference gets then.
        """
        stacked = {
            key: tf.constant(np.stack([parts[key] for parts in steps]))
            for key in steps[0]
        }
        keys = tuple(stacked)
        call = self._calls.get((way, keys))
        if call is None:
            call = self._calls[way, keys] = WAYS[way](self._run(way, keys))
        results = call(stacked, len(steps))
        for number, parts in enumerate(whole or steps):
            applied, norm = self.reference.apply(self.joined(parts))
            if applied:
                self.bound.add_update()
            if results is not None:
                self._check_result(results[number], applied, norm)

    def _run(self, way, keys):
        """`strategy.run` for the step of a number."""
        optimizer = self.optimizer
        variables = [self.variables[key] for key in keys]

        def step(stacked, number):
            context = tf.distribute.get_replica_context()
            place = (number, context.replica_id_in_sync_group)
            grads = [optimizer.scale_loss(stacked[k][place]) for k in keys]
            return optimizer.apply(grads, variables)

        if way == "run of a function":
            step = tf.function(step)
        return lambda *args: self.strategy.run(step, args)

    def _check_result(self, result, applied, norm):
        local = self.strategy.experimental_local_results
        verdicts = [bool(verdict) for verdict in local(result.applied)]
        assert set(verdicts) == {applied}
        if result.grad_norm is None:
            return
        norms = np.array(local(result.grad_norm))
        expected = norm if applied else np.nan
        np.testing.assert_allclose(norms, expected, rtol=1e-5)
        assert len({norm.tobytes() for norm in norms}) == 1

    def train(self, rng, steps, scale=1.0, way="function"):
        """Random gradients for all variables, the given number of times."""
        parts = [self.random_parts(rng, scale) for _ in range(steps)]
        self.train_on(parts, way)

    def step(self, gradients):
        """Refuses what `train_on` does."""
        raise NotImplementedError

    def saved(self, folder):
        """The path of a new checkpoint of the optimizer and the model."""
        checkpoint = helpers.checkpoint_of(self.optimizer, self.variables)
        return checkpoint.save(tempfile.mkdtemp(dir=folder) + "/checkpoint")

    def resumed_on(self, strategy, path, jit_compile, *, built=True, **options):
        """A pair on another strategy, in the state that this one has saved.

        It takes over the reference: this pair is not to be stepped again.
        """
        weights = helpers.values(self.variables)
        zeros = {key: np.zeros_like(w) for key, w in weights.items()}
        other = ReplicaPair(
            strategy, zeros, jit_compile, built=built, **options
        )
        checkpoint = helpers.checkpoint_of(other.optimizer, other.variables)
        status = checkpoint.restore(path)
        other.optimizer.build(other.variables)
        status.assert_consumed()
        window, other.reference = other.reference.window, self.reference
        other.reference.window = window
        other.bound, other.bound.pair = self.bound, other
        return other

    def copies(self, variable):
        """The values of all its copies, by replica."""
        local = self.strategy.experimental_local_results(variable)
        return [copy.numpy() for copy in local]

    def state(self):
        """All variables of the optimizer and of the model."""
        outside = {v.ref() for v in self.held_outside}
        state = [*self.optimizer.variables, *self.variables.values()]
        return [v for v in state if v.ref() not in outside]

    def check_copies(self):
        """Asserts that every replica has a copy, the same bits on all."""
        shared = isinstance(self.strategy, CENTRAL)
        for variable in self.state():
            first, *others = self.copies(variable)
            assert len(others) == (0 if shared else self.count - 1)
            if variable.synchronization == tf.VariableSynchronization.ON_READ:
                continue  # Each replica's own sum.
            for other in others:
                assert other.tobytes() == first.tobytes(), variable.name

    def check(self, label=None):
        """Asserts that all copies agree, within rounding of the reference."""
        self.check_copies()
        iterations = self.copies(self.optimizer.iterations)
        assert iterations[0] == self.reference.iterations
        mode = self.optimizer.jit_compile
        mode = helpers.JIT_MODES[0] if mode == "auto" else mode
        self.bound.check(fused=mode is False)
        if label is not None:
            helpers.record(label, self.error())


class _SharedBound(ErrorBound):
    def _moment_error(self):
        return super()._moment_error() + 8 * self.unit


def _eagerly(run):
    def call(stacked, steps):
        return [run(stacked, tf.constant(i)) for i in range(steps)]

    return call


def _in_a_function(run):
    return _eagerly(tf.function(run))


def _in_a_conditional(run):
    @tf.function
    def step(stacked, number, wanted):
        if wanted:
            run(stacked, number)

    def call(stacked, steps):
        for number in map(tf.constant, range(steps)):
            step(stacked, number, tf.constant(False))
            step(stacked, number, tf.constant(True))

    return call


def _in_a_loop(run):
    @tf.function
    def loop(stacked, steps):
        for number in tf.range(steps):
            run(stacked, number)

    return lambda stacked, steps: loop(stacked, tf.constant(steps))


WAYS = {
    "eager": _eagerly,
    "function": _in_a_function,
    "conditional": _in_a_conditional,
    "loop": _in_a_loop,
    "run of a function": _eagerly,
}
# Where all of it is tried once: (name of a strategy, jit_compile).
PLACES = [
    ("one_device", "auto"),
    ("mirrored_1", False),
    ("mirrored_2", "auto"),
    ("mirrored_2", False),
    ("mirrored_4", "auto"),
    ("central_2", "auto"),
    ("central_2", False),
]
# Those of several replicas alone.
SEVERAL_REPLICAS = [
    ("mirrored_2", "auto"),
    ("mirrored_2", False),
    ("mirrored_4", False),
    ("central_2", "auto"),
    ("central_2", False),
]
