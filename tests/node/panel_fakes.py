"""A whole node as the panel sees it, with switches for what can go wrong.

The parts are rendered; each carries its number as bars at its upper edge and as the one
hot cell of its heat map, so a test can see on the screen which part is shown.
"""

from __future__ import annotations

import functools
import itertools
import secrets
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import uvicorn

from qcnode.books.budgets import Budget
from qcnode.books.forecast import outlook
from qcnode.books.ledger import BudgetState
from qcnode.cameras.virtual import RenderedParts
from qcnode.domain import (
    Action,
    Counts,
    Decider,
    Escalation,
    Fault,
    Finding,
    Frame,
    Inspection,
    Limits,
    Prediction,
    Ruling,
    Verdict,
)
from qcnode.errors import JournalUnavailableError, LedgerUnavailableError, RulingError
from qcnode.health import HealthBoard
from qcnode.kill import KillSwitch
from qcnode.manifest import digest_scores, load_manifest
from qcnode.money import PICO, CostCentre, LedgerEntry, LedgerTotals, Outcome, TokenUsage
from qcnode.panel.access import Role
from qcnode.panel.accounts import Accounts
from qcnode.panel.app import create_panel, serve_config
from qcnode.panel.file import PanelFile
from qcnode.panel.sources import About, InService
from qcnode.policy import action_for, disposition_of, judge
from tests.node.panel_past import no_past
from tests.variants import make_release

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from fastapi import FastAPI

    from qcnode.domain import Disposition
    from qcnode.money import LedgerFact, Receipt

START = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
LIMITS = Limits(accept_below=4.2, reject_from=7.5)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
HOUR_US = 3_600_000_000
BARS = 16
GUARANTEE = (
    "Of good parts at most 1 % are rejected (conformal, n = 212, alpha = 0.01).\n"
    "No escape guarantee yet: 41 more labelled defects needed."
)


@dataclass(frozen=True)
class Live:
    frame: Frame | None
    prediction: Prediction | None
    inspection: Inspection


@dataclass
class Waiting:
    escalation: Escalation
    proposal: Ruling | None = None
    with_agent: bool = False


class FakeJournal:
    def __init__(self):
        self.tally = Counts()
        self.outcomes: list[Inspection | Fault] = []
        self.records: list[Ruling] = []
        self.pictures: dict[str, bytes] = {}
        self.heats: dict[str, bytes] = {}
        self.broken = False
        self.stuck = threading.Event()
        self.stuck.set()

    def counts(self):
        self.stuck.wait(timeout=30)
        if self.broken:
            raise JournalUnavailableError("journal.db: disk full")
        return self.tally

    def recent(self, limit):
        return self.outcomes[-limit:]

    def cursor(self, reader):  # noqa: ARG002  # every reader of this one has read everything
        return len(self.records)

    def read(self, after_seq, limit):
        return list(enumerate(self.records, start=1))[after_seq : after_seq + limit]

    def picture(self, inspection_id):
        return self.pictures.get(inspection_id)

    def heat(self, inspection_id):
        return self.heats.get(inspection_id)


class FakeDesk:
    def __init__(self, node):
        self._node = node
        self.open: dict[str, Waiting] = {}
        self.rulings: list[Ruling] = []
        self.outcomes: list[Outcome] = []
        self.calls = 0
        self.broken = False
        self.held: dict[str, datetime] = {}
        self.taken: set[str] = set()
        """Escalations that somebody else settles at this very moment."""

    def waiting(self):
        return list(self.open.values())

    async def settle(self, escalation_id, finding, *, who, defect_class, reason):
        self.calls += 1
        if self.broken:
            raise JournalUnavailableError("journal.db: disk full")
        waiting = self.open.get(escalation_id)
        if waiting is None or escalation_id in self.taken:
            raise RulingError(f"{escalation_id}: this part is not waiting, or has been ruled on")
        disposition = disposition_of(finding)
        ruling = make_ruling(
            waiting.escalation,
            finding,
            by=Decider.OPERATOR,
            who=who,
            reason=reason,
            defect_class=defect_class,
            disposition=disposition,
            binding=disposition is not None,
        )
        self.rulings.append(ruling)
        if ruling.binding:
            self.put_on_record(ruling)
        else:
            waiting.proposal = ruling
        return ruling

    def hold(self, escalation_id, until):
        self.held[escalation_id] = until

    async def learn(self, escalation_id, truth, *, source):
        if self.broken:
            raise LedgerUnavailableError("ledger.db: disk full")
        ruling = next(
            (one for one in self._node.journal.records if one.escalation_id == escalation_id), None
        )
        if ruling is None:
            raise RulingError(f"{escalation_id}: there was no such part, or it waits still")
        outcome = Outcome(
            escalation_id=escalation_id,
            centre=CostCentre(),
            ruled=ruling.finding.name,
            truth=truth.name,
            node_alone="ACCEPT",
            source=source,
        )
        self.outcomes.append(outcome)
        return outcome

    def put_on_record(self, ruling):
        """Settle a part as somebody else does who never saw this panel."""
        journal = self._node.journal
        journal.records.append(ruling)
        journal.tally = replace(
            journal.tally,
            ruled=journal.tally.ruled + 1,
            waiting=journal.tally.waiting - 1,
        )
        del self.open[ruling.escalation_id]


