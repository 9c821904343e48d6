"""What the node was told from outside, and what it answered: one row a command, kept for good.

A command is on record before it is carried out and its answer before it is given, so the
same command again gets the same answer and is not carried out twice, also after a restart.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcnode.errors import JournalUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS command (
    seq INTEGER PRIMARY KEY,
    id TEXT UNIQUE,
    at TEXT NOT NULL,
    name TEXT NOT NULL,
    actor TEXT,
    role TEXT,
    way TEXT NOT NULL,
    body TEXT NOT NULL,
    status TEXT,
    reason TEXT
) STRICT;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRow:
    """A command on record; without a `status` it was not finished."""

    name: str
    actor: str | None
    role: str | None
    body: str
    status: str | None
    reason: str | None


class CommandLog:
    """The file of the commands; any thread may call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise JournalUnavailableError(
                f"{path}: the record of commands cannot be opened: {error}"
            ) from error

    def begin(
        self,
        *,
        command_id: str | None,
        at: str,
        name: str,
        actor: str | None,
        role: str | None,
        way: str,
        body: str,
    ) -> CommandRow | None:
        """Put a command on record, or return the one that has its id already."""
        with self._lock, self._words():
            done = self._db.execute(
                "INSERT INTO command (id, at, name, actor, role, way, body)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                (command_id, at, name, actor, role, way, body),
            )
            if done.rowcount == 1:
                return None
            row = self._db.execute(
                "SELECT name, actor, role, body, status, reason FROM command WHERE id = ?",
                (command_id,),
            ).fetchone()
            return CommandRow(
                name=row[0], actor=row[1], role=row[2], body=row[3], status=row[4], reason=row[5]
            )

    def end(self, command_id: str, *, status: str, reason: str) -> None:
        """Put the answer to a command on record."""
        with self._lock, self._words():
            self._db.execute(
                "UPDATE command SET status = ?, reason = ? WHERE id = ?",
                (status, reason, command_id),
            )

    def refuse(self, *, at: str, name: str, way: str, body: str, status: str, reason: str) -> None:
        """Put something on record that was no command that could be taken."""
        with self._lock, self._words():
            self._db.execute(
                "INSERT INTO command (at, name, way, body, status, reason)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (at, name, way, body, status, reason),
            )

    def all(self) -> list[CommandRow]:
        """Return what is on record, in order."""
        with self._lock, self._words():
            rows = self._db.execute(
                "SELECT name, actor, role, body, status, reason FROM command ORDER BY seq"
            ).fetchall()
        return [
            CommandRow(
                name=row[0], actor=row[1], role=row[2], body=row[3], status=row[4], reason=row[5]
            )
            for row in rows
        ]

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        with self._lock:
            self._db.close()

    def _words(self) -> _Transaction:
        return _Transaction(self._db, self._path)


@dataclass(frozen=True, slots=True)
class _Transaction:
    """A transaction whose errors are ours."""

    db: sqlite3.Connection
    path: Path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            try:
                self.db.commit()
            except sqlite3.Error as fault:
                error = fault
        if isinstance(error, sqlite3.Error):
            raise JournalUnavailableError(
                f"{self.path}: commands cannot be put on record: {error}"
            ) from error
