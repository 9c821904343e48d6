"""From trigger to action over 3,000 parts, with a broker that is well and one that hangs.

`python -m tests.measure_line` starts Mosquitto, runs a node of rendered parts that tells
everything it can, and stops the broker's process (it keeps its connections and answers
nothing) for every other stretch of parts. Both halves are of one run, so what else the
machine does meets them alike. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import tempfile
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from qcmodels.train import TeachConfig, teach
from qcnode.cameras.virtual import write_dataset
from qcnode.logs import configure_logs
from qcnode.main import build_node
from qcnode.settings import (
    CameraSettings,
    LineSettings,
    ModelSettings,
    MqttSettings,
    NodeSettings,
    PanelSettings,
    Settings,
    SparkplugSettings,
)
from tests.conftest import find_program
from tests.services import Mosquitto


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=3_000)
    parser.add_argument("--stretch", type=int, default=250)
    parser.add_argument("--period-ms", type=float, default=50.0)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    configure_logs()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        model = options.model or _teach(home)
        print(json.dumps(asyncio.run(_measure(home, model, options))))  # noqa: T201  # its output


def _teach(home: Path) -> Path:
    write_dataset(home / "data", seed=1, good=40, defects=3, progress=lambda *_: None)
    teach(
        home / "data",
        home / "model",
        config=TeachConfig(),
        now=datetime.now(UTC),
        progress=lambda *_: None,
    )
    return home / "model"


async def _measure(home: Path, model: Path, options: argparse.Namespace) -> dict[str, object]:
    (home / "broker").mkdir()
    broker = Mosquitto(lambda name: find_program(name) or Path(name), home / "broker", 18_830)
    broker.start()
    node = build_node(
        Settings(
            node=NodeSettings(home=home / "node"),
            panel=PanelSettings(port=0),
            line=LineSettings(parts=options.parts, period_ms=options.period_ms),
            camera=CameraSettings(),
            model=ModelSettings(dir=model),
            mqtt=MqttSettings(port=broker.port, events=True),
            sparkplug=SparkplugSettings(enabled=True),
        )
    )
    stop, hung, marks = asyncio.Event(), False, [0]
    running = asyncio.create_task(node.run(stop))
    assert broker._process is not None
    try:
        while len(node.station.latencies_us()) < options.parts and not running.done():
            await asyncio.sleep(0.1)
            if node.station.join(0.0) and node.started.is_set():
                break
            if len(node.station.latencies_us()) >= marks[-1] + options.stretch:
                marks.append(len(node.station.latencies_us()))
                hung = not hung
                os.kill(broker._process.pid, signal.SIGSTOP if hung else signal.SIGCONT)
    finally:
        os.kill(broker._process.pid, signal.SIGCONT)
        stop.set()
        await running
        await node.close()
        broker.stop()
    taken = node.station.latencies_us()
    marks.append(len(taken))
    well, hangs = [], []
    for number, (start, end) in enumerate(pairwise(marks)):
        (hangs if number % 2 else well).extend(taken[start:end])
    return {
        "parts": len(taken),
        "load_average": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "broker_well_ms": _figures(well),
        "broker_hangs_ms": _figures(hangs),
        "outcomes": {str(kind): count for kind, count in node.station.outcomes().items()},
    }


def _figures(taken_us: list[int]) -> dict[str, float]:
    ordered = sorted(taken_us)
    return {
        "parts": len(ordered),
        "p50": statistics.median(ordered) / 1000,
        "p99": ordered[int(0.99 * (len(ordered) - 1))] / 1000,
        "max": ordered[-1] / 1000,
        "over_20_ms": sum(one > 20_000 for one in ordered),
    }


if __name__ == "__main__":
    main()
