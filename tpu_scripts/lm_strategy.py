"""Distribution strategies by name, and what differs between them."""

import os
import textwrap

import tensorflow as tf

KINDS = ["default", "one_device", "mirrored", "tpu", "multi_worker"]


def make_strategy(
    kind: str, tpu: str | None = None, logical_cpus: int = 2
) -> tf.distribute.Strategy:
    """Makes a strategy, before TensorFlow has started its devices.

    For `"tpu"` it connects to and initialises the TPU, for `"multi_worker"`
    it waits for the other workers of `TF_CONFIG`.

    Args:
      kind: one of `KINDS`.
      tpu: the TPU's name; `"local"`, the default, on a TPU VM.
      logical_cpus: replicas of `"mirrored"` where there is no GPU.

    Returns:
      The strategy.

    Raises:
      ValueError: the devices cannot be reached.
    """
    if kind == "multi_worker" and "TF_CONFIG" not in os.environ:
        raise ValueError(
            "--strategy=multi_worker needs the cluster in TF_CONFIG; "
            "--workers_local=2 starts one on this machine"
        )
    try:
        if kind == "one_device":
            accelerated = tf.config.list_logical_devices("GPU")
            return tf.distribute.OneDeviceStrategy(
                "GPU:0" if accelerated else "CPU:0"
            )
        if kind == "mirrored":
            return _mirrored_strategy(logical_cpus)
        if kind == "multi_worker":
            return tf.distribute.MultiWorkerMirroredStrategy()
        if kind == "tpu":
            return _tpu_strategy(tpu or "local")
    # Each kind of cluster has its own ways to fail.
    except Exception as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(f"--strategy={kind}: {reason}") from error
    return tf.distribute.get_strategy()


def _mirrored_strategy(logical_cpus: int) -> tf.distribute.Strategy:
    if tf.config.list_physical_devices("GPU"):
        return tf.distribute.MirroredStrategy()
    (cpu,) = tf.config.list_physical_devices("CPU")
    if tf.config.get_logical_device_configuration(cpu) is None:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * logical_cpus
        )
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(logical_cpus)]
    )


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


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes to the directory of the run.

    In a cluster every worker takes part in saving, and one of them writes.
    """
    resolver = strategy.cluster_resolver
    spec = resolver.cluster_spec().as_dict() if resolver else {}
    if is_tpu(strategy) or not spec:
        return True
    # Without a chief the first worker is it.
    chief = "chief" if "chief" in spec else "worker"
    return (resolver.task_type, resolver.task_id) == (chief, 0)


def wait_for_workers(strategy: tf.distribute.Strategy) -> None:
    """Returns when all workers of a cluster have called it.

    The one that ends first would be missed by the others.
    """

    @tf.function
    def count() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return context.all_reduce("SUM", tf.ones([]))

    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    try:
        strategy.run(count)
    except tf.errors.OpError:
        # The chief may have ended before its last answer came.
        if is_chief(strategy):
            raise
