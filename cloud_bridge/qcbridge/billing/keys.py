"""Whose signature counts: the nodes and their public keys.

A batch is signed by its node, so who owns the broker can hold it back or repeat it, and
forge none. A node may have several keys, so that a new one can be made known before it is
used; each counts from an instant until it is revoked. A batch that comes late may still be
signed with an old key, so what counts is the instant at which it comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import sqlalchemy as sa
import structlog

from qcbridge.billing.audit import Change, note_change
from qcbridge.billing.engine import insert_into
from qcbridge.billing.invoices import to_us
from qcbridge.billing.offers import BatchRefusedError, RefusalKind, check_name
from qcbridge.billing.tables import NODE_KEY
from qcnode.books.seals import PublicKey, origin_of
from qcnode.errors import BillingError, SealError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from qcbridge.billing.engine import Database
    from qcbridge.billing.offers import Offer

log = structlog.get_logger()

NOTE_CHARS_MAX = 2_000
"""More than one node's note takes; the rest would be signatures of nobody we know."""


class Trust(StrEnum):
    """Which nodes are believed."""

    REGISTERED = "registered"
    """Those a person has made known with their key."""
    FIRST = "first"
    """Also a stranger, by the first key it names; for a demo on one machine, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKey:
    """A key of a node, and while it counts."""

    tenant: str
    node: str
    key: PublicKey
    valid_from_us: int
    revoked_us: int | None
    added_us: int
    added_by: str

    def counts_at(self, at_us: int) -> bool:
        """Say whether a signature that comes at that instant is believed."""
        return self.valid_from_us <= at_us and (self.revoked_us is None or at_us < self.revoked_us)


class NodeKeys:
    """The register of nodes and their keys; any thread may use it."""

    def __init__(self, database: Database, *, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    def add(
        self, tenant: str, node: str, key: PublicKey, *, by: str, from_us: int | None = None
    ) -> None:
        """Make a node's key known; it counts from `from_us`, or at once.

        Naming a key that counts already changes nothing.
        """
        check_name("tenant", tenant)
        check_name("node", node)
        if key.name != f"{tenant}/{node}":
            raise BillingError(
                f"this is the key of {key.name}, not of {tenant}/{node}: a node names its key after"
                " tenant and node"
            )
        now_us = to_us(self._now())
        with self._database.writing() as db:
            for known in _keys_of(db, tenant, node):
                if known.key.raw != key.raw:
                    continue
                if known.revoked_us is None and from_us in (None, known.valid_from_us):
                    return
                raise BillingError(
                    f"{tenant}/{node} has the key {key.id.hex()} already: a revoked key stays"
                    " revoked and an instant stays as it is, make the node a new key"
                )
            _insert(db, tenant, node, key, by=by, now_us=now_us, from_us=from_us)
            db.commit()

    def listed(self, tenant: str | None = None) -> tuple[NodeKey, ...]:
        """Return all keys there ever were, by tenant and node."""
        query = sa.select(NODE_KEY).order_by(NODE_KEY.c.tenant, NODE_KEY.c.node, NODE_KEY.c.id)
        if tenant is not None:
            query = query.where(NODE_KEY.c.tenant == tenant)
        with self._database.reading() as db:
            return _read(db, query)

    def revoke(self, tenant: str, node: str, *, by: str, key_id: str | None = None) -> int:
        """Stop believing a node's keys, or the one of that id; return how many those were."""
        now_us = to_us(self._now())
        with self._database.writing() as db:
            found = [
                known
                for known in _keys_of(db, tenant, node)
                if known.revoked_us is None and key_id in (None, known.key.id.hex())
            ]
            for known in found:
                db.execute(
                    sa.update(NODE_KEY)
                    .where(
                        NODE_KEY.c.tenant == tenant,
                        NODE_KEY.c.node == node,
                        NODE_KEY.c.key == str(known.key),
                    )
                    .values(revoked_us=now_us)
                )
                _note(db, "node revoke", tenant, node, known.key, by=by, now_us=now_us)
            db.commit()
        if not found:
            which = "no key in force" if key_id is None else f"no key {key_id[:80]!r} in force"
            raise BillingError(f"{tenant}/{node} has {which}: see `qcnode billing node list`")
        return len(found)


