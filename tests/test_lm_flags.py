"""The flags of train_lm."""

import pytest
from absl.testing import flagsaver

from tpu_scripts import lm_flags, train_lm  # noqa: F401 (defines the flags)


def refused(capsys, arguments):
    """The line in which the command line is refused."""
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        lm_flags.parse(["train_lm", *arguments])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("train_lm: ")
    assert out == ""
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps=0"], "flag --steps=0: "),
        (["--no_such_flag=1"], "Unknown command line flag 'no_such_flag'"),
        (["--heads=3"], "--width must be a multiple of --heads"),
        (["--precision=float16"], "needs --loss_scale_factor"),
        (["--tpu=local"], "--tpu needs --strategy=tpu"),
        (["--workers_local=2"], "--workers_local needs --strategy=multi_wor"),
        (["--aggregation=none"], "are not reduced yet"),
        (["text.txt"], "'text.txt' is not a flag"),
        (["--model_dir=run[1]"], "with one of *?[]\\ for a pattern"),
        (["--held_out_fraction=0"], "must be a number in (0, 0.5]"),
        (
            ["--gradient_accumulation_steps=7"],
            "--steps must be a multiple of --gradient_accumulation_steps",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_flags_end_in_one_line(capsys, arguments, message):
    assert message in refused(capsys, arguments)


def test_there_is_one_cluster(capsys, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    line = refused(capsys, ["--strategy=multi_worker", "--workers_local=2"])
    assert "TF_CONFIG is that of another" in line
