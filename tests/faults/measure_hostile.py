"""Each hostile model offered to a line in service: what it is told, and what the line did.

`python -m tests.faults.measure_hostile` prints the table: `make prove-hostile`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from qcnode.errors import QcError
from qcnode.runtime.cage import Cage
from qcnode.runtime.swap import ChangeRule
from tests.faults.measure_swap import Line
from tests.faults.test_hostile_models import FILES, HOSTILE, vouch
from tests.variants import make_release

if TYPE_CHECKING:
    from collections.abc import Iterator

CAGE = Cage(memory_bytes=2048 * 1024 * 1024, cpu_s=5, wait_s=60.0)


def offers(home: Path) -> Iterator[tuple[str, Path]]:
    """Yield each hostile release and what is wrong with it."""
    for number, (name, (make, _)) in enumerate(HOSTILE.items()):
        release = make_release(home / f"m{number}", tag=f"m{number}")
        vouch(release, make())
        yield name, release
    for number, (name, spoil) in enumerate(FILES.items()):
        release = make_release(home / f"f{number}", tag=f"f{number}")
        spoil(release)
        yield name, release


def main() -> None:
    """Print the table; exit code 1 where one was taken or the line stood still."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place, structlog.testing.capture_logs():
        home = Path(place)
        line = Line(
            home, make_release(home / "first", tag="first"), period_ms=40.0, rule=ChangeRule()
        )
        line.releases._cage = CAGE
        line.start()
        try:
            line.wait_for(10)
            for name, release in offers(home):
                before, began = len(line.journal.latencies), time.monotonic()
                try:
                    line.change(release)
                    said = "TAKEN IN"
                except (AssertionError, QcError) as refused:
                    said = str(refused).replace(str(home), "...")
                seconds = time.monotonic() - began
                line.wait_for(2)
                judged = len(line.journal.latencies) - before
                rows.append({"what": name, "s": seconds, "judged": judged, "said": said})
        finally:
            line.stop()
        lost = line.line.last_trigger() - len(line.journal.latencies) - line.journal.faults
        models = sorted(line.journal.models)
    refused_all = all(row["said"] != "TAKEN IN" for row in rows)
    if options.json:
        print(json.dumps({"rows": rows, "lost": lost, "faults": line.journal.faults}))  # noqa: T201
    else:
        for row in rows:
            print(f"{row['what']:<44} {row['s']:5.1f} s {row['judged']:>4}  {row['said']}")  # noqa: T201
        refused = sum(row["said"] != "TAKEN IN" for row in rows)
        print(  # noqa: T201
            f"{refused} of {len(rows)} refused; {line.journal.faults} faults, {lost} triggers lost;"
            f" judged by {', '.join(models)} alone"
        )
    sys.exit(0 if refused_all and not lost and len(models) == 1 else 1)


if __name__ == "__main__":
    main()
