"""The text of train_lm: reading, splitting, shuffling, sharding, resuming."""

import collections
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from tpu_scripts import lm_data

# Byte i is i: a window says where it was taken from.
TEXT = np.arange(256, dtype=np.uint8)
LENGTH = 5
WINDOWS = 51  # (256 - 1) // 5


def context(pipelines=1, pipeline=0, replicas=1):
    return tf.distribute.InputContext(pipelines, pipeline, replicas)


def batches(count, first_step=0, seed=3, batch_size=6, where=None):
    dataset = lm_data.training_windows(
        TEXT, LENGTH, batch_size, first_step, seed, where
    )
    return [batch.numpy() for batch in dataset.take(count)]


def starts(windows):
    return [int(window[0]) for window in np.concatenate(windows)]


def write(directory, **texts):
    for name, text in texts.items():
        (directory / f"{name}.txt").write_bytes(text)
    return f"{directory}/*.txt"


def test_windows_are_consecutive_bytes_of_static_shape():
    dataset = lm_data.training_windows(TEXT, LENGTH, 6, 0, 0)
    assert dataset.element_spec == tf.TensorSpec([6, LENGTH + 1], tf.int32)
    # Workers then need not tell each other at each step that there is more.
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    for window in np.concatenate(batches(4)):
        np.testing.assert_array_equal(window, window[0] + np.arange(6))
        assert window[0] % LENGTH == 0


def test_each_epoch_has_every_window_once_in_its_own_order():
    seen = starts(batches(WINDOWS))  # 6 epochs of 51 windows
    epochs = [tuple(seen[i : i + WINDOWS]) for i in range(0, 306, WINDOWS)]
    every = list(range(0, WINDOWS * LENGTH, LENGTH))
    assert all(sorted(epoch) == every for epoch in epochs)
    assert len({*epochs, tuple(every)}) == 7


def test_the_order_depends_on_the_seed_alone():
    assert starts(batches(20)) == starts(batches(20))
    assert starts(batches(20)) != starts(batches(20, seed=4))


@pytest.mark.parametrize("step", [1, 8, 9, 30])
def test_resuming_at_a_step_gives_what_would_have_come(step):
    np.testing.assert_array_equal(
        batches(5, first_step=step), batches(step + 5)[step:]
    )


def test_a_step_far_away_is_reached_at_once():
    assert len(batches(1, first_step=10**12)) == 1


@pytest.mark.parametrize("pipelines", [2, 3, 6])
def test_pipelines_share_every_step_disjointly_and_completely(pipelines):
    shares = [
        batches(20, where=context(pipelines, pipeline, pipelines))
        for pipeline in range(pipelines)
    ]
    whole = batches(20)
    for step in range(20):
        assert all(len(share[step]) == 6 // pipelines for share in shares)
        joined = starts([share[step] for share in shares])
        assert collections.Counter(joined) == collections.Counter(
            starts([whole[step]])
        )


def test_replicas_of_one_pipeline_get_consecutive_batches():
    per_replica = batches(40, where=context(1, 0, 2))
    assert starts(per_replica) == starts(batches(20))


def test_a_strategy_hands_each_replica_its_share():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    data = strategy.distribute_datasets_from_function(
        lambda where: lm_data.training_windows(TEXT, LENGTH, 6, 4, 3, where)
    )
    for per_replica, expected in zip(
        itertools.islice(data, 10), batches(10, first_step=4), strict=True
    ):
        parts = strategy.experimental_local_results(per_replica)
        np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_held_out_windows_come_once_in_order_in_full_batches():
    dataset = lm_data.held_out_windows(TEXT, LENGTH, 6)
    found = [batch.numpy() for batch in dataset]
    assert starts(found) == list(range(0, 48 * LENGTH, LENGTH))
    assert dataset.element_spec.shape == [6, LENGTH + 1]


def test_the_end_of_the_text_is_held_out(tmp_path):
    pattern = write(tmp_path, a=b"a" * 60, b=b"b" * 40)
    corpus = lm_data.read_corpus([pattern], 0.25)
    assert (len(corpus.train), len(corpus.held_out)) == (75, 25)
    whole = np.concatenate([corpus.train, corpus.held_out]).tobytes()
    assert whole in (b"a" * 60 + b"b" * 40, b"b" * 40 + b"a" * 60)


@pytest.mark.parametrize("fraction", [0.06, 0.12, 0.14])
def test_whole_files_are_held_out_where_the_share_stays_near(
    tmp_path, fraction
):
    write(tmp_path, **{f"f{i}": bytes([i]) * 10 for i in range(20)})
    corpus = lm_data.read_corpus([f"{tmp_path}/*"], fraction)
    assert len(corpus.held_out) == pytest.approx(200 * fraction, abs=5)
    assert not set(corpus.train) & set(corpus.held_out)


def test_the_text_depends_on_the_contents_of_the_files_alone(tmp_path):
    texts = [bytes([i]) * (i + 10) for i in range(20)]
    one, other = tmp_path / "one", tmp_path / "other"
    for directory, order in ((one, texts), (other, texts[::-1] + texts[:3])):
        directory.mkdir()
        write(directory, **{f"f{i}": text for i, text in enumerate(order)})
    first = lm_data.read_corpus([f"{one}/*"], 0.1)
    second = lm_data.read_corpus([f"{other}/f1*", f"{other}/*"], 0.1)
    assert first.digest == second.digest
    assert first.files == second.files == 20
    np.testing.assert_array_equal(first.train, second.train)


def test_a_path_with_glob_characters_is_taken_as_it_stands(tmp_path):
    write(tmp_path, **{"[a]": b"right", "a": b"wrong"})
    corpus = lm_data.read_corpus([f"{tmp_path}/[a].txt"], 0.1)
    assert corpus.train.tobytes() == b"right"


def test_a_pattern_without_a_file_is_refused(tmp_path):
    (tmp_path / "directory").mkdir()
    write(tmp_path, a=b"text")
    for missing in ("b.txt", "*.py", "directory", "directory/*"):
        pattern = f"{tmp_path}/{missing}"
        with pytest.raises(ValueError, match="matches no file") as caught:
            lm_data.read_corpus([f"{tmp_path}/*", pattern], 0.1)
        assert repr(pattern) in str(caught.value)


def test_the_default_text_is_the_standard_library():
    corpus = lm_data.read_corpus([lm_data.standard_library()], 0.05)
    assert corpus.files > 100
    assert b"class JSONDecoder" not in corpus.train.tobytes()  # a package
    whole = np.concatenate([corpus.train, corpus.held_out]).tobytes()
    assert b"def read_mime_types(" in whole


def test_unigram_bits_of_the_bytes_that_the_model_predicts():
    corpus = lm_data.Corpus(
        train=np.frombuffer(b"aab", np.uint8),
        held_out=np.frombuffer(b"-abbz-", np.uint8),
        files=1,
        digest="",
    )
    windows = np.concatenate(
        list(lm_data.held_out_windows(corpus.held_out, 2, 2))
    )
    assert bytes(windows[:, 1:].flatten().tolist()) == b"abbz"
    a, b, z = 3 / 259, 2 / 259, 1 / 259  # counts plus one, of 3 + 256
    expected = -sum(map(math.log2, (a, b, b, z))) / 4
    assert lm_data.unigram_bits(corpus, 2, 2) == pytest.approx(expected)
