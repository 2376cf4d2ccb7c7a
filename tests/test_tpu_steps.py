"""Training steps as the programs that a TPUStrategy makes of them.

An all-reduce of a program is that of one gradient; XLA's combiner packs them
into buckets. Whatever is a scalar every replica computes from the reduced
gradients by itself.
"""

import pytest
import tensorflow as tf

import tf_adamw
from helpers import JIT_MODES, SHAPES
from tpu_scripts.aot.lowering import hlo, unknown_operations
from tpu_scripts.aot.tracing import make_strategy, trace
from tpu_steps import OPTIONS, build, called, conditional, traced

pytestmark = pytest.mark.core

QUICK = ("plain", "global_clipnorm", "mean", "accumulation", "all_dynamic")
each_size = pytest.mark.parametrize(
    "replicas", [8, pytest.param(256, marks=pytest.mark.slow)]
)


def check(step, reduced=SHAPES, path=()):
    """Asserts what holds for every step.

    Args:
      step: the step.
      reduced: the variables whose gradients are reduced, once each.
      path: by which kinds of function calls the reductions are reached.
    """
    program = step.program
    reductions = program.all_reduces()
    shapes = sorted(SHAPES[key] for key in reduced)
    assert sorted(o.shape for o in reductions) == shapes
    for reduction in reductions:
        assert reduction.dtype == tf.float32
        assert tuple(kind for _, kind in reduction.path) == path
    assert program.host_operations() == []
    assert unknown_operations(program) == []
    cores = step.strategy.extended.worker_devices
    for handles in program.state().values():
        assert tuple(handle.device for handle in handles) == cores
    # The tensorflow-tpu wheel has no XLA for the host, and so no HLO to show.
    if True in JIT_MODES:
        text = hlo(program)
        assert text.count(" all-reduce(") == len(reductions)
        # Loops and branches stay, calls are inlined.
        if not {*path} <= {"f"}:
            _, entry = text.split("\nENTRY ")
            assert " all-reduce(" not in entry


@each_size
def test_one_all_reduce_per_gradient(replicas):
    check(traced(replicas=replicas))


@each_size
def test_one_all_reduce_per_window(replicas):
    """All are in one conditional's branch: three of four steps have none."""
    step = traced(replicas=replicas, gradient_accumulation_steps=4)
    check(step, path=("then_branch",))
    assert len({o.path for o in step.program.all_reduces()}) == 1


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(option, marks=() if option in QUICK else pytest.mark.slow)
        for option in OPTIONS
    ],
)
def test_options_add_no_all_reduce(option):
    options = OPTIONS[option]
    windows = "gradient_accumulation_steps" in options
    check(traced(**options), path=("then_branch",) if windows else ())


@pytest.mark.parametrize("option", ["plain", "everything"])
def test_reduced_gradients_are_not_reduced_again(option):
    check(traced(aggregation="none", **OPTIONS[option]), reduced=[])


