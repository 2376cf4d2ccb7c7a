"""train_lm from its command line: it finishes, resumes, and refuses."""

import contextlib
import resource
import shutil
import signal
import time

import numpy as np
import pytest
import tensorflow as tf

import lm_program

STEPS = 300
VALUE = ".ATTRIBUTES/VARIABLE_VALUE"
SETTINGS = {
    "steps": STEPS,
    "steps_per_loop": 10,
    "checkpoint_interval": 50,
    "keep_checkpoints": 2,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return lm_program.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, text):
    """The directory and the output of an uninterrupted run."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    code, out, err = lm_program.run(data=text, model_dir=directory, **SETTINGS)
    assert code == 0, err
    return directory, out, err


@pytest.mark.slow
def test_it_beats_the_unigram_model_and_says_so(finished):
    out = finished[1]
    last = out.splitlines()[-1].split()
    assert last[:2] == ["held-out", "text:"]
    held_out, unigram = float(last[2]), float(last[-1])
    assert held_out < unigram - 1


@pytest.mark.slow
def test_it_shows_progress(finished):
    line = " ".join(finished[2])
    for part in ("bits/byte", "rate", "gradient", "tokens/s", "300/300"):
        assert part in line


@pytest.mark.slow
def test_it_leaves_curves_events_and_an_export(finished):
    directory, out, _ = finished
    png = (directory / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n")
    assert (directory / "export" / "saved_model.pb").exists()
    assert "sample of the exported model:\ndef " in out
    (events,) = (directory / "events").glob("*tfevents*")
    scalars = {
        (event.step, value.tag)
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "scalars"
    }
    loops = range(10, STEPS + 1, 10)
    for tag in (
        "loss",
        "learning_rate",
        "gradient_norm",
        "tokens_per_second",
    ):
        assert {step for step, name in scalars if name == tag} == set(loops)
    held_out = {step for step, name in scalars if name == "held_out"}
    assert held_out == set(range(50, STEPS + 1, 50))


@pytest.mark.slow
def test_it_keeps_the_last_checkpoints(finished):
    kept = (finished[0] / "checkpoints").glob("*.index")
    assert {path.stem for path in kept} == {"ckpt-250", "ckpt-300"}


@pytest.mark.slow
def test_the_history_tells_of_every_loop(finished):
    records = lm_program.history(finished[0])
    assert [r["step"] for r in records] == list(range(10, STEPS + 1, 10))
    assert records[-1]["loss"] < records[0]["loss"]
    rates = [r["learning_rate"] for r in records]
    assert max(rates) == rates[0] and rates == sorted(rates, reverse=True)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_bits(
    finished, tmp_path, text
):
    directory = tmp_path / "run"
    killed = lm_program.start(
        lm_program.command(data=text, model_dir=directory, **SETTINGS)
    )
    while not (directory / "checkpoints" / "ckpt-100.index").exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (directory / "export").exists()

    code, out, err = lm_program.run(data=text, model_dir=directory, **SETTINGS)
    assert code == 0, err
    assert "resumed at step " in out
    lm_program.assert_alike(directory, finished[0], STEPS)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_but_can_be_longer(tmp_path, text):
    directory = tmp_path / "run"
    short = {**SETTINGS, "steps": 20, "decay_steps": 40, "data": text}
    short["jit_compile"] = False
    first = lm_program.run_here(model_dir=directory, **short)
    again = lm_program.run_here(model_dir=directory, **short)
    assert again[0] == 0
    assert "resumed at step 20" in again[1]
    assert again[1].splitlines()[-1] == first[1].splitlines()[-1]
    assert lm_program.history(directory)[-1]["step"] == 20
    short["steps"] = 30
    longer = lm_program.run_here(model_dir=directory, **short)
    assert longer[0] == 0
    steps = [r["step"] for r in lm_program.history(directory)]
    assert steps == [10, 20, 30]


@contextlib.contextmanager
def files_of_at_most(size):
    """The system refuses to write more bytes to a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.slow
