"""Providers' files against the stored books: compared once, and what that settles.

A file is known by the hash of its bytes: the same one again changes nothing and gives
the same report. What it settles becomes decisions of this server, which move their money
at once and reach the nodes with their receipts; the file is noted last, so that a run
that was cut short is done again and finds its own decisions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from qcbridge.billing.audit import Change, note_change
from qcbridge.billing.engine import insert_into
from qcbridge.billing.invoices import from_us, to_us
from qcbridge.billing.paper_tables import CAPTURE, PROVIDER_FILE
from qcbridge.billing.provider_bills import DAY_US
from qcbridge.billing.reconcile import (
    OPEN,
    SLACK_US,
    Fate,
    OurAttempt,
    reconcile,
    span_of,
)
from qcbridge.billing.resolutions import AT_ONCE_MAX, LedgerName
from qcbridge.billing.tables import ENTRY, HEADING, LEDGER, RESOLUTION
from qcnode.books import chain
from qcnode.books.attempts import State
from qcnode.money import (
    Adjusted,
    Cost,
    Intent,
    Reconciled,
    Settled,
    TokenUsage,
    WrittenOff,
    format_pico,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from qcbridge.billing.book_rates import BookRates
    from qcbridge.billing.engine import Database
    from qcbridge.billing.provider_bills import BilledRecord, ProviderBill
    from qcbridge.billing.reconcile import Reconciliation
    from qcbridge.billing.resolutions import Resolutions

NAMED_MAX: Final = 100
_ANSWERED_BY_US: Final = 3_600_000_000
"""How long after it was announced an attempt may still end."""
_LATER: Final = ("reconciled", "adjusted", "written_off")
_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of a file, as plain values; `fresh` when it was not taken before."""

    report: dict[str, Any]
    fresh: bool

    @property
    def alarm(self) -> bool:
        """Whether too little of the provider's bill is on record."""
        return any(day["alarm"] for day in self.report["days"])


