"""How far rounding may carry a run from the float64 reference.

Let u be the unit roundoff: 2^-24 for float32, 2^-53 for float64. One update
rounds w at most three times (decay, update, overwriting by the average), each
time by at most u |w|.

The update is gain * m with gain = alpha / (sqrt(v) + epsilon). Let G be the
largest |g| of an element so far (the mean |g| of a window: its gradients may
cancel, their roundings do not). Each step rounds m three times (difference,
product, sum) by at most u G, and v likewise by at most u v; a beta rounded to
the variable's dtype changes beta^n by at most n u relative. After t steps m
is off by (3 t + c) u G and sqrt(v) by half of that, relative; c stands for
the roundings that do not repeat: unscaling, window mean, norm and clipping,
alpha, square root, division. So the update is off by at most
(16 + 5 t) u gain G, and the errors of all updates add up:

    |w - reference| <= sum over t of (3 u |w| + (16 + 5 t) u gain_t G_t)

The fused ops subtract a rounded beta from one: the moments, but not the
weights, are off by a further u / (2 (1 - beta)), relative.
"""

import numpy as np

from helpers import UNIT_ROUNDOFF


class ErrorBound:
    """The bound above, summed along a run of a `Pair`."""

    def __init__(self, pair, dtype):
        self.pair = pair
        self.unit = UNIT_ROUNDOFF[dtype]
        shapes = {k: w.shape for k, w in pair.reference.weights.items()}
        self.weights = {k: np.zeros(s) for k, s in shapes.items()}
        self.largest_gradient = {k: np.zeros(s) for k, s in shapes.items()}

    def add_update(self):
        """Call it after every step that was applied."""
        reference = self.pair.reference
        for key, magnitude in reference.last_magnitudes.items():
            largest = np.maximum(self.largest_gradient[key], magnitude)
            self.largest_gradient[key] = largest
            reach = self._moment_error() * reference.last_gains[key] * largest
            rounding = 3 * self.unit * np.abs(reference.weights[key])
            self.weights[key] = self.weights[key] + rounding + reach

    def _moment_error(self):
        return (16 + 5 * self.pair.reference.iterations) * self.unit

    def check(self, fused):
        """Asserts that weights and slots are within their bounds."""
        pair, reference = self.pair, self.pair.reference
        for key, variable in pair.variables.items():
            bound = self.weights[key]
            _check(variable.numpy(), reference.weights[key], bound)
            largest = self.largest_gradient[key]
            for name, beta, scale in (
                ("momentum", reference.beta_1, largest),
                ("velocity", reference.beta_2, largest**2),
            ):
                relative = self._moment_error()
                if fused:
                    relative += self.unit / (2 * (1 - beta))
                expected = reference.slots[name][key]
                _check(pair.slot(key, name), expected, relative * scale)
            if reference.use_ema and reference.iterations:
                roundings = 3 * reference.iterations * self.unit
                average = reference.slots["average"][key]
                bound = bound + roundings * np.abs(average)
                _check(pair.slot(key, "average"), average, bound)


def _check(actual, expected, bound):
    actual = np.asarray(actual, np.float64)
    assert actual.shape == np.shape(expected)
    error = np.abs(actual - expected)
    # Below the normal range of float32 there is no relative accuracy.
    assert np.all(error <= bound + 2.0**-126), np.max(error - bound)
