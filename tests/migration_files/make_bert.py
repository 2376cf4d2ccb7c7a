"""Writes the checkpoint of BERT's optimizer in the folder bert.

    python tests/migration_files/make_bert.py

From the documentation of the format: a checkpoint of `tf.train.Saver` has, by
name, each variable, its `<variable>/adam_m` and `<variable>/adam_v`, and
`global_step`. One step of `AdamWeightDecayOptimizer`, with the defaults of
`create_optimizer`:

    m <- beta_1 * m + (1 - beta_1) * g
    v <- beta_2 * v + (1 - beta_2) * g^2
    update = m / (sqrt(v) + epsilon)
    update = update + weight_decay_rate * w, but for LayerNorm and biases
    w <- w - learning_rate * update
"""

import pathlib

import numpy as np
import tensorflow as tf

PREFIX = pathlib.Path(__file__).parent / "bert" / "model.ckpt-3"
LEARNING_RATE = 5e-3
SHAPES = {
    "bert/embeddings/word_embeddings": (7, 4),
    "bert/embeddings/LayerNorm/beta": (4,),
    "bert/embeddings/LayerNorm/gamma": (4,),
    "bert/encoder/layer_0/attention/self/query/kernel": (4, 4),
    "bert/encoder/layer_0/attention/self/query/bias": (4,),
    "cls/predictions/output_bias": (7,),
}
DECAYED = [name for name in SHAPES if name[-4:] in ("ings", "rnel")]


def step(weights, m, v, gradients):
    """One step, in place, of `{name: float64 array}`."""
    for name, g in gradients.items():
        m[name] = 0.9 * m[name] + (1 - 0.9) * g
        v[name] = 0.999 * v[name] + (1 - 0.999) * g**2
        update = m[name] / (np.sqrt(v[name]) + 1e-6)
        if name in DECAYED:
            update = update + 0.01 * weights[name]
        weights[name] = weights[name] - LEARNING_RATE * update


def gradients_of(rng):
    """Of the size that they have in BERT: epsilon matters."""
    return {n: 1e-5 * rng.standard_normal(s) for n, s in SHAPES.items()}


def main():
    """Trains three steps from random weights, and writes the file."""
    rng = np.random.default_rng(3)
    weights = {n: rng.standard_normal(s) for n, s in SHAPES.items()}
    weights["cls/predictions/output_bias"] = np.zeros(7)
    m, v = ({n: np.zeros(s) for n, s in SHAPES.items()} for _ in "mv")
    for _ in range(3):
        step(weights, m, v, gradients_of(rng))
    weights["cls/predictions/output_bias"] = np.zeros(7)
    values = {"global_step": np.int64(3)}
    for name in SHAPES:
        values[name] = weights[name].astype(np.float32)
        values[f"{name}/adam_m"] = m[name].astype(np.float32)
        values[f"{name}/adam_v"] = v[name].astype(np.float32)
    PREFIX.parent.mkdir(exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(PREFIX),
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=list(values.values()),
    )


if __name__ == "__main__":
    main()
