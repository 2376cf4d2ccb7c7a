"""The guide's command for the TPU's compiler runs as it stands."""

import json

import pytest

from docs_blocks import block, shell


@pytest.mark.tpu
@pytest.mark.slow
def test_command_compiles(tmp_path):
    command = block("guide", "python -m tpu_scripts.compile_for_tpu")
    done = shell(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "HBM bytes" in done.stdout
    figures = json.loads((tmp_path / "compile_for_tpu.json").read_text())
    assert f"--topology={figures['topology']} " in command
