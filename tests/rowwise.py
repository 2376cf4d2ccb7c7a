"""A reference for `sparse_updates="lazy"`: every row is a variable of its own.

Rows of "table" have the keys "table/0", "table/1" and so on. What belongs to
the whole table alone is its norm.
"""

import collections
from typing import NamedTuple

import numpy as np
import tensorflow as tf

import helpers
import tf_adamw
from error_bounds import ErrorBound
from numpy_adamw import NumpyAdamW, global_norm

SLOTS = ("momentum", "velocity", "velocity_max", "average")


class Slices(NamedTuple):
    """An IndexedSlices in NumPy."""

    values: np.ndarray
    indices: np.ndarray

    def tensor(self):
        """The same for TensorFlow."""
        return tf.IndexedSlices(
            tf.constant(self.values), tf.constant(self.indices)
        )


def random_slices(rng, like, indices, dtype=np.int32, scale=1.0):
    """Slices of these indices, of one sign per element of the table.

    Rows of one index do not cancel then. They are multiples of 1/8 up to 2:
    every dtype holds the sums of four of them.
    """
    indices = np.asarray(indices, dtype)
    sign = rng.choice([-1.0, 1.0], like.shape)[indices]
    size = rng.integers(1, 17, sign.shape) / 8
    return Slices(np.asarray(scale * sign * size).astype(like.dtype), indices)


def by_row(gradients):
    """{"table/row": gradient} of dense gradients and Slices by table."""
    found = {}
    for key, gradient in gradients.items():
        if gradient is None:
            continue
        if not isinstance(gradient, Slices):
            gradient = np.asarray(gradient, np.float64)
            if gradient.ndim == 0:
                found[key] = gradient
                continue
            gradient = Slices(gradient, range(len(gradient)))
        for value, row in zip(*gradient, strict=True):
            name = f"{key}/{row}"
            found[name] = found.get(name, 0.0) + np.asarray(value, np.float64)
    return found


class RowwiseAdamW(NumpyAdamW):
    """The float64 reference, of rows."""

    def __init__(self, weights, **options):
        super().__init__(by_row(weights), **options)

    def apply(self, gradients):
        """One step from {table: array, Slices or None}."""
        self.last_magnitudes = {}
        self.last_gains = collections.defaultdict(float)  # 0 without a rate
        return super().apply(by_row(gradients))

    def _clip(self, gradients, norm):
        if self.clipnorm is None:
            return super()._clip(gradients, norm)
        tables = {}
        for key, gradient in gradients.items():
            tables.setdefault(key.split("/")[0], []).append(gradient)
        norms = {key: global_norm(parts) for key, parts in tables.items()}
        return {
            key: gradient
            * (self.clipnorm / max(self.clipnorm, norms[key.split("/")[0]]))
            for key, gradient in gradients.items()
        }


class _Row(NamedTuple):
    """One row, as far as `Pair` reads variables."""

    table: tf.Variable
    row: int | None

    def numpy(self):
        value = self.table.numpy()
        return value if self.row is None else value[self.row]


class _Bound(ErrorBound):
    def _moment_error(self):
        # A row is the sum of at most 16 that repeat.
        return super()._moment_error() + 16 * self.unit


class RowPair(helpers.Pair):
    """A lazy optimizer and its reference, compared row by row."""

    def __init__(self, weights, jit_compile, round_to=None, **options):
        self.tables = helpers.as_variables(weights)
        self.optimizer = tf_adamw.AdamW(
            jit_compile=jit_compile, sparse_updates="lazy", **options
        )
        self.optimizer.build(self.tables)
        multipliers = options.get("learning_rate_multipliers", {})
        options["learning_rate_multipliers"] = {
            key: factor.numpy() if isinstance(factor, tf.Variable) else factor
            for key, factor in multipliers.items()
        }
        options.pop("aggregation", None)  # the reference has one batch
        self.reference = RowwiseAdamW(weights, round_to=round_to, **options)
        self.variables = {}
        for name in self.reference.weights:
            key, *row = name.split("/")
            row = int(row[0]) if row else None
            self.variables[name] = _Row(self.tables[key], row)
        dtype = next(iter(weights.values())).dtype.name
        self.bound = _Bound(self, dtype)

    def step(self, gradients, apply=None):
        """Applies {table: array, Slices or None} to both.

        Asserts that both agree on whether it was applied, and that nothing
        else has changed than the rows that took part.

        Args:
          gradients: as said.
          apply: what to call with gradients and variables.
        """
        before = self.bits()
        result = (apply or self.optimizer.apply)(
            [as_tensor(g) for g in gradients.values()],
            [self.tables[key] for key in gradients],
        )
        applied, norm = self.reference.apply(gradients)
        assert bool(result.applied) == applied
        if result.grad_norm is not None:
            expected = norm if applied else np.nan
            np.testing.assert_allclose(result.grad_norm, expected, 1e-5)
        if applied:
            self.bound.add_update()
        changed = [*self.reference.last_magnitudes] if applied else []
        after = self.bits()
        for (name, slot), bits in before.items():
            if name not in changed:
                assert after[name, slot] == bits, (name, slot)
        return result

    def bits(self):
        """The bytes of each row of weights and slots."""
        found = {}
        for name, (table, row) in self.variables.items():
            key = name.split("/")[0]
            slots = self.optimizer.slots[key]
            for slot in ("weights", *SLOTS):
                if slot == "weights" or slot in slots:
                    variable = table if slot == "weights" else slots[slot]
                    value = variable.numpy()
                    value = value if row is None else value[row]
                    found[name, slot] = value.tobytes()
        return found

    def train(self, rng, steps, scale=1.0, rows=4):
        """Rows for all tables, a dense gradient for scalars."""
        for _ in range(steps):
            self.step(self.random(rng, scale, rows))

    def random(self, rng, scale=1.0, rows=4):
        """That many rows for each table, with repetitions."""
        gradients = {}
        for key, table in self.tables.items():
            like = table.numpy()
            if like.ndim == 0:
                gradients[key] = np.float32(scale * rng.standard_normal())
                continue
            indices = rng.integers(0, like.shape[0], rows)
            gradients[key] = random_slices(rng, like, indices, scale=scale)
        return gradients

    def slot(self, key, name):
        """The row's part of a slot."""
        table, row = self.variables[key]
        slot = self.optimizer.get_slot(table, name)
        value = np.array(slot, np.float64)
        return value if row is None else value[row]

    def check(self):
        """Asserts that all rows are within rounding of the reference."""
        assert self.optimizer.iterations.numpy() == self.reference.iterations
        self.bound.check(fused=self.optimizer.jit_compile is False)


def as_tensor(gradient):
    """What the optimizer is given."""
    if gradient is None:
        return None
    if isinstance(gradient, Slices):
        return gradient.tensor()
    return tf.constant(gradient)
