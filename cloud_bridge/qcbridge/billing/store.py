"""Everything the nodes reported, kept once.

A batch is one transaction: the row of its ledger is locked, what is already stored is
compared hash by hash, the chain is verified from the stored head, the rest is added and
the head moved on; only after the commit does anybody hear of it. So a receipt is never
early, a batch sent again changes nothing and gets the same receipt, and two batches of
one ledger never mix. Entries are added, never changed; the database itself refuses it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool

from qcbridge.billing.invoices import SCRIPTED, BillEntry, to_us
from qcbridge.billing.postings import (
    AttemptState,
    BatchRefusedError,
    Posting,
    RefusalKind,
    check_batch,
    post,
    read_fact,
)
from qcbridge.billing.tables import ENTRY, LEDGER, REFUSAL
from qcnode.books import batch as batches
from qcnode.books import chain
from qcnode.books.attempts import subject_of
from qcnode.errors import BillingError, LedgerCorruptError
from qcnode.money import Cost, Receipt, TokenUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from qcbridge.billing.invoices import Period
    from qcnode.money import LedgerEntry, LedgerFact

log = structlog.get_logger()

MIGRATIONS = Path(__file__).parent / "migrations"
REFUSALS_MAX = 10_000
"""A sender gone mad fills no disk: beyond this many different refusals only the log has them."""
SAMPLE_CHARS_MAX = 16 * 1024
CONNECT_TIMEOUT_S = 5
LOCK_TIMEOUT_S = 10
_HALF = 2**32
_MIGRATION_LOCK = 0x71636269  # Any number, the same for all servers of one database.


class StoreUnavailableError(BillingError):
    """The database cannot be reached or is busy; the same again later may succeed."""


class Outcome(StrEnum):
    """What became of a batch."""

    TAKEN = "taken"
    REPEATED = "repeated"
    """Everything in it was stored before."""
    GAP = "gap"
    """Entries before it are missing, and the receipt asks for them."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of a batch, how many entries were new, and the receipt for its node."""

    outcome: Outcome
    stored: int
    receipt: Receipt


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
    """Settled and priced attempts of one currency, the scripted provider's by themselves."""

    currency: str
    scripted: bool
    attempts: int
    cost_pico: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """One tenant's books in one look, under the names the node's own totals have.

    `cost_pico` is measured, and `measured` says which part of it is of the scripted
    provider, which charges nobody; `scripted` is whether any attempt here is, and
    `scripted_only` whether all are; `held_pico` is what open and indeterminate attempts can cost
    at most; unpriced and disputed entries are counted, because a sum would be a guess.
    """

    tenant: str
    entries: int
    attempts: int
    open: int
    settled: int
    not_billed: int
    indeterminate: int
    unpriced: int
    disputed: int
    input_tokens: int
    output_tokens: int
    cost_pico: dict[str, int]
    held_pico: dict[str, int]
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


