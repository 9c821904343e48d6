"""What anybody may ask of a ledger file: is it whole, and who stands in for that?

Reads only. The chain shows what was changed, the notes of node and billing server show
what was cut off or written anew, and the mark beside the file shows what is missing of
the last minutes. Each is only worth as much as whoever cannot have changed it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcnode.books.checkpoints import Note, Vouched, check_notes, name_in, read_notes
from qcnode.books.ledger_file import BILLING, LedgerReader, read_cursor, read_hash, walk
from qcnode.books.mark import MarkFile, mark_path
from qcnode.books.seals import read_note
from qcnode.errors import LedgerCorruptError, SealError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from qcnode.books.checkpoints import Signer
    from qcnode.books.mark import Mark
    from qcnode.books.seals import PublicKey
    from qcnode.books.tally import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A ledger whose chain is whole and agrees with every note there is."""

    epoch: str
    tally: Tally
    confirmed: int
    """How far the billing server's receipts go, by the file itself."""
    kept: Vouched
    """By the notes that are kept in the file."""
    witness: Vouched
    """By notes that were kept elsewhere."""
    marked_seq: int
    """How far the mark beside the file knows of it; 0 without one."""

    @property
    def vouched_seq(self) -> int:
        """The last entry that a signature stands in for, a checked one or not."""
        return max(self.kept.node_seq, self.kept.server_seq, self.witness.server_seq)


def prove_file(
    path: Path,
    *,
    keys: Mapping[Signer, Sequence[PublicKey]],
    witness: Sequence[str] = (),
    checked: Callable[[int], None] | None = None,
) -> Proof:
    """Check every entry of the ledger at `path`, and every note about it.

    `witness` are notes of the billing server that were kept outside the file. Raises
    `LedgerCorruptError` naming the first bad or missing entry.
    """
    # The mark first: a node that writes meanwhile is ahead of it, never behind.
    mark = _read_mark(path)
    reader = LedgerReader(path)
    try:
        with reader.moment() as db:
            tally = walk(db, reader.epoch, rest=checked)
            entries = tally.seq
            kept = check_notes(db, reader.epoch, read_notes(db), entries=entries, keys=keys)
            others = check_notes(
                db,
                reader.epoch,
                [Note(signer="server", text=text) for text in witness],
                entries=entries,
                keys=keys,
            )
            marked = 0
            if mark is not None and mark.epoch == reader.epoch:
                marked = mark.seq
                if marked > entries:
                    raise LedgerCorruptError(
                        f"entry {entries + 1} is missing: {marked} were on record by the mark"
                        " beside the ledger"
                    )
                if marked and read_hash(db, marked) != mark.hash:
                    raise LedgerCorruptError(
                        f"entry {marked} is another one than the mark beside the ledger says"
                    )
            return Proof(
                epoch=reader.epoch,
                tally=tally,
                confirmed=read_cursor(db, BILLING)[0],
                kept=kept,
                witness=others,
                marked_seq=marked,
            )
    finally:
        reader.close()


def signer_of(path: Path) -> str | None:
    """Return the name, TENANT/NODE, under which the ledger at `path` was last signed, if it was."""
    reader = LedgerReader(path)
    try:
        with reader.moment() as db:
            row = db.execute(
                "SELECT note FROM checkpoint WHERE signer = 'node' ORDER BY seq DESC LIMIT 1"
            ).fetchone()
    finally:
        reader.close()
    try:
        return None if row is None else name_in(read_note(row[0]).origin)
    except SealError:
        return None


def _read_mark(path: Path) -> Mark | None:
    try:
        return MarkFile(mark_path(path)).read()
    except OSError:
        return None  # Not ours to read: the notes have to do.
