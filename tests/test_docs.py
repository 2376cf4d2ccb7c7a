"""The programs of each page in docs/ run as they stand, in their order."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

DOCS = pathlib.Path(__file__).parent.parent / "docs"
LINK = re.compile(r"\]\(([^)#:]+)\)")


def fenced(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


# Each program goes on with the names of the one before it.
RUN = """
import runpy, sys
names = {}
for path in sys.argv[1:]:
    names = runpy.run_path(path, names)
"""


@pytest.mark.parametrize("name", [path.stem for path in DOCS.glob("*.md")])
def test_programs_run(name, tmp_path):
    """What a page shows below a program is what that prints.

    In a process of its own: the pages make strategies, which collide with
    those of other tests.
    """
    # Pages write to /tmp.
    text = (DOCS / f"{name}.md").read_text().replace("/tmp/", f"{tmp_path}/")
    paths = []
    for number, code in enumerate(fenced(text, "python")):
        paths.append(tmp_path / f"{name}_{number}.py")
        paths[-1].write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", RUN, *paths],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for shown in re.findall(
        r"```python\n[^`]*```\n+```none\n(.*?)```", text, re.DOTALL
    ):
        assert shown in done.stdout


def test_links_lead_somewhere():
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)
        for target in LINK.findall(text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
