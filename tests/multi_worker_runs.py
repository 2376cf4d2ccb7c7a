"""What the processes of a MultiWorkerMirroredStrategy train in the tests."""

from typing import Any, NamedTuple

import tf_adamw

STEPS = 20  # ends in the middle of a window of 3
CONTINUED_TO = 27


class Run(NamedTuple):
    """A training run on the batches 0 to STEPS - 1.

    Attributes:
      options: of the optimizer.
      build: where: "inside" of the scope, "twice" there, first with some of
        the variables; "outside", or "lazily".
      device_loop: whether all steps are in one `tf.function`.
      partly: whether every second step leaves the table out.
      bad: (step, example that has an infinite gradient).
    """

    options: dict[str, Any]
    build: str = "inside"
    device_loop: bool = False
    partly: bool = False
    bad: tuple[tuple[int, int], ...] = ()

    def has_table(self, number):
        return not self.partly or number % 2 == 0

    @property
    def fused(self):
        return self.options.get("jit_compile") is False

    @property
    def reduces_in_windows(self):
        return (
            "gradient_accumulation_steps" in self.options
            and self.options.get("aggregation") != "none"
        )


AVERAGES = {
    "use_ema": True,
    "ema_momentum": 0.75,
    "ema_overwrite_frequency": 3,
}
WINDOW = {"gradient_accumulation_steps": 3}
# Of the first and of the last worker, in one step and in two in a row.
BAD = ((4, 0), (9, 11), (10, 0))
RUNS = {
    "plain": Run({}),
    "fused": Run({"jit_compile": False}, build="outside"),
    "lazy": Run({"global_clipnorm": 4.0}, build="lazily"),
    "mean": Run({"aggregation": "mean", "clipnorm": 0.5}, build="twice"),
    "none": Run({"aggregation": "none", "amsgrad": True}),
    "averages": Run({"global_clipnorm": 4.0, **AVERAGES}),
    "partly": Run({"amsgrad": True}, build="lazily", partly=True),
    "skip": Run({"skip_nonfinite": True, **AVERAGES}, bad=BAD),
    "dynamic": Run(
        {
            "loss_scale_factor": tf_adamw.DynamicLossScale(
                initial=2.0**10, growth_interval=3
            )
        },
        bad=BAD,
    ),
    "dynamic_loop": Run(
        {
            "loss_scale_factor": tf_adamw.DynamicLossScale(growth_interval=3),
            "gradient_accumulation_steps": 2,
            "jit_compile": False,
        },
        build="outside",
        device_loop=True,
        bad=BAD,
    ),
    "window": Run(
        {**WINDOW, **AVERAGES, "global_clipnorm": 4.0, "amsgrad": True}
    ),
    "window_loop": Run(
        {**WINDOW, **AVERAGES, "clipvalue": 2.0},
        build="lazily",
        device_loop=True,
    ),
    "window_mean": Run(
        {**WINDOW, "aggregation": "mean", "clipnorm": 1.0}, build="twice"
    ),
    "window_none": Run({**WINDOW, "aggregation": "none"}),
    "window_partly": Run(
        {**WINDOW, "skip_nonfinite": True, "jit_compile": False},
        build="outside",
        partly=True,
        bad=BAD,
    ),
}
# Saved in mid-window and continued.
CONTINUED = ("window", "window_mean", "window_none")
# What the job that is interrupted trains, side by side.
JOB = ("averages", "window")
JOB_SAVES_EVERY = 5
JOB_STOPS_AT = 12
