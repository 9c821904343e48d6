"""Starts real nodes quickly, so that one can be killed a hundred times.

Everything is imported once; each node is then a fork that runs the command line as
`qcnode run` does. Requests come on standard input, a line each: `start CONFIG LOG
[NAME=VALUE...]` answers with a process id, `reap PID` with its exit status.
"""

import os
import signal
import sys
import time
import traceback
from pathlib import Path

import qcnode.cli.app
import qcnode.main  # which the command would import for each node anew

REAP_S = 30.0
"""A node that has not ended by then is killed, and its exit status says so."""


def start(config, log, *environ):
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.update(pair.split("=", 1) for pair in environ)
    with Path(log).open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.argv = ["qcnode", "run", "--config", config]
    status = 1
    try:
        qcnode.cli.app.main()
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:  # noqa: BLE001  # the top of the process, told as Python tells it
        traceback.print_exc()
    finally:
        os._exit(status)


def reap(pid):
    deadline = time.monotonic() + REAP_S
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def main():
    for line in sys.stdin:
        command, *words = line.split()
        if command == "start":
            print(start(*words), flush=True)  # noqa: T201  # the answer
        else:
            print(reap(int(words[0])), flush=True)  # noqa: T201  # the answer


if __name__ == "__main__":
    main()
