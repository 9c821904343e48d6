"""A ledger as a text file, with all that somebody without this program needs to check it.

One JSON object a line: a header with the public keys, the entries as they are hashed, the
signed notes that stand beside them, and an end that says how many there were. The
stand-alone verifier `deploy/verify_ledger.py` reads it with nothing of ours installed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from qcnode.books import chain
from qcnode.books.checkpoints import read_notes
from qcnode.books.ledger_file import BILLING, read_cursor, read_entries

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping, Sequence

    from qcnode.books.checkpoints import Signer
    from qcnode.books.seals import PublicKey

EXPORT_FORMAT: Final = "qcnode.ledger.export.v1"
_PAGE: Final = 1_000


def export_lines(
    db: sqlite3.Connection, epoch: str, *, keys: Mapping[Signer, Sequence[PublicKey]]
) -> Iterator[str]:
    """Yield the lines of the ledger open in `db`, without line ends.

    Nothing is checked on the way: an auditor wants the entries as they are. Text that is
    none is written so that it can never hash to what it was.
    """
    yield json.dumps(
        {
            "format": EXPORT_FORMAT,
            "epoch": epoch,
            "genesis": chain.genesis(epoch).hex(),
            "confirmed": read_cursor(db, BILLING)[0],
            "keys": {signer: [str(key) for key in known] for signer, known in keys.items()},
        }
    )
    seq, head = 0, chain.genesis(epoch)
    while page := read_entries(db, epoch, after_seq=seq, limit=_PAGE):
        for entry in page:
            yield json.dumps(
                {
                    "epoch": entry.epoch,
                    "seq": entry.seq,
                    "body": entry.body.decode(errors="backslashreplace"),
                    "hash": entry.hash.hex(),
                },
                ensure_ascii=False,
            )
        seq, head = page[-1].seq, page[-1].hash
    for note in read_notes(db):
        yield json.dumps(
            {"checkpoint": {"seq": note.kept_at, "signer": note.signer, "note": note.text}},
            ensure_ascii=False,
        )
    yield json.dumps({"end": {"entries": seq, "hash": head.hex()}})
