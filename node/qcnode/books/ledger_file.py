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
from typing import TYPE_CHECKING, TypeAlias

from qcnode.books import chain
from qcnode.books.attempts import Standing, advance, subject_of
from qcnode.books.checkpoints import put_note
from qcnode.books.migrate import migrate
from qcnode.books.tally import Tally
from qcnode.errors import (
    LedgerCorruptError,
    LedgerForkedError,
    LedgerUnavailableError,
    QcError,
)
from qcnode.money import EpochOpened, Leased, LedgerEntry, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from qcnode.books.budgets import Budget
    from qcnode.money import LedgerFact, LedgerTotals, Receipt

BILLING = "billing"
VERSION = 2
_APPLICATION_ID = 0x7163_6C31
_PAGE = 1_000
_SMALL_PAGE = 100
SCHEMA = Path(__file__).with_name("ledger.sql")


class LedgerReader:
    """A ledger file as anyone may see it; any thread may ask.

    A file of an earlier version is read from a copy brought to this one, as it was at
    this moment; the file itself stays as it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = threading.Lock()
        with _in_words(path):
            self._db = _connect_reading(path)
            try:
                version = check_kind(self._db, path)
                if version < VERSION:
                    self._db = _copy_migrated(self._db, version)
                self.epoch = read_epoch(self._db)
            except BaseException:
                self._db.close()
                raise

    def read(self, after_seq: int, limit: int) -> list[LedgerEntry]:
        """Return up to `limit` entries beyond `after_seq`, in order."""
        with self._turn, _in_words(self._path):
            return read_entries(self._db, self.epoch, after_seq=after_seq, limit=limit)

    def facts_about(self, subject: str) -> list[LedgerFact]:
        """Return what is on record about an attempt, an escalation or a lease, in order."""
        with self._turn, _in_words(self._path):
            rows = self._db.execute(
                "SELECT seq, body FROM entry WHERE subject = ? ORDER BY seq", (subject,)
            ).fetchall()
        return [chain.read_body(seq, body)[2] for seq, body in rows]

    def receipt_seq(self) -> int:
        """Return how far the billing server has confirmed this epoch."""
        with self._turn, _in_words(self._path):
            return read_cursor(self._db, BILLING)[0]

    def verify(self) -> LedgerTotals:
        """Check every entry and return what they amount to.

        Raises `LedgerCorruptError` naming the first bad entry. A tail cut off with
        care, head and all, is seen only where the billing server has confirmed it.
        """
        return self.tally().totals()

    def tally(self, *, rest: Callable[[int], None] | None = None) -> Tally:
        """Check every entry, as `verify` does, and return their tally.

        `rest` is called after each page with the seq that has been reached.
        """
        with self.moment() as db:
            return walk(db, self.epoch, rest=rest)

    def count_on(self, tally: Tally, *, until: int, rest: Callable[[int], None]) -> Tally:
        """Check the entries beyond `tally` up to one that is known to be there.

        The file is let go of after each of many small pages, where `rest` is called.
        """
        with self._turn, _in_words(self._path):
            return walk(self._db, self.epoch, tally, until=until, rest=rest, page=_SMALL_PAGE)

    @contextlib.contextmanager
    def moment(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for a look at one moment of the file, however long it takes."""
        with self._turn, _in_words(self._path):
            self._db.execute("BEGIN")
            try:
                yield self._db
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


def connect_writing(path: Path) -> sqlite3.Connection:
    """Return the one connection that writes; the file may be new, or no ledger at all."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def create(
    db: sqlite3.Connection, path: Path, *, epoch: str, now_us: int, first: EpochOpened | None = None
) -> None:
    """Make the empty file in `db` a ledger, `first` on record when it goes on from another."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    # One transaction: a kill in between leaves an empty file, which is made anew.
    db.executescript(
        f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION_ID};"
        f" PRAGMA user_version = {VERSION}; {SCHEMA.read_text(encoding='utf-8')}"
    )
    db.execute("INSERT INTO ledger (id, epoch, created_us) VALUES (1, ?, ?)", (epoch, now_us))
    if first is not None:
        entry = chain.make_entry(
            first, epoch=epoch, seq=1, at_us=now_us, prev_hash=chain.genesis(epoch)
        )
        put_entries(db, [(entry, subject_of(first))])
    db.execute("COMMIT")
    sync_directory(path.parent)


