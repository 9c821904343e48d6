"""Every state a power cut can leave a ledger in, opened by the real code and looked at.

A workload runs on a ledger whose every write, truncation, sync and removal is noted down
in order, and with them the moments at which something was acknowledged. A crash state is
one point of that record: what was synced until then is there, and of what was not, any
part, whole sectors in any order. Each state is opened as a node opens its ledger.

Run by itself it does the same with `synchronous` lowered, which must lose entries:

    python -m tests.faults.crash_states --states 2000
"""

import argparse
import contextlib
import itertools
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qcnode.books import chain
from qcnode.books.ledger import SqliteLedger
from qcnode.books.ledger_file import LedgerReader
from qcnode.books.mark import FileId
from qcnode.books.seals import SigningKey
from qcnode.errors import QcError
from qcnode.money import (
    Attempt,
    Cost,
    Indeterminate,
    Intent,
    NotBilled,
    Receipt,
    Reserved,
    Settled,
    TokenUsage,
)
from tests.sim.disk import Folder, perform, restore, watched
from tests.sim.quiet import quiet

EPOCH = "0123456789abcdef0123456789abcdef"
NOON_US = 20_000 * 86_400_000_000 + 43_200_000_000
BALLAST_BYTES = 16 * 1024
GROUPS = 50
"""Enough that SQLite moves its log into the file more than once."""

SYNC_LEVELS = ("FULL", "NORMAL", "OFF")


@dataclass(slots=True)
class Recording:
    """What a workload did to its folder, and what it was told meanwhile."""

    events: list = field(default_factory=list)
    """(what, file, write), and ("said", entries, receipt) when something was acknowledged."""
    hashes: list = field(default_factory=list)
    """Of every entry, in order."""
    ends: set = field(default_factory=set)
    """The seq at which a group that stands or falls together ends."""


@dataclass(slots=True)
class Report:
    """How many states were looked at, and what was wrong with how many of them."""

    states: int = 0
    found: Counter = field(default_factory=Counter)
    """corrupt: it does not open or verify. lost: an acknowledged entry or receipt is not
    there. half: a group is there in part, or an attempt is left open."""
    first: dict = field(default_factory=dict)
    """What the first state of each kind was, in words."""

    def note(self, kind, words):
        self.found[kind] += 1
        self.first.setdefault(kind, words)


def open_ledger(folder):
    """Open as a node does, with its key and its mark; the file is always the same one."""
    return SqliteLedger(
        folder / "ledger.db",
        now_us=lambda: NOON_US,
        new_epoch=lambda: EPOCH,
        key=SigningKey("t/n", Ed25519PrivateKey.from_private_bytes(bytes(32))),
        identify=lambda _path: FileId(inode=1, generation=1),
        ballast_bytes=BALLAST_BYTES,
    )


def record(folder, *, synchronous="FULL", seed=1, groups=GROUPS):
    """Run the workload in `folder` and return what it did."""
    folder.mkdir(parents=True)
    taken = Recording()
    with watched(folder, log=lambda *event: taken.events.append(event)):
        work(folder, taken, synchronous=synchronous, seed=seed, groups=groups)
    return taken


