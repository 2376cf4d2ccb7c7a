"""What a lazy step costs goes with its rows: nothing else has a table's size.

So it does in what runs, whatever the time that a busy machine takes: in the
operations of a graph, and in the instructions that XLA compiles for a CPU.
"""

import re

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import JIT_MODES
from rowwise import RowPair

ROWS, WIDTH, TOUCHED = 7777, 4, 8
DTYPES = ["float32", "float64", "float16", "bfloat16"]
OPTIONS = {
    "plain": {},
    "many": {"global_clipnorm": 1.0, "skip_nonfinite": True, "use_ema": True},
    "amsgrad": {"amsgrad": True, "clipnorm": 1.0},
    "dynamic": {"loss_scale_factor": "dynamic", "clipvalue": 1.0},
    "factor": {"learning_rate_multipliers": [("table", tf.Variable(0.5))]},
}
# They pass a table on, or change rows of it where it is. What a fusion does is
# listed, too.
IN_PLACE = {
    "conditional",
    "fusion",
    "get-tuple-element",
    "parameter",
    "scatter",
    "tuple",
}
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_option = pytest.mark.parametrize(
    "option",
    [
        "plain",
        "many",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("amsgrad", "dynamic", "factor")
        ),
    ],
)
needs_xla = pytest.mark.skipif(
    True not in JIT_MODES, reason="no XLA for this host's CPU"
)


def traced(dtype, compiled=False, head=None, **options):
    """The function of a step on a table, and on a dense head if it is given."""
    with tf.device("CPU:0"):
        table = tf.Variable(tf.zeros([ROWS, WIDTH], dtype), name="table")
        variables, gradients = [table], []
        if head is not None:
            variables.append(tf.Variable(head, name="head"))
            gradients.append(tf.zeros_like(head))
        given = tf.zeros([TOUCHED, WIDTH], dtype), tf.range(TOUCHED)
    optimizer = tf_adamw.AdamW(sparse_updates="lazy", **options)
    optimizer.build(variables)

    @tf.function(jit_compile=compiled)
    def step(values, indices):
        slices = tf.IndexedSlices(values, indices)
        return optimizer.apply([slices, *gradients], variables).applied

    return step, given


def large_operations(function):
    """Those of a graph whose results have as many elements as the table."""
    graph = function.graph.as_graph_def(add_shapes=True)
    found = set()
    for node in helpers.all_nodes(graph):
        for shape in node.attr["_output_shapes"].list.shape:
            dims = [dim.size for dim in shape.dim]
            unknown = shape.unknown_rank or -1 in dims
            if unknown or np.prod(dims) >= ROWS:
                found.add(node.op)
    return found


def large_instructions(text):
    """Those of a compiled program, but for what is `IN_PLACE`.

    And but for copies in a step that is skipped: as measured it takes no longer
    for a larger table.
    """
    skips = re.findall(r"false_computation=(%[\w.-]+)", text)
    found, inside = set(), ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            inside = line.split()[0]
        match = re.match(r"\s+(?:ROOT )?%\S+ = (.*?[\])}]) ([a-z-]+)\(", line)
        if match is None or match[2] in IN_PLACE or inside in skips:
            continue
        shapes = re.findall(r"\w+\[([\d,]+)\]", match[1])
        if any(np.prod([*map(int, s.split(","))]) >= ROWS for s in shapes):
            found.add(match[2])
    return found


def is_compiled(function):
    nodes = helpers.all_nodes(function.graph.as_graph_def())
    return any(node.attr["_XlaMustCompile"].b for node in nodes)


@every_dtype
@every_option
def test_no_operation_is_of_the_tables_size(dtype, option):
    step, given = traced(dtype, jit_compile=False, **OPTIONS[option])
    function = step.get_concrete_function(*given)
    assert not is_compiled(function)
    assert large_operations(function) == set()


@needs_xla
@pytest.mark.parametrize("dtype", DTYPES[:3])
@every_option
def test_no_instruction_is_of_the_tables_size(dtype, option):
    step, given = traced(dtype, True, jit_compile=True, **OPTIONS[option])
    compiled = step.experimental_get_compiler_ir(*given)
    text = compiled(stage="optimized_hlo")
    assert "scatter(" in text and f"[{ROWS},{WIDTH}]" in text
    assert large_instructions(text) == set()


def test_what_is_of_the_tables_size_is_found():
    """A head as large as the table is updated as a whole."""
    head = tf.zeros([ROWS])
    step, given = traced("float32", jit_compile=False, head=head)
    function = step.get_concrete_function(*given)
    assert large_operations(function) >= {"ReadVariableOp"}
    if True in JIT_MODES:
        step, given = traced("float32", True, jit_compile=True, head=head)
        compiled = step.experimental_get_compiler_ir(*given)
        found = large_instructions(compiled(stage="optimized_hlo"))
        assert found >= {"multiply", "add"}


SIZE = ROWS * WIDTH


@needs_xla
@pytest.mark.parametrize(
    ("dtype", "compiled", "options"),
    [
        ("float32", True, {}),
        ("float16", True, {}),
        ("bfloat16", False, {}),
        ("bfloat16", False, OPTIONS["many"]),
        ("bfloat16", False, {"head": tf.zeros([2 * SIZE])}),
        ("bfloat16", False, {"head": tf.zeros([SIZE // 5], tf.float16)}),
        ("bfloat16", True, {"head": tf.zeros([SIZE // 5 + 1], tf.float16)}),
        ("bfloat16", True, {"amsgrad": True}),
        ("bfloat16", True, {"norm_groups": {"all": "."}}),
        ("bfloat16", True, {"jit_compile": True}),
    ],
)
def test_auto_takes_what_does_not_convert_tables(dtype, compiled, options):
    """XLA for CPUs converts those of bfloat16."""
    step, given = traced(dtype, **options)
    assert is_compiled(step.get_concrete_function(*given)) == compiled


@needs_xla
@pytest.mark.parametrize("compiled", [False, True])
def test_auto_trains_bfloat16(rng, compiled):
    """In a function that is compiled anyway, too."""
    shapes = {"table": (6, 2), "bias": (2,)}
    weights = helpers.random_weights(rng, shapes, "bfloat16")
    pair = RowPair(weights, "auto", learning_rate=0.125, **OPTIONS["many"])
    variables = list(pair.tables.values())

    @tf.function(jit_compile=compiled)
    def step(*parts):
        rows = [tf.IndexedSlices(*parts[:2]), tf.IndexedSlices(*parts[2:])]
        return pair.optimizer.apply(rows, variables)

    for _ in range(4):
        for name, row in pair.variables.items():
            pair.reference.weights[name] = row.numpy().astype(np.float64)
        pair.step(
            pair.random(rng),
            lambda given, _: step(
                *(part for g in given for part in (g.values, g.indices))
            ),
        )
        unit = helpers.UNIT_ROUNDOFF["bfloat16"]
        assert pair.error() <= unit + 4e-6
    pair.check_moments(fused=True)
