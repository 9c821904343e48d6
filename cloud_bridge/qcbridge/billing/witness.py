"""This server's own signature under what it has of a ledger.

The node keeps the note as its proof of delivery, and the server has signed away its
chance to drop entries later. Where the node's own note is at hand, the server adds its
line to it; a note is kept for good, and the same one is given whenever it is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import sqlalchemy as sa

from qcbridge.billing.engine import insert_into
from qcbridge.billing.tables import CHECKPOINT, LEDGER
from qcnode.books.batch import sealed_words
from qcnode.books.seals import SigningKey
from qcnode.errors import BillingError, SealError

if TYPE_CHECKING:
    from pathlib import Path

    from qcbridge.billing.engine import Database
    from qcnode.books.seals import Checkpoint, PublicKey
    from qcnode.money import Receipt

KEY_NAME = "billing"
KEY_FILE = "billing.key"
KEY_VARIABLE = "QCNODE_BILLING_KEY_FILE"


def key_path(database: Database, named: Path | None) -> Path:
    """Return where this server's private key is: `named`, or beside the database."""
    if named is not None:
        return named
    if database.file is None:
        raise BillingError(
            f"name a file for this server's private key with --key-file or {KEY_VARIABLE}: with"
            " PostgreSQL there is no file to keep it beside"
        )
    return database.file.with_name(KEY_FILE)


def open_key(path: Path) -> SigningKey:
    """Read this server's key, making one (0600) where there is none."""
    try:
        return SigningKey.open(path, name=KEY_NAME)
    except SealError as error:
        raise BillingError(str(error)) from error


def latest_notes(database: Database, tenant: str, node: str | None = None) -> tuple[str, ...]:
    """Return the last note about each ledger of a tenant; by the chain it covers all before.

    Whoever keeps them elsewhere can tell later that a ledger, or these books, lost their end.
    """
    latest = (
        sa.select(CHECKPOINT.c.ledger_id, sa.func.max(CHECKPOINT.c.seq).label("seq"))
        .group_by(CHECKPOINT.c.ledger_id)
        .subquery()
    )
    query = (
        sa.select(CHECKPOINT.c.note)
        .join(
            latest,
            (CHECKPOINT.c.ledger_id == latest.c.ledger_id) & (CHECKPOINT.c.seq == latest.c.seq),
        )
        .join(LEDGER, LEDGER.c.id == CHECKPOINT.c.ledger_id)
        .where(LEDGER.c.tenant == tenant)
        .order_by(LEDGER.c.node, LEDGER.c.id)
    )
    if node is not None:
        query = query.where(LEDGER.c.node == node)
    with database.reading() as db:
        return tuple(db.execute(query).scalars())


class Witness:
    """Signs notes with this server's key, and keeps them."""

    def __init__(self, signer: SigningKey) -> None:
        self._signer = signer

    @property
    def key(self) -> PublicKey:
        """What its signatures are checked with."""
        return self._signer.public

    def vouch(self, receipt: Receipt) -> Receipt:
        """Sign what `receipt` wants on its node's record, and name the key."""
        seal = None
        if receipt.resolutions or receipt.leases:
            seal = self._signer.seal(sealed_words(receipt))
        return replace(receipt, seal=seal, server_key=str(self.key))

    def seal(
        self,
        db: sa.Connection,
        ledger_id: int,
        checkpoint: Checkpoint,
        *,
        node_note: str | None,
        now_us: int,
    ) -> str:
        """Sign that this server has a ledger up to an entry that is new here; keep the note.

        `node_note`, where there is one, is the node's own about that very entry.
        """
        signer = self._signer
        note = signer.sign(checkpoint) if node_note is None else signer.add_to(node_note)
        db.execute(
            insert_into(db, CHECKPOINT)
            .values(ledger_id=ledger_id, seq=checkpoint.size, at_us=now_us, note=note)
            .on_conflict_do_nothing()
        )
        return note

    def sealed(
        self, db: sa.Connection, ledger_id: int, checkpoint: Checkpoint, *, now_us: int
    ) -> str:
        """Return the note about an entry that was here before, signed with the key of today."""
        this = (CHECKPOINT.c.ledger_id == ledger_id) & (CHECKPOINT.c.seq == checkpoint.size)
        kept = db.execute(sa.select(CHECKPOINT.c.note).where(this)).scalar_one_or_none()
        if kept is None:
            return self.seal(db, ledger_id, checkpoint, node_note=None, now_us=now_us)
        try:
            self.key.check(kept)
        except SealError:
            kept = self._signer.add_to(kept)
            db.execute(sa.update(CHECKPOINT).where(this).values(note=kept))
        return kept