def work(folder, taken, *, synchronous="FULL", seed=1, groups=GROUPS):
    """Do the work: record, confirm, and now and then close the ledger and open it again."""
    ledger = None
    for number, facts in enumerate(workload(seed, groups)):
        between_attempts, turn = number % 2 == 0, number // 2
        if ledger is None or (between_attempts and turn % (groups // 3) == groups // 4):
            if ledger is not None:
                ledger.close()
            ledger = open_ledger(folder)
            ledger._db.execute(f"PRAGMA synchronous = {synchronous}")
        put(ledger, taken, facts)
        if number % 7 == 6:
            confirm(ledger, taken)
    ledger.close()


def put(ledger, taken, facts):
    """Record facts together, and note down that they were acknowledged."""
    for entry in ledger.submit_all(facts).result(10):
        taken.hashes.append(entry.hash)
    taken.ends.add(len(taken.hashes))
    taken.events.append(("said", len(taken.hashes), ledger.receipt_seq()))


def confirm(ledger, taken):
    """Take a receipt for all there is."""
    seq = len(taken.hashes)
    head_hash = taken.hashes[-1].hex()
    ledger.confirm(Receipt(epoch=EPOCH, acked_seq=seq, head_hash=head_hash))
    taken.events.append(("said", seq, seq))


def workload(seed, groups):
    """Yield groups of facts: attempts from reservation to outcome, none left open at an end."""
    chance = random.Random(seed)
    ids = itertools.count(1)
    usd = Cost(currency="USD", pico=1_000_000, rows=("row@2026",))
    worst = TokenUsage(text=900, image=256, output=300)
    for _ in range(groups):
        started, outcomes = [], []
        for _ in range(chance.randint(1, 4)):
            attempt = Attempt(
                id=f"a{next(ids):06d}", escalation_id="e", number=1, provider="p", model="m"
            )
            if chance.random() < 0.5:
                started.append(Reserved(attempt=attempt, worst=worst, hold=usd))
            started.append(
                Intent(
                    attempt=attempt,
                    worst=worst,
                    hold=usd,
                    request_sha256="0" * 64,
                    request_bytes=9,
                    image_sha256=None,
                )
            )
            outcomes.append(outcome(chance, attempt.id, usd))
        yield started
        yield outcomes


def outcome(chance, attempt_id, cost):
    kind = chance.random()
    if kind < 0.2:
        return NotBilled(attempt_id=attempt_id, reason="HTTP 429", http_status=429)
    if kind < 0.4:
        return Indeterminate(attempt_id=attempt_id, reason="reset", hold=cost)
    return Settled(
        attempt_id=attempt_id,
        usage=TokenUsage(text=7, output=3),
        cost=cost,
        started_at_us=NOON_US,
        rated_at_us=NOON_US,
        # As long as a usage block may be, so that the log fills soon.
        raw_usage=json.dumps({"prompt_tokens": 7, "note": "x" * chance.choice((9, 900, 8_000))}),
        response_id="r",
        model_served="m",
        http_status=200,
        duration_ms=1,
    )


class Replay:
    """Walks through a recording, and says at each point what a power cut would leave."""

    def __init__(self, taken):
        self._events = taken.events
        self._at = 0
        self._files = Folder()
        self.said = (0, 0)

    def to(self, point):
        """Go on until `point` events have happened."""
        for what, name, more in self._events[self._at : point]:
            if what == "said":
                self.said = (name, more)
            else:
                perform(self._files, what, name, more)
        self._at = point

    def left(self, chance, how):
        """Return the files: `none` or `all` of what was not synced is there, or any `part`."""
        return self._files.left(chance, how)


def examine(folder, taken, *, states, seed=1):
    """Open `states` crash states of a recording, spread over all of it, and report."""
    chance = random.Random(seed)
    report = Report()
    replay = Replay(taken)
    # At every point once with nothing and once with all of what was not synced, as far as
    # there are states; the rest are torn.
    points = len(taken.events)
    kinds = ["none", "all", "part", "part"]
    wanted = sorted(
        (point * points // states, kinds[point % len(kinds)]) for point in range(states)
    )
    for number, (point, how) in enumerate(wanted):
        replay.to(point)
        place = folder / f"state{number}"
        restore(place, replay.left(chance, how))
        report.states += 1
        for kind, words in dict(look(place, taken, replay.said)).items():
            report.note(kind, f"after event {point} of {points} ({how}): {words}")
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
    return report


def look(folder, taken, said):  # noqa: C901  # one case after the other
    """Open what is left as a node would, and yield what is wrong with it."""
    acknowledged, confirmed = said
    try:
        ledger = open_ledger(folder)
    except QcError as error:
        yield "corrupt", str(error)
        return
    try:
        entries = ledger.read(0, len(taken.hashes) + 100)
        live = ledger.totals()
        receipt = ledger.receipt_seq()
    except QcError as error:
        yield "corrupt", str(error)
        return
    finally:
        ledger.close()
    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as db:
        if (sound := db.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            yield "corrupt", sound
    pairs = zip(entries, taken.hashes, strict=False)
    kept = sum(1 for entry, digest in pairs if entry.hash == digest)
    if len(entries) > kept:  # Opening added to what it had verified.
        reader = LedgerReader(folder / "ledger.db")
        try:
            reader.verify()
        except QcError as error:
            yield "corrupt", str(error)
        finally:
            reader.close()
    if kept < acknowledged:
        yield "lost", f"{acknowledged} entries acknowledged, {kept} there"
    if receipt < confirmed:
        yield "lost", f"receipt up to {confirmed} acknowledged, {receipt} there"
    if kept and kept not in taken.ends:
        yield "half", f"a group is there up to entry {kept} only"
    if live.open or live.reserved:
        yield "half", f"{live.open + live.reserved} attempts are left open"
    if any(
        not isinstance(chain.fact_of(entry), Indeterminate | NotBilled) for entry in entries[kept:]
    ):
        yield "half", f"entries beyond {kept} that nobody wrote"


def run(folder, *, states, synchronous="FULL", seed=1):
    """Record a workload and look at the states it can leave."""
    with quiet():
        taken = record(folder / "recorded", synchronous=synchronous, seed=seed)
        return examine(folder / "states", taken, states=states, seed=seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    wrong = False
    for synchronous in SYNC_LEVELS:
        began = time.monotonic()
        states = arguments.states if synchronous == "FULL" else arguments.states // 4
        with tempfile.TemporaryDirectory() as folder:
            report = run(Path(folder), states=states, synchronous=synchronous, seed=arguments.seed)
        print(  # noqa: T201  # the figures for docs/proof.md
            f"synchronous={synchronous}: {report.states} states in"
            f" {time.monotonic() - began:.0f} s:"
            f" {report.found['corrupt']} corrupt, {report.found['half']} half,"
            f" {report.found['lost']} lost"
        )
        for kind, words in report.first.items():
            print(f"  first {kind}: {words}")  # noqa: T201
        wrong |= bool(report.found) if synchronous == "FULL" else not report.found["lost"]
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
