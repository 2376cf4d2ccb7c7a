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


@pytest.mark.parametrize("scale", [None, 8.0, "dynamic"])
@pytest.mark.parametrize("clip", [{}, {"global_clipnorm": 1.0}])
def test_the_norm_is_that_of_the_gradient_of_the_mean_loss(scale, clip):
    model = LanguageModel(CONFIG)
    windows = tf.constant(make_corpus().train[: 4 * 9].reshape(4, 9), tf.int32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(next_byte_losses(model, windows))
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer = tf_adamw.AdamW(
        0.0, loss_scale_factor=scale, jit_compile=False, **clip
    )
    found = train_step(model, optimizer, windows, 4)
    # Without a clip the optimizer does not compute it.
    norm = tf.linalg.global_norm(gradients) if clip else np.nan
    np.testing.assert_allclose(found, (loss, norm), rtol=1e-5)


OPTIONS = {
    "use_ema": True,
    "ema_momentum": 0.75,
    "gradient_accumulation_steps": 3,
    "jit_compile": False,
}


@pytest.fixture(scope="module")
def one_replica():
    return records(make_trainer(**OPTIONS))


def records(trainer):
    """What is recorded of 20 steps, the loops' ends in and out of windows."""
    found = []
    for steps in (2, 1, 10, 1, 6):
        record = trainer.train(steps)
        del record["tokens_per_second"]
        found.append({**record, "held_out": trainer.evaluate()})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_replicas_share_the_batch(one_replica, aggregation):
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        # Several strategies in one process mistake each other's collectives.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    trainer = make_trainer(strategy, aggregation=aggregation, **OPTIONS)
    for found, expected in zip(records(trainer), one_replica, strict=True):
        # Rounding all initial weights once differs by 5e-7.
        assert found == pytest.approx(expected, rel=5e-6)


def test_a_record_has_what_the_optimizer_computes():
    def names(**options):
        trainer = make_trainer(
            optimizer=tf_adamw.AdamW, jit_compile=False, **options
        )
        return set(trainer.train(1))

    always = {"step", "loss", "learning_rate", "tokens_per_second"}
    assert names() == always
    assert names(clipnorm=1.0, loss_scale_factor="dynamic") == {
        *always,
        "gradient_norm",
        "loss_scale",
    }


def test_a_batch_that_does_not_divide_is_refused():
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(3)])
    with pytest.raises(ValueError, match="--batch_size=4 is not a multiple"):
        make_trainer(strategy)
