"""Copies of a ledger that can be relied on, and back into a home again.

A backup is taken from a ledger that a node may be writing, shows one moment of it, and is
checked entry by entry before it gets its name. What is restored goes on in a new epoch,
because nobody can know here what was spent after the backup was taken.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qcnode.books.ledger_file import (
    LedgerReader,
    in_words,
    lock_for_writing,
    read_head,
    sync_directory,
)
from qcnode.books.mark import FileId, Mark, MarkFile, mark_path
from qcnode.books.place import check_place
from qcnode.errors import LedgerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from qcnode.books.tally import Tally

_PAGES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A ledger that was copied and checked."""

    epoch: str
    tally: Tally


def back_up(
    source: Path,
    out: Path,
    *,
    copied: Callable[[int, int], None] | None = None,
    checked: Callable[[int], None] | None = None,
) -> Copied:
    """Copy the ledger at `source`, which may be written meanwhile, to the new file `out`.

    `copied` is told of pages left and in all, `checked` of entries. Raises
    `LedgerCorruptError` for a ledger that is not sound, and leaves nothing then.
    """
    if out.exists():
        raise LedgerUnavailableError(f"{out}: exists already: name another file")
    unfinished = out.with_name(out.name + ".part")
    try:
        with _clean_up(unfinished):
            _copy(source, unfinished, copied)
            found = _check(unfinished, checked)
            _settle(unfinished, out)
    except OSError as error:
        raise LedgerUnavailableError(f"{out}: cannot be written ({error.strerror})") from error
    return found


def restore(
    backup: Path,
    home: Path,
    *,
    identify: Callable[[Path], FileId],
    copied: Callable[[int, int], None] | None = None,
    checked: Callable[[int], None] | None = None,
) -> Copied:
    """Put `backup` into a home that has no ledger; the node begins a new epoch with it.

    What the home knows of the ledger that was lost is said in the new epoch's first
    entry. Raises `LedgerUnavailableError` where a ledger is, or is being written.
    """
    path = home / "ledger.db"
    if path.exists():
        raise LedgerUnavailableError(
            f"{path}: there is a ledger here, which is never written over: move it away first"
        )
    try:
        home.mkdir(parents=True, exist_ok=True)
        check_place(home)
        lock = lock_for_writing(path)
        try:
            unfinished = path.with_name(path.name + ".part")
            with _clean_up(unfinished):
                _copy(backup, unfinished, copied)
                found = _check(unfinished, checked)
                marks = MarkFile(mark_path(path))
                lost, file = marks.read(), identify(unfinished)
                # Killed in between, it is a ledger without its mark: that is noticed too.
                _settle(unfinished, path)
                marks.write(_mark(found, file, lost))
                marks.close()
        finally:
            os.close(lock)
    except OSError as error:
        raise LedgerUnavailableError(f"{home}: cannot be written ({error.strerror})") from error
    return found


def _mark(found: Copied, file: FileId, lost: Mark | None) -> Mark:
    """Say beside the ledger that a new epoch goes on from it, and what was lost."""
    reason = f"restored from a backup that ends at entry {found.tally.seq}"
    if lost is not None and lost.epoch != found.epoch:
        reason += f"; epoch {lost.epoch} was on record up to entry {lost.seq}"
    elif lost is not None and lost.seq > found.tally.seq:
        reason += f"; {lost.seq} were on record"
    return Mark(
        epoch=found.epoch, file=file, seq=found.tally.seq, hash=found.tally.hash, reason=reason
    )


def _copy(source: Path, out: Path, copied: Callable[[int, int], None] | None) -> None:
    def progress(_status: int, left: int, pages: int) -> None:
        if copied is not None:
            copied(left, pages)

    out.touch(mode=0o600)
    reader = LedgerReader(source)
    try:
        with reader.moment() as db, _in_words(out), closing(sqlite3.connect(out)) as copy:
            # The first look fixes the moment: from here on the copy is of one and the same.
            read_head(db, reader.epoch)
            db.backup(copy, pages=_PAGES, progress=progress)
            # One plain file: a log beside it could be left behind.
            copy.execute("PRAGMA journal_mode = DELETE")
    finally:
        reader.close()


def _check(path: Path, checked: Callable[[int], None] | None) -> Copied:
    reader = LedgerReader(path)
    try:
        return Copied(epoch=reader.epoch, tally=reader.tally(rest=checked))
    finally:
        reader.close()


def _settle(unfinished: Path, out: Path) -> None:
    descriptor = os.open(unfinished, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    unfinished.rename(out)
    sync_directory(out.parent)


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise in_words(path, error) from error


@contextlib.contextmanager
def _clean_up(unfinished: Path) -> Iterator[None]:
    unfinished.unlink(missing_ok=True)
    try:
        yield
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)
