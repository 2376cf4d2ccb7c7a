"""Trains 4 replicas whose strategy has the default collectives.

A strategy that has them needs a process of its own.
"""

import numpy as np

# Splits the CPU, as in every test.
import conftest  # noqa: F401  isort: skip
import helpers
import strategies

OPTIONS = {
    "mean": {"aggregation": "mean", "global_clipnorm": 0.5},
    "everything": helpers.OPTIONS["everything"],
}


def main():
    rng = np.random.default_rng(1)
    strategy = strategies.mirrored(4)
    for options in OPTIONS.values():
        weights = helpers.random_weights(rng, helpers.SHAPES)
        pair = strategies.ReplicaPair(strategy, weights, "auto", **options)
        for way in ("eager", "function", "loop"):
            pair.train(rng, 10, way=way)
            pair.check()


if __name__ == "__main__":
    main()
