"""Times steps of an embedding's rows, "lazy" beside "dense".

    python -m tpu_scripts.benchmark_rows

Each step looks up other rows; "lazy" and "dense" take turns. It prints the
medians, their spreads (interquartile range over median), and the ratio.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf
from absl import app, flags

import tf_adamw

OPTIONS = {
    "plain": {},
    "global_clipnorm, skip_nonfinite, use_ema": {
        "global_clipnorm": 1.0,
        "skip_nonfinite": True,
        "use_ema": True,
    },
}


def define_flags() -> None:
    """Adds the command's flags to absl's."""
    flags.DEFINE_integer("rows", 10_000_000, "Of the table.", 1)
    flags.DEFINE_integer("width", 16, "Of a row.", 1)
    flags.DEFINE_integer("touched", 1000, "Rows in a step.", 1)
    flags.DEFINE_integer("rounds", 9, "Steps of each that count.", 2)


def make_step(sparse_updates: str, **options: object) -> Callable[[], None]:
    """Returns a function that does one step on a table of its own."""
    given = flags.FLAGS
    table = tf.Variable(tf.zeros([given.rows, given.width]), name="table")
    optimizer = tf_adamw.AdamW(sparse_updates=sparse_updates, **options)
    optimizer.build([table])

    @tf.function
    def step(values: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
        slices = tf.IndexedSlices(values, indices, table.shape)
        return optimizer.apply([slices]).applied

    def run() -> None:
        indices = tf.random.uniform([given.touched], 0, given.rows, tf.int32)
        values = tf.random.normal([given.touched, given.width])
        step(values, indices).numpy()

    return run


def timed(step: Callable[[], None]) -> float:
    """Milliseconds of one step."""
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def described(times: Sequence[float]) -> str:
    """The median and the spread."""
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    return f"{median:.2f} ms ({(high - low) / median:.0%})"


def in_turns(
    steps: Mapping[str, Callable[[], None]], rounds: int
) -> dict[str, list[float]]:
    """The times of so many steps of each, after two to warm up."""
    times = {kind: [] for kind in steps}
    for turn in range(rounds + 2):
        for kind, step in steps.items():
            taken = timed(step)
            if turn > 1:
                times[kind].append(taken)
    return times


def compared(times: Mapping[str, Sequence[float]]) -> str:
    """The times of both, and the median of the ratios of neighbours."""
    ratio = statistics.median(
        lazy / dense
        for dense, lazy in zip(times["dense"], times["lazy"], strict=True)
    )
    return (
        f"dense {described(times['dense'])}, lazy {described(times['lazy'])}: "
        f"{ratio:.2%}"
    )


def main(_: Sequence[str]) -> None:
    """Measures and prints."""
    for name, options in OPTIONS.items():
        steps = {kind: make_step(kind, **options) for kind in ("dense", "lazy")}
        print(f"{name}: {compared(in_turns(steps, flags.FLAGS.rounds))}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
