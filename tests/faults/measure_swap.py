"""Models change on a running line: are triggers lost, and what does it do to the latency?

A station with the real virtual line, journal, slot and model thread, at a given period. Quiet
stretches and stretches full of changes take turns, so that whatever else the machine does
falls on both. `python -m tests.faults.measure_swap` prints the figures: `make prove-swap`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.domain import Action, Fault, Frame, Inspection
from qcnode.health import HealthBoard
from qcnode.ids import IdMaker
from qcnode.lines.virtual import Belt, UnknownParts, VirtualLine
from qcnode.runtime.changes import COMPONENT, Ask, ModelChanges, ask
from qcnode.runtime.onnx import OnnxModel
from qcnode.runtime.releases import Releases
from qcnode.runtime.slot import Slot
from qcnode.runtime.swap import ChangeRule
from qcnode.station import Station
from tests.variants import draw, make_release

if TYPE_CHECKING:
    from qcnode.domain import Trigger

BAD_RULE = ChangeRule()
# So few parts say nothing of a model's speed; what is measured here is the line's.
RULE = ChangeRule(
    shadow_parts=4, canary_share=0.5, canary_parts=3, watched_parts=4, slower_most=1e9
)
WORK = 8
"""So many convolutions let the small model take about a millisecond."""
CHANGE_MAX_S = 300.0
QUIET_MAX = 300
"""As many parts a turn say what is usual."""
BRIGHTNESS = (0.1, 0.2, 0.15, 0.9, 0.12, 0.8, 0.18, 0.5)


class Pictures:
    """A camera that has its pictures ready."""

    def __init__(self) -> None:
        self._pictures = [draw(value, seed=n) for n, value in enumerate(BRIGHTNESS)]

    def grab(self, trigger: Trigger) -> Frame:
        return Frame(
            id=f"f{trigger.seq}",
            part_id=trigger.part_id,
            camera="ready",
            name=trigger.part_id,
            captured_at=datetime.now(UTC),
            pixels=self._pictures[trigger.seq % len(self._pictures)],
        )

    def close(self) -> None:
        """There is nothing to let go of."""


class Noted(Journal):
    """A journal that also keeps how long each part took."""

    latencies: list[int]
    models: set[str]
    faults: int

    def append(self, record: Any, *, evidence: Any = None) -> None:  # noqa: ARG002  # no disk for it
        super().append(record, evidence=None)
        if isinstance(record, Inspection):
            self.latencies.append(record.latency_us)
            self.models.add(record.model)
        self.faults += isinstance(record, Fault)


@dataclass
class Result:
    """What came of it."""

    swaps: int = 0
    triggers: int = 0
    inspected: int = 0
    faults: int = 0
    quiet_us: list[list[int]] = field(default_factory=list)
    busy_us: list[list[int]] = field(default_factory=list)

    def ratios(self, percent: float) -> list[float]:
        """Return busy over quiet for each turn."""
        return [
            float(np.percentile(busy, percent) / np.percentile(quiet, percent))
            for busy, quiet in zip(self.busy_us, self.quiet_us, strict=True)
        ]

    def overall(self, percent: float) -> tuple[float, float]:
        """Return quiet and busy over all turns, in milliseconds."""
        quiet, busy = np.concatenate(self.quiet_us), np.concatenate(self.busy_us)
        return float(np.percentile(quiet, percent)) / 1e3, float(np.percentile(busy, percent)) / 1e3


class Line:
    """A node as far as models are concerned, with parts coming by themselves."""

    def __init__(self, home: Path, first: Path, *, period_ms: float, rule: ChangeRule) -> None:
        now = lambda: datetime.now(UTC)  # noqa: E731
        self.health = HealthBoard(now)
        new_id = IdMaker(lambda: time.time_ns() // 1_000_000)
        self.models = home / "models"
        self.releases = Releases(self.models, trusted=(), load=OnnxModel, now=now)
        kept, model = self.releases.first(first)
        steps: deque[Any] = deque(maxlen=1_000)
        coin = np.random.default_rng(1)
        self.slot = Slot(
            model,
            rule=rule,
            coin=lambda: float(coin.random()),
            clock_ns=time.monotonic_ns,
            cpu_ns=time.thread_time_ns,
            tell=steps.append,
        )
        self.changes = ModelChanges(
            self.models,
            releases=self.releases,
            slot=self.slot,
            current=(kept, model),
            health=self.health,
            now=now,
            steps=steps,
            took_over=lambda _: None,
            patience_s=2.0,
            look_every_s=0.02,
        )
        self.journal = Noted(
            home / "journal.db",
            pictures=PictureStore(home / "pictures", pictures_max=10, heat_full=0.7),
            health=self.health,
        )
        self.journal.latencies, self.journal.models, self.journal.faults = [], set(), 0
        self.line = VirtualLine(
            parts=UnknownParts(),
            belt=Belt(period_ms=period_ms, speed_mm_per_s=500, gate_mm=200, guard_ms=30),
            world=home / "world.log",
            count=None,
            seed=1,
            now=now,
            new_id=new_id,
        )
        self.station = Station(
            camera=Pictures(),
            model=self.slot,
            limits=model.limits,
            failsafe=Action.DIVERT,
            line=self.line,
            journal=self.journal,
            health=self.health,
            now=now,
            new_id=new_id,
            clock_ns=time.monotonic_ns,
        )

    def start(self) -> None:
        self.station.start()
        self.changes.start()

    def stop(self) -> None:
        self.changes.stop()
        self.station.stop()
        assert self.station.join(10)
        assert self.changes.join(60)
        self.journal.close(10)
        assert self.station.failure is None, self.station.failure

    def change(self, release: Path) -> bool:
        """Take a model in and wait until it is in service, or sent back; say which."""
        before = len(self.releases.steps())
        said_before = self._said()
        ask(self.models, Ask(do="load", folder=str(release), who="prove-swap"))
        deadline = time.monotonic() + CHANGE_MAX_S
        while time.monotonic() < deadline:
            for step in self.releases.steps()[before:]:
                if step["what"] in ("in service", "sent back"):
                    return step["what"] == "in service"
            said = self._said()
            if said is not None and not said.ok and said != said_before:
                raise AssertionError(said.words)
            time.sleep(0.02)
        raise AssertionError(f"a change took more than {CHANGE_MAX_S:.0f} s")

    def _said(self) -> Any:
        return next((one for one in self.health.all() if one.component == COMPONENT), None)

    def wait_for(self, parts: int) -> None:
        """Let so many parts be inspected without a change."""
        goal = len(self.journal.latencies) + parts
        deadline = time.monotonic() + CHANGE_MAX_S
        while len(self.journal.latencies) < goal:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def run(home: Path, *, swaps: int, turns: int, period_ms: float, fresh: bool) -> Result:
    """Change models `swaps` times under load.

    `fresh` makes each a new release, which is tried out in a child process first; otherwise
    a few take turns that were tried out before.
    """
    few = [make_release(home / f"r{n}", tag=f"r{n}", work=WORK) for n in range(3)]
    line = Line(home, few[0], period_ms=period_ms, rule=RULE)
    result = Result()
    line.start()
    try:
        for release in few[1:]:
            line.change(release)
        line.wait_for(50)
        done = 0
        for turn in range(turns):
            begin = len(line.journal.latencies)
            while done < swaps * (turn + 1) // turns:
                done += 1
                release = few[done % len(few)]
                if fresh:
                    release = make_release(home / f"n{done}", tag=f"n{done}", work=WORK)
                if line.change(release):
                    result.swaps += 1
            middle = len(line.journal.latencies)
            line.wait_for(min(middle - begin, QUIET_MAX))
            result.busy_us.append(line.journal.latencies[begin:middle])
            result.quiet_us.append(line.journal.latencies[middle:])
    finally:
        line.stop()
    result.triggers = line.line.last_trigger()
    result.inspected = len(line.journal.latencies)
    result.faults = line.journal.faults
    return result


def run_bad(home: Path, *, count: int, period_ms: float) -> list[int | None]:
    """Offer models that are right on every golden frame and blind to one of two defects.

    Return after how many parts each was sent back; None was taken.
    """
    first = make_release(home / "first", tag="first")
    line = Line(home, first, period_ms=period_ms, rule=BAD_RULE)
    after: list[int | None] = []
    line.start()
    try:
        for number in range(count):
            release = make_release(home / f"b{number}", tag=f"b{number}", blind=(0.72, 0.87))
            taken = line.change(release)
            words = line.releases.steps()[-1]["words"]
            found = re.search(r"after (\d+) parts: it passes", words)
            after.append(None if taken or found is None else int(found[1]))
    finally:
        line.stop()
    return after


def main() -> None:
    """Measure, and print what came of it; exit code 1 where a trigger was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=1_000)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--period-ms", type=float, default=20.0)
    parser.add_argument("--bad", type=int, default=20)
    parser.add_argument("--fresh", action="store_true", help="a new release for each change")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        result = run(
            Path(place),
            swaps=options.swaps,
            turns=options.turns,
            period_ms=options.period_ms,
            fresh=options.fresh,
        )
        folder = Path(place) / "bad"
        after = run_bad(folder, count=options.bad, period_ms=options.period_ms)
    back = sorted(parts for parts in after if parts is not None)
    lost = result.triggers - result.inspected - result.faults
    figures: dict[str, Any] = {
        "swaps": result.swaps,
        "bad models sent back": f"{len(back)} of {options.bad}",
        "triggers": result.triggers,
        "inspected": result.inspected,
        "faults": result.faults,
        "lost": lost,
    }
    if back:
        middle = back[len(back) // 2]
        figures["parts until sent back, min / median / max"] = f"{back[0]} / {middle} / {back[-1]}"
    for percent in (50, 99):
        quiet, busy = result.overall(percent)
        ratios = sorted(result.ratios(percent))
        figures[f"p{percent} quiet / busy, ms"] = f"{quiet:.2f} / {busy:.2f}"
        figures[f"p{percent} busy over quiet, min / median / max of turns"] = (
            f"{ratios[0]:.3f} / {float(np.median(ratios)):.3f} / {ratios[-1]:.3f}"
        )
    if options.json:
        print(json.dumps(figures))  # noqa: T201
    else:
        for name, value in figures.items():
            print(f"{name:<52} {value}")  # noqa: T201
    sys.exit(1 if lost or result.swaps < options.swaps or len(back) < options.bad else 0)


if __name__ == "__main__":
    main()
