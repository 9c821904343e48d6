"""Parts on which a person has ruled, for whoever meets the same part or one like it again.

Read from the journal, bounded, and rebuilt from it: nothing here is a record. The very
same picture under the very same model needs no second question. A picture that only looks
the same may tell of a defect, and never that there is none: however alike two pictures
are, what differs may be the defect.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import cv2
import numpy as np
import structlog

from qcbridge.packing import open_views
from qcnode.domain import Decider, Escalation, Finding, Inspection, Opinion, Ruling
from qcnode.errors import JournalUnavailableError, PictureError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from qcbridge.packing import Views
    from qcnode.domain import Box, JournalRecord
    from qcnode.money import WorstCase
    from qcnode.ports import Reviewer

log = structlog.get_logger()

CASES_MAX: Final = 5_000
RECORDS_BACK_MAX: Final = 200_000
"""How far back in the journal cases are looked for after a restart."""
READ_MAX: Final = 500
NEAR_MAX: Final = 100
"""How many of the newest cases are compared by their looks."""
LOOK_SIDE: Final = 32
ALIKE_LEVELS: Final = 4
"""The most by which any of the 32 x 32 greys of two crops may differ that look the same."""


class Records(Protocol):
    """What is needed of the journal."""

    def read(self, after_seq: int, limit: int = READ_MAX) -> list[tuple[int, JournalRecord]]:
        """Return records beyond `after_seq`, in order."""

    def cursor(self, reader: str) -> int:
        """Return how far a reader has come."""

    def picture(self, inspection_id: str) -> bytes | None:
        """Return the picture of an inspection."""

    def heat(self, inspection_id: str) -> bytes | None:
        """Return its heat map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One part, and what a person found of it."""

    inspection_id: str
    model: str
    picture_sha256: str | None
    box: Box | None
    finding: Finding
    defect_class: str | None
    reason: str
    who: str


class Settled:
    """What people settled; any thread may ask. Call `catch_up` to hear of the latest."""

    def __init__(self, journal: Records, *, cases_max: int = CASES_MAX) -> None:
        self._journal = journal
        self._cases_max = cases_max
        self._lock = threading.Lock()
        self._read_to: int | None = None
        self._inspections: OrderedDict[str, Inspection] = OrderedDict()
        self._escalations: OrderedDict[str, Escalation] = OrderedDict()
        self._cases: OrderedDict[str, Case] = OrderedDict()
        self._looks: OrderedDict[str, NDArray[np.uint8] | None] = OrderedDict()

    def catch_up(self) -> None:
        """Read what the journal has meanwhile; raises `JournalUnavailableError`."""
        with self._lock:
            if self._read_to is None:
                # The desk is never far behind, and older cases than these are forgotten.
                self._read_to = max(0, self._journal.cursor("desk") - RECORDS_BACK_MAX)
            while records := self._journal.read(self._read_to, READ_MAX):
                for _, record in records:
                    self._take(record)
                self._read_to = records[-1][0]

    def model_of(self, inspection_id: str) -> str | None:
        """Return which model judged a part that was put to somebody, if that is known."""
        with self._lock:
            inspection = self._inspections.get(inspection_id)
        return None if inspection is None else inspection.model

    def same(self, picture: bytes, model: str) -> Case | None:
        """Return the case of this very picture; None where people did not agree on it."""
        digest = hashlib.sha256(picture).hexdigest()
        found = [
            case for case in self._all() if case.picture_sha256 == digest and case.model == model
        ]
        agreed = {(case.finding, case.defect_class) for case in found}
        return found[-1] if len(agreed) == 1 else None

    def alike(self, escalation: Escalation, views: Views) -> Case | None:
        """Return the newest defective case that looks the same; there is no such good one."""
        for difference, case in self._compared(escalation, views):
            if difference <= ALIKE_LEVELS and case.finding is Finding.DEFECTIVE:
                return case
        return None

    def nearest(self, escalation: Escalation, views: Views, limit: int) -> list[Case]:
        """Return the cases that look most like a part, the nearest first."""
        self.catch_up()
        compared = sorted(self._compared(escalation, views), key=lambda pair: pair[0])
        return [case for _, case in compared[:limit]]

    def _all(self) -> list[Case]:
        with self._lock:
            return list(self._cases.values())

    def _compared(self, escalation: Escalation, views: Views) -> Iterator[tuple[int, Case]]:
        model = self.model_of(escalation.inspection_id)
        look = look_of(views, escalation.box).astype(int)
        newest = [case for case in self._all() if case.model == model][-NEAR_MAX:]
        for case in reversed(newest):
            other = self._look_of(case)
            if other is not None:
                yield int(np.abs(look - other).max()), case

    def _look_of(self, case: Case) -> NDArray[np.uint8] | None:
        with self._lock:
            if case.inspection_id in self._looks:
                return self._looks[case.inspection_id]
        picture = self._journal.picture(case.inspection_id)
        look = None
        if picture is not None:
            heat = self._journal.heat(case.inspection_id)
            try:
                look = look_of(open_views(picture, heat), case.box)
            except PictureError as error:
                log.debug("a settled case cannot be looked at", reason=str(error))
        with self._lock:
            self._looks[case.inspection_id] = look
            _bound(self._looks, self._cases_max)
        return look

    def _take(self, record: JournalRecord) -> None:
        if isinstance(record, Inspection):
            self._inspections[record.id] = record
            _bound(self._inspections, self._cases_max)
        elif isinstance(record, Escalation):
            self._escalations[record.id] = record
            _bound(self._escalations, self._cases_max)
        elif isinstance(record, Ruling):
            self._rule(record)

    def _rule(self, ruling: Ruling) -> None:
        settled = ruling.by is Decider.OPERATOR and ruling.binding
        escalation = self._escalations.get(ruling.escalation_id)
        if not settled or ruling.finding is Finding.UNSURE or escalation is None:
            return
        inspection = self._inspections.get(escalation.inspection_id)
        if inspection is None:
            return
        digest = inspection.picture_sha256
        if digest is None:
            picture = self._journal.picture(inspection.id)
            digest = None if picture is None else hashlib.sha256(picture).hexdigest()
        self._cases[escalation.id] = Case(
            inspection_id=inspection.id,
            model=inspection.model,
            picture_sha256=digest,
            box=escalation.box,
            finding=ruling.finding,
            defect_class=ruling.defect_class,
            reason=ruling.reason,
            who=ruling.who,
        )
        _bound(self._cases, self._cases_max)


class SettledFirst:
    """A reviewer that answers for a part on which a person has ruled before, and else asks.

    Its answers cost nothing and go the way of all others: what they may change is not
    decided here. With `alike`, a part that looks the same as a defective one is defective.
    """

    def __init__(self, reviewer: Reviewer, settled: Settled, *, alike: bool = False) -> None:
        self._reviewer = reviewer
        self._settled = settled
        self._alike = alike

    async def review(self, escalation: Escalation, picture: bytes, heat: bytes | None) -> Opinion:
        """Answer from a settled case, or ask."""
        try:
            case = await asyncio.to_thread(self._case_for, escalation, picture, heat)
        except (JournalUnavailableError, PictureError) as error:
            log.info("settled cases not looked at", reason=str(error))
            case = None
        if case is None:
            return await self._reviewer.review(escalation, picture, heat)
        log.info("settled before", escalation=escalation.id, inspection=case.inspection_id)
        return Opinion(
            finding=case.finding,
            defect_class=case.defect_class,
            reason=f"as {case.who} found of inspection {case.inspection_id}: {case.reason}",
            confidence=None,
            who=f"cache:{case.model}",
        )

    def reachable(self) -> bool:
        """Say whether asking makes sense just now."""
        return self._reviewer.reachable()

    def worst(self) -> WorstCase | None:
        """Return the worst case of one request, for the parts that are asked about."""
        return self._reviewer.worst()

    async def close(self) -> None:
        """Let go of connections; closing twice is harmless."""
        await self._reviewer.close()

    def _case_for(self, escalation: Escalation, picture: bytes, heat: bytes | None) -> Case | None:
        self._settled.catch_up()
        model = self._settled.model_of(escalation.inspection_id)
        if model is None:
            return None
        case = self._settled.same(picture, model)
        if case is None and self._alike:
            case = self._settled.alike(escalation, open_views(picture, heat))
        return case


def look_of(views: Views, box: Box | None) -> NDArray[np.uint8]:
    """Return the crop around the evidence in 32 x 32 greys."""
    grey = cv2.cvtColor(views.part(views.evidence(box)), cv2.COLOR_RGB2GRAY)
    side = (LOOK_SIDE, LOOK_SIDE)
    return cv2.resize(grey, side, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _bound(kept: OrderedDict[str, Any], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
