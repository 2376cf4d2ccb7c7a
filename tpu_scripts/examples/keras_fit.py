"""A Keras 3 model that reads handwritten digits, with `compile` and `fit`.

    python -m tpu_scripts.examples.keras_fit

The optimizer's average of the weights is what `fit` leaves in the model. The
file has the optimizer's whole state: training goes on where it ended.
"""

import os
import tempfile

import keras
import numpy as np
from absl import app, flags
from sklearn import datasets

from tf_adamw.keras import AdamW

EPOCHS = flags.DEFINE_integer("epochs", 10, "Passes over the data.")


def main(_: list[str]) -> None:
    keras.utils.set_random_seed(0)
    images, labels = datasets.load_digits(return_X_y=True)
    images = images.reshape([-1, 8, 8, 1]).astype(np.float32) / 16
    model = keras.Sequential(
        [
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    optimizer = AdamW(
        1e-3,
        weight_decay=0.1,
        global_clipnorm=1.0,
        use_ema=True,
        exclude_from_weight_decay=["bias"],
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    train, held_out = slice(1347), slice(1347, None)
    data = {"x": images[train], "y": labels[train], "batch_size": 64}
    model.fit(**data, epochs=EPOCHS.value, verbose=2)
    print(optimizer.adamw.summary())

    path = os.path.join(tempfile.mkdtemp(), "digits.keras")
    model.save(path)
    model = keras.models.load_model(path)
    model.fit(**data, epochs=1, verbose=2)
    _, accuracy = model.evaluate(images[held_out], labels[held_out], verbose=0)
    print(f"steps: {int(model.optimizer.iterations)}")
    print(f"held-out accuracy: {accuracy:.3f}")


if __name__ == "__main__":
    app.run(main)
