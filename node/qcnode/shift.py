"""One shift of a machine that drifts, seen, judged, asked about and perhaps adjusted.

A node in small, of the same parts as a real one: station, certificate, journal, ledger,
metering, kill switch, `Adjustments`. After every quarter of an hour of belt time the belt
stands: undecided parts are asked about, what was found is counted, and whoever advises is
told. No desk is here, and no person: an opinion lets no part go.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
import structlog

from qcnode.adjustments import Adjustments
from qcnode.adviser import SMEARED, TOO_BRIGHT, TOO_DARK, Reading, Tally
from qcnode.authority import Arming, Attestation, Bounds, Context, Envelope, Pack
from qcnode.certificate import LiveCertificate
from qcnode.domain import (
    Action,
    AgentLevel,
    ChangeStage,
    Escalation,
    Finding,
    Inspection,
    Verdict,
)
from qcnode.drift import DriftWatch, FigureWatch
from qcnode.errors import (
    BudgetExceededError,
    LedgerUnavailableError,
    ProviderRefusedError,
    ProviderUnavailableError,
    UnpricedError,
)
from qcnode.evidence import find_box
from qcnode.kill import LINE, agent_scope, provider_scope
from qcnode.lines.paced import BeltClock, PacedLine
from qcnode.lines.virtual import Belt, VirtualLine
from qcnode.lines.world import GOOD
from qcnode.picture import seen_of
from qcnode.process import BOUNDS, Knob
from qcnode.sight import look
from qcnode.station import Station

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from qcnode.adviser import Advice
    from qcnode.audit import Audit
    from qcnode.authority import Adjustment
    from qcnode.books.journal import Journal
    from qcnode.cameras.virtual import RenderedParts
    from qcnode.domain import Frame, ProcessChange, Trigger
    from qcnode.health import HealthBoard
    from qcnode.ports import Adviser, Camera, Reviewer, Stops
    from qcnode.process import VirtualProcess
    from qcnode.runtime.onnx import OnnxModel

log = structlog.get_logger()

HOURS: Final = 8
LOOKS: Final = 32
LOOKS_PER_HOUR: Final = LOOKS // HOURS
ASKED_AT_ONCE: Final = 4
LOOK_MAX_S: Final = 300.0
PAGE: Final = 500
RULING_TIMEOUT: Final = timedelta(minutes=15)
UNANSWERED: Final = (
    BudgetExceededError,
    LedgerUnavailableError,
    ProviderRefusedError,
    ProviderUnavailableError,
    UnpricedError,
)
NOBODYS_WORD: Final = "the scenario; there is no such person"


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What a shift runs in; whoever built it closes it."""

    parts: RenderedParts
    process: VirtualProcess
    camera: Camera
    model: OnnxModel
    journal: Journal
    reviewer: Reviewer
    adviser: Adviser | None
    stops: Stops
    health: HealthBoard
    count_audit: Callable[[], Audit]
    now: Callable[[], datetime]
    new_id: Callable[[], str]


