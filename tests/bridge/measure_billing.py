"""How fast the billing server takes ledger entries on PostgreSQL, on this machine.

    python -m tests.bridge.measure_billing [--entries N] [--rounds N] [--no-fsync]

It starts a PostgreSQL of its own, which waits for the disk at each commit as one in
earnest does, and measures what `qcnode bench --books` measures of the import: ours and a
bare COPY of the same rows in turn.
"""

import argparse
import logging

import structlog

from qcnode.bench.billing import import_results
from tests.programs import find_postgres
from tests.services import Postgres


def main():
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--entries", type=int, default=20_000)
    asked.add_argument("--rounds", type=int, default=7)
    asked.add_argument("--no-fsync", action="store_true")
    options = asked.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    server = Postgres(find_postgres(), fsync=not options.no_fsync)
    try:
        server.start()
        results = import_results(server(), rounds=options.rounds, entries=options.entries)
        for result in results:
            values = result.values
            print(  # noqa: T201  # a script that prints is what this is
                f"{result.name}: min {min(values):.3g} median {result.median:.3g}"
                f" max {max(values):.3g}, aim {result.aim:g}"
            )
    finally:
        server.remove()


if __name__ == "__main__":
    main()
