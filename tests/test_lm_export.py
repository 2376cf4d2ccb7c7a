"""The SavedModel of train_lm: it generates, and goes on training."""

import numpy as np
import pytest
import tensorflow as tf

from lm_small import BATCH, CONFIG, make_corpus, make_optimizer, make_trainer
from tpu_scripts import lm_data, lm_export


def export(trainer, directory, **options):
    path = tf.train.Checkpoint(
        model=trainer.model, optimizer=trainer.optimizer, step=trainer.step
    ).save(f"{directory}/ckpt")
    exported = lm_export.ExportedModel(CONFIG, make_optimizer(**options), path)
    exported.save(f"{directory}/export", BATCH)
    return tf.saved_model.load(f"{directory}/export")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    options = {"jit_compile": False}  # generation has no part in it
    trainer = make_trainer(**options)
    trainer.train(30)
    folder = tmp_path_factory.mktemp("export")
    return trainer, export(trainer, folder, **options)


def generate(loaded, prompt, length, temperature=1.0, seed=0):
    result = loaded.signatures["generate"](
        prompt=tf.constant(prompt),
        length=tf.constant(length),
        temperature=tf.constant(temperature),
        seed=tf.constant(seed),
    )
    return result["text"].numpy()


def likeliest(model, text, length):
    """The same without windows: the whole context is computed each time."""
    for _ in range(length):
        tokens = np.frombuffer(text[-CONFIG.context :], np.uint8)
        logits = model(tokens[np.newaxis].astype(np.int32))[0, -1]
        text += bytes([int(np.argmax(logits))])
    return text


@pytest.mark.parametrize("prompt", [b"t", b"the cat ", b"the cat sat on \xff"])
@pytest.mark.parametrize("temperature", [1e-6, 0.0, -1.0])
def test_cold_generation_takes_the_likeliest_bytes(
    trained, prompt, temperature
):
    trainer, loaded = trained
    assert generate(loaded, prompt, 20, temperature) == likeliest(
        trainer.model, prompt, 20
    )


def test_generation_depends_on_the_seed_alone(trained):
    _, loaded = trained
    texts = [generate(loaded, b"the", 40, seed=s) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert all(len(text) == 43 for text in texts)


def test_an_empty_prompt_is_a_newline(trained):
    assert generate(trained[1], b"", 5)[:1] == b"\n"


@pytest.mark.slow
def test_the_export_goes_on_training_as_the_program_would(trained, tmp_path):
    trainer = make_trainer()
    trainer.train(30)
    loaded = export(trainer, tmp_path)
    windows = lm_data.training_windows(
        make_corpus().train, CONFIG.context, BATCH, 30, CONFIG.seed
    )
    for batch in windows.take(5):
        result = loaded.signatures["train_step"](windows=batch)
        record = trainer.train(1)
        loss = float(result["loss"]) / np.log(2)
        assert loss == pytest.approx(record["loss"], rel=1e-5)
        assert float(result["gradient_norm"]) == pytest.approx(
            record["gradient_norm"], rel=1e-4
        )
    assert int(loaded.optimizer.counters.iterations) == 35
    np.testing.assert_allclose(
        loaded.model.embedding, trainer.model.embedding, rtol=1e-4, atol=1e-6
    )


def test_with_an_average_training_and_generation_have_their_own(tmp_path):
    options = {"use_ema": True, "ema_momentum": 0.9, "jit_compile": False}
    trainer = make_trainer(**options)
    trainer.train(30)
    held_out = trainer.evaluate()
    loaded = export(trainer, tmp_path, **options)
    np.testing.assert_array_equal(
        loaded.model.embedding, trainer.model.embedding
    )
    average = trainer.optimizer.get_slot(trainer.model.embedding, "average")
    np.testing.assert_array_equal(loaded.generator.embedding, average)
    trainer.optimizer.finalize_variable_values()
    # The evaluation was one of the average, which are the weights now.
    assert trainer._evaluate() == held_out
    assert generate(loaded, b"the ", 9, 1e-6) == likeliest(
        trainer.model, b"the ", 9
    )
