"""Steps on a CPU in one pass over memory."""

from __future__ import annotations

import functools
import os
import shlex

import tensorflow as tf

from tf_adamw import replicas

_OPTION = "xla_cpu_use_multi_output_fusion"
_FLAG = "--xla_backend_extra_options="


def fuse_on_cpu() -> None:
    """Lets XLA compute several results in one loop on CPUs, in this process.

    A step then takes one pass over memory in place of three. AMSGrad and an
    average take one more each, an average that overwrites two, a clip, a loss
    scale or low precision one for the gradient.

    To be called before anything has used XLA, which reads its flags once, and
    in vain after it. It adds an option to the environment variable
    `XLA_FLAGS`, which processes started from this one have, too; not where that
    names a file. Programs that are not of this package are compiled with the
    option as well. TensorFlow 2.21 knows it; in 2.18 it changes nothing.

    References:
      `xla_backend_extra_options` in
      https://github.com/openxla/xla/blob/main/xla/xla.proto
    """
    text = os.environ.get("XLA_FLAGS", "")
    in_a_file = text and not text.startswith("--")  # then it is its name
    if in_a_file or _OPTION in text:
        return
    flags = shlex.split(text)
    given = [flag for flag in flags if flag.startswith(_FLAG)]
    others = [flag for flag in flags if not flag.startswith(_FLAG)]
    # In one flag: of several, the last might be the one that counts.
    options = ",".join([*(flag[len(_FLAG) :] for flag in given), _OPTION])
    os.environ["XLA_FLAGS"] = " ".join([*others, _FLAG + options])


def serves(variable: tf.Variable, dtype: tf.DType) -> bool:
    """Whether the update of a variable is better off in a form for one pass.

    Args:
      variable: the weights.
      dtype: of the arithmetic. Gradients that are cast to it first take a pass
        of their own.
    """
    if _OPTION not in os.environ.get("XLA_FLAGS", ""):
        return False
    on_cpu = replicas.is_cpu(variable.device)
    return on_cpu and variable.dtype == dtype and _in_effect()


@functools.cache
def _in_effect() -> bool:
    """Found out by trying: there is no public way to ask."""
    with tf.init_scope(), tf.device("CPU:0"):
        # Of two operations each: XLA may not call one alone a fusion.
        program = tf.function(
            lambda x: (x * 2.0 + 1.0, x * x - 2.0),
            jit_compile=True,
            autograph=False,
        )
        compiled = program.experimental_get_compiler_ir(tf.zeros([64]))
        return compiled(stage="optimized_hlo").count(" fusion(") == 1
