"""Looks after the ledger's file: whose it is, who vouches for it, and the room it needs.

Opening finds out whether this is the file that was written here last. One that was
copied, restored or put back is put away, and a new epoch goes on from where it ended:
two ledgers of one identity would bill twice or not at all. While the ledger is written,
the node's checkpoints and the snapshot are made in the same commits as the entries, and
when the disk is full the room that was held for the last words is given up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from typing import TYPE_CHECKING, Final

import structlog

from qcnode.books import chain
from qcnode.books.archive import archive_path, carry_over
from qcnode.books.ballast import Ballast
from qcnode.books.checkpoints import last_note, put_note, sign_checkpoint
from qcnode.books.ledger_file import (
    BILLING,
    VERSION,
    check_kind,
    connect_writing,
    create,
    in_words,
    is_empty,
    lock_for_writing,
    make_durable,
    read_cursor,
    read_epoch,
    read_hash,
    read_head,
    sync_directory,
    walk,
)
from qcnode.books.mark import FileId, Found, Mark, MarkFile, judge, mark_path
from qcnode.books.migrate import migrate
from qcnode.books.place import check_place
from qcnode.books.snapshot import encode_tally, find_snapshot, put_snapshot
from qcnode.books.tally import Tally
from qcnode.errors import LedgerCorruptError, LedgerUnavailableError
from qcnode.money import EpochOpened, Indeterminate, NotBilled, Settled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qcnode.books.budgets import Budget, Meter
    from qcnode.books.seals import SigningKey
    from qcnode.books.snapshot import Basis
    from qcnode.health import HealthBoard
    from qcnode.money import LedgerFact

log = structlog.get_logger()

CHECKPOINT_ENTRIES: Final = 1_000
SNAPSHOT_ENTRIES: Final = 10_000
"""A snapshot costs more than a checkpoint, and this many entries are counted in a moment."""
EPOCH: Final = "epoch"
PROOF: Final = "proof"
SPACE: Final = "space"
"""What this reports to the board as."""
_ALARM_US: Final = 7 * 86_400_000_000
_LAST_WORDS: Final = (Settled, NotBilled, Indeterminate)
_MARKED_SINCE: Final = 2
"""The version of the ledger since which each has its mark."""
_MOVE_TIMEOUT_S: Final = 5
_PRIMARY: Final = 0xFF
_FULL_BYTES: Final = 128 * 1024
_NO_ROOM: Final = "the disk is full: only what was sent is still recorded; free space"


class Keeper:
    """One ledger file, open for writing; the thread that writes it calls all of this.

    `identify` tells files apart; without it nobody looks whether this is a copy. Without
    `ballast_bytes` no room is held.
    """

    def __init__(
        self,
        path: Path,
        *,
        now_us: Callable[[], int],
        new_epoch: Callable[[], str],
        budgets: Sequence[Budget],
        key: SigningKey | None,
        identify: Callable[[Path], FileId] | None,
        ballast_bytes: int,
        checkpoint_s: float,
        health: HealthBoard | None,
    ) -> None:
        self._path = path
        self._now_us = now_us
        self._new_epoch = new_epoch
        self._budgets = tuple(budgets)
        self._key = key
        self._place = check_place(path.resolve().parent)
        self._identify = identify
        self._mark = MarkFile(mark_path(path))
        self._ballast = Ballast(path.with_name(path.name + ".ballast"), size=ballast_bytes)
        self._needs_ballast = ballast_bytes > 0
        self._checkpoint_us = round(checkpoint_s * 1e6)
        self._health = health
        self._seq, self._hash = 0, b""
        self._noted = self._noting = (0, 0)
        """The seq and the time of the node's last checkpoint, durable and in the making."""
        self._kept = self._keeping = 0
        """The seq of the snapshot, durable and in the making."""
        self._stopped: str | None = None
        self._forked: str | None = None
        self._tight = False
        self.began: str | None = None
        """Why a new epoch began at this opening, if one did."""
        self._lock = lock_for_writing(path)
        try:
            self._hold_room()
            self._open_with_room()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def checkpoint_s(self) -> float:
        """How long entries may be without a checkpoint."""
        return self._checkpoint_us / 1e6

    @property
    def unsigned(self) -> bool:
        """Whether there are entries that the node has not vouched for, and a key to do so."""
        return self._key is not None and self._seq > self._noted[0]

    def refuses(self, facts: Sequence[LedgerFact]) -> str | None:
        """Say why `facts` may not go on record just now; None when they may.

        The last words on what was sent are always taken.
        """
        if all(isinstance(fact, _LAST_WORDS) for fact in facts):
            return None
        if self._stopped is not None:
            return self._stopped
        if self._tight and not self._take_room():
            return f"{self._path}: {_NO_ROOM}"
        return None

    def make_room(self, error: sqlite3.Error) -> bool:
        """Give up the room that is held, when that may mend `error`; say whether it was."""
        return _is_full(error, self._path.parent) and self._give_up_room()

    def vouch(self, db: sqlite3.Connection, tally: Tally, *, last: bool = False) -> None:
        """Put what is due by now beside the entries, in the transaction that is open.

        `last` makes it all due, as before closing.
        """
        if self._key is None or tally.seq == 0:
            return
        at_us = self._now_us()
        seq, then_us = self._noted
        news = tally.seq - seq
        # A clock that was set back makes it due as well.
        if news >= CHECKPOINT_ENTRIES or (
            news and (last or not 0 <= at_us - then_us < self._checkpoint_us)
        ):
            note = sign_checkpoint(self._key, self.epoch, tally.seq, tally.hash)
            put_note(db, "node", tally.seq, note, at_us=at_us)
            self._noting = (tally.seq, at_us)
        if tally.seq - self._kept >= (1 if last else SNAPSHOT_ENTRIES):
            put_snapshot(db, tally, self._basis, key=self._key, epoch=self.epoch)
            self._keeping = tally.seq

    def committed(self, tally: Tally) -> None:
        """Take note that everything up to `tally` is durable."""
        if tally.seq != self._seq:
            self._mark.move(self.epoch, tally.seq, tally.hash)
        self._seq, self._hash = tally.seq, tally.hash
        self._noted, self._kept = self._noting, self._keeping

    def rolled_back(self) -> None:
        """Take note that what was vouched for since the last commit is not on record."""
        self._noting, self._keeping = self._noted, self._kept

    def stop_spending(self, words: str) -> None:
        """Take nothing new from now on, because the books cannot be trusted with it."""
        if self._stopped is None:
            log.error("the ledger takes nothing new", path=str(self._path), why=words)
        self._stopped = words
        self._report(PROOF, ok=False, words=words)

    def begin_anew_next_time(self, words: str) -> None:
        """Take nothing new from now on, and see that the next opening begins a new epoch."""
        if self._forked == words:
            return
        self._forked = words
        self._stopped = f"{words}: restart the node, it then goes on in a new epoch"
        log.error("the ledger is not the only one of its epoch", why=words)
        self._report(EPOCH, ok=False, words=self._stopped)
        if self._identify is None:
            return
        # Where the file is was settled at opening; where it ends moves on by itself.
        mark = Mark(epoch=self.epoch, file=self._file, seq=self._seq, hash=self._hash, reason=words)
        try:
            self._mark.write(mark)
        except OSError as error:
            # The server says it again after the next opening.
            log.warning("the mark was not made", path=str(self._path), error=error.strerror)

    def check_snapshot(self, tally: Tally) -> None:
        """See that what opening took on trust is what the entries came to up to there.

        Raises `LedgerCorruptError`.
        """
        if self._trusted is not None and encode_tally(tally, self._basis) != self._trusted:
            raise LedgerCorruptError(
                f"the snapshot at entry {tally.seq} is not what the entries come to:"
                " budgets and sums were wrong since the start"
            )

    def proven(self, words: str) -> None:
        """Report that the whole chain is sound."""
        self._report(PROOF, ok=True, words=words)

    def fresh_tally(self) -> Tally:
        """Return what counting begins with: what earlier epochs spent in running windows."""
        meters, _basis = self._carried()
        tally = Tally.start(chain.genesis(self.epoch), self._budgets)
        tally.meters = meters
        return tally

    def close(self) -> None:
        """Let go of everything; closing twice is harmless."""
        if self._lock >= 0:
            self._mark.close()
            self.db.close()
            os.close(self._lock)
            self._lock = -1

    # -- opening -------------------------------------------------------------------------

    def _open_with_room(self) -> None:
        """Open; on a full disk, in the room that was held for this."""
        for held in (True, False):
            try:
                self._open()
            except sqlite3.Error as error:
                if not (held and self.make_room(error)):
                    raise in_words(self._path, error) from error
            except OSError as error:
                if not (held and error.errno == errno.ENOSPC and self._give_up_room()):
                    raise LedgerUnavailableError(
                        f"{self._path.parent}: the ledger cannot be kept here ({error.strerror}):"
                        " free space, or mend the disk"
                    ) from error
            else:
                return

    def _open(self) -> None:
        mark = self._mark.read() if self._identify is not None else None
        if not self._path.exists():
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # Before SQLite opens it: to look later would drop SQLite's locks.
        file = self._find_id()
        self.db = connect_writing(self._path)
        try:
            if is_empty(self.db):
                self._begin(mark)
            elif (reason := self._foreign(mark, file)) is not None:
                file = self._put_away(file, reason)
            make_durable(self.db, self._path)
            self._count()
            if self._identify is not None:
                self._mark.write(Mark(epoch=self.epoch, file=file, seq=self._seq, hash=self._hash))
            self._say_how_it_is()
        except BaseException:
            self._mark.close()
            self.db.close()
            raise
        self._file = file

    def _find_id(self) -> FileId:
        if self._identify is None or not self._place.keeps_inodes:
            return FileId(inode=None, generation=None)
        return self._identify(self._path)

    def _foreign(self, mark: Mark | None, file: FileId) -> str | None:
        """Bring the file to this version, and say why it must not be gone on with."""
        version, epoch = check_kind(self.db, self._path), read_epoch(self.db)
        seq, digest = read_head(self.db, epoch)
        if version < VERSION:
            if version < _MARKED_SINCE and mark is None and self._identify is not None:
                # The mark first: a file of this version without one was copied.
                mark = Mark(epoch=epoch, file=file, seq=seq, hash=digest)
                self._mark.write(mark)
            migrate(self.db, version=version, to=VERSION)
            log.info("ledger migrated", path=str(self._path), before=version, now=VERSION)
        if self._identify is None:
            return None
        first = self.db.execute(
            "SELECT subject FROM entry WHERE seq = 1 AND kind = 'epoch_opened'"
        ).fetchone()
        return judge(
            mark,
            Found(
                epoch=epoch,
                file=file,
                seq=seq,
                hash_at_mark=None if mark is None else read_hash(self.db, mark.seq),
                opened_from=None if first is None else first[0],
            ),
        )

    def _put_away(self, file: FileId, reason: str) -> FileId:
        """Keep the ledger that is open under its epoch's name, and begin another."""
        epoch = read_epoch(self.db)
        # Whole and sound, or nothing goes on from it. Without what earlier epochs spent,
        # because they are put away as well and count for themselves.
        tally = walk(self.db, epoch, budgets=self._budgets)
        if self._key is not None and tally.seq:
            self.db.execute("BEGIN IMMEDIATE")
            put_snapshot(self.db, tally, (), key=self._key, epoch=epoch)
            self.db.execute("COMMIT")
        # The mark first: whatever happens from here on, the next opening goes on with this.
        mark = Mark(epoch=epoch, file=file, seq=tally.seq, hash=tally.hash, reason=reason)
        self._mark.write(mark)
        self._make_plain(reason)
        self.db.close()
        target = archive_path(self._path, epoch)
        self._path.rename(target)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_directory(self._path.parent)
        log.warning("a ledger was put away", epoch=epoch, file=target.name, why=reason)
        file = self._find_id()
        self.db = connect_writing(self._path)
        self._begin(mark)
        return file

    def _make_plain(self, reason: str) -> None:
        """Make it one file that nobody else has open: no log of it must be left behind."""
        self.db.execute(f"PRAGMA busy_timeout = {_MOVE_TIMEOUT_S * 1000}")
        try:
            plain = self.db.execute("PRAGMA journal_mode = DELETE").fetchone()[0] == "delete"
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & _PRIMARY != sqlite3.SQLITE_BUSY:
                raise
            plain = False
        if not plain:
            raise LedgerUnavailableError(
                f"{self._path}: must be put away ({reason}), and another process reads it:"
                " stop that one"
            )

    def _begin(self, mark: Mark | None) -> None:
        """Make a new ledger, going on from the one that `mark` names if it names one."""
        epoch = self._new_epoch()
        first = None
        if mark is not None and (mark.seq or mark.reason is not None):
            self.began = mark.reason or "the ledger of the epoch before is gone"
            first = EpochOpened(
                previous_epoch=mark.epoch,
                previous_seq=mark.seq,
                previous_hash=mark.hash.hex(),
                reason=self.began,
            )
            log.warning("a new epoch begins", epoch=epoch, before=mark.epoch, why=self.began)
        create(self.db, self._path, epoch=epoch, now_us=self._now_us(), first=first)

    def _count(self) -> None:
        """Find out what the entries come to: all of them, or those beyond the snapshot."""
        db = self.db
        self.epoch = read_epoch(db)
        meters, self._basis = self._carried()
        kept = None
        if self._key is not None:
            kept = find_snapshot(
                db,
                key=self._key.public,
                epoch=self.epoch,
                budgets=self._budgets,
                basis=self._basis,
            )
        self.trusted_seq = 0 if kept is None else kept.seq
        self._trusted = None if kept is None else encode_tally(kept, self._basis)
        if kept is None:
            kept = Tally.start(chain.genesis(self.epoch), self._budgets)
            kept.meters = meters
        self.tally = walk(db, self.epoch, kept)
        self.receipt_seq = read_cursor(db, BILLING)[0]
        self._seq, self._hash = self.tally.seq, self.tally.hash
        self._kept = self._keeping = self.trusted_seq
        seq, at_us = last_note(db, "node")
        if seq > self._seq:
            raise LedgerCorruptError(
                f"entry {self._seq + 1} is missing: the node has vouched for {seq}"
            )
        self._noted = self._noting = (seq, at_us)

    def _carried(self) -> tuple[list[Meter], list[Basis]]:
        return carry_over(
            self._path.parent,
            self._budgets,
            epoch=self.epoch,
            key=None if self._key is None else self._key.public,
        )

    # -- how it is -----------------------------------------------------------------------

    def _hold_room(self) -> None:
        if self._needs_ballast and not self._ballast.hold():
            self._tight = True

    def _give_up_room(self) -> bool:
        if not self._needs_ballast:
            return False
        self._tight = True
        self._report(SPACE, ok=False, words=_NO_ROOM)
        return self._ballast.release()

    def _take_room(self) -> bool:
        """Hold the room again, if the disk has it now."""
        if not self._ballast.hold():
            return False
        self._tight = False
        log.info("the disk has room again", path=str(self._path))
        self._report(SPACE, ok=True, words="room is held for the last words")
        return True

    def _say_how_it_is(self) -> None:
        if self._tight:
            self._report(SPACE, ok=False, words=_NO_ROOM)
        why = self.began or self._began_lately()
        if why is not None:
            self._report(
                EPOCH, ok=False, words=f"a new epoch of the ledger began, {self.epoch[:8]}: {why}"
            )

    def _began_lately(self) -> str | None:
        """Say why this epoch began, until the billing server knows, or a week has passed."""
        row = self.db.execute(
            "SELECT body FROM entry WHERE seq = 1 AND kind = 'epoch_opened'"
        ).fetchone()
        if row is None or self.receipt_seq > 0:
            return None
        _kind, at_us, fact = chain.read_body(1, row[0])
        lately = self._now_us() - at_us < _ALARM_US
        return fact.reason if lately and isinstance(fact, EpochOpened) else None

    def _report(self, component: str, *, ok: bool, words: str) -> None:
        if self._health is not None:
            self._health.report(component, ok=ok, words=words)


def _is_full(error: sqlite3.Error, folder: Path) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_FULL:
        return True
    if code & _PRIMARY != sqlite3.SQLITE_IOERR:
        return False
    with contextlib.suppress(OSError):  # Where the index of the log cannot grow, it says so.
        free = os.statvfs(folder)
        return free.f_bavail * free.f_frsize < _FULL_BYTES
    return False
