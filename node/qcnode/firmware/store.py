"""What was put where, by whom, and what stood there before: the history of device configurations.

One SQLite file in the home of whoever pushes. A push is on record before the first byte is
written, with what stood there before, so one that was cut short is seen and can be taken
back. Entries are added, never changed but for `done`. No secret is in it: none is rendered.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from qcnode.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE: Final = "firmware.db"
BUSY_S: Final = 5.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS push (
    revision INTEGER PRIMARY KEY,
    artefact TEXT NOT NULL,
    root TEXT NOT NULL,
    version INTEGER NOT NULL,
    sources TEXT NOT NULL,
    digest TEXT NOT NULL,
    reported TEXT,
    files BLOB NOT NULL,
    before BLOB NOT NULL,
    undoes INTEGER REFERENCES push (revision),
    who TEXT NOT NULL,
    at TEXT NOT NULL,
    done INTEGER NOT NULL DEFAULT 0
) STRICT
"""
_COLUMNS: Final = (
    "revision, artefact, root, version, sources, digest, reported, files, before, undoes, who,"
    " at, done"
)
_Files = dict[str, bytes | None]


class Push(msgspec.Struct, frozen=True, kw_only=True):
    """One change of one artefact below one root; `before` says what stood there, None: nothing.

    `files` are the whole paths with what is to stand there, None: nothing any more.
    """

    revision: int
    artefact: str
    root: str
    version: int
    sources: str
    digest: str
    reported: str | None
    files: dict[str, bytes | None]
    before: dict[str, bytes | None]
    undoes: int | None
    who: str
    at: str
    done: bool


class Store:
    """The history, for one command at a time; a second one is refused while it runs."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def begin(self, push: Push) -> Push:
        """Put a push on record before it is done, and return it with its revision."""
        with self._db:
            self._db.execute(
                "INSERT INTO push (artefact, root, version, sources, digest, reported, files,"
                " before, undoes, who, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    push.artefact,
                    push.root,
                    push.version,
                    push.sources,
                    push.digest,
                    push.reported,
                    msgspec.json.encode(push.files),
                    msgspec.json.encode(push.before),
                    push.undoes,
                    push.who,
                    push.at,
                ),
            )
        begun = self.last(push.artefact, push.root)
        assert begun is not None  # noqa: S101  # it was just put there
        return begun

    def finish(self, push: Push) -> None:
        """Say that what the push put there was read back and is right."""
        with self._db:
            self._db.execute("UPDATE push SET done = 1 WHERE revision = ?", (push.revision,))

    def last(self, artefact: str, root: str) -> Push | None:
        """Return the last change, done or begun."""
        row = self._db.execute(
            f"SELECT {_COLUMNS} FROM push WHERE artefact = ? AND root = ?"  # noqa: S608  # constants
            " ORDER BY revision DESC LIMIT 1",
            (artefact, root),
        ).fetchone()
        return None if row is None else _push(row)

    def history(self, artefact: str | None = None) -> list[Push]:
        """Return all changes, the oldest first."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM push WHERE ? IS NULL OR artefact = ? ORDER BY revision",  # noqa: S608  # constants
            (artefact, artefact),
        )
        return [_push(row) for row in rows]

    def latest(self) -> list[Push]:
        """Return the last change of each artefact below each root."""
        last = {(push.artefact, push.root): push for push in self.history()}
        return list(last.values())


@contextmanager
def open_store(home: Path) -> Iterator[Store]:
    """Open the history in a home; raises `SettingsError` when it is not to be had now."""
    path = home / FILE
    try:
        home.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=BUSY_S, isolation_level="IMMEDIATE")) as db:
            # Held to the end: two pushes at once would each take the other's work for drift.
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN EXCLUSIVE")
            db.execute(_SCHEMA)
            db.commit()
            yield Store(db)
    except sqlite3.OperationalError as error:
        raise SettingsError(
            f"{path}: {error}: is another firmware command running, or the disk full?"
        ) from error
    except sqlite3.DatabaseError as error:
        raise SettingsError(f"{path}: is no history of ours ({error})") from error
    except OSError as error:
        raise SettingsError(f"{home}: cannot be used ({error.strerror})") from error


def _push(row: tuple[Any, ...]) -> Push:
    names = [name.strip() for name in _COLUMNS.split(",")]
    said = dict(zip(names, row, strict=True))
    for name in ("files", "before"):
        said[name] = msgspec.json.decode(said[name], type=_Files)
    return msgspec.convert({**said, "done": bool(said["done"])}, Push)
