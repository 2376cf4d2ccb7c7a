"""`sparse_updates="lazy"` as programs of a TPUStrategy.

Rows of all replicas are gathered: nothing of a table's size crosses between
them, or is moved in memory.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf

import helpers
import tf_adamw
from helpers import JIT_MODES
from rowwise import RowwiseAdamW, Slices
from tpu_replicas import Replicas
from tpu_scripts.aot import compiler, report, steps
from tpu_scripts.aot.lowering import hlo, unknown_operations
from tpu_scripts.aot.tracing import make_strategy, trace
from tpu_steps import OPTIONS, traced

core = pytest.mark.core
REPLICAS = 4
NUMBER = 6  # rows on each replica
TABLE = (500, 3)
LARGE = 1_000_000
WIDTH = 128  # a row fills the lanes: narrower tables are laid out otherwise
ROWS = 1000
DYNAMIC = tf_adamw.DynamicLossScale(growth_interval=3)
VARIED = {
    "plain": {},
    "mean": {"aggregation": "mean"},
    "amsgrad_clip": {"amsgrad": True, "global_clipnorm": 0.5},
    "clipnorm": {"clipnorm": 0.5},
    "ema_overwrite": helpers.OPTIONS["ema_overwrite"],
    "skip_nonfinite": {"skip_nonfinite": True},
    "dynamic": {"loss_scale_factor": DYNAMIC, "global_clipnorm": 0.5},
}
every_index = pytest.mark.parametrize("index", [tf.int32, tf.int64])


def step_of(
    table=TABLE, number=NUMBER, index=tf.int32, replicas=REPLICAS, **options
):
    """Traces a step on a table, given rows, and a bias. Returns a `Step`."""
    with tf.Graph().as_default():
        strategy = make_strategy(replicas)
        with strategy.scope():
            variables = [
                tf.Variable(tf.zeros(table), name="table"),
                tf.Variable(tf.zeros(table[1:]), name="bias"),
            ]
            optimizer = tf_adamw.AdamW(sparse_updates="lazy", **options)
            optimizer.build({"table": variables[0], "bias": variables[1]})

        def step(values, indices, bias):
            rows = tf.IndexedSlices(values, indices)
            result = optimizer.apply([rows, bias], variables)
            return [tensor for tensor in result if tensor is not None]

        program = trace(
            strategy,
            step,
            tf.TensorSpec([number, *table[1:]]),
            tf.TensorSpec([number], index),
            tf.TensorSpec(table[1:]),
        )
        made = steps.Step(program, np.prod(table), 2, 0)
    return made, optimizer, variables, strategy


def of_the_tables_size(program, rows):
    """Collectives with as many rows as the table."""
    kinds = ("CrossReplicaSum", "AllToAll", "XlaAllReduce")
    return [
        operation
        for operation in program.operations
        if operation.type in kinds and rows in operation.shape
    ]


@core
@pytest.mark.parametrize("option", VARIED)
def test_nothing_of_the_tables_size_is_reduced(option):
    program = step_of(**VARIED[option])[0].program
    assert of_the_tables_size(program, TABLE[0]) == []
    assert program.host_operations() == []
    assert unknown_operations(program) == []
    if True in JIT_MODES:
        assert " all-reduce(" in hlo(program)


@core
@every_index
def test_indices_of_both_kinds(index):
    program = step_of(index=index)[0].program
    assert of_the_tables_size(program, TABLE[0]) == []
    assert program.host_operations() == []
    assert unknown_operations(program) == []


@core
def test_reduced_rows_are_not_gathered():
    program = step_of(aggregation="none")[0].program
    assert program.all_reduces() == []
    assert unknown_operations(program) == []


@core
def test_dense_gradients_are_reduced_as_ever():
    step = traced(sparse_updates="lazy", **OPTIONS["ema_overwrite"])
    shapes = sorted(operation.shape for operation in step.program.all_reduces())
    assert shapes == sorted(helpers.SHAPES.values())


class Run:
    """The replicas of a step on CPUs, beside the reference."""

    def __init__(self, rng, **options):
        weights = helpers.random_weights(rng, {"table": (9, 3), "bias": (3,)})
        made, optimizer, variables, strategy = step_of((9, 3), **options)
        values = helpers.as_variables(weights)
        same = tf_adamw.AdamW(sparse_updates="lazy", **options)
        same.build(values)
        local = strategy.experimental_local_results
        start = {
            local(variable)[0].handle.op.name: value.numpy()
            for variable, value in zip(
                [*variables, *optimizer.variables],
                [*values.values(), *same.variables],
                strict=True,
            )
        }
        self.replicas = Replicas(made.program, start, REPLICAS)
        self._share = 1
        if options.pop("aggregation", "sum") == "mean":
            self._share = REPLICAS
        self.reference = RowwiseAdamW(weights, **options)

    def step(self, values, indices, bias):
        """One step; each argument has a place for each replica."""
        results = self.replicas.run(
            [list(parts) for parts in zip(values, indices, bias, strict=True)]
        )
        joined = np.concatenate(values) / self._share
        applied, norm = self.reference.apply(
            {
                "table": Slices(joined, np.concatenate(indices)),
                "bias": np.sum(bias, 0) / self._share,
            }
        )
        for result in results:
            assert bool(result[0]) == applied
            if applied and len(result) > 1:
                np.testing.assert_allclose(result[1], norm, 1e-5)

    def check(self):
        """Asserts that replicas agree to the bit, and with the reference."""
        for name in self.replicas.state[0]:
            copies = [state[name].numpy() for state in self.replicas.state]
            assert len({copy.tobytes() for copy in copies}) == 1, name
        for key, expected in self.reference.weights.items():
            name, row = key.split("/")
            found = self.replicas.state[0][name].numpy()[int(row)]
            assert helpers.relative_error(found, expected) <= 2e-6, key

    def bits(self):
        """The bytes of all state of the first replica."""
        return {
            name: variable.numpy().tobytes()
            for name, variable in self.replicas.state[0].items()
        }


def random_step(rng):
    """Values, indices (row 0 never) and a bias for each replica."""
    sign = rng.choice([-1.0, 1.0], (9, 3))
    indices = rng.integers(1, 9, (REPLICAS, NUMBER)).astype(np.int32)
    values = sign[indices] * rng.integers(1, 17, (REPLICAS, NUMBER, 3)) / 8
    bias = rng.integers(1, 17, (REPLICAS, 3)) / 8
    return np.float32(values), indices, np.float32(bias)


@core
@pytest.mark.parametrize("option", VARIED)
def test_replicas_do_what_one_would_with_all_rows(rng, option):
    options = VARIED[option]
    run = Run(rng, **options)
    row = run.replicas.state[0]["table"].numpy()[0]
    for _ in range(4):
        values, indices, bias = random_step(rng)
        scale = run.reference.loss_scale
        run.step(values * scale, indices, bias * scale)
    run.check()
    assert (run.replicas.state[0]["table"].numpy()[0] == row).all()


@core
@pytest.mark.parametrize("option", ["skip_nonfinite", "dynamic"])
def test_one_bad_row_makes_all_skip(rng, option):
    run = Run(rng, **VARIED[option])
    for number in range(4):
        values, indices, bias = random_step(rng)
        scale = np.float32(run.reference.loss_scale)
        values, bias = values * scale, bias * scale
        if number in (1, 2):
            values[number, 3, 1] = np.inf
        run.step(values, indices, bias)
    assert run.reference.iterations == 2
    run.check()


@core
def test_a_bad_row_spoils_no_other(rng):
    run = Run(rng)
    values, indices, bias = random_step(rng)
    values[2, 3] = np.inf
    with np.errstate(invalid="ignore"):
        run.step(values, indices, bias)
    table = run.replicas.state[0]["table"].numpy()
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    assert bad.tolist() == [indices[2, 3]]


@functools.cache
def compiled(rows, option):
    """Figures of the step for 4 TPUs, and its module, on so many rows."""
    made, *_ = step_of((rows, WIDTH), ROWS, **VARIED[option])
    executable = compiler.compile_program(made.program, "v5e:2x2")
    return report.figures(made, executable), executable.module


@pytest.mark.tpu
@pytest.mark.parametrize("option", VARIED)
def test_tables_are_updated_in_place(option):
    """Nothing moves a table: what touches one scatters rows into it."""
    figures, module = compiled(LARGE, option)
    written = figures["state_buffers_written"]
    assert figures["state_buffers_in_place"] == written
    kernels = module.touching(4 * LARGE * WIDTH)
    tables = 3 + sum(
        bool(VARIED[option].get(name)) for name in ("amsgrad", "use_ema")
    )
    writing = [
        kernel for kernel in kernels if kernel.name.startswith("scatter")
    ]
    assert len(writing) >= tables
    for kernel in kernels:
        assert not kernel.opcode.startswith("copy"), kernel.name


@pytest.mark.tpu
@pytest.mark.parametrize("option", ["plain", "clipnorm", "dynamic"])
def test_memory_does_not_grow_with_the_table(option):
    few, _ = compiled(LARGE // 4, option)
    many, _ = compiled(LARGE, option)
    assert many["memory"]["temporaries"] <= 1.1 * few["memory"]["temporaries"]
    assert many["memory"]["temporaries"] < 4 * LARGE * WIDTH / 100
    # All but the scatters, whose tables the tool counts as a whole.
    assert many["kernels"] == few["kernels"]
