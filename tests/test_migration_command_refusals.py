"""What `import_checkpoint` refuses, in a line, and writes nothing."""

import pathlib

import pytest
import tensorflow as tf
from absl import flags

from import_command import parsed, run
from tpu_scripts import import_checkpoint

BERT = pathlib.Path(__file__).parent / "migration_files" / "bert"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rename": "(=x"}, r"--rename: '\(' is no regular expression"),
        ({"rename": r"a=\1"}, "--rename: .* is no replacement"),
        ({"rename": "nothing=x"}, "--rename: 'nothing' matches none of bert"),
        ({"rename": "bert"}, "--rename='bert' is not as --help has it"),
        ({"rename": ".*=same"}, "Two variables would have the key 'same"),
        ({"transpose": "kernel=1,x"}, "--transpose='kernel=1,x' is not as"),
        ({"transpose": "kernel=1,2"}, "each axis from 0 on once"),
        ({"transpose": "nothing=1,0"}, "'nothing'.* matches none"),
        ({"variables": "a,b"}, "--variables has 2 keys, for 6: "),
        ({"variables": str(BERT)}, "--variables has 1 keys, for 6: "),
    ],
)
def test_refused(tmp_path, given, words):
    with pytest.raises(ValueError, match=words) as refusal:
        run(
            source="bert",
            input=BERT / "model.ckpt-3",
            output=tmp_path / "new",
            **given,
        )
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def line_of(monkeypatch, capsys):
    """Runs the program; returns the one line in which it refuses."""

    def line(**arguments):
        monkeypatch.setattr(flags, "FLAGS", parsed(**arguments))
        with pytest.raises(SystemExit) as end:
            import_checkpoint.main([""])
        assert end.value.code == 2
        captured = capsys.readouterr()
        assert not captured.out
        (line,) = captured.err.splitlines()
        return line.removeprefix("import_checkpoint: ")

    return line


def test_one_line_says_what_is_wrong(line_of):
    line = line_of(source="torch", input="none", output="x")
    assert line.startswith("Cannot read 'none'")


@pytest.mark.parametrize("output", ["file", "file/new", "/proc/new"])
def test_an_output_that_cannot_be(tmp_path, line_of, output):
    """Nothing is printed of a report that nothing came of."""
    (tmp_path / "file").write_text("important")
    given = {"source": "bert", "input": BERT / "model.ckpt-3"}
    line = line_of(**given, output=tmp_path / output)
    if output.startswith("file"):
        assert line == f"--output: '{tmp_path}/file' is no directory."
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "error",
    [OSError("broken"), tf.errors.UnavailableError(None, None, "broken")],
)
def test_what_breaks_on_the_way(monkeypatch, tmp_path, line_of, error):
    def read(*args, **given):
        raise error

    monkeypatch.setattr(import_checkpoint.migration, "read", read)
    line = line_of(source="bert", input="x", output=tmp_path / "new")
    assert "broken" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [{}, {"output": "x", "dry_run": "true"}])
def test_output_or_dry_run(given):
    with pytest.raises(
        flags.IllegalFlagValueError, match="--output or --dry_r"
    ):
        run(source="bert", input="x", **given)