class BillingStore:
    """The billing database, SQLite or PostgreSQL by its URL; any thread may use it."""

    def __init__(self, url: str, *, now: Callable[[], datetime]) -> None:
        self._now = now
        self._engine = _make_engine(url)
        self._is_sqlite = self._engine.dialect.name == "sqlite"
        # Batches take SQLite's write lock at once, instead of failing half-way for it;
        # readers of several statements see one moment of the books.
        self._writer = self._engine.execution_options(sqlite_begin="IMMEDIATE")
        self._reader = (
            self._engine
            if self._is_sqlite
            else self._engine.execution_options(isolation_level="REPEATABLE READ")
        )

    @property
    def name(self) -> str:
        """The database's address without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Let go of all connections; closing twice is harmless."""
        self._engine.dispose()

    def migrate(self) -> None:
        """Bring the schema up to date; several servers may do this at the same time.

        A database that holds something else is refused before anything is written to it.
        """
        self._look()
        with _plain_errors(), self._writer.connect() as db:
            if not self._is_sqlite:
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config = _alembic_config()
            config.attributes["connection"] = db
            command.upgrade(config, "head")
            db.commit()

    def check_schema(self) -> None:
        """Raise `BillingError` when this is no billing database of this version."""
        database = self._engine.url.database
        if self._is_sqlite and not (database and Path(database).is_file()):
            raise BillingError(
                f"no billing database at {database}: name one with --url,"
                " or make it with `qcnode billing serve`"
            )
        current = self._look()
        wanted = ScriptDirectory.from_config(_alembic_config()).get_current_head()
        if current != wanted:
            raise BillingError(
                f"the billing database {self.name} is at version {current or 'none'}, not"
                f" {wanted}: start `qcnode billing serve` on it once"
            )

    def _look(self) -> str | None:
        """Return the version that is there, and refuse what is no billing database.

        A file is opened for reading only: it may be one that another program is writing.
        """
        engine = self._reader
        if self._is_sqlite:
            file = Path(self._engine.url.database or "")
            if not file.is_file():
                return None
            engine = sa.create_engine(
                "sqlite://", creator=lambda: _connect_reading(file), poolclass=NullPool
            )
        with _plain_errors(), engine.connect() as db:
            tables = set(sa.inspect(db).get_table_names())
            current = MigrationContext.configure(db).get_current_revision()
        if current is None and tables - {"alembic_version"}:
            raise BillingError(
                f"{self.name}: this is no billing database (a node's ledger?): give the one"
                " that `qcnode billing serve` keeps"
            )
        known = ScriptDirectory.from_config(_alembic_config()).walk_revisions()
        if current is not None and current not in {script.revision for script in known}:
            raise BillingError(
                f"{self.name}: at version {current}, which this qcnode does not know: install"
                " a newer one, or give the database that `qcnode billing serve` keeps"
            )
        return current

    def ping(self) -> None:
        """Return when the database answers; raises `StoreUnavailableError`."""
        with _plain_errors(), self._reader.connect() as db:
            db.execute(sa.select(LEDGER.c.id).limit(1)).all()

    def ingest(self, batch: batches.Batch) -> Receipt:
        """Store what is new in `batch`, and return the receipt once that is durable.

        A batch that names nobody or is out of bounds raises `BatchRefusedError`. A fork
        or a broken chain is refused in the receipt: its `problem` says why and its
        `acked_seq` has not moved. A problem beside a seq that covers the batch is an
        entry stored and disputed.
        """
        return self.take(batch).receipt

    def take(self, batch: batches.Batch) -> Taken:
        """Do what `ingest` does, and say what became of the batch besides."""
        check_batch(batch)
        try:
            facts = [(entry, read_fact(entry)) for entry in batch.entries]
            with _plain_errors(), self._writer.connect() as db:
                return self._take(db, batch, facts)  # Leaving without a commit rolls back.
        except BatchRefusedError as refused:
            self.record_refusal(
                refused.kind,
                str(refused),
                offered=b"".join(entry.body + b"\n" for entry in batch.entries),
                identity=batch.entries[-1].hash,
                batch=batch,
            )
            with _plain_errors(), self._reader.connect() as db:
                head = db.execute(_select_head(batch)).one_or_none()
            acked_seq, head_hash = (
                _start_of(batch) if head is None else (head.acked_seq, head.head_hash)
            )
            return Taken(
                outcome=Outcome.REFUSED,
                stored=0,
                receipt=_receipt(batch, acked_seq, head_hash, str(refused)),
            )

    def _take(
        self, db: sa.Connection, batch: batches.Batch, facts: list[tuple[LedgerEntry, LedgerFact]]
    ) -> Taken:
        now_us = to_us(self._now())
        ledger_id, acked_seq, head_hash = self._lock_head(db, batch, now_us)
        if batch.first_seq > acked_seq + 1:
            return Taken(
                outcome=Outcome.GAP, stored=0, receipt=_receipt(batch, acked_seq, head_hash, None)
            )
        problems = _compare_stored(db, ledger_id, batch, acked_seq)
        fresh = facts[acked_seq + 1 - batch.first_seq :]
        if not fresh:
            return Taken(
                outcome=Outcome.REPEATED,
                stored=0,
                receipt=_receipt(batch, acked_seq, head_hash, _summary(problems)),
            )
        first = fresh[0][0]
        if first.prev_hash != head_hash:
            raise BatchRefusedError(
                RefusalKind.FORK,
                f"entry {first.seq} follows another entry {acked_seq} than the one stored here:"
                " this ledger was restored or copied, let the node open a new epoch",
            )
        try:
            chain.verify(
                (entry for entry, _ in fresh),
                epoch=batch.epoch,
                after_seq=acked_seq,
                prev_hash=head_hash,
            )
        except LedgerCorruptError as error:
            raise BatchRefusedError(RefusalKind.BROKEN, str(error)) from error
        postings = post(fresh, _known_attempts(db, ledger_id, [fact for _, fact in fresh]))
        db.execute(sa.insert(ENTRY), [_row(ledger_id, now_us, posting) for posting in postings])
        last = fresh[-1][0]
        db.execute(
            sa.update(LEDGER)
            .where(LEDGER.c.id == ledger_id)
            .values(acked_seq=last.seq, head_hash=last.hash, last_us=now_us)
        )
        db.commit()
        problems += [posting.dispute for posting in postings if posting.dispute is not None]
        return Taken(
            outcome=Outcome.TAKEN,
            stored=len(postings),
            receipt=_receipt(batch, last.seq, last.hash, _summary(problems)),
        )

    def _lock_head(
        self, db: sa.Connection, batch: batches.Batch, now_us: int
    ) -> tuple[int, int, bytes]:
        """Hold this ledger's row until the transaction ends, and return id, seq and hash."""
        wanted = _select_head(batch).with_for_update()
        head = db.execute(wanted).one_or_none()
        if head is None:
            acked_seq, head_hash = _start_of(batch)
            db.execute(
                self._insert(LEDGER)
                .values(
                    tenant=batch.tenant,
                    node=batch.node,
                    epoch=batch.epoch,
                    acked_seq=acked_seq,
                    head_hash=head_hash,
                    first_us=now_us,
                    last_us=now_us,
                )
                .on_conflict_do_nothing()
            )
            head = db.execute(wanted).one()
        return head.id, head.acked_seq, bytes(head.head_hash)

    def record_refusal(
        self,
        kind: RefusalKind,
        words: str,
        *,
        offered: bytes,
        identity: bytes = b"",
        batch: batches.Batch | None = None,
    ) -> None:
        """Put on record what was not taken; the same offer again is counted, not repeated.

        What tells one offer from another is `identity`, or `offered` itself without one.
        """
        named = (batch.tenant, batch.node, batch.epoch) if batch else ("", "", "")
        digest = hashlib.sha256("/".join(named).encode() + b"\0" + (identity or offered)).digest()
        now_us = to_us(self._now())
        log.warning(
            "refused", kind=str(kind), words=words, tenant=named[0], node=named[1], epoch=named[2]
        )
        insert = self._insert(REFUSAL).values(
            digest=digest,
            kind=str(kind),
            words=_plain_text(words),
            tenant=None if batch is None else batch.tenant,
            node=None if batch is None else batch.node,
            epoch=None if batch is None else batch.epoch,
            first_seq=None if batch is None else batch.first_seq,
            sample=_plain_text(offered[:SAMPLE_CHARS_MAX].decode(errors="backslashreplace")),
            times=1,
            first_us=now_us,
            last_us=now_us,
        )
        with _plain_errors(), self._writer.connect() as db:
            again = db.execute(
                sa.update(REFUSAL)
                .where(REFUSAL.c.digest == digest)
                .values(times=REFUSAL.c.times + 1, last_us=now_us)
            )
            if again.rowcount == 0:
                count = db.execute(sa.select(sa.func.count()).select_from(REFUSAL)).scalar_one()
                if count >= REFUSALS_MAX:
                    return
                db.execute(insert.on_conflict_do_nothing())
            db.commit()

    def tenants(self) -> tuple[str, ...]:
        """Return everybody who has entries here, by name."""
        with _plain_errors(), self._reader.connect() as db:
            found = db.execute(sa.select(LEDGER.c.tenant).distinct().order_by(LEDGER.c.tenant))
            return tuple(found.scalars())

    def totals(self, tenant: str) -> Totals:
        """Return the sums over all entries of `tenant`."""
        with _plain_errors(), self._reader.connect() as db:
            ledgers = _ledgers(db, tenant)
            kinds = db.execute(_select_kinds(tenant)).all()
            waiting = db.execute(_select_waiting(tenant)).all()
        counts: dict[str, int] = {}
        cost_pico: dict[str, int] = {}
        measured: list[Measured] = []
        unpriced = disputed = entered = answered = 0
        for row in kinds:
            if row.disputed:
                disputed += row.entries
                continue
            counts[row.kind] = counts.get(row.kind, 0) + row.entries
            if row.kind != "settled":
                continue
            entered += int(row.input_tokens)
            answered += int(row.output_tokens)
            if row.currency is None:
                unpriced += row.entries
            else:
                pico = _joined(row)
                cost_pico[row.currency] = cost_pico.get(row.currency, 0) + pico
                measured.append(
                    Measured(
                        currency=row.currency,
                        scripted=bool(row.scripted),
                        attempts=row.entries,
                        cost_pico=pico,
                    )
                )
        held_pico: dict[str, int] = {}
        unsettled: dict[str, int] = {}
        for row in waiting:
            unsettled[row.kind] = unsettled.get(row.kind, 0) + row.entries
            held_pico[row.currency] = held_pico.get(row.currency, 0) + _joined(row)
        marks = {bool(row.scripted) for row in kinds if not row.disputed}
        return Totals(
            tenant=tenant,
            entries=sum(head.acked_seq for head in ledgers),  # A chain has no gaps.
            attempts=counts.get("intent", 0),
            open=unsettled.get("intent", 0),
            settled=counts.get("settled", 0),
            not_billed=counts.get("not_billed", 0),
            indeterminate=unsettled.get("indeterminate", 0),
            unpriced=unpriced,
            disputed=disputed,
            input_tokens=entered,
            output_tokens=answered,
            cost_pico=cost_pico,
            held_pico={currency: pico for currency, pico in held_pico.items() if pico},
            scripted=True in marks,
            scripted_only=marks == {True},
            measured=tuple(measured),
            ledgers=ledgers,
        )

    def entries(self, tenant: str, period: Period) -> Iterator[BillEntry]:
        """Yield what `tenant`'s nodes wrote in `period`, by node, epoch and seq."""
        closer = ENTRY.alias("closer")
        query = (
            sa.select(
                LEDGER.c.node,
                LEDGER.c.epoch,
                *(column for column in ENTRY.c if column.name not in ("body", "hash")),
                closer.c.seq.label("closed_by"),
            )
            .join(ENTRY, ENTRY.c.ledger_id == LEDGER.c.id)
            .outerjoin(
                closer,
                (closer.c.ledger_id == ENTRY.c.ledger_id) & (closer.c.closes_seq == ENTRY.c.seq),
            )
            .where(
                LEDGER.c.tenant == tenant,
                ENTRY.c.at_us >= period.from_us,
                ENTRY.c.at_us < period.to_us,
            )
            .order_by(LEDGER.c.node, LEDGER.c.epoch, ENTRY.c.seq)
            .execution_options(yield_per=1000)
        )
        with _plain_errors(), self._reader.connect() as db:
            for row in db.execute(query):
                yield _bill_entry(row)

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
        with _plain_errors(), self._reader.connect() as db:
            return tuple(Refusal(**row) for row in db.execute(query).mappings())

    def _insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        return sqlite.insert(table) if self._is_sqlite else postgresql.insert(table)