def put_entries(db: sqlite3.Connection, entries: Sequence[tuple[LedgerEntry, str]]) -> None:
    """Add entries (at least one), each with its subject, in the transaction that is open."""
    db.executemany(
        "INSERT INTO entry (seq, kind, subject, at_us, body, prev_hash, hash)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (
                entry.seq,
                entry.kind,
                subject,
                entry.at_us,
                entry.body,
                entry.prev_hash,
                entry.hash,
            )
            for entry, subject in entries
        ],
    )
    last = entries[-1][0]
    db.execute(
        "INSERT INTO head (id, seq, hash) VALUES (1, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, hash = excluded.hash",
        (last.seq, last.hash),
    )


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
    rows = db.execute(
        "SELECT seq, kind, at_us, body, prev_hash, hash FROM entry"
        " WHERE seq > ? ORDER BY seq LIMIT ?",
        (after_seq, limit),
    )
    return [
        LedgerEntry(
            epoch=epoch,
            seq=seq,
            kind=kind,
            at_us=at_us,
            body=body,
            prev_hash=prev_hash,
            hash=digest,
        )
        for seq, kind, at_us, body, prev_hash, digest in rows
    ]


def read_cursor(db: sqlite3.Connection, reader: str) -> tuple[int, bytes]:
    """Return how far `reader` has come: the seq of an entry and its hash."""
    row = db.execute("SELECT seq, hash FROM cursor WHERE reader = ?", (reader,)).fetchone()
    return (0, b"") if row is None else (row[0], row[1])


def read_hash(db: sqlite3.Connection, seq: int) -> bytes | None:
    """Return the hash of entry `seq`, or None when there is none."""
    row = db.execute("SELECT hash FROM entry WHERE seq = ?", (seq,)).fetchone()
    return None if row is None else row[0]


def read_head(db: sqlite3.Connection, epoch: str) -> tuple[int, bytes]:
    """Return where the ledger says that it ends: a seq and its hash."""
    row = db.execute("SELECT seq, hash FROM head").fetchone()
    if row is None:
        return 0, chain.genesis(epoch)
    seq, digest = row
    # The table allows nothing else, but a disk that lies may give back anything.
    if not isinstance(seq, int) or not isinstance(digest, bytes):
        raise LedgerCorruptError("the ledger has lost where it ends")
    return seq, digest


def note_receipt(
    db: sqlite3.Connection,
    epoch: str,
    receipt: Receipt,
    *,
    entries: int,
    at_us: int,
    more_is_well: bool = False,
) -> int:
    """Note a receipt, in the transaction that is open, and return how far all is confirmed.

    Raises `LedgerCorruptError` for one that contradicts the `entries` on record. A server
    that has more of them than we do is such a one too, unless `more_is_well`.
    """
    if receipt.epoch != epoch:
        raise LedgerCorruptError(
            f"the billing server's receipt is for epoch {receipt.epoch}, not {epoch}"
        )
    acked = receipt.acked_seq
    if more_is_well:
        acked = min(acked, entries)
    if not 0 <= acked <= entries:
        raise LedgerForkedError(
            f"the billing server has entry {acked} of this epoch and this ledger"
            f" ends at {entries}: it was restored from a backup or cloned"
        )
    digest = (read_hash(db, acked) if acked else None) or chain.genesis(epoch)
    if 0 < acked == receipt.acked_seq and receipt.head_hash != digest.hex():
        raise LedgerForkedError(
            f"entry {acked} is another one at the billing server: the chains have forked"
        )
    db.execute(
        "INSERT INTO cursor (reader, seq, hash) VALUES (?, ?, ?)"
        " ON CONFLICT (reader) DO UPDATE SET seq = excluded.seq, hash = excluded.hash",
        (BILLING, acked, digest),
    )
    if receipt.note is not None and acked > 0:
        put_note(db, "server", receipt.acked_seq, receipt.note, at_us=at_us)
    return acked


def walk(
    db: sqlite3.Connection,
    epoch: str,
    tally: Tally | None = None,
    *,
    budgets: Sequence[Budget] = (),
    until: int | None = None,
    rest: Callable[[int], None] | None = None,
    page: int = _PAGE,
) -> Tally:
    """Check the entries beyond `tally` (or all), and count them into the one returned.

    With `until` it stops there, and does not ask where the ledger ends. Raises
    `LedgerCorruptError` naming the first bad entry.
    """
    tally = Tally.start(chain.genesis(epoch), budgets) if tally is None else tally.copy()
    again = _begun_again(db, tally.seq)
    while rows := db.execute(
        "SELECT seq, kind, subject, at_us, body, prev_hash, hash"
        " FROM entry WHERE seq > ? ORDER BY seq LIMIT ?",
        (tally.seq, page if until is None else min(page, until - tally.seq)),
    ).fetchall():
        # Checked one at a time, so that what is counted before a bad entry is sound.
        for row in rows:
            _count(db, tally, row, again)
        if rest is not None:
            rest(tally.seq)
    confirmed, digest = read_cursor(db, BILLING)
    if 0 < confirmed <= tally.seq and read_hash(db, confirmed) != digest:
        raise LedgerCorruptError(
            f"entry {confirmed} is another one than the billing server has confirmed"
        )
    if until is not None:
        if tally.seq < until:
            raise LedgerCorruptError(
                f"entry {tally.seq + 1} is missing: the entries went up to {until}"
            )
        return tally
    head, digest = read_head(db, epoch)
    last = max(head, confirmed)
    if tally.seq < last:
        raise LedgerCorruptError(f"entry {tally.seq + 1} is missing: the entries went up to {last}")
    if tally.seq > head or (tally.seq and tally.hash != digest):
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


