"""Starts real nodes quickly, so that one can be killed a hundred times.

Everything is imported once; each node is then a fork that runs `run_node` on its
configuration, just as `qcnode run` does. Commands come on standard input, a line each:
`start CONFIG LOG` answers with a process id, `reap PID` with its exit status.
"""

import os
import signal
import sys
from pathlib import Path

from qcnode.errors import QcError
from qcnode.main import run_node
from qcnode.settings import load_settings


def start(config, log):
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with Path(log).open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    status = 1
    try:
        run_node(load_settings(Path(config)))
        status = 0
    except QcError as error:
        os.write(2, f"{error}\n".encode())
        status = 2
    finally:
        os._exit(status)


def main():
    for line in sys.stdin:
        command, *words = line.split()
        if command == "start":
            print(start(*words), flush=True)  # noqa: T201  # the answer
        else:
            _, status = os.waitpid(int(words[0]), 0)
            print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201  # the answer


if __name__ == "__main__":
    main()
