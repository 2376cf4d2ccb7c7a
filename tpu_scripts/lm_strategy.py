"""Distribution strategies by name, and what differs between them."""

import tempfile
import textwrap

import tensorflow as tf

KINDS = ["default", "one_device", "mirrored", "tpu", "multi_worker"]


def make_strategy(kind: str, tpu: str | None = None) -> tf.distribute.Strategy:
    """Makes a strategy; for `"tpu"` it connects to and initialises the TPU.

    Args:
      kind: one of `KINDS`.
      tpu: the TPU's name; `"local"`, the default, on a TPU VM.

    Returns:
      The strategy.

    Raises:
      ValueError: the devices cannot be reached.
    """
    try:
        if kind == "one_device":
            accelerated = tf.config.list_logical_devices("GPU")
            return tf.distribute.OneDeviceStrategy(
                "GPU:0" if accelerated else "CPU:0"
            )
        if kind == "mirrored":
            return tf.distribute.MirroredStrategy()
        if kind == "multi_worker":
            return tf.distribute.MultiWorkerMirroredStrategy()
        if kind == "tpu":
            return _tpu_strategy(tpu or "local")
    # Each kind of cluster has its own ways to fail.
    except Exception as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(f"--strategy={kind}: {reason}") from error
    return tf.distribute.get_strategy()


def _tpu_strategy(name: str) -> tf.distribute.Strategy:
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(name)
    return tf.distribute.TPUStrategy(resolver)


def compiles_step(
    strategy: tf.distribute.Strategy, device: str, jit_compile: str
) -> bool:
    """Whether to compile a training step with XLA as a whole.

    Several replicas outside a TPU cannot: the reduction between them has to
    stay outside. A TPU compiles what `strategy.run` is given by itself.

    Args:
      strategy: the strategy.
      device: where its one replica keeps the weights.
      jit_compile: the value of `--jit_compile`.
    """
    if is_tpu(strategy) or strategy.num_replicas_in_sync > 1:
        return False
    return jit_compile == "true" or (jit_compile == "auto" and _has_xla(device))


def _has_xla(device: str) -> bool:
    """Tries it: some TensorFlows have no XLA for the host's CPU."""
    try:
        with tf.device(device):
            tf.function(tf.identity, jit_compile=True)(tf.zeros([]))
    except (tf.errors.OpError, ValueError):
        return False
    return True


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether it is one of the TPU strategies."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def output_directory(strategy: tf.distribute.Strategy, model_dir: str) -> str:
    """Where this process writes.

    In a cluster every worker must take part in saving, and only the chief
    may write to the common directory: the others get one of their own, to be
    thrown away.
    """
    resolver = strategy.cluster_resolver
    spec = resolver.cluster_spec().as_dict() if resolver else {}
    if is_tpu(strategy) or not spec:
        return model_dir
    # Without a chief the first worker is it.
    chief = "chief" if "chief" in spec else "worker"
    if (resolver.task_type, resolver.task_id) == (chief, 0):
        return model_dir
    return tempfile.mkdtemp(prefix="train_lm_worker_")
