"""A Keras 3 model that reads handwritten digits, in a loop of one's own.

    python -m tpu_scripts.examples.keras_loop

On two replicas, here of the CPU; the model is compiled by XLA, and the step of
the optimizer is.
"""

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from sklearn import datasets

from tf_adamw import AdamW

STEPS = flags.DEFINE_integer("steps", 300, "Training steps.")


def main(_: list[str]) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, halves)
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    keras.utils.set_random_seed(0)
    images, labels = datasets.load_digits(return_X_y=True)
    images = images.reshape([-1, 64]).astype(np.float32) / 16
    with strategy.scope():
        model = keras.Sequential(
            [keras.layers.Dense(128, "relu"), keras.layers.Dense(10)]
        )
        model.build((None, 64))
        # Each replica's loss is the mean over its own part of the batch.
        optimizer = AdamW(2e-3, weight_decay=0.1, aggregation="mean")
        optimizer.build(model)
    mean_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(jit_compile=True)
    def gradients(images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = mean_loss(labels, model(images, training=True))
        return tape.gradient(loss, model.trainable_variables)

    def replica_step(images: tf.Tensor, labels: tf.Tensor) -> None:
        optimizer.apply(gradients(images, labels))

    @tf.function
    def train(batches: tf.distribute.DistributedIterator) -> None:
        for _ in tf.range(STEPS.value):
            strategy.run(replica_step, args=next(batches))

    data = tf.data.Dataset.from_tensor_slices((images[:1347], labels[:1347]))
    data = data.shuffle(1347).repeat().batch(64)
    train(iter(strategy.experimental_distribute_dataset(data)))
    right = np.argmax(model(images[1347:]), axis=-1) == labels[1347:]
    print(f"held-out accuracy: {np.mean(right):.3f}")


if __name__ == "__main__":
    app.run(main)
