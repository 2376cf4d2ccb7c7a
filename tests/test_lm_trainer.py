"""The training loop of train_lm in this process."""

import numpy as np
import pytest
import tensorflow as tf

import tf_adamw
from lm_small import CONFIG, make_corpus, make_trainer
from tpu_scripts.lm_model import LanguageModel, next_byte_losses
from tpu_scripts.lm_training import train_step


def test_one_program_gives_the_same_bits_in_loops_of_any_length():
    one, other = make_trainer(), make_trainer()
    one.train(12)
    for steps in (1, 6, 5):
        record = other.train(steps)
    assert record["step"] == 12
    assert other._train_loop.experimental_get_tracing_count() == 1
    for a, b in zip(one.model.variables, other.model.variables, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("scale", [None, 8.0])
def test_the_norm_is_that_of_the_gradient_of_the_mean_loss(scale):
    model = LanguageModel(CONFIG)
    windows = tf.constant(make_corpus().train[: 4 * 9].reshape(4, 9), tf.int32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(next_byte_losses(model, windows))
    gradients = tape.gradient(loss, model.trainable_variables)
    for clip in ({}, {"global_clipnorm": 1.0}):
        # Without a clip the optimizer does not compute the norm.
        optimizer = tf_adamw.AdamW(
            0.0, loss_scale_factor=scale, jit_compile=False, **clip
        )
        found = train_step(model, optimizer, windows, 4)
        expected = (loss, tf.linalg.global_norm(gradients))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_batch_that_does_not_divide_is_refused():
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(3)])
    with pytest.raises(ValueError, match="--batch_size=4 is not a multiple"):
        make_trainer(strategy)


def test_what_the_optimizer_refuses_is_refused_before_the_first_step():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with pytest.raises(ValueError, match="2 replicas") as caught:
        make_trainer(strategy)
    assert len(str(caught.value).splitlines()) == 1
