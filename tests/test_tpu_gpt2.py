"""The bars of the TPU compiler on GPT-2-small's shapes, every option alone."""

import pytest

from tpu_bars import ALONE, BARS, Case, compiled

pytestmark = [pytest.mark.tpu, pytest.mark.slow]
CASES = [
    *(Case(option, "v5e:2x2", "gpt2-small") for option in ALONE),
    Case("skip_nonfinite+global_clipnorm", "v5e:2x2", "gpt2-small"),
    Case("plain", "v6e:2x4", "gpt2-small"),
]


@pytest.mark.parametrize("bar", BARS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bar(case, bar):
    BARS[bar](compiled(case))
