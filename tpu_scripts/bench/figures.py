"""Medians, spreads and ratios of times."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tpu_scripts.bench.peers import WINDOW

# A ratio whose rounds spread further is none.
NOISE_LIMIT = 0.15

# The seconds per step that each peer took in one round.
Round = Mapping[str, Sequence[float]]


def spread(values: Sequence[float]) -> float:
    """The interquartile range, divided by the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, method="inclusive")
    return (high - low) / middle


def pooled(rounds: Sequence[Round], peer: str) -> list[float]:
    """The seconds of all steps of a peer."""
    return [second for found in rounds for second in found.get(peer, ())]


def ratio(
    rounds: Sequence[Round], peer: str, reference: str
) -> dict[str, Any] | None:
    """How much longer one peer takes than another.

    Only the rounds that both took part in count.

    Returns:
      The ratio of the medians over all steps; the spread of the ratios of the
      medians in each round; whether that is too much for the ratio to mean
      anything. None without two such rounds.
    """
    shared = [found for found in rounds if peer in found and reference in found]
    if len(shared) < 2:
        return None
    medians = [
        statistics.median(pooled(shared, name)) for name in (peer, reference)
    ]
    by_round = spread(
        [
            statistics.median(found[peer]) / statistics.median(found[reference])
            for found in shared
        ]
    )
    return {
        "of": peer,
        "to": reference,
        "ratio": medians[0] / medians[1],
        "spread": by_round,
        "too_noisy": by_round > NOISE_LIMIT,
    }


def summary(rounds: Sequence[Round], peer: str) -> dict[str, float]:
    """Median and spread of the seconds of a peer's steps."""
    seconds = pooled(rounds, peer)
    return {
        "median_seconds": statistics.median(seconds),
        "spread": spread(seconds),
    }


def window_summary(rounds: Sequence[Round], peer: str) -> dict[str, Any]:
    """The same of the calls that only sum gradients and of those that update.

    Args:
      rounds: each with whole windows of `peers.WINDOW` calls.
      peer: whose.

    Returns:
      The summaries by "sums" and "updates", and the ratio of the former.
    """
    parts = [
        {
            "updates": found[peer][WINDOW - 1 :: WINDOW],
            "sums": [
                second for i, second in enumerate(found[peer], 1) if i % WINDOW
            ],
        }
        for found in rounds
        if peer in found
    ]
    return {
        "sums": summary(parts, "sums"),
        "updates": summary(parts, "updates"),
        "sums_ratio": ratio(parts, "sums", "updates"),
    }
