"""What training on joined batches must lead to, whoever shares them.

The reference gets the sum over a batch's examples. They do not cancel: in
whatever order they are added, all-reduce included, the sum is off by less than
EXAMPLES u, relative (u as in error_bounds.py). A window that is restored from
a checkpoint has been added up there and is split again: 4 u more. Both add to
the bound derived in that file.
"""

import numpy as np

import helpers
from error_bounds import ErrorBound
from joined_batch import EXAMPLES, batch, gradients, start_weights
from numpy_adamw import NumpyAdamW

ROUNDINGS = EXAMPLES + 4


class Reference:
    """The float64 reference of a run of one of the programs.

    Attributes:
      share: the part of a batch's sum that is its gradient.
    """

    def __init__(self, run, workers=1):
        options = {"learning_rate": 0.01, **run.options}
        options.pop("jit_compile", None)
        self.fused = run.fused or not helpers.JIT_MODES[0]
        mean = options.pop("aggregation", "sum") == "mean"
        self.share = 1.0 / workers if mean else 1.0
        self.run = run
        self.adamw = NumpyAdamW(start_weights(), **options)
        self.bound = _Bound(self.adamw)

    def train(self, first, last):
        """Steps first to last - 1: what they return, (applied, norms)."""
        results = []
        for number in range(first, last):
            whole = batch(number, dict(self.run.bad).get(number))
            factor = self.share * self.adamw.loss_scale
            given = {
                key: None if gradient is None else gradient * factor
                for key, gradient in gradients(
                    whole, self.run.has_table(number)
                ).items()
            }
            applied, norm = self.adamw.apply(given)
            if applied:
                self.bound.add_update()
            results.append((applied, norm if applied else np.nan))
        return zip(*results, strict=True)

    def check(self, found):
        """Asserts what `Training.found` returns, within the bound."""
        assert found["counted", "updates"] == self.adamw.iterations
        scale = found.get(("loss", "scale"), 1.0)
        assert scale == self.adamw.loss_scale
        self.bound.found = found
        self.bound.check(self.fused)


class _Bound(ErrorBound):
    """The bound, for a run of which there are arrays and no variables."""

    def __init__(self, adamw):
        self.reference = adamw
        self.found = {}
        super().__init__(self, "float32")

    @property
    def variables(self):
        return {
            key: _Array(self.found["weights", key])
            for key in self.reference.weights
        }

    def slot(self, key, name):
        return self.found[name, key]

    def check(self, fused):
        super().check(fused)
        if self.reference.window == 1:
            return
        for key, total in self.reference.slots["accumulator"].items():
            error = np.abs(self.slot(key, "accumulator") - total)
            roundings = ROUNDINGS + self.reference.window
            size = self.reference._absolute[key]
            assert np.all(error <= roundings * self.unit * size), key

    def _moment_error(self):
        return super()._moment_error() + ROUNDINGS * self.unit


class _Array:
    def __init__(self, array):
        self._array = array

    def numpy(self):
        return self._array