class Shift:
    """A shift of so many parts; `world` is where the line keeps its own record."""

    def __init__(self, around: Around, *, world: Path, count: int, seed: int) -> None:
        self._around = around
        self._loop = asyncio.get_running_loop()
        self._look_parts = count // LOOKS
        self._camera = _Watched(around.camera, around.model)
        self._certificate = _certify(around, Random(seed))  # noqa: S311  # breaks ties alone
        self._adjustments = Adjustments(
            process=around.process,
            bounds=BOUNDS,
            journal=around.journal,
            context=self._context,
            stops=around.stops,
            now=around.now,
            new_id=around.new_id,
        )
        period_ms = HOURS * 3_600_000 // count
        clock = BeltClock()
        line = VirtualLine(
            parts=around.parts,
            belt=Belt(
                period_ms=float(period_ms),
                speed_mm_per_s=500.0,
                gate_mm=250.0,
                guard_ms=30.0,
                jitter=0.0,
            ),
            world=world,
            count=count,
            seed=seed,
            now=around.now,
            new_id=around.new_id,
            clock_ns=clock.ns,
            by_hand=True,
        )
        self._station = Station(
            camera=self._camera,
            model=around.model,
            limits=around.model.limits,
            failsafe=Action.DIVERT,
            line=PacedLine(line, clock, period_ns=period_ms * 1_000_000, between=self._between),
            journal=around.journal,
            health=around.health,
            now=around.now,
            new_id=around.new_id,
            clock_ns=clock.ns,
            certificate=self._certificate,
        )
        self._read_to = 0
        self._turned: dict[Knob, int] = {}
        self.done = 0
        self.asked = 0
        self.unanswered = 0
        self.no_advice = 0
        self.revoked_at: tuple[int, str] | None = None
        self.tallies: list[Tally] = []
        self.changes: list[tuple[int, ProcessChange]] = []
        """What became of each proposal, and after how many parts."""

    def start(self) -> None:
        """Begin."""
        self._station.start()

    def over(self) -> bool:
        """Say whether the shift is over; raises what ended it early."""
        ended = self._station.join(0)
        if ended and self._station.failure is not None:
            raise self._station.failure
        return ended

    def stop(self, timeout_s: float) -> None:
        """Let go of the line and wait for its thread."""
        self._station.stop()
        self._station.join(timeout_s)

    # -- from the line's thread ----------------------------------------------------

    def _between(self, count: int) -> bool:
        """Stand still after every quarter of an hour until it was looked at."""
        self.done = count
        if self.revoked_at is None and self._certificate.revoked is not None:
            self.revoked_at = count, self._certificate.revoked.reason
        if count % self._look_parts == 0:
            looking = asyncio.run_coroutine_threadsafe(self._look(count), self._loop)
            looking.result(LOOK_MAX_S)
        return not self._around.process.halted

    # -- a quarter of an hour --------------------------------------------------------

    async def _look(self, count: int) -> None:
        inspections = await self._inspections()
        classes = Counter(self._camera.take())
        undecided = [one for one in inspections if one.verdict is Verdict.NOT_DECIDABLE]
        gate = asyncio.Semaphore(ASKED_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            found = [tasks.create_task(self._ask(one, gate)) for one in undecided]
        classes.update(kind for one in found if (kind := one.result()) is not None)
        for one in inspections:
            if one.verdict is Verdict.NOT_OK:
                truth = self._around.parts.part(one.trigger_seq)[1]
                if truth != GOOD:
                    classes[truth] += 1
        self.tallies.append(Tally(parts=len(inspections), classes=dict(classes)))
        if self._around.adviser is not None and len(self.tallies) > LOOKS_PER_HOUR:
            await self._advise(self._around.adviser, count)

    async def _inspections(self) -> list[Inspection]:
        """Return what was judged since, once all of it is on record."""
        journal = self._around.journal
        await asyncio.wrap_future(journal.advance("shift", self._read_to))
        found = []
        while records := await asyncio.to_thread(journal.read, self._read_to, PAGE):
            found += [record for _, record in records if isinstance(record, Inspection)]
            self._read_to = records[-1][0]
        return found

    async def _ask(self, inspection: Inspection, gate: asyncio.Semaphore) -> str | None:
        """Ask about an undecided part and return the kind of defect that was found."""
        around = self._around
        async with gate:
            picture = await asyncio.to_thread(around.journal.picture, inspection.id)
            heat = await asyncio.to_thread(around.journal.heat, inspection.id)
            if picture is None or heat is None:
                self.unanswered += 1
                return None
            opened_at = around.now()
            escalation = Escalation(
                id=f"e-{inspection.id}",
                inspection_id=inspection.id,
                part_id=inspection.part_id,
                reason=inspection.reason or "the score lies between the limits",
                score=inspection.score,
                opened_at=opened_at,
                expires_at=opened_at + RULING_TIMEOUT,
                box=await asyncio.to_thread(_box_of, picture, heat),
            )
            self.asked += 1
            try:
                opinion = await around.reviewer.review(escalation, picture, heat)
            except UNANSWERED as error:
                log.debug("no opinion", part=inspection.part_id, reason=str(error))
                self.unanswered += 1
                return None
        return opinion.defect_class if opinion.finding is Finding.DEFECTIVE else None

    async def _advise(self, adviser: Adviser, count: int) -> None:
        reading = Reading(
            id=f"look-{count:06d}",
            last=self.tallies[-1],
            hour=_sum(self.tallies[-LOOKS_PER_HOUR:]),
            usual=_sum(self.tallies[:LOOKS_PER_HOUR]),
            settings=self._around.process.settings(),
            bounds=BOUNDS,
            since_turned={knob: count - at for knob, at in self._turned.items()},
        )
        try:
            advice = await adviser.advise(reading)
        except UNANSWERED as error:
            log.debug("no advice", look=reading.id, reason=str(error))
            self.no_advice += 1
            return
        if advice is None:
            return
        change = await self._adjustments.take(advice)
        self.changes.append((count, change))
        if change.stage is ChangeStage.ORDERED and change.after is not None:
            self._turned[Knob(change.knob)] = count

    def _context(self, advice: Advice, wanted: Adjustment | None) -> Context:
        """Give an adviser all it takes to act by itself; the kill switch still beats it."""
        at = self._around.now()
        provider = advice.provider or "none"
        return Context(
            pack=PACK,
            granted=AgentLevel.L4,
            at=at,
            stopped=self._around.stops.stopped(
                LINE, agent_scope(advice.who), provider_scope(advice.provider)
            ),
            attestation=Attestation(
                agent=advice.who,
                provider=provider,
                policy=PACK.digest,
                level=AgentLevel.L4,
                begins=at,
                ends=at + timedelta(hours=1),
                by=NOBODYS_WORD,
            ),
            certified=self._certificate.revoked is None,
            provider=provider,
            arming=Arming(first="one", second="another", until=at + timedelta(hours=1)),
            adjustment=wanted,
        )


_NAME: Final = "scenario"
PACK: Final = Pack(
    name=_NAME,
    version=1,
    digest=hashlib.sha256(_NAME.encode()).hexdigest(),
    levels={},
    envelope=Envelope(),
    bounds={
        knob.value: Bounds(low=one.low, high=one.high, step_max=one.step_max)
        for knob, one in BOUNDS.items()
    },
)
"""What an adviser may do in a scenario: turn any knob within the machine's own bounds."""


class _Watched:
    """A camera whose pictures are measured: too dark, too bright or smeared, by the teaching."""

    def __init__(self, camera: Camera, model: OnnxModel) -> None:
        self._camera = camera
        self._side = model.side
        self._wrong: list[str] = []
        norm = model.manifest.pictures
        self._brightness = None if norm is None else FigureWatch(norm.brightness, delta=0.5)
        self._focus = None if norm is None else FigureWatch(norm.focus, delta=0.5)

    def grab(self, trigger: Trigger) -> Frame:
        """Return the picture of this part."""
        frame = self._camera.grab(trigger)
        if self._brightness is not None and self._focus is not None:
            seen = look(seen_of(frame, self._side))
            if seen.brightness < self._brightness.low:
                self._wrong.append(TOO_DARK)
            if seen.brightness > self._brightness.high:
                self._wrong.append(TOO_BRIGHT)
            if seen.focus < self._focus.low:
                self._wrong.append(SMEARED)
        return frame

    def take(self) -> list[str]:
        """Return what was wrong with the pictures since the last call."""
        wrong, self._wrong = self._wrong, []
        return wrong

    def close(self) -> None:
        """Let go of the camera."""
        self._camera.close()


def _certify(around: Around, dice: Random) -> LiveCertificate:
    manifest = around.model.manifest
    return LiveCertificate(
        model=around.model.version,
        earned=around.model.limits,
        good=manifest.good_scores,
        new_watch=lambda: DriftWatch(
            manifest.good_scores,
            manifest.pictures,
            defects_most=0.3,
            false_alarm=0.01,
            coin=dice.random,
        ),
        rules=None,
        count_audit=around.count_audit,
        last=None,
        health=around.health,
        now=around.now,
        new_id=around.new_id,
        side=around.model.side,
    )


def _sum(tallies: list[Tally]) -> Tally:
    return sum(tallies[1:], tallies[0])


def _box_of(picture: bytes, heat: bytes) -> Any:
    rows, columns = _grey(picture).shape
    return find_box(_grey(heat), width=columns, height=rows)


def _grey(encoded: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
