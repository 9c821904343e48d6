"""Where batches are taken: everything the nodes reported, kept once.

A batch is one transaction: the row of its ledger is locked, what is already stored is
compared hash by hash, the rest is added where it hangs on the stored head, and the head
moved on; only after the commit does anybody hear of it. So a receipt is never early, a
batch sent again changes nothing, and two batches of one ledger never mix. A batch that
comes before its time is parked, and taken with the one that closes the gap; so money
moves in the order of the chain, whatever order batches come in. Entries are added, never
changed; the database itself refuses it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
import structlog

from qcbridge.billing.engine import insert_into
from qcbridge.billing.invoices import to_us
from qcbridge.billing.keys import Trust, check_signature
from qcbridge.billing.lending import count_and_lend
from qcbridge.billing.offers import (
    BatchRefusedError,
    Offer,
    RefusalKind,
    check_links,
    read_offer,
)
from qcbridge.billing.postings import post, read_lines, subjects
from qcbridge.billing.resolutions import is_pending, released, resolution_in
from qcbridge.billing.rows import (
    Headings,
    entry_rows,
    headings_of,
    insert_entries,
    known_attempts,
)
from qcbridge.billing.tables import BUDGET, ENTRY, FORK, LEDGER, PARKED, REFUSAL, RESOLUTION
from qcnode.books import chain
from qcnode.books.seals import Checkpoint, origin_of
from qcnode.ids import IdMaker
from qcnode.money import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from qcbridge.billing.engine import Database
    from qcbridge.billing.postings import Heading, Posting, Read, ResolutionFact
    from qcbridge.billing.witness import Witness

log = structlog.get_logger()

REFUSALS_MAX = 10_000
"""A sender gone mad fills no disk: beyond this many different refusals only the log has them."""
SAMPLE_CHARS_MAX = 16 * 1024
PARKED_MAX = 32
"""Batches of one ledger that may wait for those before them; more are asked for again."""
TOLD_MAX = 100
"""Quarantined entries, gaps and decisions that one receipt names."""


class Fate(StrEnum):
    """What became of a batch."""

    TAKEN = "taken"
    REPEATED = "repeated"
    """Everything in it was stored before."""
    PARKED = "parked"
    """Entries before it are missing; it waits, and the receipt asks for them."""
    GAP = "gap"
    """As parked, and there was no room for it."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of a batch, how many entries were new, and the receipt for its node."""

    fate: Fate
    stored: int
    receipt: Receipt


class _ForkError(BatchRefusedError):
    """Two entries under one identity."""

    def __init__(self, words: str, *, seq: int, stored: bytes, offered: bytes) -> None:
        super().__init__(RefusalKind.FORK, words)
        self.seq = seq
        self.stored = stored
        self.offered = offered


@dataclass(slots=True)
class _Ledger:
    """A locked row of `ledger`, and what this transaction adds to it."""

    id: int
    acked_seq: int
    head_hash: bytes
    now_us: int
    fresh: list[Read] = field(default_factory=list)
    """What was added, in order."""
    note: str | None = None
    """The node's own note about the head, if it came with it."""
    headings: dict[str, Heading] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    forks: list[tuple[_ForkError, Offer]] = field(default_factory=list)


