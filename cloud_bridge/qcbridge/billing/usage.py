"""The stored books attempt by attempt: as events, as decisions, and as they were written.

Nothing is written here. What is read is streamed, so a month of any size takes little
memory.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec
import sqlalchemy as sa

from qcbridge.billing.charges import history, used_at
from qcbridge.billing.events import UsageEvent
from qcbridge.billing.tables import ENTRY, HEADING, LEDGER, RESOLUTION, TOKEN_COLUMNS
from qcbridge.billing.value import Judged
from qcnode.books import chain
from qcnode.books.export import EXPORT_FORMAT
from qcnode.errors import BillingError
from qcnode.money import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from qcbridge.billing.engine import Database
    from qcbridge.billing.invoices import Period

_STREAM_ROWS: Final = 10_000
_HEADING: Final = (
    *("provider", "model", "line", "product", "department"),
    *("application", "function", "agent", "level", "region"),
)
_RIGHTING: Final = ("reconciled", "adjusted")


class _AttemptIds(msgspec.Struct):
    id: str
    escalation_id: str


class _IntentFact(msgspec.Struct):
    attempt: _AttemptIds


class _IntentBody(msgspec.Struct):
    fact: _IntentFact


_INTENT = msgspec.json.Decoder(_IntentBody)


class Usage:
    """Reads a billing database attempt by attempt; any thread may use it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def events(self, tenant: str, period: Period) -> Iterator[UsageEvent]:
        """Yield what became known in a month, each event with the id it always has."""
        with self._database.reading() as db:
            for row in db.execute(_select_settled(tenant, period)):
                yield UsageEvent(
                    id=f"{row.epoch}.{row.seq}",
                    tenant=tenant,
                    node=row.node,
                    at_us=row.rated_us,
                    attempt_id=row.subject,
                    tokens=tuple(getattr(row, name) for name in TOKEN_COLUMNS),
                    currency=row.cost_currency,
                    cost_pico=row.cost_pico,
                    price_rows=tuple(json.loads(row.price_rows)),
                    **{name: getattr(row, name) for name in _HEADING},
                )
            yield from self._righted(db, tenant, period)

    def judged(self, tenant: str, period: Period) -> Iterator[Judged]:
        """Yield the decisions of a month whose truth is known, with what they cost."""
        with self._database.reading() as db:
            outcomes = _outcomes(db, tenant)
            asked: defaultdict[int, dict[str, str]] = defaultdict(dict)
            for ledger_id, body in db.execute(_select_intents(tenant, period)):
                about = _INTENT.decode(body).fact.attempt
                if about.escalation_id in outcomes:
                    asked[ledger_id][about.id] = about.escalation_id
            sums: dict[str, _Spent] = {}
            for ledger_id, escalations in sorted(asked.items()):
                for subject, currency, pico, unknown in _cost_of(db, ledger_id, escalations):
                    spent = sums.setdefault(escalations[subject], _Spent())
                    spent.attempts += 1
                    spent.unknown += unknown
                    if currency is not None:
                        spent.cost_pico[currency] = spent.cost_pico.get(currency, 0) + pico
        for escalation, spent in sorted(sums.items()):
            yield Judged(
                outcome=outcomes[escalation],
                cost_pico=spent.cost_pico,
                attempts=spent.attempts,
                unknown=spent.unknown,
            )

    def export(self, tenant: str, folder: Path) -> list[Path]:
        """Write every ledger of a tenant as `qcnode ledger export` does; return the files."""
        written: list[Path] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._database.reading() as db:
                ledgers = db.execute(
                    sa.select(LEDGER).where(LEDGER.c.tenant == tenant).order_by(LEDGER.c.id)
                ).all()
                for ledger in ledgers:
                    path = folder / f"{ledger.node}-{ledger.epoch}.jsonl"
                    _write_ledger(db, ledger, path)
                    written.append(path)
        except OSError as error:
            raise BillingError(f"{folder}: cannot be written ({error.strerror})") from error
        return written

    def _righted(self, db: sa.Connection, tenant: str, period: Period) -> Iterator[UsageEvent]:
        """Yield what was decided, released or put right in a month."""
        wanted: defaultdict[int, set[str]] = defaultdict(set)
        for table in (ENTRY, RESOLUTION):
            kinds = table.c.kind.in_(_RIGHTING if table is ENTRY else (*_RIGHTING, "settled"))
            for ledger_id, subject in db.execute(
                sa.select(table.c.ledger_id, table.c.subject)
                .join(LEDGER, LEDGER.c.id == table.c.ledger_id)
                .where(LEDGER.c.tenant == tenant, kinds, table.c.step.is_not(None))
                .where(table.c.at_us >= period.from_us, table.c.at_us < period.to_us)
            ):
                wanted[ledger_id].add(subject)
        for ledger_id, subjects in sorted(wanted.items()):
            ledger = db.execute(sa.select(LEDGER).where(LEDGER.c.id == ledger_id)).one()
            steps_of = history(db, ledger_id, subjects)
            headings = {
                row.id: {name: getattr(row, name) for name in _HEADING}
                for row in db.execute(
                    sa.select(HEADING).where(
                        HEADING.c.id.in_({one.heading_id for s in steps_of.values() for one in s})
                    )
                )
            }
            for _subject, steps in sorted(steps_of.items()):
                for place, step in enumerate(steps):
                    righted = step.decision is not None or step.kind in _RIGHTING
                    if righted and period.from_us <= step.at_us < period.to_us:
                        yield from _step_events(ledger, steps[: place + 1], headings)


