"""How entries are written down and linked, so that anyone can check them.

Pure. The node, the billing server and an auditor's verifier agree on these bytes:
an entry's body is canonical JSON (sorted keys, no spaces, UTF-8, whole numbers), its
hash covers seq, body and the hash before it, and the first entry hangs on its epoch, so
no entry fits into another ledger. Bodies of version 1 are read for good: what is hashed
is never written anew.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from qcnode.errors import LedgerCorruptError
from qcnode.money import (
    Adjusted,
    Attempt,
    Cost,
    EpochOpened,
    Indeterminate,
    Intent,
    Leased,
    LedgerEntry,
    LedgerFact,
    NotBilled,
    Outcome,
    Reconciled,
    Reserved,
    Settled,
    TokenUsage,
    WrittenOff,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

BODY_VERSION: Final = 2

KINDS: Final[dict[str, type[LedgerFact]]] = {
    "reserved": Reserved,
    "intent": Intent,
    "settled": Settled,
    "not_billed": NotBilled,
    "indeterminate": Indeterminate,
    "reconciled": Reconciled,
    "written_off": WrittenOff,
    "adjusted": Adjusted,
    "outcome": Outcome,
    "leased": Leased,
    "epoch_opened": EpochOpened,
}
KIND_OF: Final = {fact_type: kind for kind, fact_type in KINDS.items()}


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    """A body as far as every kind has it."""

    kind: str
    at_us: int
    fact: msgspec.Raw
    v: int = 1


class _UsageV1(msgspec.Struct, forbid_unknown_fields=True):
    """Tokens as version 1 wrote them: totals, and parts within them."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    image_tokens: int
    reasoning_tokens: int

    def usage(self) -> TokenUsage:
        return TokenUsage.divide(
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cache_read=self.cache_read_tokens,
            # Version 1 wrote 0 also for a picture whose tokens were not told apart.
            image=self.image_tokens or None,
            reasoning=self.reasoning_tokens,
        )


class _IntentV1(msgspec.Struct, forbid_unknown_fields=True):
    attempt: Attempt
    worst: _UsageV1
    hold: Cost
    request_sha256: str
    request_bytes: int
    image_sha256: str | None

    def fact(self) -> Intent:
        return Intent(
            attempt=self.attempt,
            worst=self.worst.usage(),
            hold=self.hold,
            request_sha256=self.request_sha256,
            request_bytes=self.request_bytes,
            image_sha256=self.image_sha256,
        )


class _SettledV1(msgspec.Struct, forbid_unknown_fields=True):
    attempt_id: str
    usage: _UsageV1
    cost: Cost | None
    rated_at_us: int
    raw_usage: str
    response_id: str | None
    model_served: str | None
    http_status: int
    duration_ms: int

    def fact(self) -> Settled:
        return Settled(
            attempt_id=self.attempt_id,
            usage=self.usage.usage(),
            cost=self.cost,
            started_at_us=self.rated_at_us - self.duration_ms * 1_000,
            rated_at_us=self.rated_at_us,
            raw_usage=self.raw_usage,
            response_id=self.response_id,
            model_served=self.model_served,
            http_status=self.http_status,
            duration_ms=self.duration_ms,
        )


_ENCODER = msgspec.json.Encoder(order="sorted")
_HEAD = msgspec.json.Decoder(_Head)
_FACTS = {kind: msgspec.json.Decoder(fact_type, strict=True) for kind, fact_type in KINDS.items()}
_BODIES: dict[str, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(
        msgspec.defstruct(
            f"_{kind}",
            [("kind", str), ("at_us", int), ("fact", fact_type), ("v", int, 1)],
            forbid_unknown_fields=True,
        )
    )
    for kind, fact_type in KINDS.items()
}
_FACTS_V1: dict[str, msgspec.json.Decoder[Any]] = {
    "intent": msgspec.json.Decoder(_IntentV1),
    "settled": msgspec.json.Decoder(_SettledV1),
    "not_billed": _FACTS["not_billed"],
    "indeterminate": _FACTS["indeterminate"],
}


