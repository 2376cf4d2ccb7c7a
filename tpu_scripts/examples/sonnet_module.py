"""A Sonnet module that reads handwritten digits.

    python -m tpu_scripts.examples.sonnet_module

The step is one XLA program: the model, its gradients and the optimizer.
"""

import numpy as np
import sonnet as snt
import tensorflow as tf
from absl import app, flags
from sklearn import datasets

from tf_adamw import AdamW

STEPS = flags.DEFINE_integer("steps", 500, "Training steps.")


class Reader(snt.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = snt.Conv2D(32, 3, name="convolution")
        self.layers = snt.nets.MLP([128, 10], name="layers")

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Returns (batch, 10) logits of (batch, 8, 8, 1) images."""
        hidden = tf.nn.relu(self.convolution(images))
        return self.layers(snt.flatten(hidden))


def main(_: list[str]) -> None:
    tf.random.set_seed(0)
    images, labels = datasets.load_digits(return_X_y=True)
    images = images.reshape([-1, 8, 8, 1]).astype(np.float32) / 16
    model = Reader()
    model(images[:1])  # makes the variables
    optimizer = AdamW(1e-3, weight_decay=0.1, exclude_from_weight_decay=["b$"])
    optimizer.build(model)
    print(optimizer.summary())

    @tf.function(jit_compile=True)
    def step(images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            logits = model(images)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            )
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    data = tf.data.Dataset.from_tensor_slices((images[:1347], labels[:1347]))
    for batch in data.shuffle(1347).repeat().batch(64).take(STEPS.value):
        step(*batch)
    right = np.argmax(model(images[1347:]), axis=-1) == labels[1347:]
    print(f"held-out accuracy: {np.mean(right):.3f}")


if __name__ == "__main__":
    app.run(main)
