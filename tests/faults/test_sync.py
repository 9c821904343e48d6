"""A real ledger, the real billing server's books, and a way between them that does its worst."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from qcbridge.billing.app import create_app
from qcbridge.billing.engine import Database
from qcbridge.billing.keys import Trust
from qcbridge.billing.reports import Reports
from qcbridge.billing.store import BillingStore
from qcbridge.billing.witness import Witness, open_key
from qcnode.books import batch, outbox
from qcnode.books.archive import ArchivedLedger
from qcnode.books.inbox import Inbox
from qcnode.books.ledger import SqliteLedger
from qcnode.books.outbox import Outbox
from qcnode.books.pin import ServerKey
from qcnode.books.seals import SigningKey
from qcnode.errors import LineUnavailableError
from qcnode.health import HealthBoard
from qcnode.lines.http import HttpChannel
from tests.bridge.ledgers import indeterminate, intent, not_billed, settled

START = datetime(2026, 10, 20, 8, tzinfo=UTC)


def attempts(count, name):
    """Return facts of `count` attempts that end in every way there is."""
    facts = []
    for attempt in (f"{name}{number}" for number in range(count)):
        facts.append(intent(attempt))
        ends = (settled(attempt), not_billed(attempt), indeterminate(attempt))
        facts.append((*ends, settled(attempt, cost=None))[len(facts) // 2 % 4])
    return facts


class World:
    """One node's files, one billing server's files, and what lies between, which may fail."""

    def __init__(self, home, *, seed=0):
        self.home = home
        self.luck = random.Random(seed)
        self.now = START
        self.loses = 0.0
        self.down = False
        self.delivered = asyncio.Event()
        self.health = HealthBoard(lambda: self.now)
        self.node_key = SigningKey.open(home / "node.key", name="acme/n1")
        self.server_key = ServerKey(home / "billing.pub")
        self.ledger = self.open_ledger()
        self.open_server()

    # -- the node -------------------------------------------------------------------------

    def open_ledger(self, name="ledger.db", epoch="e" * 32):
        return SqliteLedger(
            self.home / name,
            now_us=lambda: int(self.now.timestamp() * 1_000_000),
            new_epoch=lambda: epoch,
            key=self.node_key,
        )

    def spend(self, count, name):
        """Record `count` attempts, a minute each by the node's own clock."""
        facts = attempts(count, name)
        for start in range(0, len(facts), 20):
            self.now += timedelta(minutes=20)
            self.ledger.submit_all(facts[start : start + 20]).result(10)

    def outbox(self, ledger=None):
        books = ledger or self.ledger
        return Outbox(
            books,
            self,
            tenant="acme",
            node="n1",
            health=self.health,
            now=lambda: self.now,
            jitter=self.luck.random,
            inbox=Inbox(self.ledger),
            node_key=self.node_key.public,
            server_key=self.server_key,
            on_fork=getattr(books, "forked", None),
            component=f"billing of {books.epoch[:1]}",
            retry_s=0.001,
            retry_max_s=0.01,
        )

    @contextlib.asynccontextmanager
    async def sending(self, ledger=None):
        box = self.outbox(ledger)
        task = asyncio.create_task(box.run())
        try:
            yield box
        finally:
            task.cancel()
            await asyncio.wait({task}, timeout=10)

    def words(self, epoch="e"):
        return {one.component: one.words for one in self.health.all()}[f"billing of {epoch}"]

    # -- the way --------------------------------------------------------------------------

    name = "a bad way"

    async def send(self, raw):
        for _ in range(self.luck.randrange(20)):
            await asyncio.sleep(0)  # Batches overtake each other,
        if self.down or self.luck.random() < self.loses:
            raise LineUnavailableError("lost on the way there")
        receipt = await self.http.send(raw)
        self.delivered.set()
        if self.luck.random() < self.loses:
            receipt = await self.http.send(raw)  # come twice,
        if self.luck.random() < self.loses:
            raise LineUnavailableError("lost on the way back")
        return receipt

    async def close(self):
        await self.http.close()

    # -- the server -----------------------------------------------------------------------

    def open_server(self):
        self.database = Database(f"sqlite:///{self.home / 'billing.db'}")
        self.database.migrate()
        store = BillingStore(
            self.database,
            now=lambda: self.now,
            trust=Trust.FIRST,
            witness=Witness(open_key(self.home / "billing.key")),
        )
        app = create_app(store, token=None, now=lambda: self.now)
        self.http = HttpChannel(
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app)),
            "http://billing.local",
            token=None,
            read_receipt=batch.decode_receipt,
        )

    async def close_server(self):
        await self.http.close()
        self.database.close()

    def billed(self):
        return Reports(self.database).totals("acme")

    def back_up(self):
        shutil.copy(self.home / "billing.db", self.home / "backup.db")

    async def restore(self):
        await self.close_server()
        shutil.copy(self.home / "backup.db", self.home / "billing.db")
        for leftover in ("billing.db-wal", "billing.db-shm"):
            (self.home / leftover).unlink(missing_ok=True)
        self.open_server()

    def assert_whole(self, *ledgers):
        """See that the server has each entry of the ledgers once, and the same money."""
        entries = sum(one.last_seq() for one in ledgers or (self.ledger,))
        billed, booked = self.billed(), self.ledger.totals()
        assert billed.entries == entries
        if not ledgers:
            assert billed.cost_pico == booked.cost_pico
            assert billed.held_pico == booked.held_pico
        heads = {head.epoch: (head.acked_seq, head.head_hash) for head in billed.ledgers}
        for one in ledgers or (self.ledger,):
            (last,) = one.read(one.last_seq() - 1, 1)
            assert heads[one.epoch] == (last.seq, last.hash.hex())


