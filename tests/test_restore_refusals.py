"""tf_adamw.checkpoint.restore: everything, or nothing has changed."""

import pathlib

import pytest
import tensorflow as tf

import helpers
import tf_adamw
from checkpoint_model import train
from restore_runs import EVERYTHING, Named, Run
from tf_adamw.checkpoint import DamagedCheckpointError, restore
from tf_adamw.scalar_state import FORMAT_VERSION

pytestmark = pytest.mark.core


@pytest.fixture
def saved(tmp_path):
    """A run without options, and the path of its checkpoint."""
    run = Run(3)
    return run, run.checkpoint.save(tmp_path / "checkpoint")


@pytest.fixture
def path_of_two_layers(tmp_path):
    run = Run(3, Named(one=(3, 4), two=(4, 2)))
    return run.checkpoint.save(tmp_path / "two")


def test_strict_refuses_in_a_line_and_changes_nothing(path_of_two_layers):
    path = path_of_two_layers
    other = Run(2, Named(first=(3, 4), two=(4, 5)))
    before = other.bits()
    with pytest.raises(ValueError, match="does not match: 6 not in it") as e:
        restore(other.checkpoint, path, strict=True)
    assert "\n" not in str(e.value)
    assert other.bits() == before


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def emptied(path):
    path.write_bytes(b"")


def removed(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncated, one_bit, emptied, removed])
@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
def test_a_damaged_checkpoint_changes_nothing(saved, damage, suffix):
    path = saved[1]
    damage(pathlib.Path(f"{path}.{suffix}"))
    other = Run(2)
    before = other.bits()
    with pytest.raises(DamagedCheckpointError, match="or missing") as e:
        restore(other.checkpoint, path)
    assert path in str(e.value) and "\n" not in str(e.value)
    assert other.bits() == before


def test_damage_where_nobody_reads_is_refused_too(saved):
    """A tensor that is left over."""
    run, path = saved
    data = pathlib.Path(f"{path}.data-00000-of-00001")
    content = data.read_bytes()
    kernel = run.model.layers[1].kernel.numpy().tobytes()
    place = content.index(kernel)
    data.write_bytes(content[:place] + b"\0" + content[place + 1 :])
    optimizer = tf_adamw.AdamW()
    optimizer.build({"scale": tf.Variable([1.0, 2.0])})
    checkpoint = tf.train.Checkpoint(optimizer=optimizer)
    with pytest.raises(ValueError, match="damaged"):
        restore(checkpoint, path)


def test_a_failure_half_way_leaves_everything_as_it_was(tmp_path, monkeypatch):
    run = Run(3, **EVERYTHING)
    path = run.checkpoint.save(tmp_path / "checkpoint")
    train(run.optimizer, run.model, 3, 6, run.scale)
    before = run.bits()
    read, seen = tf.train.Checkpoint.read, []

    def failing(*args):
        read(*args)
        seen.append(run.bits())
        raise KeyboardInterrupt("in the middle")

    monkeypatch.setattr(tf.train.Checkpoint, "read", failing)
    with pytest.raises(KeyboardInterrupt, match="in the middle"):
        restore(run.checkpoint, path)
    assert seen[0] != before
    assert run.bits() == before


class Fragile(tf.Module, tf.train.experimental.PythonState):
    """Has state of its own, and a variable below it."""

    def __init__(self, size):
        super().__init__()
        self.w = tf.Variable(tf.zeros([size]))

    def serialize(self):
        return ""

    def deserialize(self, value):
        del value


def test_an_object_that_cannot_take_its_state(tmp_path):
    """TensorFlow restores what is below it, too: here of another shape."""
    run = Run(1)
    path = tf.train.Checkpoint(
        optimizer=run.optimizer, fragile=Fragile(2)
    ).save(tmp_path / "checkpoint")
    other = Run(2)
    before = other.bits()
    checkpoint = tf.train.Checkpoint(
        optimizer=other.optimizer, fragile=Fragile(3)
    )
    with pytest.raises(ValueError, match="fragile cannot be restored") as e:
        restore(checkpoint, path)
    assert "\n" not in str(e.value)
    assert other.bits() == before


def test_while_the_averages_are_the_weights(tmp_path):
    """Leaving the block would bring the old weights back."""
    run = Run(2, use_ema=True)
    path = run.checkpoint.save(tmp_path / "checkpoint")
    refused = pytest.raises(ValueError, match="leave the block first")
    with run.optimizer.averaged_weights(), refused:
        restore(run.checkpoint, path)
    restore(run.checkpoint, path, strict=True)


def test_nothing_matches(saved):
    other = Run(0)
    checkpoint = tf.train.Checkpoint(net=other.model, adamw=other.optimizer)
    with pytest.raises(
        ValueError, match=r"Nothing in the checkpoint .* model/"
    ):
        restore(checkpoint, saved[1])


def test_an_optimizer_that_is_not_built(saved):
    checkpoint = tf.train.Checkpoint(optimizer=tf_adamw.AdamW())
    with pytest.raises(ValueError, match=r"call build\(\) first"):
        restore(checkpoint, saved[1])


def test_an_optimizer_in_the_place_of_a_checkpoint(saved):
    run, path = saved
    with pytest.raises(TypeError, match=r"takes a tf\.train\.Checkpoint"):
        restore(run.optimizer, path)


def test_an_optimizer_built_with_other_keys(saved):
    """Nothing is refused, and everything would start anew unseen."""
    other = Run(0)
    optimizer = tf_adamw.AdamW()
    optimizer.build({f"v{n}": v for n, v in enumerate(other.model.variables)})
    checkpoint = tf.train.Checkpoint(model=other.model, optimizer=optimizer)
    with pytest.warns(UserWarning, match="Build it the same way"):
        restore(checkpoint, saved[1])


def test_inside_a_function(saved):
    run, path = saved

    @tf.function
    def restoring():
        restore(run.checkpoint, path)

    with pytest.raises(ValueError, match=r"outside of a tf\.function"):
        restoring()


def test_a_checkpoint_of_names(tmp_path):
    path = str(tmp_path / "names")
    tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=["w"],
        shape_and_slices=[""],
        tensors=[tf.ones([2])],
    )
    with pytest.raises(ValueError, match="by name"):
        restore(Run(0).checkpoint, path)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0])
def test_an_unknown_version_is_refused(version, tmp_path):
    run = Run(1)
    run.optimizer.format_version.assign(version)
    path = run.checkpoint.write(str(tmp_path / "checkpoint"))
    other = Run(2)
    before = other.bits()
    with pytest.raises(ValueError, match=f"format_version is {version}"):
        restore(other.checkpoint, path)
    assert other.bits() == before


def test_what_is_written_says_the_present_version(tmp_path):
    """Also by an optimizer that got its state from an older checkpoint."""
    goldens = pathlib.Path(__file__).parent / "goldens"
    run = Run(0)
    restore(run.checkpoint, goldens / "plain" / "checkpoint", strict=True)
    path = run.checkpoint.write(str(tmp_path / "checkpoint"))
    saved = helpers.checkpoint_values(path)
    assert saved["optimizer/format_version"] == FORMAT_VERSION
