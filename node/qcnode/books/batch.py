"""How entries travel to the billing server, and its receipts back.

Pure. A batch is one CloudEvent 1.0 (structured JSON, also over MQTT) whose bodies are
the very strings that were hashed. It ends with the node's signed checkpoint at its last
entry, which by the chain covers every entry before it: who owns the broker can hold
batches back or repeat them, and forge none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

import msgspec

from qcnode.books import chain
from qcnode.money import (
    Adjusted,
    Leased,
    LedgerEntry,
    Receipt,
    Reconciled,
    Resolution,
    WrittenOff,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

BATCH_TYPE: Final = "org.qcnode.ledger.batch.v1"
_SEALED: Final = b"qcnode receipt facts v1\n"
"""So that no seal can be taken for a signature under something else."""
_ENVELOPE_BYTES: Final = 2_048
"""More than names, note and everything else around the rows can take."""


class _Row(msgspec.Struct):
    seq: int
    body: str
    hash: str


class _Data(msgspec.Struct):
    tenant: str
    node: str
    epoch: str
    prev_hash: str
    entries: list[_Row]
    checkpoint: str | None = None


class _Event(msgspec.Struct):
    specversion: str
    type: str
    id: str
    data: _Data


class _BodyHead(msgspec.Struct):
    kind: str
    at_us: int


class _Resolution(msgspec.Struct):
    kind: str
    fact: msgspec.Raw


class _Receipt(msgspec.Struct):
    epoch: str
    acked_seq: int
    head_hash: str
    problem: str | None = None
    server_time_us: int | None = None
    missing: tuple[tuple[int, int], ...] = ()
    quarantined: tuple[int, ...] = ()
    note: str | None = None
    resolutions: tuple[_Resolution, ...] = ()
    leases: tuple[Leased, ...] = ()
    seal: str | None = None
    server_key: str | None = None


_EVENT = msgspec.json.Decoder(_Event)
_BODY_HEAD = msgspec.json.Decoder(_BodyHead)
_RECEIPT = msgspec.json.Decoder(_Receipt)
_RESOLUTIONS: Final[dict[str, msgspec.json.Decoder[Resolution]]] = {
    "reconciled": msgspec.json.Decoder(Reconciled),
    "written_off": msgspec.json.Decoder(WrittenOff),
    "adjusted": msgspec.json.Decoder(Adjusted),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Entries of one epoch on their way to the billing server, in order and without gaps.

    One without entries is a question: how far is the server, and what does it lend?
    """

    id: str
    tenant: str
    node: str
    epoch: str
    entries: tuple[LedgerEntry, ...]
    checkpoint: str | None
    """The node's signed note at the last entry; None when the sender signs nothing."""

    @property
    def first_seq(self) -> int:
        """The seq of the first entry."""
        return self.entries[0].seq if self.entries else 1

    @property
    def last_seq(self) -> int:
        """The seq of the last entry, 0 without any."""
        return self.entries[-1].seq if self.entries else 0


def encode_batch(
    tenant: str,
    node: str,
    entries: Sequence[LedgerEntry],
    *,
    at: datetime,
    checkpoint: str | None = None,
    key: str | None = None,
) -> bytes:
    """Write `entries` (at least one) as one CloudEvent 1.0 in structured mode.

    `key` is the node's public key, for a server that takes in nodes it does not know.
    """
    rows = [_row(entry) for entry in entries]
    return _write(tenant, node, entries, rows, at=at, checkpoint=checkpoint, key=key)


def encode_question(
    tenant: str, node: str, epoch: str, *, at: datetime, checkpoint: str | None, key: str | None
) -> bytes:
    """Write the batch of a ledger without entries; `checkpoint` is the note at none."""
    return _wrap(
        b"[]",
        tenant=tenant,
        node=node,
        epoch=epoch,
        span="1-0",
        prev_hash=chain.genesis(epoch),
        at=at,
        checkpoint=checkpoint,
        key=key,
    )


def pack_batch(
    tenant: str,
    node: str,
    entries: Sequence[LedgerEntry],
    *,
    at: datetime,
    bytes_max: int,
    sign: Callable[[LedgerEntry], str | None],
    key: str | None = None,
) -> tuple[bytes, int]:
    """Write the first of `entries`, as many as fit `bytes_max`, and return their number too.

    One entry alone always goes. `sign` gives the signed note for the last one taken.
    """
    rows: list[bytes] = []
    room = bytes_max - _ENVELOPE_BYTES
    for entry in entries:
        row = _row(entry)
        room -= len(row) + 1
        if room < 0 and rows:
            break
        rows.append(row)
    taken = entries[: len(rows)]
    raw = _write(tenant, node, taken, rows, at=at, checkpoint=sign(taken[-1]), key=key)
    return raw, len(taken)