@pytest.fixture
async def world(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "ROWS_MAX", 20)
    monkeypatch.setattr(outbox, "FEW_ROWS", 5)
    made = World(tmp_path)
    yield made
    await made.close_server()
    made.ledger.close()


@pytest.mark.parametrize("seed", range(5))
async def test_lost_doubled_and_overtaken_batches_end_as_if_nothing_had_happened(world, seed):
    world.luck.seed(seed)
    world.loses = 0.2
    async with world.sending() as box:
        for part in range(4):
            world.spend(60, f"part{part}-")
            await asyncio.sleep(0)
        world.loses = 0.05
        assert await box.flush(60)
    world.assert_whole()


async def test_a_ledger_without_entries_is_known_to_the_server_and_may_begin_later(world):
    async with world.sending() as box:
        async with asyncio.timeout(30):
            await world.delivered.wait()
        assert world.billed().ledgers[0].acked_seq == 0
        world.spend(20, "first-")
        assert await box.flush(30)
    world.assert_whole()


async def test_thirty_days_without_a_server_cost_no_entry(world):
    world.down = True
    async with world.sending() as box:
        for day in range(30):
            world.now = START + timedelta(days=day)
            world.spend(10, f"day{day}-")
        assert not await box.flush(0.05)
        assert world.billed().entries == 0
        world.now = START - timedelta(days=3)  # and the clock was set back meanwhile
        world.down = False
        assert await box.flush(60)
    world.assert_whole()


async def test_a_server_restored_from_an_older_backup_gets_the_rest_again(world):
    world.spend(50, "before-")
    async with world.sending() as box:
        assert await box.flush(30)
    world.back_up()
    world.spend(50, "after-")
    async with world.sending() as box:
        assert await box.flush(30)
    had = world.billed().entries
    await world.restore()
    assert world.billed().entries < had
    world.spend(1, "next-")
    async with world.sending() as box:
        assert await box.flush(30)
    world.assert_whole()


async def test_a_ledger_put_away_is_sent_to_its_end_beside_the_one_that_goes_on(world):
    world.spend(80, "old-")
    old = world.ledger
    old.close()
    world.ledger = world.open_ledger("new.db", epoch="f" * 32)
    world.spend(30, "new-")
    archived = ArchivedLedger(world.home / "ledger.db", now_us=lambda: 0, key=world.node_key)
    async with world.sending() as new, world.sending(archived) as put_away:
        assert await put_away.flush(30)
        assert await new.flush(30)
    world.assert_whole(archived, world.ledger)
    archived.close()


async def test_a_copied_ledger_that_goes_on_is_found_by_the_server_and_sends_no_more(world):
    world.spend(20, "both-")
    world.ledger.close()
    shutil.copy(world.home / "ledger.db", world.home / "copy.db")
    world.ledger = world.open_ledger()
    world.spend(20, "original-")
    async with world.sending() as box:
        assert await box.flush(30)
    world.ledger.close()
    stored = world.billed().entries
    world.ledger = world.open_ledger("copy.db")
    world.spend(20, "copy-")
    box = world.outbox()
    async with asyncio.timeout(30):
        await box.run()  # It ends by itself.
    assert "begins a new epoch" in world.words()
    assert world.billed().entries == stored
    assert box.pending() > 0