def _make_engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.drivername == "sqlite":
            return _make_sqlite(parsed)
        if parsed.drivername == "postgresql+psycopg":
            return sa.create_engine(
                parsed,
                pool_size=5,
                max_overflow=5,
                pool_timeout=CONNECT_TIMEOUT_S,
                pool_pre_ping=True,
                connect_args={
                    "connect_timeout": CONNECT_TIMEOUT_S,
                    "application_name": "qcnode-billing",
                },
            )
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise BillingError(
            "the database address cannot be read: write sqlite:///FILE"
            " or postgresql+psycopg://USER@HOST/DATABASE"
        ) from error
    except ModuleNotFoundError as error:
        raise BillingError(
            f"PostgreSQL needs {error.name}: install qcnode with the extra 'postgres'"
        ) from error
    raise BillingError(
        f"a database of kind {parsed.drivername!r} is not known here: write sqlite:///FILE"
        " or postgresql+psycopg://USER@HOST/DATABASE"
    )


def _make_sqlite(url: sa.URL) -> sa.Engine:
    if not url.database or url.database == ":memory:":
        raise BillingError("bills are kept on disk: write sqlite:///FILE")
    engine = sa.create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: Any) -> None:
        # Transactions are begun by the listener below, so the driver must begin none.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def _connect_reading(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=LOCK_TIMEOUT_S)


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Tell apart a database that is away, which passes, from one that says no, which does not."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        raise StoreUnavailableError(
            f"the billing database does not answer: {_first_line(error)}"
        ) from error
    except DBAPIError as error:
        raise BillingError(f"the billing database says no: {_first_line(error)}") from error


