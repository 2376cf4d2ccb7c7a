"""The reader of optimized HLO, on programs written by hand."""

import textwrap

import pytest

from tpu_scripts.aot import instructions
from tpu_scripts.aot.hlo import Module, Traffic

KIB = 4096  # bytes of f32[1024]


def module(entry, computations="", head="HloModule m"):
    """A module with this body of its entry computation."""
    body = textwrap.indent(textwrap.dedent(entry).strip(), "  ")
    others = textwrap.dedent(computations).strip()
    return Module(
        f"{head}\n\n{others}\n\nENTRY %main () -> f32[] {{\n{body}\n}}"
    )


FUSED = module(
    """
    %p0 = f32[1024]{0:T(1024)} parameter(0)
    %p1 = (f32[1024]{0}, /*index=1*/s32[]) parameter(1)
    %x = f32[1024]{0} get-tuple-element(%p1), index=0
    %c = f32[]{:T(128)S(6)} constant(2)
    %f = (f32[1024]{0}, bf16[1024]{0:T(8)(2,1)}) fusion(%p0, %x, %c), calls=%g
    %y = f32[1024]{0} get-tuple-element(%f), index=0
    %z = bf16[1024]{0} get-tuple-element(%f), index=1
    ROOT %r = (f32[1024]{0}, bf16[1024]{0}) tuple(%y, %z)
    """,
    """
    %g (a: f32[1024], b: f32[1024], c: f32[]) -> (f32[1024], bf16[1024]) {
      %a = f32[1024]{0} parameter(0)
      %many = f32[1048576]{0} broadcast(%a), dimensions={}
    }
    """,
    "HloModule m, is_scheduled=true, input_output_alias={ {0}: (0, {}, "
    "may-alias), {1}: (3, {}, must-alias) }, entry_computation_layout={(f32["
    "1024]{0})->f32[1024]{0}}",
)