@pytest.mark.parametrize(
    "dtype", [tf.bfloat16, pytest.param(tf.float16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("option", ["plain", "ema", "accumulation"])
def test_low_precision(option, dtype):
    step = traced(dtype=dtype, **OPTIONS[option])
    check(step, path=("then_branch",) if option == "accumulation" else ())


def slices(optimizer, variables, gradients):
    """The kernel's gradient is one of rows, some of them repeated."""
    rows = tf.IndexedSlices(
        gradients[0][:2], tf.constant([1, 1]), tf.constant(SHAPES["kernel"])
    )
    return optimizer.apply([rows, *gradients[1:]], variables)


def looped(optimizer, variables, gradients):
    def body(i):
        optimizer.apply(gradients, variables)
        return i + 1

    return tf.while_loop(lambda i: i < 3, body, (0,))


def minimized(optimizer, variables, gradients):
    def loss():
        kernel, bias, scale = variables
        return tf.reduce_sum(gradients[0] * kernel * scale + bias)

    return optimizer.minimize(loss, variables)


WAYS = {
    slices: (),
    looped: ("body",),
    conditional: ("then_branch",),
    called: ("f",),
    minimized: (),
}


@pytest.mark.parametrize(
    "option", ["plain", pytest.param("all_dynamic", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("way", WAYS)
def test_ways_to_write_a_step(way, option):
    options = OPTIONS[option]
    windows = ("then_branch",) if option == "all_dynamic" else ()
    check(traced(way, **options), path=WAYS[way] + windows)


@pytest.mark.parametrize("option", ["plain", "skip_nonfinite"])
def test_no_gradient(option):
    def step(optimizer, variables, gradients):
        return optimizer.apply([gradients[0], None, gradients[2]], variables)

    check(traced(step, **OPTIONS[option]), reduced=["kernel", "scale"])


def test_no_gradient_at_the_end_of_a_window():
    """It may have had one before: all that a window may hold is reduced."""

    def step(optimizer, variables, gradients):
        return optimizer.apply([gradients[0], None, None], variables)

    check(traced(step, gradient_accumulation_steps=2), path=("then_branch",))


def test_two_steps_on_different_variables():
    def step(optimizer, variables, gradients):
        optimizer.apply(gradients[:1], variables[:1])
        return optimizer.apply(gradients[1:], variables[1:])

    check(traced(step))


def test_averages_become_the_weights():
    def step(optimizer, variables, gradients):
        optimizer.finalize_variable_values()
        return optimizer.get_slot(variables[0], "average")

    check(traced(step, use_ema=True), reduced=[])


def build_in_scope(strategy, optimizer, variables):
    with strategy.scope():
        optimizer.build(variables)


def build_twice(strategy, optimizer, variables):
    optimizer.build({key: variables[key] for key in ("kernel", "bias")})
    optimizer.build(variables)


def build_lazily(strategy, optimizer, variables):
    """Leaves it to `apply`."""


@pytest.mark.parametrize(
    "build", [build_in_scope, build, build_twice, build_lazily]
)
@pytest.mark.parametrize(
    "option", [pytest.param("plain", marks=pytest.mark.slow), "all_dynamic"]
)
def test_state_is_on_every_core(option, build):
    options = OPTIONS[option]
    step = traced(build=build, **options)
    check(step, path=("then_branch",) if option == "all_dynamic" else ())
    local = step.strategy.experimental_local_results
    cores = step.strategy.extended.worker_devices
    for variable in step.optimizer.variables:
        assert isinstance(variable, tf.distribute.DistributedValues)
        assert tuple(copy.device for copy in local(variable)) == cores
        # The sum of a window is each core's own.
        own = variable.synchronization == tf.VariableSynchronization.ON_READ
        assert own is ("accumulator" in variable.name)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_assigning_reaches_every_core(name):
    step = traced()
    graph = step.optimizer.iterations.graph
    before = set(graph.get_operations())
    with graph.as_default():
        setattr(step.optimizer, name, 0.5)
    new = set(graph.get_operations()) - before
    devices = [o.device for o in new if o.type == "AssignVariableOp"]
    assert sorted(devices) == sorted(step.strategy.extended.worker_devices)


HELD = {
    "learning_rate": lambda held: {"learning_rate": held},
    "beta_1": lambda held: {"beta_1": held},
    "multiplier": lambda held: {"learning_rate_multipliers": {"kernel": held}},
}


@pytest.mark.parametrize("name", HELD)
def test_scalar_variables_come_from_the_scope(name):
    """The program of a core cannot read a variable of the host."""
    with tf.Graph().as_default():
        strategy, spec = make_strategy(8), tf.TensorSpec([3])
        outside = tf.Variable(0.5)
        with strategy.scope():
            w, inside = tf.Variable(tf.ones([3])), tf.Variable(0.5)
        optimizer = tf_adamw.AdamW(**HELD[name](inside))
        optimizer.build({"kernel": w})
        program = trace(strategy, lambda g: optimizer.apply([g]).applied, spec)
        refusing = tf_adamw.AdamW(**HELD[name](outside))
        with pytest.raises(ValueError, match=r"strategy\.scope\(\)") as refusal:
            refusing.build({"kernel": w})
    assert program.host_operations() == []
    assert "\n" not in str(refusal.value)


def test_the_loss_scale_is_read_in_the_step():
    def step(optimizer, variables, gradients):
        applied = optimizer.apply(gradients, variables).applied
        return applied, optimizer.loss_scale, optimizer.iterations

    check(traced(step, loss_scale_factor="dynamic"))


def test_apply_outside_of_run_is_refused():
    with tf.Graph().as_default():
        strategy = make_strategy(8)
        with strategy.scope():
            w = tf.Variable(tf.ones([3]), name="w")
            optimizer = tf_adamw.AdamW()
            with pytest.raises(
                ValueError, match=r"TPU.*'w'.*run\(\)"
            ) as refusal:
                optimizer.apply([tf.ones([3])], [w])
    assert "\n" not in str(refusal.value)