def _first_line(error: DBAPIError | PoolTimeoutError) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


def _start_of(batch: batches.Batch) -> tuple[int, bytes]:
    return 0, chain.genesis(batch.epoch)


def _select_head(batch: batches.Batch) -> sa.Select[Any]:
    return sa.select(LEDGER.c.id, LEDGER.c.acked_seq, LEDGER.c.head_hash).where(
        LEDGER.c.tenant == batch.tenant,
        LEDGER.c.node == batch.node,
        LEDGER.c.epoch == batch.epoch,
    )


def _receipt(
    batch: batches.Batch, acked_seq: int, head_hash: bytes, problem: str | None
) -> Receipt:
    return Receipt(
        epoch=batch.epoch, acked_seq=acked_seq, head_hash=bytes(head_hash).hex(), problem=problem
    )


def _summary(problems: Sequence[str]) -> str | None:
    if not problems:
        return None
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"disputed: {problems[0]}{more}"


def _compare_stored(
    db: sa.Connection, ledger_id: int, batch: batches.Batch, acked_seq: int
) -> list[str]:
    """Check the part of `batch` that is stored already, and return what is disputed in it."""
    if batch.first_seq > acked_seq:
        return []
    stored = db.execute(
        sa.select(ENTRY.c.seq, ENTRY.c.hash, ENTRY.c.dispute)
        .where(
            ENTRY.c.ledger_id == ledger_id,
            ENTRY.c.seq.between(batch.first_seq, min(batch.last_seq, acked_seq)),
        )
        .order_by(ENTRY.c.seq)
    ).all()
    for offered, row in zip(batch.entries, stored, strict=False):
        if offered.hash != row.hash:
            raise BatchRefusedError(
                RefusalKind.FORK,
                f"entry {row.seq} is stored here with another content: this ledger was"
                " restored or copied, let the node open a new epoch",
            )
    return [row.dispute for row in stored if row.dispute is not None]


