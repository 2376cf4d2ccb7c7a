"""Random runs on 1, 2 and 4 replicas that share the same batches.

Each is within the bound of strategies.py from one float64 reference of the
whole batch. What one replica has of it is a sum in float32, too: for 4
quarters in all, whoever adds them up, less than the 8 u there.
"""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import helpers
import strategies
import tf_adamw
from strategies import ReplicaPair

pytestmark = [pytest.mark.core, pytest.mark.slow]

STEPS = 50
QUARTERS = 4
SHAPES = {"a": (3, 5), "b": (7,), "c": ()}
NAMES = ["mirrored_1", "mirrored_2", "mirrored_4"]
CLIPPING = [{}, {"clipnorm": 1.0}, {"clipvalue": 0.5}, {"global_clipnorm": 1.0}]
AVERAGING = [
    {},
    {"use_ema": True},
    {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 4},
]
VALUES = st.fixed_dictionaries(
    {
        "learning_rate": st.sampled_from([1e-3, 1e-2, 1.0]),
        "weight_decay": st.sampled_from([0.0, 0.004, 0.1]),
        "beta_1": st.sampled_from([0.0, 0.9, 0.99]),
        "beta_2": st.sampled_from([0.9, 0.999]),
        "epsilon": st.sampled_from([1e-3, 1e-7]),
        "amsgrad": st.booleans(),
        "loss_scale_factor": st.sampled_from(
            [None, 8.0, tf_adamw.DynamicLossScale(2.0**6, 5)]
        ),
        "gradient_accumulation_steps": st.sampled_from([None, 2, 3]),
        "aggregation": st.sampled_from(["sum", "mean"]),
        "exclude_from_weight_decay": st.sampled_from([(), ("a", "c")]),
    }
)
OPTIONS = st.builds(
    lambda *parts: {k: v for part in parts for k, v in part.items()},
    VALUES,
    st.sampled_from(CLIPPING),
    st.sampled_from(AVERAGING),
)
SEEDS = st.integers(0, 2**32 - 1)


def random_quarters(rng, weights, step):
    """The gradients of a batch's quarters, sometimes of some variables only.

    Sizes from 1e-3 to 1e3; in some steps one of them is not finite.
    """
    quarters = strategies.random_parts(rng, weights, QUARTERS)
    for key, weight in weights.items():
        size = 10.0 ** rng.uniform(-3, 3, weight.shape)
        quarters[key] = (size * quarters[key]).astype(np.float32)
    if step % 3 == 1:
        del quarters["b"]
    if rng.uniform() < 0.1:
        of = rng.integers(QUARTERS)
        quarters["a"][of, 0, 1] = rng.choice([np.inf, -np.inf, np.nan])
    return quarters


def shared(quarters, pair):
    """What each replica of a pair has of it, added up in float32."""
    reduce = np.sum if pair.aggregation == "sum" else np.mean
    shares = {}
    for key, parts in quarters.items():
        split = parts.reshape(pair.count, -1, *parts.shape[1:])
        shares[key] = reduce(split, 1, dtype=np.float32)
    return shares


def deviation(first, second):
    """The largest difference of two pairs' weights, by largest weight."""
    return max(
        np.max(np.abs(weight.numpy() - other.numpy()))
        / np.max(np.abs(weight.numpy()))
        for weight, other in zip(
            first.variables.values(), second.variables.values(), strict=True
        )
    )


@pytest.mark.parametrize("mode", ["auto", False])
@hypothesis.settings(max_examples=3)
@hypothesis.given(OPTIONS, SEEDS)
def test_random_runs_agree(mode, options, seed):
    weights = helpers.random_weights(np.random.default_rng(seed), SHAPES)
    pairs = []
    for name in NAMES:
        pair = ReplicaPair(
            strategies.named(name),
            weights,
            mode,
            skip_nonfinite=True,
            **options,
        )
        rng = np.random.default_rng(seed)
        for step in range(STEPS):
            quarters = random_quarters(rng, weights, step)
            with np.errstate(invalid="ignore"):
                pair.train_on([shared(quarters, pair)], whole=[quarters])
        pair.check()
        pairs.append(pair)
    first, *others = pairs
    for other in others:
        assert other.reference.iterations == first.reference.iterations
        for key, variable in other.variables.items():
            apart = np.abs(variable.numpy() - first.variables[key].numpy())
            bound = first.bound.weights[key] + other.bound.weights[key]
            assert np.all(apart <= bound)
        helpers.record(
            f"1 and {other.count} replicas, {STEPS} random steps, by largest w",
            deviation(first, other),
        )