def _row(entry: LedgerEntry) -> bytes:
    return chain.canonical(_Row(entry.seq, entry.body.decode(), entry.hash.hex()))


def _write(
    tenant: str,
    node: str,
    entries: Sequence[LedgerEntry],
    rows: Sequence[bytes],
    *,
    at: datetime,
    checkpoint: str | None,
    key: str | None,
) -> bytes:
    first, last = entries[0], entries[-1]
    return _wrap(
        b"[" + b",".join(rows) + b"]",
        tenant=tenant,
        node=node,
        epoch=first.epoch,
        span=f"{first.seq}-{last.seq}",
        prev_hash=first.prev_hash,
        at=at,
        checkpoint=checkpoint,
        key=key,
    )


def _wrap(
    rows: bytes,
    *,
    tenant: str,
    node: str,
    epoch: str,
    span: str,
    prev_hash: bytes,
    at: datetime,
    checkpoint: str | None,
    key: str | None,
) -> bytes:
    data: dict[str, Any] = {
        "tenant": tenant,
        "node": node,
        "epoch": epoch,
        "prev_hash": prev_hash.hex(),
        "entries": msgspec.Raw(rows),
    }
    if checkpoint is not None:
        data["checkpoint"] = checkpoint
    if key is not None:
        data["key"] = key
    return chain.canonical(
        {
            "specversion": "1.0",
            "type": BATCH_TYPE,
            "source": f"urn:qcnode:node:{tenant}:{node}",
            "id": f"{epoch}.{span}",
            "time": at.astimezone(UTC).isoformat(),
            "datacontenttype": "application/json",
            "data": data,
        }
    )


def decode_batch(raw: bytes) -> Batch:
    """Read a batch back; raises `ValueError` with one line when it is none.

    Links and signature are as the sender claims them: who takes the batch checks both.
    """
    try:
        event = _EVENT.decode(raw)
        if event.specversion != "1.0" or event.type != BATCH_TYPE:
            raise ValueError(f"a CloudEvent of another type: {event.type!r:.80}")
        data = event.data
        prev_hash = bytes.fromhex(data.prev_hash)
        entries: list[LedgerEntry] = []
        for row in data.entries:
            body = row.body.encode()
            head = _BODY_HEAD.decode(body)
            entry = LedgerEntry(
                epoch=data.epoch,
                seq=row.seq,
                kind=head.kind,
                at_us=head.at_us,
                body=body,
                prev_hash=prev_hash,
                hash=bytes.fromhex(row.hash),
            )
            entries.append(entry)
            prev_hash = entry.hash
        return Batch(
            id=event.id,
            tenant=data.tenant,
            node=data.node,
            epoch=data.epoch,
            entries=tuple(entries),
            checkpoint=data.checkpoint,
        )
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"not a ledger batch: {error}") from error


def encode_receipt(receipt: Receipt) -> bytes:
    """Write a receipt as JSON."""
    return chain.canonical(
        {
            **{name: getattr(receipt, name) for name in Receipt.__slots__},
            "resolutions": _resolutions(receipt),
        }
    )


def sealed_words(receipt: Receipt) -> bytes:
    """Return what a receipt's seal signs: its facts, for the ledger of that epoch alone."""
    facts = {
        "epoch": receipt.epoch,
        "leases": receipt.leases,
        "resolutions": _resolutions(receipt),
    }
    return _SEALED + chain.canonical(facts)


def _resolutions(receipt: Receipt) -> list[dict[str, Any]]:
    return [{"kind": chain.KIND_OF[type(fact)], "fact": fact} for fact in receipt.resolutions]


def decode_receipt(raw: bytes) -> Receipt:
    """Read a receipt back; raises `ValueError` with one line when it is none."""
    try:
        wire = _RECEIPT.decode(raw)
        return Receipt(
            epoch=wire.epoch,
            acked_seq=wire.acked_seq,
            head_hash=wire.head_hash,
            problem=wire.problem,
            server_time_us=wire.server_time_us,
            missing=wire.missing,
            quarantined=wire.quarantined,
            note=wire.note,
            resolutions=tuple(_RESOLUTIONS[one.kind].decode(one.fact) for one in wire.resolutions),
            leases=wire.leases,
            seal=wire.seal,
            server_key=wire.server_key,
        )
    except (msgspec.MsgspecError, KeyError, RecursionError) as error:
        raise ValueError(f"not a receipt: {type(error).__name__} {error}") from error
