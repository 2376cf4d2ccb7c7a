"""AdamW: Adam with decoupled weight decay, as a `tf.Module`.

The order of one step is in `step.py`; each stage has a file of its own, the
update itself `update_rule.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from tf_adamw import aggregation as reduction
from tf_adamw import (
    arguments,
    configuration,
    decay,
    groups,
    loss_scale,
    sharding,
    summary,
    tpu_embedding,
)
from tf_adamw.compilation import Programs
from tf_adamw.hyperparameters import Hyperparameters
from tf_adamw.keys import as_list, raw_variable
from tf_adamw.patterns import Selection
from tf_adamw.step import ApplyResult, Step

PLAIN_OPTIONS = (
    "amsgrad",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "gradient_accumulation_steps",
    "name",
    "decay_coupling",
    "base_learning_rate",
    "aggregation",
    "skip_nonfinite",
    "sparse_updates",
    "jit_compile",
)
SPARSE_UPDATES = ("dense", "lazy")
GROUPS = (
    "exclude_from_weight_decay",
    "learning_rate_multipliers",
    "weight_decay_multipliers",
    "norm_groups",
)


class AdamW(Step):
    """Adam with decoupled weight decay.

    One step, for each variable `w` with gradient `g`, at update `t = 1, 2 ...`:

    ```none
    m <- m + (1 - beta_1) * (g - m)
    v <- v + (1 - beta_2) * (g^2 - v)
    alpha = lr * sqrt(1 - beta_2^t) / (1 - beta_1^t)
    w <- w - lr * wd * w - alpha * m / (sqrt(v) + epsilon)
    ```

    Moments and arithmetic are float32 for float32, bfloat16 and float16
    variables and float64 for float64 variables.

    Args:
      learning_rate: `lr`: a number of at least 0, a scalar tensor or
        `tf.Variable`, a callable without arguments, or a schedule: a callable
        of the number of `apply` calls before this one. A callable without
        arguments is called by `apply`, on each replica, where it has to return
        the same: within a `tf.function` once, when that is traced. On a TPU
        all variables must have been made in the strategy's scope.
      weight_decay: `wd`, likewise.
      beta_1: decay rate of the first moment, in [0, 1): a number, a scalar
        tensor or `tf.Variable`, or a callable without arguments.
      beta_2: decay rate of the second moment, likewise.
      epsilon: positive constant for numerical stability, likewise; "epsilon
        hat" of Kingma and Ba, in the formula just before their Section 2.1.
      amsgrad: whether `v` is replaced by the largest `v` so far in the last
        line.
      clipnorm: if set, each gradient is scaled down to at most this norm.
      clipvalue: if set, gradients are cut to `[-clipvalue, clipvalue]`.
      global_clipnorm: if set, all gradients together are scaled down to at
        most this norm.
      use_ema: whether to keep an exponential moving average of the weights.
      ema_momentum: `average <- ema_momentum * average + (1 - ema_momentum) * w`
        after each update; the first one sets `average` to `w`.
      ema_overwrite_frequency: every so many updates the weights become the
        average; None for never. See also `finalize_variable_values`.
      loss_scale_factor: a number that `scale_loss` multiplies by and that
        `apply` divides the gradients by; or "dynamic" or a `DynamicLossScale`,
        which follows the gradients and skips updates that are not finite.
      gradient_accumulation_steps: the number of `apply` calls (micro-steps)
        in the window whose mean gradient makes one update. A variable that
        has no gradient in the last of them takes part if the sum of its
        gradients in the window is not zero.
      name: of the module.
      exclude_from_weight_decay: which variables are not decayed: a list of
        regular expressions, searched in the keys and the variables' names,
        and of variables; or a predicate on the key. Each pattern and variable
        has to match when variables are built.
      learning_rate_multipliers: a dict, or a list of pairs, of what selects
        variables, as above, and factors on their learning rate, numbers or
        scalar variables; the first that selects a variable counts. The update
        and the decay are scaled, the gradient is not: it counts in a clip's
        norm and in checks. (A dict has a variable as `variable.ref()`.) A
        factor of 0 leaves the variables and their state alone; raised after
        many updates, it makes steps longer at first, since moments start from
        zero, by up to 6.6 times with the default betas: raise it gradually.
        See also `layerwise_decay`.
      weight_decay_multipliers: likewise, factors on the weight decay.
      decay_coupling: what the weight decay is multiplied by at each step:
        "learning_rate"; "schedule": `lr / base_learning_rate`, so that the
        decay follows the schedule and not the base rate, as in the paper; or
        "none": 1, as in TensorFlow Addons.
      base_learning_rate: for "schedule": by default the number given as
        learning rate, or what one of Keras's schedules warms up to or starts
        from.
      aggregation: how the gradients of the replicas are reduced: "sum" (the
        loss of each replica is its part of the whole batch's loss), "mean"
        (each is the mean over its own part), or "none": they are reduced
        already, the same on all replicas.
      skip_nonfinite: whether a step whose reduced gradients are not all finite
        changes nothing, on any replica. With accumulation the window is
        dropped.
      sparse_updates: "dense": an `IndexedSlices` is what the gradient is that
        has zeros in the other rows. "lazy": only the rows that it has are
        updated, with their state, and decayed, at a cost that depends on
        their number alone. With an `ema_overwrite_frequency` their averages
        alone become weights. Not with gradient accumulation, which sums up
        whole tables. Either way what repeats a row is added up, in float32
        where it is of low precision.
      norm_groups: a dict of names and what selects variables, as above: groups
        whose `update_norm` and `weight_norm` each `apply` returns. It reads
        their weights as a whole then, lazily updated ones, too.
      jit_compile: True compiles the step by XLA, False runs TensorFlow's fused
        Adam ops. "auto" takes the ops where there is no XLA, and on a CPU for
        many small variables, which they update faster: 256 or more, of fewer
        than 8,192 elements on average, all float32 or float64, without
        `amsgrad`, average, accumulation, lazy rows, `norm_groups` and factors
        in variables; or for lazy rows of bfloat16 tables, without `amsgrad`
        and `norm_groups`, that have five times as many elements as what has a
        dense gradient in low precision. XLA for CPUs converts such a table to
        float32 and back in each step: so do True, and functions of the
        caller's that it compiles, at a cost that depends on the table's size.
        Everywhere else "auto" takes XLA. The ops subtract the decay apart from
        the update, which rounds it away where `lr * wd`, multiplier included,
        is below 3e-8, and in part below 1e-6. TensorFlow has the op for
        `amsgrad` outside of XLA only: in a function that is compiled anyway,
        leave "auto".

    Raises:
      ValueError: if an argument is out of range.

    References:
      Loshchilov and Hutter, 2019: https://arxiv.org/abs/1711.05101
      Kingma and Ba, 2015: https://arxiv.org/abs/1412.6980
      Reddi et al., 2018 (AMSGrad): https://openreview.net/pdf?id=ryQu7f-RZ
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: Any = 0.004,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: Any = 1e-7,
        amsgrad: bool = False,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float
        | str
        | loss_scale.DynamicLossScale
        | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str = "adamw",
        *,
        exclude_from_weight_decay: Any = None,
        learning_rate_multipliers: Any = None,
        weight_decay_multipliers: Any = None,
        decay_coupling: str = "learning_rate",
        base_learning_rate: float | None = None,
        aggregation: str = "sum",
        skip_nonfinite: bool = False,
        sparse_updates: str = "dense",
        norm_groups: Mapping[str, Any] | None = None,
        jit_compile: bool | str = "auto",
    ) -> None:
        steps = arguments.optional_count(
            "gradient_accumulation_steps", gradient_accumulation_steps
        )
        scale = arguments.loss_scale_factor(loss_scale_factor)
        dynamic = isinstance(scale, loss_scale.DynamicLossScale)
        super().__init__(
            name or "adamw",
            Hyperparameters(
                scale.initial if dynamic else None,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                beta_1=beta_1,
                beta_2=beta_2,
                epsilon=epsilon,
            ),
            Selection("exclude_from_weight_decay", exclude_from_weight_decay),
            *(
                groups.Multipliers(name, given)
                for name, given in (
                    ("learning_rate_multipliers", learning_rate_multipliers),
                    ("weight_decay_multipliers", weight_decay_multipliers),
                )
            ),
            groups.NormGroups(norm_groups),
            amsgrad=arguments.flag("amsgrad", amsgrad),
            use_ema=arguments.flag("use_ema", use_ema),
            accumulation_steps=steps,
            aggregation=arguments.choice(
                "aggregation", aggregation, reduction.CHOICES
            ),
            dynamic=dynamic,
        )
        bounds = arguments.clip_bounds(
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
        )
        self.clipnorm = bounds["clipnorm"]
        self.clipvalue = bounds["clipvalue"]
        self.global_clipnorm = bounds["global_clipnorm"]
        self.ema_momentum = arguments.number("ema_momentum", ema_momentum)
        self.ema_overwrite_frequency = arguments.optional_count(
            "ema_overwrite_frequency", ema_overwrite_frequency
        )
        self.decay_coupling = arguments.choice(
            "decay_coupling", decay_coupling, decay.COUPLINGS
        )
        self.base_learning_rate = decay.base_rate(
            decay_coupling, learning_rate, base_learning_rate
        )
        self.sparse_updates = arguments.choice(
            "sparse_updates", sparse_updates, SPARSE_UPDATES
        )
        if self._lazy and (steps or 1) > 1:
            raise ValueError(
                'sparse_updates="lazy" is not to be had with '
                f"gradient_accumulation_steps={steps}, which sums up whole "
                'tables: take "dense".'
            )
        self.loss_scale_factor = scale
        self.skip_nonfinite = arguments.flag("skip_nonfinite", skip_nonfinite)
        self.jit_compile = arguments.jit_mode(jit_compile)
        self._programs = Programs()
        self._fixed = frozenset(
            (
                *PLAIN_OPTIONS,
                *GROUPS,
                *("loss_scale_factor", "beta_1", "beta_2", "epsilon"),
            )
        )

    @property
    def beta_1(self) -> Any:
        """`beta_1`: a Python float, or the tensor or variable given."""
        return self._hyperparameter("beta_1")

    @property
    def beta_2(self) -> Any:
        """`beta_2`, likewise."""
        return self._hyperparameter("beta_2")

    @property
    def epsilon(self) -> Any:
        """`epsilon`, likewise."""
        return self._hyperparameter("epsilon")

    @tf.autograph.experimental.do_not_convert
    def apply_gradients(
        self, grads_and_vars: Iterable[tuple[Any, Any]]
    ) -> ApplyResult:
        """Does one step: `apply` for pairs of gradient and variable.

        Args:
          grads_and_vars: the pairs.

        Returns:
          An `ApplyResult`.

        Raises:
          TypeError: if these are no pairs, and as `apply`.
          ValueError: as `apply`.
        """
        pairs = as_list("grads_and_vars", grads_and_vars)
        if not all(isinstance(p, (tuple, list)) and len(p) == 2 for p in pairs):
            raise TypeError(
                "grads_and_vars must be a list of pairs (gradient, variable)."
            )
        return self.apply([g for g, _ in pairs], [v for _, v in pairs])

    @tf.autograph.experimental.do_not_convert
    def minimize(
        self,
        loss: tf.Tensor | Callable[[], tf.Tensor],
        var_list: Any,
        tape: tf.GradientTape | None = None,
    ) -> ApplyResult:
        """Computes the gradients of a loss and does one step.

        Args:
          loss: a callable without arguments that returns the loss, or the loss
            itself, recorded by `tape`. It is not scaled yet: the loss scale is
            applied here.
          var_list: a list of the variables, or a callable that returns it.
          tape: needed where `loss` is a tensor; where it is a callable, a tape
            of its own records it.

        Returns:
          An `ApplyResult`.

        Raises:
          ValueError: if `loss` is a tensor and there is no tape, and as
            `apply`.
        """
        if callable(loss):
            with tf.GradientTape() as tape:
                loss = loss()
        elif tape is None:
            raise ValueError(
                "minimize needs the tape that recorded the loss, or a "
                "callable that computes the loss."
            )
        if callable(var_list):
            var_list = var_list()
        variables = sharding.in_shards(as_list("var_list", var_list))
        loss = tf.convert_to_tensor(loss)
        raw = [raw_variable(variable) for variable in variables]
        scale = self.scale_loss(tf.ones_like(loss))
        grads = tape.gradient(loss, raw, output_gradients=scale)
        return self.apply(grads, variables)

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns `loss * loss_scale`; without a loss scale, `loss`.

        Raises:
          ValueError: if a constant one is too large for the loss's dtype.
        """
        return loss_scale.scale(loss, self._scale)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, as JSON-able values.

        Variables are represented by their values; where variables or a
        predicate select variables, patterns on their keys do.

        Raises:
          ValueError: if a callable without `get_config` was given, or a
            predicate, and nothing is built.
        """
        return configuration.optimizer_config(
            self, PLAIN_OPTIONS, configuration.described
        )

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> AdamW:
        """Makes an optimizer from what `get_config` returned.

        Args:
          config: the dict.
          custom_objects: classes of schedules by name, before those that are
            imported from where they were defined.
        """
        restored = functools.partial(
            configuration.restored, custom_objects=custom_objects
        )
        return cls(**configuration.arguments_of(config, restored))

    def as_tpu_embedding_optimizer(
        self,
    ) -> tf.tpu.experimental.embedding.Adam:
        """Returns the optimizer for tables that TPUs keep themselves.

        See `tpu_embedding.as_tpu_embedding_optimizer` for what differs.

        Raises:
          ValueError: if the tables' optimizer cannot do what this one does.
        """
        return tpu_embedding.as_tpu_embedding_optimizer(self)

    def summary(self) -> str:
        """Returns a table of what is done to each variable, for printing."""
        return summary.table(self._registry.parameters, self.slots)
