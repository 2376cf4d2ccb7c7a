"""Where the scalars of the state live."""

from __future__ import annotations

import tensorflow as tf


def on_device(variable: tf.Variable, device: str) -> tf.Variable:
    """Returns the variable, or a copy of it if it is on another device.

    One program cannot read variables of several devices. The optimizer may be
    made before it is known on which device the weights are.
    """
    if variable.device == device:
        return variable
    with tf.init_scope(), tf.device(device):
        return tf.Variable(
            tf.identity(variable),
            trainable=False,
            name=variable.name.rsplit(":", 1)[0],
        )
