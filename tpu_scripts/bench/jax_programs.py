"""Steps of Optax's AdamW, compiled by `jax.jit`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tpu_scripts.bench import peers, program
from tpu_scripts.bench.cases import Shapes


def prepare(peer: str) -> None:
    """Starts JAX's threads and compiler, so that no step has to."""
    del peer
    jax.jit(jnp.square)(jnp.ones([])).block_until_ready()


def make(peer: str, shapes: Shapes, mode: str, made: bool) -> program.Program:
    """The compiled step.

    Args:
      peer: "optax".
      shapes: of the variables.
      mode: of `peers.CALLS`. All but "loop" are the same.
      made: whether the step makes the gradients.
    """
    del peer
    return JaxProgram(shapes, peers.LOOP_STEPS if mode == "loop" else 1, made)


class JaxProgram(program.Program):
    """A step that is given weights and state, and gives them back."""

    def __init__(self, shapes: Shapes, steps: int, made: bool):
        # Copies: memory that is NumPy's could not be donated.
        self._weights = [
            jnp.array(values, copy=True) for values in program.weights(shapes)
        ]
        self._gradients = None
        if not made:
            self._gradients = [jnp.array(g) for g in program.gradients(shapes)]
        self._optimizer = optax.adamw(
            program.LEARNING_RATE, weight_decay=program.WEIGHT_DECAY
        )
        self._state = self._optimizer.init(self._weights)
        call = (
            self._step if steps == 1 else functools.partial(self._loop, steps)
        )
        self._call = jax.jit(call, donate_argnums=(0, 1))
        self._lowered: Any = None
        self._compiled: Any = None

    def _step(self, weights, state, gradients):
        if gradients is None:
            gradients = jax.grad(_loss)(weights)
        updates, state = self._optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    def _loop(self, steps, weights, state, gradients):
        return jax.lax.fori_loop(
            0,
            steps,
            lambda _, carried: self._step(*carried, gradients),
            (weights, state),
        )

    def trace(self) -> None:
        """Lowers the step to StableHLO, which has no graph nodes."""
        self._lowered = self._call.lower(
            self._weights, self._state, self._gradients
        )

    def __call__(self) -> None:
        """Runs one call; the first one compiles."""
        if self._compiled is None:
            self._compiled = self._lowered.compile()
        self._weights, self._state = self._compiled(
            self._weights, self._state, self._gradients
        )
        jax.block_until_ready((self._weights, self._state))

    def read(self, index: int) -> np.ndarray:
        """A copy of the weights of one variable."""
        return np.array(self._weights[index])


def _loss(weights):
    return sum(0.5 * jnp.sum(jnp.square(w)) for w in weights)