@dataclass(slots=True)
class _Spent:
    """What one decision has cost so far."""

    attempts: int = 0
    unknown: int = 0
    cost_pico: dict[str, int] = field(default_factory=dict)


def _outcomes(db: sa.Connection, tenant: str) -> dict[str, Outcome]:
    """Return what parts proved to be, by escalation; of several about one the last counts."""
    found: dict[str, Outcome] = {}
    for body in db.execute(_select_outcomes(tenant)).scalars():
        fact = chain.read_body(0, body.encode())[2]
        if isinstance(fact, Outcome):
            found[fact.escalation_id] = fact
    return found


def _step_events(
    ledger: Any, steps: list[Any], headings: dict[int, dict[str, str]]
) -> Iterator[UsageEvent]:
    step = steps[-1]
    name = (
        f"{ledger.epoch}.{step.seq}"
        if step.decision is None
        else f"{ledger.epoch}.decision.{step.decision}"
    )
    counted = [one for one in steps if one.output_tokens is not None]
    tokens = (
        tuple(getattr(counted[-1], one) for one in TOKEN_COLUMNS)
        if counted
        else (0,) * len(TOKEN_COLUMNS)
    )
    if step.cost_pico is None:
        return
    event = UsageEvent(
        id=name,
        tenant=ledger.tenant,
        node=ledger.node,
        at_us=used_at(steps),
        attempt_id=step.subject,
        tokens=tokens,
        currency=step.cost_currency,
        cost_pico=step.cost_pico,
        price_rows=tuple(json.loads(step.price_rows or "[]")),
        **headings[step.heading_id],
    )
    if step.cost_was_pico is not None:
        before = next(one for one in reversed(steps[:-1]) if one.cost_pico is not None)
        yield replace(
            event,
            id=f"{name}.back",
            tokens=tuple(-count for count in tokens),
            currency=step.cost_was_currency,
            cost_pico=-step.cost_was_pico,
            price_rows=tuple(json.loads(before.price_rows or "[]")),
        )
    yield event


def _cost_of(
    db: sa.Connection, ledger_id: int, subjects: Collection[str]
) -> Iterator[tuple[str, str | None, int, int]]:
    """Yield what attempts cost as they stand: currency, amount, and 1 where nobody knows."""
    for subject, steps in history(db, ledger_id, subjects).items():
        known = [one for one in steps if one.cost_pico is not None]
        if known:
            yield subject, known[-1].cost_currency, known[-1].cost_pico, 0
        else:
            yield subject, None, 0, int(steps[-1].kind != "not_billed")


def _select_settled(tenant: str, period: Period) -> sa.Select[Any]:
    columns = ("seq", "subject", *TOKEN_COLUMNS, "cost_currency", "cost_pico", "price_rows")
    return (
        sa.select(
            LEDGER.c.node,
            LEDGER.c.epoch,
            *(HEADING.c[name] for name in _HEADING),
            *(ENTRY.c[name] for name in (*columns, "rated_us")),
        )
        .join(ENTRY, ENTRY.c.ledger_id == LEDGER.c.id)
        .join(HEADING, HEADING.c.id == ENTRY.c.heading_id)
        .where(
            LEDGER.c.tenant == tenant,
            ENTRY.c.kind == "settled",
            ENTRY.c.cost_pico.is_not(None),
            ENTRY.c.at_us >= period.from_us,
            ENTRY.c.at_us < period.to_us,
        )
        .order_by(ENTRY.c.ledger_id, ENTRY.c.seq)
        .execution_options(yield_per=_STREAM_ROWS)
    )


def _select_outcomes(tenant: str) -> sa.Select[Any]:
    return (
        sa.select(ENTRY.c.body)
        .join(LEDGER, LEDGER.c.id == ENTRY.c.ledger_id)
        .where(LEDGER.c.tenant == tenant, ENTRY.c.kind == "outcome", ENTRY.c.quarantine.is_(None))
        .order_by(ENTRY.c.at_us, ENTRY.c.ledger_id, ENTRY.c.seq)
        .execution_options(yield_per=_STREAM_ROWS)
    )


def _select_intents(tenant: str, period: Period) -> sa.Select[Any]:
    return (
        sa.select(ENTRY.c.ledger_id, ENTRY.c.body)
        .join(LEDGER, LEDGER.c.id == ENTRY.c.ledger_id)
        .where(
            LEDGER.c.tenant == tenant,
            ENTRY.c.kind == "intent",
            ENTRY.c.step.is_not(None),
            ENTRY.c.at_us >= period.from_us,
            ENTRY.c.at_us < period.to_us,
        )
        .execution_options(yield_per=_STREAM_ROWS)
    )


def _write_ledger(db: sa.Connection, ledger: Any, path: Path) -> None:
    unfinished = path.with_name(path.name + ".part")
    header = {
        "format": EXPORT_FORMAT,
        "epoch": ledger.epoch,
        "genesis": chain.genesis(ledger.epoch).hex(),
        "confirmed": ledger.acked_seq,
    }
    query = (
        sa.select(ENTRY.c.seq, ENTRY.c.body, ENTRY.c.hash)
        .where(ENTRY.c.ledger_id == ledger.id, ENTRY.c.seq <= ledger.acked_seq)
        .order_by(ENTRY.c.seq)
        .execution_options(yield_per=_STREAM_ROWS)
    )
    with unfinished.open("wb") as file:
        file.write(chain.canonical(header) + b"\n")
        for seq, body, digest in db.execute(query):
            row = {"epoch": ledger.epoch, "seq": seq, "body": body, "hash": bytes(digest).hex()}
            file.write(chain.canonical(row) + b"\n")
    unfinished.replace(path)
