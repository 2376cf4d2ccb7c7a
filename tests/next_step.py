"""Compares the next steps of AdamW, and of the optimizer it took over from.

Both begin with the same numbers, so of one step only its roundings differ. Let
u be the unit roundoff; see `error_bounds.py` for what they add up to in AdamW:
3 u |w| + (16 + 5 n) u gain G in the n-th step, G being the largest |g| or |m|
on the way. Another order of the same operations rounds no more often, so that
two are apart by at most twice as much.

Some compute 1 - beta^t in float32: beta and the power are rounded, by
(t + 4) u beta^t together, and the difference by u, which counts for more the
smaller it is. That is added, relative to the update.

The fused ops subtract a rounded beta_2 from one: v is off by u |g^2 - v| / 2
there, and its root, relative, by half of that over v.

And in the steps after the next one a source's epsilon may be another one than
AdamW's constant: that is added, too, relative to what epsilon is added to.
"""

import numpy as np

import helpers
import tf_adamw
from helpers import UNIT_ROUNDOFF
from tf_adamw import migration


def float32_corrections(beta_1, beta_2, t):
    """How far the step may be off if 1 - beta^t is computed in float32."""
    u = UNIT_ROUNDOFF["float32"]
    first, second = (
        ((t + 4) * u * beta**t + u) / -np.expm1(t * np.log(beta))
        for beta in (beta_1, beta_2)
    )
    return first + second / 2


class Compared:
    """An AdamW that is stepped beside another optimizer."""

    def __init__(self, optimizer, variables, epsilon=None):
        """Begins with the next step.

        Args:
          optimizer: the AdamW.
          variables: `{key: variable}`, float32 or float64.
          epsilon: the other's, if it is that of Algorithm 1.
        """
        self.optimizer, self.variables = optimizer, variables
        self.epsilon = epsilon
        self.steps = 0
        self.largest = {k: 0.0 for k in variables}
        self.bounds = {k: 0.0 for k in variables}

    def slot(self, key, name):
        slot = self.optimizer.get_slot(self.variables[key], name)
        return np.asarray(slot, np.float64)

    def step(self, gradients, theirs, label=None, corrections=0.0):
        """Does a step, and compares the weights.

        Args:
          gradients: `{key: array}`.
          theirs: `{key: array}`: their weights after the same step.
          label: under which the error of a first step is recorded.
          corrections: what `float32_corrections` says.
        """
        before = {
            k: (self.slot(k, "momentum"), self.slot(k, "velocity"))
            for k in gradients
        }
        weights = helpers.values(self.variables)
        self.optimizer.apply(
            helpers.to_gradients(gradients.values()),
            [self.variables[key] for key in gradients],
        )
        self.steps += 1
        for key, gradient in gradients.items():
            actual = self.variables[key].numpy()
            unit = UNIT_ROUNDOFF[actual.dtype.name]
            momentum, velocity = before[key]
            reach, update = self._update(key, gradient, momentum)
            fused = self._fused(key, gradient, velocity, unit)
            sizes = np.maximum(np.abs(weights[key]), np.abs(theirs[key]))
            self.bounds[key] = (
                self.bounds[key]
                + 6 * unit * sizes
                + 2 * (16 + 5 * self.steps) * unit * reach
                + (corrections + fused + self._drift(key)) * update
            )
            error = np.abs(actual.astype(np.float64) - theirs[key])
            assert np.all(error <= self.bounds[key]), (key, error)
            if self.steps == 1 and label:
                relative = helpers.relative_error(actual, theirs[key])
                helpers.record(f"next step, {label}", relative)

    def _drift(self, key):
        """How far epsilon is off, relative to what it is added to."""
        if self.steps == 1 or self.epsilon is None:
            return 0.0
        o = self.optimizer
        t = int(o.iterations)
        grown = np.sqrt(-np.expm1(t * np.log(o.beta_2)))
        off = abs(self.epsilon * grown - o.epsilon)
        return off / (np.sqrt(self._velocity(key)) + o.epsilon)

    def _fused(self, key, gradient, velocity, unit):
        """How far the root of v may be off in the fused ops, relative."""
        if helpers.JIT_MODES[0]:
            return 0.0
        new = np.maximum(self.slot(key, "velocity"), 2.0**-126)
        off = unit * np.abs(np.square(gradient, dtype=float) - velocity) / 2
        return self.steps * off / (2 * new)

    def _velocity(self, key):
        name = "velocity_max" if self.optimizer.amsgrad else "velocity"
        return self.slot(key, name)

    def _update(self, key, gradient, momentum):
        """Returns gain G, and |gain m|."""
        o = self.optimizer
        beta_1, beta_2, t = o.beta_1, o.beta_2, int(o.iterations)
        correction = -np.expm1(t * np.log(beta_1)) if beta_1 else 1.0
        rate = float(o.learning_rate)
        alpha = rate * np.sqrt(-np.expm1(t * np.log(beta_2))) / correction
        gain = alpha / (np.sqrt(self._velocity(key)) + o.epsilon)
        sizes = np.maximum(np.abs(gradient), np.abs(momentum))
        self.largest[key] = np.maximum(self.largest[key], sizes)
        return gain * self.largest[key], gain * np.abs(
            self.slot(key, "momentum")
        )


class Imported(Compared):
    """One that goes on for the other one."""

    def __init__(self, source, weights, names=None, transpose=None, **options):
        """Takes over.

        Args:
          source: a `migration.Source`.
          weights: `{key: array}`, in float32 or float64.
          names: as `import_state` takes them.
          transpose: likewise.
          **options: of AdamW, besides those of the source.
        """
        optimizer = tf_adamw.AdamW(**{**source.arguments(), **options})
        epsilon = source.settings["epsilon"] if source.algorithm_1 else None
        super().__init__(optimizer, helpers.as_variables(weights), epsilon)
        optimizer.build(self.variables)
        self.report = migration.import_state(
            optimizer, source, names=names, transpose=transpose
        )
