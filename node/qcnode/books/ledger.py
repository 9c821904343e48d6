"""Everything that was spent here, in order, in one file that only grows.

Entries are added, never changed; a wrong one is put right by another. A fact is on
record when its future ends, not before: the commit has reached the disk. One thread
owns the one connection that writes and gives every fact its seq, so budgets hold and
no number is skipped or used twice. Anyone may submit and read, from any thread.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from qcnode.books import chain
from qcnode.books.attempts import LIVE, State, subject_of
from qcnode.books.budgets import Budget, in_force
from qcnode.books.checkpoints import check_notes, read_notes, sign_checkpoint
from qcnode.books.keeper import Keeper
from qcnode.books.ledger_file import (
    BILLING,
    LedgerReader,
    find_standing,
    in_words,
    note_receipt,
    read_cursor,
    walk,
)
from qcnode.errors import (
    BudgetExceededError,
    LedgerCorruptError,
    LedgerForkedError,
    LedgerUnavailableError,
)
from qcnode.money import Indeterminate, Intent, LedgerEntry, NotBilled, Receipt, Reserved

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qcnode.books.attempts import Standing
    from qcnode.books.budgets import Meter, Span
    from qcnode.books.mark import FileId
    from qcnode.books.seals import SigningKey
    from qcnode.books.tally import Tally
    from qcnode.health import HealthBoard
    from qcnode.money import Leased, LedgerFact, LedgerTotals

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
    held: int
    """What of it is held: open, indeterminate or unpriced, at its worst case."""
    calls: int
    """For how many requests."""
    at_us: int
    """The instant of this look."""
    lent: bool = True
    """Whether there is a limit at all: of a shared budget only with a lease in force."""

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

    Opening checks the chain and writes down every attempt that a stop left open as
    indeterminate. Without a budget nothing is limited. `key`, whose name is TENANT/NODE,
    signs checkpoints of what is on record, and a snapshot that spares the next opening
    from counting it all again: `prove` then does so behind it. With `identify` a file
    that was copied or restored is put away at opening, and a new epoch begins. Of the
    disk `ballast_bytes` are held, so that what was sent is recorded even on a full one.
    """

    def __init__(
        self,
        path: Path,
        *,
        now_us: Callable[[], int],
        new_epoch: Callable[[], str],
        budgets: Sequence[Budget] = (),
        key: SigningKey | None = None,
        identify: Callable[[Path], FileId] | None = None,
        ballast_bytes: int = 0,
        checkpoint_s: float = 60.0,
        health: HealthBoard | None = None,
    ) -> None:
        self._path = path
        self._now_us = now_us
        self._key = key
        self._budgets = tuple(budgets)
        self._waiting: queue.Queue[_Job | None] = queue.Queue(_WAITING_MAX)
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._turn = threading.Lock()  # Guards _closed and _listeners, held for no I/O.
        self._writing = threading.Lock()  # Held by whoever is on the connection that writes.
        self._closed = False
        self._closing = threading.Event()
        self._in_doubt = False
        self._failing = False
        self._keeper = Keeper(
            path,
            now_us=now_us,
            new_epoch=new_epoch,
            budgets=self._budgets,
            key=key,
            identify=identify,
            ballast_bytes=ballast_bytes,
            checkpoint_s=checkpoint_s,
            health=health,
        )
        try:
            self._db = self._keeper.db
            self._open_books()
        except BaseException:
            self._keeper.close()
            raise
        self._writer = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._writer.start()

    @property
    def epoch(self) -> str:
        """The identity of this ledger file: seq starts at 1 in each epoch."""
        return self._epoch

    @property
    def taken_on_trust(self) -> int:
        """How many entries opening did not count again, but took from the node's snapshot."""
        return self._keeper.trusted_seq

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

    def facts_about(self, subject: str) -> list[LedgerFact]:
        """Return what is on record about an attempt, an escalation or a lease, in order."""
        return self._reader.facts_about(subject)

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
            _state(meter.copy(), tally.leases.get(meter.budget.name), at_us)
            for meter in tally.meters
        )

    def last_seq(self) -> int:
        """Return the seq of the last entry; 0 when there is none."""
        return self._tally.seq

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

    def checkpoint_note(self, seq: int, digest: bytes) -> str | None:
        """Return the node's signed note that entry `seq` has this hash; None without a key."""
        return None if self._key is None else sign_checkpoint(self._key, self._epoch, seq, digest)

    def verify(self) -> int:
        """Check every entry and return their number.

        Raises `LedgerCorruptError` naming the first bad entry.
        """
        reader = LedgerReader(self._path)
        try:
            return reader.verify().entries
        finally:
            reader.close()

    def prove(self, *, rest_s: float = 0.0) -> int:
        """Check every entry from the first, and what opening took on trust; return how many.

        Between small pages it rests for `rest_s`, so that nobody waits for it. What it
        finds raises `LedgerCorruptError`, and nothing new is taken from then on. Closing
        the ledger ends it with `LedgerUnavailableError`.
        """

        def rest(_seq: int) -> None:
            if self._closing.wait(rest_s):
                raise LedgerUnavailableError(f"{self._path}: closed while it was being proven")

        keeper, until = self._keeper, self._tally.seq
        reader = LedgerReader(self._path)
        try:
            tally = reader.count_on(keeper.fresh_tally(), until=keeper.trusted_seq, rest=rest)
            keeper.check_snapshot(tally)
            tally = reader.count_on(tally, until=until, rest=rest)
            with reader.moment() as db:
                notes = read_notes(db, until=until)
                check_notes(db, self._epoch, notes, entries=until, keys={})
        except LedgerCorruptError as error:
            keeper.stop_spending(str(error))
            raise
        finally:
            reader.close()
        keeper.proven(f"{until} entries verified")
        return until

    def forked(self, words: str) -> None:
        """Take note that somebody else writes this epoch too, as the billing server found.

        Nothing new is taken from then on, and the next opening begins a new epoch.
        """
        with self._writing:
            self._keeper.begin_anew_next_time(words)

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
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=_CLOSE_TIMEOUT_S)
        self._writer.join(timeout=_CLOSE_TIMEOUT_S)
        if self._writer.is_alive():
            log.error("the ledger did not close: its disk does not answer", path=str(self._path))
            return
        with self._writing:
            self._vouch()
        # The reader goes first, so that the last one out is the writing connection.
        self._reader.close()
        self._keeper.close()

    def _open_books(self) -> None:
        keeper = self._keeper
        self._epoch, self._tally = keeper.epoch, keeper.tally
        self._receipt_seq = keeper.receipt_seq
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
            taken_on_trust=keeper.trusted_seq,
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
        while True:
            try:
                wait_s = self._keeper.checkpoint_s if self._keeper.unsigned else None
                first = self._waiting.get(timeout=wait_s)
            except queue.Empty:
                with self._writing:
                    self._vouch()
                continue
            if first is None:
                return
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
        for held in (True, False):
            try:
                group = self._lay_down(live)
                self._db.execute("COMMIT")
                break
            except (sqlite3.Error, LedgerCorruptError) as error:
                if not (held and self._has_room_now(error)):
                    self._fail(live, group, error)
                    return
        self._tally, self._receipt_seq = group.tally, group.receipt_seq
        self._keeper.committed(group.tally)
        if self._failing:
            self._failing = False
            log.info("the ledger takes entries again", path=str(self._path))
        for job, refusal in group.refused:
            job.future.set_exception(refusal)
        for job, entries in group.taken:
            job.future.set_result(_result(job, entries))
        for listener in self._listeners:
            listener()

    def _lay_down(self, live: list[_Job]) -> _Group:
        """Put a group before the disk, once what the disk holds is known."""
        if self._in_doubt:
            self._clear_doubt()
        try:
            return self._write(live, strict=False)
        except sqlite3.IntegrityError:
            # Somebody begins an attempt that was made before: find out who.
            self._roll_back()
            return self._write(live, strict=True)

    def _has_room_now(self, error: sqlite3.Error | LedgerCorruptError) -> bool:
        """Say whether it is worth trying again, in the room that was held for this."""
        if not isinstance(error, sqlite3.Error) or not self._keeper.make_room(error):
            return False
        try:
            self._roll_back()
        except sqlite3.Error:
            return False
        return True

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
                self._want_welcome(job.what)
                # Together or not at all: a copy takes the first ones until the last is in.
                tally = group.tally.copy() if len(job.what) > 1 else group.tally
                known = dict(finished) if len(job.what) > 1 else finished
                entries = [self._add(fact, tally, known, strict=strict) for fact in job.what]
            except (
                ValueError,
                TypeError,
                BudgetExceededError,
                LedgerCorruptError,
                LedgerUnavailableError,
            ) as error:
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
            self._keeper.vouch(self._db, group.tally)
        return group

    def _want_welcome(self, facts: Sequence[LedgerFact]) -> None:
        refusal = self._keeper.refuses(facts)
        if refusal is not None:
            raise LedgerUnavailableError(refusal)

    def _vouch(self) -> None:
        """Sign what is on record. What fails here is made up for with the next entries."""
        if self._in_doubt:
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._keeper.vouch(self._db, self._tally, last=True)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            log.warning("no checkpoint was made", path=str(self._path), error=str(error))
            with contextlib.suppress(sqlite3.Error):
                self._roll_back()
        else:
            self._keeper.committed(self._tally)

    def _roll_back(self) -> None:
        self._keeper.rolled_back()
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

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
        try:
            return note_receipt(
                self._db, self._epoch, receipt, entries=tally.seq, at_us=self._now_us()
            )
        except LedgerForkedError as error:
            self._keeper.begin_anew_next_time(str(error))
            raise

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
            self._roll_back()
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
        self._keeper.committed(self._tally)
        self._in_doubt = False
        rows = self._db.execute("SELECT seq, hash FROM entry WHERE seq > ?", (before,))
        return dict(rows.fetchall())


def _state(meter: Meter, lease: Leased | None, at_us: int) -> BudgetState:
    counted = meter.at(at_us)
    return BudgetState(
        budget=meter.budget,
        span=meter.span(at_us),
        limit=meter.limit_at(at_us, lease),
        used=counted.used,
        held=counted.held,
        calls=counted.calls,
        at_us=at_us,
        lent=not meter.budget.shared or in_force(lease, at_us),
    )


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
