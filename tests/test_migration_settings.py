"""What an import says of settings that are not the source's, of any source."""

import numpy as np
import pytest
import tensorflow as tf

from made_sources import SETTINGS, built, refused, source_of
from tf_adamw import migration

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clipnorm": 1e-3}, "clipnorm is 0.001, Other has none"),
        ({"global_clipnorm": 1.0}, "global_clipnorm is 1.0, Other has none"),
        ({"clipvalue": 1.0}, "clipvalue is 1.0, Other has none"),
        (
            {"gradient_accumulation_steps": 2},
            "gradient_accumulation_steps is 2, ",
        ),
        ({"use_ema": True}, "use_ema is True, Other has none"),
        ({"amsgrad": True}, "amsgrad is True, Other has none"),
    ],
)
def test_what_only_we_do_is_a_difference(options, words):
    optimizer, variables = built(**options)
    source = source_of(untold=frozenset())
    refused(optimizer, variables, source, words, strict=True)
    report = migration.import_state(optimizer, source)
    assert any(line.startswith(words.split()[0]) for line in report.differences)


def test_what_a_file_cannot_tell_is_a_note():
    optimizer, _ = built(clipnorm=1.0, gradient_accumulation_steps=2)
    report = migration.import_state(optimizer, source_of(), strict=True)
    assert "the file does not tell whether gradients were clipped" in (
        report.notes
    )
    assert not any("clipped" in note for note in notes(untold=frozenset()))


def notes(**fields):
    return migration.import_state(built()[0], source_of(**fields)).notes


def test_what_was_excluded_is_a_note_unless_it_is_told():
    assert any("excluded" in note for note in notes(decayed={}))
    assert not any("excluded" in note for note in notes())
    settings = {**SETTINGS, "weight_decay": 0.0}
    undecayed = notes(decayed={}, settings=settings)
    assert not any("excluded" in note for note in undecayed)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_an_unknown_setting_is_a_difference(name):
    optimizer, variables = built()
    source = source_of(without=[name])
    words = f"{name} is 0.2?5, the file of Other does not tell its own"
    refused(optimizer, variables, source, words, strict=True)
    migration.import_state(optimizer, source)
    assert float(getattr(optimizer, name)) == SETTINGS[name]


def test_a_rate_that_is_replaced_is_a_note():
    optimizer, _ = built(learning_rate=0.125)
    report = migration.import_state(optimizer, source_of())
    assert "learning_rate, which was 0.125, is the source's: 0.5" in (
        report.notes
    )
    assert float(optimizer.learning_rate) == 0.5


@pytest.mark.parametrize(
    ("without", "coupling", "words"),
    [
        ("weight_decay", "learning_rate", "weight_decay= to read"),
        ("weight_decay", "none", "weight_decay= to read"),
        ("learning_rate", "none", "learning_rate= to read"),
    ],
)
def test_no_default_stands_in_for_a_decay(without, coupling, words):
    source = source_of(without=[without], decay_coupling=coupling)
    with pytest.raises(ValueError, match=words) as refusal:
        source.arguments(decay_coupling="learning_rate")
    assert "\n" not in str(refusal.value)
    given = source.arguments(weight_decay=0.5, learning_rate=0.1)
    assert (given["weight_decay"], given["learning_rate"]) == (0.5, 0.1)
    # An optimizer that was made otherwise keeps its own, and says so.
    report = migration.import_state(built()[0], source)
    assert any(n.startswith("weight_decay is") for n in report.differences)


COUPLINGS = {
    "learning_rate": {},
    "none": {"decay_coupling": "none"},
    "schedule": {"decay_coupling": "schedule", "base_learning_rate": 2.0},
}


@pytest.mark.parametrize("there", ["learning_rate", "none"])
@pytest.mark.parametrize("here", COUPLINGS)
def test_the_next_step_decays_alike(here, there):
    source = source_of(decay_coupling=there)
    optimizer, variables = built(**COUPLINGS[here])
    report = migration.import_state(optimizer, source)
    assert (here == there) != any("decays by" in n for n in report.notes)
    kernel = variables["kernel"]
    before = kernel.numpy()
    for slot in optimizer.slots["kernel"].values():
        slot.assign(tf.zeros_like(slot))
    optimizer.apply([tf.zeros_like(v) for v in variables.values()])
    decay = SETTINGS["weight_decay"]
    if there == "learning_rate":
        decay *= SETTINGS["learning_rate"]
    np.testing.assert_allclose(kernel, before * (1 - decay), rtol=1e-6)


def test_a_schedule_that_has_ended_at_zero():
    settings = {**SETTINGS, "learning_rate": 0.0}
    source = source_of(settings=settings)
    assert source.weight_decay("schedule", 2.0) == 2 * SETTINGS["weight_decay"]
    assert source.weight_decay("none") == 0.0
    decay_alone = source_of(settings=settings, decay_coupling="none")
    assert decay_alone.weight_decay("learning_rate") is None


def test_arguments_of_a_decay_apart_from_the_rate():
    source = source_of(without=["learning_rate"], decay_coupling="none")
    arguments = source.arguments()
    assert arguments["decay_coupling"] == "none"
    assert arguments["weight_decay"] == SETTINGS["weight_decay"]


def test_arguments_of_a_decay_that_follows_the_schedule():
    source = source_of()
    arguments = source.arguments(decay_coupling="schedule")
    # lr / base is 1 in the next step.
    assert arguments["base_learning_rate"] == SETTINGS["learning_rate"]
    decay = SETTINGS["learning_rate"] * SETTINGS["weight_decay"]
    assert arguments["weight_decay"] == decay
    with pytest.raises(ValueError, match="base_learning_rate"):
        source.arguments(
            decay_coupling="schedule", learning_rate=lambda step: 0.1
        )
    with pytest.raises(ValueError, match=r"decay_coupling must be one of"):
        source.arguments(decay_coupling="rate")


def test_a_rate_of_its_own_that_is_not_told():
    multipliers = {"kernel": None, "bias": 0.5}
    source = source_of(multipliers=multipliers)
    optimizer, _ = built(learning_rate_multipliers={"kernel": 2.0})
    (line,) = migration.import_state(optimizer, source).differences
    assert line.startswith("bias has the learning rate multiplier 1, in Other")
