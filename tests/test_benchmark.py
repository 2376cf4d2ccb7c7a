"""The command benchmark: its figures, tables and refusals."""

import json
import os
import pathlib
import statistics
import subprocess
import sys

import pytest
from matplotlib import image

import tpu_scripts
from tpu_scripts import benchmark_rows
from tpu_scripts.bench import (
    cases,
    figures,
    peers,
    report,
    runs,
    workers,
)

ROOT = pathlib.Path(tpu_scripts.__file__).parents[1]
SHAPES = {"kernel": (7, 5), "bias": (5,), "scale": ()}


def run_command(folder, *arguments, module="tpu_scripts.benchmark"):
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "tiny.json").write_text(
        json.dumps({key: [*shape] for key, shape in SHAPES.items()})
    )
    command = run_command(
        folder,
        "--cases=tiny.json",
        "--modes=function,accumulation",
        "--peers=tf_adamw,c-floor,keras,torch-fused",
        "--rounds=2",
        "--json=figures.json",
        "--plot=plot.png",
    )
    assert command.returncode == 0, command.stderr
    return command, folder


@pytest.mark.slow
def test_figures_follow_from_the_rounds(ended):
    found = json.loads((ended[1] / "figures.json").read_text())
    function, accumulation = found["results"]
    assert (function["parameters"], function["variables"]) == (41, 3)
    assert found["machine"]["threads"] == len(os.sched_getaffinity(0))
    for result, names in (
        (function, {"tf_adamw", "c-floor", "keras"}),
        (accumulation, {"tf_adamw", "keras"}),
    ):
        assert set(result["peers"]) == names
        assert len(result["rounds"]) == 2
        medians = {}
        for name, figure in result["peers"].items():
            seconds = [s for turn in result["rounds"] for s in turn[name]]
            medians[name] = statistics.median(seconds)
            assert figure["median_seconds"] == medians[name] > 0
            assert figure["first_call_seconds"] > 0
        for ratio in result["ratios"]:
            expected = medians[ratio["of"]] / medians[ratio["to"]]
            assert ratio["ratio"] == pytest.approx(expected)
        assert len(result["ratios"]) == len(names) * (len(names) - 1)


@pytest.mark.slow
def test_graphs_are_counted_and_windows_are_whole(ended):
    found = json.loads((ended[1] / "figures.json").read_text())
    function, accumulation = found["results"]
    assert function["peers"]["c-floor"]["nodes"] is None
    for name in ("tf_adamw", "keras"):
        figure = function["peers"][name]
        assert figure["nodes"] > 0
        assert figure["nodes_per_variable"] == figure["nodes"] / 3
        for turn in accumulation["rounds"]:
            assert len(turn[name]) % peers.WINDOW == 0
        assert accumulation["peers"][name]["sums_ratio"]["ratio"] > 0


@pytest.mark.slow
def test_tables_have_every_peer(ended):
    command, folder = ended
    lines = command.stdout.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ")]
    for name in ("tf_adamw", "one pass in C", "Keras 3 AdamW"):
        assert any(row[0] == f"| {name}" for row in rows)
    # It has no such mode.
    (torch,) = [row for row in rows if "torch" in row[0]]
    assert all(cell.strip(" |") == "-" for cell in torch[1:])
    assert "figures: figures.json" in lines
    picture = image.imread(folder / "plot.png")
    assert (picture[0, 0] == 1).all()  # white


def test_rows(tmp_path):
    command = run_command(
        tmp_path,
        "--rows=1000",
        "--touched=10",
        "--rounds=2",
        module="tpu_scripts.benchmark_rows",
    )
    assert command.returncode == 0, command.stderr
    plain, other = command.stdout.splitlines()
    assert plain.startswith("plain: dense ") and plain.endswith("%")
    assert other.startswith("global_clipnorm") and other.endswith("%")


def test_rows_are_compared_in_turns(monkeypatch):
    """By the median of the ratios, of the turns that do not warm up."""
    times = {"dense": [1, 1, 100, 200, 400], "lazy": [9, 9, 4, 1, 16]}
    monkeypatch.setattr(benchmark_rows, "timed", next)
    taken = benchmark_rows.in_turns({k: iter(t) for k, t in times.items()}, 3)
    text = benchmark_rows.compared(taken)
    assert "dense 200.00 ms (" in text and "lazy 4.00 ms (" in text
    assert text.endswith(": 4.00%")


def test_refusals_are_one_line(tmp_path):
    for flag in (
        "--cases=none.json",
        "--modes=fast",
        "--peers=adam",
        "--gradients=",
        "--rounds=1",
        "--threads=100000",
        "--json=none/figures.json",
        "--json=",
        "--cases=",
        "surplus",
    ):
        refused = run_command(tmp_path, flag)
        assert refused.returncode == 2
        assert refused.stdout == ""
        (line,) = refused.stderr.splitlines()
        assert line.startswith("benchmark: ")
        assert flag.strip("-").split("=")[0] in line


