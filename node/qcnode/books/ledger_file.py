"""The ledger as a file: how it is made, opened, read and checked.

A file is opened for writing by one process at a time, and for reading by anyone at
any moment, also while a node writes to it. Reading changes nothing, not even a
checkpoint: SQLite before 3.51.3 can lose a commit that races a checkpoint from
another connection, so the writing connection makes them all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from qcnode.books import chain
from qcnode.books.attempts import Standing, advance, subject_of
from qcnode.books.tally import Tally
from qcnode.errors import LedgerCorruptError, LedgerUnavailableError, QcError
from qcnode.money import EpochOpened, Leased, LedgerEntry, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from qcnode.books.budgets import Budget
    from qcnode.money import LedgerTotals

BILLING = "billing"
VERSION = 2
_APPLICATION_ID = 0x7163_6C31
_PAGE = 1_000
SCHEMA = Path(__file__).with_name("ledger.sql")


class LedgerReader:
    """A ledger file as anyone may see it; any thread may ask."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = threading.Lock()
        with _in_words(path):
            self._db = _connect_reading(path)
            try:
                _check_kind(self._db, path)
                self.epoch = read_epoch(self._db)
            except BaseException:
                self._db.close()
                raise

    def read(self, after_seq: int, limit: int) -> list[LedgerEntry]:
        """Return up to `limit` entries beyond `after_seq`, in order."""
        with self._turn, _in_words(self._path):
            return read_entries(self._db, self.epoch, after_seq=after_seq, limit=limit)

    def receipt_seq(self) -> int:
        """Return how far the billing server has confirmed this epoch."""
        with self._turn, _in_words(self._path):
            return read_cursor(self._db, BILLING)[0]

    def verify(self) -> LedgerTotals:
        """Check every entry and return what they amount to.

        Raises `LedgerCorruptError` naming the first bad entry. A tail cut off with
        care, head and all, is seen only where the billing server has confirmed it.
        """
        with self._turn, _in_words(self._path):
            self._db.execute("BEGIN")  # One moment of the file, however long this takes.
            try:
                return walk(self._db, self.epoch).totals()
            finally:
                self._db.execute("ROLLBACK")

    def close(self) -> None:
        """Let go of the file; closing twice is harmless."""
        with self._turn:
            self._db.close()


