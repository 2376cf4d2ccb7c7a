"""What a training's curves show of the optimizer."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_adamw import replicas
from tf_adamw.step import ApplyResult


@tf.autograph.experimental.do_not_convert
def write_summaries(
    optimizer: Any, result: ApplyResult | None = None, step: Any = None
) -> None:
    """Writes scalars of one step by `tf.summary`, for TensorBoard.

    These are, below the optimizer's name: `learning_rate`, that of the next
    step, `loss_scale` where it is dynamic, and, of an update that was applied,
    `grad_norm` where a clip by norm computes it, and `update_norm/<group>` and
    `weight_norm/<group>` where there are `norm_groups`. Without a default
    writer, and where `tf.summary.record_if` says so, nothing.

    Call it outside of `strategy.run`, eagerly or in a `tf.function`; on TPU
    outside of the compiled function.

    Args:
      optimizer: an `AdamW`, of `tf_adamw.keras` or `tf_adamw.tf_keras`, too.
      result: what `apply` returned, or `strategy.run` of it. Without one, as
        after `fit`, there are no norms.
      step: by default the number of updates.
    """
    optimizer = getattr(optimizer, "adamw", optimizer)
    step = tf.convert_to_tensor(optimizer.iterations) if step is None else step
    owner = replicas.owner([("iterations", optimizer.iterations)])

    def own(value: Any) -> tf.Tensor:
        # The same on all replicas.
        if owner is None:
            return value
        return owner.experimental_local_results(value)[0]

    def write(name: str, value: Any) -> None:
        tf.summary.scalar(f"{optimizer.name}/{name}", own(value), step)

    write("learning_rate", tf.convert_to_tensor(optimizer.learning_rate))
    if optimizer.loss_scale is not None:
        write("loss_scale", optimizer.loss_scale)
    if result is None:
        return
    norms = {} if result.grad_norm is None else {"grad_norm": result.grad_norm}
    for kind in ("update_norm", "weight_norm"):
        for group, value in (getattr(result, kind) or {}).items():
            norms[f"{kind}/{group}"] = value

    recorded = tf.summary.should_record_summaries()
    with tf.summary.record_if(tf.logical_and(recorded, own(result.applied))):
        for name, value in norms.items():
            write(name, value)
