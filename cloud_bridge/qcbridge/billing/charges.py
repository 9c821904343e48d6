"""What the stored books charge for, stretch by stretch, in the terms of a bill.

Use that was settled at a known cost is added up by the database, by hour, heading and
price rows. What was decided or put right later is read one by one, with the history of
its attempt, because it depends on which invoice billed what it replaces. Nothing is
written here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from qcbridge.billing.bill import Cell, GroupKey, Why
from qcbridge.billing.invoices import month_of
from qcbridge.billing.paper_tables import INVOICE_DECISION, INVOICE_LEDGER
from qcbridge.billing.tables import ENTRY, HEADING, RESOLUTION, TOKEN_COLUMNS
from qcnode.errors import BillingError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from qcbridge.billing.invoices import Period

HOUR_US: Final = 3_600_000_000
_HALF: Final = 2**32
_AT_ONCE: Final = 500
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RIGHTING: Final = ("reconciled", "adjusted")
_HISTORY: Final = (
    "ledger_id",
    "subject",
    "step",
    "kind",
    "at_us",
    "heading_id",
    *TOKEN_COLUMNS,
    "cost_currency",
    "cost_pico",
    "cost_was_currency",
    "cost_was_pico",
    "price_rows",
    "rated_us",
)


class Stretch(NamedTuple):
    """Entries of one ledger, the first and the last included."""

    ledger_id: int
    node: str
    epoch: str
    first_seq: int
    last_seq: int


class Origin(NamedTuple):
    """Where a cost comes from: an entry, or a decision of this server."""

    ledger_id: int
    seq: int | None
    decision: int | None


class Heading(NamedTuple):
    """What a sum is under."""

    provider: str
    model: str
    line: str
    product: str
    department: str
    application: str
    function: str
    agent: str
    level: str
    region: str


def when(used_us: int, period: Period, of_invoice: int, *, back: bool) -> tuple[Why, str, int]:
    """Say why use is on the invoice of `period`, of which month it is, and of which hour.

    With `of_invoice` another one billed it before: then it is a credit where it is taken
    `back`, else a debit. A clock that runs ahead puts use into the last hour there is.
    """
    if of_invoice:
        hour = min(used_us, period.from_us - 1)
        why = Why.CREDIT if back else Why.DEBIT
    elif used_us < period.from_us:
        hour, why = used_us, Why.LATE
    else:
        hour, why = min(used_us, period.to_us - 1), Why.USAGE
    month = month_of(_EPOCH + timedelta(microseconds=hour)).name
    return why, month, hour - hour % HOUR_US


@dataclass(slots=True)
class Charges:
    """Reads what stretches of a tenant's ledgers charge for, for the invoice `number`.

    `decisions` are those that are on the invoice; what it corrects is looked up among
    the invoices before it.
    """

    db: sa.Connection
    period: Period
    number: int
    decisions: frozenset[int]
    lenient: bool = False
    """For a preview past months that are open: what those billed is billed by nobody yet."""
    corrects: dict[Origin, int] = field(default_factory=dict)
    """What was found to put right another invoice's line, and which."""
    _headings: dict[int, Heading] = field(default_factory=dict)
    _rows: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _covered: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)

    def nodes(self, stretches: Iterable[Stretch]) -> Iterator[list[Cell]]:
        """Yield the cells of one node after the other, in the order of their names."""
        by_node: dict[str, list[Stretch]] = {}
        for stretch in stretches:
            by_node.setdefault(stretch.node, []).append(stretch)
        for node in sorted(by_node):
            cells: list[Cell] = []
            for stretch in by_node[node]:
                cells += self._settled(stretch)
                cells += self._righted(stretch)
            yield cells

    def _settled(self, stretch: Stretch) -> Iterator[Cell]:
        """Add up what was used at a cost known at once."""
        hour = sa.func.coalesce(ENTRY.c.rated_us, ENTRY.c.at_us) // sa.literal_column(str(HOUR_US))
        alike = (ENTRY.c.heading_id, ENTRY.c.price_rows, ENTRY.c.cost_currency)
        query = (
            sa.select(
                *alike,
                hour.label("hour"),
                sa.func.count().label("attempts"),
                *(sa.func.sum(ENTRY.c[name]).label(name) for name in TOKEN_COLUMNS),
                # In two halves, because SQLite's sums stop at 64 bits.
                sa.func.sum(ENTRY.c.cost_pico // _HALF).label("high"),
                sa.func.sum(ENTRY.c.cost_pico % _HALF).label("low"),
            )
            .where(
                ENTRY.c.ledger_id == stretch.ledger_id,
                ENTRY.c.seq.between(stretch.first_seq, stretch.last_seq),
                ENTRY.c.kind == "settled",
                ENTRY.c.cost_pico.is_not(None),
            )
            .group_by(*alike, hour)
        )
        groups = self.db.execute(query).all()
        self._load_headings({group.heading_id for group in groups})
        for group in groups:
            yield self._cell(
                stretch.node,
                self._headings[group.heading_id],
                when(int(group.hour) * HOUR_US, self.period, 0, back=False),
                of_invoice=0,
                currency=group.cost_currency,
                rows=self._rows_of(group.price_rows),
                attempts=group.attempts,
                tokens=tuple(int(getattr(group, name) or 0) for name in TOKEN_COLUMNS),
                pico=int(group.high) * _HALF + int(group.low),
            )

    def _righted(self, stretch: Stretch) -> Iterator[Cell]:
        """Read what was decided, released or put right, with the history of each attempt."""
        subjects = set(
            self.db.execute(
                sa.select(ENTRY.c.subject).where(
                    ENTRY.c.ledger_id == stretch.ledger_id,
                    ENTRY.c.seq.between(stretch.first_seq, stretch.last_seq),
                    ENTRY.c.kind.in_(_RIGHTING),
                    ENTRY.c.step.is_not(None),
                )
            ).scalars()
        )
        decided = _in_parts(self.decisions)
        for part in decided:
            subjects |= set(
                self.db.execute(
                    sa.select(RESOLUTION.c.subject).where(
                        RESOLUTION.c.ledger_id == stretch.ledger_id,
                        RESOLUTION.c.id.in_(part),
                        RESOLUTION.c.step.is_not(None),
                    )
                ).scalars()
            )
        for _subject, steps in sorted(history(self.db, stretch.ledger_id, subjects).items()):
            self._load_headings({step.heading_id for step in steps})
            for place, step in enumerate(steps):
                here = (
                    step.decision in self.decisions
                    if step.seq is None
                    else stretch.first_seq <= step.seq <= stretch.last_seq
                    and step.kind in _RIGHTING
                )
                if here:
                    yield from self._step_cells(stretch, steps[: place + 1])

    def _step_cells(self, stretch: Stretch, steps: Sequence[Any]) -> Iterator[Cell]:
        step = steps[-1]
        used_us = used_at(steps)
        tokens = next(
            (
                tuple(getattr(one, name) for name in TOKEN_COLUMNS)
                for one in reversed(steps)
                if one.output_tokens is not None
            ),
            (0,) * len(TOKEN_COLUMNS),
        )
        of_invoice = 0
        if step.cost_was_pico is not None:
            before = next(one for one in reversed(steps[:-1]) if one.cost_pico is not None)
            of_invoice = self._billed_on(
                stretch, Origin(stretch.ledger_id, before.seq, before.decision)
            )
            if of_invoice:
                self.corrects[Origin(stretch.ledger_id, step.seq, step.decision)] = of_invoice
            yield self._cell(
                stretch.node,
                self._headings[before.heading_id],
                when(used_us, self.period, of_invoice, back=True),
                of_invoice=of_invoice,
                currency=step.cost_was_currency,
                rows=self._rows_of(before.price_rows),
                attempts=-1,
                tokens=tuple(-count for count in tokens),
                pico=-step.cost_was_pico,
            )
        if step.cost_pico is not None:
            yield self._cell(
                stretch.node,
                self._headings[step.heading_id],
                when(used_us, self.period, of_invoice, back=False),
                of_invoice=of_invoice,
                currency=step.cost_currency,
                rows=self._rows_of(step.price_rows),
                attempts=1,
                tokens=tokens,
                pico=step.cost_pico,
            )

    def _billed_on(self, stretch: Stretch, origin: Origin) -> int:
        """Return the earlier invoice that billed a cost; 0 when it is on this one."""
        if origin.decision is not None:
            if origin.decision in self.decisions:
                return 0
            found = self.db.execute(
                sa.select(INVOICE_DECISION.c.number).where(
                    INVOICE_DECISION.c.resolution_id == origin.decision
                )
            ).scalar_one_or_none()
            if found is None and self.lenient:
                return 0
            if found is None or found >= self.number:
                raise BillingError(f"decision {origin.decision} is on no invoice yet")
            return int(found)
        seq = origin.seq or 0
        if seq >= stretch.first_seq:
            return 0
        if stretch.ledger_id not in self._covered:
            rows = self.db.execute(
                sa.select(INVOICE_LEDGER).where(INVOICE_LEDGER.c.ledger_id == stretch.ledger_id)
            )
            self._covered[stretch.ledger_id] = [
                (row.first_seq, row.last_seq, row.number) for row in rows
            ]
        for first, last, number in self._covered[stretch.ledger_id]:
            if first <= seq <= last:
                return number
        if self.lenient:
            return 0
        raise BillingError(f"entry {seq} of epoch {stretch.epoch} is on no invoice")

    def _cell(
        self,
        node: str,
        heading: Heading,
        placed: tuple[Why, str, int],
        *,
        of_invoice: int,
        currency: str,
        rows: tuple[str, ...],
        attempts: int,
        tokens: tuple[int, ...],
        pico: int,
    ) -> Cell:
        why, month, hour_us = placed
        key = GroupKey(
            why=why,
            month=month,
            of_invoice=of_invoice,
            node=node,
            department=heading.department,
            application=heading.application,
            function=heading.function,
            provider=heading.provider,
            model=heading.model,
            currency=currency,
            rows=rows,
        )
        return Cell(
            key=key,
            hour_us=hour_us,
            line=heading.line,
            product=heading.product,
            agent=heading.agent,
            level=heading.level,
            region=heading.region,
            attempts=attempts,
            tokens=tokens,
            pico=pico,
        )

    def _rows_of(self, price_rows: str | None) -> tuple[str, ...]:
        text = price_rows or "[]"
        if text not in self._rows:
            self._rows[text] = tuple(json.loads(text))
        return self._rows[text]

    def _load_headings(self, ids: Collection[int]) -> None:
        for part in _in_parts(set(ids) - self._headings.keys()):
            columns = (HEADING.c[name] for name in Heading._fields)
            for row in self.db.execute(
                sa.select(HEADING.c.id, *columns).where(HEADING.c.id.in_(part))
            ):
                self._headings[row.id] = Heading(*row[1:])


def history(db: sa.Connection, ledger_id: int, subjects: Collection[str]) -> dict[str, list[Any]]:
    """Return all steps of attempts in their order, of entries and decisions alike."""
    found: dict[str, list[Any]] = {}
    for part in _in_parts(subjects):
        for table in (ENTRY, RESOLUTION):
            number = (
                (ENTRY.c.seq, sa.null().label("decision"))
                if table is ENTRY
                else (sa.null().label("seq"), RESOLUTION.c.id.label("decision"))
            )
            query = sa.select(*number, *(table.c[name] for name in _HISTORY)).where(
                table.c.ledger_id == ledger_id,
                table.c.subject.in_(part),
                table.c.step.is_not(None),
            )
            for row in db.execute(query):
                found.setdefault(row.subject, []).append(row)
    for steps in found.values():
        steps.sort(key=lambda step: step.step)
    return found


def used_at(steps: Sequence[Any]) -> int:
    """Return when an attempt was used: as it was rated, else when it was announced."""
    rated = next((step.rated_us for step in steps if step.rated_us is not None), None)
    if rated is not None:
        return int(rated)
    announced = next((step.at_us for step in steps if step.kind == "intent"), steps[0].at_us)
    return int(announced)


def _in_parts(ids: Iterable[Any]) -> Iterator[list[Any]]:
    """Divide what a query asks for, because a statement takes so many values only."""
    ordered = sorted(ids)
    for start in range(0, len(ordered), _AT_ONCE):
        yield ordered[start : start + _AT_ONCE]
