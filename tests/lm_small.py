"""A tiny Trainer in this process, for the tests of train_lm's parts."""

import numpy as np
import tensorflow as tf

import tf_adamw
from tpu_scripts import lm_data
from tpu_scripts.lm_model import ModelConfig
from tpu_scripts.lm_trainer import Trainer

CONFIG = ModelConfig(layers=1, width=16, heads=2, context=8)
BATCH = 4


def make_optimizer(**options):
    return tf_adamw.AdamW(
        learning_rate=0.01,
        global_clipnorm=1.0,
        exclude_from_weight_decay=["norm"],
        **options,
    )


def make_corpus():
    rng = np.random.default_rng(0)
    text = np.frombuffer(b"the cat sat on the mat. ", np.uint8)
    text = np.tile(text, 40) + rng.integers(0, 2, 960).astype(np.uint8)
    return lm_data.Corpus(text[:800], text[800:], files=1, digest="")


def make_trainer(strategy=None, optimizer=make_optimizer, **options):
    return Trainer(
        strategy or tf.distribute.get_strategy(),
        make_corpus(),
        CONFIG,
        lambda: optimizer(**options),
        BATCH,
        "auto",
    )
