"""The same batches for any number of processes, and a model to train on them.

A batch has EXAMPLES examples, each with a gradient of its own for every
variable. The processes share the examples.
"""

import numpy as np
import tensorflow as tf

EXAMPLES = 12
ROWS = 7
SHAPES = {"kernel": (3, 5), "bias": (5,), "table": (ROWS, 3), "unused": (2,)}


class Model(tf.Module):
    """Three variables that every example reads, and one that none reads."""

    def __init__(self):
        super().__init__()
        for key, weight in start_weights().items():
            setattr(self, key, tf.Variable(weight, name=key))

    def by_key(self):
        return {key: getattr(self, key) for key in SHAPES}


def start_weights():
    """Weights of order one, 0.5 <= |w| < 2."""
    rng = np.random.default_rng(0)
    return {
        key: np.float32(
            rng.uniform(0.5, 2.0, shape) * rng.choice([-1, 1], shape)
        )
        for key, shape in SHAPES.items()
    }


def batch(number, bad_example=None):
    """{name: array with one entry per example} of the batch of this number.

    The examples repeat rows of the table. What an element gets from the
    examples of one batch has one sign. A `bad_example` has an infinite
    gradient of the bias.
    """
    rng = np.random.default_rng([1, number])
    rows = rng.integers(0, ROWS, EXAMPLES)
    result = {"rows": np.int32(rows)}
    for key in ("kernel", "bias", "table"):
        signs = rng.choice([-1.0, 1.0], SHAPES[key])
        signs = signs[rows] if key == "table" else np.stack([signs] * EXAMPLES)
        sizes = np.abs(rng.standard_normal(signs.shape))
        result[key] = np.float32(signs * sizes)
    if bad_example is not None:
        result["bias"][bad_example] = np.inf
    return result


def part_of(whole, index, count):
    """The examples of one of `count` processes."""
    size = EXAMPLES // count
    chosen = slice(index * size, (index + 1) * size)
    return {name: array[chosen] for name, array in whole.items()}


def tensors(arrays):
    """{name: tensor} of {name: array}."""
    return {name: tf.constant(array) for name, array in arrays.items()}


def loss(model, part, table=True):
    """A loss whose gradients are those of the examples.

    That of the table is an IndexedSlices that repeats rows, or None; that of
    "unused" is None.
    """
    total = tf.reduce_sum(part["kernel"] * model.kernel)
    total += tf.reduce_sum(part["bias"] * model.bias)
    if table:
        rows = tf.nn.embedding_lookup(model.table, part["rows"])
        total += tf.reduce_sum(part["table"] * rows)
    return total


def gradients(whole, table=True):
    """{key: the gradient of the whole batch}, in float64."""
    rows = np.zeros(SHAPES["table"])
    np.add.at(rows, whole["rows"], np.float64(whole["table"]))
    sums = {k: np.sum(np.float64(whole[k]), 0) for k in ("kernel", "bias")}
    return {**sums, "table": rows if table else None, "unused": None}


class Training:
    """A model and its optimizer, trained by one process.

    The strategies' programs have subclasses of it.
    """

    def __init__(self, model, optimizer):
        self.model = model
        self.optimizer = optimizer
        self.checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)

    def train(self, first, last):
        """Steps first to last - 1, on the batches of these numbers."""
        for number in range(first, last):
            self.apply(tensors(batch(number)))

    def apply(self, part, table=True):
        """One step on this part of a batch: (applied, norm or NaN)."""
        variables = list(self.model.trainable_variables)
        with tf.GradientTape() as tape:
            scaled = self.optimizer.scale_loss(loss(self.model, part, table))
        return returned(
            self.optimizer.apply(tape.gradient(scaled, variables), variables)
        )

    def found(self):
        """{(what, key): array} of the weights and the optimizer's state."""
        found = {}
        for key, variable in self.model.by_key().items():
            found["weights", key] = np.array(tf.convert_to_tensor(variable))
            for name in self.optimizer.slots[key]:
                slot = self.optimizer.get_slot(variable, name)
                found[name, key] = np.array(slot)
        found["counted", "updates"] = self.optimizer.iterations.numpy()
        if self.optimizer.loss_scale is not None:
            found["loss", "scale"] = np.array(self.optimizer.loss_scale)
        return found


def returned(result):
    """What a function that is run on replicas can return of a result."""
    if result.grad_norm is None:
        return result.applied, tf.constant(np.nan)
    return result.applied, result.grad_norm
