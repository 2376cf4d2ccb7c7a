"""The tables beside Keras on the TPU compiler: rows made again."""

import pathlib

import pytest

from tpu_scripts import compare_for_tpu

pytestmark = pytest.mark.tpu

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "tpu_compiler.md"


@pytest.mark.parametrize(
    "option",
    [
        "plain",
        "EMA that overwrites",
        "accumulation, EMA, global_clipnorm",
        "norms of groups",
        "nothing reduced, accumulation",
    ],
)
def test_a_row_of_the_page(option):
    row = " | ".join(compare_for_tpu.cells(option, "v5e:2x2", 4))
    _, tables = PAGE.read_text().split("v5e:2x2, 4 replicas")
    table, _ = tables.split("v6e:2x4, 8 replicas")
    assert f"| {row} |" in table.splitlines()


def test_every_option_is_in_both_tables():
    every = {**compare_for_tpu.COMMON, **compare_for_tpu.OURS}
    for name in every:
        assert PAGE.read_text().count(f"| {name} |") == 2
