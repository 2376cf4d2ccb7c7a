"""The command compile_for_tpu: what it prints and writes, what it refuses."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import tpu_scripts
from tpu_scripts.aot import compiler, shapes, steps
from tpu_scripts.aot.hlo import Module

ROOT = pathlib.Path(tpu_scripts.__file__).parents[1]
NAME = "tpu_scripts.compile_for_tpu"
SMALL = {"kernel": [1024, 1024], "bias": [1024]}
# Weights, gradients and moments of 20 GiB: more than a v5e has.
HUGE = {f"kernel_{i}": [8192, 8192] for i in range(20)}
MODEL = ["--step=train_lm", "--layers=1", "--width=64", "--heads=2"]

on_tpu = pytest.mark.tpu


class Ended:
    """A run of the command that has ended."""

    def __init__(self, folder, arguments, without=None):
        self.figures_file = folder / "figures.json"
        start = ["-m", NAME]
        if without:
            start = [
                "-c",
                f"import runpy, sys; sys.modules[{without!r}] = None; "
                f"runpy.run_module({NAME!r}, run_name='__main__')",
            ]
        path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
        ended = subprocess.run(
            [
                sys.executable,
                *start,
                "--topology=v5e:2x2",
                f"--json={self.figures_file}",
                *arguments,
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=300,
        )
        self.code = ended.returncode
        self.out = ended.stdout.splitlines()
        self.err = ended.stderr

    def refusal(self, code):
        """The line in which it refuses."""
        assert self.code == code, self.err
        assert self.out == []
        assert not self.figures_file.exists()
        (line,) = re.findall("^compile_for_tpu: (.*)$", self.err, re.M)
        assert "Traceback" not in self.err
        return line

    def figures(self):
        assert self.code == 0, self.err
        return json.loads(self.figures_file.read_text())

    def row(self, name):
        """The text of a line of the table."""
        found = [re.fullmatch(r"(\S.*?|  \S.*?)  +(.*)", o) for o in self.out]
        (text,) = (f[2] for f in found if f and f[1] == name)
        return text


@pytest.fixture
def run(tmp_path):
    for name, content in {"small": SMALL, "huge": HUGE}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return lambda *arguments, **how: Ended(tmp_path, arguments, **how)


def blocks_of_the_page():
    page = pathlib.Path(__file__).parent.parent / "docs" / "tpu_compiler.md"
    return re.findall(r"```py\n(.*?)```", page.read_text(), re.DOTALL)


@on_tpu
def test_the_bar_of_the_page(run, tmp_path, monkeypatch):
    found = run("--shapes=small.json", "--json=compile_for_tpu.json")
    assert found.code == 0
    monkeypatch.chdir(tmp_path)
    bar, _ = blocks_of_the_page()
    exec(bar, {})


@on_tpu
def test_table_figures_and_hlo(run, tmp_path):
    ended = run("--shapes=small.json", "--hlo_dir=hlo", "--use_ema")
    found = ended.figures()
    assert (found["topology"], found["replicas"]) == ("v5e:2x2", 4)
    count = 1024 * 1024 + 1024
    assert (found["parameters"], found["variables"]) == (count, 2)
    assert ended.row("parameters") == f"{count:,} in 2 variables"
    for row, key in {
        "HBM bytes": "hbm_bytes",
        "  floor": "floor_bytes",
        "HBM bytes of collectives": "collective_hbm_bytes",
        "bytes accessed, all memories": "bytes_accessed",
    }.items():
        each = found[key] / count
        assert ended.row(row) == f"{found[key]:,}, {each:.2f} per parameter"
    for name, size in found["memory"].items():
        assert ended.row(name) == f"{size:,} bytes"
    for kind, number in found["kernels"].items():
        assert ended.row(kind).startswith(f"{number:,}, ")
    reduced = found["collectives"]["all-reduce"]
    assert reduced["bytes"] == 4 * count
    text = f"{reduced['count']} of {4 * count:,} bytes"
    assert ended.row("all-reduce") == text
    assert ended.row("state updated in place") == "yes, 9 of 9"
    assert ended.row("compile time") == f"{found['compile_seconds']:.1f} s"
    module = Module((tmp_path / "hlo" / "optimized.hlo").read_text())
    assert dict(module.kernels()) == found["kernels"]
    assert len(module.aliases) == 9


@on_tpu
def test_keras(run):
    ended = run("--optimizer=keras", "--shapes=small.json", "--use_ema")
    found = ended.figures()
    count = found["parameters"]
    assert found["floor_bytes"] == pytest.approx(36 * count, rel=1e-3)
    assert found["state_bytes"] == pytest.approx(16 * count, rel=1e-3)
    assert ended.row("state updated in place") == "yes, 9 of 9"


@on_tpu
def test_train_lm(run):
    ended = run(
        *MODEL,
        "--topology=v5e:2x4",
        "--gradient_accumulation_steps=2",
        "--use_ema",
        "--precision=bfloat16",
    )
    found = ended.figures()
    assert found["replicas"] == 8
    assert "floor_bytes" not in found
    assert found["flops"] > 6 * found["parameters"]
    assert found["state_buffers_in_place"] == found["state_buffers_written"]
    # Weight, momentum, velocity, average, accumulator; two counters.
    assert found["state_buffers_written"] == 5 * found["variables"] + 2
    reduced = found["collectives"]["all-reduce"]["bytes"]
    assert reduced >= 4 * found["parameters"]


@on_tpu
@pytest.mark.slow
def test_train_lm_on_256_chips(run):
    ended = run(*MODEL, "--topology=v5e:16x16")
    found = ended.figures()
    assert found["replicas"] == 256
    # Weight, momentum, velocity; a counter.
    assert found["state_buffers_written"] == 3 * found["variables"] + 1
    assert found["state_buffers_in_place"] == found["state_buffers_written"]


@on_tpu
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--topology=v5e:7x7", "topology 'v5e:7x7': "),
        ("--topology=abacus", "topology 'abacus': "),
        ("--shapes=huge.json", "Ran out of memory on HBM"),
    ],
)
def test_what_the_compiler_refuses(run, argument, message):
    assert message in run(argument).refusal(1)


@on_tpu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--optimizer=keras", "--skip_nonfinite"],
            "--skip_nonfinite: Keras's AdamW has no such argument",
        ),
        (
            ["--optimizer=keras", "--loss_scale_factor=dynamic"],
            "--loss_scale_factor=dynamic: Keras's AdamW has none",
        ),
        (["--step=train_lm", "--optimizer=keras"], "--optimizer=adamw alone"),
        (["--step=train_lm", "--batch_size=6"], "number of replicas, 4"),
        (["--shapes=missing.json"], "--shapes=missing.json is not one of"),
        (["--no_such_flag"], "Unknown command line flag 'no_such_flag'"),
        (["more"], "'more' is not a flag"),
        (["--topology="], "must not be empty"),
        (["--json=/proc/figures.json"], "--json: "),
        (["--hlo_dir=/proc"], "--hlo_dir: "),
        (["--clipnorm=1", "--global_clipnorm=1"], "clipnorm"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_does_not_fit(run, arguments, message):
    assert message in run(*arguments).refusal(2)


def test_figures_need_a_file(run, tmp_path):
    ended = run("--json=")
    assert ended.code == 2
    assert "compile_for_tpu: flag --json=: must not be empty" in ended.err
    assert "Traceback" not in ended.err
    assert not list(tmp_path.glob("*figures*"))


@pytest.mark.parametrize(
    "missing",
    ["libtpu", pytest.param("jax.experimental", marks=pytest.mark.slow)],
)
def test_a_missing_extra(run, missing):
    line = run("--shapes=small.json", without=missing).refusal(2)
    assert line.startswith("jax and libtpu are needed (")
    assert line.endswith("pip install '.[aot]'")


@pytest.mark.parametrize(
    ("name", "variables", "parameters"),
    # Hugging Face's "gpt2" and "bert-large-uncased", without heads.
    [("gpt2-small", 148, 124_439_808), ("bert-large", 391, 335_141_888)],
)
def test_named_shapes(name, variables, parameters):
    found = shapes.read(name)
    sizes = [rows * columns for rows, columns in _as_matrices(found)]
    assert (len(found), sum(sizes)) == (variables, parameters)


def _as_matrices(found):
    return [
        shape if len(shape) == 2 else (1, *shape) for shape in found.values()
    ]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"a": 3}',
        '{"a": [0]}',
        '{"a": [true]}',
        '{"a": [2.0]}',
        '{"a b": [2]}',
        '{"a:0": [2]}',
        '{"\xe4": [2]}',
        '{"a": [2], "a": [3]}',
        "\xff",
    ],
)
def test_bad_shapes(tmp_path, content):
    path = tmp_path / "shapes.json"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match="nor a JSON file") as refusal:
        shapes.read(str(path))
    assert "\n" not in str(refusal.value)


def test_shapes_of_a_file(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text('{"a": [2, 3], "b": []}')
    assert shapes.read(str(path)) == {"a": (2, 3), "b": ()}


@on_tpu
@pytest.mark.parametrize(
    ("topology", "replicas"),
    [
        ("v4:2x2x1", 4),
        ("v5p:2x2x2", 8),
        ("v6e:16x16", 256),
        ("v5p:8x8x16", 1024),
    ],
)
def test_replicas_of_a_slice(topology, replicas):
    """One per chip: TensorFlow has one for the two cores of v4 and v5p."""
    assert compiler.count_replicas(topology) == replicas


@on_tpu
def test_keras_hands_counters_to_all_replicas():
    """By an all-to-all, which lowering makes of TensorFlow's operation."""
    step = steps.keras_step({}, {"kernel": (1024, 1024)}, 4)
    module = compiler.compile_program(step.program, "v5e:2x2").module
    count, size = module.collectives()["all-to-all"]
    assert count >= 1
    assert size < 1024


@on_tpu
def test_the_page_compiles_a_step_of_its_own(capsys):
    _, code = blocks_of_the_page()
    exec(code, {})
    assert "4 buffers updated in place" in capsys.readouterr().out