DAY = Budget(name="day", limit=5 * PICO, currency="USD")


def budget_state(budget=DAY, *, hour=6, **how):
    """How a budget stands at this hour of the day on which everything here happens."""
    at_us = (START - EPOCH) // MICROSECOND + (hour - START.hour) * HOUR_US
    figures = {"used": 20_984_550_000, "held": 2_250_000_000, "calls": 32}
    return BudgetState(
        **{
            "budget": budget,
            "span": budget.span(at_us),
            "limit": budget.limit,
            "at_us": at_us,
        }
        | figures
        | how
    )


class FakeLedger:
    epoch = "epoch-1"

    def __init__(self):
        self.sums = LedgerTotals(
            entries=64,
            attempts=33,
            reserved=0,
            open=1,
            settled=29,
            not_billed=1,
            indeterminate=2,
            reconciled=0,
            written_off=0,
            unpriced=1,
            usage=TokenUsage(text=20_000, image=21_812, output=2_377),
            cost_pico={"USD": 18_734_550_000},
            held_pico={"USD": 2_250_000_000},
            written_off_pico={},
        )
        self.states = [budget_state()]
        self.confirmed = 58
        self.broken = False

    def totals(self):
        if self.broken:
            raise LedgerUnavailableError("ledger.db: disk full")
        return self.sums

    def outlooks(self):
        return [outlook(state) for state in self.states]

    def receipt_seq(self):
        return self.confirmed

    def submit(self, fact: LedgerFact) -> Future[LedgerEntry]:
        raise NotImplementedError

    def read(self, after_seq: int, limit: int) -> list[LedgerEntry]:
        raise NotImplementedError

    def confirm(self, receipt: Receipt) -> None:
        raise NotImplementedError


class FakeModels:
    """One model of normally spread scores in service, and no change under way."""

    def __init__(self, folder, *, defects=60):
        dice = np.random.default_rng(7)
        good = tuple(sorted(dice.normal(2.0, 0.8, 400).tolist()))
        bad = tuple(sorted(dice.normal(7.0, 1.8, defects).tolist()))
        made = load_manifest(make_release(folder, tag="panel"))
        self.manifest = replace(
            made,
            accept_below=replace(made.accept_below, value=LIMITS.accept_below),
            reject_from=replace(made.reject_from, value=LIMITS.reject_from),
            good_scores=good,
            defect_scores=bad,
            calibration_sha256=digest_scores(good, bad),
        )
        self.asked = []

    def status(self):
        step = {"at": "2026-11-22T05:30:00+00:00", "what": "in service", "words": "as asked"}
        steps = [step | {"model": self.manifest.version}]
        return {"in_service": self.manifest.version, "change": None, "last": None, "steps": steps}

    def roll_back(self, who):
        self.asked.append(who)


@functools.cache
def no_changes() -> FakeModels:
    return FakeModels(Path(tempfile.mkdtemp(prefix="qcnode-")))


