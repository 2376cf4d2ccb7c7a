"""A tf_keras model that reads handwritten digits, with `compile` and `fit`.

    python -m tpu_scripts.examples.tf_keras_fit

The learning rate is halved after each epoch without progress.
"""

import numpy as np
import tf_keras
from absl import app, flags
from sklearn import datasets

from tf_adamw.tf_keras import AdamW

EPOCHS = flags.DEFINE_integer("epochs", 10, "Passes over the data.")


def main(_: list[str]) -> None:
    tf_keras.utils.set_random_seed(0)
    images, labels = datasets.load_digits(return_X_y=True)
    images = images.reshape([-1, 8, 8, 1]).astype(np.float32) / 16
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Conv2D(32, 3, activation="relu"),
            tf_keras.layers.Flatten(),
            tf_keras.layers.Dense(128, activation="relu"),
            tf_keras.layers.Dense(10),
        ]
    )
    optimizer = AdamW(
        3e-3,
        weight_decay=0.1,
        global_clipnorm=1.0,
        exclude_from_weight_decay=["bias"],
    )
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    train, held_out = slice(1347), slice(1347, None)
    halved = tf_keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=1)
    model.fit(
        images[train],
        labels[train],
        batch_size=64,
        epochs=EPOCHS.value,
        validation_split=0.1,
        callbacks=[halved],
        verbose=2,
    )
    print(optimizer.adamw.summary())
    _, accuracy = model.evaluate(images[held_out], labels[held_out], verbose=0)
    print(f"held-out accuracy: {accuracy:.3f}")


if __name__ == "__main__":
    app.run(main)
