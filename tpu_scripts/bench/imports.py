"""How long a package takes to import, after the framework under it."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from tpu_scripts.bench import figures, peers
from tpu_scripts.bench.workers import environment

_ROUNDS = 5
_PROGRAM = """
import importlib, sys, time
importlib.import_module(sys.argv[1])
begin = time.perf_counter()
importlib.import_module(sys.argv[2])
print(time.perf_counter() - begin)
"""


def run(names: Sequence[str], threads: int) -> dict[str, dict[str, Any]]:
    """Times the imports, each in a new process, in turns.

    Args:
      names: peers. Those that have not the mode "import" are left out.
      threads: of each process.

    Returns:
      The summary of the seconds by peer, with the framework's name.
    """
    names = [name for name in names if "import" in peers.PEERS[name].modes]
    rounds: list[dict[str, list[float]]] = [{} for _ in range(_ROUNDS)]
    turns = [(found, name) for found in rounds for name in names]
    for found, name in tqdm(turns, desc="import", leave=False):
        ended = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *peers.PEERS[name].packages],
            env=environment(threads),
            capture_output=True,
            text=True,
            check=True,
        )
        found[name] = [float(ended.stdout.split()[-1])]
    return {
        name: {"after": peers.PEERS[name].packages[0]}
        | figures.summary(rounds, name)
        for name in names
    }
