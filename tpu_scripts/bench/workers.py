"""The benchmark's side of `worker`: it starts them and asks them."""

import json
import os
import re
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

_TAIL_BYTES = 4000


class Failed(Exception):
    """A worker gave no result; the message says why in one line."""


def environment(threads: int) -> dict[str, str]:
    """The variables of a worker: equal threads for all, and no accelerator."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",  # the others' turn is not its own
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


class Worker:
    """A process that has one optimizer and runs it when asked.

    Args:
      arguments: the worker's: peer, case, mode, gradients.
      threads: that it may use.
      timeout: seconds until an answer is given up.
    """

    def __init__(self, arguments: Sequence[str], threads: int, timeout: float):
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tpu_scripts.bench.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env=environment(threads),
        )

    def started(self) -> dict[str, Any]:
        """Waits until it is warm, and returns what that took.

        Raises:
          Failed: it is not.
        """
        return self._answer()

    def run(self, calls: int) -> dict[str, Any]:
        """Has it take and time that many calls.

        Raises:
          Failed: it ended or took too long.
        """
        try:
            self._process.stdin.write(b'{"calls": %d}\n' % calls)
        except OSError as error:
            raise Failed(self._ending()) from error
        return self._answer()

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self._timeout):
                raise Failed(f"no result in {self._timeout:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(self._ending())
        reply = json.loads(line)
        if "error" in reply:
            raise Failed(reply["error"])
        return reply

    def _ending(self) -> str:
        """The exit code and the last line that it wrote."""
        code = self._process.wait()
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        text = self._errors.read().decode(errors="replace")
        lines = re.findall(r"^.*\S.*$", text, re.M)
        return f"exit code {code}: {lines[-1].strip() if lines else 'silent'}"
