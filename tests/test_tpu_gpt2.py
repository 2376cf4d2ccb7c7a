"""The bars of the TPU compiler on GPT-2-small: on two blocks, every option."""

import pytest

from tpu_bars import ALONE, BARS, Case, compiled

pytestmark = [pytest.mark.tpu, pytest.mark.slow]
WHOLE = [
    *(
        Case(option, "v5e:2x2", "gpt2-small")
        for option in ("plain", "everything", "skip_nonfinite+global_clipnorm")
    ),
    Case("plain", "v6e:2x4", "gpt2-small"),
]
# The other ten blocks are like these. Norms of the change take 28.4 bytes where
# 28 would do: some of what is on the chip is moved once more.
IN_PART = [
    Case(option, "v5e:2x2", "two-blocks")
    for option in ALONE
    if option not in ("plain", "everything", "norm_groups")
]


@pytest.mark.parametrize("bar", BARS)
@pytest.mark.parametrize("case", [*WHOLE, *IN_PART], ids=str)
def test_bar(case, bar):
    BARS[bar](compiled(case))
