"""The fenced blocks of the pages in docs/, and who runs those of a shell."""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Blocks that test_docs.py neither runs nor finds in what a page's programs
# print: {(page, how it begins): the test that has it, or why none has}.
ELSEWHERE = {
    ("checkpoints", "python -m tpu_scripts.train_lm"): (
        "test_docs_commands.py::test_a_damaged_run_goes_on"
    ),
    ("checkpoints", "run: run"): (
        "test_docs_commands.py::test_a_damaged_run_goes_on"
    ),
    ("checkpoints", "train_lm: The checkpoint"): (
        "test_docs_commands.py::test_a_damaged_run_goes_on"
    ),
    ("checkpoints", "train_lm: --model_dir: The"): (
        "test_docs_commands.py::test_no_checkpoint_can_be_read"
    ),
    ("checkpoints", "train_lm: cannot write to"): (
        "test_train_lm.py::test_no_room_for_a_checkpoint_ends_in_one_line"
    ),
    ("checkpoints", "echo 'model_checkpoint_path"): (
        "test_docs_commands.py::test_an_older_checkpoint_is_taken"
    ),
    ("guide", "python -m tpu_scripts.compile_for_tpu"): (
        "test_docs_tpu.py::test_command_compiles"
    ),
    ("guide", "tpu_scripts/launch_pod.sh"): (
        "test_docs_commands.py::test_launch_pod_prints_its_commands"
    ),
    ("migration", "python -m tpu_scripts.import_checkpoint"): (
        "test_docs_commands.py::test_import_checkpoint_prints_what_is_shown"
    ),
    ("migration", "PyTorch AdamW: state of 2 variables, iterations = 1\n  k"): (
        "test_docs_commands.py::test_import_checkpoint_prints_what_is_shown"
    ),
    ("saved_model", "saved_model_cli run"): (
        "test_docs_commands.py::test_saved_model_cli_runs"
    ),
    ("tpu_compiler", ".venv/bin/pip install"): (
        "installs packages; test_compile_for_tpu.py has the command, in small"
    ),
    ("tpu_compiler", "import json"): (
        "test_compile_for_tpu.py::test_the_bar_of_the_page"
    ),
    ("tpu_compiler", "step                          tf_adamw.AdamW"): (
        "the figures of one version of the compiler, of a minute's compilation"
    ),
    ("tpu_compiler", "import tensorflow as tf"): (
        "test_compile_for_tpu.py::test_the_page_compiles_a_step_of_its_own"
    ),
    ("tpu_compiler", ".venv/bin/python -m tpu_scripts.compile_for_tpu"): (
        "256 replicas: five minutes of tracing, three of compilation"
    ),
}


def pages():
    """The names of all."""
    return sorted(path.stem for path in DOCS.glob("*.md"))


def text_of(name, folder):
    """A page that writes to the folder in place of /tmp."""
    return (DOCS / f"{name}.md").read_text().replace("/tmp/", f"{folder}/")


def blocks(name, folder="/tmp"):
    """All of a page, as (language, text)."""
    return BLOCK.findall(text_of(name, folder))


def elsewhere(name, text):
    """Those keys of `ELSEWHERE` that a block of the page has."""
    return [
        key for key in ELSEWHERE if key[0] == name and text.startswith(key[1])
    ]


def block(name, start, folder="/tmp"):
    """The one block of `ELSEWHERE` that begins so."""
    (found,) = (
        text
        for _, text in blocks(name, folder)
        if (name, start) in elsewhere(name, text)
    )
    return found


def shell(code, folder):
    """Runs a block as a user does in the environment of this process.

    `.venv` is that, and its programs are in the PATH.
    """
    environment = pathlib.Path(sys.executable).parent
    link = folder / ".venv"
    if not link.exists():
        link.symlink_to(environment.parent)
    search = [str(environment), os.environ["PATH"]]
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env={
            **os.environ,
            "PATH": os.pathsep.join(search),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