class BillingStore:
    """Takes batches into a billing database; any thread may use it."""

    def __init__(
        self,
        database: Database,
        *,
        now: Callable[[], datetime],
        trust: Trust = Trust.REGISTERED,
        witness: Witness | None = None,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self._database = database
        self._now = now
        self._trust = trust
        self._witness = witness
        self._new_id = new_id or IdMaker(lambda: to_us(now()) // 1_000)
        self._headings = Headings()

    @property
    def database(self) -> Database:
        """Where it keeps what it takes."""
        return self._database

    def take(self, offer: Offer) -> Taken:
        """Store what is new in `offer`; what is returned is durable.

        What cannot be taken is refused in the receipt: its `problem` says why and its
        `acked_seq` has not moved.
        """
        try:
            check_links(offer)
            reads = read_lines(offer.lines)
            with self._database.writing() as db:
                check_signature(db, offer, now_us=to_us(self._now()), trust=self._trust)
                ledger = self._lock(db, offer)
                taken = self._take(db, ledger, offer, reads)
                db.commit()
        except BatchRefusedError as refused:
            self.record_refusal(refused, offered=offer.raw, offer=offer)
            return Taken(fate=Fate.REFUSED, stored=0, receipt=self._refusal(offer, str(refused)))
        self._headings.keep(ledger.headings, ledger.ids)
        for fork, parked in ledger.forks:
            self.record_refusal(fork, offered=parked.raw, offer=parked)
        return taken

    def _take(
        self, db: sa.Connection, ledger: _Ledger, offer: Offer, reads: Sequence[Read]
    ) -> Taken:
        if offer.first_seq > ledger.acked_seq + 1:
            fate = _park(db, ledger, offer)
        else:
            self._add(db, ledger, offer, reads)
            fate = Fate.TAKEN if ledger.fresh else Fate.REPEATED
            self._drain(db, ledger)
        if ledger.fresh:
            moved = {"seq": ledger.acked_seq, "hash": ledger.head_hash, "now": ledger.now_us}
            db.execute(_MOVE_HEAD, {"ledger": ledger.id, **moved})
        around = _look_around(db, ledger, offer.tenant)
        missing = around.missing(ledger.acked_seq)
        if fate is Fate.GAP and not missing:
            missing = ((ledger.acked_seq + 1, offer.first_seq - 1),)
        receipt = Receipt(
            epoch=offer.epoch,
            acked_seq=ledger.acked_seq,
            head_hash=ledger.head_hash.hex(),
            server_time_us=ledger.now_us,
            missing=missing,
            quarantined=around.quarantined,
            note=self._note(db, ledger, offer),
            resolutions=around.resolutions,
            leases=()
            if not around.lends
            else count_and_lend(
                db,
                tenant=offer.tenant,
                node=offer.node,
                ledger_id=ledger.id,
                reads=ledger.fresh,
                now_us=ledger.now_us,
                new_id=self._new_id,
            ),
        )
        if self._witness is not None:
            receipt = self._witness.vouch(receipt)
        return Taken(fate=fate, stored=len(ledger.fresh), receipt=receipt)

    def _note(self, db: sa.Connection, ledger: _Ledger, offer: Offer) -> str | None:
        """Sign what this server has now; of nothing there is no note."""
        if self._witness is None or ledger.acked_seq == 0:
            return None
        checkpoint = Checkpoint(
            origin=origin_of(offer.tenant, offer.node, offer.epoch),
            size=ledger.acked_seq,
            head_hash=ledger.head_hash,
        )
        if ledger.fresh:
            return self._witness.seal(
                db, ledger.id, checkpoint, node_note=ledger.note, now_us=ledger.now_us
            )
        return self._witness.sealed(db, ledger.id, checkpoint, now_us=ledger.now_us)

    def _lock(self, db: sa.Connection, offer: Offer) -> _Ledger:
        """Hold this ledger's row until the transaction ends, making it if there is none."""
        now_us = to_us(self._now())
        named = _named(offer)
        head = db.execute(_LOCKED_HEAD, named).one_or_none()
        if head is None:
            db.execute(
                insert_into(db, LEDGER)
                .values(
                    **named,
                    acked_seq=0,
                    head_hash=chain.genesis(offer.epoch),
                    first_us=now_us,
                    last_us=now_us,
                )
                .on_conflict_do_nothing()
            )
            head = db.execute(_LOCKED_HEAD, named).one()
        return _Ledger(
            id=head.id, acked_seq=head.acked_seq, head_hash=bytes(head.head_hash), now_us=now_us
        )

    def _add(self, db: sa.Connection, ledger: _Ledger, offer: Offer, reads: Sequence[Read]) -> None:
        """Add what is new in an offer that leaves no gap; raises before it adds anything."""
        _compare_stored(db, ledger, offer)
        fresh = reads[ledger.acked_seq + 1 - offer.first_seq :]
        if not fresh:
            return
        first = fresh[0].line
        if first.prev_hash != ledger.head_hash:
            if ledger.acked_seq == 0:
                raise BatchRefusedError(
                    RefusalKind.BROKEN, "entry 1 does not begin a chain of its epoch"
                )
            raise _ForkError(
                f"fork: entry {first.seq} follows another entry {ledger.acked_seq} than is stored"
                " here: this ledger was restored or copied, let the node open a new epoch",
                seq=ledger.acked_seq,
                stored=ledger.head_hash,
                offered=first.prev_hash,
            )
        postings = post(fresh, known_attempts(db, ledger.id, subjects(fresh)))
        headings = headings_of(posting.step for posting in postings if posting.step is not None)
        ids = self._headings.ids(db, headings)
        ledger.headings |= headings
        ledger.ids |= ids
        insert_entries(self._database, db, entry_rows(ledger.id, ledger.now_us, postings, ids))
        _close_resolutions(db, postings)
        last = fresh[-1].line
        ledger.acked_seq, ledger.head_hash, ledger.note = last.seq, last.hash, offer.note
        ledger.fresh += fresh

    def _drain(self, db: sa.Connection, ledger: _Ledger) -> None:
        """Take parked batches for as long as no gap is before them."""
        while True:
            row = db.execute(
                sa.select(PARKED.c.first_seq, PARKED.c.last_seq, PARKED.c.raw)
                .where(PARKED.c.ledger_id == ledger.id, PARKED.c.first_seq <= ledger.acked_seq + 1)
                .order_by(PARKED.c.first_seq, PARKED.c.last_seq)
                .limit(1)
            ).one_or_none()
            if row is None:
                return
            offer = read_offer(bytes(row.raw))
            try:
                self._add(db, ledger, offer, read_lines(offer.lines))
            except _ForkError as fork:
                ledger.forks.append((fork, offer))
            db.execute(
                sa.delete(PARKED).where(
                    PARKED.c.ledger_id == ledger.id,
                    PARKED.c.first_seq == row.first_seq,
                    PARKED.c.last_seq == row.last_seq,
                )
            )

    def _refusal(self, offer: Offer, words: str) -> Receipt:
        """Say how far the ledger has come without what was offered."""
        with self._database.writing() as db:
            head = db.execute(_HEAD, _named(offer)).one_or_none()
            now_us = to_us(self._now())
            if head is None:
                return Receipt(
                    epoch=offer.epoch,
                    acked_seq=0,
                    head_hash=chain.genesis(offer.epoch).hex(),
                    problem=words,
                    server_time_us=now_us,
                )
            ledger = _Ledger(
                id=head.id,
                acked_seq=head.acked_seq,
                head_hash=bytes(head.head_hash),
                now_us=now_us,
            )
            note = self._note(db, ledger, offer)
            db.commit()
        return Receipt(
            epoch=offer.epoch,
            acked_seq=ledger.acked_seq,
            head_hash=ledger.head_hash.hex(),
            problem=words,
            server_time_us=now_us,
            note=note,
            server_key=None if self._witness is None else str(self._witness.key),
        )

    def record_refusal(
        self, refused: BatchRefusedError, *, offered: bytes, offer: Offer | None = None
    ) -> None:
        """Put on record what was not taken; the same offer again is counted, not repeated."""
        now_us, words = to_us(self._now()), str(refused)
        named = {} if offer is None else _named(offer)
        log.warning("refused", kind=str(refused.kind), words=words, **named)
        digest = hashlib.sha256(offered).digest() if offer is None else offer.digest
        row: dict[str, Any] = {
            "digest": digest,
            "kind": str(refused.kind),
            "words": _plain_text(words),
            "first_seq": None if offer is None else offer.first_seq,
            "sample": _plain_text(offered[:SAMPLE_CHARS_MAX].decode(errors="backslashreplace")),
            "times": 1,
            "first_us": now_us,
            "last_us": now_us,
            **named,
        }
        with self._database.writing() as db:
            again = db.execute(
                sa.update(REFUSAL)
                .where(REFUSAL.c.digest == digest)
                .values(times=REFUSAL.c.times + 1, last_us=now_us)
            )
            if again.rowcount == 0:
                count = db.execute(sa.select(sa.func.count()).select_from(REFUSAL)).scalar_one()
                if count >= REFUSALS_MAX:
                    return
                db.execute(insert_into(db, REFUSAL).values(row).on_conflict_do_nothing())
            if isinstance(refused, _ForkError) and offer is not None:
                self._record_fork(db, refused, offer, now_us)
            db.commit()

    def _record_fork(self, db: sa.Connection, fork: _ForkError, offer: Offer, now_us: int) -> None:
        # Only what is stored can be forked from, so there is a row.
        ledger_id = db.execute(_HEAD, _named(offer)).one().id
        insert = insert_into(db, FORK).values(
            ledger_id=ledger_id,
            seq=fork.seq,
            offered_hash=fork.offered,
            stored_hash=fork.stored,
            note=offer.note,
            times=1,
            first_us=now_us,
            last_us=now_us,
        )
        db.execute(
            insert.on_conflict_do_update(
                index_elements=[FORK.c.ledger_id, FORK.c.seq, FORK.c.offered_hash],
                set_={"times": FORK.c.times + 1, "last_us": now_us},
            )
        )


def _compare_stored(db: sa.Connection, ledger: _Ledger, offer: Offer) -> None:
    """Compare what is stored of an offer with it, hash by hash."""
    if offer.first_seq > ledger.acked_seq:
        return
    stored = db.execute(
        sa.select(ENTRY.c.seq, ENTRY.c.hash)
        .where(
            ENTRY.c.ledger_id == ledger.id,
            ENTRY.c.seq.between(offer.first_seq, min(offer.last_seq, ledger.acked_seq)),
        )
        .order_by(ENTRY.c.seq)
    )
    for line, row in zip(offer.lines, stored, strict=False):
        if line.hash != bytes(row.hash):
            raise _ForkError(
                f"fork: entry {row.seq} is stored here with another content: this ledger was"
                " restored or copied, let the node open a new epoch",
                seq=row.seq,
                stored=bytes(row.hash),
                offered=line.hash,
            )


def _park(db: sa.Connection, ledger: _Ledger, offer: Offer) -> Fate:
    parked = db.execute(
        sa.select(PARKED.c.first_seq, PARKED.c.last_seq).where(PARKED.c.ledger_id == ledger.id)
    ).all()
    if any(row.first_seq <= offer.first_seq and offer.last_seq <= row.last_seq for row in parked):
        return Fate.PARKED
    if len(parked) >= PARKED_MAX:
        return Fate.GAP
    db.execute(
        sa.insert(PARKED).values(
            ledger_id=ledger.id,
            first_seq=offer.first_seq,
            last_seq=offer.last_seq,
            stored_us=ledger.now_us,
            raw=offer.raw,
        )
    )
    return Fate.PARKED


def _close_resolutions(db: sa.Connection, postings: Sequence[Posting]) -> None:
    closed = [
        {"which": posting.resolution_id, "seq": posting.read.line.seq}
        for posting in postings
        if posting.resolution_id is not None
    ]
    if closed:
        db.execute(
            sa.update(RESOLUTION)
            .where(RESOLUTION.c.id == sa.bindparam("which"))
            .values(closed_seq=sa.bindparam("seq")),
            closed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Around:
    """What there is about a ledger besides its entries."""

    parked: tuple[tuple[int, int], ...]
    quarantined: tuple[int, ...]
    resolutions: tuple[ResolutionFact, ...]
    lends: bool
    """Whether its tenant has shared budgets."""

    def missing(self, acked_seq: int) -> tuple[tuple[int, int], ...]:
        """Return the stretches between what is stored and what waits."""
        gaps: list[tuple[int, int]] = []
        for first_seq, last_seq in self.parked:
            if first_seq > acked_seq + 1:
                gaps.append((acked_seq + 1, first_seq - 1))
            acked_seq = max(acked_seq, last_seq)
        return tuple(gaps[:TOLD_MAX])


def _around() -> sa.CompoundSelect[Any]:
    """Ask, in one question, for all that a receipt says besides how far the ledger has come."""
    ledger_id: sa.BindParameter[int] = sa.bindparam("ledger")
    nothing = sa.cast(sa.null(), sa.Text)
    # The latest quarantined entries and the oldest decisions.
    pieces = {
        "parked": sa.select(PARKED.c.first_seq, PARKED.c.last_seq, nothing).where(
            PARKED.c.ledger_id == ledger_id
        ),
        "quarantined": sa.select(ENTRY.c.seq, ENTRY.c.seq, nothing)
        .where(ENTRY.c.ledger_id == ledger_id, ENTRY.c.quarantine.is_not(None), ~released())
        .order_by(ENTRY.c.seq.desc())
        .limit(TOLD_MAX),
        "pending": sa.select(RESOLUTION.c.id, RESOLUTION.c.id, RESOLUTION.c.body)
        .where(is_pending(), RESOLUTION.c.ledger_id == ledger_id)
        .order_by(RESOLUTION.c.id)
        .limit(TOLD_MAX),
        "lends": sa.select(BUDGET.c.id, BUDGET.c.id, nothing)
        .where(BUDGET.c.tenant == sa.bindparam("tenant"))
        .limit(1),
    }
    return sa.union_all(
        *(sa.select(sa.literal(what), *piece.subquery().c) for what, piece in pieces.items())
    )


# Making a statement costs more than asking it, so what every batch asks is made once.
_AROUND = _around()
_HEAD = sa.select(LEDGER.c.id, LEDGER.c.acked_seq, LEDGER.c.head_hash).where(
    LEDGER.c.tenant == sa.bindparam("tenant"),
    LEDGER.c.node == sa.bindparam("node"),
    LEDGER.c.epoch == sa.bindparam("epoch"),
)
_LOCKED_HEAD = _HEAD.with_for_update()
_MOVE_HEAD = (
    sa.update(LEDGER)
    .where(LEDGER.c.id == sa.bindparam("ledger"))
    .values(
        acked_seq=sa.bindparam("seq"), head_hash=sa.bindparam("hash"), last_us=sa.bindparam("now")
    )
)


def _look_around(db: sa.Connection, ledger: _Ledger, tenant: str) -> _Around:
    found: dict[str, list[tuple[int, int, str]]] = {
        what: [] for what in ("parked", "quarantined", "pending", "lends")
    }
    for what, first, last, body in db.execute(_AROUND, {"ledger": ledger.id, "tenant": tenant}):
        found[what].append((first, last, body))
    return _Around(
        parked=tuple((first, last) for first, last, _ in sorted(found["parked"])),
        quarantined=tuple(first for first, _, _ in sorted(found["quarantined"])),
        resolutions=tuple(resolution_in(body) for _, _, body in sorted(found["pending"])),
        lends=bool(found["lends"]),
    )


def _named(offer: Offer) -> dict[str, str]:
    return {"tenant": offer.tenant, "node": offer.node, "epoch": offer.epoch}


def _plain_text(text: str) -> str:
    """Replace what PostgreSQL cannot keep in a text: NUL, and halves of a surrogate pair."""
    return text.replace("\0", "\\x00").encode(errors="backslashreplace").decode()