def lock_for_writing(path: Path) -> int:
    """Take the right to write to the ledger at `path`, or raise `LedgerUnavailableError`.

    Returns the descriptor that holds the lock; closing it gives the right back.
    """
    if not path.parent.is_dir():
        raise LedgerUnavailableError(
            f"{path.parent}: no such directory for the ledger: make it, or set another home"
        )
    try:
        descriptor = os.open(
            path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise LedgerUnavailableError(
            f"{path.parent}: the ledger cannot be written here ({error.strerror}):"
            " give this user the directory, or set another home"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise LedgerUnavailableError(
            f"{path}: another process writes this ledger: stop it, or set another home"
        ) from error
    return descriptor


def open_for_writing(
    path: Path, *, now_us: int, new_epoch: Callable[[], str]
) -> sqlite3.Connection:
    """Open the one connection that writes, making the file when there is none."""
    with _in_words(path):
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            if _is_empty(db):
                _create(db, epoch=new_epoch(), now_us=now_us)
                _sync_directory(path.parent)
            else:
                _check_kind(db, path)
            _make_durable(db, path)
        except BaseException:
            db.close()
            raise
        return db


def read_epoch(db: sqlite3.Connection) -> str:
    """Return the identity of this file."""
    row = db.execute("SELECT epoch FROM ledger").fetchone()
    if row is None:
        raise LedgerCorruptError("the ledger has lost its epoch")
    return str(row[0])


def read_entries(
    db: sqlite3.Connection, epoch: str, *, after_seq: int, limit: int
) -> list[LedgerEntry]:
    """Return up to `limit` entries beyond `after_seq`, in order."""
    return [entry for entry, _subject in _rows(db, epoch, after_seq=after_seq, limit=limit)]


def read_cursor(db: sqlite3.Connection, reader: str) -> tuple[int, bytes]:
    """Return how far `reader` has come: the seq of an entry and its hash."""
    row = db.execute("SELECT seq, hash FROM cursor WHERE reader = ?", (reader,)).fetchone()
    return (0, b"") if row is None else (row[0], row[1])


def walk(
    db: sqlite3.Connection,
    epoch: str,
    tally: Tally | None = None,
    *,
    budgets: Sequence[Budget] = (),
) -> Tally:
    """Check the entries beyond `tally` (or all), and count them into the one returned.

    Raises `LedgerCorruptError` naming the first bad entry.
    """
    tally = Tally.start(chain.genesis(epoch), budgets) if tally is None else tally.copy()
    confirmed = read_cursor(db, BILLING)
    after_seq = tally.seq
    while page := _rows(db, epoch, after_seq=after_seq, limit=_PAGE):
        # Checked one at a time, so that what is counted before a bad entry is sound.
        for entry, subject in page:
            _count(db, tally, entry, subject)
            if entry.seq == confirmed[0] and entry.hash != confirmed[1]:
                raise LedgerCorruptError(
                    f"entry {entry.seq} is another one than the billing server has confirmed"
                )
        after_seq = tally.seq
    head = db.execute("SELECT seq, hash FROM head").fetchone() or (0, b"")
    last = max(head[0], confirmed[0])
    if tally.seq < last:
        raise LedgerCorruptError(f"entry {tally.seq + 1} is missing: the entries went up to {last}")
    if tally.seq > head[0] or (tally.seq and tally.hash != head[1]):
        raise LedgerCorruptError(f"entry {tally.seq} is not the one this ledger ended with")
    return tally


def find_standing(
    db: sqlite3.Connection, subject: str, *, before_seq: int = sys.maxsize
) -> Standing | None:
    """Return how the attempt `subject` stands by its entries before `before_seq`."""
    rows = db.execute(
        "SELECT seq, body FROM entry WHERE subject = ? AND seq < ? ORDER BY seq",
        (subject, before_seq),
    )
    standing: Standing | None = None
    for seq, body in rows:
        _kind, at_us, fact = chain.read_body(seq, body)
        if not isinstance(fact, Outcome | Leased | EpochOpened):
            standing = advance(standing, fact, at_us=at_us)
    return standing


def in_words(path: Path, error: sqlite3.Error) -> QcError:
    """Say what SQLite's error means for the ledger."""
    code = getattr(error, "sqlite_errorcode", None)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return LedgerCorruptError(f"{path}: the file is damaged or no ledger ({error})")
    return LedgerUnavailableError(
        f"{path}: the ledger cannot be used ({error}): free space, or mend the disk"
    )


def _rows(
    db: sqlite3.Connection, epoch: str, *, after_seq: int, limit: int
) -> list[tuple[LedgerEntry, str]]:
    rows = db.execute(
        "SELECT seq, kind, at_us, body, prev_hash, hash, subject"
        " FROM entry WHERE seq > ? ORDER BY seq LIMIT ?",
        (after_seq, limit),
    )
    return [
        (
            LedgerEntry(
                epoch=epoch,
                seq=seq,
                kind=kind,
                at_us=at_us,
                body=body,
                prev_hash=prev_hash,
                hash=digest,
            ),
            subject,
        )
        for seq, kind, at_us, body, prev_hash, digest, subject in rows
    ]


def _count(db: sqlite3.Connection, tally: Tally, entry: LedgerEntry, subject: str) -> None:
    chain.check_link(entry, epoch=entry.epoch, seq=tally.seq + 1, prev_hash=tally.hash)
    kind, at_us, fact = chain.read_body(entry.seq, entry.body)
    if (kind, at_us) != (entry.kind, entry.at_us):
        raise LedgerCorruptError(f"entry {entry.seq}: kind or time differ from its body")
    if subject != subject_of(fact):
        raise LedgerCorruptError(f"entry {entry.seq}: its subject differs from its body")
    try:
        step = tally.follow(
            fact,
            at_us=at_us,
            find=lambda attempt_id: find_standing(db, attempt_id, before_seq=entry.seq),
        )
    except ValueError as error:
        raise LedgerCorruptError(f"entry {entry.seq}: {error}") from error
    tally.add(entry.seq, entry.hash, fact, step)


def _make_durable(db: sqlite3.Connection, path: Path) -> None:
    if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise LedgerUnavailableError(
            f"{path}: this file system cannot keep a write-ahead log: put the home on a local disk"
        )
    # NORMAL would lose acknowledged commits at a power cut.
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA trusted_schema = OFF")


def _is_empty(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None


def _create(db: sqlite3.Connection, *, epoch: str, now_us: int) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    # One transaction: a kill in between leaves an empty file, which is made anew.
    db.executescript(
        f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION_ID};"
        f" PRAGMA user_version = {VERSION}; {SCHEMA.read_text(encoding='utf-8')}"
    )
    db.execute("INSERT INTO ledger (id, epoch, created_us) VALUES (1, ?, ?)", (epoch, now_us))
    db.execute("COMMIT")


def _check_kind(db: sqlite3.Connection, path: Path) -> None:
    if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
        raise LedgerUnavailableError(f"{path}: this is no ledger: name the node's ledger.db")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise LedgerUnavailableError(
            f"{path}: written by a newer qcnode (ledger version {version}, this one knows"
            f" {VERSION}): install the newer one"
        )


def _connect_reading(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise LedgerUnavailableError(f"{path}: there is no ledger here: name the node's home")
    uri = path.resolve().as_uri() + "?mode=ro"
    if not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists():
        uri += "&immutable=1"  # On read-only media nobody writes and no index can be made.
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA trusted_schema = OFF")
    return db


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise in_words(path, error) from error
