"""The programs of each page in docs/ run as they stand.

Those of the guide one by one, those of another page in their order. What is no
Python, `docs_blocks.py` has.
"""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from docs_blocks import DOCS, ELSEWHERE, blocks, elsewhere, pages, text_of

TESTS = pathlib.Path(__file__).parent
GUIDE = "guide"
PAGES = [path.stem for path in DOCS.glob("*.md") if path.stem != GUIDE]
LINK = re.compile(r"\]\(([^)#:]+)\)")
# A heading, or a program with what it prints.
PARTS = re.compile(
    r"^#+ ([^\n]+)$|^```python\n(.*?)^```$(?:\n+^```none\n(.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)

# Each program goes on with the names of the one before it.
RUN = """
import runpy, sys
names = {}
for path in sys.argv[1:]:
    names = runpy.run_path(path, names)
"""
# Each has a process of its own, and all one import of TensorFlow, which
# starts no thread.
RUN_EACH = """
import json, os, runpy, sys, traceback
import keras, tensorflow, tf_adamw
codes = []
for path in sys.argv[1:]:
    child = os.fork()
    if not child:
        for stream, ending in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{path}.{ending}", os.O_CREAT | os.O_RDWR), stream)
        code = 1
        try:
            runpy.run_path(path)
            code = 0
        except Exception:
            traceback.print_exc()
        print(end="", flush=True)
        os._exit(code)  # Python's own end takes a second.
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


def python(code, paths, folder):
    return subprocess.run(
        [sys.executable, "-c", code, *paths],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("name", PAGES)
def test_programs_run(name, tmp_path):
    """What a page shows below a program is what that prints.

    In a process of its own: the pages make strategies, which collide with
    those of other tests.
    """
    paths, shown = [], []
    for number, (language, text) in enumerate(blocks(name, tmp_path)):
        if language == "python":
            paths.append(tmp_path / f"{name}_{number}.py")
            paths[-1].write_text(text)
        elif language == "none" and not elsewhere(name, text):
            shown.append(text)
    done = python(RUN, paths, tmp_path)
    assert done.returncode == 0, done.stderr
    for text in shown:
        assert text in done.stdout


def programs(text):
    """{heading in small letters: (a program of the guide, what it prints)}."""
    found, heading, count = {}, "", collections.Counter()
    for title, code, shown in PARTS.findall(text):
        if title:
            heading = "_".join(re.findall(r"\w+", title.lower()))
            continue
        count[heading] += 1
        number = count[heading]
        found[heading + f"_{number}" * (number > 1)] = code, shown
    return found


@pytest.fixture(scope="module")
def guide_runs(tmp_path_factory):
    """{name of a program: exit code, output, errors, what is shown}."""
    folder = tmp_path_factory.mktemp(GUIDE)
    every = programs(text_of(GUIDE, folder))
    paths = [folder / f"{name}.py" for name in every]
    for path, (code, _) in zip(paths, every.values(), strict=True):
        path.write_text(code)
    done = python(RUN_EACH, paths, folder)
    assert done.returncode == 0, done.stderr
    return {
        path.stem: (
            code,
            path.with_suffix(".py.out").read_text(),
            path.with_suffix(".py.err").read_text(),
            every[path.stem][1],
        )
        for path, code in zip(paths, json.loads(done.stdout), strict=True)
    }


@pytest.mark.parametrize("name", programs((DOCS / f"{GUIDE}.md").read_text()))
def test_program_of_the_guide_prints_what_is_shown(name, guide_runs):
    code, output, errors, shown = guide_runs[name]
    assert code == 0, errors
    assert output == shown
    assert shown


def test_every_block_is_run():
    """Or is known to be run by another test, or for which reason by none."""
    found = []
    for name in pages():
        for language, text in blocks(name):
            others = elsewhere(name, text)
            where = f"{name}.md: {text.splitlines()[0]}"
            if language not in ("python", "none"):
                assert len(others) == 1, where
            assert language != "python" or not others, where
            found += others
        fences = re.findall("^ *```", text_of(name, "/tmp"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(name)), name
    assert sorted(found) == sorted(ELSEWHERE)
    for place in ELSEWHERE.values():
        file, _, test = place.partition("::")
        if test:
            assert f"def {test}(" in (TESTS / file).read_text(), place


def test_links_lead_somewhere():
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)
        for target in LINK.findall(text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