def test_a_fusion_moves_its_operands_and_results():
    assert FUSED.traffic() == Traffic(*[3 * KIB + KIB // 2] * 2)
    assert FUSED.collective_traffic() == Traffic(0, 0)
    assert FUSED.kernels() == {"fusions": 1}


def test_results_and_aliases():
    assert [array.size for array in FUSED.results] == [KIB, KIB // 2]
    assert FUSED.aliases == {0: 0, 1: 3}


def test_a_root_that_is_no_tuple():
    found = module(
        "%a = f32[1024]{0} parameter(0)\n"
        "%b = f32[1024]{0} parameter(1)\n"
        "ROOT %sum = f32[1024]{0} add(%a, %b)",
        head="HloModule m, input_output_alias={ {}: (1, {}, may-alias) }, "
        "entry_computation_layout={()->f32[]}",
    )
    assert len(found.results) == 1
    assert found.aliases == {0: 1}
    assert found.traffic() == Traffic(3 * KIB, 3 * KIB)
    assert found.kernels() == {"other operations": 1}


def test_no_aliases():
    assert module("ROOT %p = f32[] parameter(0)").aliases == {}


def test_touching():
    (kernel,) = FUSED.touching(KIB)
    assert kernel.name == "f"
    assert kernel.written() == [KIB, KIB // 2]
    assert FUSED.touching(KIB + 1) == []


def test_what_is_on_the_chip_does_not_count():
    found = module(
        """
        %p = f32[1024]{0} parameter(0)
        %vmem = f32[1024]{0:T(1024)S(1)} fusion(%p), kind=kLoop, calls=%f
        %scalar = f32[]{:T(128)S(6)} add(%c, %c)
        %c = f32[]{:T(128)S(6)} constant(1)
        ROOT %out = f32[1024]{0:T(1024)S(0)} fusion(%vmem, %scalar), calls=%f
        """
    )
    assert found.traffic() == Traffic(2 * KIB, 2 * KIB)
    assert found.kernels() == {"fusions": 2, "scalar operations": 1}


def test_asynchronous_copies():
    found = module(
        """
        %p = f32[4096]{0} parameter(0)
        %s = (f32[1024]{0:S(1)}, f32[1024]{0}, u32[]{:S(2)}) copy-start(%q)
        %q = f32[1024]{0} parameter(1)
        %d = f32[1024]{0:S(1)} copy-done(%s)
        %t = ((f32[4096]{0}), f32[1024]{0:S(1)}, u32[]{:S(2)}) slice-start(%p)
        ROOT %e = f32[1024]{0:S(1)} slice-done(%t)
        """
    )
    # Each reads or writes HBM, and the other end is on the chip.
    assert found.traffic() == Traffic(2 * KIB, 2 * KIB)
    assert found.kernels() == {"copies": 2}


def test_a_copy_within_hbm():
    found = module(
        """
        %p = f32[1024]{0} parameter(0)
        %s = (f32[1024]{0}, f32[1024]{0}, u32[]{:S(2)}) copy-start(%p)
        ROOT %d = f32[1024]{0} copy-done(%s)
        """
    )
    assert found.traffic() == Traffic(2 * KIB, 2 * KIB)


BRANCHES = """
    %cheap (a: f32[1024]) -> f32[1024] {
      ROOT %a = f32[1024]{0} parameter(0)
    }

    %costly (b: f32[1024]) -> f32[1024] {
      %b = f32[1024]{0} parameter(0)
      %sum = f32[1024]{0} all-reduce(%b), replica_groups={{0,1}}, to_apply=%add
      ROOT %n = f32[1024]{0} negate(%sum)
    }
    """


@pytest.mark.parametrize(
    "conditional",
    [
        "conditional(%i, %p, %p), branch_computations={%cheap, %costly}",
        "conditional(%i, %p, %p), true_computation=%costly, "
        "false_computation=%cheap, metadata={}",
    ],
    ids=["branches", "true and false"],
)
def test_branches(conditional):
    found = module(
        f"""
        %i = s32[] parameter(0)
        %p = f32[1024]{{0}} parameter(1)
        ROOT %c = f32[1024]{{0}} {conditional}
        """,
        BRANCHES,
    )
    assert found.traffic() == Traffic(0, 2 * KIB)
    assert found.collective_traffic() == Traffic(0, 2 * KIB)
    assert found.collectives() == {"all-reduce": (1, KIB)}
    assert found.kernels() == {"collectives": 1, "other operations": 1}
    assert {name for name, _ in found.running()} == {"main", "cheap", "costly"}


INDEX = "branch_computations={%cheap, %costly}"
PREDICATE = "true_computation=%costly, false_computation=%cheap"


@pytest.mark.parametrize(
    ("first", "second", "most"),
    [
        (f"%i, %p, %p), {INDEX}", f"%i, %p, %p), {INDEX}", 4),
        (f"%i, %p, %p), {INDEX}", f"%j, %p, %p), {INDEX}", 2),
        (f"%j, %p, %p), {INDEX}", f"%b, %p, %p), {PREDICATE}", 2),
        (f"%i, %p, %p), {INDEX}", f"%b, %p, %p), {PREDICATE}", 4),
        (f"%n, %p, %p), {PREDICATE}", f"%b, %p, %p), {PREDICATE}", 2),
        (f"%i, %p, %p), {INDEX}", f"%k, %p, %p), {INDEX}", 4),
    ],
    ids=["same", "not", "not, predicate", "predicate", "predicates", "others"],
)
def test_branches_that_one_condition_decides(first, second, most):
    found = module(
        f"""
        %b = pred[] parameter(0)
        %k = s32[] parameter(1)
        %p = f32[1024]{{0}} parameter(2)
        %n = pred[] not(%b)
        %i = s32[] convert(%b)
        %j = s32[] convert(%n)
        %c = f32[1024]{{0}} conditional({first}
        ROOT %d = f32[1024]{{0}} conditional({second}
        """,
        BRANCHES,
    )
    moved = found.traffic()  # the conditions' own few bytes included
    assert moved.most // KIB == most
    assert moved.least // KIB == (2 if most == 2 else 0)


def test_a_loop_is_one_round():
    found = module(
        """
        %p = f32[1024]{0} parameter(0)
        %w = f32[1024]{0} while(%p), condition=%cheap, body=%costly
        ROOT %v = f32[1024]{0} call(%w), to_apply=%costly
        """,
        BRANCHES,
    )
    assert found.traffic() == Traffic(4 * KIB, 4 * KIB)


def test_collectives():
    found = module(
        """
        %p = f32[1024]{0} parameter(0)
        %q = bf16[1024]{0:S(1)} parameter(1)
        %r = (f32[1024]{0}, bf16[1024]{0:S(1)}) all-reduce-start(%p, %q)
        %d = (f32[1024]{0}, bf16[1024]{0:S(1)}) all-reduce-done(%r)
        %g = (f32[1024]{0}, f32[2048]{0}) all-gather-start(%p), dimensions={0}
        %h = f32[2048]{0} all-gather-done(%g)
        %a = f32[1024]{0} all-to-all(%p), dimensions={0}
        ROOT %s = f32[512]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add
        """
    )
    assert found.collectives() == {
        "all-reduce": (1, KIB + KIB // 2),
        "all-gather": (1, KIB),
        "all-to-all": (1, KIB),
        "reduce-scatter": (1, KIB),
    }
    moved = 2 * KIB + 3 * KIB + 2 * KIB + KIB + KIB // 2
    assert found.collective_traffic() == Traffic(moved, moved)
    assert found.traffic() == Traffic(0, 0)
    assert found.touching(1) == []


def test_custom_calls():
    found = module(
        """
        %p = s64[] parameter(0)
        %low = u32[] custom-call(%p), custom_call_target="X64SplitLow"
        %b = f32[1024]{0} custom-call(), custom_call_target="AllocateBuffer"
        %y = f32[] custom-call(%b), custom_call_target="all-reduce(%x"
        ROOT %k = f32[1024]{0} custom-call(%b), custom_call_target="kernel"
        """
    )
    assert found.kernels() == {"custom calls": 1, "scalar operations": 2}
    targets = [i.target for _, i in found.running() if i.moves]
    assert targets == ["X64SplitLow", "all-reduce(%x", "kernel"]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("pred[7]{0}", 7),
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 30),
        ("s4[3]{0}", 2),
        ("f8e4m3fn[2,2]{1,0}", 4),
        ("u64[2]{0}", 16),
        ("c64[2]{0}", 16),
        ("token[]", 0),
        ("f32[0,8]{1,0}", 0),
    ],
)
def test_sizes(shape, size):
    (array,) = instructions.read(f"  %a = {shape} parameter(0)").arrays
    assert array.size == size


def test_nested_tuples():
    found = instructions.read(
        "  ROOT %a = ((f32[2]{0}, (s8[3]{0})), u32[]{:S(2)}) custom-call(%b.1,"
        ' /*index=1*/%c), custom_call_target="x(y"'
    )
    assert [array.size for array in found.arrays] == [8, 3, 4]
    assert found.operands == ("b.1", "c")
    assert found.is_root
    assert (found.opcode, found.target) == ("custom-call", "x(y")


@pytest.mark.parametrize("line", ["", "}", "// %a = f32[] add(%b, %c)"])
def test_other_lines(line):
    assert instructions.read(line) is None


def test_text_that_ends_too_early():
    with pytest.raises(ValueError, match="does not close"):
        instructions.read("  %a = f32[] add(%b")