def _known_attempts(
    db: sa.Connection, ledger_id: int, facts: Sequence[LedgerFact]
) -> dict[str, AttemptState]:
    ids = {subject_of(fact) for fact in facts}
    rows = db.execute(
        sa.select(
            ENTRY.c.attempt_id,
            ENTRY.c.seq,
            ENTRY.c.kind,
            ENTRY.c.provider,
            ENTRY.c.model,
            ENTRY.c.hold_currency,
        )
        .where(
            ENTRY.c.ledger_id == ledger_id,
            ENTRY.c.attempt_id.in_(ids),
            ENTRY.c.dispute.is_(None),
        )
        .order_by(ENTRY.c.seq)
    )
    return {
        row.attempt_id: AttemptState(
            provider=row.provider,
            model=row.model,
            hold_currency=row.hold_currency,
            last_seq=row.seq,
            last_kind=row.kind,
        )
        for row in rows
    }


def _row(ledger_id: int, stored_us: int, posting: Posting) -> dict[str, Any]:
    usage, cost, hold = posting.usage, posting.cost, posting.hold
    return {
        "ledger_id": ledger_id,
        "seq": posting.entry.seq,
        "kind": posting.entry.kind,
        "at_us": posting.entry.at_us,
        "stored_us": stored_us,
        "body": posting.entry.body.decode(),
        "hash": posting.entry.hash,
        "dispute": posting.dispute,
        "attempt_id": posting.attempt_id,
        "closes_seq": posting.closes_seq,
        "provider": posting.provider,
        "model": posting.model,
        "input_tokens": None if usage is None else usage.input_tokens,
        "output_tokens": None if usage is None else usage.output_tokens,
        "cache_read_tokens": None if usage is None else usage.cache_read,
        "image_tokens": None if usage is None else usage.image,
        "reasoning_tokens": None if usage is None else usage.reasoning,
        "cost_currency": None if cost is None else cost.currency,
        "cost_pico": None if cost is None else cost.pico,
        "rated_us": posting.rated_us,
        "price_rows": None if cost is None else chain.canonical(list(cost.rows)).decode(),
        "hold_currency": None if hold is None else hold.currency,
        "hold_pico": None if hold is None else hold.pico,
    }


