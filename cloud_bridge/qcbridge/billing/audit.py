"""The audit trail: who changed what about these books, and when.

A row is written in the transaction of the change it tells of, so there is neither
without the other. Rows are added, never changed; the database itself refuses it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from qcbridge.billing.tables import AUDIT
from qcnode.books import chain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qcbridge.billing.engine import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that somebody changed."""

    at_us: int
    who: str
    action: str
    tenant: str | None
    what: Mapping[str, Any]


def note_change(db: sa.Connection, change: Change) -> None:
    """Put a change on record in the transaction that makes it."""
    db.execute(
        sa.insert(AUDIT).values(
            at_us=change.at_us,
            who=change.who,
            action=change.action,
            tenant=change.tenant,
            what=chain.canonical(change.what).decode(),
        )
    )


def changes(database: Database, *, limit: int) -> tuple[Change, ...]:
    """Return the latest changes, the latest first."""
    with database.reading() as db:
        rows = db.execute(sa.select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit))
        return tuple(
            Change(
                at_us=row.at_us,
                who=row.who,
                action=row.action,
                tenant=row.tenant,
                what=json.loads(row.what),
            )
            for row in rows
        )
