"""Writes the checkpoints of optimizers that cannot be installed any more.

    python tests/migration_files/make_legacy.py

TF-Addons' AdamW and the AdamWeightDecay of the Model Garden and of Hugging
Face are legacy Adams of Keras whose steps decay the weights first. Their
documentation says by how much:

    TF-Addons        w -= weight_decay * w
    AdamWeightDecay  w -= learning_rate * weight_decay_rate * w

TF-Addons' weight decay is a hyperparameter and saved like the others,
AdamWeightDecay's is not saved.
"""

import pathlib

import numpy as np
import tensorflow as tf
import tf_keras

FILES = pathlib.Path(__file__).parent
STEPS = 4
SHAPES = {
    "encoder/kernel": (3, 4),
    "encoder/bias": (4,),
    "layer_norm/gamma": (4,),
}


class AdamW(tf_keras.optimizers.legacy.Adam):
    """TF-Addons'."""

    def __init__(self, weight_decay, learning_rate):
        super().__init__(learning_rate, name="AdamW")
        self._set_hyper("weight_decay", weight_decay)

    def _resource_apply_dense(self, grad, var, apply_state=None):
        var.assign_sub(self._get_hyper("weight_decay", var.dtype) * var)
        return super()._resource_apply_dense(grad, var, apply_state)


class AdamWeightDecay(tf_keras.optimizers.legacy.Adam):
    """The Model Garden's, and Hugging Face's."""

    def __init__(self, weight_decay_rate, learning_rate, excluded):
        super().__init__(learning_rate, epsilon=1e-6, name="AdamWeightDecay")
        self.weight_decay_rate = weight_decay_rate
        self.excluded = excluded

    def _resource_apply_dense(self, grad, var, apply_state=None):
        if not any(pattern in var.name for pattern in self.excluded):
            rate = self._decayed_lr(var.dtype)
            var.assign_sub(rate * self.weight_decay_rate * var)
        return super()._resource_apply_dense(grad, var, apply_state)


def arrays(step):
    """{name: array}: the weights for step 0, the gradients of the others.

    The gradients' global norm is below 1, to which the Model Garden's clips.
    """
    found = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        angles = np.arange(np.prod(shape)) + 10 * number + 7 * step
        size = 0.1 if step else 1.0
        found[name] = np.float32(size * np.sin(angles + 0.5)).reshape(shape)
    return found


def model_of(values):
    """Objects of the names' parts."""
    model, variables = tf.Module(), []
    for name, value in values.items():
        part, attribute = name.split("/")
        if not hasattr(model, part):
            setattr(model, part, tf.Module())
        variables.append(tf.Variable(value, name=name))
        setattr(getattr(model, part), attribute, variables[-1])
    return model, variables


def write(name, optimizer):
    """Trains and writes one checkpoint."""
    model, variables = model_of(arrays(0))
    for step in range(1, STEPS + 1):
        gradients = map(tf.constant, arrays(step).values())
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    folder = FILES / name
    folder.mkdir(exist_ok=True)
    print(f"wrote {checkpoint.write(str(folder / 'checkpoint'))}")


def main():
    write("tfa_adamw", AdamW(weight_decay=2.0**-8, learning_rate=2.0**-6))
    write(
        "adam_weight_decay",
        AdamWeightDecay(0.01, 2.0**-6, excluded=["bias", "layer_norm"]),
    )


if __name__ == "__main__":
    main()
