"""Brings a ledger file of an earlier version to the newest, without touching an entry.

Alembic keeps the steps in order and writes their SQL; SQLite runs it in one transaction
with the new version's number, so a file is of one version or the other at any moment.
What is hashed is never among what a step writes.
"""

from __future__ import annotations

import io
import sqlite3
from pathlib import Path

_MIGRATIONS = Path(__file__).with_name("migrations")


def migrate(db: sqlite3.Connection, *, version: int, to: int) -> None:
    """Bring the ledger open in `db`, outside a transaction, from `version` to version `to`."""
    script = steps(version, to)
    try:
        db.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {to};\nCOMMIT;")
    except sqlite3.Error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def steps(version: int, to: int) -> str:
    """Return the SQL that leads from one version to another."""
    # A node that starts with a file of its own version does not pay for these imports.
    from alembic.operations import Operations  # noqa: PLC0415
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    sql = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="sqlite", opts={"as_sql": True, "output_buffer": sql}
    )
    found = list(ScriptDirectory(str(_MIGRATIONS)).iterate_revisions(str(to), str(version)))
    with Operations.context(context):
        for step in reversed(found):
            step.module.upgrade()
    return sql.getvalue()
