"""The audit trail: who did what from where, each row chained to the one before it.

Rows are added in the very transaction of what they tell of, so neither is ever there
without the other. A row that was changed or taken out breaks the chain at its place; one
who may write the whole file can still write a whole new chain, so the trail is evidence
against mistakes and against tampering by hand, and its head is worth exporting.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from datetime import datetime

    from qcnode.panel.file import PanelFile

BEGINNING = "0" * 64
TEXT_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """One thing that was done at the panel, or tried."""

    what: str
    who: str
    role: str
    where: str
    subject: str = ""
    before: str = ""
    after: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """A deed on record; `hash` covers it and the hash of the row before."""

    seq: int
    at: str
    deed: Deed
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainCheck:
    """How far the chain holds; `broken_at` is the first row that does not, if there is one."""

    checked_to: int
    broken_at: int | None


class AuditTrail:
    """The trail in the panel's file."""

    def __init__(self, file: PanelFile, *, now: Callable[[], datetime]) -> None:
        self._file = file
        self._now = now

    def add(self, db: sqlite3.Connection, deed: Deed) -> None:
        """Put a deed on record within the transaction of `db`."""
        seq, last = db.execute(
            "SELECT coalesce(max(seq), 0), coalesce((SELECT hash FROM audit ORDER BY seq DESC"
            " LIMIT 1), ?) FROM audit",
            (BEGINNING,),
        ).fetchone()
        words = {name: value[:TEXT_MAX] for name, value in asdict(deed).items()}
        body = json.dumps({"at": self._now().isoformat(), **words}, ensure_ascii=False)
        db.execute(
            "INSERT INTO audit (seq, body, hash) VALUES (?, ?, ?)",
            (seq + 1, body, _chain(last, seq + 1, body)),
        )

    def put(self, deed: Deed) -> None:
        """Put on record a deed that changes nothing else here."""
        with self._file.transaction() as db:
            self.add(db, deed)

    def rows(self, *, before: int | None = None, limit: int, words: str = "") -> list[AuditRow]:
        """Return up to `limit` rows in which `words` stand, the newest first."""
        with self._file.transaction() as db:
            found = db.execute(
                "SELECT seq, body, hash FROM audit WHERE (? IS NULL OR seq < ?)"
                " AND instr(lower(body), lower(?)) > 0 ORDER BY seq DESC LIMIT ?",
                (before, before, words, limit),
            ).fetchall()
        return [_row(*one) for one in found]

    def check(self) -> ChainCheck:
        """Count the chain from its beginning."""
        last, expected = BEGINNING, 1
        with self._file.transaction() as db:
            for seq, body, digest in db.execute("SELECT seq, body, hash FROM audit ORDER BY seq"):
                if seq != expected or digest != _chain(last, seq, body):
                    return ChainCheck(checked_to=expected - 1, broken_at=expected)
                last, expected = digest, expected + 1
        return ChainCheck(checked_to=expected - 1, broken_at=None)


def _chain(last: str, seq: int, body: str) -> str:
    return hashlib.sha256(f"{last}\n{seq}\n{body}".encode()).hexdigest()


def _row(seq: int, body: str, digest: str) -> AuditRow:
    # A row somebody changed by hand may hold anything; it is shown as far as it can be read.
    try:
        said = json.loads(body)
        at = str(said.pop("at"))
        deed = Deed(**said)
    except (ValueError, TypeError, KeyError, AttributeError):
        at, deed = "", Deed(what="unreadable", who="", role="", where="")
    return AuditRow(seq=seq, at=at, deed=deed, hash=digest)
