"""The module that the tests of SavedModels export."""

import numpy as np
import tensorflow as tf

import helpers
import tf_adamw

BATCH = 8
SHAPES = {"hidden": [3, 4], "bias": [4], "out": [4, 1]}
BATCH_SPEC = [
    tf.TensorSpec([None, 3], name="x"),
    tf.TensorSpec([None, 1], name="y"),
]


class Model(tf.Module):
    """Two layers."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        for key, shape in SHAPES.items():
            start = rng.uniform(0.5, 1.0, shape)
            setattr(self, key, tf.Variable(np.float32(start), name=key))

    def by_key(self):
        return {key: getattr(self, key) for key in SHAPES}

    def __call__(self, x):
        return tf.tanh(x @ self.hidden + self.bias) @ self.out


class WarmUp(tf.Module):
    """A schedule with a variable of its own."""

    def __init__(self):
        super().__init__()
        self.peak = tf.Variable(0.125, trainable=False)

    def __call__(self, step):
        return self.peak * tf.minimum(tf.cast(step + 1, tf.float32) / 8, 1.0)


def options(name):
    """The optimizer's arguments; called where its variables are to be."""
    if name == "plain":
        return {"learning_rate": 0.125}
    return {
        "learning_rate": WarmUp(),
        "use_ema": True,
        "ema_momentum": 0.75,
        "gradient_accumulation_steps": 2,
        "loss_scale_factor": "dynamic",
        "exclude_from_weight_decay": ["bias"],
        "global_clipnorm": 1.0,
    }


class Trainer(tf.Module):
    """A model, its optimizer, and the functions that are exported."""

    def __init__(self, name, **more):
        super().__init__()
        self.model = Model()
        self.optimizer = tf_adamw.AdamW(**options(name), **more)
        self.optimizer.build(self.model)

    @tf.function(input_signature=BATCH_SPEC[:1])
    def predict(self, x):
        """The inference."""
        return {"y": self.model(x)}

    @tf.function(input_signature=BATCH_SPEC)
    def gradients(self, x, y):
        """Of the sum over this part of a batch, with the loss scale."""
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((self.model(x) - y) ** 2) / BATCH
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.model.by_key())
        return {"loss": loss, "gradients": gradients}

    @tf.function(
        input_signature=[{k: tf.TensorSpec(s) for k, s in SHAPES.items()}]
    )
    def apply(self, gradients):
        """One step, and what it left of a weight."""
        variables = self.model.by_key()
        result = self.optimizer.apply_gradients(
            [(gradients[key], variables[key]) for key in SHAPES]
        )
        return {"applied": result.applied, "out": tf.identity(self.model.out)}

    @tf.function(input_signature=BATCH_SPEC)
    def train_step(self, x, y):
        """One step on a batch."""
        result = self.gradients(x, y)
        return {"loss": result["loss"], **self.apply(result["gradients"])}

    @tf.function(input_signature=[tf.TensorSpec([], name="rate")])
    def set_learning_rate(self, rate):
        """The rate from now on, of a schedule its peak."""
        held = self.optimizer.hyperparameters.learning_rate
        if isinstance(held, WarmUp):
            held.peak.assign(rate)
        else:
            self.optimizer.learning_rate = rate
        return {"next": tf.identity(self.optimizer.learning_rate)}

    def export(self, path, **how):
        """Writes the SavedModel; returns its path."""
        signatures = {
            name: getattr(self, name)
            for name in ("predict", "train_step", "set_learning_rate")
        }
        tf.saved_model.save(self, str(path), signatures, **how)
        return str(path)


def replica_step(strategy, trainer):
    """A step of a live trainer on the replicas' parts of a batch."""

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((trainer.model(x) - y) ** 2) / BATCH
            scaled = trainer.optimizer.scale_loss(loss)
        variables = list(trainer.model.by_key().values())
        trainer.optimizer.apply(tape.gradient(scaled, variables), variables)

    return lambda x, y: strategy.run(step, (x, y))


def made_in(strategy, name, **more):
    """A trainer whose variables are on the replicas."""
    with strategy.scope():
        return Trainer(name, **more)


def place(strategy, whole):
    """A batch in equal parts on the replicas: distributed values."""
    size = BATCH // strategy.num_replicas_in_sync

    def part(array):
        def of(context):
            first = context.replica_id_in_sync_group * size
            return tf.constant(array[first : first + size])

        return strategy.experimental_distribute_values_from_function(of)

    return part(whole["x"]), part(whole["y"])


def train_live(strategy, trainer, first, last):
    """Steps of a live trainer on the replicas."""
    step = replica_step(strategy, trainer)
    for number in range(first, last):
        step(*place(strategy, batch(number)))


def checkpoint_of(trainer):
    """A checkpoint of a trainer, live or loaded."""
    return tf.train.Checkpoint(model=trainer.model, optimizer=trainer.optimizer)


def batch(number, size=BATCH):
    """{"x": array, "y": array} of the batch of this number."""
    rng = np.random.default_rng([2, number])
    return {
        "x": np.float32(rng.standard_normal((size, 3))),
        "y": np.float32(rng.standard_normal((size, 1))),
    }


def train(trainer, first, last):
    """Steps first to last - 1; returns their losses."""
    return [
        float(trainer.train_step(**tensors(number))["loss"])
        for number in range(first, last)
    ]


def tensors(number):
    """The batch of this number, as tensors."""
    return {name: tf.constant(a) for name, a in batch(number).items()}


def saved_bits(trainer, folder):
    """{checkpoint key: bytes} of the weights and the optimizer's state."""
    path = checkpoint_of(trainer).write(str(folder / "bits"))
    return bits(path)


def bits(path):
    """{key: bytes} of a checkpoint."""
    found = helpers.checkpoint_values(path)
    return {key: (v.dtype, v.tobytes()) for key, v in found.items()}
