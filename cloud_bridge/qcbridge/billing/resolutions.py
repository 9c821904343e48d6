"""What this server decides by itself: about attempts, and about quarantined entries.

A decision about an attempt moves its money at once, and is sent to the node with every
receipt until the node's own entry repeats it; that entry then moves nothing. Releasing a
quarantined entry moves what it says, now that it can be understood. Decisions are added,
never changed, and each is in the audit trail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from qcbridge.billing.audit import Change, note_change
from qcbridge.billing.invoices import to_us
from qcbridge.billing.offers import Line
from qcbridge.billing.postings import (
    ResolutionFact,
    Step,
    is_about_attempt,
    read_lines,
    take_step,
)
from qcbridge.billing.rows import Headings, headings_of, known_attempts, resolution_row
from qcbridge.billing.tables import ENTRY, LEDGER, RESOLUTION
from qcnode.books import chain
from qcnode.books.attempts import subject_of
from qcnode.errors import BillingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from qcbridge.billing.engine import Database

AT_ONCE_MAX = 1_000
"""Decisions in one transaction, so that the node's batches are not kept waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerName:
    """Whose ledger, and which of its files."""

    tenant: str
    node: str
    epoch: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.node}, epoch {self.epoch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """An entry that moves nothing until a person has looked at it."""

    ledger: LedgerName
    seq: int
    kind: str
    at_us: int | None
    stored_us: int
    why: str
    hash: bytes
    body: str


class Resolutions:
    """Decides about attempts and quarantined entries; any thread may use it."""

    def __init__(self, database: Database, *, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self._headings = Headings()

    def resolve(self, ledger: LedgerName, facts: Sequence[ResolutionFact], *, by: str) -> None:
        """Decide about attempts of a ledger: all of `facts`, or none.

        Raises `BillingError` naming the first attempt of which this cannot be said.
        """
        if len(facts) > AT_ONCE_MAX:
            raise BillingError(f"{len(facts)} decisions at once: {AT_ONCE_MAX} at most")
        now_us = to_us(self._now())
        with self._database.writing() as db:
            ledger_id = _lock(db, ledger)
            attempts = known_attempts(db, ledger_id, {fact.attempt_id for fact in facts})
            decided: list[tuple[ResolutionFact, Step]] = []
            for fact in facts:
                known = attempts.get(fact.attempt_id)
                try:
                    step = take_step(known, fact, at_us=now_us)
                except ValueError as error:
                    raise BillingError(f"{ledger}: {error}") from error
                attempts[fact.attempt_id] = step.known(() if known is None else known.waiting)
                decided.append((fact, step))
            wanted = headings_of(step for _, step in decided)
            ids = self._headings.ids(db, wanted)
            rows = [
                resolution_row(
                    {
                        "ledger_id": ledger_id,
                        "subject": fact.attempt_id,
                        "kind": chain.KIND_OF[type(fact)],
                        "at_us": now_us,
                        "stored_us": now_us,
                        "decided_by": by,
                        "body": _body(fact, now_us),
                    },
                    step,
                    ids,
                )
                for fact, step in decided
            ]
            if rows:
                db.execute(sa.insert(RESOLUTION), rows)
            for fact, _ in decided:
                what = {
                    "node": ledger.node,
                    "epoch": ledger.epoch,
                    "kind": chain.KIND_OF[type(fact)],
                    "fact": fact,
                }
                _note(db, "resolve", ledger, what, by=by, now_us=now_us)
            db.commit()
        self._headings.keep(wanted, ids)

    def quarantined(self, tenant: str | None = None, *, limit: int) -> tuple[Quarantined, ...]:
        """Return the entries that wait for a person, by node, epoch and seq."""
        query = (
            sa.select(LEDGER.c.tenant, LEDGER.c.node, LEDGER.c.epoch, ENTRY)
            .join(ENTRY, ENTRY.c.ledger_id == LEDGER.c.id)
            .where(ENTRY.c.quarantine.is_not(None), ~released())
            .order_by(LEDGER.c.tenant, LEDGER.c.node, LEDGER.c.epoch, ENTRY.c.seq)
            .limit(limit)
        )
        if tenant is not None:
            query = query.where(LEDGER.c.tenant == tenant)
        with self._database.reading() as db:
            return tuple(
                Quarantined(
                    ledger=LedgerName(tenant=row.tenant, node=row.node, epoch=row.epoch),
                    seq=row.seq,
                    kind=row.kind,
                    at_us=row.at_us,
                    stored_us=row.stored_us,
                    why=row.quarantine,
                    hash=bytes(row.hash),
                    body=row.body,
                )
                for row in db.execute(query)
            )

    def release(self, ledger: LedgerName, seq: int, *, by: str) -> None:
        """Let a quarantined entry move what it says; raises `BillingError` when it cannot."""
        now_us = to_us(self._now())
        with self._database.writing() as db:
            ledger_id = _lock(db, ledger)
            row = db.execute(
                sa.select(ENTRY.c.body, ENTRY.c.hash, ENTRY.c.quarantine)
                .where(ENTRY.c.ledger_id == ledger_id, ENTRY.c.seq == seq)
                .where(ENTRY.c.quarantine.is_not(None), ~released())
            ).one_or_none()
            if row is None:
                raise BillingError(
                    f"{ledger}: entry {seq} is not in quarantine:"
                    " see `qcnode billing quarantine list`"
                )
            [read] = read_lines([Line(seq, row.body.encode(), b"", bytes(row.hash))])
            fact = read.fact
            if fact is None or read.at_us is None:
                raise BillingError(
                    f"{ledger}: entry {seq} still cannot be understood ({read.why}): a newer"
                    " qcnode may, or let the node write what it meant in a further entry"
                )
            step: Step | None = None
            if is_about_attempt(fact):
                known = known_attempts(db, ledger_id, {subject_of(fact)}).get(subject_of(fact))
                try:
                    step = take_step(known, fact, at_us=read.at_us)
                except ValueError as error:
                    raise BillingError(
                        f"{ledger}: entry {seq} still makes no sense: {error}"
                    ) from error
            wanted = headings_of(() if step is None else (step,))
            ids = self._headings.ids(db, wanted)
            fixed = {
                "ledger_id": ledger_id,
                "subject": subject_of(fact),
                "kind": read.kind,
                "at_us": read.at_us,
                "stored_us": now_us,
                "decided_by": by,
                "body": row.body,
                "releases_seq": seq,
            }
            db.execute(sa.insert(RESOLUTION), [resolution_row(fixed, step, ids)])
            what = {"node": ledger.node, "epoch": ledger.epoch, "seq": seq, "why": row.quarantine}
            _note(db, "quarantine release", ledger, what, by=by, now_us=now_us)
            db.commit()
        self._headings.keep(wanted, ids)


def released() -> sa.Exists:
    """Say, in a query over `ENTRY`, whether an entry was let out of quarantine."""
    return (
        sa.select(sa.literal(1))
        .where(
            RESOLUTION.c.ledger_id == ENTRY.c.ledger_id, RESOLUTION.c.releases_seq == ENTRY.c.seq
        )
        .correlate(ENTRY)
        .exists()
    )


def is_pending() -> sa.ColumnElement[bool]:
    """Say, in a query over `RESOLUTION`, whether the node has yet to write a decision down."""
    return RESOLUTION.c.closed_seq.is_(None) & RESOLUTION.c.releases_seq.is_(None)


def resolution_in(body: str) -> ResolutionFact:
    """Read the fact that a row of `resolution`, which releases nothing, decides."""
    fact: Any = chain.read_body(0, body.encode())[2]
    decided: ResolutionFact = fact
    return decided


def _lock(db: sa.Connection, ledger: LedgerName) -> int:
    """Hold a ledger's row until the transaction ends, as taking a batch does."""
    found = db.execute(
        sa.select(LEDGER.c.id)
        .where(
            LEDGER.c.tenant == ledger.tenant,
            LEDGER.c.node == ledger.node,
            LEDGER.c.epoch == ledger.epoch,
        )
        .with_for_update()
    ).one_or_none()
    if found is None:
        raise BillingError(f"no entries of {ledger} here")
    return int(found.id)


def _body(fact: ResolutionFact, at_us: int) -> str:
    return chain.body_of(fact, kind=chain.KIND_OF[type(fact)], at_us=at_us).decode()


def _note(
    db: sa.Connection,
    action: str,
    ledger: LedgerName,
    what: Mapping[str, object],
    *,
    by: str,
    now_us: int,
) -> None:
    note_change(db, Change(at_us=now_us, who=by, action=action, tenant=ledger.tenant, what=what))
