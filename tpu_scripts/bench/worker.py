r"""One optimizer in a process of its own, which times its calls.

    python -m tpu_scripts.bench.worker PEER CASE MODE GRADIENTS

It writes one JSON object to stdout when it is warm, then reads lines like
`{"calls": 3}` and answers each with the seconds that the calls took, until its
stdin ends. The environment has the number of threads: OMP_NUM_THREADS.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from tpu_scripts.bench import cases, memory, peers, program

_WARM_UP_CALLS = 2


def take_stdout() -> TextIO:
    """Returns the stream to the reader; other output goes to stderr."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return channel


def pin_threads() -> None:
    """Leaves the process as many CPUs as it may have threads.

    JAX takes a thread for each CPU that it sees, whatever it is told.
    """
    allowed = sorted(os.sched_getaffinity(0))
    threads = int(os.environ["OMP_NUM_THREADS"])
    os.sched_setaffinity(0, allowed[:threads])


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds that a call takes, and its result."""
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def start(
    peer: str, case: str, mode: str, gradients: str
) -> tuple[program.Program, dict[str, Any]]:
    """Makes, traces and warms up the program.

    Returns:
      The program and what its start cost: seconds, nodes, bytes.

    Raises:
      RuntimeError: the step does not change the weights.
    """
    shapes = cases.read(case)
    module = importlib.import_module(
        f"tpu_scripts.bench.{peers.PEERS[peer].programs}"
    )
    module.prepare(peer)
    for package in peers.PEERS[peer].packages:
        importlib.import_module(package)
    before = memory.resident_bytes()
    made = module.make(peer, shapes, mode, gradients == "made")
    index = program.smallest([*shapes.values()])
    weights = made.read(index)
    trace_seconds, nodes = timed(made.trace)
    first_call_seconds, _ = timed(made)
    # A window of gradients is whole when the timed calls begin.
    window = peers.WINDOW if mode == "accumulation" else 1
    for _ in range(window * _WARM_UP_CALLS + window - 1):
        call_seconds, _ = timed(made)
    if (made.read(index) == weights).all():
        raise RuntimeError("the steps left the weights as they were")
    return made, {
        "trace_seconds": trace_seconds,
        "first_call_seconds": first_call_seconds,
        "call_seconds": call_seconds,
        "nodes": nodes,
        "bytes_before": before,
        "restarted_peak": memory.restart_peak(),
        "bytes_between": memory.resident_bytes(),
    }


def answer(made: program.Program, calls: int) -> dict[str, Any]:
    """Times that many calls.

    Returns:
      The seconds of each, and the most memory in bytes since the start.
    """
    seconds = [timed(made)[0] for _ in range(calls)]
    return {"seconds": seconds, "peak_bytes": memory.peak_bytes()}


def main() -> None:
    """Serves until stdin ends."""
    channel = take_stdout()
    pin_threads()
    try:
        made, started = start(*sys.argv[1:])
        print(json.dumps(started), file=channel)
        for line in sys.stdin:
            reply = answer(made, json.loads(line)["calls"])
            print(json.dumps(reply), file=channel)
    except Exception as error:
        message = f"{type(error).__name__}: {error}".strip()
        reply = {"error": message.splitlines()[0]}
        print(json.dumps(reply), file=channel)
        raise


if __name__ == "__main__":
    main()
