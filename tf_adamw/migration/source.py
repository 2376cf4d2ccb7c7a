"""What another optimizer's file holds, and what it is in AdamW's terms.

AdamW's step, with `t = iterations + 1`:

    w <- w - lr * wd * w - alpha * m / (sqrt(v) + epsilon)
    alpha = lr * sqrt(1 - beta_2^t) / (1 - beta_1^t)

Others differ from it in what epsilon is added to, in whether the moments are
corrected for their bias, and in what the decay is multiplied by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_adamw import arguments as checks
from tf_adamw import decay

CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")
SETTINGS = ("learning_rate", "weight_decay", "beta_1", "beta_2", "epsilon")

# What most do outside of their optimizers.
UNTOLD = frozenset(
    (*CLIPS, "gradient_accumulation_steps", "ema_overwrite_frequency")
)

# 1 - beta^t is 1 in float32 from here on.
_NEGLIGIBLE = 2.0**-25


def count(value: Any, name: str) -> int:
    """Returns a counter that a file has, as an int.

    Args:
      value: a number, or an array of one without a shape.
      name: what it counts, and of what, for people.

    Raises:
      ValueError: if it is no whole number from 0 on that an int64 holds.
    """
    found = np.asarray(value)
    number = found.item() if not found.shape else None
    if (
        not isinstance(number, (int, float))
        or not 0 <= number < 2**63
        or number != int(number)
    ):
        got = f"the shape {found.shape}" if found.shape else repr(number)
        raise ValueError(f"{name} must be a whole number >= 0, got {got}.")
    return int(number)


def correction(beta: float, t: int) -> float:
    """`1 - beta^t`, by which a moment is corrected after `t` updates."""
    return -math.expm1(t * math.log(beta)) if beta else 1.0


@dataclasses.dataclass(frozen=True)
class Source:
    """The state of another optimizer, in its own conventions.

    Attributes:
      optimizer: what it is, for people: "PyTorch AdamW".
      iterations: the number of updates it has applied.
      slots: `{variable: {slot: array}}`: the slots under AdamW's names
        ("momentum", "velocity", "velocity_max", "average"), the variables
        under the source's: "0", "1" ... where it only counts them.
      settings: its `learning_rate`, `weight_decay`, `beta_1`, `beta_2` and
        `epsilon`, as it defines them; without those that are no numbers.
      assumed: those settings that the file does not tell, and that nobody
        gave: they are the library's defaults.
      positional: whether the variables are only counted.
      algorithm_1: whether epsilon is added to the root of the corrected
        velocity, `sqrt(v / (1 - beta_2^t)) + epsilon`, as in Algorithm 1 of
        Kingma and Ba, and not to `sqrt(v)`.
      bias_correction: whether the moments are corrected at all: if not,
        `alpha = lr`.
      decay_coupling: "learning_rate" if a step decays by `lr * wd`, "none" if
        by `wd` alone.
      decayed: `{variable: bool}` where the source knows which it decays.
      multipliers: `{variable: factor}` on the learning rate; None where the
        source has one and does not tell it.
      decay_multipliers: `{variable: factor}` on the weight decay, of those that
        are decayed.
      options: other arguments of AdamW that the source used: `amsgrad`,
        `use_ema`, `ema_momentum`, clips.
      untold: those of which the file cannot tell whether they were used.
      weights: `{variable: array}`, if the file has them.
      weights_at: where in the file, for people: if there are several, `weights`
        has none.
      aliases: `{variable: another name that it has}`, for matching.
      output_first: whether its kernels are [out, in], and AdamW's [in, out].
      ignored: what else the file has of the optimizer and AdamW has not.
      unlike: why no AdamW may have its next step, for people: a difference
        each.
      notes: what else to know of it, for people.
    """

    optimizer: str
    iterations: int
    slots: Mapping[str, Mapping[str, np.ndarray]]
    settings: Mapping[str, float]
    assumed: frozenset[str] = frozenset()
    positional: bool = False
    algorithm_1: bool = False
    bias_correction: bool = True
    decay_coupling: str = "learning_rate"
    decayed: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    multipliers: Mapping[str, float | None] = dataclasses.field(
        default_factory=dict
    )
    decay_multipliers: Mapping[str, float] = dataclasses.field(
        default_factory=dict
    )
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    untold: frozenset[str] = UNTOLD
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    weights_at: tuple[str, ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    output_first: bool = False
    ignored: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count(self.iterations, f"The iterations of {self.optimizer}")
        for name in ("beta_1", "beta_2"):
            checks.number(name, self.settings[name])

    @property
    def counter(self) -> int:
        """What AdamW's `iterations` has to be.

        Without bias correction: so large that there is none in float32.
        """
        if self.bias_correction:
            return self.iterations
        slowest = max(self.settings["beta_1"], self.settings["beta_2"])
        if slowest == 0:
            return self.iterations
        vanished = math.ceil(math.log(_NEGLIGIBLE) / math.log(slowest))
        return max(self.iterations, vanished)

    @property
    def epsilon(self) -> float:
        """AdamW's epsilon of the next step.

        epsilon_hat = epsilon * sqrt(1 - beta_2^(iterations + 1))
        """
        epsilon = self.settings["epsilon"]
        return epsilon * self._growth if self.algorithm_1 else epsilon

    @property
    def epsilon_error(self) -> float:
        """How far a constant epsilon is off in later steps, at most.

        Relative to the epsilon that the source would have: 0 in the next
        step, and where its epsilon is AdamW's.
        """
        return 1 - self._growth if self.algorithm_1 else 0.0

    @property
    def _growth(self) -> float:
        beta_2, t = self.settings["beta_2"], self.iterations + 1
        return math.sqrt(correction(beta_2, t))

    def weight_decay(
        self, coupling: str = "learning_rate", base: float | None = None
    ) -> float | None:
        """AdamW's weight decay of the next step; None if it is not known.

        Args:
          coupling: AdamW's `decay_coupling`.
          base: its `base_learning_rate`.
        """
        decay = self.settings.get("weight_decay")
        if coupling == self.decay_coupling or not decay:
            return decay
        rate = self.settings.get("learning_rate")
        if coupling == "none":
            return None if rate is None else decay * rate
        if self.decay_coupling == "none":
            decay = decay / rate if rate else None
        if coupling == "learning_rate" or decay is None:
            return decay
        return None if base is None else decay * base

    def numbers(
        self, coupling: str = "learning_rate", base: float | None = None
    ) -> dict[str, float]:
        """Returns what is known of the settings, as AdamW defines them.

        Args:
          coupling: as in `weight_decay`.
          base: likewise.
        """
        known = {
            **{n: self.settings[n] for n in SETTINGS if n in self.settings},
            "epsilon": self.epsilon,
            "weight_decay": self.weight_decay(coupling, base),
        }
        return {n: value for n, value in known.items() if value is not None}

    def assigned(
        self, coupling: str = "learning_rate", base: float | None = None
    ) -> dict[str, float]:
        """Returns the numbers that an import assigns: neither is assumed.

        Args:
          coupling: as in `weight_decay`.
          base: likewise.
        """
        return {
            name: value
            for name, value in self.numbers(coupling, base).items()
            if name in ("learning_rate", "weight_decay")
            and name not in self.assumed
        }

    def arguments(self, **given: Any) -> dict[str, Any]:
        """Returns the arguments of `AdamW` for the source's next step.

        A learning rate that the source does not tell, or that was a schedule,
        is left out. `decay_coupling` is among them where it is not AdamW's
        default.

        Args:
          **given: arguments of `AdamW` that count instead of the source's.

        Raises:
          ValueError: if the weight decay is not known, and not given: AdamW's
            default must not stand in for it.
        """
        coupling = given.get("decay_coupling", self.decay_coupling)
        checks.choice("decay_coupling", coupling, decay.COUPLINGS)
        base = decay.base_rate(
            coupling,
            given.get("learning_rate", self.settings.get("learning_rate")),
            given.get("base_learning_rate"),
        )
        arguments = {**self.numbers(coupling, base), **self.options, **given}
        if "weight_decay" not in arguments:
            told = "weight_decay" in self.settings
            missing = "learning_rate" if told else "weight_decay"
            raise ValueError(
                f"The file of {self.optimizer} does not tell the weight decay "
                f"of the next step: give {missing}= to read(), or "
                "weight_decay= to arguments()."
            )
        if coupling != "learning_rate":
            arguments["decay_coupling"] = coupling
        if base is not None:
            arguments["base_learning_rate"] = base
        return arguments
