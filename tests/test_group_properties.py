"""Any groups with any coupling of the decay, against the reference."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import JIT_MODES, Pair

pytestmark = [pytest.mark.core, pytest.mark.slow]

FACTORS = st.sampled_from([0.0, 0.25, 1.0, 3.0])
KEYS = st.sampled_from(["kern", "^b", "scale"])
GROUPS = st.builds(
    lambda groups, others: {**groups, ".": others},
    st.dictionaries(KEYS, FACTORS, max_size=2),
    FACTORS,
)


@hypothesis.settings(max_examples=12)
@hypothesis.given(
    rates=GROUPS,
    decays=GROUPS,
    excluded=st.lists(KEYS, max_size=2, unique=True),
    coupling=st.sampled_from(["learning_rate", "schedule", "none"]),
    option=st.sampled_from(["plain", "amsgrad", "global_clipnorm", "schedule"]),
    jit_compile=st.sampled_from(JIT_MODES),
    held=st.booleans(),
)
def test_groups_and_decay_together(
    rates, decays, excluded, coupling, option, jit_compile, held
):
    rng = np.random.default_rng(1)
    weights = helpers.random_weights(rng, helpers.SHAPES)
    options = {
        **helpers.OPTIONS[option],
        "decay_coupling": coupling,
        "weight_decay": 0.0625,
        "exclude_from_weight_decay": excluded,
    }
    if coupling == "schedule":
        options["base_learning_rate"] = 2.0**-5
    groups = {
        "learning_rate_multipliers": rates,
        "weight_decay_multipliers": decays,
    }
    pair = Pair(weights, jit_compile, **options, **groups)
    if held:
        groups = {
            name: {pattern: tf.Variable(f) for pattern, f in given.items()}
            for name, given in groups.items()
        }
        pair.optimizer = tf_adamw.AdamW(
            jit_compile=jit_compile, **options, **groups
        )
        pair.optimizer.build(pair.variables)
    pair.train(rng, 3)
    assert pair.error() <= 1e-5
    pair.check_moments()
