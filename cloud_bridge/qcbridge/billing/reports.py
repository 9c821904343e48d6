"""What the books say: sums, entries for the bill, and what was refused.

Nothing is written here. A sum is over everything that moved, entries of nodes and
decisions of this server alike, by what each row says held before it and holds after.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from qcbridge.billing.bill import SCRIPTED
from qcbridge.billing.drafts import capture_of
from qcbridge.billing.paper_tables import CAPTURE
from qcbridge.billing.reconcile import DayCapture
from qcbridge.billing.resolutions import released
from qcbridge.billing.tables import (
    ENTRY,
    HEADING,
    LEDGER,
    REFUSAL,
    RESOLUTION,
    TOKEN_COLUMNS,
)
from qcnode.books.attempts import State
from qcnode.money import Cost, TokenUsage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qcbridge.billing.book_rates import BookRates
    from qcbridge.billing.engine import Database
    from qcbridge.billing.invoices import Period
    from qcbridge.billing.issued_paper import Capture

DIFFERENCES_NAMED_MAX = 100
_HALF = 2**32
_AMOUNTS = ("cost", "cost_was", "hold", "hold_was")
_STEP_COLUMNS = (
    "ledger_id",
    "subject",
    "at_us",
    "stored_us",
    "kind",
    "step",
    "state",
    "was",
    "heading_id",
    *TOKEN_COLUMNS,
    *(f"{name}_{part}" for name in _AMOUNTS for part in ("currency", "pico")),
    "price_rows",
    "rated_us",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerHead:
    """How far one ledger file of one node has come."""

    node: str
    epoch: str
    acked_seq: int
    head_hash: str
    last_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Attempts of known cost in one currency, the scripted provider's by themselves."""

    currency: str
    scripted: bool
    attempts: int
    cost_pico: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """One tenant's books in one look, under the names the node's own totals have.

    `cost_pico` is measured, and `measured` says which part of it is of the scripted
    provider, which charges nobody; `scripted` is whether any attempt here is, and
    `scripted_only` whether all are; `held_pico` is what open, indeterminate and unpriced
    attempts can cost at most; quarantined entries are counted, because a sum would be a guess.
    """

    tenant: str
    entries: int
    attempts: int
    reserved: int
    open: int
    settled: int
    not_billed: int
    indeterminate: int
    reconciled: int
    written_off: int
    unpriced: int
    quarantined: int
    usage: TokenUsage
    input_tokens: int
    output_tokens: int
    cost_pico: dict[str, int]
    held_pico: dict[str, int]
    written_off_pico: dict[str, int]
    scripted: bool
    scripted_only: bool
    measured: tuple[Measured, ...]
    ledgers: tuple[LedgerHead, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Something that was offered and not taken."""

    kind: str
    words: str
    tenant: str | None
    node: str | None
    epoch: str | None
    first_seq: int | None
    times: int
    last_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BillEntry:
    """One stored entry, as far as the bill is concerned.

    `closed` says that a later entry, of any period, has ended the hold of this one.
    """

    node: str
    epoch: str
    seq: int
    kind: str
    at_us: int
    attempt_id: str
    provider: str | None
    model: str | None
    usage: TokenUsage | None
    cost: Cost | None
    rated_us: int | None
    hold: Cost | None
    closed: bool
    dispute: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An entry whose recorded cost is not what the price book says."""

    node: str
    epoch: str
    seq: int
    recorded: Cost | None
    recomputed: Cost | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureDay(DayCapture):
    """The same, as it stands on record of one provider."""

    provider: str


class Reports:
    """Reads a billing database; any thread may use it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def tenants(self) -> tuple[str, ...]:
        """Return everybody who has entries here, by name."""
        with self._database.reading() as db:
            found = db.execute(
                sa.select(LEDGER.c.tenant)
                .where(LEDGER.c.acked_seq > 0)
                .distinct()
                .order_by(LEDGER.c.tenant)
            )
            return tuple(found.scalars())

    def totals(self, tenant: str) -> Totals:
        """Return the sums over all entries of `tenant`."""
        with self._database.reading() as db:
            ledgers = _ledgers(db, tenant)
            groups = db.execute(_select_sums(tenant)).all()
            quarantined = db.execute(_select_quarantined(tenant)).scalar_one()
        sums = _Sums()
        for group in groups:
            sums.add(group)
        counts = sums.counts
        usage = TokenUsage(
            **{
                name.removesuffix("_tokens"): amount
                for name, amount in zip(TOKEN_COLUMNS, sums.tokens, strict=True)
            }
        )
        scripted = {bool(group.scripted) for group in groups}
        return Totals(
            tenant=tenant,
            entries=sum(head.acked_seq for head in ledgers),  # A chain has no gaps.
            attempts=sum(counts.values()),
            reserved=counts.get(State.RESERVED, 0),
            open=counts.get(State.INTENT, 0),
            settled=counts.get(State.SETTLED, 0) + counts.get(State.UNPRICED, 0),
            not_billed=counts.get(State.NOT_BILLED, 0),
            indeterminate=counts.get(State.INDETERMINATE, 0),
            reconciled=counts.get(State.RECONCILED, 0),
            written_off=counts.get(State.WRITTEN_OFF, 0),
            unpriced=counts.get(State.UNPRICED, 0),
            quarantined=quarantined,
            usage=usage,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost_pico=sums.by_currency("cost"),
            held_pico=sums.by_currency("hold"),
            written_off_pico=dict(sums.written_off_pico),
            scripted=True in scripted,
            scripted_only=scripted == {True},
            measured=sums.measured(),
            ledgers=ledgers,
        )

    def entries(self, tenant: str, period: Period) -> Iterator[BillEntry]:
        """Yield what `tenant`'s nodes wrote in `period`, by node, epoch and seq."""
        after = ENTRY.alias("after")
        query = (
            sa.select(
                LEDGER.c.node,
                LEDGER.c.epoch,
                *(column for column in ENTRY.c if column.name not in ("body", "hash")),
                HEADING.c.provider,
                HEADING.c.model,
                after.c.seq.label("closed_by"),
            )
            .join(ENTRY, ENTRY.c.ledger_id == LEDGER.c.id)
            .outerjoin(HEADING, HEADING.c.id == ENTRY.c.heading_id)
            .outerjoin(
                after,
                (after.c.ledger_id == ENTRY.c.ledger_id)
                & (after.c.subject == ENTRY.c.subject)
                & (after.c.step == ENTRY.c.step + 1),
            )
            .where(
                LEDGER.c.tenant == tenant,
                ENTRY.c.at_us >= period.from_us,
                ENTRY.c.at_us < period.to_us,
            )
            .order_by(LEDGER.c.node, LEDGER.c.epoch, ENTRY.c.seq)
            .execution_options(yield_per=1000)
        )
        with self._database.reading() as db:
            for row in db.execute(query):
                yield _bill_entry(row)

    def repriced(
        self, tenant: str, period: Period, rates: BookRates
    ) -> tuple[int, tuple[Difference, ...]]:
        """Price every attempt settled in a month again; count and name what differs."""
        number, named = 0, list[Difference]()
        with self._database.reading() as db:
            for row in db.execute(_select_settled(tenant, period)):
                usage = TokenUsage(
                    **{name.removesuffix("_tokens"): getattr(row, name) for name in TOKEN_COLUMNS}
                )
                recorded = None
                if row.cost_pico is not None:
                    price_rows = tuple(json.loads(row.price_rows))
                    recorded = Cost(currency=row.cost_currency, pico=row.cost_pico, rows=price_rows)
                said = rates.says(usage, row.provider, row.model, row.region, row.rated_us)
                if said == recorded or (
                    recorded is not None and rates.allows(usage, recorded, row.rated_us)
                ):
                    continue
                number += 1
                if len(named) < DIFFERENCES_NAMED_MAX:
                    named.append(
                        Difference(
                            node=row.node,
                            epoch=row.epoch,
                            seq=row.seq,
                            recorded=recorded,
                            recomputed=said,
                        )
                    )
        return number, tuple(named)

    def capture(self, tenant: str, period: Period) -> tuple[Capture, ...]:
        """Return how much of what each provider billed for a month is on our record."""
        with self._database.reading() as db:
            return capture_of(db, tenant, period.name)

    def capture_days(self, tenant: str, period: Period) -> tuple[CaptureDay, ...]:
        """Return the same day by day, each day by the latest file about it."""
        query = (
            sa.select(CAPTURE)
            .where(CAPTURE.c.tenant == tenant, CAPTURE.c.day.startswith(period.name))
            .order_by(CAPTURE.c.taken_us)
        )
        with self._database.reading() as db:
            latest = {(row.day, row.provider, row.unit): row for row in db.execute(query)}
        return tuple(
            CaptureDay(
                day=row.day, provider=row.provider, unit=row.unit, ours=row.ours, billed=row.billed
            )
            for _, row in sorted(latest.items())
        )

    def refusals(self, tenant: str | None, *, limit: int) -> tuple[Refusal, ...]:
        """Return the latest refusals of `tenant`, or of senders nobody could name."""
        columns = REFUSAL.c
        query = (
            sa.select(
                columns.kind,
                columns.words,
                columns.tenant,
                columns.node,
                columns.epoch,
                columns.first_seq,
                columns.times,
                columns.last_us,
            )
            .where(columns.tenant.is_not_distinct_from(tenant))
            .order_by(columns.last_us.desc())
            .limit(limit)
        )
        with self._database.reading() as db:
            return tuple(Refusal(**row) for row in db.execute(query).mappings())


def steps() -> sa.Subquery:
    """Return everything that moved, entries and decisions alike, as one table."""
    pieces = [
        sa.select(*(table.c[name] for name in _STEP_COLUMNS)).where(table.c.step.is_not(None))
        for table in (ENTRY, RESOLUTION)
    ]
    return sa.union_all(*pieces).subquery("steps")


class _Sums:
    """Sums over groups of steps: what holds after each, less what held before."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.tokens = [0] * len(TOKEN_COLUMNS)
        self.written_off_pico: dict[str, int] = {}
        self._amounts: dict[tuple[str, str, bool], list[int]] = {}

    def add(self, group: Any) -> None:
        """Count a group of steps that are alike in all but their amounts."""
        self.counts[group.state] = self.counts.get(group.state, 0) + group.steps
        if group.was is not None:
            self.counts[group.was] = self.counts.get(group.was, 0) - group.steps
        for place, name in enumerate(TOKEN_COLUMNS):
            self.tokens[place] += int(getattr(group, name) or 0)
        for name in _AMOUNTS:
            currency = getattr(group, f"{name}_currency")
            if currency is None:
                continue
            pico = _joined(group, name)
            sign = -1 if name.endswith("_was") else 1
            key = (name.removesuffix("_was"), currency, bool(group.scripted))
            held = self._amounts.setdefault(key, [0, 0])
            held[0] += sign * group.steps
            held[1] += sign * pico
            if name == "hold_was" and group.state == State.WRITTEN_OFF:
                self.written_off_pico[currency] = self.written_off_pico.get(currency, 0) + pico

    def by_currency(self, what: str) -> dict[str, int]:
        """Return the amounts in force of one kind."""
        sums: dict[str, int] = {}
        for (name, currency, _), (_, pico) in sorted(self._amounts.items()):
            if name == what:
                sums[currency] = sums.get(currency, 0) + pico
        return {name: pico for name, pico in sums.items() if pico}

    def measured(self) -> tuple[Measured, ...]:
        """Return the costs in force, the scripted provider's apart."""
        return tuple(
            Measured(currency=currency, scripted=scripted, attempts=attempts, cost_pico=pico)
            for (name, currency, scripted), (attempts, pico) in sorted(self._amounts.items())
            if name == "cost" and attempts
        )


def _bill_entry(row: Any) -> BillEntry:
    usage = cost = hold = None
    if row.output_tokens is not None:
        usage = TokenUsage(
            **{name.removesuffix("_tokens"): getattr(row, name) for name in TOKEN_COLUMNS}
        )
    if row.cost_pico is not None:
        rows = tuple(json.loads(row.price_rows))
        cost = Cost(currency=row.cost_currency, pico=row.cost_pico, rows=rows)
    if row.hold_pico is not None:
        hold = Cost(currency=row.hold_currency, pico=row.hold_pico, rows=())
    return BillEntry(
        node=row.node,
        epoch=row.epoch,
        seq=row.seq,
        kind=row.kind,
        at_us=row.at_us,
        attempt_id=row.subject or "",
        provider=row.provider,
        model=row.model,
        usage=usage,
        cost=cost,
        rated_us=row.rated_us,
        hold=hold,
        closed=row.closed_by is not None,
        dispute=None if row.quarantine is None else f"entry {row.seq}: {row.quarantine}",
    )


def _select_settled(tenant: str, period: Period) -> sa.Select[Any]:
    columns = (
        *("seq", *TOKEN_COLUMNS, "cost_currency", "cost_pico"),
        *("price_rows", "rated_us"),
    )
    return (
        sa.select(
            LEDGER.c.node,
            LEDGER.c.epoch,
            HEADING.c.provider,
            HEADING.c.model,
            HEADING.c.region,
            *(ENTRY.c[name] for name in columns),
        )
        .join(ENTRY, ENTRY.c.ledger_id == LEDGER.c.id)
        .join(HEADING, HEADING.c.id == ENTRY.c.heading_id)
        .where(
            LEDGER.c.tenant == tenant,
            ENTRY.c.kind == "settled",
            ENTRY.c.step.is_not(None),
            ENTRY.c.at_us >= period.from_us,
            ENTRY.c.at_us < period.to_us,
        )
        .order_by(LEDGER.c.node, LEDGER.c.epoch, ENTRY.c.seq)
        .execution_options(yield_per=10_000)
    )


def _ledgers(db: sa.Connection, tenant: str) -> tuple[LedgerHead, ...]:
    rows = db.execute(
        sa.select(LEDGER).where(LEDGER.c.tenant == tenant).order_by(LEDGER.c.node, LEDGER.c.id)
    )
    return tuple(
        LedgerHead(
            node=row.node,
            epoch=row.epoch,
            acked_seq=row.acked_seq,
            head_hash=bytes(row.head_hash).hex(),
            last_us=row.last_us,
        )
        for row in rows
    )


def _select_sums(tenant: str) -> sa.Select[Any]:
    moved = steps()
    # A literal, because PostgreSQL groups by no expression that holds a parameter.
    scripted = (HEADING.c.provider == sa.literal_column(f"'{SCRIPTED}'")).label("scripted")
    alike = (
        moved.c.state,
        moved.c.was,
        scripted,
        *(moved.c[f"{name}_currency"] for name in _AMOUNTS),
    )
    return (
        sa.select(
            *alike,
            sa.func.count().label("steps"),
            *(sa.func.sum(moved.c[name]).label(name) for name in TOKEN_COLUMNS),
            *(half for name in _AMOUNTS for half in _split_sum(moved.c[f"{name}_pico"], name)),
        )
        .join(LEDGER, LEDGER.c.id == moved.c.ledger_id)
        .join(HEADING, HEADING.c.id == moved.c.heading_id)
        .where(LEDGER.c.tenant == tenant)
        .group_by(*alike)
    )


def _select_quarantined(tenant: str) -> sa.Select[Any]:
    return (
        sa.select(sa.func.count())
        .select_from(ENTRY)
        .join(LEDGER, LEDGER.c.id == ENTRY.c.ledger_id)
        .where(LEDGER.c.tenant == tenant, ENTRY.c.quarantine.is_not(None), ~released())
    )


def _split_sum(column: sa.ColumnElement[int], name: str) -> tuple[sa.Label[int], sa.Label[int]]:
    """Sum a column of 64 bits in two halves, because SQLite's sums stop at 64 bits."""
    high, low = column // _HALF, column % _HALF
    return sa.func.sum(high).label(f"{name}_high"), sa.func.sum(low).label(f"{name}_low")


def _joined(row: Any, name: str) -> int:
    return int(getattr(row, f"{name}_high")) * _HALF + int(getattr(row, f"{name}_low"))
