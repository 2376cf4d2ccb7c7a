"""What the TPU compiler makes of sets of options, large slices, real shapes."""

import inspect

import hypothesis
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import tf_adamw
from tpu_bars import ALONE, BARS, LARGE, Case, Decay, compile_step, compiled

pytestmark = pytest.mark.tpu

SLICE = "v5e:16x16"  # 256 chips
ON_A_SLICE = [
    *(Case(option, SLICE) for option in ALONE),
    Case("accumulation+skip_nonfinite+global_clipnorm", SLICE),
]
IN_BFLOAT16 = [
    Case(option, "v5e:2x2", "larger", tf.bfloat16)
    for option in (
        "plain",
        "mean+global_clipnorm",
        "ema",
        "accumulation",
        "none",
        "none+amsgrad",
        "none+global_clipnorm",
        "none+ema",
        "none+skip_nonfinite",
        "accumulation+none",
    )
]
ELSEWHERE = [Case("plain", "v4:2x2x1"), Case("everything", "v5p:2x2x1")]
SETS = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.just(Decay()),
        "amsgrad": st.just(True),
        "gradient_accumulation_steps": st.integers(2, 5),
        "skip_nonfinite": st.just(True),
        "loss_scale_factor": st.sampled_from(
            [3.0, 1024.0, tf_adamw.DynamicLossScale()]
        ),
        "aggregation": st.sampled_from(["sum", "mean", "none"]),
        "exclude_from_weight_decay": st.just(["small", "0"]),
        "learning_rate_multipliers": st.just({"1|0": 0.5}),
        "weight_decay_multipliers": st.just({"0": 0.5}),
        "decay_coupling": st.just("none"),
    },
)
CLIPS = st.sampled_from(
    [{}, {"clipvalue": 0.5}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}]
)
AVERAGES = st.sampled_from(
    [{}, {"use_ema": True}, {"use_ema": True, "ema_overwrite_frequency": 7}]
)


@pytest.mark.parametrize("bar", BARS)
@pytest.mark.parametrize(
    "case", [*ON_A_SLICE, *IN_BFLOAT16, *ELSEWHERE], ids=str
)
def test_bar(case, bar):
    BARS[bar](compiled(case))


def check_set(topology, large, options):
    shapes = {f"kernel_{i}": LARGE for i in range(large)}
    found = compile_step(topology, {**shapes, "small": (768,)}, **options)
    for check in BARS.values():
        check(found)


@hypothesis.settings(max_examples=10)
@hypothesis.given(
    options=SETS,
    clip=CLIPS,
    average=AVERAGES,
    large=st.integers(1, 3),
    topology=st.sampled_from(["v5e:2x2", "v6e:2x4"]),
)
def test_sets_of_options(options, clip, average, large, topology):
    check_set(topology, large, {**options, **clip, **average})


@hypothesis.settings(max_examples=2)
@hypothesis.given(options=SETS, clip=CLIPS, average=AVERAGES)
def test_sets_of_options_on_a_slice(options, clip, average):
    check_set(SLICE, 1, {**options, **clip, **average})


def test_every_option_is_compiled():
    """Or has no program of its own, or another test."""
    accepted = {*inspect.signature(tf_adamw.AdamW).parameters}
    compiled_ones = {name for options in ALONE.values() for name in options}
    assert accepted - compiled_ones == {
        *("beta_1", "beta_2", "epsilon"),  # numbers in any program
        *("name", "jit_compile", "base_learning_rate"),
        "sparse_updates",  # test_sparse_tpu.py
    }