_BEGINNINGS = frozenset({"reserved", "intent"})
_Row: TypeAlias = tuple[int, str, str, int, bytes, bytes, bytes]


def _count(db: sqlite3.Connection, tally: Tally, row: _Row, again: int) -> None:
    seq, kind, subject, at_us, body, prev_hash, digest = row
    if (
        seq != tally.seq + 1
        or prev_hash != tally.hash
        or digest != chain.entry_hash(seq, body, prev_hash)
    ):
        raise LedgerCorruptError(_what_is_wrong(tally, row))
    said, said_at_us, fact = chain.read_body(seq, body, kind)
    if said != kind or said_at_us != at_us:
        raise LedgerCorruptError(f"entry {seq}: kind or time differ from its body")
    if subject != subject_of(fact):
        raise LedgerCorruptError(f"entry {seq}: its subject differs from its body")
    begins = kind in _BEGINNINGS and seq != again

    def find(attempt_id: str) -> Standing | None:
        return None if begins else find_standing(db, attempt_id, before_seq=seq)

    try:
        step = tally.follow(fact, at_us=at_us, find=find)
    except ValueError as error:
        raise LedgerCorruptError(f"entry {seq}: {error}") from error
    tally.add(seq, digest, fact, step)


def _what_is_wrong(tally: Tally, row: _Row) -> str:
    seq, kind, _subject, at_us, body, prev_hash, digest = row
    entry = LedgerEntry(
        epoch="", seq=seq, kind=kind, at_us=at_us, body=body, prev_hash=prev_hash, hash=digest
    )
    try:
        chain.check_link(entry, epoch="", seq=tally.seq + 1, prev_hash=tally.hash)
    except LedgerCorruptError as error:
        return str(error)
    return f"entry {seq} is bad"


def _begun_again(db: sqlite3.Connection, after_seq: int) -> int:
    """Return the first entry beyond `after_seq` that begins an attempt which was begun before.

    To ask for all at once costs a tenth of looking each up. What the columns say that are
    asked here is checked against the body when its entry comes.
    """
    row = db.execute(
        "SELECT seq FROM entry AS one WHERE seq > ? AND kind IN ('reserved', 'intent')"
        " AND EXISTS (SELECT 1 FROM entry AS other"
        " WHERE other.subject = one.subject AND other.seq < one.seq"
        " AND other.kind NOT IN ('outcome', 'leased', 'epoch_opened')"
        " AND NOT (one.kind = 'intent' AND other.kind = 'reserved'))"
        " ORDER BY seq LIMIT 1",
        (after_seq,),
    ).fetchone()
    return 0 if row is None else int(row[0])


def make_durable(db: sqlite3.Connection, path: Path) -> None:
    """See that what is committed to `db` outlasts a power cut."""
    if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise LedgerUnavailableError(
            f"{path}: this file system cannot keep a write-ahead log: put the home on a local disk"
        )
    # NORMAL would lose acknowledged commits at a power cut.
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA trusted_schema = OFF")


def is_empty(db: sqlite3.Connection) -> bool:
    """Say whether nothing has been made in this file yet."""
    return db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None


def check_kind(db: sqlite3.Connection, path: Path) -> int:
    """Return the version of the ledger in `db`; raises `LedgerUnavailableError` for others."""
    if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
        raise LedgerUnavailableError(f"{path}: this is no ledger: name the node's ledger.db")
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise LedgerUnavailableError(
            f"{path}: written by a newer qcnode (ledger version {version}, this one knows"
            f" {VERSION}): install the newer one"
        )
    return version


def _copy_migrated(db: sqlite3.Connection, version: int) -> sqlite3.Connection:
    copy = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    try:
        db.backup(copy)
        migrate(copy, version=version, to=VERSION)
    except BaseException:
        copy.close()
        raise
    db.close()
    return copy


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


def sync_directory(directory: Path) -> None:
    """See that names made or changed in `directory` outlast a power cut."""
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
