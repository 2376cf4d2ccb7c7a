"""--workers_local: how the workers start, speak and end."""

import fcntl
import json
import signal
import sys
import time

import pytest

import lm_program

PROGRAM = lm_program.ROOT / "tests" / "lm_worker_program.py"
ENDED = "train_lm: worker"


def start(folder, *actions):
    return lm_program.start([sys.executable, PROGRAM, folder, *actions])


def run(folder, *actions):
    process = start(folder, *actions)
    out, err = process.communicate(timeout=30)
    return process.returncode, out.splitlines(), err.splitlines()


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def runs(path):
    """Whether the worker runs that has its lock on the file."""
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.fixture
def waiting(tmp_path):
    """A launcher with two workers, and the files that these have locked."""
    process = start(tmp_path, "wait", "wait")
    files = [tmp_path / "0", tmp_path / "1"]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    yield process, files
    process.kill()
    process.communicate(timeout=30)


def test_workers_find_each_other_and_the_chief_speaks(tmp_path):
    code, out, err = run(tmp_path, "0", "0")
    assert (code, out, err) == (0, ["output of 0"], ["errors of 0"])
    configs = [json.loads((tmp_path / name).read_text()) for name in "01"]
    assert [config["task"] for config in configs] == [
        {"type": "worker", "index": 0},
        {"type": "worker", "index": 1},
    ]
    (cluster,) = {json.dumps(config["cluster"]) for config in configs}
    addresses = json.loads(cluster)["worker"]
    assert len(set(addresses)) == 2
    assert all(address.startswith("localhost:") for address in addresses)


@pytest.mark.parametrize(
    ("actions", "code", "said"),
    [
        ("wait 3", 3, ["errors of 1", f"{ENDED} 1 ended by exit code 3"]),
        ("0 3", 3, ["errors of 1", f"{ENDED} 1 ended by exit code 3"]),
        ("3 wait", 3, [f"{ENDED} 0 ended by exit code 3"]),
        ("wait kill", 137, ["errors of 1", f"{ENDED} 1 ended by signal 9"]),
        ("2 2", 2, []),  # each has the same to say
        ("2 3", 2, []),  # the chief was refused: the other misses it
    ],
)
def test_when_one_fails_all_end(tmp_path, actions, code, said):
    found, out, err = run(tmp_path, *actions.split())
    assert (found, out) == (code, ["output of 0"])
    assert err == ["errors of 0", *said]
    assert not any(runs(tmp_path / name) for name in "01")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_reach_all_workers(waiting, name):
    process, files = waiting
    number = signal.Signals[name]
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    # Of Ctrl-C Python may say it, by where it was.
    assert name == "SIGINT" or "KeyboardInterrupt" not in err
    assert not any(map(runs, files))


def test_no_worker_outlives_the_launcher(waiting):
    process, files = waiting
    process.kill()
    wait_for(lambda: not any(map(runs, files)))
