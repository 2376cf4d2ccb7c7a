"""Norms of groups of variables, for those who watch a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_adamw import clipping, placement
from tf_adamw.dtypes import widen
from tf_adamw.registry import Parameter


class Outcome(NamedTuple):
    """What a program did: see `step.ApplyResult`. Norms are NaN if nothing."""

    applied: tf.Tensor
    grad_norm: tf.Tensor
    update_norm: dict[str, tf.Tensor]
    weight_norm: dict[str, tf.Tensor]


def not_applied(groups: Iterable[str]) -> Outcome:
    """What a step that changes no weight returns."""
    nan = tf.constant(float("nan"))
    norms = dict.fromkeys(groups, nan)
    return Outcome(tf.constant(False), nan, norms, dict(norms))


def unchanged(parameter: Parameter) -> tuple[tf.Tensor, tf.Tensor]:
    """Squared norms of a variable's change, which is none, and its weights."""
    with placement.beside(parameter.variable):
        weights = widen(tf.convert_to_tensor(parameter.variable))
        return tf.zeros([], weights.dtype), clipping.squared_norm(weights)


def of_groups(
    groups: Iterable[str],
    parameters: Sequence[Parameter],
    squares: Mapping[tuple[str, int], Sequence[tf.Tensor]],
) -> list[dict[str, tf.Tensor]]:
    """Returns float32 norms by group: of the update, and of the weights.

    Args:
      groups: their names.
      parameters: all variables.
      squares: for each that was updated the squared norms of its change and
        its weights, by identity.
    """
    found = {
        p.identity: squares.get(p.identity) or unchanged(p)
        for p in parameters
        if p.groups
    }
    return [
        {
            group: _norm(
                [found[p.identity][i] for p in parameters if group in p.groups]
            )
            for group in groups
        }
        for i in range(2)
    ]


def _norm(squares: Sequence[tf.Tensor]) -> tf.Tensor:
    if not squares:
        return tf.zeros([])
    return tf.cast(clipping.global_norm(squares), tf.float32)
