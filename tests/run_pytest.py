"""Runs pytest on the files that it is given: the main of every Bazel test."""

import os
import sys

import pytest

if __name__ == "__main__":
    # What a test leaves behind, its subprocesses' files included, goes where
    # Bazel removes it.
    os.environ["TMPDIR"] = os.environ["TEST_TMPDIR"]
    code = pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]])
    # With `-m "not slow"` a file may have nothing to run, but was imported.
    sys.exit(0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code)
