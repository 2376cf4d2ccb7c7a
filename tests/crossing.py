"""Training that is saved in one place and goes on in another.

The gradients of a step are the sum of four parts, each a small multiple of
2^-6: however many replicas add them up, the sum is exact, and so is the sum of
a window in a checkpoint. What two places make of it may then differ by what
they compute, not by what they were given.
"""

import pathlib
import time
from unittest import mock

import numpy as np
import tensorflow as tf

import tf_adamw

MODES = (False, "auto")
SHAPES = {"kernel": (6, 5), "bias": (5,), "scale": (3,)}
STEPS = 5  # ends in the middle of a window of 2
CONTINUED_TO = 10
# The place whose checkpoints are read before a build in every mode.
COMPILED_BEFORE_BUILD = "default"


def schedule(step):
    """Falls with the number of calls."""
    return 0.01 / (1.0 + 0.125 * tf.cast(step, tf.float32))


def make_optimizer(mode):
    return tf_adamw.AdamW(
        learning_rate=schedule,
        weight_decay=0.1,
        amsgrad=True,
        global_clipnorm=4.0,
        use_ema=True,
        ema_overwrite_frequency=3,
        loss_scale_factor=tf_adamw.DynamicLossScale(
            initial=2.0**10, growth_interval=2
        ),
        gradient_accumulation_steps=2,
        exclude_from_weight_decay=["bias", "scale"],
        jit_compile=mode,
    )


def parts(step):
    """{key: [4, ...]}: the four parts of a step's gradients."""
    rng = np.random.default_rng(step)
    return {
        key: (rng.integers(-64, 65, (4, *shape)) / 64).astype(np.float32)
        for key, shape in SHAPES.items()
    }


class Training:
    """Variables, optimizer and step under a strategy.

    Args:
      strategy: the strategy.
      mode: `jit_compile`.
      built: whether the optimizer is built at once, or by the first step.
      call: runs the compiled step of all replicas: by itself, or by a
        coordinator.
    """

    def __init__(self, strategy, mode, *, built=True, call=None):
        self.strategy = strategy
        rng = np.random.default_rng(99)
        with strategy.scope():
            self.variables = {
                key: tf.Variable(rng.random(shape).astype("f"), name=key)
                for key, shape in SHAPES.items()
            }
            self.optimizer = make_optimizer(mode)
            if built:
                self.optimizer.build(self.variables)
        self.checkpoint = tf.train.Checkpoint(
            optimizer=self.optimizer, **self.variables
        )
        self._call = call or (lambda function, given: function(given))
        self._step = tf.function(self._all_replicas)

    def train(self, first, last):
        """Steps first to last - 1."""
        for step in range(first, last):
            given = {k: tf.constant(v) for k, v in parts(step).items()}
            self._call(self._step, given)

    def _all_replicas(self, given):
        return self.strategy.run(self._replica, (given,))

    def _replica(self, given):
        context = tf.distribute.get_replica_context()
        share = 4 // context.num_replicas_in_sync
        first = share * context.replica_id_in_sync_group
        variables = list(self.variables.values())
        grads = [
            self.optimizer.loss_scale
            * tf.reduce_sum(given[key][first : first + share], 0)
            for key in self.variables
        ]
        return self.optimizer.apply(grads, variables).applied

    def state(self):
        """Every value of weights, slots and counters by its name."""
        found = {}
        for key, variable in self.variables.items():
            found[key] = variable.numpy()
            for name in self.optimizer.slots[key]:
                slot = self.optimizer.get_slot(variable, name)
                found[f"{key}/{name}"] = slot.numpy()
        for counter in self.optimizer.counters.held():
            found[counter.name.split(":")[0]] = counter.numpy()
        found["loss_scale"] = np.asarray(self.optimizer.loss_scale)
        return found


def save(folder, place, strategy, call=None, chief=True):
    """Trains and saves in each mode, and goes on.

    Args:
      folder: of the checkpoints, which are called "<place>-<mode>".
      place: the name of this one.
      strategy: where to train.
      call: as in `Training`.
      chief: whether what this process writes is the place's checkpoint.

    Returns:
      `{mode: Training}`, and `{(mode,): state}` after the last step.
    """
    own = folder if chief else f"{folder}/others"
    trainings, states = {}, {}
    for mode in MODES:
        training = trainings[mode] = Training(strategy, mode, call=call)
        training.train(0, STEPS)
        training.checkpoint.write(f"{own}/{place}-{mode}")
        training.train(STEPS, CONTINUED_TO)
        states[str(mode), "never stopped"] = training.state()
    return trainings, states


def go_on(folder, places, trainings, strategy, call=None):
    """Goes on with the checkpoint of every place.

    Args:
      folder: of the checkpoints.
      places: the names of all.
      trainings: what `save` returned, to be restored into, all steps traced.
      strategy: where to train.
      call: as in `Training`.

    Returns:
      `{(mode, place that saved, "built" or "not built"): state}`, and the
      states of `fail`.
    """
    states = {}
    for place in places:
        for mode, training in trainings.items():
            path = f"{folder}/{place}-{mode}"
            tf_adamw.checkpoint.restore(training.checkpoint, path, strict=True)
            training.train(STEPS, CONTINUED_TO)
            states[str(mode), place, "built"] = training.state()
        # Each is traced, and with XLA compiled, anew.
        for mode in MODES if place == COMPILED_BEFORE_BUILD else MODES[:1]:
            training = Training(strategy, mode, built=False, call=call)
            status = training.checkpoint.read(f"{folder}/{place}-{mode}")
            training.train(STEPS, CONTINUED_TO)
            status.assert_consumed()
            states[str(mode), place, "not built"] = training.state()
    return states | fail(trainings[False], f"{folder}/{places[0]}-False")


def fail(training, path):
    """Restores, and fails when TensorFlow has read: before and after."""
    states = {("False", "half way", "before"): training.state()}
    read = tf.train.Checkpoint.read
    seen = []

    def failing(*args):
        read(*args)
        seen.append(training.state())
        raise KeyboardInterrupt

    with mock.patch.object(tf.train.Checkpoint, "read", failing):
        try:
            tf_adamw.checkpoint.restore(training.checkpoint, path)
        except KeyboardInterrupt:
            states["False", "half way", "after"] = training.state()
    return {**states, ("False", "half way", "in between"): seen[0]}


def wait_for(path, seconds=300):
    """Waits until a file is there."""
    deadline = time.monotonic() + seconds
    while not pathlib.Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} does not come")
        time.sleep(0.05)
