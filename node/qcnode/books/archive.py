"""Ledgers put away: those of earlier epochs, kept beside the one that is written now.

Nothing is added to them. What the billing server has not confirmed of them is still sent,
and what was spent in a window that still runs still counts.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
from typing import TYPE_CHECKING, Final

from qcnode.books import chain
from qcnode.books.budgets import Counted, Meter
from qcnode.books.checkpoints import sign_checkpoint
from qcnode.books.ledger_file import (
    BILLING,
    VERSION,
    LedgerReader,
    check_kind,
    connect_writing,
    in_words,
    is_empty,
    lock_for_writing,
    note_receipt,
    read_cursor,
    read_entries,
    read_epoch,
    read_hash,
    read_head,
    walk,
)
from qcnode.books.migrate import migrate
from qcnode.books.snapshot import Basis, find_snapshot
from qcnode.errors import LedgerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from qcnode.books.budgets import Budget
    from qcnode.books.seals import PublicKey, SigningKey
    from qcnode.books.tally import Tally
    from qcnode.money import LedgerEntry, LedgerTotals, Receipt

_FILES: Final = "ledger-*.db"
_SAFE = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")


def archived_ledgers(home: Path) -> list[Path]:
    """Return the ledgers that were put away in a node's home, by name.

    A file counts as one when it is called after the epoch in it: a backup that somebody
    laid down here is none. One that cannot be read is named too, because it may be one.
    """
    return [path for path in sorted(home.glob(_FILES)) if _is_put_away(path)]


def archive_path(path: Path, epoch: str) -> Path:
    """Return where the ledger at `path` is to be put away; nothing is there yet."""
    target, number = path.with_name(_name(epoch)), 1
    while target.exists():
        number += 1
        target = path.with_name(_name(epoch, f".{number}"))
    return target


class ArchivedLedger:
    """A ledger put away, as an outbox needs it: only how far it is confirmed may move.

    Any thread may use it.
    """

    def __init__(
        self, path: Path, *, now_us: Callable[[], int], key: SigningKey | None = None
    ) -> None:
        self._path = path
        self._now_us = now_us
        self._key = key
        self._turn = threading.Lock()
        self._tally: Tally | None = None
        self._lock = lock_for_writing(path)
        try:
            with self._words():
                self._db = connect_writing(path)
                try:
                    version = check_kind(self._db, path)
                    if version < VERSION:
                        migrate(self._db, version=version, to=VERSION)
                    self._db.execute("PRAGMA synchronous = FULL")
                    self._db.execute("PRAGMA trusted_schema = OFF")
                    self._epoch = read_epoch(self._db)
                    self._last_seq = read_head(self._db, self._epoch)[0]
                    self._receipt_seq = read_cursor(self._db, BILLING)[0]
                except BaseException:
                    self._db.close()
                    raise
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def path(self) -> Path:
        """The file it is in."""
        return self._path

    @property
    def epoch(self) -> str:
        """The identity of this ledger file: seq starts at 1 in each epoch."""
        return self._epoch

    def read(self, after_seq: int, limit: int) -> list[LedgerEntry]:
        """Return up to `limit` entries beyond `after_seq`, in order."""
        with self._turn, self._words():
            return read_entries(self._db, self._epoch, after_seq=after_seq, limit=limit)

    def totals(self) -> LedgerTotals:
        """Return the sums over all entries, which are checked at the first call."""
        with self._turn, self._words():
            if self._tally is None:
                self._tally = count_archived(
                    self._db, None if self._key is None else self._key.public, ()
                )
            return self._tally.totals()

    def last_seq(self) -> int:
        """Return the seq of the last entry; 0 when there is none."""
        return self._last_seq

    def receipt_seq(self) -> int:
        """Return how far the billing server has confirmed this epoch."""
        return self._receipt_seq

    def confirm(self, receipt: Receipt) -> None:
        """Note a receipt; one that contradicts the chain raises `LedgerCorruptError`.

        When an older file was put back, the server has these entries and more: it has
        seen their hashes, so a receipt without a problem confirms all of them.
        """
        with self._turn, self._words():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                confirmed = note_receipt(
                    self._db,
                    self._epoch,
                    receipt,
                    entries=self._last_seq,
                    at_us=self._now_us(),
                    more_is_well=receipt.problem is None,
                )
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._receipt_seq = confirmed

    def checkpoint_note(self, seq: int, digest: bytes) -> str | None:
        """Return the node's signed note that entry `seq` has this hash; None without a key."""
        return None if self._key is None else sign_checkpoint(self._key, self._epoch, seq, digest)

    def add_listener(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Take a listener that is never called, for nothing is added here any more."""
        del listener
        return lambda: None

    def close(self) -> None:
        """Let go of the file; closing twice is harmless."""
        with self._turn:
            if self._lock >= 0:
                self._db.close()
                os.close(self._lock)
                self._lock = -1

    @contextlib.contextmanager
    def _words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise in_words(self._path, error) from error


def count_archived(
    db: sqlite3.Connection, key: PublicKey | None, budgets: Sequence[Budget]
) -> Tally:
    """Return what a ledger put away comes to by itself, from its snapshot where that fits."""
    epoch = read_epoch(db)
    kept = (
        None if key is None else find_snapshot(db, key=key, epoch=epoch, budgets=budgets, basis=())
    )
    return walk(db, epoch, kept, budgets=budgets)


def carry_over(
    home: Path, budgets: Sequence[Budget], *, epoch: str, key: PublicKey | None
) -> tuple[list[Meter], list[Basis]]:
    """Return what the ledgers put away in `home` have counted for `budgets`, and which they are.

    `epoch` is the one that is written now, which counts for itself. Leases are not carried
    over: whoever was copied may still be spending them.
    """
    meters = [Meter(budget) for budget in budgets]
    basis: list[Basis] = []
    if not budgets:
        return meters, basis
    # The longest of an epoch first: another file of it may be its beginning.
    readers = sorted(_open_all(home), key=lambda one: -one.entries)
    try:
        counted: list[_Archive] = []
        for one in readers:
            if one.reader.epoch == epoch or any(longer.begins_with(one) for longer in counted):
                continue
            counted.append(one)
            with one.reader.moment() as db:
                _add_all(meters, count_archived(db, key, budgets).meters)
            basis.append(Basis(one.reader.epoch, one.entries, one.hash.hex()))
    finally:
        for one in readers:
            one.reader.close()
    return meters, sorted(basis)


class _Archive:
    """A ledger put away, opened for a look."""

    def __init__(self, reader: LedgerReader) -> None:
        self.reader = reader
        with reader.moment() as db:
            self.entries, self.hash = read_head(db, reader.epoch)

    def begins_with(self, other: _Archive) -> bool:
        """Say whether all that `other` holds is in here as well."""
        if self.reader.epoch != other.reader.epoch:
            return False
        with self.reader.moment() as db:
            return other.entries == 0 or read_hash(db, other.entries) == other.hash


def _name(epoch: str, number: str = "") -> str:
    # The epoch comes from a file that somebody else may have made.
    name = epoch if _SAFE.fullmatch(epoch) else chain.genesis(epoch).hex()[:32]
    return f"ledger-{name}{number}.db"


def _is_put_away(path: Path) -> bool:
    try:
        _roll_back(path)
        reader = LedgerReader(path)
    except LedgerUnavailableError as error:
        return isinstance(error.__cause__, sqlite3.Error)
    reader.close()
    return re.sub(r"\.[0-9]+(?=\.db$)", "", path.name) == _name(reader.epoch)


def _roll_back(path: Path) -> None:
    """Undo what a power cut left of a receipt half noted: who only reads a file cannot."""
    if not path.with_name(f"{path.name}-journal").exists():
        return
    try:
        with contextlib.closing(connect_writing(path)) as db:
            is_empty(db)  # The first look undoes it.
    except sqlite3.Error as error:
        raise in_words(path, error) from error


def _open_all(home: Path) -> list[_Archive]:
    found: list[_Archive] = []
    try:
        for path in archived_ledgers(home):
            found.append(_Archive(LedgerReader(path)))  # noqa: PERF401  # closed when one fails
    except BaseException:
        for one in found:
            one.reader.close()
        raise
    return found


def _add_all(meters: Sequence[Meter], more: Sequence[Meter]) -> None:
    for meter, other in zip(meters, more, strict=True):
        for start, counted in other.windows.items():
            had = meter.windows.get(start, Counted())
            meter.windows[start] = Counted(
                *(mine + theirs for mine, theirs in zip(had, counted, strict=True))
            )
