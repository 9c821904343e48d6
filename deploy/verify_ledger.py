#!/usr/bin/env python3
"""Check an export of a qcnode ledger with nothing of qcnode installed.

    qcnode ledger export --home HOME --out books.jsonl        (at the node)
    python3 verify_ledger.py books.jsonl --key NODE_KEY --note server-notes.txt --server-key KEY

Needed: Python 3.11 and the package `cryptography`. What is checked: that every entry
hashes to what it says and hangs on the one before it, from the epoch on; that it is written
the one way that is hashed; that no attempt takes a step it may not take, and what all of
them come to; that every signed note in the file agrees with the entries and carries the
signature of the key you give; and, by notes that the billing server or you have kept
elsewhere, that no tail was cut off.

Keys that stand in the export itself prove only that it agrees with itself: ask the node's
owner and the billing server for theirs.

Exit code 0: all of it holds. 1: something does not, and the first bad entry is named.
2: this is no export, a key is none, or the file cannot be read.
"""
# One file on purpose, to be copied to whoever does the checking.

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FORMAT = "qcnode.ledger.export.v1"
PICO = 10**12
LIVE = frozenset({"reserved", "intent"})
LEARNABLE = frozenset({"indeterminate", "unpriced"})
PRICED = frozenset({"settled", "reconciled"})
CLASSES = (
    "text",
    "image",
    "unknown",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "output",
    "reasoning",
)
OUTPUT = ("output", "reasoning")
HASH_BYTES = 32
EPOCH = re.compile(r"[^/\s]{1,200}")
NOTE = re.compile(r"(?P<origin>[^\n]{1,300})\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<head>[^\n]{44})\n")
SEAL = re.compile(r"\u2014 (?P<name>[^\s+]{1,200}) (?P<seal>[A-Za-z0-9+/=]{1,200})")
SIGNED = "\u2014 "


class BadLedgerError(Exception):
    """What the export says cannot be true."""


class BadInputError(Exception):
    """This is not what can be checked here."""


# -- entries -----------------------------------------------------------------------------


@dataclass
class Standing:
    """How one attempt stands."""

    state: str
    attempt: Any
    hold: Any
    cost: Any


@dataclass
class Books:
    """What the entries come to."""

    epoch: str
    entries: int = 0
    head: bytes = b""
    hashes: list[bytes] = field(default_factory=list)
    attempts: dict[str, Standing] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=lambda: {"input": 0, "output": 0})
    accounts: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def add(self, seq: int, body: bytes, digest: bytes) -> None:
        """Take the entry that follows, or raise `BadLedgerError`."""
        if seq != self.entries + 1:
            raise BadLedgerError(f"entry {self.entries + 1} is missing, {seq} stands in its place")
        if digest != entry_hash(seq, body, self.head):
            raise BadLedgerError(f"entry {seq} was changed: its hash does not match")
        try:
            self.follow(*read_body(body))
        except (KeyError, TypeError, AttributeError) as error:
            raise BadLedgerError(f"entry {seq}: its body is no fact ({error!r})") from error
        except ValueError as error:
            raise BadLedgerError(f"entry {seq}: {error}") from error
        self.entries, self.head = seq, digest
        self.hashes.append(digest)

    def follow(self, kind: str, version: int, fact: dict[str, Any]) -> None:
        """Take the step that `fact` is, or raise `ValueError`."""
        if kind in ("outcome", "leased") and version > 1:
            return
        if kind == "epoch_opened" and version > 1:
            if self.entries:
                raise ValueError("an epoch is opened by its first entry and by no other")
            return
        name = fact["attempt"]["id"] if kind in LIVE else fact["attempt_id"]
        if not isinstance(name, str):
            raise TypeError("an attempt without a name")
        before = self.attempts.get(name)
        after = advance(before, kind, fact, name)
        self.post(before, after)
        self.count(before, kind, fact, version)
        self.attempts[name] = after

    def post(self, before: Standing | None, after: Standing) -> None:
        """Move held and used amounts, each from one account to another."""
        centre = json.dumps(after.attempt.get("centre"), sort_keys=True, ensure_ascii=False)
        provider = after.attempt["provider"]
        for standing, sign in ((before, -1), (after, 1)):
            for cost, gains, gives in (
                (None if standing is None else standing.hold, "holds", "pending"),
                (None if standing is None else standing.cost, "usage", "payable"),
            ):
                if cost is not None:
                    pico = sign * cost["pico"]
                    self.move((gains, centre, cost["currency"]), pico)
                    self.move((gives, provider, cost["currency"]), -pico)

    def move(self, account: tuple[str, str, str], pico: int) -> None:
        """Add to one account."""
        self.accounts[account] = self.accounts.get(account, 0) + pico

    def count(self, before: Standing | None, kind: str, fact: dict[str, Any], version: int) -> None:
        """Count the tokens of an answer once."""
        usage = fact.get("usage") if kind in ("settled", "reconciled") else None
        if usage is None or (kind == "reconciled" and before and before.state == "unpriced"):
            return
        counts = tokens_v1(usage) if version == 1 else tokens(usage)
        self.tokens["input"] += counts[0]
        self.tokens["output"] += counts[1]

    def states(self) -> dict[str, int]:
        """Return how many attempts stand where."""
        found: dict[str, int] = {}
        for standing in self.attempts.values():
            found[standing.state] = found.get(standing.state, 0) + 1
        return found

    def sums(self, book: str) -> dict[str, int]:
        """Return what stands in all accounts of one kind, by currency."""
        found: dict[str, int] = {}
        for (kind, _of, currency), pico in self.accounts.items():
            if kind == book:
                found[currency] = found.get(currency, 0) + pico
        return {currency: pico for currency, pico in found.items() if pico}