@pytest.mark.slow
def test_a_peer_without_result_stays_in_the_table(tmp_path):
    """No Python loads TensorFlow within the second."""
    (tmp_path / "tiny.json").write_text('{"kernel": [2]}')
    ended = run_command(
        tmp_path,
        "--cases=tiny.json",
        "--peers=tf_adamw",
        "--timeout=1",
        "--plot=plot.png",
    )
    assert ended.returncode == 2
    assert "| tf_adamw | no result in 1 s | - |" in ended.stdout
    assert ended.stderr.endswith("benchmark: --plot: no peer has a time\n")
    (result,) = json.loads((tmp_path / "benchmark.json").read_text())["results"]
    assert result["peers"] == {"tf_adamw": {"failed": "no result in 1 s"}}


def test_worker_that_fails_says_why():
    worker = workers.Worker(("c-floor", "none.json", "jit", "given"), 1, 60)
    with pytest.raises(workers.Failed, match="--cases=none"):
        worker.started()
    worker.close()


def test_worker_is_given_up():
    worker = workers.Worker(("c-floor", "one", "jit", "given"), 1, 1e-3)
    with pytest.raises(workers.Failed, match="no result in"):
        worker.started()
    worker.close()


def test_output_of_libraries_does_not_reach_the_benchmark():
    source = (
        "import os\n"
        "from tpu_scripts.bench.worker import take_stdout\n"
        "channel = take_stdout()\n"
        "print('note', flush=True)\n"
        "os.write(1, b'note')\n"
        "print('answer', file=channel)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", source],
        env=workers.environment(1),
        capture_output=True,
        text=True,
    )
    assert (ended.stdout, ended.stderr) == ("answer\n", "note\nnote")


def test_spread_is_the_interquartile_range_over_the_median():
    assert figures.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert figures.spread([3.0, 3.0]) == 0
    assert figures.spread([3.0]) == 0


def test_ratio_counts_shared_rounds_only():
    rounds = [
        {"a": [2.0, 2.0, 9.0], "b": [1.0]},
        {"a": [4.0], "b": [2.0, 2.0]},  # a slower machine: the same ratio
        {"a": [100.0]},
    ]
    ratio = figures.ratio(rounds, "a", "b")
    assert ratio["ratio"] == 3 / 2
    assert ratio["spread"] == 0
    assert not ratio["too_noisy"]
    assert figures.ratio(rounds, "a", "c") is None


@pytest.mark.parametrize(("times", "noisy"), [([1, 1.1], 0), ([1, 1.6], 1)])
def test_noise_replaces_the_ratio(times, noisy):
    rounds = [{"a": [time], "b": [1.0]} for time in times]
    ratio = figures.ratio(rounds, "a", "b")
    assert ratio["too_noisy"] == noisy
    result = {
        "case": "x",
        "mode": "eager",
        "gradients": "given",
        "parameters": 1,
        "variables": 1,
        "peers": {
            "tf_adamw": figures.summary(rounds, "a"),
            "c-floor": {"failed": "no result in 1 s"},
        },
        "ratios": [{**ratio, "of": "tf_adamw", "to": "c-floor"}],
    }
    table = report.table(result, ["tf_adamw", "c-floor"])
    assert ("too noisy (spread 23.1%)" in table) == noisy
    assert ("1.05 (5%)" in table) != noisy
    assert "| one pass in C | no result in 1 s |" in table


def test_window_is_split():
    turn = [1.0, 1.0, 1.0, 4.0] * 2
    found = figures.window_summary([{"a": turn}, {"a": turn}, {}], "a")
    assert found["sums"]["median_seconds"] == 1
    assert found["updates"]["median_seconds"] == 4
    assert found["sums_ratio"]["ratio"] == 0.25


def test_peers_take_turns_in_the_groups_that_fit(monkeypatch):
    names = ["tf_adamw", "keras", "c-floor", "optax", "sonnet"]
    monkeypatch.setattr(runs.machine, "available_bytes", lambda: 0)
    assert [*runs.groups(names, 10**9)] == [
        ["tf_adamw", "c-floor", name] for name in ("keras", "optax", "sonnet")
    ]
    monkeypatch.setattr(runs.machine, "available_bytes", lambda: 10**13)
    (group,) = runs.groups(names, 10**9)
    assert sorted(group) == sorted(names)
    assert [*runs.groups(["c-floor"], 10**9)] == [["c-floor"]]


def test_missing_package_is_named():
    peer = peers.Peer("x", "tf_programs", ("tensorflow", "no_such_package"))
    assert peer.lacks() == (
        "no_such_package is missing: pip install 'tf_adamw[bench]'"
    )
    assert peers.PEERS["tf_adamw"].lacks() is None


def test_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    lacks = peers.PEERS["c-floor"].lacks()
    assert lacks == "there is no C compiler: none of cc, gcc, clang"


@pytest.mark.parametrize("name", cases.NAMES)
def test_cases_have_their_variables(name):
    variables, parameters = {
        "gpt2-small": (148, 124_439_808),
        "bert-large": (391, 335_141_888),
        "one": (1, 2**26),
        "thousand": (1000, 1_024_000),
        "scalars": (10_000, 10_000),
    }[name]
    found = cases.read(name)
    assert len(found) == variables
    assert cases.count(found) == parameters