def canonical(value: Any) -> bytes:
    """Write JSON the one way that is hashed: sorted keys, no spaces, UTF-8, no NaN.

    Raises `ValueError` or `TypeError` for what has no such form, as text with half of a
    surrogate pair.
    """
    return _ENCODER.encode(value)


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
    kind = KIND_OF[type(fact)]
    body = body_of(fact, kind=kind, at_us=at_us)
    return LedgerEntry(
        epoch=epoch,
        seq=seq,
        kind=kind,
        at_us=at_us,
        body=body,
        prev_hash=prev_hash,
        hash=entry_hash(seq, body, prev_hash),
    )


def body_of(fact: LedgerFact, *, kind: str, at_us: int) -> bytes:
    """Write a fact down as it is hashed."""
    return _ENCODER.encode({"at_us": at_us, "fact": fact, "kind": kind, "v": BODY_VERSION})


def fact_of(entry: LedgerEntry) -> LedgerFact:
    """Read the fact back from an entry's body; raises `LedgerCorruptError`."""
    return read_body(entry.seq, entry.body)[2]


def read_body(seq: int, body: bytes, kind: str | None = None) -> tuple[str, int, LedgerFact]:
    """Read kind, time and fact from the body of entry `seq`; raises `LedgerCorruptError`.

    `kind` is what it is thought to be, which saves reading it twice when it is.
    """
    if kind in _BODIES:
        try:
            read = _BODIES[kind].decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass  # Of another kind, of version 1, or none: what follows finds out.
        else:
            if read.v == BODY_VERSION and read.kind == kind:
                return kind, read.at_us, read.fact
    try:
        head = _HEAD.decode(body)
        if head.v == BODY_VERSION:
            fact: LedgerFact = _FACTS[head.kind].decode(head.fact)
        elif head.v == 1:
            read = _FACTS_V1[head.kind].decode(head.fact)
            fact = read.fact() if isinstance(read, _IntentV1 | _SettledV1) else read
        else:
            raise LedgerCorruptError(
                f"entry {seq}: written by a newer qcnode (version {head.v} of entries)"
            )
    except (msgspec.MsgspecError, ValueError, KeyError, RecursionError) as error:
        raise LedgerCorruptError(f"entry {seq}: its body is no fact ({error})") from error
    return head.kind, head.at_us, fact


def is_canonical(seq: int, body: bytes) -> bool:
    """Say whether `body`, which can be read, is written the one way that this version writes.

    Bodies of version 1 were written by another encoder and are compared with its form.
    """
    head = _HEAD.decode(body)
    if head.v == BODY_VERSION:
        kind, at_us, fact = read_body(seq, body)
        return body_of(fact, kind=kind, at_us=at_us) == body
    return canonical(msgspec.json.decode(body)) == body


def verify(entries: Iterable[LedgerEntry], *, epoch: str, after_seq: int, prev_hash: bytes) -> None:
    """Check that `entries` continue the chain after `after_seq`, whose hash is `prev_hash`.

    Raises `LedgerCorruptError` naming the first bad entry and what is wrong with it.
    """
    for entry in entries:
        after_seq += 1
        check_link(entry, epoch=epoch, seq=after_seq, prev_hash=prev_hash)
        kind, at_us, _fact = read_body(entry.seq, entry.body)
        if (kind, at_us) != (entry.kind, entry.at_us):
            raise LedgerCorruptError(f"entry {entry.seq}: kind or time differ from its body")
        prev_hash = entry.hash


def check_link(entry: LedgerEntry, *, epoch: str, seq: int, prev_hash: bytes) -> None:
    """Check that `entry` is number `seq` of `epoch` and hangs on `prev_hash`, unchanged."""
    if entry.seq != seq:
        raise LedgerCorruptError(f"entry {seq} is missing, {entry.seq} stands in its place")
    if entry.epoch != epoch:
        raise LedgerCorruptError(f"entry {seq} belongs to epoch {entry.epoch}")
    if entry.prev_hash != prev_hash:
        raise LedgerCorruptError(f"entry {seq} does not link to the entry before it")
    if entry.hash != entry_hash(seq, entry.body, prev_hash):
        raise LedgerCorruptError(f"entry {seq} was changed: its hash does not match")
