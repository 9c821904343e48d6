"""A past of parts, faults and rulings in a real journal."""

import functools
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.domain import (
    Action,
    Decider,
    Disposition,
    Escalation,
    Fault,
    FaultKind,
    Inspection,
    Ruling,
    Verdict,
)
from qcnode.health import HealthBoard

ACTIONS = {
    Verdict.OK: Action.ACCEPT,
    Verdict.NOT_OK: Action.REJECT,
    Verdict.NOT_DECIDABLE: Action.DIVERT,
    Verdict.UNDEFINED: Action.DIVERT,
}


class Past:
    """Writes what was, before `now`, into a real journal."""

    def __init__(self, path, now):
        self.path, self.now = path, now
        self.journal = Journal(
            path,
            pictures=PictureStore(path.parent / "pictures", pictures_max=1, heat_full=None),
            health=HealthBoard(lambda: now),
        )
        self.seq = 0

    def add(self, record):
        assert self.journal.submit(record).result(10)

    def part(self, verdict, ago, *, model="one 0.1"):
        self.seq += 1
        self.add(
            Inspection(
                id=f"i{self.seq}",
                trigger_seq=self.seq,
                part_id=f"p{self.seq}",
                verdict=verdict,
                action=ACTIONS[verdict],
                score=None if verdict is Verdict.UNDEFINED else 1.0,
                model=model,
                captured_at=self.now - ago,
                latency_us=1,
            )
        )
        return f"i{self.seq}"

    def fault(self, ago):
        self.seq += 1
        self.add(
            Fault(
                id=f"f{self.seq}",
                trigger_seq=self.seq,
                part_id=f"p{self.seq}",
                kind=FaultKind.LATE,
                reason="late",
                at=self.now - ago,
            )
        )

    def ruled(self, inspection_id, ago, *, agent, person, took, defect=None):
        opened = self.now - ago
        self.add(
            Escalation(
                id=f"e-{inspection_id}",
                inspection_id=inspection_id,
                part_id=inspection_id,
                reason="between",
                score=1.0,
                opened_at=opened,
                expires_at=opened + timedelta(hours=1),
            )
        )
        for who, finding, binding in (
            (Decider.AGENT, agent, False),
            (Decider.OPERATOR, person, True),
        ):
            self.add(
                Ruling(
                    id=f"r-{inspection_id}-{who}",
                    escalation_id=f"e-{inspection_id}",
                    part_id=inspection_id,
                    by=who,
                    who=who.value,
                    finding=finding,
                    disposition=Disposition.SCRAP if binding else None,
                    binding=binding,
                    reason="seen",
                    defect_class=defect,
                    confidence=None,
                    at=opened + took,
                )
            )


@functools.cache
def no_past() -> Path:
    """Return a journal in which nothing has happened yet."""
    path = Path(tempfile.mkdtemp(prefix="qcnode-")) / "journal.db"
    Past(path, datetime(2026, 11, 22, tzinfo=UTC)).journal.close()
    return path
