"""Postings as rows of the database, and attempts read back from them.

Every statement here works on a connection that somebody else has in a transaction, with
the ledger's row locked where it writes. Both kinds of database take the same rows.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import BigInteger, LargeBinary, Text
from sqlalchemy.dialects.postgresql import ARRAY

from qcbridge.billing.engine import insert_into
from qcbridge.billing.postings import Known, Open, digest_of, heading_of, take_step
from qcbridge.billing.tables import BIG, ENTRY, HEADING, RESOLUTION, TOKEN_COLUMNS
from qcnode.books import chain
from qcnode.books.attempts import advance
from qcnode.errors import LedgerCorruptError
from qcnode.money import (
    Adjusted,
    CostCentre,
    EpochOpened,
    Intent,
    Leased,
    Outcome,
    Reconciled,
    Reserved,
    WrittenOff,
    tokens_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from qcbridge.billing.engine import Database
    from qcbridge.billing.postings import Heading, Posting, Step
    from qcnode.books.attempts import Standing
    from qcnode.money import TokenUsage

_MOVEMENT = (
    "step",
    "state",
    "was",
    "heading_id",
    *TOKEN_COLUMNS,
    "cost_currency",
    "cost_pico",
    "cost_was_currency",
    "cost_was_pico",
    "price_rows",
    "rated_us",
    "hold_currency",
    "hold_pico",
    "hold_was_currency",
    "hold_was_pico",
)
ENTRY_COLUMNS = (
    "ledger_id",
    "seq",
    "kind",
    "at_us",
    "stored_us",
    "body",
    "hash",
    "quarantine",
    "subject",
    "resolution_id",
    *_MOVEMENT,
)
_ATTEMPT_KINDS = tuple(
    kind for kind, fact in chain.KINDS.items() if fact not in (Outcome, Leased, EpochOpened)
)
_NOTHING: tuple[None, ...] = (None,) * len(_MOVEMENT)
_NO_TOKENS: tuple[None, ...] = (None,) * len(TOKEN_COLUMNS)
_NO_COST = (None, None, None)
HEADINGS_MAX = 10_000

_COLUMN_NAMES = ", ".join(ENTRY_COLUMNS)
_INSERT_ENTRIES = (
    f"INSERT INTO entry ({_COLUMN_NAMES})"  # noqa: S608  # names from above
    f" VALUES ({', '.join('?' * len(ENTRY_COLUMNS))})"
)
_COPY_ENTRIES = f"COPY entry ({_COLUMN_NAMES}) FROM STDIN WITH (FORMAT BINARY)"
_PG_TYPES = {BigInteger: "int8", Text: "text", LargeBinary: "bytea"}
_COPY_TYPES = tuple(_PG_TYPES[type(ENTRY.c[name].type)] for name in ENTRY_COLUMNS)


class Headings:
    """The ids of headings, most of them without asking the database.

    What a transaction made new is known only to it until `keep` is called after its commit.
    """

    def __init__(self) -> None:
        self._ids: dict[Heading, int] = {}

    def ids(self, db: sa.Connection, wanted: Mapping[str, Heading]) -> dict[str, int]:
        """Return the ids of `wanted` under the same names, making rows for those without one."""
        known = self._ids
        found = {name: known.get(heading) for name, heading in wanted.items()}
        missing = {wanted[name] for name, row_id in found.items() if row_id is None}
        made = self._make(db, missing) if missing else {}
        return {
            name: made[wanted[name]] if row_id is None else row_id for name, row_id in found.items()
        }

    def keep(self, wanted: Mapping[str, Heading], ids: Mapping[str, int]) -> None:
        """Remember ids whose rows are committed."""
        if len(self._ids) > HEADINGS_MAX:
            self._ids = {}
        self._ids.update((heading, ids[name]) for name, heading in wanted.items())

    def _make(self, db: sa.Connection, new: Collection[Heading]) -> dict[Heading, int]:
        missing = {digest_of(heading): heading for heading in new}
        # In order, so that two transactions never wait for each other.
        rows = [
            dict(zip(_HEADING_COLUMNS, (digest, *missing[digest]), strict=True))
            for digest in sorted(missing)
        ]
        select = sa.select(HEADING.c.id, HEADING.c.digest).where(HEADING.c.digest.in_(missing))
        there = db.execute(select).all()
        if len(there) < len(missing):
            db.execute(insert_into(db, HEADING).on_conflict_do_nothing(), rows)
            there = db.execute(select).all()
        return {missing[bytes(row.digest)]: row.id for row in there}


_HEADING_COLUMNS = (
    "digest",
    "provider",
    "model",
    *CostCentre.__slots__,
    "level",
    "region",
)


def headings_of(steps: Iterable[Step]) -> dict[str, Heading]:
    """Return what the attempts of `steps` are summed under, by attempt id."""
    attempts = {step.after.attempt.id: step.after.attempt for step in steps}
    return {name: heading_of(attempt) for name, attempt in attempts.items()}


def entry_rows(
    ledger_id: int, stored_us: int, postings: Iterable[Posting], ids: Mapping[str, int]
) -> Iterator[tuple[Any, ...]]:
    """Write postings as rows of `entry`, in the order of `ENTRY_COLUMNS`.

    `ids` are the headings' ids by attempt id.
    """
    for posting in postings:
        read, step = posting.read, posting.step
        line = read.line
        yield (
            ledger_id,
            line.seq,
            read.kind,
            read.at_us,
            stored_us,
            line.body.decode(),
            line.hash,
            posting.quarantine,
            posting.subject,
            posting.resolution_id,
            *(_NOTHING if step is None else movement(step, ids)),
        )


def movement(step: Step, ids: Mapping[str, int]) -> tuple[Any, ...]:
    """Write what a step moves, in the order of the columns both tables have."""
    before, after, usage = step.before, step.after, step.usage
    cost, hold = after.cost, after.hold
    was = cost_was = hold_was = None
    if before is not None:
        was, cost_was, hold_was = before.state.value, before.cost, before.hold
    tokens = _NO_TOKENS if usage is None else tokens_of(usage)
    currency, pico, rows = _NO_COST if cost is None else (cost.currency, cost.pico, cost.rows)
    currency_was, pico_was = (
        (None, None) if cost_was is None else (cost_was.currency, cost_was.pico)
    )
    held_in, held = (None, None) if hold is None else (hold.currency, hold.pico)
    held_in_was, held_was = (None, None) if hold_was is None else (hold_was.currency, hold_was.pico)
    return (
        step.number,
        after.state.value,
        was,
        ids[after.attempt.id],
        *tokens,
        currency,
        pico,
        currency_was,
        pico_was,
        None if rows is None else chain.canonical(rows).decode(),
        step.rated_us,
        held_in,
        held,
        held_in_was,
        held_was,
    )


def insert_entries(database: Database, db: sa.Connection, rows: Iterable[tuple[Any, ...]]) -> None:
    """Add rows of `entry_rows`.

    They go to PostgreSQL by COPY, straight into the table: with the ledger's row locked,
    nothing can be there already beyond what it says is stored.
    """
    if database.is_sqlite:
        db.exec_driver_sql(_INSERT_ENTRIES, list(rows))
        return
    with (
        database.driving(db) as driver,
        driver.cursor() as cursor,
        cursor.copy(_COPY_ENTRIES) as copy,
    ):
        copy.set_types(_COPY_TYPES)
        for row in rows:
            copy.write_row(row)


def resolution_row(
    fixed: Mapping[str, Any], step: Step | None, ids: Mapping[str, int]
) -> dict[str, Any]:
    """Write a decision of this server and what it moves as a row of `resolution`."""
    moves = _NOTHING if step is None else movement(step, ids)
    return {"releases_seq": None} | dict(fixed) | dict(zip(_MOVEMENT, moves, strict=True))


def known_attempts(
    db: sa.Connection, ledger_id: int, subjects: Collection[str]
) -> dict[str, Known]:
    """Return how attempts of a ledger stand, by what is stored of them."""
    if not subjects:
        return {}
    # Only facts about attempts are ever stored with a step.
    steps: dict[str, list[tuple[int, int, Any]]] = {}
    waiting: dict[str, list[Open]] = {}
    for row in _ask_about(db, _select_steps, ledger_id, subjects):
        fact = chain.read_body(0, row.body.encode(), row.kind)[2]
        steps.setdefault(row.subject, []).append((row.step, row.at_us, fact))
        if row.open_id is not None and isinstance(fact, Reconciled | WrittenOff | Adjusted):
            waiting.setdefault(row.subject, []).append(Open(row.open_id, fact))
    found: dict[str, Known] = {}
    for subject, taken in steps.items():
        known: Known | None = None
        for _number, at_us, fact in sorted(taken, key=lambda step: step[0]):
            step = take_step(known, fact, at_us=at_us)
            known = Known(step.after, step.number + 1, tuple(waiting.get(subject, ())))
        if known is not None:
            found[subject] = known
    return found


def chain_attempts(
    db: sa.Connection, ledger_id: int, subjects: Collection[str], *, before_seq: int
) -> Iterator[tuple[Standing, TokenUsage]]:
    """Yield how attempts stand by the node's own chain alone, and their worst cases.

    What this server decided by itself is not in it until the node has written it down.
    """
    if not subjects:
        return
    rows = _ask_about(db, _select_chain, ledger_id, subjects, before_seq=before_seq)
    standings: dict[str, Standing] = {}
    worst: dict[str, TokenUsage] = {}
    for row in sorted(rows, key=lambda row: row.seq):
        try:
            fact: Any = chain.read_body(row.seq, row.body.encode(), row.kind)[2]
            standings[row.subject] = advance(standings.get(row.subject), fact, at_us=row.at_us)
        except (LedgerCorruptError, ValueError):
            continue  # In quarantine for good reason.
        if isinstance(fact, Reserved | Intent):
            worst[row.subject] = fact.worst
    for subject, standing in standings.items():
        yield standing, worst[subject]


def _ask_about(
    db: sa.Connection,
    statement: Callable[[str], sa.Executable],
    ledger_id: int,
    subjects: Collection[str],
    **values: Any,
) -> sa.CursorResult[Any]:
    values |= {"ledger": ledger_id, "subjects": sorted(subjects)}
    return db.execute(statement(db.dialect.name), values)


# Making a statement costs more than asking it, so each is made once for each kind of database.
@functools.cache
def _select_steps(dialect: str) -> sa.CompoundSelect[Any]:
    """Select what is stored of attempts; `open_id` is a decision the node has yet to repeat."""
    is_open = RESOLUTION.c.closed_seq.is_(None) & RESOLUTION.c.releases_seq.is_(None)
    kinds = (
        (ENTRY, sa.cast(sa.null(), BIG)),
        (RESOLUTION, sa.case((is_open, RESOLUTION.c.id), else_=None)),
    )
    return sa.union_all(
        *(
            _about(
                dialect,
                sa.select(
                    table.c.subject,
                    table.c.step,
                    table.c.kind,
                    table.c.at_us,
                    table.c.body,
                    open_id.label("open_id"),
                ).where(table.c.ledger_id == sa.bindparam("ledger"), table.c.step.is_not(None)),
                table.c.subject,
            )
            for table, open_id in kinds
        )
    )


@functools.cache
def _select_chain(dialect: str) -> sa.Select[Any]:
    """Select what the node itself wrote about attempts before a seq."""
    columns = ENTRY.c
    written = sa.select(columns.seq, columns.subject, columns.kind, columns.at_us, columns.body)
    written = written.where(
        columns.ledger_id == sa.bindparam("ledger"),
        columns.seq < sa.bindparam("before_seq"),
        columns.kind.in_(_ATTEMPT_KINDS),
        columns.at_us.is_not(None),
    )
    return _about(dialect, written, columns.subject)


def _about(dialect: str, rows: sa.Select[Any], column: sa.ColumnElement[str]) -> sa.Select[Any]:
    """Select those of `rows` that are about the parameter `subjects`."""
    if dialect != "postgresql":
        return rows.where(column.in_(sa.bindparam("subjects", expanding=True)))
    # One look into the index for each, whatever the planner thinks: of a ledger that grows
    # fast it knows nothing yet, and it would read all of it for every batch.
    wanted = (
        sa.func.unnest(sa.bindparam("subjects", type_=ARRAY(Text)))
        .table_valued("subject")
        .render_derived()
    )
    each = rows.where(column == wanted.c.subject).offset(0).lateral()
    return sa.select(each).select_from(wanted.join(each, sa.true()))
