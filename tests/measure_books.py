"""`make bench-books`: start a broker and a database of its own, and run `qcnode bench --books`.

python -m tests.measure_books [options of qcnode bench]
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.programs import find_postgres, find_program
from tests.services import Mosquitto, Postgres


def main():
    programs = find_postgres()
    if programs is None:
        raise SystemExit("PostgreSQL's server programs are missing here: make test-env")
    database = Postgres(programs)
    with tempfile.TemporaryDirectory() as home:
        broker = Mosquitto(find, Path(home), free_port())
        try:
            database.start()
            broker.start()
            done = subprocess.run(
                [
                    Path(sys.executable).with_name("qcnode"),
                    *("bench", "--books", "--broker", f"127.0.0.1:{broker.port}"),
                    *sys.argv[1:],
                ],
                env={**os.environ, "QCNODE_BENCH_URL": database()},
                check=False,
            )
        finally:
            broker.stop()
            database.remove()
    raise SystemExit(done.returncode)


def find(name):
    found = find_program(name)
    if found is None:
        raise SystemExit(f"{name} is missing here: make test-env")
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