class Reconciler:
    """Compares providers' files with a tenant's books; any thread may use it."""

    def __init__(
        self, database: Database, resolutions: Resolutions, *, now: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._resolutions = resolutions
        self._now = now

    def take(
        self,
        tenant: str,
        bill: ProviderBill,
        *,
        by: str,
        provider: str | None = None,
        rates: BookRates | None = None,
        write_off_after_days: int | None = None,
    ) -> Comparison:
        """Compare a file, settle what it settles, and note it.

        `provider` is what the nodes call who sent it. With `write_off_after_days`,
        attempts within the file's time that are older and that it does not know are
        written off.
        """
        known = self.known(tenant, bill.sha256)
        if known is not None:
            return Comparison(report=known, fresh=False)
        name = provider or bill.provider
        with self._database.reading() as db:
            attempts, epochs, ours_already = _attempts(db, tenant, name, bill)

        def price(usage: TokenUsage, attempt: OurAttempt) -> Cost | None:
            if rates is None:
                return None
            return rates.says(usage, name, attempt.model, "", attempt.to_us)

        result = reconcile(bill, attempts, price=price)
        facts = list(_facts(bill, result, ours_already))
        written_off = self._written_off(bill, result, write_off_after_days)
        self._resolve(tenant, epochs, [*facts, *written_off], by=by)
        report = _report(bill, name, result, [fact for _, fact in written_off])
        self._note(tenant, name, bill, result, report, by=by)
        return Comparison(report=report, fresh=True)

    def known(self, tenant: str, sha256: str) -> dict[str, Any] | None:
        """Return the report of a file that was taken before."""
        with self._database.reading() as db:
            row = db.execute(
                sa.select(PROVIDER_FILE.c.report).where(
                    PROVIDER_FILE.c.tenant == tenant,
                    PROVIDER_FILE.c.sha256 == bytes.fromhex(sha256),
                )
            ).scalar_one_or_none()
        return None if row is None else dict(json.loads(row))

    def _written_off(
        self, bill: ProviderBill, result: Reconciliation, after_days: int | None
    ) -> list[tuple[int, WrittenOff]]:
        if after_days is None:
            return []
        before_us = to_us(self._now()) - after_days * DAY_US
        first, last = span_of(bill)
        words = f"{bill.source} does not know it after {after_days} days: policy"
        return [
            (attempt.ledger_id, WrittenOff(attempt_id=attempt.id, reason=words))
            for attempt in result.still_open
            if attempt.to_us < before_us and first <= attempt.to_us < last + SLACK_US
        ]

    def _resolve(
        self,
        tenant: str,
        epochs: dict[int, tuple[str, str]],
        facts: Sequence[tuple[int, Reconciled | WrittenOff]],
        *,
        by: str,
    ) -> None:
        of_ledger: dict[int, list[Reconciled | WrittenOff]] = {}
        for ledger_id, fact in facts:
            of_ledger.setdefault(ledger_id, []).append(fact)
        for ledger_id, mine in sorted(of_ledger.items()):
            node, epoch = epochs[ledger_id]
            name = LedgerName(tenant=tenant, node=node, epoch=epoch)
            for start in range(0, len(mine), AT_ONCE_MAX):
                self._resolutions.resolve(name, mine[start : start + AT_ONCE_MAX], by=by)

    def _note(
        self,
        tenant: str,
        provider: str,
        bill: ProviderBill,
        result: Reconciliation,
        report: dict[str, Any],
        *,
        by: str,
    ) -> None:
        now_us = to_us(self._now())
        first, last = span_of(bill)
        digest = bytes.fromhex(bill.sha256)
        days = [
            {
                "tenant": tenant,
                "provider": provider,
                "day": day.day,
                "unit": day.unit,
                "sha256": digest,
                "ours": day.ours,
                "billed": day.billed,
                "taken_us": now_us,
            }
            for day in result.days
        ]
        with self._database.writing() as db:
            # Two who take the same file at once: the second finds it noted.
            added = db.execute(
                insert_into(db, PROVIDER_FILE)
                .values(
                    tenant=tenant,
                    sha256=digest,
                    provider=provider,
                    name=bill.name,
                    from_us=first,
                    to_us=last,
                    records=len(bill.records),
                    taken_us=now_us,
                    taken_by=by,
                    report=chain.canonical(report).decode(),
                )
                .on_conflict_do_nothing()
            )
            if added.rowcount == 0:
                return
            if days:
                db.execute(sa.insert(CAPTURE), days)
            what = {"provider": provider, "file": bill.name, "sha256": bill.sha256}
            what |= {"counts": report["counts"]}
            note_change(
                db, Change(at_us=now_us, who=by, action="reconcile", tenant=tenant, what=what)
            )
            db.commit()


def _facts(
    bill: ProviderBill, result: Reconciliation, already: frozenset[tuple[int, str]]
) -> Iterator[tuple[int, Reconciled | WrittenOff]]:
    for settlement in result.settlements:
        attempt = settlement.attempt
        if (attempt.ledger_id, attempt.id) not in already:
            yield (
                attempt.ledger_id,
                Reconciled(
                    attempt_id=attempt.id,
                    usage=settlement.usage,
                    cost=settlement.cost,
                    source=bill.source,
                    source_sha256=bill.sha256,
                ),
            )


def _attempts(
    db: sa.Connection, tenant: str, provider: str, bill: ProviderBill
) -> tuple[list[OurAttempt], dict[int, tuple[str, str]], frozenset[tuple[int, str]]]:
    """Return our attempts of a file's time, their ledgers, and what the file settled before."""
    first, last = span_of(bill)
    ended = (
        sa.select(
            ENTRY.c.ledger_id,
            LEDGER.c.node,
            LEDGER.c.epoch,
            ENTRY.c.subject,
            ENTRY.c.kind,
            ENTRY.c.state,
            ENTRY.c.at_us,
            ENTRY.c.seq,
            ENTRY.c.body,
            HEADING.c.model,
        )
        .join(LEDGER, LEDGER.c.id == ENTRY.c.ledger_id)
        .join(HEADING, HEADING.c.id == ENTRY.c.heading_id)
        .where(
            LEDGER.c.tenant == tenant,
            HEADING.c.provider == provider,
            ENTRY.c.kind.in_(("settled", "indeterminate")),
            ENTRY.c.step.is_not(None),
            ENTRY.c.at_us >= first - SLACK_US,
            ENTRY.c.at_us < last + SLACK_US + _ANSWERED_BY_US,
        )
        .order_by(ENTRY.c.ledger_id, ENTRY.c.seq)
        .execution_options(yield_per=10_000)
    )
    epochs: dict[int, tuple[str, str]] = {}
    found: dict[tuple[int, str], OurAttempt] = {}
    open_ones: dict[int, set[str]] = {}
    for row in db.execute(ended):
        epochs[row.ledger_id] = (row.node, row.epoch)
        found[row.ledger_id, row.subject] = _attempt(row)
        if row.state in OPEN:
            open_ones.setdefault(row.ledger_id, set()).add(row.subject)
    for ledger_id, subjects in _learnt_later(db, found).items():
        open_ones.setdefault(ledger_id, set()).update(subjects)
    already: set[tuple[int, str]] = set()
    for ledger_id, subjects in sorted(open_ones.items()):
        bodies = _bodies(db, ledger_id, subjects)
        for subject in subjects:
            key = (ledger_id, subject)
            found[key], mine = _as_it_stands(found[key], bodies[subject], bill.sha256)
            if mine:
                already.add(key)
    return list(found.values()), epochs, frozenset(already)


def _attempt(row: Any) -> OurAttempt:
    fact = chain.read_body(row.seq, row.body.encode())[2]
    settled = fact if isinstance(fact, Settled) else None
    ids = (getattr(fact, "response_id", None), getattr(fact, "request_id", None))
    return OurAttempt(
        ledger_id=row.ledger_id,
        node=row.node,
        id=row.subject,
        model=row.model,
        model_served=None if settled is None else settled.model_served,
        state=State(row.state),
        from_us=row.at_us if settled is None else settled.started_at_us,
        to_us=row.at_us if settled is None else settled.rated_at_us,
        ids=tuple(one for one in ids if one),
        usage=None if settled is None else settled.usage,
        cost=None if settled is None else settled.cost,
        hold=None if settled is not None else getattr(fact, "hold", None),
    )


def _learnt_later(
    db: sa.Connection, found: dict[tuple[int, str], OurAttempt]
) -> dict[int, set[str]]:
    """Return which of the attempts were decided or put right after they ended."""
    later: dict[int, set[str]] = {}
    for ledger_id in sorted({ledger_id for ledger_id, _ in found}):
        for table in (ENTRY, RESOLUTION):
            rows = db.execute(
                sa.select(table.c.subject)
                .where(table.c.ledger_id == ledger_id, table.c.kind.in_(_LATER))
                .where(table.c.step.is_not(None))
            ).scalars()
            mine = {subject for subject in rows if (ledger_id, subject) in found}
            later.setdefault(ledger_id, set()).update(mine)
    return later


def _bodies(
    db: sa.Connection, ledger_id: int, subjects: Iterable[str]
) -> dict[str, list[tuple[int, Any]]]:
    """Return the facts of attempts in the order of their steps."""
    ordered = sorted(subjects)
    found: dict[str, list[tuple[int, int, Any]]] = {}
    for start in range(0, len(ordered), _AT_ONCE):
        part = ordered[start : start + _AT_ONCE]
        for table in (ENTRY, RESOLUTION):
            for row in db.execute(
                sa.select(table.c.subject, table.c.step, table.c.at_us, table.c.body).where(
                    table.c.ledger_id == ledger_id,
                    table.c.subject.in_(part),
                    table.c.step.is_not(None),
                )
            ):
                fact = chain.read_body(0, row.body.encode())[2]
                found.setdefault(row.subject, []).append((row.step, row.at_us, fact))
    return {
        subject: [(at_us, fact) for _, at_us, fact in sorted(steps, key=lambda step: step[0])]
        for subject, steps in found.items()
    }


def _as_it_stands(
    attempt: OurAttempt, facts: Sequence[tuple[int, Any]], sha256: str
) -> tuple[OurAttempt, bool]:
    """Return an attempt with all that was learnt since; what this file settled stands open.

    The second is whether it did.
    """
    values = {name: getattr(attempt, name) for name in OurAttempt.__slots__}
    mine = False
    for at_us, fact in facts:
        if isinstance(fact, Intent):
            values["from_us"] = min(at_us, values["from_us"])
            values["hold"] = values["hold"] or fact.hold
            values["tokens_max"] = fact.worst.input_tokens + fact.worst.output_tokens
        elif isinstance(fact, Reconciled) and fact.source_sha256 == sha256:
            mine = True
        elif isinstance(fact, Reconciled):
            values |= {"state": State.RECONCILED, "cost": fact.cost}
            values["usage"] = values["usage"] or fact.usage
        elif isinstance(fact, Adjusted):
            values["cost"] = fact.after
            if values["state"] is State.UNPRICED:
                values["state"] = State.SETTLED
        elif isinstance(fact, WrittenOff):
            values["state"] = State.WRITTEN_OFF
    return OurAttempt(**values), mine


def _report(
    bill: ProviderBill,
    provider: str,
    result: Reconciliation,
    written_off: Sequence[WrittenOff],
) -> dict[str, Any]:
    """Return what a file has shown, as plain values."""
    first, last = span_of(bill)
    off = {fact.attempt_id for fact in written_off}
    still_open = [one for one in result.still_open if one.id not in off]
    return {
        "provider": provider,
        "file": bill.name,
        "sha256": bill.sha256,
        "from": from_us(first).isoformat(),
        "to": from_us(last).isoformat(),
        "records": len(bill.records),
        "counts": {
            **{fate.value: result.count(fate) for fate in Fate},
            Fate.OPEN.value: len(still_open),
            "written_off": len(written_off),
        },
        "days": [
            {
                "day": day.day,
                "unit": day.unit,
                "ours": _amount(day.unit, day.ours),
                "billed": _amount(day.unit, day.billed),
                "rate_bp": day.rate_bp,
                "alarm": day.alarm,
            }
            for day in result.days
        ],
        "settled": [
            {
                "attempt": one.attempt.id,
                "node": one.attempt.node,
                "cost": format_pico(one.cost.pico),
                "currency": one.cost.currency,
            }
            for one in result.settlements[:NAMED_MAX]
        ],
        "differing": [
            _named(one.record) | {"words": one.words}
            for one in result.pairings
            if one.fate is Fate.DIFFERING
        ][:NAMED_MAX],
        "lost": [
            _named(one.record) | {"words": one.words}
            for one in result.pairings
            if one.fate is Fate.LOST
        ][:NAMED_MAX],
        "ours_alone": [
            {"attempt": one.id, "node": one.node} for one in result.ours_alone[:NAMED_MAX]
        ],
        "open": [{"attempt": one.id, "node": one.node} for one in still_open[:NAMED_MAX]],
        "written_off": [fact.attempt_id for fact in written_off[:NAMED_MAX]],
    }


def _named(record: BilledRecord) -> dict[str, Any]:
    return {
        "id": record.record_id,
        "model": record.model,
        "at": from_us(record.from_us).isoformat(),
        "cost": None if record.cost_pico is None else format_pico(record.cost_pico),
        "currency": record.currency,
    }


def _amount(unit: str, amount: int) -> str:
    return str(amount) if unit == "tokens" else format_pico(amount)
