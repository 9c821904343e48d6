"""A thousand ways to meddle with the books, and every one of them is found.

Whoever meddles has the ledger's file and all the time in the world: triggers are dropped,
hashes computed anew, notes removed or signed with another key. What they have not is the
node's private key, and what others hold: the billing server's notes, and the mark beside
the file. Each run is made from a seed, which stands in the name of what fails:
`QCNODE_SEED=7 QCNODE_TAMPERS=1000` runs a thousand others.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from qcnode.books import chain
from qcnode.books.checkpoints import name_in, sign_checkpoint
from qcnode.books.mark import mark_path
from qcnode.books.proof import prove_file
from qcnode.books.seals import SigningKey, read_note
from qcnode.errors import LedgerCorruptError
from qcnode.money import Receipt
from tests.node.homes import FIRST, Node, spend
from tests.node.test_ledger import indeterminate, intent, not_billed, put

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qcnode.books.seals import PublicKey

SEED = int(os.environ.get("QCNODE_SEED", "0"))
TAMPERS = int(os.environ.get("QCNODE_TAMPERS", "0"))
FEW = 120
MANY = 1_000
COLUMNS = ("seq", "kind", "subject", "at_us", "body", "prev_hash", "hash")
Row = dict


@dataclass(frozen=True)
class Books:
    """A ledger whose node is at rest, and what others hold of it."""

    path: Path
    entries: int
    confirmed: int
    keys: dict[str, list[PublicKey]]
    late_note: str
    """The server's note at the last entry, which it has and the file does not."""


@pytest.fixture(scope="module")
def books(tmp_path_factory) -> Books:
    folder = tmp_path_factory.mktemp("tamper")
    node = Node(folder / "home", budgets=())
    server = SigningKey.open(folder / "server.key", name="billing")
    with node.open() as ledger:
        for number in range(30):
            name = f"{number:032x}"
            if number % 5 == 1:
                put(ledger, intent(name), not_billed(name))
            elif number % 5 == 3:
                put(ledger, intent(name), indeterminate(name))
            else:
                spend(ledger, name, pico=60 + number)
            node.clock.us += 45_000_000  # The node signs now and then.
            if number == 19:
                confirmed = ledger.totals().entries
                last = ledger.read(confirmed - 1, 1)[0]
                note = server.add_to(ledger.checkpoint_note(confirmed, last.hash))
                ledger.confirm(
                    Receipt(epoch=FIRST, acked_seq=confirmed, head_hash=last.hash.hex(), note=note)
                )
        entries = ledger.totals().entries
        end = ledger.read(entries - 1, 1)[0]
        late_note = server.add_to(ledger.checkpoint_note(entries, end.hash))
    return Books(
        path=node.path,
        entries=entries,
        confirmed=confirmed,
        keys={"node": [node.key.public], "server": [server.public]},
        late_note=late_note,
    )


# -- what can be done to a ledger ----------------------------------------------------------