class FakeNode:
    """Everything behind the panel. `pass_part` is one trigger."""

    def __init__(self, *, defect_share=0.25, site="works-north"):
        self.at = START
        self.parts = _parts(defect_share)
        self.journal = FakeJournal()
        self.desk = FakeDesk(self)
        self.ledger = FakeLedger()
        self.health = HealthBoard(now=lambda: START)
        self.live: Live | None = None
        self.number = 0
        self.made = itertools.count(1)
        self.file = PanelFile(None)
        self.switch = KillSwitch(
            Path(tempfile.mkdtemp(prefix="qcnode-")) / "kill",
            clock_ns=time.monotonic_ns,
            now=self.now,
        )
        self.accounts: Accounts | None = None
        self.about = About(
            site=site,
            line="line1",
            node="node1",
            version="0.1.0",
            in_service=lambda: InService(
                model="plate-filters 3f9c2a7d", guarantee=GUARANTEE, limits=LIMITS
            ),
            provider="scripted",
            provider_model="scripted-provider",
            scripted=True,
            started_at=START - timedelta(hours=2),
            zone=UTC,
        )
        for component, words in (
            ("camera", "delivers pictures"),
            ("model", self.about.model),
            ("line", "running"),
            ("journal", "recording"),
            ("ledger", "recording"),
        ):
            self.health.report(component, ok=True, words=words, needed=True)
        self.health.report("billing", ok=True, words="receipted up to entry 58")
        self.health.report("provider", ok=True, words="answers, p95 1.2 s")

    def now(self):
        return self.at

    def panel(self, *, token=None, **settings) -> FastAPI:
        """Build the panel; without a delay a decision goes out as it is pressed."""
        self.accounts = Accounts(
            self.file, now=self.now, new_secret=lambda: secrets.token_urlsafe(24), given=token
        )
        return create_panel(
            **{
                "station_live": lambda: self.live,
                "journal": self.journal,
                "journal_file": no_past(),
                "desk": self.desk,
                "ledger": self.ledger,
                "outlooks": self.ledger.outlooks,
                "health": self.health,
                "about": self.about,
                "file": self.file,
                "accounts": self.accounts,
                "hosts": (),
                "now": self.now,
                "new_id": lambda: f"d{next(self.made)}",
                "release_delay": timedelta(0),
                "look_first": 0.0,
                "changes": no_changes(),
                "switch": self.switch,
            }
            | settings
        )

    def session(self, role=Role.OPERATOR, name=None) -> str:
        """Return the cookie of somebody who signed in as this."""
        name = name or f"the {role}"
        return self.accounts.enter(self.accounts.door(name, role), where="test")

    def pass_part(self, score: float | None = None, *, part_id=None, bars=True) -> Inspection:
        """Let one part pass; without a score it looks as good as it is rendered."""
        self.number += 1
        rendered = _render(self.parts, self.number)
        score = score if score is not None else (2.0 + 0.1 * (self.number % 9))
        heat = heat_of(rendered, score) if not bars else hot_cell(self.number, score)
        pixels = rendered.pixels.copy()
        if bars:
            draw_bars(pixels, self.number)
        part_id = part_id or f"P{self.number:07d}"
        frame = Frame(
            id=f"f{self.number}",
            part_id=part_id,
            camera="cam1",
            name=f"virtual/{self.number}",
            captured_at=self.at,
            pixels=pixels,
        )
        prediction = Prediction(score=score, model=self.about.model, heat=heat)
        return self._judge(frame, prediction, part_id, None)

    def pass_blind(self, reason="no picture within 100 ms") -> Inspection:
        self.number += 1
        return self._judge(None, None, f"P{self.number:07d}", reason)

    def settle_elsewhere(self, inspection, finding=Finding.DEFECTIVE, **said) -> None:
        escalation = self.desk.open[f"e-{inspection.id}"].escalation
        said = {"disposition": disposition_of(finding), "binding": True} | said
        self.desk.put_on_record(make_ruling(escalation, finding, **said))

    def fault(self, fault: Fault) -> None:
        self.journal.outcomes.append(fault)
        tally = self.journal.tally
        self.journal.tally = replace(tally, parts=tally.parts + 1, faults=tally.faults + 1)

    def propose(self, escalation_id: str, finding=Finding.DEFECTIVE, **said) -> None:
        waiting = self.desk.open[escalation_id]
        waiting.proposal = make_ruling(
            waiting.escalation,
            finding,
            **{
                "by": Decider.AGENT,
                "who": "scripted-provider",
                "reason": "A dark line runs across the brushed face, right of the bore.",
                "defect_class": "scratch",
                "confidence": 0.82,
                "disposition": disposition_of(finding),
            }
            | said,
        )

    def _judge(self, frame, prediction, part_id, reason) -> Inspection:
        verdict = judge(prediction, LIMITS)
        inspection = Inspection(
            id=f"i{self.number}",
            trigger_seq=self.number,
            part_id=part_id,
            verdict=verdict,
            action=action_for(verdict, failsafe=Action.DIVERT),
            score=None if prediction is None else prediction.score,
            model=self.about.model,
            captured_at=self.at,
            latency_us=11_400 + self.number % 7 * 350,
            reason=reason,
        )
        self._record(inspection, frame, prediction)
        self.live = Live(frame, prediction, inspection)
        return inspection

    def _record(self, inspection, frame, prediction):
        journal, name = self.journal, inspection.verdict.value.lower()
        tally = journal.tally
        tally = replace(tally, parts=tally.parts + 1, **{name: getattr(tally, name) + 1})
        journal.outcomes.append(inspection)
        if inspection.verdict in (Verdict.NOT_DECIDABLE, Verdict.UNDEFINED):
            tally = replace(tally, escalated=tally.escalated + 1, waiting=tally.waiting + 1)
            if frame is not None:
                bgr = cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2BGR)
                grey = np.clip(prediction.heat * 255 / LIMITS.reject_from, 0, 255)
                journal.pictures[inspection.id] = cv2.imencode(".jpg", bgr)[1].tobytes()
                journal.heats[inspection.id] = cv2.imencode(".png", grey.astype(np.uint8))[
                    1
                ].tobytes()
            escalation = Escalation(
                id=f"e-{inspection.id}",
                inspection_id=inspection.id,
                part_id=inspection.part_id,
                reason=inspection.reason or "the score lies between the limits",
                score=inspection.score,
                opened_at=self.at,
                expires_at=self.at + timedelta(minutes=15),
            )
            self.desk.open[escalation.id] = Waiting(escalation)
        journal.tally = tally


