"""Starts the workers of a small cluster on this machine."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, Any, NamedTuple

_LAUNCHED = "TRAIN_LM_LAUNCHED"
_REFUSED = 2  # the exit code of what every worker refuses
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_SECONDS = 10  # for the workers to end by themselves


class _Worker(NamedTuple):
    """One process; the first one is the chief."""

    process: subprocess.Popen
    errors: IO[bytes] | None  # its stderr, if that is not shown


def run_workers(count: int) -> int:
    """Runs this command once more in each of several new processes.

    The chief's output is shown, and the errors of a worker that fails. When
    one fails, all are ended. Signals are passed on to all.

    Args:
      count: the number of processes.

    Returns:
      The exit code: 0 if all workers ended well, else that of the first one
      that did not.
    """
    ports = _free_ports(count)
    workers = [_start(index, ports) for index in range(count)]
    received: list[int] = []

    def forward(number: int, _frame: Any) -> None:
        received.append(number)
        for worker in workers:
            worker.process.send_signal(number)

    for number in _SIGNALS:
        signal.signal(number, forward)
    codes = _wait(workers, received)
    for worker in workers:
        worker.process.kill()
        worker.process.wait()
    if received:
        return 128 + received[0]
    failed = [index for index, code in enumerate(codes) if code]
    if not failed:
        return 0
    for index in failed:
        _report(index, workers, codes)
    code = codes[failed[0]]
    return code if code > 0 else 128 - code


def end_with_launcher() -> None:
    """Ends this worker as soon as the process that started it is gone.

    However that ended: or else the worker might go on writing, while the same
    command is given again.
    """

    def wait() -> None:
        os.read(0, 1)  # the launcher never writes
        os._exit(1)

    if _LAUNCHED in os.environ:
        threading.Thread(target=wait, daemon=True).start()


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now.

    Random ones, below those of outgoing connections: another program is not
    likely to take them before the workers do.
    """
    ports: set[int] = set()
    while len(ports) < count:
        port = random.randrange(15000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports.add(port)
    return list(ports)


def _start(index: int, ports: list[int]) -> _Worker:
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    task = {"type": "worker", "index": index}
    environment = {
        "TF_CONFIG": json.dumps({"cluster": cluster, "task": task}),
        "CUDA_VISIBLE_DEVICES": "-1",  # every worker would take all of them
        "no_grpc_proxy": "localhost",
        _LAUNCHED: "1",
    }
    errors = tempfile.TemporaryFile() if index else None  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:], "--workers_local=0"],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,  # see end_with_launcher
        stdout=subprocess.DEVNULL if index else None,
        stderr=errors,
        start_new_session=True,  # Ctrl-C reaches it through this process
    )
    return _Worker(process, errors)


def _wait(workers: list[_Worker], received: list[int]) -> list[int | None]:
    """Waits until all have ended, or have to be ended because one failed.

    Returns:
      The exit codes, None for a worker that has not ended.
    """
    deadline = float("inf")
    while True:
        codes = [worker.process.poll() for worker in workers]
        if None not in codes or time.monotonic() > deadline:
            return codes
        if any(codes) or received:
            # What one refuses all do: the chief says so. After a crash they
            # could but report that they miss a worker.
            alike = received or _REFUSED in codes
            patience = _SECONDS if alike else 0
            deadline = min(deadline, time.monotonic() + patience)
        time.sleep(0.02)


def _report(
    index: int, workers: list[_Worker], codes: list[int | None]
) -> None:
    """Says which worker failed, and what it said if that was not shown."""
    code, errors = codes[index], workers[index].errors
    if codes[0] == _REFUSED:  # Others say the same, or miss the chief.
        return
    if errors:
        errors.seek(0)
        shutil.copyfileobj(errors, sys.stderr.buffer)
    cause = f"exit code {code}" if code > 0 else f"signal {-code}"
    print(f"train_lm: worker {index} ended by {cause}", file=sys.stderr)
