"""How entries are written down, linked and carried, so that anyone can check them.

Pure. The node, the billing server and an auditor's verifier agree on these bytes:
an entry's body is canonical JSON, its hash covers seq, body and the hash before it,
and the first entry hangs on its epoch, so no entry fits into another ledger. A batch
is one CloudEvent (structured JSON) whose bodies travel as the very strings hashed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from qcnode.domain import (
    Attempt,
    Cost,
    Indeterminate,
    Intent,
    LedgerEntry,
    LedgerFact,
    NotBilled,
    Receipt,
    Settled,
    TokenUsage,
)
from qcnode.errors import LedgerCorruptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BATCH_TYPE = "org.qcnode.ledger.batch.v1"

_KINDS: dict[str, type[LedgerFact]] = {
    "intent": Intent,
    "settled": Settled,
    "not_billed": NotBilled,
    "indeterminate": Indeterminate,
}
_KIND_OF = {fact_type: kind for kind, fact_type in _KINDS.items()}


def canonical(value: Any) -> bytes:
    """Write JSON the one way that is hashed: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def genesis(epoch: str) -> bytes:
    """Return what the first entry of `epoch` links to."""
    return hashlib.sha256(b"\x01" + epoch.encode()).digest()


def entry_hash(seq: int, body: bytes, prev_hash: bytes) -> bytes:
    """Return SHA-256(0x00 || u64 seq || u32 length || body || hash before)."""
    return hashlib.sha256(
        b"\x00" + seq.to_bytes(8, "big") + len(body).to_bytes(4, "big") + body + prev_hash
    ).digest()


def make_entry(
    fact: LedgerFact, *, epoch: str, seq: int, at_us: int, prev_hash: bytes
) -> LedgerEntry:
    """Turn a fact into the entry that follows the one whose hash is `prev_hash`."""
    kind = _KIND_OF[type(fact)]
    body = canonical({"kind": kind, "at_us": at_us, "fact": _raw(fact)})
    return LedgerEntry(
        epoch=epoch,
        seq=seq,
        kind=kind,
        at_us=at_us,
        body=body,
        prev_hash=prev_hash,
        hash=entry_hash(seq, body, prev_hash),
    )


def _raw(value: LedgerFact | Attempt | TokenUsage | Cost) -> dict[str, Any]:
    # dataclasses.asdict copies every leaf, which costs more than all the rest of an entry.
    return {
        name: _raw(part) if isinstance(part, Attempt | TokenUsage | Cost) else part
        for name in value.__slots__
        for part in (getattr(value, name),)
    }


def fact_of(entry: LedgerEntry) -> LedgerFact:
    """Read the fact back from an entry's body; raises `LedgerCorruptError`."""
    try:
        written = json.loads(entry.body)
        return _fact_from(written["kind"], written["fact"])
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerCorruptError(f"entry {entry.seq}: its body is no fact ({error})") from error


def _fact_from(kind: str, raw: dict[str, Any]) -> LedgerFact:
    nested = dict(raw)
    for name, reader in (
        ("attempt", lambda v: Attempt(**v)),
        ("worst", lambda v: TokenUsage(**v)),
        ("usage", lambda v: TokenUsage(**v)),
        ("hold", _cost_from),
        ("cost", _cost_from),
    ):
        if nested.get(name) is not None:
            nested[name] = reader(nested[name])
    return _KINDS[kind](**nested)


def _cost_from(raw: dict[str, Any]) -> Cost:
    return Cost(currency=raw["currency"], pico=raw["pico"], rows=tuple(raw["rows"]))


