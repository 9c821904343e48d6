"""API tokens: who may do what over HTTP, and with whose books.

A token is 256 random bits, shown once when it is made; the books keep its SHA-256 alone.
It is looked up by that digest, so the time a look-up takes tells nothing of any token.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from qcbridge.billing.audit import Change, note_change
from qcbridge.billing.invoices import to_us
from qcbridge.billing.offers import check_name
from qcbridge.billing.tables import TOKEN
from qcnode.errors import BillingError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime

    from qcbridge.billing.engine import Database

TOKEN_BYTES = 32
PREFIX = "qcb_"
"""What a token begins with, so that a scanner of leaked secrets knows one."""
USED_EVERY_US = 60 * 1_000_000
"""When a token was last used is kept to this, so that using one seldom writes."""


class Scope(StrEnum):
    """What a token opens; admin opens everything."""

    INGEST = "ingest"
    """Handing in batches."""
    READ = "read"
    """Sums, invoices and who has come how far."""
    FINANCE = "finance"
    """Reading, and papers and exports."""
    ADMIN = "admin"
    """Everything, and what decides and changes."""


_OPENS = {
    Scope.INGEST: frozenset({Scope.INGEST}),
    Scope.READ: frozenset({Scope.READ}),
    Scope.FINANCE: frozenset({Scope.READ, Scope.FINANCE}),
    Scope.ADMIN: frozenset(Scope),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What somebody may do: with `tenant` only in its books, with `node` only as that node."""

    name: str
    scopes: frozenset[Scope]
    tenant: str | None = None
    node: str | None = None

    def opens(self, scope: Scope) -> bool:
        """Say whether this may be done at all."""
        return any(scope in _OPENS[held] for held in self.scopes)

    def reaches(self, tenant: str, node: str | None = None) -> bool:
        """Say whether it may be done with these books."""
        if self.tenant is not None and self.tenant != tenant:
            return False
        return node is None or self.node is None or self.node == node


BOOTSTRAP = Grant(name="bootstrap", scopes=frozenset({Scope.ADMIN}))
"""Who holds the token that the server was started with."""
ANYBODY = Grant(name="anybody", scopes=frozenset({Scope.ADMIN}))
"""Whoever can reach a server that was started without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInfo:
    """What the books know of a token."""

    name: str
    grant: Grant
    created_us: int
    created_by: str
    revoked_us: int | None
    used_us: int | None


class Tokens:
    """The register of tokens; any thread may use it. `random` gives so many random bytes."""

    def __init__(
        self, database: Database, *, now: Callable[[], datetime], random: Callable[[int], bytes]
    ) -> None:
        self._database = database
        self._now = now
        self._random = random

    def add(
        self,
        name: str,
        scopes: Collection[Scope],
        *,
        by: str,
        tenant: str | None = None,
        node: str | None = None,
    ) -> str:
        """Make a token and return it; nobody can read it again."""
        check_name("token", name)
        for what, value in (("tenant", tenant), ("node", node)):
            if value is not None:
                check_name(what, value)
        if not scopes:
            raise BillingError(f"token {name} would open nothing: give it a scope")
        if Scope.INGEST in scopes and tenant is None:
            raise BillingError(f"token {name} hands in batches: say of which tenant with --tenant")
        if node is not None and tenant is None:
            raise BillingError(f"token {name} is of one node: say of which tenant with --tenant")
        token = PREFIX + self._random(TOKEN_BYTES).hex()
        now_us = to_us(self._now())
        words = " ".join(sorted(scopes))
        with self._database.writing() as db:
            if db.execute(sa.select(TOKEN.c.id).where(TOKEN.c.name == name)).first() is not None:
                raise BillingError(f"there is, or was, a token {name}: choose another name")
            digest = _digest(token)
            same = db.execute(sa.select(TOKEN.c.name).where(TOKEN.c.digest == digest)).scalar()
            if same is not None:
                raise BillingError(f"token {name} is, or was, known as {same}: draw another")
            db.execute(
                sa.insert(TOKEN).values(
                    digest=digest,
                    name=name,
                    tenant=tenant,
                    node=node,
                    scopes=words,
                    created_us=now_us,
                    created_by=by,
                )
            )
            what_changed = {"name": name, "scopes": words, "node": node}
            note_change(
                db,
                Change(at_us=now_us, who=by, action="token add", tenant=tenant, what=what_changed),
            )
            db.commit()
        return token

    def listed(self) -> tuple[TokenInfo, ...]:
        """Return all tokens there ever were, by name."""
        with self._database.reading() as db:
            return tuple(
                TokenInfo(
                    name=row.name,
                    grant=_grant(row),
                    created_us=row.created_us,
                    created_by=row.created_by,
                    revoked_us=row.revoked_us,
                    used_us=row.used_us,
                )
                for row in db.execute(sa.select(TOKEN).order_by(TOKEN.c.name))
            )

    def revoke(self, name: str, *, by: str) -> None:
        """End a token; it opens nothing from now on."""
        now_us = to_us(self._now())
        with self._database.writing() as db:
            done = db.execute(
                sa.update(TOKEN)
                .where(TOKEN.c.name == name, TOKEN.c.revoked_us.is_(None))
                .values(revoked_us=now_us)
            )
            if done.rowcount == 0:
                raise BillingError(
                    f"no token {name[:80]!r} in force: see `qcnode billing token list`"
                )
            what = {"name": name}
            note_change(
                db, Change(at_us=now_us, who=by, action="token revoke", tenant=None, what=what)
            )
            db.commit()

    def check(self, token: str) -> Grant | None:
        """Return what `token` opens; None when it opens nothing."""
        if not token.startswith(PREFIX):
            return None
        digest, now_us = _digest(token), to_us(self._now())
        with self._database.reading() as db:
            row = db.execute(
                sa.select(TOKEN).where(TOKEN.c.digest == digest, TOKEN.c.revoked_us.is_(None))
            ).one_or_none()
        if row is None:
            return None
        if row.used_us is None or row.used_us <= now_us - USED_EVERY_US:
            self._note_use(digest, now_us)
        return _grant(row)

    def _note_use(self, digest: bytes, now_us: int) -> None:
        with self._database.writing() as db:
            db.execute(sa.update(TOKEN).where(TOKEN.c.digest == digest).values(used_us=now_us))
            db.commit()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _grant(row: Any) -> Grant:
    return Grant(
        name=row.name,
        scopes=frozenset(Scope(word) for word in row.scopes.split()),
        tenant=row.tenant,
        node=row.node,
    )
