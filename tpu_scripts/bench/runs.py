"""Runs the peers of one case in turns."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from tpu_scripts.bench import cases, figures, machine, peers
from tpu_scripts.bench.workers import Failed, Worker

# The two that others are compared with: they run beside every other one.
BESIDE_ALL = ("tf_adamw", "c-floor")
# Weights, gradients and two moments, and what a framework takes itself.
_BYTES_PER_PARAMETER = 16
_OWN_BYTES = 10**9
# A turn is at least this long, if that many calls are enough for it: the first
# calls after the others' turns find cold caches.
_TURN_SECONDS = 0.2
_MOST_CALLS = 100


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to run.

    Attributes:
      threads: of each process.
      rounds: turns of each peer.
      steps: in each turn, at least; more where they are short.
      timeout: seconds for a start, or for a turn.
    """

    threads: int
    rounds: int
    steps: int
    timeout: float


def run(
    case: str, mode: str, gradients: str, names: Sequence[str], plan: Plan
) -> dict[str, Any]:
    """Runs the peers on a case, as many at once as the memory holds.

    Args:
      case: as `cases.read` takes it.
      mode: of `peers.MODES`, without "import".
      gradients: of `peers.GRADIENTS`.
      names: the peers. Those that lack the mode do not run.
      plan: how to run.

    Returns:
      The figures, ready for JSON.
    """
    names = [name for name in names if mode in peers.PEERS[name].modes]
    shapes = cases.read(case)
    rounds: list[figures.Round] = []
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for group in groups(names, cases.count(shapes)):
        title = f"{os.path.basename(case)} {mode} {gradients}"
        rounds += _interleave(
            group, (case, mode, gradients), plan, found, title
        )
    for name, figure in found.items():
        if "failed" not in figure:
            _summarize(figure, name, mode, rounds, shapes)
    return {
        "case": os.path.basename(case),
        "variables": len(shapes),
        "parameters": cases.count(shapes),
        "mode": mode,
        "gradients": gradients,
        "peers": found,
        "ratios": _ratios(rounds, names),
        "rounds": rounds,
    }


def _summarize(
    figure: dict[str, Any],
    name: str,
    mode: str,
    rounds: Sequence[figures.Round],
    shapes: cases.Shapes,
) -> None:
    """Adds what the rounds say of one peer to what its start said."""
    figure |= figures.summary(rounds, name)
    if mode == "accumulation":
        figure |= figures.window_summary(rounds, name)
    if figure["nodes"] is not None:
        figure["nodes_per_variable"] = figure["nodes"] / len(shapes)
    held = _BYTES_PER_PARAMETER * cases.count(shapes)
    peak = figure["peak_bytes"]
    figure["memory_ratio"] = figure["step_memory_ratio"] = None
    if figure["restarted_peak"]:
        figure["memory_ratio"] = (peak - figure["bytes_before"]) / held
        figure["step_memory_ratio"] = (
            1 + (peak - figure["bytes_between"]) / held
        )


def _ratios(
    rounds: Sequence[figures.Round], names: Sequence[str]
) -> list[dict[str, Any]]:
    """The ratio of each peer to each other that it ran beside."""
    pairs = [(a, b) for a in names for b in names if a != b]
    found = [figures.ratio(rounds, *pair) for pair in pairs]
    return [ratio for ratio in found if ratio]


def groups(names: Sequence[str], parameters: int) -> Iterator[list[str]]:
    """Peers that fit into the memory together, at least one that is new."""
    beside = [name for name in BESIDE_ALL if name in names]
    others = [name for name in names if name not in beside]
    array = parameters * _BYTES_PER_PARAMETER

    def need(names: Sequence[str]) -> int:
        frameworks = sum(name != "c-floor" for name in names)
        return frameworks * _OWN_BYTES + len(names) * array

    # One step at a time holds temporaries as well.
    room = machine.available_bytes() - array - need(beside)
    group: list[str] = []
    for name in others:
        if group and need([*group, name]) > room:
            yield beside + group
            group = []
        group.append(name)
    if group or beside:
        yield beside + group


def _interleave(
    names: Sequence[str],
    arguments: tuple[str, str, str],
    plan: Plan,
    found: dict[str, dict[str, Any]],
    title: str,
) -> list[figures.Round]:
    """Starts the peers one after another, then has them take turns."""
    rounds = []
    progress = tqdm(total=len(names) + plan.rounds, desc=title, leave=False)
    with progress, contextlib.ExitStack() as stack:
        workers = {}
        for name in names:
            progress.set_postfix_str(f"starts {name}")
            worker = Worker((name, *arguments), plan.threads, plan.timeout)
            stack.callback(worker.close)
            try:
                found[name] |= worker.started()
                workers[name] = worker
            except Failed as error:
                found[name]["failed"] = str(error)
                worker.close()
            progress.update()
        for _ in range(plan.rounds):
            rounds.append(_turns(workers, arguments[1], plan.steps, found))
            progress.update()
    return rounds


def _turns(
    workers: dict[str, Worker],
    mode: str,
    steps: int,
    found: dict[str, dict[str, Any]],
) -> figures.Round:
    """One turn of each."""
    each = peers.LOOP_STEPS if mode == "loop" else 1
    unit = peers.WINDOW if mode == "accumulation" else 1
    seconds = {}
    for name, worker in [*workers.items()]:
        calls = max(
            math.ceil(steps / each),
            min(_MOST_CALLS, int(_TURN_SECONDS / found[name]["call_seconds"])),
        )
        try:
            reply = worker.run(math.ceil(calls / unit) * unit)
        except Failed as error:
            found[name]["failed"] = str(error)
            del workers[name]
            continue
        seconds[name] = [second / each for second in reply["seconds"]]
        found[name]["peak_bytes"] = reply["peak_bytes"]
    return seconds
