"""Checkpoints of a ledger file: what the node and the billing server have vouched for.

The node signs its own entries from time to time, and the billing server's notes come
with its receipts. Both stand beside the entries, and either shows later, with a public
key and nothing else, what was on record then. So a tail cut off, head and all, is found
by whoever kept a note from beyond it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from qcnode.books.seals import Checkpoint, origin_of, read_note
from qcnode.errors import LedgerCorruptError, SealError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from qcnode.books.seals import PublicKey, SigningKey

Signer: TypeAlias = Literal["node", "server"]

_SIGNATURE: Final = "\u2014 "
_WHO: Final[dict[Signer, str]] = {"node": "the node", "server": "the billing server"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A signed note about a ledger, wherever it was kept."""

    signer: Signer
    text: str
    kept_at: int | None = None
    """The entry it is kept with, in the ledger itself; None when it comes from elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vouched:
    """How far others and the node itself stand in for a ledger; 0 is not at all."""

    node_seq: int = 0
    server_seq: int = 0
    notes: int = 0
    """Notes that were checked against the entries."""
    unsigned: int = 0
    """Notes of these whose signature nobody could check: no key of the signer is known."""


def sign_checkpoint(key: SigningKey, epoch: str, seq: int, digest: bytes) -> str:
    """Return the note of the node called as `key` (TENANT/NODE) that entry `seq` has this hash."""
    return key.sign(
        Checkpoint(origin=origin_for(key.public.name, epoch), size=seq, head_hash=digest)
    )


def origin_for(name: str, epoch: str) -> str:
    """Return what the ledger of the node `name` (TENANT/NODE) is called in its checkpoints."""
    tenant, _, node = name.partition("/")
    return origin_of(tenant, node, epoch)


def put_note(db: sqlite3.Connection, signer: Signer, seq: int, note: str, *, at_us: int) -> None:
    """Keep a note at entry `seq`, in the transaction that is open."""
    db.execute(
        "INSERT OR REPLACE INTO checkpoint (seq, signer, at_us, note) VALUES (?, ?, ?, ?)",
        (seq, signer, at_us, note),
    )


def last_note(db: sqlite3.Connection, signer: Signer) -> tuple[int, int]:
    """Return the seq and the time of the last note that `signer` made; zeros for none."""
    row = db.execute(
        "SELECT seq, at_us FROM checkpoint WHERE signer = ? ORDER BY seq DESC LIMIT 1", (signer,)
    ).fetchone()
    return (0, 0) if row is None else (row[0], row[1])


def read_notes(db: sqlite3.Connection, *, until: int = sys.maxsize) -> Iterator[Note]:
    """Yield the notes that are kept in the ledger at entries up to `until`, in order."""
    rows = db.execute(
        "SELECT seq, signer, note FROM checkpoint WHERE seq <= ? ORDER BY seq, signer", (until,)
    )
    for seq, signer, text in rows:
        yield Note(signer=signer, text=text, kept_at=seq)


def name_in(origin: str) -> str:
    """Return the name of the node, TENANT/NODE, that calls a ledger `origin`."""
    return origin.partition("/")[2].rpartition("/")[0]


def split_notes(text: str) -> list[str]:
    """Take apart a file of signed notes that stand one after the other; raises `SealError`."""
    notes: list[str] = []
    lines: list[str] = []
    signed = False
    for line in text.splitlines():
        if signed and not line.startswith(_SIGNATURE):
            notes.append("\n".join(lines) + "\n")
            lines, signed = [], False
            if not line:
                continue
        lines.append(line)
        signed = line.startswith(_SIGNATURE)
    if signed:
        notes.append("\n".join(lines) + "\n")
    elif any(lines):
        raise SealError("the last of these notes has no signature: copy it whole")
    for note in notes:
        read_note(note)
    return notes


def check_notes(
    db: sqlite3.Connection,
    epoch: str,
    notes: Iterable[Note],
    *,
    entries: int,
    keys: Mapping[Signer, Sequence[PublicKey]],
) -> Vouched:
    """Check notes against the `entries` of the ledger in `db`, whose chain is whole.

    Notes about other ledgers say nothing here. A note of somebody whose keys are known
    must have the signature of one of them.
    Raises `LedgerCorruptError` naming what is missing, or between which entries
    something was changed.
    """
    reached: dict[Signer, int] = {"node": 0, "server": 0}
    count = unsigned = 0
    for note in notes:
        who = _WHO[note.signer]
        known = keys.get(note.signer, ())
        said = _read(note, who, known)
        mine = said.origin.rpartition("/")[2] == epoch
        if note.kept_at is not None and (not mine or note.kept_at != said.size):
            raise LedgerCorruptError(
                f"the note of {who} at entry {note.kept_at} is about entry {said.size} of"
                f" {said.origin}"
            )
        if not mine:
            continue
        count += 1
        unsigned += not known
        if said.size > entries:
            raise LedgerCorruptError(
                f"entry {entries + 1} is missing: {who} has vouched for {said.size}"
            )
        row = db.execute("SELECT hash FROM entry WHERE seq = ?", (said.size,)).fetchone()
        if said.size and (row is None or row[0] != said.head_hash):
            good = max(seq for seq in reached.values() if seq < said.size)
            raise LedgerCorruptError(
                f"entry {said.size} is another one than {who} has vouched for: something in"
                f" entries {good + 1} to {said.size} was changed"
            )
        reached[note.signer] = max(reached[note.signer], said.size)
    return Vouched(
        node_seq=reached["node"], server_seq=reached["server"], notes=count, unsigned=unsigned
    )


def _read(note: Note, who: str, known: Sequence[PublicKey]) -> Checkpoint:
    try:
        said = read_note(note.text)
    except SealError as error:
        raise LedgerCorruptError(f"a note of {who} cannot be read: {error}") from error
    problem: SealError | None = None
    for key in known:
        try:
            return key.check(note.text)
        except SealError as error:
            problem = error
    if problem is not None:
        raise LedgerCorruptError(
            f"the note of {who} at entry {said.size}: {problem} (a key that was replaced since"
            " is to be given too)"
        ) from problem
    return said