def test_no_room_for_a_checkpoint_ends_in_one_line(finished, tmp_path, text):
    """What there was is left as it was, to go on from."""
    directory = shutil.copytree(finished[0], tmp_path / "run")
    before = lm_program.contents(directory)
    longer = {**SETTINGS, "steps": STEPS + 10, "decay_steps": STEPS}
    with files_of_at_most(20_000):
        code, out, err = lm_program.run_here(
            data=text, model_dir=directory, **longer
        )
    assert code == 2
    assert out.splitlines()[1:] == [f"resumed at step {STEPS}"]
    named = f"'{directory}': {directory}/checkpoints/ckpt-310_temp/"
    assert err[-1].startswith(f"train_lm: cannot write to {named}")
    assert err[-1].endswith("; File too large")
    assert not [line for line in err if "Traceback" in line]
    after = lm_program.contents(directory)
    kept = [path for path in before if path.match("checkpoints/ckpt-*")]
    assert len(kept) == 4
    assert all(after[path] == before[path] for path in kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "options"),
    [
        (
            lm_program.run_here,
            {"strategy": "one_device", "precision": "bfloat16"}
            | {"learning_rate_schedule": "constant", "warmup_steps": 0}
            | {"skip_nonfinite": True, "jit_compile": False},
        ),
        (
            lm_program.run,
            {"strategy": "mirrored", "precision": "float16"}
            | {"loss_scale_factor": "dynamic", "loss_scale_growth_interval": 7}
            | {"initial_loss_scale": 2.0**12, "use_ema": True},
        ),
    ],
    ids=["bfloat16", "float16"],
)
def test_other_options(tmp_path, text, run, options):
    code, out, err = run(
        data=text, model_dir=tmp_path / "run", steps=40, **options
    )
    assert code == 0, err
    assert "held-out text:" in out
    records = lm_program.history(tmp_path / "run")
    assert records[-1]["loss"] < records[0]["loss"]
    assert all(np.isfinite(list(r.values())).all() for r in records)
    values = lm_program.checkpoint(tmp_path / "run", 40)
    updates = values[f"optimizer/counters/iterations/{VALUE}"]
    if "loss_scale_factor" not in options:
        assert updates == 40
        return
    # Grown often enough to overflow: then it shrinks, and a step is skipped.
    assert 30 <= updates < 40
    scale = values[f"optimizer/hyperparameters/loss_scale/{VALUE}"]
    assert records[-1]["loss_scale"] == scale > 2.0**12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta_1": 1}, "flag --beta_1=1.0: must be a number in [0, 1)"),
        ({"data": "missing.txt"}, "--data: 'missing.txt' matches no file"),
        ({"batch_size": 1000}, "--data: one batch takes 16001 bytes"),
        ({"warmup_steps": 30, "steps": 30}, "larger than --warmup_steps=30"),
        ({"exclude_from_weight_decay": "bias"}, "'bias'"),
        ({"model_dir": "/proc/run"}, "--model_dir: /proc/run"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_work_ends_in_one_line(tmp_path, text, given, message):
    directory = tmp_path / "run"
    code, out, err = lm_program.run_here(
        **{"data": text, "model_dir": directory, **given}
    )
    assert code == 2
    (line,) = err
    assert line.startswith("train_lm: ")
    assert message in line
    assert out == ""
    assert not directory.exists()


@pytest.mark.slow
def test_devices_that_cannot_be_reached_end_in_one_line(tmp_path, text):
    directory = tmp_path / "run"
    code, out, (line,) = lm_program.run(
        data=text, model_dir=directory, strategy="tpu"
    )
    assert (code, out) == (2, "")
    assert line.startswith("train_lm: --strategy=tpu: ")
    assert not directory.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 32}, "has width=16, not 32"),
        ({"beta_2": 0.5}, "has beta_2=0.98, not 0.5"),
        (
            {"steps": 600},
            "not 600: --decay_steps=300 keeps the schedule",
        ),
    ],
    ids=["model", "optimizer", "schedule"],
)
def test_the_run_of_another_configuration_is_left_alone(
    finished, text, given, message
):
    before = lm_program.contents(finished[0])
    code, _, (line,) = lm_program.run_here(
        data=text, model_dir=finished[0], **{**SETTINGS, **given}
    )
    assert code == 2
    assert line.startswith(f"train_lm: --model_dir: the run in '{finished[0]}'")
    assert line.endswith(message)
    assert lm_program.contents(finished[0]) == before


@pytest.mark.slow
def test_a_directory_of_something_else_is_left_alone(tmp_path, text):
    (tmp_path / "thesis.tex").write_text("words")
    before = lm_program.contents(tmp_path)
    code, _, (line,) = lm_program.run_here(data=text, model_dir=tmp_path)
    assert code == 2
    assert "it is not the directory of a run" in line
    assert lm_program.contents(tmp_path) == before


@pytest.mark.slow
def test_help_lists_the_flags():
    process = lm_program.start([*lm_program.command()[:3], "--help"])
    shown, _ = process.communicate(timeout=60)
    for flag in ("--data", "--steps_per_loop", "--[no]use_ema", "--beta_1"):
        assert flag in shown
