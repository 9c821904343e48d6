"""How long from a file in `kill/` to a kill switch that says stopped, and what asking costs.

    python -m tests.measure_kill [--trials 200] [--json]

The switch runs as in a node: its own thread looks every 20 ms. One thread asks as fast as
the line never would, so the figure is that of a busy process; `idle` asks once a millisecond.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import structlog

from qcnode.kill import KillSwitch

_NS_PER_MS = 1_000_000
_CALLS = 200_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    found = {
        "noticed_ms_idle": _spread([_trial(number, 0.001) for number in range(options.trials)]),
        "noticed_ms_busy": _spread([_trial(number, 0.0) for number in range(options.trials)]),
        "stopped_ns": _asking_ns(),
    }
    if options.json:
        print(json.dumps(found))  # noqa: T201  # a program that prints figures
        return
    for name, value in found.items():
        print(f"{name:<18}{value}")  # noqa: T201  # likewise


def _trial(number: int, rest_s: float) -> float:
    with tempfile.TemporaryDirectory() as folder:
        switch = KillSwitch(
            Path(folder) / "kill", clock_ns=time.monotonic_ns, now=lambda: datetime.now(UTC)
        )
        switch.start()
        # Anywhere between two looks.
        time.sleep(0.02 + (number % 20) / 1_000)
        started_ns = time.monotonic_ns()
        (Path(folder) / "kill" / "line").touch()
        while not switch.stopped("line"):
            if rest_s:
                time.sleep(rest_s)
        took_ns = time.monotonic_ns() - started_ns
        switch.close()
    return took_ns / _NS_PER_MS


def _asking_ns() -> float:
    with tempfile.TemporaryDirectory() as folder:
        switch = KillSwitch(
            Path(folder) / "kill", clock_ns=time.monotonic_ns, now=lambda: datetime.now(UTC)
        )
        switch.start()
        started_ns = time.monotonic_ns()
        for _ in range(_CALLS):
            switch.stopped("line", "agent:m")
        took_ns = time.monotonic_ns() - started_ns
        switch.close()
    return round(took_ns / _CALLS)


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 1),
        "median": round(median(values), 1),
        "max": round(max(values), 1),
    }


if __name__ == "__main__":
    main()
