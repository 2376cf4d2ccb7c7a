"""What is traced on replicas: where the reductions are, and how often."""

import collections

import pytest
import tensorflow as tf

import helpers
import strategies
import tf_adamw
from strategies import ReplicaPair

pytestmark = pytest.mark.core

# What the default collectives, and ReductionToOneDevice, reduce by.
REDUCTIONS = {
    "mirrored_2": ("CollectiveReduceV2", "CollectiveReduceV3"),
    "mirrored_4": ("AddN",),
    "central_2": ("AddN",),
}
# A packed buffer for each dtype and replica, or a sum for each gradient.
COUNTS = {"mirrored_2": 2 * 2, "mirrored_4": 3, "central_2": 3}
FOUR = pytest.param("mirrored_4", marks=pytest.mark.slow)
every_strategy = pytest.mark.parametrize(
    "name", ["mirrored_2", FOUR, "central_2"]
)
# What a step on an accelerator would have to wait for the host for.
HOST = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "Print", "PrintV2"}
SHAPES = {"kernel": (3, 5), "bias": (5,)}


def built_pair(rng, name, mode, **options):
    """A pair with two float32 variables and one float64 variable."""
    weights = helpers.random_weights(rng, SHAPES)
    weights |= helpers.random_weights(rng, {"scale": (2,)}, "float64")
    return ReplicaPair(strategies.named(name), weights, mode, **options)


def traced(pair, steps=1):
    """The concrete function of some steps in a row."""
    optimizer, variables = pair.optimizer, list(pair.variables.values())
    specs = [tf.TensorSpec(v.shape, v.dtype) for v in variables]

    def step(gradients):
        return optimizer.apply([2.0 * g for g in gradients], variables)

    def run(gradients):
        for _ in range(steps):
            pair.strategy.run(step, (gradients,))

    return tf.function(run, autograph=False).get_concrete_function(specs)


def parts_of(function):
    """Counts operations: {"outside", "conditional", "compiled": {op: n}}."""
    graph = function.graph.as_graph_def()
    library = {f.signature.name: f for f in graph.library.function}
    counts = collections.defaultdict(collections.Counter)

    def walk(nodes, part):
        for node in nodes:
            counts[part][node.op] += 1
            for value in node.attr.values():
                for called in [value.func, *value.list.func]:
                    if called.name in library:
                        enter(node, library[called.name], part)

    def enter(node, function, part):
        if function.attr["_XlaMustCompile"].b or part == "compiled":
            part = "compiled"
        elif node.op in ("If", "StatelessIf"):
            part = "conditional"
        walk(function.node_def, part)

    walk(graph.node, "outside")
    return counts


def reductions(function, name):
    parts = parts_of(function)
    return {
        part: sum(counts[op] for op in REDUCTIONS[name])
        for part, counts in parts.items()
        if any(counts[op] for op in REDUCTIONS[name])
    }


@pytest.mark.parametrize("mode", [*helpers.JIT_MODES, "auto"])
@every_strategy
def test_gradients_are_reduced_once_a_step(rng, name, mode):
    """In no compiled program: XLA has no MirroredStrategy's collectives."""
    pair = built_pair(rng, name, mode)
    for steps in (1, 2):
        found = reductions(traced(pair, steps), name)
        assert found == {"outside": steps * COUNTS[name]}


@pytest.mark.parametrize("mode", [*helpers.JIT_MODES, "auto"])
@pytest.mark.parametrize("name", ["mirrored_2", FOUR])
def test_windows_are_reduced_in_a_conditional(rng, name, mode):
    pair = built_pair(rng, name, mode, gradient_accumulation_steps=3)
    found = reductions(traced(pair), name)
    assert found == {"conditional": COUNTS[name]}


def test_central_storage_reduces_every_micro_step(rng):
    """Its one accumulator is where the variables are."""
    pair = built_pair(rng, "central_2", "auto", gradient_accumulation_steps=3)
    found = reductions(traced(pair), "central_2")
    assert found == {"outside": COUNTS["central_2"]}


@every_strategy
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 3, "clipvalue": 0.5},
        {"skip_nonfinite": True, "use_ema": True, "amsgrad": True},
    ],
)
def test_reduced_gradients_are_not_reduced_again(rng, name, options):
    pair = built_pair(rng, name, "auto", aggregation="none", **options)
    assert reductions(traced(pair), name) == {}


@pytest.mark.parametrize("name", ["mirrored_1", "one_device"])
def test_one_replica_reduces_nothing(rng, name):
    pair = built_pair(rng, name, "auto", global_clipnorm=0.5)
    operations = helpers.operations(traced(pair))
    assert not any("Collective" in operation for operation in operations)


@every_strategy
@pytest.mark.parametrize("mode", helpers.JIT_MODES)
@pytest.mark.parametrize("scale", [None, "dynamic"])
def test_one_program_per_replica(rng, name, mode, scale):
    """It has all assignments, those to counters and loss scale included."""
    pair = built_pair(rng, name, mode, use_ema=True)
    pair.optimizer = tf_adamw.AdamW(
        jit_compile=mode, use_ema=True, loss_scale_factor=scale
    )
    function = traced(pair)
    parts = parts_of(function)
    counted = sum(part["AssignAddVariableOp"] for part in parts.values())
    assert counted == (1 if name == "central_2" else pair.count)
    if mode:
        assert set(parts) - {"compiled"} == {"outside"}
        assert not [op for op in parts["outside"] if op.startswith("Assign")]
    assert not HOST & set(helpers.operations(function))


@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm"])
def test_norms_are_added_up_in_one_order(rng, clipping):
    """Outside of XLA, AddN starts from whichever input it may overwrite.

    Its rounding may differ from one replica to the other.
    """
    options = {clipping: 1.0, "skip_nonfinite": True}
    pair = built_pair(rng, "mirrored_2", False, **options)
    assert "AddN" not in helpers.operations(traced(pair))


@every_strategy
@pytest.mark.parametrize("window", [None, 2])
def test_eager_steps_trace_once(rng, functions, name, window):
    pair = built_pair(
        rng,
        name,
        "auto",
        gradient_accumulation_steps=window,
        global_clipnorm=0.5,
        use_ema=True,
        ema_overwrite_frequency=2,
    )
    pair.train(rng, window or 1, way="eager")
    first = sum(f.experimental_get_tracing_count() for f in functions)
    for rate in (0.01, 0.02):
        pair.optimizer.learning_rate = rate
        pair.reference.learning_rate = rate
        pair.train(rng, 4, way="eager")
    again = sum(f.experimental_get_tracing_count() for f in functions)
    assert again == first > 0
    pair.check()
