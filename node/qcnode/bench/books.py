"""What the books cost next to the least that any books would: `qcnode bench --books`.

The reference writes the same entries into the same table with Python's `sqlite3`, chained
by the same hashes and made durable as often, and does nothing else: no states, no
budgets, no accounts, nobody waiting for an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from qcnode.bench.billing import import_results
from qcnode.bench.facts import facts
from qcnode.bench.measure import Result, in_turn, speed_ratio
from qcnode.bench.prices import lookup_result
from qcnode.bench.sync import sync_result
from qcnode.books import chain, ledger_file
from qcnode.books.attempts import subject_of
from qcnode.books.budgets import Budget
from qcnode.books.ledger import SqliteLedger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


BATCH = 100
_WAIT_S = 60.0
_EPOCH = "0" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is done in each round."""

    rounds: int = 7
    entries: int = 10_000
    single: int = 300
    lookups: int = 20_000
    batches: int = 200

    @classmethod
    def small(cls, rounds: int) -> Size:
        """Return enough to see that it works."""
        return cls(rounds=rounds, entries=1_000, single=20, lookups=500, batches=16)


def books_results(
    folder: Path, size: Size, *, broker: str | None = None, billing_url: str | None = None
) -> Iterator[Result]:
    """Measure the books, the ledger in `folder`, which is on the disk that counts.

    What needs a broker (HOST:PORT) or a database is left out without one.
    """
    yield lookup_result(rounds=size.rounds, lookups=size.lookups)
    yield _fsync(folder, size)
    yield _append(folder, size)
    yield _durable(folder, size)
    yield _verify(folder, size)
    if broker is not None:
        yield sync_result(broker, rounds=size.rounds, batches=size.batches)
    if billing_url is not None:
        yield from import_results(billing_url, rounds=size.rounds, entries=size.entries)


def _append(folder: Path, size: Size) -> Result:
    def ours(number: int) -> float:
        work = facts(number * size.entries, size.entries)
        with tempfile.TemporaryDirectory(dir=folder) as home:
            ledger = _ledger(Path(home))
            start = time.perf_counter()
            waiting = [
                ledger.submit_all(work[at : at + BATCH]) for at in range(0, len(work), BATCH)
            ]
            for future in waiting:
                future.result(_WAIT_S)
            seconds = time.perf_counter() - start
            ledger.close()
        return seconds

    def reference(number: int) -> float:
        work = _plain_facts(number * size.entries, size.entries)
        with tempfile.TemporaryDirectory(dir=folder) as home:
            plain = _Plain(Path(home))
            start = time.perf_counter()
            for at in range(0, len(work), BATCH):
                plain.append(work[at : at + BATCH])
            seconds = time.perf_counter() - start
            plain.close()
        return seconds

    pairs = list(in_turn(size.rounds, ours, reference))
    rate = size.entries / min(mine for mine, _theirs in pairs)
    return Result(
        name="append in batches of 100, chained, over plain sqlite3 doing the same",
        values=speed_ratio(pairs),
        aim=0.90,
        note=f"best round {rate:,.0f} entries/s",
    )


def _durable(folder: Path, size: Size) -> Result:
    with (
        tempfile.TemporaryDirectory(dir=folder) as home,
        tempfile.TemporaryDirectory(dir=folder) as other,
    ):
        ledger, plain = _ledger(Path(home)), _Plain(Path(other))

        def ours(number: int) -> float:
            work = facts(number * size.single, size.single)
            start = time.perf_counter()
            for fact in work:
                ledger.record(fact)
            return time.perf_counter() - start

        def reference(number: int) -> float:
            work = _plain_facts(number * size.single, size.single)
            start = time.perf_counter()
            for row in work:
                plain.append([row])
            return time.perf_counter() - start

        pairs = list(in_turn(size.rounds, ours, reference))
        ledger.close()
        plain.close()
    took_ms = 1_000 * min(mine for mine, _theirs in pairs) / size.single
    return Result(
        name="one durable entry over a one-row FULL commit of sqlite3",
        values=speed_ratio(pairs),
        aim=0.95,
        note=f"best round {took_ms:.3f} ms each",
    )


def _verify(folder: Path, size: Size) -> Result:
    with tempfile.TemporaryDirectory(dir=folder) as home:
        ledger = _ledger(Path(home))
        work = facts(0, size.entries)
        for at in range(0, len(work), BATCH):
            ledger.submit_all(work[at : at + BATCH]).result(_WAIT_S)
        ledger.close()
        rates: list[float] = []
        for _round in range(size.rounds):
            reader = ledger_file.LedgerReader(Path(home) / "ledger.db")
            start = time.perf_counter()
            reader.verify()
            rates.append(size.entries / (time.perf_counter() - start))
            reader.close()
    return Result(name="entries verified a second", values=tuple(rates), aim=50_000)


def _fsync(folder: Path, size: Size) -> Result:
    times: list[float] = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _round in range(size.rounds * 10):
            file.write(b"\0" * 4096)
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            times.append(1_000 * (time.perf_counter() - start))
    return Result(
        name="fsync of 4 KiB, ms",
        values=tuple(times),
        aim=20.0,
        at_least=False,
        note="of this disk, not of ours",
    )


class _Plain:
    """Entries in the same table, by the shortest way there is."""

    def __init__(self, home: Path) -> None:
        self._db = sqlite3.connect(home / "plain.db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(ledger_file.SCHEMA.read_text(encoding="utf-8"))
        self._seq, self._hash = 0, chain.genesis(_EPOCH)

    def append(self, work: Sequence[_Row]) -> None:
        rows = []
        for kind, subject, fact in work:
            at_us = time.time_ns() // 1_000
            body = json.dumps(
                {"at_us": at_us, "fact": fact, "kind": kind, "v": chain.BODY_VERSION},
                sort_keys=True,
                separators=(",", ":"),
                ensure_ascii=False,
            ).encode()
            seq, before = self._seq + 1, self._hash
            digest = hashlib.sha256(
                b"\x00" + seq.to_bytes(8, "big") + len(body).to_bytes(4, "big") + body + before
            ).digest()
            rows.append((seq, kind, subject, at_us, body, before, digest))
            self._seq, self._hash = seq, digest
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self._db.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?)", (self._seq, self._hash))
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


_Row: TypeAlias = tuple[str, str, dict[str, Any]]


def _plain_facts(first: int, count: int) -> list[_Row]:
    """Return the same facts as plain values, so that making them is not measured."""
    return [
        (chain.KIND_OF[type(fact)], subject_of(fact), asdict(fact)) for fact in facts(first, count)
    ]


def _ledger(home: Path) -> SqliteLedger:
    return SqliteLedger(
        home / "ledger.db",
        now_us=lambda: time.time_ns() // 1_000,
        new_epoch=lambda: _EPOCH,
        budgets=(Budget(name="day", limit=10**18, currency="USD"),),
    )