# Rendering takes the time of a hundred tests; the parts are the same in all of them.
@functools.cache
def _parts(defect_share):
    return RenderedParts(seed=7, defect_share=defect_share)


@functools.lru_cache(maxsize=256)
def _render(parts, number):
    return parts.render(number)


def make_ruling(escalation: Escalation, finding: Finding, **said) -> Ruling:
    values: dict[str, Decider | Disposition | str | float | bool | None] = {
        "by": Decider.AGENT,
        "who": "agent",
        "disposition": None,
        "binding": False,
        "reason": "",
        "defect_class": None,
        "confidence": None,
    }
    return Ruling(
        id=f"r-{escalation.id}",
        escalation_id=escalation.id,
        part_id=escalation.part_id,
        finding=finding,
        at=START,
        **values | said,
    )


def draw_bars(pixels, number):
    """Write `number` along the upper edge: black is 0, white is 1, highest first."""
    width = pixels.shape[1] // BARS
    for bar in range(BARS):
        bit = number >> (BARS - 1 - bar) & 1
        pixels[: pixels.shape[0] // 10, bar * width : (bar + 1) * width] = 255 * bit


def hot_cell(number, score):
    """Return heat with its peak in column `number` modulo 16 of the lowest row."""
    heat = np.full((16, BARS), 0.5, dtype=np.float32)
    heat[-1, number % BARS] = max(score, LIMITS.reject_from)
    return heat


def heat_of(rendered, score):
    """Return heat as a model would give it: over the flaw, if there is one."""
    rows, columns = (side // 8 for side in rendered.pixels.shape[:2])
    noise = np.random.default_rng(1).normal(1.5, 0.3, (rows, columns)).astype(np.float32)
    if rendered.mask is not None and score >= LIMITS.accept_below:
        flaw = cv2.resize(rendered.mask, (columns, rows), interpolation=cv2.INTER_AREA)
        spread = cv2.GaussianBlur(flaw.astype(np.float32), (0, 0), 1.6)
        noise += spread / max(float(spread.max()), 1.0) * score
    return np.maximum(noise, 0)


@contextmanager
def served(app: FastAPI, port: int) -> Iterator[str]:
    """Serve the panel as the node does, in a thread, and stop it at the end."""
    server = uvicorn.Server(serve_config(app, "127.0.0.1", port))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the panel did not start")
            thread.join(timeout=0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