def genesis(epoch: str) -> bytes:
    """Return what the first entry hangs on."""
    return hashlib.sha256(b"\x01" + epoch.encode()).digest()


def entry_hash(seq: int, body: bytes, before: bytes) -> bytes:
    """Return SHA-256(0x00 || u64 seq || u32 length || body || hash before)."""
    return hashlib.sha256(
        b"\x00" + seq.to_bytes(8, "big") + len(body).to_bytes(4, "big") + body + before
    ).digest()


def read_body(body: bytes) -> tuple[str, int, dict[str, Any]]:
    """Return kind, version and fact of a body that is written the one way that is hashed."""
    try:
        read = json.loads(body, parse_float=refuse_number, parse_constant=refuse_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its body is no JSON of whole numbers ({error})") from error
    if canonical(read) != body:
        raise ValueError("its body is not written the one way that is hashed")
    if not isinstance(read, dict) or not set(read) <= {"at_us", "fact", "kind", "v"}:
        raise ValueError("its body is no fact")
    version = read.get("v", 1)
    if version not in (1, 2):
        raise ValueError(f"of a version that is not known here: {version!r:.20}")
    if not isinstance(read["fact"], dict) or type(read["at_us"]) is not int:
        raise ValueError("its body is no fact")
    return read["kind"], version, read["fact"]


def canonical(value: Any) -> bytes:
    """Write JSON with sorted keys, no spaces, in UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def refuse_number(text: str) -> NoReturn:
    """Refuse what is no whole number."""
    raise ValueError(f"{text[:40]} is no whole number")


def advance(  # noqa: C901  # one for each kind of fact
    before: Standing | None, kind: str, fact: dict[str, Any], name: str
) -> Standing:
    """Return how an attempt stands after `fact`, or raise `ValueError`."""
    if kind in LIVE:
        return begin(before, kind, fact, name)
    if before is None:
        raise ValueError(f"attempt {name} has no intent on record")
    state = before.state
    hold: Any = None
    cost: Any = None
    if kind == "not_billed" and state in LIVE:
        after = "not_billed"
    elif kind == "settled" and state == "intent":
        cost = money(fact["cost"])
        after, hold = ("unpriced", before.hold) if cost is None else ("settled", None)
    elif kind == "indeterminate" and state == "intent":
        after, hold = "indeterminate", money(fact["hold"])
        if hold is None or hold["currency"] != before.hold["currency"]:
            raise ValueError(f"attempt {name} is held in another currency")
    elif kind == "reconciled" and state in LEARNABLE:
        after, cost = "reconciled", money(fact["cost"])
    elif kind == "written_off" and state in LEARNABLE:
        after = "written_off"
    elif kind == "adjusted" and (state in PRICED or state == "unpriced"):
        if fact["before"] != before.cost:
            raise ValueError(f"attempt {name} costs something else than is adjusted")
        after, cost = ("settled" if state == "unpriced" else state), money(fact["after"])
    else:
        raise ValueError(f"attempt {name} is {state}, and {kind!r:.20} may not follow")
    if cost is None and after in PRICED:
        raise ValueError(f"attempt {name} has no cost")
    return Standing(state=after, attempt=before.attempt, hold=hold, cost=cost)


def begin(before: Standing | None, kind: str, fact: dict[str, Any], name: str) -> Standing:
    """Return how an attempt stands that is reserved for or announced."""
    hold = money(fact["hold"])
    if hold is None:
        raise ValueError(f"attempt {name} holds nothing")
    if before is not None and (kind == "reserved" or before.state != "reserved"):
        raise ValueError(f"attempt {name} is on record already ({before.state})")
    if before is not None and before.attempt != fact["attempt"]:
        raise ValueError(f"attempt {name} is not what was reserved for")
    return Standing(state=kind, attempt=fact["attempt"], hold=hold, cost=None)


def money(cost: Any) -> Any:
    """Return an amount as it stands, or raise `ValueError` for what is none."""
    if cost is None:
        return None
    if type(cost["pico"]) is not int or cost["pico"] < 0 or not isinstance(cost["currency"], str):
        raise ValueError(f"no amount: {cost!r:.80}")
    return cost


def tokens(usage: dict[str, Any]) -> tuple[int, int]:
    """Return input and output of classes that share no token."""
    counts = {name: whole(usage.get(name, 0)) for name in CLASSES}
    out = sum(counts[name] for name in OUTPUT)
    return sum(counts.values()) - out, out


def tokens_v1(usage: dict[str, Any]) -> tuple[int, int]:
    """Return input and output as the first version wrote them."""
    return whole(usage["input_tokens"]), whole(usage["output_tokens"])


def whole(count: Any) -> int:
    """Return a count of tokens, or raise `ValueError` for what is none."""
    if type(count) is not int or count < 0:
        raise ValueError(f"no count of tokens: {count!r:.40}")
    return count


# -- signatures --------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """Somebody's public key under a name."""

    name: str
    raw: bytes

    @property
    def id(self) -> bytes:
        """Four bytes that stand before each of its signatures."""
        return hashlib.sha256(self.name.encode() + b"\n\x01" + self.raw).digest()[:4]


@dataclass(frozen=True)
class Note:
    """What a signed note says, and its signatures: (name, key id and signature)."""

    origin: str
    size: int
    head: bytes
    text: bytes
    seals: tuple[tuple[str, bytes], ...]


def read_key(given: str) -> Key:
    """Read a public key, NAME+ID+KEY, or the file that holds it."""
    file = Path(given)
    try:
        text = (file.read_text("utf-8") if file.is_file() else given).strip()
        name, _, rest = text.partition("+")
        mark, _, encoded = rest.partition("+")
        raw = base64.b64decode(encoded, validate=True)
    except (OSError, UnicodeError, binascii.Error) as error:
        raise BadInputError(f"{given:.80}: cannot be read as a key: {error}") from error
    key = Key(name, raw[1:])
    if raw[:1] != b"\x01" or len(key.raw) != HASH_BYTES or key.id.hex() != mark:
        raise BadInputError(f"{given:.80}: is no key: it reads NAME+ID+KEY; copy it whole")
    return key


def read_note(text: str) -> Note:
    """Read one signed note; raises `ValueError`."""
    body, gap, tail = text.partition("\n\n")
    found = NOTE.fullmatch(body + "\n")
    if not gap or found is None or not tail.endswith("\n"):
        raise ValueError("it is no signed note")
    seals = []
    for line in tail[:-1].split("\n"):
        seal = SEAL.fullmatch(line)
        if seal is None:
            raise ValueError("one of its signatures cannot be read")
        seals.append((seal["name"], base64.b64decode(seal["seal"], validate=True)))
    head = base64.b64decode(found["head"], validate=True)
    if len(head) != HASH_BYTES:
        raise ValueError("its hash is not of 32 bytes")
    return Note(found["origin"], int(found["size"]), head, (body + "\n").encode(), tuple(seals))


def split_notes(text: str) -> list[str]:
    """Take apart notes that stand one after the other."""
    notes: list[str] = []
    lines: list[str] = []
    signed = False
    for line in text.splitlines():
        if signed and not line.startswith(SIGNED):
            notes.append("\n".join(lines) + "\n")
            lines, signed = [], False
            if not line:
                continue
        lines.append(line)
        signed = line.startswith(SIGNED)
    if any(lines):
        notes.append("\n".join(lines) + "\n")
    return notes


def is_signed(note: Note, keys: Sequence[Key]) -> bool:
    """Say whether one of `keys` has signed `note`."""
    for key in keys:
        for name, seal in note.seals:
            if name == key.name and seal[:4] == key.id:
                try:
                    Ed25519PublicKey.from_public_bytes(key.raw).verify(seal[4:], note.text)
                except InvalidSignature:
                    continue
                return True
    return False


def check_note(books: Books, text: str, who: str, keys: Sequence[Key], seq: int | None) -> int:
    """Check a note against the entries; return its size, or 0 when it is about others.

    `seq` is where the export keeps it. A note without a known key is compared all the same.
    """
    try:
        note = read_note(text)
    except (ValueError, binascii.Error) as error:
        raise BadLedgerError(f"a note of {who} cannot be read: {error}") from error
    mine = note.origin.rpartition("/")[2] == books.epoch
    if seq is not None and (not mine or seq != note.size):
        raise BadLedgerError(f"the note of {who} at entry {seq} is about something else")
    if not mine:
        return 0
    if keys and not is_signed(note, keys):
        raise BadLedgerError(f"the note at entry {note.size} has no signature of {who}")
    if note.size > books.entries:
        raise BadLedgerError(
            f"entry {books.entries + 1} is missing: {who} has vouched for {note.size}"
        )
    if note.size and books.hashes[note.size - 1] != note.head:
        raise BadLedgerError(
            f"entry {note.size} is another one than {who} has vouched for: it, or one before"
            " it, was changed"
        )
    return note.size


# -- the file ----------------------------------------------------------------------------


@dataclass
class Result:
    """What was checked."""

    books: Books
    notes: int = 0
    signed_by_node: int = 0
    signed_by_server: int = 0
    own_keys: bool = False
    """Whether the only keys known are those that stand in the export."""


def check_export(
    path: Path, keys: list[Key], server_keys: list[Key], notes: Iterable[str]
) -> Result:
    """Check the export at `path`; raises `BadLedgerError` and `BadInputError`."""
    try:
        with path.open("rb") as file:
            result, own = read_header(path, file.readline())
            known = {"node": keys or own["node"], "server": server_keys or own["server"]}
            result.own_keys = not (keys or server_keys) and any(own.values())
            ended = False
            for number, line in enumerate(file, start=2):
                if ended:
                    raise BadLedgerError(f"line {number}: something follows the end")
                ended = read_line(result, line, number, known)
            if not ended:
                raise BadLedgerError(
                    f"the export has no end: it was cut off after entry {result.books.entries}"
                )
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from error
    for text in notes:
        size = check_note(result.books, text, "the billing server", known["server"], None)
        result.notes += size > 0
        result.signed_by_server = max(result.signed_by_server, size)
    return result


def read_header(path: Path, line: bytes) -> tuple[Result, dict[str, list[Key]]]:
    """Read the first line: which ledger this is, and the keys that it names itself."""
    try:
        header = json.loads(line)
        epoch, known = header["epoch"], header["format"] == FORMAT
        named, own = EPOCH.fullmatch(epoch), header.get("keys", {})
        keys = {who: [read_key(key) for key in own.get(who, [])] for who in ("node", "server")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInputError(
            f"{path}: is no ledger export: make one with `qcnode ledger export` ({error})"
        ) from error
    if not known or not named:
        raise BadInputError(f"{path}: is an export of another form ({header['format']!r:.60})")
    books = Books(epoch=epoch, head=genesis(epoch))
    if header.get("genesis", books.head.hex()) != books.head.hex():
        raise BadLedgerError("the header names another beginning than that of its epoch")
    return Result(books=books), keys


def read_line(result: Result, line: bytes, number: int, known: dict[str, list[Key]]) -> bool:
    """Take one line; return True for the end."""
    books = result.books
    try:
        row = json.loads(line)
        if "checkpoint" in row:
            kept = row["checkpoint"]
            who = {"node": "the node", "server": "the billing server"}[kept["signer"]]
            size = check_note(books, kept["note"], who, known[kept["signer"]], kept["seq"])
            result.notes += 1
            which = "signed_by_node" if kept["signer"] == "node" else "signed_by_server"
            setattr(result, which, max(getattr(result, which), size))
            return False
        if "end" in row:
            end = row["end"]
            if end["entries"] != books.entries or end["hash"] != books.head.hex():
                raise BadLedgerError(
                    f"entry {books.entries + 1} is missing: the export ended with {end['entries']}"
                    if end["entries"] != books.entries
                    else f"entry {books.entries} is not the one the export ended with"
                )
            return True
        if row["epoch"] != books.epoch:
            raise BadLedgerError(f"entry {row['seq']} belongs to epoch {row['epoch']:.80}")
        seq, body, digest = row["seq"], row["body"].encode(), bytes.fromhex(row["hash"])
        if type(seq) is not int or not 0 < seq < 1 << 63:
            raise BadLedgerError(
                f"entry {books.entries + 1}: line {number} is an entry without a number"
            )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadLedgerError(
            f"entry {books.entries + 1}: line {number} is not as it was exported ({error!r:.80})"
        ) from error
    books.add(seq, body, digest)
    return False


def lines_of(result: Result) -> Iterable[str]:
    """Say what was found, for people."""
    books = result.books
    yield f"{books.entries} entries of epoch {books.epoch}: chain, form and steps hold"
    states = sorted(books.states().items())
    yield f"{len(books.attempts)} attempts: " + ", ".join(
        f"{count} {state.replace('_', ' ')}" for state, count in states
    )
    yield f"{books.tokens['input']} input and {books.tokens['output']} output tokens"
    for words, book in (("measured", "usage"), ("held", "holds")):
        for currency, pico in sorted(books.sums(book).items()):
            yield f"{words} {pico // PICO}.{pico % PICO:012d} {currency}"
    if result.signed_by_node:
        yield f"signed by the node up to entry {result.signed_by_node}"
    if result.signed_by_server:
        yield f"signed by the billing server up to entry {result.signed_by_server}"
    left = books.entries - max(result.signed_by_node, result.signed_by_server)
    if left:
        yield f"{left} entries at the end are signed by nobody"
    if result.own_keys:
        yield "by the keys in the export itself: ask for them elsewhere, or it proves little"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", type=Path, help="what `qcnode ledger export` wrote")
    parser.add_argument(
        "--key", action="append", default=[], help="the node's public key, or a file with it"
    )
    parser.add_argument(
        "--server-key", action="append", default=[], help="the billing server's, likewise"
    )
    parser.add_argument(
        "--note",
        action="append",
        default=[],
        type=Path,
        help="a file of the billing server's signed notes, kept elsewhere",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(words)
    try:
        notes = [note for file in given.note for note in split_notes(file.read_text("utf-8"))]
        result = check_export(
            given.export,
            [read_key(one) for one in given.key],
            [read_key(one) for one in given.server_key],
            notes,
        )
    except BadLedgerError as error:
        return end(1, {"verified": False, "problem": str(error)}, str(error), as_json=given.json)
    except (BadInputError, OSError, UnicodeError) as error:
        return end(2, {"problem": str(error)}, str(error), as_json=given.json)
    books = result.books
    told = {
        "verified": True,
        "epoch": books.epoch,
        "entries": books.entries,
        "attempts": books.states(),
        "tokens": books.tokens,
        "cost_pico": books.sums("usage"),
        "held_pico": books.sums("holds"),
        "signed_by_node": result.signed_by_node,
        "signed_by_server": result.signed_by_server,
        "notes": result.notes,
        "own_keys": result.own_keys,
    }
    return end(0, told, "\n".join(lines_of(result)), as_json=given.json)


def end(code: int, told: dict[str, Any], words: str, *, as_json: bool) -> int:
    """Print what was found and return the exit code."""
    if as_json:
        sys.stdout.write(json.dumps(told, sort_keys=True) + "\n")
    else:
        (sys.stdout if code == 0 else sys.stderr).write(words + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
