"""Everything that was spent here, in order, in one file that only grows.

Entries are added, never changed; a wrong one is put right by another. A fact is on
record when its future ends, not before: the commit has reached the disk. One thread
owns the one connection that writes and gives every fact its seq, so budgets hold and
no number is skipped or used twice. Anyone may submit and read, from any thread.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from qcnode.books import chain
from qcnode.books.attempts import LIVE, State, subject_of
from qcnode.books.budgets import Budget
from qcnode.books.ledger_file import (
    BILLING,
    LedgerReader,
    find_standing,
    in_words,
    lock_for_writing,
    open_for_writing,
    read_cursor,
    read_epoch,
    walk,
)
from qcnode.errors import (
    BudgetExceededError,
    LedgerCorruptError,
    LedgerUnavailableError,
)
from qcnode.money import Indeterminate, Intent, LedgerEntry, NotBilled, Receipt, Reserved

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qcnode.books.attempts import Standing
    from qcnode.books.budgets import Span
    from qcnode.books.tally import Tally
    from qcnode.money import LedgerFact, LedgerTotals

__all__ = ["Budget", "BudgetState", "SqliteLedger"]

log = structlog.get_logger()

_GROUP_MAX = 100
_WAITING_MAX = 4_096
_CONFIRM_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """How a budget stands in the window that runs."""

    budget: Budget
    span: Span
    limit: int
    used: int
    """Spent and held."""

    @property
    def left(self) -> int:
        """What is not spent and not held; below zero is a debt."""
        return self.limit - self.used


@dataclass(frozen=True, slots=True)
class _Job:
    """Facts that go on record together or not at all, or a receipt."""

    what: tuple[LedgerFact, ...] | Receipt
    future: Future[Any]
    several: bool = False


@dataclass(slots=True)
class _Group:
    """What goes to disk in one commit, and who waits for it."""

    tally: Tally
    receipt_seq: int
    taken: list[tuple[_Job, list[LedgerEntry]]] = field(default_factory=list)
    refused: list[tuple[_Job, Exception]] = field(default_factory=list)


class SqliteLedger:
    """The node's money, and how far the billing server has confirmed it.

    Opening checks the whole chain and writes down every attempt that a stop left open
    as indeterminate. Without a budget nothing is limited.
    """

    def __init__(
        self,
        path: Path,
        *,
        now_us: Callable[[], int],
        new_epoch: Callable[[], str],
        budgets: Sequence[Budget] = (),
    ) -> None:
        self._path = path
        self._now_us = now_us
        self._budgets = tuple(budgets)
        self._waiting: queue.Queue[_Job | None] = queue.Queue(_WAITING_MAX)
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._turn = threading.Lock()  # Guards _closed and _listeners, held for no I/O.
        self._writing = threading.Lock()  # Held by whoever is on the connection that writes.
        self._closed = False
        self._in_doubt = False
        self._failing = False
        self._lock = lock_for_writing(path)
        try:
            self._db = open_for_writing(path, now_us=now_us(), new_epoch=new_epoch)
            try:
                self._open_books()
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise
        self._writer = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._writer.start()

    @property
    def epoch(self) -> str:
        """The identity of this ledger file: seq starts at 1 in each epoch."""
        return self._epoch

    def submit(self, fact: LedgerFact) -> Future[LedgerEntry]:
        """Record a fact; the future ends when it is durable.

        It fails with `BudgetExceededError` for a hold that does not fit a budget, with
        `LedgerUnavailableError` when nothing can be recorded, and with `ValueError`
        for a fact that may not follow what is on record of its attempt.
        """
        return self._enqueue(_Job((fact,), Future()))

    def submit_all(self, facts: Sequence[LedgerFact]) -> Future[list[LedgerEntry]]:
        """Record facts in one commit, all or none; it fails as `submit` does."""
        return self._enqueue(_Job(tuple(facts), Future(), several=True))

    def record(self, *facts: LedgerFact) -> list[LedgerEntry]:
        """Record facts in one commit, all or none, and return when they are durable.

        The caller's own thread waits for the disk, which saves handing over to another;
        never call this from an event loop. It raises what `submit` fails with.
        """
        job = _Job(facts, Future(), several=True)
        with self._turn:
            if self._closed:
                raise LedgerUnavailableError(f"{self._path}: the ledger is closed")
        with self._writing:
            self._record([job])
        entries: list[LedgerEntry] = job.future.result(timeout=0)
        return entries

    def read(self, after_seq: int, limit: int) -> list[LedgerEntry]:
        """Return up to `limit` entries beyond `after_seq`, in order."""
        return self._reader.read(after_seq, limit)

    def totals(self) -> LedgerTotals:
        """Return the sums over all entries."""
        return self._tally.totals()

    def budget_left_pico(self) -> int | None:
        """Return what every request may still reserve, of the tightest budget; None is no limit."""
        left = [state.left for state in self.budgets() if state.budget.unit == "money"]
        return max(0, min(left)) if left else None

    def budgets(self) -> tuple[BudgetState, ...]:
        """Return how each budget stands in its running window."""
        at_us, tally = self._now_us(), self._tally
        return tuple(
            BudgetState(
                budget=meter.budget,
                span=meter.span(at_us),
                limit=meter.limit_at(at_us, tally.leases.get(meter.budget.name)),
                used=meter.used_at(at_us),
            )
            for meter in tally.copy().meters
        )

    def receipt_seq(self) -> int:
        """Return how far the billing server has confirmed this epoch."""
        return self._receipt_seq

    def confirm(self, receipt: Receipt) -> None:
        """Note a receipt; one that contradicts the chain raises `LedgerCorruptError`.

        A receipt further back than the last one is the truth too: the server was
        restored from a backup and wants the entries from there again.
        """
        done = self._enqueue(_Job(receipt, Future()))
        try:
            done.result(timeout=_CONFIRM_TIMEOUT_S)
        except TimeoutError as error:
            done.cancel()
            raise LedgerUnavailableError(
                f"{self._path}: the disk took no receipt in {_CONFIRM_TIMEOUT_S:g} s: check it"
            ) from error

    def verify(self) -> int:
        """Check every entry and return their number.

        Raises `LedgerCorruptError` naming the first bad entry.
        """
        reader = LedgerReader(self._path)
        try:
            return reader.verify().entries
        finally:
            reader.close()

    def add_listener(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each commit, from the writer's thread, until undone.

        It must return at once and must not raise. Calling what is returned undoes it.
        """
        with self._turn:
            self._listeners = (*self._listeners, listener)

        def undo() -> None:
            with self._turn:
                self._listeners = tuple(one for one in self._listeners if one is not listener)

        return undo

    def close(self) -> None:
        """Write down what waits and let go of the file; closing twice is harmless."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=_CLOSE_TIMEOUT_S)
        self._writer.join(timeout=_CLOSE_TIMEOUT_S)
        if self._writer.is_alive():
            log.error("the ledger did not close: its disk does not answer", path=str(self._path))
            return
        # The reader goes first, so that the last one out is the writing connection.
        self._reader.close()
        self._db.close()
        os.close(self._lock)

    def _open_books(self) -> None:
        try:
            self._epoch = read_epoch(self._db)
            self._tally = walk(self._db, self._epoch, budgets=self._budgets)
            self._receipt_seq = read_cursor(self._db, BILLING)[0]
        except sqlite3.Error as error:
            raise in_words(self._path, error) from error
        self._reader = LedgerReader(self._path)
        left_open = [_left_open(standing) for standing in self._tally.live.values()]
        for start in range(0, len(left_open), _GROUP_MAX):
            jobs = [_Job((fact,), Future()) for fact in left_open[start : start + _GROUP_MAX]]
            self._record(jobs)
            try:
                for job in jobs:
                    job.future.result(timeout=0)
            except LedgerUnavailableError:
                self._reader.close()
                raise
        log.info(
            "ledger open",
            epoch=self._epoch,
            entries=self._tally.seq,
            left_open=len(left_open),
            sqlite=sqlite3.sqlite_version,
        )

    def _enqueue(self, job: _Job) -> Future[Any]:
        future = job.future
        with self._turn:
            if self._closed or not self._writer.is_alive():
                future.set_exception(LedgerUnavailableError(f"{self._path}: the ledger is closed"))
                return future
            try:
                self._waiting.put_nowait(job)
            except queue.Full:
                future.set_exception(
                    LedgerUnavailableError(
                        f"{self._path}: {_WAITING_MAX} facts wait for the disk: check the disk"
                    )
                )
        return future

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            jobs, last = [first], False
            # No waiting for company: what comes while the disk is busy is the next group.
            while len(jobs) < _GROUP_MAX:
                try:
                    job = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if job is None:
                    last = True
                    break
                jobs.append(job)
            with self._writing:
                self._record(jobs)
            if last:
                return

    def _record(self, jobs: list[_Job]) -> None:
        """Write a group in one transaction, and end its futures when it is durable."""
        live = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        group = _Group(tally=self._tally, receipt_seq=self._receipt_seq)
        try:
            if self._in_doubt:
                self._clear_doubt()
            try:
                group = self._write(live, strict=False)
            except sqlite3.IntegrityError:
                # Somebody begins an attempt that was made before: find out who.
                self._db.execute("ROLLBACK")
                group = self._write(live, strict=True)
            self._db.execute("COMMIT")
        except (sqlite3.Error, LedgerCorruptError) as error:
            self._fail(live, group, error)
            return
        self._tally, self._receipt_seq = group.tally, group.receipt_seq
        if self._failing:
            self._failing = False
            log.info("the ledger takes entries again", path=str(self._path))
        for job, refusal in group.refused:
            job.future.set_exception(refusal)
        for job, entries in group.taken:
            job.future.set_result(_result(job, entries))
        for listener in self._listeners:
            listener()

    def _write(self, live: list[_Job], *, strict: bool) -> _Group:
        """Put a group before the disk, up to its commit.

        Unless `strict`, what begins an attempt is taken for new, and the table's own rule
        finds out when it is not: looking each up would cost more than all the rest.
        """
        group = _Group(tally=self._tally.copy(), receipt_seq=self._receipt_seq)
        finished: dict[str, Standing] = {}
        self._db.execute("BEGIN IMMEDIATE")
        rows: list[tuple[int, str, str, int, bytes, bytes, bytes]] = []
        for job in live:
            try:
                if isinstance(job.what, Receipt):
                    group.receipt_seq = self._note(job.what, group.tally)
                    group.taken.append((job, []))
                    continue
                # Together or not at all: a copy takes the first ones until the last is in.
                tally = group.tally.copy() if len(job.what) > 1 else group.tally
                known = dict(finished) if len(job.what) > 1 else finished
                entries = [self._add(fact, tally, known, strict=strict) for fact in job.what]
            except (ValueError, TypeError, BudgetExceededError, LedgerCorruptError) as error:
                group.refused.append((job, error))
                continue
            group.tally, finished = tally, known
            group.taken.append((job, entries))
            rows += [
                (
                    entry.seq,
                    entry.kind,
                    subject_of(fact),
                    entry.at_us,
                    entry.body,
                    entry.prev_hash,
                    entry.hash,
                )
                for fact, entry in zip(job.what, entries, strict=True)
            ]
        if rows:
            self._db.executemany(
                "INSERT INTO entry (seq, kind, subject, at_us, body, prev_hash, hash)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            self._db.execute(
                "INSERT INTO head (id, seq, hash) VALUES (1, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, hash = excluded.hash",
                (group.tally.seq, group.tally.hash),
            )
        return group

    def _add(
        self, fact: LedgerFact, tally: Tally, finished: dict[str, Standing], *, strict: bool
    ) -> LedgerEntry:
        at_us = self._now_us()
        begins = isinstance(fact, Reserved | Intent) and not strict

        def find(attempt_id: str) -> Standing | None:
            found = finished.get(attempt_id)
            return found if found or begins else find_standing(self._db, attempt_id)

        step = tally.check(fact, at_us=at_us, find=find)
        entry = chain.make_entry(
            fact, epoch=self._epoch, seq=tally.seq + 1, at_us=at_us, prev_hash=tally.hash
        )
        tally.add(entry.seq, entry.hash, fact, step)
        after = step[1]
        if after is not None and after.state not in LIVE:
            finished[after.attempt.id] = after
        return entry

    def _note(self, receipt: Receipt, tally: Tally) -> int:
        if receipt.epoch != self._epoch:
            raise LedgerCorruptError(
                f"the billing server's receipt is for epoch {receipt.epoch}, not {self._epoch}"
            )
        if not 0 <= receipt.acked_seq <= tally.seq:
            raise LedgerCorruptError(
                f"the billing server has entry {receipt.acked_seq} of this epoch and this ledger"
                f" ends at {tally.seq}: it was restored from a backup or cloned"
            )
        found = self._db.execute(
            "SELECT hash FROM entry WHERE seq = ?", (receipt.acked_seq,)
        ).fetchone()
        digest: bytes = chain.genesis(self._epoch) if found is None else found[0]
        if receipt.acked_seq > 0 and receipt.head_hash != digest.hex():
            raise LedgerCorruptError(
                f"entry {receipt.acked_seq} is another one at the billing server:"
                " the chains have forked"
            )
        self._db.execute(
            "INSERT INTO cursor (reader, seq, hash) VALUES (?, ?, ?)"
            " ON CONFLICT (reader) DO UPDATE SET seq = excluded.seq, hash = excluded.hash",
            (BILLING, receipt.acked_seq, digest),
        )
        if receipt.note is not None and receipt.acked_seq > 0:
            self._db.execute(
                "INSERT OR REPLACE INTO checkpoint (seq, signer, at_us, note)"
                " VALUES (?, 'server', ?, ?)",
                (receipt.acked_seq, self._now_us(), receipt.note),
            )
        return receipt.acked_seq

    def _fail(
        self,
        live: list[_Job],
        group: _Group,
        error: sqlite3.Error | LedgerCorruptError,
    ) -> None:
        """Tell the group that it is not on record, unless the disk says that it is."""
        if not self._failing:
            self._failing = True
            log.error("the ledger takes no entries", path=str(self._path), error=str(error))
        self._in_doubt = True
        on_disk: dict[int, bytes] = {}
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            on_disk = self._read_back()
        except (sqlite3.Error, LedgerCorruptError) as doubt:
            log.warning("the ledger cannot be read back", path=str(self._path), error=str(doubt))
        said = in_words(self._path, error) if isinstance(error, sqlite3.Error) else error
        unavailable = LedgerUnavailableError(str(said))
        written = {id(job): entries for job, entries in group.taken}
        refused = {id(job): refusal for job, refusal in group.refused}
        for job in live:
            entries = written.get(id(job), [])
            if id(job) in refused:
                job.future.set_exception(refused[id(job)])
            elif entries and all(on_disk.get(entry.seq) == entry.hash for entry in entries):
                job.future.set_result(_result(job, entries))
            else:
                job.future.set_exception(unavailable)

    def _clear_doubt(self) -> None:
        """Before anything is added after a failed read-back: what does the disk hold?

        An intent found there was reported as not recorded, so nothing was sent for it.
        """
        known = set(self._tally.live)
        self._read_back()
        unsent = [attempt_id for attempt_id in self._tally.live if attempt_id not in known]
        if unsent:
            reason = "not sent: its intent was first taken as unrecorded"
            self._record(
                [
                    _Job(
                        (NotBilled(attempt_id=attempt_id, reason=reason, http_status=None),),
                        Future(),
                    )
                    for attempt_id in unsent
                ]
            )

    def _read_back(self) -> dict[int, bytes]:
        """Take over what the disk holds beyond what is known here; return its hashes by seq."""
        before = self._tally.seq
        self._tally = walk(self._db, self._epoch, self._tally)
        self._receipt_seq = read_cursor(self._db, BILLING)[0]
        self._in_doubt = False
        rows = self._db.execute("SELECT seq, hash FROM entry WHERE seq > ?", (before,))
        return dict(rows.fetchall())


def _left_open(standing: Standing) -> LedgerFact:
    """Say what became of an attempt that a stop left under way."""
    if standing.state is State.RESERVED or standing.hold is None:
        return NotBilled(
            attempt_id=standing.attempt.id,
            reason="not sent: the node stopped before its intent",
            http_status=None,
        )
    return Indeterminate(
        attempt_id=standing.attempt.id,
        reason="the node stopped before an answer",
        hold=standing.hold,
    )


def _result(job: _Job, entries: list[LedgerEntry]) -> list[LedgerEntry] | LedgerEntry | None:
    if job.several:
        return entries
    return entries[0] if entries else None
