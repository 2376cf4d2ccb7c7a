"""Starts train_lm many times, and imports what it needs only once.

    lm_fork_server.py

Each line of its input is a JSON list: the arguments of one start, the file for
what that prints, and whether to start a new Python. If not, the server forks,
and the child runs the module as `python -m tpu_scripts.train_lm` does. The
server answers with the child's id and, when the child has ended, with its exit
code, or minus a signal.
"""

import importlib
import json
import os
import runpy
import sys

PROGRAM = "tpu_scripts.train_lm"
# What it imports at its start, and Keras, which it imports when it has to.
IMPORTS = [
    "absl.app",
    "keras",
    "matplotlib.pyplot",
    "tqdm",
    "tf_adamw.flags",
    "tpu_scripts.lm_checkpoints",
    "tpu_scripts.lm_export",
    "tpu_scripts.lm_plot",
    "tpu_scripts.lm_trainer",
    "tpu_scripts.lm_workers",
]


def main():
    for name in IMPORTS:
        importlib.import_module(name)
    # A child would have one of several threads.
    assert len(os.listdir("/proc/self/task")) == 1
    for line in sys.stdin:
        arguments, output, new = json.loads(line)
        child = os.fork()
        if not child:
            redirect(output)
            run(arguments, new)
            return
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def redirect(output):
    """Reads nothing, and writes to the file."""
    source = os.open(os.devnull, os.O_RDONLY)
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, copy in enumerate((source, target, target)):
        os.dup2(copy, number)


def run(arguments, new):
    """Becomes the program."""
    if new:
        command = [sys.executable, "-u", "-m", PROGRAM, *arguments]
        os.execv(sys.executable, command)
    sys.argv = [PROGRAM, *arguments]
    runpy.run_module(PROGRAM, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
