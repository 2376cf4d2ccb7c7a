"""AdamW as one pass over memory, in C: as fast as the memory allows."""

import ctypes
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Iterable

import numpy as np

from tpu_scripts.bench import cases, peers, program

# `gradient` may be `weight`: no pointer is restrict, the pragma says enough.
SOURCE = """
#include <math.h>
#include <stddef.h>

void step(float* weight, float* momentum, float* velocity,
          const float* gradient, ptrdiff_t size, float alpha, float decay,
          float rest_1, float rest_2, float epsilon) {
#pragma omp parallel for simd schedule(static)
  for (ptrdiff_t i = 0; i < size; ++i) {
    float g = gradient[i], m = momentum[i], v = velocity[i], w = weight[i];
    m += rest_1 * (g - m);
    v += rest_2 * (g * g - v);
    momentum[i] = m;
    velocity[i] = v;
    weight[i] = w - (decay * w + alpha * m / (sqrtf(v) + epsilon));
  }
}
"""
_OPTIONS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp")
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7


def prepare(peer: str) -> None:
    """Nothing has to be started."""
    del peer


def make(
    peer: str, shapes: cases.Shapes, mode: str, made: bool
) -> program.Program:
    """The step over all variables as one flat array.

    Args:
      peer: "c-floor".
      shapes: of the variables.
      mode: of `peers.CALLS`: a loop takes `peers.LOOP_STEPS` steps.
      made: whether the weights are the gradients.
    """
    del peer
    return Flat(shapes, peers.LOOP_STEPS if mode == "loop" else 1, made)


class Flat(program.Program):
    """The loop over the joined variables."""

    def __init__(self, shapes: cases.Shapes, steps: int, made: bool):
        self._shapes = [*shapes.values()]
        self._steps, self._taken = steps, 0
        size = cases.count(shapes)
        self._weight = _join(program.weights(shapes), size)
        self._gradient = self._weight
        if not made:
            self._gradient = _join(program.gradients(shapes), size)
        self._momentum, self._velocity = np.zeros((2, size), np.float32)
        self._step = _build()

    def trace(self) -> None:
        """It was compiled beforehand."""

    def __call__(self) -> None:
        """Takes the steps of one call."""
        for _ in range(self._steps):
            self._taken += 1
            correction = np.sqrt(1 - _BETA_2**self._taken)
            rate = program.LEARNING_RATE
            self._step(
                self._weight,
                self._momentum,
                self._velocity,
                self._gradient,
                self._weight.size,
                rate * correction / (1 - _BETA_1**self._taken),
                rate * program.WEIGHT_DECAY,
                1 - _BETA_1,
                1 - _BETA_2,
                _EPSILON,
            )

    def read(self, index: int) -> np.ndarray:
        """A copy of the weights of one variable."""
        sizes = [int(np.prod(shape)) for shape in self._shapes[: index + 1]]
        first, last = sum(sizes[:-1]), sum(sizes)
        return self._weight[first:last].reshape(self._shapes[index]).copy()


def _join(arrays: Iterable[np.ndarray], size: int) -> np.ndarray:
    flat = np.empty(size, np.float32)
    first = 0
    for array in arrays:
        flat[first : first + array.size] = array.ravel()
        first += array.size
    return flat


def _build() -> Callable[..., None]:
    """Compiles and loads the function.

    Raises:
      RuntimeError: the compiler refuses it.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "step.c")
        source.write_text(SOURCE)
        library = source.with_suffix(".so")
        command = [peers.compiler(), *_OPTIONS, "-shared", "-fPIC", "-o"]
        ended = subprocess.run(
            [*command, library, source, "-lm"], capture_output=True, text=True
        )
        if ended.returncode:
            raise RuntimeError(f"the C compiler: {ended.stderr.strip()}")
        step = ctypes.CDLL(str(library)).step
    array = np.ctypeslib.ndpointer(np.float32, 1, flags="C_CONTIGUOUS")
    step.argtypes = [array] * 4 + [ctypes.c_ssize_t] + [ctypes.c_float] * 5
    step.restype = None
    return step