def _bill_entry(row: Any) -> BillEntry:
    usage = cost = hold = None
    if row.input_tokens is not None:
        usage = TokenUsage.divide(
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            cache_read=row.cache_read_tokens,
            image=row.image_tokens,
            reasoning=row.reasoning_tokens,
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
        attempt_id=row.attempt_id,
        provider=row.provider,
        model=row.model,
        usage=usage,
        cost=cost,
        rated_us=row.rated_us,
        hold=hold,
        closed=row.closed_by is not None,
        dispute=row.dispute,
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


def _split_sum(column: sa.Column[int]) -> tuple[sa.Label[int], sa.Label[int]]:
    """Sum a column of 64 bits in two halves, because SQLite's sums stop at 64 bits."""
    high, low = column // _HALF, column % _HALF
    return sa.func.sum(high).label("high"), sa.func.sum(low).label("low")


def _joined(row: Any) -> int:
    return int(row.high) * _HALF + int(row.low)


def _select_kinds(tenant: str) -> sa.Select[Any]:
    disputed = ENTRY.c.dispute.is_not(None).label("disputed")
    # A literal, because PostgreSQL groups by no expression that holds a parameter.
    scripted = (ENTRY.c.provider == sa.literal_column(f"'{SCRIPTED}'")).label("scripted")
    return (
        sa.select(
            ENTRY.c.kind,
            disputed,
            scripted,
            ENTRY.c.cost_currency.label("currency"),
            sa.func.count().label("entries"),
            sa.func.sum(ENTRY.c.input_tokens).label("input_tokens"),
            sa.func.sum(ENTRY.c.output_tokens).label("output_tokens"),
            *_split_sum(ENTRY.c.cost_pico),
        )
        .join(LEDGER, LEDGER.c.id == ENTRY.c.ledger_id)
        .where(LEDGER.c.tenant == tenant)
        .group_by(ENTRY.c.kind, disputed, scripted, ENTRY.c.cost_currency)
        .order_by(ENTRY.c.kind, ENTRY.c.cost_currency, scripted)
    )


def _select_waiting(tenant: str) -> sa.Select[Any]:
    """Sum the holds that no later entry has closed."""
    closer = ENTRY.alias("closer")
    closed = (
        sa.select(sa.literal(1))
        .where(closer.c.ledger_id == ENTRY.c.ledger_id, closer.c.closes_seq == ENTRY.c.seq)
        .correlate(ENTRY)
        .exists()
    )
    return (
        sa.select(
            ENTRY.c.kind,
            ENTRY.c.hold_currency.label("currency"),
            sa.func.count().label("entries"),
            *_split_sum(ENTRY.c.hold_pico),
        )
        .join(LEDGER, LEDGER.c.id == ENTRY.c.ledger_id)
        .where(LEDGER.c.tenant == tenant, ENTRY.c.hold_pico.is_not(None), ~closed)
        .group_by(ENTRY.c.kind, ENTRY.c.hold_currency)
        .order_by(ENTRY.c.hold_currency)
    )


def _plain_text(text: str) -> str:
    """Replace what PostgreSQL cannot keep in a text: NUL, and halves of a surrogate pair."""
    return text.replace("\0", "\\x00").encode(errors="backslashreplace").decode()
