"""What a ParameterServerStrategy trains in the tests."""

from typing import Any, NamedTuple

import tf_adamw

STEPS = 11  # ends in the middle of a window of 3
CONTINUED_TO = 16
CONCURRENT_STEPS = 40


class Run(NamedTuple):
    """A training run on the batches 0 to STEPS - 1.

    Attributes:
      options: of the optimizer.
      shards: the number that every variable is split into.
      build: where: "inside" or "outside" of the scope, or "lazily".
      given: as what the variables are passed: a "model", which lists shards;
        a list of "shards"; or, whole, a "dict", with the gradients of their
        shards; or a "list", with gradients of the whole.
      replica: whether the scheduled function calls `strategy.run`.
      bad: (step, example that has an infinite gradient).
    """

    options: dict[str, Any]
    shards: int = 2
    build: str = "inside"
    given: str = "model"
    replica: bool = True
    bad: tuple[tuple[int, int], ...] = ()

    fused = True

    def has_table(self, number):
        return True


AVERAGES = {
    "use_ema": True,
    "ema_momentum": 0.75,
    "ema_overwrite_frequency": 3,
}
WINDOW = {
    "gradient_accumulation_steps": 3,
    "global_clipnorm": 4.0,
    "amsgrad": True,
    **AVERAGES,
}
BAD = ((2, 0), (6, 11), (7, 0))
RUNS = {
    "plain": Run({}, shards=1),
    "outside": Run({**AVERAGES}, shards=1, build="outside", replica=False),
    "lazy": Run({"clipnorm": 2.0}, shards=1, build="lazily", replica=False),
    "window": Run(WINDOW, shards=1, given="dict"),
    "sharded": Run({}),
    "sharded_lazy": Run(
        {"clipvalue": 2.0, **AVERAGES}, build="lazily", replica=False
    ),
    "sharded_clipnorm": Run({"clipnorm": 2.0}, build="outside", given="dict"),
    "sharded_list": Run(
        {"global_clipnorm": 4.0, "amsgrad": True}, given="list", replica=False
    ),
    "sharded_shards": Run({"clipnorm": 2.0}, build="outside", given="shards"),
    "sharded_window": Run(WINDOW),
    "dynamic": Run(
        {"loss_scale_factor": tf_adamw.DynamicLossScale(growth_interval=2)},
        given="dict",
        bad=BAD,
    ),
}
# Saved in mid-window and continued.
CONTINUED = ("window", "sharded_window")
AVERAGED = ("outside", "sharded_lazy")
CONCURRENT = ("plain", "sharded")