def verify(entries: Iterable[LedgerEntry], *, epoch: str, after_seq: int, prev_hash: bytes) -> None:
    """Check that `entries` continue the chain after `after_seq`, whose hash is `prev_hash`.

    Raises `LedgerCorruptError` naming the first bad entry and what is wrong with it.
    """
    expected = after_seq + 1
    for entry in entries:
        if entry.seq != expected:
            raise LedgerCorruptError(
                f"entry {expected} is missing, {entry.seq} stands in its place"
            )
        if entry.epoch != epoch:
            raise LedgerCorruptError(f"entry {entry.seq} belongs to epoch {entry.epoch}")
        if entry.prev_hash != prev_hash:
            raise LedgerCorruptError(f"entry {entry.seq} does not link to the entry before it")
        if entry.hash != entry_hash(entry.seq, entry.body, entry.prev_hash):
            raise LedgerCorruptError(f"entry {entry.seq} was changed: its hash does not match")
        written = _head_of(entry)
        if written != (entry.kind, entry.at_us):
            raise LedgerCorruptError(f"entry {entry.seq}: kind or time differ from its body")
        expected += 1
        prev_hash = entry.hash


def _head_of(entry: LedgerEntry) -> tuple[Any, Any]:
    try:
        written = json.loads(entry.body)
        return written["kind"], written["at_us"]
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerCorruptError(f"entry {entry.seq}: its body is not readable") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Entries of one epoch on their way to the billing server, in order and without gaps."""

    id: str
    tenant: str
    node: str
    epoch: str
    entries: tuple[LedgerEntry, ...]

    @property
    def first_seq(self) -> int:
        """The seq of the first entry."""
        return self.entries[0].seq

    @property
    def last_seq(self) -> int:
        """The seq of the last entry."""
        return self.entries[-1].seq


def encode_batch(tenant: str, node: str, entries: Sequence[LedgerEntry], *, at: datetime) -> bytes:
    """Write `entries` (at least one) as one CloudEvent 1.0 in structured mode."""
    first, last = entries[0], entries[-1]
    return canonical(
        {
            "specversion": "1.0",
            "type": BATCH_TYPE,
            "source": f"urn:qcnode:node:{tenant}:{node}",
            "id": f"{first.epoch}.{first.seq}-{last.seq}",
            "time": at.astimezone(UTC).isoformat(),
            "datacontenttype": "application/json",
            "data": {
                "tenant": tenant,
                "node": node,
                "epoch": first.epoch,
                "prev_hash": first.prev_hash.hex(),
                "entries": [
                    {"seq": entry.seq, "body": entry.body.decode(), "hash": entry.hash.hex()}
                    for entry in entries
                ],
            },
        }
    )


def decode_batch(raw: bytes) -> Batch:
    """Read a batch back; raises `ValueError` with one line when it is none.

    The links are as the sender claims them: `verify` says whether they hold.
    """
    try:
        event = json.loads(raw)
        if event["specversion"] != "1.0" or event["type"] != BATCH_TYPE:
            raise ValueError(f"a CloudEvent of another type: {event['type']!r}")
        data = event["data"]
        prev_hash = bytes.fromhex(data["prev_hash"])
        entries: list[LedgerEntry] = []
        for row in data["entries"]:
            body = row["body"].encode()
            head = json.loads(body)
            entry = LedgerEntry(
                epoch=str(data["epoch"]),
                seq=int(row["seq"]),
                kind=str(head["kind"]),
                at_us=int(head["at_us"]),
                body=body,
                prev_hash=prev_hash,
                hash=bytes.fromhex(row["hash"]),
            )
            entries.append(entry)
            prev_hash = entry.hash
        if not entries:
            raise ValueError("a batch without entries")
        return Batch(
            id=str(event["id"]),
            tenant=str(data["tenant"]),
            node=str(data["node"]),
            epoch=str(data["epoch"]),
            entries=tuple(entries),
        )
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a ledger batch: {type(error).__name__} {error}") from error


def encode_receipt(receipt: Receipt) -> bytes:
    """Write a receipt as JSON."""
    return canonical(asdict(receipt))


def decode_receipt(raw: bytes) -> Receipt:
    """Read a receipt back; raises `ValueError` with one line when it is none."""
    try:
        value = json.loads(raw)
        return Receipt(
            epoch=str(value["epoch"]),
            acked_seq=int(value["acked_seq"]),
            head_hash=str(value["head_hash"]),
            problem=None if value.get("problem") is None else str(value["problem"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a receipt: {type(error).__name__} {error}") from error