def check_signature(db: sa.Connection, offer: Offer, *, now_us: int, trust: Trust) -> None:
    """Refuse an offer that its node did not sign at its last entry."""
    known = _keys_of(db, offer.tenant, offer.node)
    if not known and trust is Trust.FIRST:
        _enrol(db, offer, now_us)
        return
    keys = [one.key for one in known if one.counts_at(now_us)]
    if not keys:
        raise _unsigned(
            f"no key of node {offer.tenant}/{offer.node} counts here: register it with"
            " `qcnode billing node add`"
        )
    _check_note(offer, keys)


def _check_note(offer: Offer, keys: Sequence[PublicKey]) -> None:
    if offer.note is None:
        raise _unsigned(f"the batch of {offer.tenant}/{offer.node} is not signed")
    if len(offer.note) > NOTE_CHARS_MAX:
        raise _unsigned(f"a note of {len(offer.note)} characters: {NOTE_CHARS_MAX} at most")
    why = ""
    for key in keys:
        try:
            said = key.check(offer.note)
        except SealError as error:
            why = why or str(error)
            continue
        origin = origin_of(offer.tenant, offer.node, offer.epoch)
        if (said.origin, said.size, said.head_hash) != (origin, offer.last_seq, offer.head_hash):
            raise _unsigned(
                f"the note is about entry {said.size} of {said.origin}, not about entry"
                f" {offer.last_seq} of {origin} as it came"
            )
        return
    raise _unsigned(f"the batch of {offer.tenant}/{offer.node} is not signed by it: {why}")


def _enrol(db: sa.Connection, offer: Offer, now_us: int) -> None:
    """Believe a stranger by the key it names."""
    who = f"{offer.tenant}/{offer.node}"
    if offer.key is None:
        raise _unsigned(f"{who} is not registered here and names no key to be known by")
    try:
        key = PublicKey.parse(offer.key)
    except SealError as error:
        raise _unsigned(f"{who} names a key that is none: {error}") from error
    if key.name != who:
        raise _unsigned(f"{who} names the key of {key.name[:80]!r} as its own")
    _check_note(offer, [key])
    _insert(db, offer.tenant, offer.node, key, by="enrol-first", now_us=now_us, from_us=None)
    log.warning(
        "a node that nobody registered is believed by the first key it named",
        node=who,
        key=key.id.hex(),
    )


def _insert(
    db: sa.Connection,
    tenant: str,
    node: str,
    key: PublicKey,
    *,
    by: str,
    now_us: int,
    from_us: int | None,
) -> None:
    db.execute(
        insert_into(db, NODE_KEY)
        .values(
            tenant=tenant,
            node=node,
            key=str(key),
            valid_from_us=now_us if from_us is None else from_us,
            added_us=now_us,
            added_by=by,
        )
        .on_conflict_do_nothing()  # Two batches of a stranger may come at once.
    )
    _note(db, "node add", tenant, node, key, by=by, now_us=now_us)


def _note(
    db: sa.Connection, action: str, tenant: str, node: str, key: PublicKey, *, by: str, now_us: int
) -> None:
    what = {"node": node, "key": str(key)}
    note_change(db, Change(at_us=now_us, who=by, action=action, tenant=tenant, what=what))


_KEYS_OF = (
    sa.select(NODE_KEY)
    .where(NODE_KEY.c.tenant == sa.bindparam("tenant"), NODE_KEY.c.node == sa.bindparam("node"))
    .order_by(NODE_KEY.c.id)
)


def _keys_of(db: sa.Connection, tenant: str, node: str) -> tuple[NodeKey, ...]:
    return _read(db, _KEYS_OF, tenant=tenant, node=node)


def _read(
    db: sa.Connection, query: sa.Select[tuple[object, ...]], **values: str
) -> tuple[NodeKey, ...]:
    return tuple(
        NodeKey(
            tenant=row.tenant,
            node=row.node,
            key=PublicKey.parse(row.key),
            valid_from_us=row.valid_from_us,
            revoked_us=row.revoked_us,
            added_us=row.added_us,
            added_by=row.added_by,
        )
        for row in db.execute(query, values)
    )


def _unsigned(words: str) -> BatchRefusedError:
    return BatchRefusedError(RefusalKind.UNSIGNED, words)
