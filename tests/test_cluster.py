"""The clusters of the other tests: nothing hangs, nothing is left."""

import textwrap

import pytest

import cluster

pytestmark = pytest.mark.core

HEAD = """
    import json, os, sys, time
    import cluster
    cluster.end_with_test()
    task = json.loads(os.environ["TF_CONFIG"])["task"]
"""


@pytest.fixture
def program(tmp_path):
    """Writes a program; returns the command."""

    def write(body):
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(HEAD) + textwrap.dedent(body))
        return [path, str(tmp_path)]

    return write


def processes_of(failing_call):
    """The error of a call, and the processes that it has started."""
    started = []
    popen = cluster.subprocess.Popen

    def recording(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.subprocess, "Popen", recording)
        with pytest.raises(cluster.ClusterError) as error:
            failing_call()
    return str(error.value), started


def test_a_process_that_hangs(program, tmp_path):
    command = program("""
        print("it waits", task["index"], flush=True)
        cluster.ready()
        time.sleep(600)
    """)

    def hang():
        with cluster.Cluster({"a": 2}, tmp_path, command) as running:
            running.seconds_left(0)
            running.wait_for_end()

    message, started = processes_of(hang)
    assert "A process hangs." in message
    assert "it waits 0" in message
    assert "it waits 1" in message
    assert all(p.returncode is not None for p in started)
    assert len(started) == 2


def test_a_process_that_fails(program, tmp_path):
    command = program("""
        cluster.ready()
        if task["type"] == "b":
            raise ValueError("as this test wants")
        time.sleep(600)
    """)
    message, started = processes_of(
        lambda: cluster.run({"a": 1, "b": 1}, tmp_path, command)
    )
    assert "---- b-0: exit code 1" in message
    assert "as this test wants" in message
    assert "---- a-0: runs" in message
    assert all(p.returncode is not None for p in started)


def test_a_port_that_is_taken(program, tmp_path):
    command = program("""
        mark = sys.argv[1] + "/second"
        if not os.path.exists(mark):
            open(mark, "w").close()
            sys.exit("Could not start gRPC server")
        cluster.ready()
        print("at the second attempt")
    """)
    logs = cluster.run({"a": 1}, tmp_path, command)
    assert logs["a-0"].endswith("at the second attempt\n")


def test_processes_end_when_the_test_is_gone(program, tmp_path):
    command = program("""
        cluster.ready()
        time.sleep(600)
    """)
    with cluster.Cluster({"a": 1}, tmp_path, command, 60) as running:
        process = running.processes["a-0"]
        process.stdin.close()  # as the system does for a test that is killed
        assert process.wait(30) == 1


def test_a_process_that_is_killed(program, tmp_path):
    command = program("""
        cluster.ready()
        if task["index"] == 1:
            time.sleep(600)
        while not os.path.exists(sys.argv[1] + "/killed"):
            time.sleep(0.01)
        sys.exit("the other one is gone")
    """)
    with cluster.Cluster({"a": 2}, tmp_path, command, 60) as running:
        running.kill("a-1")
        (tmp_path / "killed").touch()
        assert "the other one is gone" in running.failure("a-0")
