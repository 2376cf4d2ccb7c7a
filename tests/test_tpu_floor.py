"""What the TPU compiler makes of each option, on variables of 33.5 M elements.

Costs in HBM are at their floor: a step reads and writes once what it has to.
"""

import pytest

import helpers
from tpu_bars import (
    ALONE,
    BARS,
    OPTIONS,
    SHAPES,
    Case,
    compile_step,
    compiled,
    literal_floor,
)

pytestmark = pytest.mark.tpu

TOPOLOGIES = ("v5e:2x2", "v6e:2x4")
CASES = [
    *(Case(option, "v5e:2x2") for option in OPTIONS),
    *(Case(option, "v6e:2x4") for option in ALONE),
    Case("accumulation+none", "v6e:2x4"),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
@pytest.mark.parametrize("bar", BARS)
def test_bar(case, bar):
    BARS[bar](compiled(case))


@every_case
def test_bytes_per_parameter(case):
    """The floor and the bytes in numbers."""
    found = compiled(case)
    least, most = literal_floor(found)
    count = found.figures["parameters"]
    floors = found.figures["floor_bytes_least"], found.figures["floor_bytes"]
    assert floors == pytest.approx((least * count, most * count), rel=1e-3)
    assert 0.99 * most <= found.figures["hbm_bytes"] / count <= 1.01 * most
    assert found.figures["hbm_bytes_least"] / count <= 1.01 * least


@pytest.mark.parametrize("where", TOPOLOGIES)
@pytest.mark.parametrize(
    "option", ["plain", "amsgrad", "clipnorm", "ema_overwrite", "none"]
)
def test_the_compiler_counts_the_same(option, where):
    """Where nothing is kept on the chip, and nothing is conditional."""
    found = compiled(Case(option, where, "single"))
    module = found.module
    assert " conditional(" not in module.text
    counted = module.traffic().most + module.collective_traffic().most
    accessed = found.figures["bytes_accessed"]
    assert counted == pytest.approx(accessed, rel=1e-3)


@pytest.mark.parametrize("option", ["schedule", "decay_schedule", "everything"])
def test_schedules_that_make_floats_of_int64(option):
    """They cost scalar operations, and no bytes."""
    options = helpers.OPTIONS[option]
    found = compile_step("v5e:2x2", SHAPES["large"], **options)
    for name in BARS.keys() - {"counters"}:
        BARS[name](found)
