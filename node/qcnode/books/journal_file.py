"""A journal as a file, read beside the node that writes it, or after it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from qcnode.books.records import KINDS, decode
from qcnode.errors import JournalUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qcnode.domain import JournalRecord

_BUSY_S = 5.0


def read_journal(path: Path) -> Iterator[JournalRecord]:
    """Yield every record in order; kinds a newer version added are passed over."""
    if not path.is_file():
        raise JournalUnavailableError(f"{path}: no journal there: name the home of a node")
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S)) as db:
            for kind, body in db.execute("SELECT kind, body FROM record ORDER BY seq"):
                if kind in KINDS:
                    yield decode(kind, body)
    except sqlite3.Error as error:
        raise JournalUnavailableError(f"{path}: the journal cannot be read: {error}") from error
