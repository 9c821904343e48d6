"""What taking a batch costs the billing server, next to a bare COPY of the same rows.

Ours does what a server does for each batch: read it, check its chain, its signature and
that each body is written the one way there is, follow every attempt, store, commit. It
does so in as many processes as there are cores, each sent the batches of one node, as
`qcnode billing serve --workers` would. The reference copies the rows that come of it into
a table of the same shape, a thousand a transaction, and checks nothing.
"""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qcbridge.billing.engine import Database
from qcbridge.billing.intake import Intake
from qcbridge.billing.keys import Trust
from qcbridge.billing.pool import StoreOptions, TakingPool
from qcnode.bench.facts import facts
from qcnode.bench.measure import Result, in_turn, speed_ratio
from qcnode.books import chain
from qcnode.books.batch import encode_batch
from qcnode.books.checkpoints import sign_checkpoint
from qcnode.books.seals import SigningKey
from qcnode.errors import BillingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qcnode.money import LedgerEntry

BATCH = 500
COPIED = 1_000
_AT = datetime(2026, 11, 22, 12, tzinfo=UTC)
_TABLE = "qcnode_bench_copy"


def import_results(url: str, *, rounds: int, entries: int) -> Iterator[Result]:
    """Measure the import into the empty PostgreSQL database at `url`."""
    database = Database(url)
    try:
        if database.is_sqlite:
            raise BillingError(f"{database.name}: the import is measured on PostgreSQL")
        database.migrate()
        pairs = list(_pairs(database, url, rounds=rounds, entries=entries))
    finally:
        database.close()
    rates = tuple(entries / mine for mine, _theirs in pairs)
    yield Result(
        name="server import over COPY of the same rows, 1,000 a transaction",
        values=speed_ratio(pairs),
        aim=0.85,
    )
    yield Result(name="entries imported a second", values=rates, aim=20_000)


def _pairs(
    database: Database, url: str, *, rounds: int, entries: int
) -> Iterator[tuple[float, float]]:
    options = StoreOptions(url=url, now=_now, trust=Trust.FIRST, key_file=None)
    nodes = [f"node-{number}" for number in range(len(os.sched_getaffinity(0)))]
    keys = {node: SigningKey(f"bench/{node}", Ed25519PrivateKey.generate()) for node in nodes}
    share = entries // len(nodes)
    pool = TakingPool(options, workers=len(nodes))
    intake = Intake(options.open_on(database), pool=pool)

    def send(batches: Sequence[bytes]) -> None:
        for raw in batches:
            receipt = intake.take(raw, via="bench")
        if receipt.acked_seq != share:
            raise BillingError(f"the server took {receipt.acked_seq} of {share}: {receipt}")

    def ours(number: int) -> float:
        batches = [_batches(_chain(f"{node}.{number}", share), node, keys[node]) for node in nodes]
        with ThreadPoolExecutor(len(nodes)) as senders:
            start = time.perf_counter()
            done = [senders.submit(send, of_one) for of_one in batches]
            for sent in done:
                sent.result()
            return time.perf_counter() - start

    def reference(number: int) -> float:
        with database.writing() as db, database.driving(db) as driver:
            rows = driver.execute(
                "SELECT * FROM entry ORDER BY ledger_id DESC, seq LIMIT %s", (share * len(nodes),)
            ).fetchall()
            driver.execute(f"DROP TABLE IF EXISTS {_TABLE}")
            driver.execute(f"CREATE TABLE {_TABLE} (LIKE entry INCLUDING ALL)")
            driver.commit()
        start = time.perf_counter()
        for at in range(0, len(rows), COPIED):
            with database.writing() as db, database.driving(db) as driver:
                _copy(driver, rows[at : at + COPIED])
                driver.commit()
        seconds = time.perf_counter() - start
        if len(rows) != share * len(nodes):
            raise BillingError(f"round {number}: {len(rows)} rows to copy, not {entries}")
        return seconds

    try:
        ours(-1)  # The first batch of all finds cold caches and an empty table.
        yield from in_turn(rounds, ours, reference)
    finally:
        pool.close()


def _copy(driver: Any, rows: Sequence[tuple[Any, ...]]) -> None:
    with driver.cursor() as cursor, cursor.copy(f"COPY {_TABLE} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _now() -> datetime:
    return _AT


def _chain(name: str, count: int) -> list[LedgerEntry]:
    """Return entries of a ledger of its own."""
    epoch = random.Random(name).randbytes(16).hex()  # noqa: S311  # another one each round
    made: list[LedgerEntry] = []
    before = chain.genesis(epoch)
    for seq, fact in enumerate(facts(0, count), 1):
        entry = chain.make_entry(
            fact, epoch=epoch, seq=seq, at_us=1_795_000_000_000_000 + seq, prev_hash=before
        )
        before = entry.hash
        made.append(entry)
    return made


def _batches(entries: Sequence[LedgerEntry], node: str, key: SigningKey) -> list[bytes]:
    batches: list[bytes] = []
    for at in range(0, len(entries), BATCH):
        part = entries[at : at + BATCH]
        last = part[-1]
        note = sign_checkpoint(key, last.epoch, last.seq, last.hash)
        batches.append(
            encode_batch("bench", node, part, at=_AT, checkpoint=note, key=str(key.public))
        )
    return batches