class Meddler:
    """Somebody with the file, and with a key that is not the node's."""

    def __init__(self, db: sqlite3.Connection, chance: random.Random, key: SigningKey) -> None:
        self.db = db
        self.chance = chance
        self.key = key
        self.db.row_factory = sqlite3.Row
        for (trigger,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'"):
            db.execute(f"DROP TRIGGER {trigger}")
        db.execute("DROP INDEX entry_step")
        self.last = db.execute("SELECT max(seq) FROM entry").fetchone()[0]

    def row(self) -> Row:
        seq = self.chance.randint(1, self.last)
        return dict(self.db.execute("SELECT * FROM entry WHERE seq = ?", (seq,)).fetchone())

    def write(self, rows: list[Row]) -> None:
        """Write all entries anew."""
        self.db.execute("DELETE FROM entry")
        self.db.executemany(
            "INSERT INTO entry VALUES (:seq, :kind, :subject, :at_us, :body, :prev_hash, :hash)",
            rows,
        )

    def rows(self) -> list[Row]:
        return [dict(row) for row in self.db.execute("SELECT * FROM entry ORDER BY seq")]

    def hash_anew(self, rows: list[Row]) -> list[Row]:
        """Number and link rows as if they had always stood like this, and set the head."""
        before = chain.genesis(FIRST)
        for seq, row in enumerate(rows, start=1):
            row["seq"], row["prev_hash"] = seq, before
            row["hash"] = before = chain.entry_hash(seq, row["body"], before)
        self.write(rows)
        self.db.execute("UPDATE head SET seq = ?, hash = ?", (len(rows), before))
        self.db.execute(
            "UPDATE cursor SET seq = min(seq, ?), hash ="
            " (SELECT hash FROM entry WHERE seq = min(cursor.seq, ?))",
            (len(rows), len(rows)),
        )
        self.db.execute("DELETE FROM snapshot")
        return rows

    # Each returns the first entry that must be named, or None when any may be.

    def flip(self) -> int | None:
        """Flip a bit in any column of any entry."""
        while True:
            row, column = self.row(), self.chance.choice(COLUMNS)
            value = row[column]
            if isinstance(value, int):
                changed = value ^ (1 << self.chance.randrange(20))
                if column == "seq" and not self.last < changed:
                    continue  # There is one of that number already.
            else:
                raw = bytearray(value if isinstance(value, bytes) else value.encode())
                raw[self.chance.randrange(len(raw))] ^= 1 << self.chance.randrange(7)
                changed = bytes(raw) if isinstance(value, bytes) else raw.decode()
            statement = f"UPDATE entry SET {column} = ? WHERE seq = ?"  # noqa: S608
            self.db.execute(statement, (changed, row["seq"]))
            return row["seq"]

    def delete(self) -> int | None:
        """Take an entry out, and close the gap or not."""
        seq = self.row()["seq"]
        self.db.execute("DELETE FROM entry WHERE seq = ?", (seq,))
        if self.chance.random() < 0.5:
            self.db.execute("UPDATE entry SET seq = -seq WHERE seq > ?", (seq,))
            self.db.execute("UPDATE entry SET seq = -seq - 1 WHERE seq < 0")
            self.db.execute("UPDATE head SET seq = seq - 1")
        return seq if seq < self.last else None

    def swap(self) -> int | None:
        """Let two entries change places, links and all or without them."""
        rows = self.rows()
        one, two = sorted(self.chance.sample(range(len(rows)), 2))
        if self.chance.random() < 0.5:
            rows[one], rows[two] = rows[two], rows[one]
            rows[one]["seq"], rows[two]["seq"] = one + 1, two + 1
        else:
            for column in ("kind", "subject", "at_us", "body"):
                rows[one][column], rows[two][column] = rows[two][column], rows[one][column]
        self.write(rows)
        return one + 1

    def insert(self) -> int | None:
        """Put an entry in that never was: what somebody paid, as they would have it."""
        rows = self.rows()
        at = self.chance.randrange(len(rows) + 1)
        forged = dict(rows[self.chance.randrange(len(rows))])
        before = rows[at - 1]["hash"] if at else chain.genesis(FIRST)
        forged["prev_hash"] = before
        forged["hash"] = chain.entry_hash(at + 1, forged["body"], before)
        rows.insert(at, forged)
        for seq, row in enumerate(rows, start=1):
            row["seq"] = seq
        self.write(rows)
        self.db.execute("UPDATE head SET seq = seq + 1")
        return None

    def patch(self) -> int | None:
        """Change one entry and hash it anew, and leave all the others as they are."""
        row = self.row()
        body = row["body"].replace(b'"at_us":1', b'"at_us":2', 1)
        digest = chain.entry_hash(row["seq"], body, row["prev_hash"])
        self.db.execute(
            "UPDATE entry SET at_us = ?, body = ?, hash = ? WHERE seq = ?",
            (int(f"2{str(row['at_us'])[1:]}"), body, digest, row["seq"]),
        )
        # It is sound by itself: the next one hangs on another, or the ledger ended otherwise.
        return min(row["seq"] + 1, self.last)

    def truncate(self) -> int | None:
        """Cut the tail off with care: head, cursor and every note of it."""
        seq = self.chance.randint(2, self.last)
        self.db.execute("DELETE FROM checkpoint WHERE seq >= ?", (seq,))
        self.hash_anew(self.rows()[: seq - 1])
        return seq

    def resign(self) -> int | None:
        """Write a history of their own and sign it, with a key they have."""
        self.rewrite()
        notes = self.db.execute("SELECT seq, note FROM checkpoint WHERE signer = 'node'").fetchall()
        for seq, note in notes:
            name = name_in(read_note(note).origin)
            assert name == self.key.public.name
            digest = self.db.execute("SELECT hash FROM entry WHERE seq = ?", (seq,)).fetchone()[0]
            self.db.execute(
                "UPDATE checkpoint SET note = ? WHERE seq = ? AND signer = 'node'",
                (sign_checkpoint(self.key, FIRST, seq, digest), seq),
            )
        self.db.execute("DELETE FROM checkpoint WHERE signer = 'server'")
        return None

    def rehash(self) -> int | None:
        """Write a history of their own and keep what notes still fit it."""
        first = self.rewrite()
        self.db.execute("DELETE FROM checkpoint WHERE seq >= ?", (first,))
        return None

    def rewrite(self) -> int:
        """Make an entry cheaper and link everything after it anew; return which."""
        rows = self.rows()
        while True:
            at = self.chance.randrange(len(rows))
            cheaper = re.sub(rb'"pico":[1-9][0-9]*', b'"pico":1', rows[at]["body"])
            if cheaper != rows[at]["body"]:
                break
        rows[at]["body"] = cheaper
        self.hash_anew(rows)
        return at + 1


WAYS: dict[str, Callable[[Meddler], int | None]] = {
    "flip": Meddler.flip,
    "delete": Meddler.delete,
    "swap": Meddler.swap,
    "insert": Meddler.insert,
    "patch": Meddler.patch,
    "truncate": Meddler.truncate,
    "re-sign": Meddler.resign,
    "rehash": Meddler.rehash,
}


def tamper_once(books: Books, folder: Path, seed: int) -> str:
    """Meddle with a copy of the books, and return in which way when it was found."""
    chance = random.Random(f"tamper {seed}")
    folder.mkdir()
    path = folder / "ledger.db"
    shutil.copy(books.path, path)
    # The auditor has the server's last note, or else the home with its mark.
    witness, with_mark = ((books.late_note,), False) if chance.random() < 0.5 else ((), True)
    if with_mark:
        shutil.copy(mark_path(books.path), mark_path(path))
    way = chance.choice(list(WAYS))
    impostor = SigningKey.open(folder.parent / "impostor.key", name="acme/n1")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("BEGIN")
        first = WAYS[way](Meddler(db, chance, impostor))
        db.execute("COMMIT")
    said = problem(path, books, witness)
    known = "mark" if with_mark else "witness"
    assert said is not None, f"seed {seed}: {way} was not found ({known})"
    named = re.search(r"entr(?:y|ies) (\d+)", said)
    assert named, f"seed {seed}: {way}, and no entry is named: {said}"
    assert first in (None, int(named[1])), f"seed {seed}: {way} at {first}: {said}"
    shutil.rmtree(folder)
    return way


def problem(path: Path, books: Books, witness: tuple[str, ...]) -> str | None:
    try:
        prove_file(path, keys=books.keys, witness=witness)
    except LedgerCorruptError as error:
        return str(error)
    return None


def tamper(books: Books, folder: Path, count: int) -> Counter:
    seeds = range(SEED, SEED + count)
    return Counter(tamper_once(books, folder / str(seed), seed) for seed in seeds)


def test_the_books_are_sound_before_anybody_meddles(books):
    proof = prove_file(books.path, keys=books.keys, witness=(books.late_note,))
    assert (proof.tally.seq, proof.confirmed) == (books.entries, books.confirmed)
    assert proof.kept.notes > 10
    assert (proof.kept.unsigned, proof.witness.unsigned) == (0, 0)


def test_every_tamper_is_found_and_named(books, tmp_path):
    count = TAMPERS or FEW
    found = tamper(books, tmp_path, count)
    assert found.total() == count
    assert TAMPERS or set(found) == set(WAYS)


@pytest.mark.long
def test_a_thousand_of_a_thousand_tampers_are_found(books, tmp_path):
    found = tamper(books, tmp_path, MANY)
    assert found.total() == MANY


@pytest.mark.parametrize("with_key", [False, True])
def test_what_nobody_outside_holds_can_be_forged_and_is_said_to_be_signed_by_nobody(
    books, tmp_path, with_key
):
    # The control: this is as far as a file can speak for itself.
    path = tmp_path / "ledger.db"
    shutil.copy(books.path, path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        meddler = Meddler(db, random.Random(1), SigningKey.open(tmp_path / "k", name="acme/n1"))
        rows = meddler.rows()
        rows[-1]["body"] = rows[-1]["body"].replace(b'"pico":', b'"pico":9')
        meddler.hash_anew(rows)
        db.execute("DELETE FROM checkpoint WHERE seq = ?", (books.entries,))
    proof = prove_file(path, keys=books.keys if with_key else {})
    assert proof.vouched_seq < proof.tally.seq
