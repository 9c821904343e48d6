"""A batch as it was offered, read without believing any of it.

Pure. Here a batch is held together by its own hashes: every entry is numbered after the
one before and hangs on it. Whether the first hangs on what is stored, who signed it and
what the bodies mean is for others to say. A body is taken as bytes, readable or not, so
that no body can keep the ones behind it from being stored.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from qcnode.books import chain
from qcnode.books.batch import BATCH_TYPE
from qcnode.errors import BillingError

BATCH_BYTES_MAX = 1024 * 1024
ENTRIES_MAX = 2_000
SEQ_MAX = 2**63 - 1
HASH_BYTES = 32

_IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RefusalKind(StrEnum):
    """Why something was not taken."""

    UNREADABLE = "unreadable"
    """No batch at all, or one outside the bounds."""
    BROKEN = "broken"
    """The chain does not hold."""
    FORK = "fork"
    """Another entry is stored under the same identity: a restored disk or a cloned card."""
    UNSIGNED = "unsigned"
    """No signature, or not that of a key registered for this node."""


class BatchRefusedError(BillingError):
    """Nothing of this batch is stored; the message says what is wrong with it."""

    def __init__(self, kind: RefusalKind, words: str) -> None:
        super().__init__(words)
        self.kind = kind


class Line(msgspec.Struct, frozen=True, gc=False):
    """One entry as it was offered."""

    seq: int
    body: bytes
    prev_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Lines of one epoch that follow each other, and the node's note at the last of them.

    One without lines comes from a ledger without entries: it asks for the receipt. `key` is
    the public key the sender names as its own, which only a server that takes strangers in
    looks at. `raw` is the batch as it came.
    """

    tenant: str
    node: str
    epoch: str
    lines: tuple[Line, ...]
    note: str | None
    key: str | None
    raw: bytes

    @property
    def first_seq(self) -> int:
        """The seq of the first line."""
        return self.lines[0].seq if self.lines else 1

    @property
    def last_seq(self) -> int:
        """The seq of the last line, 0 without any."""
        return self.lines[-1].seq if self.lines else 0

    @property
    def prev_hash(self) -> bytes:
        """What the first line hangs on."""
        return self.lines[0].prev_hash if self.lines else chain.genesis(self.epoch)

    @property
    def head_hash(self) -> bytes:
        """The hash of the last line, or what the first one would hang on."""
        return self.lines[-1].hash if self.lines else chain.genesis(self.epoch)

    @property
    def digest(self) -> bytes:
        """What tells this offer from others, whatever envelope it came in."""
        named = f"{self.tenant}/{self.node}/{self.epoch}\0".encode()
        return hashlib.sha256(named + self.head_hash).digest()


class _Row(msgspec.Struct, gc=False):
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
    key: str | None = None


class _Event(msgspec.Struct):
    specversion: str
    type: str
    id: str
    data: _Data


_EVENT = msgspec.json.Decoder(_Event)


def read_offer(raw: bytes) -> Offer:
    """Read a batch, whatever its hashes are; raises `BatchRefusedError`."""
    if len(raw) > BATCH_BYTES_MAX:
        raise _unreadable(f"a batch of {len(raw)} bytes: send {BATCH_BYTES_MAX} at most")
    try:
        event = _EVENT.decode(raw)
        if event.specversion != "1.0" or event.type != BATCH_TYPE:
            raise _unreadable(f"not a ledger batch: {event.type[:80]!r} of {event.specversion[:9]}")
        data = event.data
        _check_names(data)
        lines = _read_lines(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _unreadable(f"not a ledger batch: {error}") from error
    return Offer(
        tenant=data.tenant,
        node=data.node,
        epoch=data.epoch,
        lines=lines,
        note=data.checkpoint,
        key=data.key,
        raw=raw,
    )


def check_links(offer: Offer) -> None:
    """Refuse an offer of which an entry was changed."""
    entry_hash = chain.entry_hash
    for line in offer.lines:
        if line.hash != entry_hash(line.seq, line.body, line.prev_hash):
            raise BatchRefusedError(
                RefusalKind.BROKEN, f"entry {line.seq} was changed: its hash does not match"
            )


def check_name(what: str, value: str) -> None:
    """Refuse what is no name of a tenant, a node or an epoch."""
    if not _IDENTITY.fullmatch(value):
        raise _unreadable(
            f"{what} {value[:80]!r} is no name: use up to 64 letters, digits, '.', '_', '-'"
        )


def _check_names(data: _Data) -> None:
    for what, value in (("tenant", data.tenant), ("node", data.node), ("epoch", data.epoch)):
        check_name(what, value)


def _read_lines(data: _Data) -> tuple[Line, ...]:
    rows = data.entries
    if not rows:
        return ()
    if len(rows) > ENTRIES_MAX:
        raise _unreadable(f"{len(rows)} entries in one batch: send {ENTRIES_MAX} at most")
    first_seq = rows[0].seq
    if not 1 <= first_seq <= SEQ_MAX - ENTRIES_MAX:
        raise _unreadable(f"entry {first_seq} is out of order in its batch: seqs begin at 1")
    prev_hash = _hash_of(data.prev_hash)
    lines = []
    for seq, row in enumerate(rows, start=first_seq):
        if row.seq != seq:
            raise _unreadable(f"entry {row.seq} is out of order in its batch")
        if "\0" in row.body:
            raise _unreadable(f"entry {seq} holds a NUL byte, which no ledger writes")
        body = row.body.encode()
        digest = _hash_of(row.hash)
        lines.append(Line(seq, body, prev_hash, digest))
        prev_hash = digest
    return tuple(lines)


def _hash_of(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != HASH_BYTES:
        raise _unreadable(f"{text[:80]!r} is no hash: write {HASH_BYTES} bytes in hex")
    return digest


def _unreadable(words: str) -> BatchRefusedError:
    return BatchRefusedError(RefusalKind.UNREADABLE, words)
