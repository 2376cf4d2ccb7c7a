"""Steps compiled for TPUs, and the bars that each of them has to hold."""

import dataclasses
import functools

import tensorflow as tf

import helpers
import tf_adamw
from tpu_scripts.aot import compiler, report, shapes, steps
from tpu_scripts.aot.floor import count, size
from tpu_scripts.aot.hlo import Module

LARGE = (4096, 8192)  # 33.5 M elements, 128 MiB of float32
SHAPES = {
    "single": {"kernel": LARGE},
    "large": {"kernel": LARGE, "bias": (8192,), "scale": ()},
    # 128 MiB of bfloat16: less, and the chip's own memory would hold it.
    "larger": {"kernel": (8192, 8192), "bias": (8192,)},
    "gpt2-small": shapes.gpt2_small(),
    "two-blocks": {
        key: shape
        for key, shape in shapes.gpt2_small().items()
        if not key.startswith("h/") or key.split("/")[1] in ("0", "1")
    },
}
_CONSTANT = {"format_version", "learning_rate", "weight_decay"}
_SMALL = 20 * 2**20  # bytes of temporaries: two matrices of GPT-2's blocks
_INTEGERS = ("s32", "u32", "s64", "u64")
# What arithmetic with 64 bits becomes in halves of 32, but for a counter's +1.
_EMULATION = {
    "count-leading-zeros",
    "divide",
    "multiply",
    "or",
    "remainder",
    "shift-left",
    "shift-right-logical",
    "subtract",
}


class Decay(helpers.LinearDecay):
    """Makes a float of the step by way of int32, which TPUs have."""

    def __call__(self, step):
        return super().__call__(tf.cast(step, tf.int32))


def _with_tpu_schedules(options):
    return {
        name: Decay(value.start, value.slope)
        if isinstance(value, helpers.LinearDecay)
        else value
        for name, value in options.items()
    }


ALONE = {
    **{k: _with_tpu_schedules(v) for k, v in helpers.OPTIONS.items()},
    "mean": {"aggregation": "mean"},
    "none": {"aggregation": "none"},
    "decay_multipliers": {"weight_decay_multipliers": {"bias": 0.5}},
    "coupling_schedule": {"decay_coupling": "schedule"},
    "coupling_none": {"decay_coupling": "none"},
    "norm_groups": {"norm_groups": {"all": "."}},
}
_TOGETHER = (
    "skip_nonfinite+clipnorm",
    "skip_nonfinite+global_clipnorm",
    "skip_nonfinite+ema",
    "dynamic_loss_scale+global_clipnorm",
)
OPTIONS = (
    *ALONE,
    *_TOGETHER,
    *(
        f"accumulation+{name}"
        for name in (*ALONE, *_TOGETHER)
        if name not in ("plain", "accumulation", "everything")
    ),
)


def options_of(names):
    """The arguments for "a+b"."""
    return {k: v for name in names.split("+") for k, v in ALONE[name].items()}


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to compile: "a+b" of options, variables of SHAPES."""

    option: str
    topology: str
    shapes: str = "large"
    dtype: tf.DType = tf.float32

    def __str__(self):
        return f"{self.option}-{self.topology}-{self.shapes}-{self.dtype.name}"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step, and what the optimizer says of it.

    Attributes:
      options: the optimizer's arguments.
      dtype: of the variables and gradients.
      figures: those of `report.figures`.
      module: the optimized HLO.
      largest: the bytes of the largest variable.
      number: how many variables are of that size.
      state: the bytes of weights and slots.
      large_buffers: how many weights and slots are at least of that size.
      vectors: the number of elements of each variable that is no scalar.
      written: the number of buffers of state that a step writes.
      counters: the number of int64 ones among them.
    """

    options: dict[str, object]
    dtype: tf.DType
    figures: dict[str, object]
    module: Module
    largest: int
    number: int
    state: int
    large_buffers: int
    vectors: list[int]
    written: int
    counters: int

    @property
    def accumulates(self):
        return bool(self.options.get("gradient_accumulation_steps"))

    @property
    def skips(self):
        scale = self.options.get("loss_scale_factor")
        dynamic = isinstance(scale, tf_adamw.DynamicLossScale)
        return dynamic or bool(self.options.get("skip_nonfinite"))

    @property
    def looks_first(self):
        """Whether all gradients are read before the first is used."""
        clips = {"clipnorm", "global_clipnorm"} & {*self.options}
        return bool(clips) or self.skips


@functools.cache
def compiled(case):
    """The compiled step of a `Case`."""
    options = options_of(case.option)
    return compile_step(
        case.topology, SHAPES[case.shapes], case.dtype, **options
    )


