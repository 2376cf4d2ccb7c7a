"""tf_adamw.flags: every flag reaches the optimizer, bad values are refused."""

import dataclasses
import inspect
import subprocess
import sys

import pytest
import tensorflow as tf
from absl import flags

import tf_adamw
from tf_adamw import flags as adamw_flags

# The arguments of AdamW that no flag sets by itself.
NOT_A_HYPERPARAMETER = {"name"}


def parse(*arguments, **defaults):
    values = flags.FlagValues()
    adamw_flags.define_adamw_flags(values, **defaults)
    values(["program", *arguments])
    return values


def optimizer(*arguments, decay_steps=None, **defaults):
    values = parse(*arguments, **defaults)
    return adamw_flags.adamw_from_flags(values, decay_steps=decay_steps)


def rates(schedule, steps):
    return [float(schedule(step)) for step in steps]


def learning_rate(made, step):
    made.iterations.assign(step)
    return float(made.learning_rate)


def test_every_argument_of_the_optimizer_has_its_flag():
    values = flags.FlagValues()
    names = adamw_flags.define_adamw_flags(values)
    arguments = set(inspect.signature(tf_adamw.AdamW).parameters)
    assert arguments - NOT_A_HYPERPARAMETER <= set(names)
    assert set(names) <= set(values)


def test_without_a_flag_the_optimizer_has_its_own_defaults():
    assert optimizer().get_config() == tf_adamw.AdamW().get_config()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "0.25", 0.25),
        ("weight_decay", "0.125", 0.125),
        ("beta_1", "0.5", 0.5),
        ("beta_2", "0.75", 0.75),
        ("epsilon", "1e-3", 1e-3),
        ("amsgrad", "true", True),
        ("clipnorm", "2", 2.0),
        ("clipvalue", "3", 3.0),
        ("global_clipnorm", "4", 4.0),
        ("use_ema", "true", True),
        ("ema_momentum", "0.875", 0.875),
        ("ema_overwrite_frequency", "7", 7),
        ("loss_scale_factor", "1024", 1024.0),
        ("aggregation", "mean", "mean"),
        ("gradient_accumulation_steps", "5", 5),
        ("skip_nonfinite", "true", True),
        ("jit_compile", "false", False),
        ("jit_compile", "True", True),
        ("jit_compile", "auto", "auto"),
    ],
)
def test_a_flag_sets_its_argument_and_no_other(name, text, value):
    expected = tf_adamw.AdamW(**{name: value}).get_config()
    assert expected[name] == value
    assert optimizer(f"--{name}={text}").get_config() == expected


def test_the_fields_of_a_dynamic_loss_scale_have_flags():
    fields = dataclasses.fields(tf_adamw.DynamicLossScale)
    assert {field.name for field in fields} == {
        "initial",
        "growth_interval",
        "factor",
    }
    default = tf_adamw.AdamW(loss_scale_factor="dynamic").get_config()
    assert optimizer("--loss_scale_factor=dynamic").get_config() == default
    expected = tf_adamw.DynamicLossScale(64.0, 10, 4.0)
    made = optimizer(
        "--loss_scale_factor=dynamic",
        "--initial_loss_scale=64",
        "--loss_scale_growth_interval=10",
        "--loss_scale_growth_factor=4",
    )
    assert made.loss_scale_factor == expected
    made = optimizer(loss_scale_factor="dynamic", loss_scale_growth_interval=7)
    assert made.loss_scale_factor.growth_interval == 7


def test_patterns_can_be_repeated():
    made = optimizer(
        "--exclude_from_weight_decay=bias",
        "--exclude_from_weight_decay=norm/.*",
        "--learning_rate_multipliers=embed=0.5",
        "--learning_rate_multipliers=a=b=2",
    ).get_config()
    assert made["exclude_from_weight_decay"] == ["bias", "norm/.*"]
    assert made["learning_rate_multipliers"] == {"embed": 0.5, "a=b": 2.0}


def test_programs_can_have_their_own_defaults():
    given = {"learning_rate": 0.5, "exclude_from_weight_decay": ["norm"]}
    made = optimizer("--beta_1=0.5", **given).get_config()
    expected = tf_adamw.AdamW(beta_1=0.5, **given).get_config()
    assert made == expected


@pytest.mark.parametrize(
    "name", ["global_clipnorm", "loss_scale_factor", "ema_overwrite_frequency"]
)
def test_none_unsets_what_a_program_sets(name):
    assert optimizer(**{name: 2}).get_config()[name] == 2
    assert optimizer(f"--{name}=none", **{name: 2}).get_config()[name] is None
    with pytest.raises(flags.Error, match="could not convert"):
        optimizer("--beta_1=none")


