"""A home whose parts were asked about, answered, and found out, as a node would leave it."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import numpy as np

from qcnode.books.journal import Journal
from qcnode.books.ledger import SqliteLedger
from qcnode.books.pictures import PictureStore
from qcnode.domain import (
    Action,
    Box,
    Decider,
    Disposition,
    Escalation,
    Evidence,
    Finding,
    Frame,
    Inspection,
    Ruling,
    Verdict,
)
from qcnode.health import HealthBoard
from qcnode.money import Attempt, Cost, CostCentre, Intent, Outcome, Settled, TokenUsage

MONDAY = datetime(2026, 11, 2, 8, tzinfo=UTC)
HOUR_US = 3_600_000_000
_GOES = {Finding.GOOD: Disposition.RELEASE, Finding.DEFECTIVE: Disposition.SCRAP}


class SettledHome:
    """Writes what became of parts, one hour after the other unless told otherwise."""

    def __init__(self, home):
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.hours = 0
        self.parts = 0
        self._clock_us = 0

    @property
    def now(self):
        return MONDAY + timedelta(hours=self.hours)

    @contextlib.contextmanager
    def open(self):
        pictures = PictureStore(self.home / "pictures", pictures_max=1_000, heat_full=1.0)
        health = HealthBoard(lambda: self.now)
        self.journal = Journal(self.home / "journal.db", pictures=pictures, health=health)
        self.ledger = SqliteLedger(
            self.home / "ledger.db",
            now_us=lambda: int(self.now.timestamp() * 1e6),
            new_epoch=lambda: "0" * 32,
            budgets=(),
        )
        try:
            yield self
        finally:
            self.journal.close()
            self.ledger.close()

    def passed(self, count):
        """Judge so many parts that nobody is asked about."""
        for _ in range(count):
            self._inspection(Verdict.OK, Action.ACCEPT, None)

    def part(self, *rulings, truth=None, kind=None, pixels=None, alone=Action.ACCEPT):
        """Ask about a part; `rulings` are (who, finding), the last one binding unless unsure."""
        self.hours += 1
        grey = np.random.default_rng(self.parts).integers(0, 255, (64, 64, 3), np.uint8)
        id_ = self._inspection(
            Verdict.NOT_DECIDABLE, Action.DIVERT, grey if pixels is None else pixels
        )
        escalation = Escalation(
            id=f"e-{id_}",
            inspection_id=id_,
            part_id=f"P{self.parts:04d}",
            reason="between",
            score=0.5,
            opened_at=self.now,
            expires_at=self.now,
            box=Box(left=8, top=8, width=20, height=20),
        )
        self.journal.submit(escalation).result(5)
        for number, (by, finding) in enumerate(rulings, start=1):
            binding = number == len(rulings) and finding is not Finding.UNSURE
            self.journal.submit(
                Ruling(
                    id=f"r{number}-{id_}",
                    escalation_id=escalation.id,
                    part_id=escalation.part_id,
                    by=by,
                    who={Decider.AGENT: "agent:m", Decider.OPERATOR: "ann"}.get(by, "timeout"),
                    finding=finding,
                    disposition=_GOES.get(finding),
                    binding=binding or by is Decider.TIMEOUT,
                    reason="seen",
                    defect_class=kind if finding is Finding.DEFECTIVE else None,
                    confidence=None,
                    at=self.now,
                )
            ).result(5)
            if by is Decider.AGENT:
                self._asked(escalation.id)
        if truth is not None:
            self.ledger.record(
                Outcome(
                    escalation_id=escalation.id,
                    centre=CostCentre(),
                    ruled=rulings[-1][1].name,
                    truth=truth.name,
                    node_alone=alone.value,
                    source="rework",
                )
            )
        return id_

    def _inspection(self, verdict, action, pixels):
        self.parts += 1
        id_ = f"i{self.parts:04d}"
        evidence = None
        if pixels is not None:
            frame = Frame(
                id=id_, part_id=id_, camera="c", name="n", captured_at=self.now, pixels=pixels
            )
            evidence = Evidence(frame=frame, heat=None)
        self.journal.submit(
            Inspection(
                id=id_,
                trigger_seq=self.parts,
                part_id=f"P{self.parts:04d}",
                verdict=verdict,
                action=action,
                score=0.5,
                model="m@1",
                captured_at=self.now,
                latency_us=1,
            ),
            evidence=evidence,
        ).result(5)
        return id_

    def _asked(self, escalation_id):
        usage = TokenUsage(text=400, image=100, output=50)
        cost = Cost(currency="USD", pico=1_000, rows=("a",))
        attempt = Attempt(
            id=f"a-{escalation_id}", escalation_id=escalation_id, number=1, provider="p", model="m"
        )
        self.ledger.record(
            Intent(
                attempt=attempt,
                worst=usage,
                hold=cost,
                request_sha256="0" * 64,
                request_bytes=1,
                image_sha256=None,
            )
        )
        at_us = int(self.now.timestamp() * 1e6)
        self.ledger.record(
            Settled(
                attempt_id=attempt.id,
                usage=usage,
                cost=cost,
                started_at_us=at_us,
                rated_at_us=at_us,
                raw_usage="{}",
                response_id=None,
                model_served=None,
                http_status=200,
                duration_ms=1,
            )
        )
