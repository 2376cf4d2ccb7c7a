"""Starts two workers as train_lm does, which only do as they are told.

    lm_worker_program.py FOLDER ACTION ACTION

An action is the exit code of a worker; or "wait", or "kill": to get SIGKILL.
"""

import fcntl
import os
import pathlib
import signal
import sys
import time

from tpu_scripts import lm_workers

LAUNCHED = "--workers_local=0"


def main():
    if sys.argv[-1] != LAUNCHED:
        sys.exit(lm_workers.run_workers(2))
    lm_workers.end_with_launcher()
    index = int(os.environ["TF_CONFIG"][-3])
    action = sys.argv[2 + index]
    folder = pathlib.Path(sys.argv[1])
    print("output of", index, flush=True)
    print("errors of", index, file=sys.stderr, flush=True)
    # Locked as long as the process lives.
    with open(folder / str(index), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        print(os.environ["TF_CONFIG"], file=file, flush=True)
        while not (folder / str(1 - index)).exists():  # until both are here
            time.sleep(0.01)
        if action == "wait":
            time.sleep(60)
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(int(action))


if __name__ == "__main__":
    main()
