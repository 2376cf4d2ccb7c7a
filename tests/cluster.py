"""Clusters of real processes on localhost, for the tests of strategies.

A program that runs in a cluster calls `end_with_test` first and `ready` as
soon as its strategy or server has started. The processes have TF_CONFIG, one
thread for operations each, and no accelerator. Nothing of this module imports
TensorFlow.
"""

import collections
import contextlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np

HERE = pathlib.Path(__file__).parent
READY = "CLUSTER_READY_FILE"
PORT_TAKEN = re.compile("address already in use|could not start grpc", re.I)
SHOWN_LINES = 40
SHOWN_COLUMNS = 400


class ClusterError(AssertionError):
    """A process failed or did not end in time. Shows how all logs end."""


def end_with_test():
    """In a process of a cluster: ends it when the test is gone.

    However that came: the test holds the other end of the standard input.
    """

    def wait():
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def ready():
    """In a process of a cluster: says that it has its port."""
    pathlib.Path(os.environ[READY]).touch()


def _free_ports(count):
    """Ports that nobody listens on now.

    Below those that Linux gives to outgoing connections, and random, so that
    clusters started at the same time rarely pick the same.
    """
    ports = set()
    while len(ports) < count:
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports.add(port)
    return list(ports)


def _environment(addresses, job, index, ready_file):
    config = {"cluster": addresses, "task": {"type": job, "index": index}}
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    return {
        **kept,
        "TF_CONFIG": json.dumps(config),
        # With a single inter-op thread, parameter servers come to wait for
        # each other.
        "TF_NUM_INTEROP_THREADS": "4",
        "TF_NUM_INTRAOP_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1"),
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        READY: str(ready_file),
    }


def write_results(path, results):
    """In a process of a cluster: writes {(run, what, key): array}."""
    named = {"|".join(parts): array for parts, array in results.items()}
    np.savez(path, **named)


def read_results(path):
    """{run: {(what, key): array}} of what a process has written."""
    results = collections.defaultdict(dict)
    with np.load(path) as file:
        for name, array in file.items():
            run, *parts = name.split("|")
            results[run][tuple(parts)] = array
    return dict(results)


class Cluster:
    """The processes of one cluster, named "worker-0" and so on.

    Use it in a `with` statement: none is left after it.

    Args:
      jobs: {"worker": 2}, the number of processes of each job.
      folder: where the logs go, "worker-0.log" and so on.
      command: the program, a file of this folder, and its arguments.
      seconds: after which any wait fails.
    """

    def __init__(self, jobs, folder, command, seconds=300):
        self.folder = pathlib.Path(folder)
        self.processes = {}
        self._jobs = jobs
        self._command = [sys.executable, HERE / command[0], *command[1:]]
        self.seconds_left(seconds)

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def _start(self):
        """Starts the processes and waits until all are ready."""
        for attempts_left in (3, 2, 1, 0):
            self._spawn()
            try:
                self.wait(lambda: all(f.exists() for f in self._ready_files()))
                return
            except ClusterError as error:
                if not (attempts_left and PORT_TAKEN.search(str(error))):
                    raise
            self.stop()

    def _spawn(self):
        ports = iter(_free_ports(sum(self._jobs.values())))
        addresses = {
            job: [f"localhost:{next(ports)}" for _ in range(count)]
            for job, count in self._jobs.items()
        }
        self.processes = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        for job, count in self._jobs.items():
            for index in range(count):
                name = f"{job}-{index}"
                ready_file = self.folder / f"{name}.ready"
                ready_file.unlink(missing_ok=True)
                with open(self.folder / f"{name}.log", "w") as log:
                    self.processes[name] = subprocess.Popen(
                        self._command,
                        env=_environment(addresses, job, index, ready_file),
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )

    def _ready_files(self):
        return [self.folder / f"{name}.ready" for name in self.processes]

    def seconds_left(self, seconds):
        """Sets after how long any wait fails."""
        self._deadline = time.monotonic() + seconds

    def wait(self, condition):
        """Waits until the condition holds while no process fails."""
        failed_at = None
        while not condition():
            if time.monotonic() > self._deadline:
                raise ClusterError(self._report("A process hangs."))
            codes = [p.poll() for p in self.processes.values()]
            failed = any(code not in (None, 0) for code in codes)
            if failed and failed_at is None:
                failed_at = time.monotonic()
            # The other processes get the time to say what they saw.
            if failed and time.monotonic() > failed_at + 1:
                raise ClusterError(self._report("A process failed."))
            time.sleep(0.02)

    def wait_for_end(self, *names):
        """Waits until these processes, by default all, ended well."""
        chosen = [self.processes[name] for name in names or self.processes]
        self.wait(lambda: all(p.poll() == 0 for p in chosen))

    def kill(self, name):
        """SIGKILL: what a machine that breaks down looks like."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()
        process.stdin.close()
        assert process.returncode == -signal.SIGKILL

    def failure(self, name):
        """Waits until this process fails by itself; returns its log."""
        process = self.processes[name]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, self._deadline - time.monotonic()))
        if not process.returncode:
            raise ClusterError(self._report(f"{name} did not fail."))
        return self.log(name)

    def log(self, name):
        """What a process has written so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self):
        """Ends all processes."""
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
            process.stdin.close()

    def _report(self, message):
        parts = [message]
        for name, process in self.processes.items():
            code = process.poll()
            state = "runs" if code is None else f"exit code {code}"
            lines = self.log(name).splitlines()[-SHOWN_LINES:]
            parts.append(f"---- {name}: {state}, its log ends with:")
            parts.extend(line[:SHOWN_COLUMNS] for line in lines)
        return "\n".join(parts)


def run(jobs, folder, command, until=(), seconds=300):
    """Runs a cluster until these processes, by default all, ended well."""
    with Cluster(jobs, folder, command, seconds) as cluster:
        cluster.wait_for_end(*until)
        return {name: cluster.log(name) for name in cluster.processes}
