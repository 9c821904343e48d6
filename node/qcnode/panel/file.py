"""The panel's own SQLite file in the node's home: accounts, sessions, alarms, the audit trail.

Nothing of parts or money is kept here. Every change is one transaction under one lock and
is durable when it returns. A disk that hangs makes callers wait, so the panel calls this
from its own threads, never from the loop that serves the screens.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qcnode.errors import PanelUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA_VERSION = 2
BUSY_S = 2.0

_SCHEMA = """
CREATE TABLE account (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    secret_hash TEXT NOT NULL,
    pin INTEGER NOT NULL,
    wrong INTEGER NOT NULL DEFAULT 0,
    locked_until_us INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE session (
    digest TEXT PRIMARY KEY,
    name TEXT NOT NULL REFERENCES account (name) ON DELETE CASCADE,
    opened_us INTEGER NOT NULL,
    seen_us INTEGER NOT NULL
) STRICT;
CREATE TABLE token (
    name TEXT PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    rights TEXT NOT NULL,
    made_us INTEGER NOT NULL
) STRICT;
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    body TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;
CREATE TABLE decision (
    id TEXT PRIMARY KEY,
    escalation_id TEXT NOT NULL,
    body TEXT NOT NULL,
    state TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_pending_decision ON decision (escalation_id) WHERE state = 'pending';
CREATE TABLE alarm (key TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE alarm_event (
    seq INTEGER PRIMARY KEY,
    at_us INTEGER NOT NULL,
    key TEXT NOT NULL,
    what TEXT NOT NULL,
    who TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;
"""
_SECOND = "CREATE TABLE kept (name TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;"
"""Single things that people set, each by its name."""


class PanelFile:
    """One open file; any thread may use it, one at a time.

    Nobody but the node's user may read it. Without a path everything is in memory, and
    gone with the process.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            if path is not None:
                path.touch(mode=0o600)
            self._db = sqlite3.connect(
                path or ":memory:", timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise PanelUnavailableError(
                f"{path}: the panel's file cannot be opened ({error}); move it away to begin anew"
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Have everything done in this block become durable together, or none of it."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise PanelUnavailableError(
                    f"{self._path}: nothing can be kept just now: {error}"
                ) from error

    def close(self) -> None:
        """Let go of the file; closing twice is harmless."""
        with self._lock:
            self._db.close()

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise PanelUnavailableError(
                f"{self._path}: written by a newer qcnode (version {version}): use that one"
            )
        for step, statements in enumerate((_SCHEMA, _SECOND), start=1):
            if version < step:
                self._db.executescript(f"BEGIN; {statements} PRAGMA user_version = {step}; COMMIT;")