def test_a_default_for_no_flag_is_refused():
    with pytest.raises(TypeError, match=r"no such flags: \['momentum'\]"):
        parse(momentum=0.9)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--learning_rate=-1", "must be a finite number >= 0"),
        ("--learning_rate=nan", "must be a finite number >= 0"),
        ("--weight_decay=inf", "must be a finite number >= 0"),
        ("--beta_1=1", r"must be a number in \[0, 1\)"),
        ("--beta_2=-0.1", r"must be a number in \[0, 1\)"),
        ("--epsilon=0", "must be a finite number > 0"),
        ("--epsilon=1e-50", "must be a finite number > 0"),
        ("--learning_rate=1e300", "must be a finite number >= 0"),
        ("--clipnorm=0", "must be a finite number > 0"),
        ("--clipvalue=-1", "must be a finite number > 0"),
        ("--global_clipnorm=nan", "must be a finite number > 0"),
        ("--ema_momentum=1.5", r"must be a number in \[0, 1\]"),
        ("--ema_overwrite_frequency=0", "must be an integer >= 1"),
        ("--loss_scale_factor=0", "a finite number > 0, dynamic or none"),
        ("--loss_scale_factor=fast", "could not convert"),
        ("--clipnorm=dynamic", "could not convert"),
        ("--initial_loss_scale=0.5", "must be a finite number >= 1"),
        ("--initial_loss_scale=none", "could not convert"),
        ("--loss_scale_growth_interval=0", "must be an integer from 1"),
        ("--loss_scale_growth_factor=1", "must be a finite number > 1"),
        ("--aggregation=max", "should be one of"),
        ("--gradient_accumulation_steps=0", "must be an integer >= 1"),
        ("--gradient_accumulation_steps=1.5", "invalid literal"),
        ("--warmup_steps=-1", "must be an integer >= 0"),
        ("--decay_steps=0", "must be an integer >= 1"),
        ("--final_learning_rate_fraction=2", r"must be a number in \[0, 1\]"),
        ("--learning_rate_schedule=linear", "should be one of"),
        ("--jit_compile=yes", "should be one of"),
        ("--exclude_from_weight_decay=(", "is not a regular expression"),
        ("--learning_rate_multipliers=embed", "is not REGEX=FACTOR"),
        ("--learning_rate_multipliers=embed=x", "is not REGEX=FACTOR"),
        ("--learning_rate_multipliers=embed=-1", "is not REGEX=FACTOR"),
        ("--learning_rate_multipliers=embed=1e39", "is not REGEX=FACTOR"),
        ("--learning_rate_multipliers=(=1", "is not a regular expression"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_naming_the_flag(argument, message):
    name = argument[2:].split("=")[0]
    with pytest.raises(flags.Error, match=message) as caught:
        parse(argument)
    assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("other", ["clipvalue", "global_clipnorm"])
def test_at_most_one_clip(other):
    with pytest.raises(flags.Error, match="at most one of --clipnorm"):
        parse("--clipnorm=1", f"--{other}=1")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--learning_rate_schedule=cosine", "--decay_steps=100"],
            {0: 0.5, 50: 0.25, 100: 0.0, 150: 0.0},
        ),
        (
            [
                "--learning_rate_schedule=cosine",
                "--decay_steps=120",
                "--warmup_steps=20",
                "--final_learning_rate_fraction=0.1",
            ],
            {0: 0.0, 10: 0.25, 20: 0.5, 70: 0.275, 120: 0.05, 200: 0.05},
        ),
        (["--warmup_steps=10"], {0: 0.0, 5: 0.25, 10: 0.5, 1000: 0.5}),
    ],
)
def test_schedules(arguments, expected):
    made = optimizer("--learning_rate=0.5", *arguments)
    found = {step: learning_rate(made, step) for step in expected}
    assert found == pytest.approx(expected, abs=1e-7)


def test_the_flag_goes_before_the_programs_own_length():
    arguments = ["--learning_rate=1", "--learning_rate_schedule=cosine"]
    made = optimizer(*arguments, decay_steps=10)
    assert learning_rate(made, 10) == pytest.approx(0)
    made = optimizer(*arguments, "--decay_steps=20", decay_steps=10)
    assert learning_rate(made, 10) == pytest.approx(0.5)


@pytest.mark.parametrize("decay_steps", [None, 10])
def test_a_cosine_needs_steps_after_the_warmup(decay_steps):
    message = (
        f"--decay_steps={decay_steps} must be an integer larger than "
        "--warmup_steps=10"
    )
    with pytest.raises(ValueError, match=message):
        optimizer(
            "--learning_rate_schedule=cosine",
            "--warmup_steps=10",
            decay_steps=decay_steps,
        )


def test_a_schedule_without_keras_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.setitem(sys.modules, "keras.optimizers", None)
    assert optimizer().get_config()  # a constant rate needs no Keras
    with pytest.raises(ValueError, match="need Keras 3: pip install keras"):
        optimizer("--warmup_steps=1")


def test_the_schedule_drives_the_step():
    made = optimizer(
        "--learning_rate=0.5", "--warmup_steps=2", "--weight_decay=0"
    )
    weight = tf.Variable(1.0)
    made.build([weight])
    for _ in range(3):
        made.apply([tf.constant(1.0)], [weight])
    # Adam's step on a constant gradient is the rate: 0, then 0.25, then 0.5.
    assert float(weight) == pytest.approx(0.25, abs=1e-5)


def test_help_lists_the_flags_under_the_program():
    program = (
        "from absl import app\n"
        "from tf_adamw import flags\n"
        "flags.define_adamw_flags()\n"
        "app.run(lambda argv: None)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program, "--help"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )
    assert "--gradient_accumulation_steps:" in shown.stdout
    assert "(an integer)" in shown.stdout
