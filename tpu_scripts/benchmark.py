r"""Times AdamW steps of this package and of others, side by side.

On the shapes of GPT-2, called in a plain `tf.function`, against all others (but
torch, which is called eagerly: --modes=eager):

    pip install '.[tf,bench]' && python -m tpu_scripts.benchmark

A thousand small variables, the gradients made in the step, in every way of
calling:

    python -m tpu_scripts.benchmark --cases=thousand --gradients=made \
      --modes=eager,function,jit,loop --peers=tf_adamw,keras,optax

Every optimizer has a process of its own, with equally many threads, and they
take turns. It prints a table for each case and way of calling and writes the
figures as JSON, those of every step too. Linux, on the CPU.
"""

import functools
import importlib.util
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NoReturn

from absl import app, flags
from tqdm import tqdm

from tpu_scripts import command_line
from tpu_scripts.bench import cases, imports, machine, peers, report, runs

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines all flags."""
    flags.DEFINE_list(
        "cases",
        ["gpt2-small"],
        f"Variables to update: {', '.join(cases.NAMES)}, or JSON files like "
        '{"kernel": [768, 3072]}.',
    )
    _define_choice("modes", ["function"], peers.MODES, "How it is called")
    _define_choice(
        "gradients",
        ["given"],
        peers.GRADIENTS,
        "Arguments, or made in the step",
    )
    _define_choice("peers", [*peers.PEERS], peers.PEERS, "The optimizers")
    flags.DEFINE_integer(
        "threads", None, "Of each process. Default: all CPUs.", lower_bound=1
    )
    flags.DEFINE_integer("rounds", 10, "Turns of each.", lower_bound=2)
    flags.DEFINE_integer("steps", 3, "Steps in a turn.", lower_bound=1)
    flags.DEFINE_float(
        "timeout", 600, "Seconds for a start, or a turn.", lower_bound=1
    )
    flags.DEFINE_string("json", "benchmark.json", "Where to write the figures.")
    flags.DEFINE_string("plot", None, "The PNG file to draw. Default: none.")


def _define_choice(
    name: str, default: Sequence[str], accepted: Collection[str], text: str
) -> None:
    flags.DEFINE_list(name, default, f"{text}: {', '.join(accepted)}.")
    flags.register_validator(
        name,
        lambda values: values and set(values) <= set(accepted),
        f"must be of {', '.join(accepted)}",
    )


def main(argv: list[str]) -> None:
    """Runs, prints and writes."""
    if len(argv) > 1:
        fail(f"{argv[1]!r} is not a flag")
    try:
        if not FLAGS.cases:
            raise ValueError("--cases= names none")
        for case in FLAGS.cases:
            cases.read(case)
        _check_outputs()
    except ValueError as error:
        fail(str(error))
    allowed = len(os.sched_getaffinity(0))
    threads = FLAGS.threads or allowed
    if threads > allowed:
        fail(f"--threads={threads}, but there are {allowed} CPUs")
    found: dict[str, Any] = {
        "arguments": sys.argv[1:],
        "machine": machine.describe(threads),
        "results": [],
    }
    print(f"{report.machine_lines(found['machine'])}\n\n{report.LEGEND}\n")
    names = _installed_peers()
    plan = runs.Plan(threads, FLAGS.rounds, FLAGS.steps, FLAGS.timeout)
    try:
        for result in _results(names, plan):
            found["results"].append(result)
            _write(found)
    except KeyboardInterrupt:
        done = f"; what was done: {FLAGS.json}" if found["results"] else ""
        print(f"benchmark: interrupted{done}", file=sys.stderr)
        sys.exit(130)
    if "import" in FLAGS.modes:
        found["imports"] = imports.run(names, threads)
        _show(report.imports_table(found["imports"]))
    _write(found)
    print(f"figures: {FLAGS.json}")
    if FLAGS.plot:
        _draw(found["results"])


def _draw(results: list[dict[str, Any]]) -> None:
    from tpu_scripts.bench import plot

    try:
        plot.draw(results, FLAGS.plot)
    except ValueError as error:
        fail(f"--plot: {error}")
    print(f"plot: {FLAGS.plot}")


def _results(names: list[str], plan: runs.Plan) -> Iterator[dict[str, Any]]:
    """Runs and prints one case and way of calling after another."""
    for case in FLAGS.cases:
        for gradients in FLAGS.gradients:
            for mode in FLAGS.modes:
                if mode == "import":
                    continue
                result = runs.run(case, mode, gradients, names, plan)
                _show(report.table(result, names))
                yield result


def _show(text: str) -> None:
    tqdm.write(f"{text}\n")
    sys.stdout.flush()


def _write(found: dict[str, Any]) -> None:
    with open(FLAGS.json, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)


def _installed_peers() -> list[str]:
    """The peers of the flag that can run; says which cannot."""
    names = []
    for name in dict.fromkeys(FLAGS.peers):
        lacks = peers.PEERS[name].lacks()
        if lacks:
            print(f"{name} is left out: {lacks}\n")
        else:
            names.append(name)
    return names


def _check_outputs() -> None:
    """Before the minutes that it takes.

    Raises:
      ValueError: a file cannot be written, or drawn.
    """
    if FLAGS.plot and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs: pip install 'tf_adamw[bench]'")
    for name in ("json", "plot"):
        path = FLAGS[name].value
        if path is None:
            continue
        if not path:
            raise ValueError(f"--{name}= names no file")
        folder = os.path.dirname(path) or os.curdir
        if os.path.isdir(path) or not os.access(folder, os.W_OK):
            raise ValueError(f"--{name}={path} cannot be written")


def fail(message: str) -> NoReturn:
    """Ends the program with one line on stderr and exit code 2."""
    command_line.fail("benchmark", message)


if __name__ == "__main__":
    define_flags()
    parse = functools.partial(command_line.parse, "benchmark")
    app.run(main, flags_parser=parse)