def compile_step(topology, shapes, dtype=tf.float32, **options):
    """Compiles the step of an optimizer with these options."""
    made = []

    def make_optimizer():
        made.append(tf_adamw.AdamW(**options))
        return made[0]

    replicas = compiler.count_replicas(topology)
    step = steps.optimizer_step(make_optimizer, shapes, replicas, dtype)
    executable = compiler.compile_program(step.program, topology)
    written = [
        variable
        for variable in made[0].variables
        if variable.name.split(":")[0] not in _CONSTANT
    ]
    weights = [tf.TensorSpec(shape, dtype) for shape in shapes.values()]
    sizes = [size([weight]) for weight in weights]
    slots = [variable for variable in written if variable.shape.rank]
    buffers = [*sizes, *(size([slot]) for slot in slots)]
    return Compiled(
        options=options,
        dtype=dtype,
        figures=report.figures(step, executable),
        module=executable.module,
        largest=max(sizes),
        number=sizes.count(max(sizes)),
        state=sum(buffers),
        large_buffers=sum(buffer >= max(sizes) for buffer in buffers),
        vectors=[count([weight]) for weight in weights if weight.shape.rank],
        written=len(weights) + len(written),
        counters=sum(v.dtype == tf.int64 for v in written),
    )


def literal_floor(found):
    """Bytes per parameter of the cheapest and of the costliest micro-step.

    As numbers, for float32: apart from tpu_scripts/aot/floor.py.
    """
    update = 28
    update += 8 * bool(found.options.get("amsgrad"))
    update += 8 * bool(found.options.get("use_ema"))
    update += 4 * found.looks_first
    alone = found.options.get("aggregation") == "none"
    if found.accumulates and alone:
        # The accumulator is read beside each gradient, and no sum written.
        return 12, update + 4 * (1 + found.looks_first)
    if found.accumulates:
        return 12, 12 + update
    return 4 if found.skips else update, update


def check_bytes(found):
    figures = found.figures
    assert figures["hbm_bytes"] <= 1.01 * figures["floor_bytes"]
    assert figures["hbm_bytes_least"] <= 1.01 * figures["floor_bytes_least"]


def check_memory(found):
    """No temporary is as large as a variable; results of all-reduces may be.

    All of them where each has to be there before the first is used.
    """
    reductions = [i for _, i in found.module.running() if i.collective]
    results = [sum(reduction.written()) for reduction in reductions]
    many = len(found.vectors) > 100
    if found.accumulates or many:
        # What is on the chip at first may have to leave it, for a conditional
        # or for other results.
        results = [sum(array.size for array in i.arrays) for i in reductions]
    needed = sum(results) if found.looks_first else max(results, default=0)
    temporaries = found.figures["memory"]["temporaries"]
    assert temporaries - needed < (found.largest / 2 if many else _SMALL)


def check_in_place(found):
    assert found.figures["state_buffers_written"] == found.written
    assert found.figures["state_buffers_in_place"] == found.written
    assert len({*found.module.aliases.values()}) == found.written
    assert found.figures["memory"]["aliased"] >= found.state


def check_kernels(found):
    """One kernel updates a variable, and few others touch it.

    XLA may make one kernel of those of several variables.
    """
    touching = found.module.touching(found.largest)
    assert {kernel.opcode for kernel in touching} == {"fusion"}
    written = [
        [size for size in kernel.written() if size >= found.largest]
        for kernel in touching
    ]
    writing = sum(1 for sizes in written if sizes)
    assert writing <= found.number * (1 + found.accumulates)
    assert len(touching) - writing <= found.number * found.looks_first
    # The accumulator is one of them.
    assert sum(map(len, written)) == found.large_buffers
    passes = 1 + found.accumulates + found.looks_first
    vectors = found.module.reaching(min(found.vectors))
    fusions = [kernel for kernel in vectors if kernel.opcode == "fusion"]
    assert len(fusions) <= passes * len(found.vectors)
    # Of a loop one round alone would be counted.
    assert not [i for _, i in found.module.running() if i.opcode == "while"]


def check_counters(found):
    """Of 64-bit arithmetic there is but each counter's own +1, in halves."""
    running = [i for _, i in found.module.running() if i.moves]
    scalars = [i for i in running if i.kind == "scalar operations"]
    halves = [i for i in scalars if i.arrays[0].dtype == "u32"]
    assert not [i for i in halves if i.opcode in _EMULATION]
    added = [i for i in halves if i.opcode == "add"]
    assert len(added) <= 2 * found.counters
    combined = [i for i in running if i.target == "X64Combine"]
    assert len(combined) <= found.counters
    # A modulo of 64 bits alone would be more than a thousand.
    integers = [
        i
        for i in scalars
        if i.opcode != "copy" and i.arrays[0].dtype in _INTEGERS
    ]
    assert len(integers) <= 100


def check_collectives(found):
    """The gradients are reduced once, where the step updates."""
    collectives = found.figures["collectives"]
    moved = {kind: found["bytes"] for kind, found in collectives.items()}
    if found.options.get("aggregation") == "none":
        assert moved == {}
        return
    # Low precision is summed to float32 by the all-reduce itself.
    width = 4 if found.accumulates else found.dtype.size
    assert moved == {"all-reduce": width * found.figures["parameters"]}
    if found.accumulates:
        assert found.module.collective_traffic().least == 0


BARS = {
    "bytes": check_bytes,
    "memory": check_memory,
    "in_place": check_in_place,
    "kernels": check_kernels,
    "counters": check_counters,
    "collectives": check_collectives,
}
