"""The outbox: everything recorded reaches the billing server once in effect, whatever breaks."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcnode.books import outbox
from qcnode.books.batch import decode_batch
from qcnode.books.ledger import SqliteLedger
from qcnode.books.outbox import Outbox
from qcnode.health import HealthBoard
from qcnode.money import Attempt, Cost, Intent, NotBilled, Receipt, TokenUsage
from tests.bridge.fakes_billing import FakeBilling, FakeChannel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def intent(attempt_id: str, provider: str = "scripted") -> Intent:
    return Intent(
        attempt=Attempt(id=attempt_id, escalation_id="e1", number=1, provider=provider, model="m"),
        worst=TokenUsage(text=10, output=10),
        hold=Cost(currency="USD", pico=1, rows=()),
        request_sha256="0" * 64,
        request_bytes=1,
        image_sha256=None,
    )


def put(ledger: SqliteLedger, *facts) -> None:
    for future in [ledger.submit(fact) for fact in facts]:
        future.result(10)


def fill(ledger: SqliteLedger, count: int, name: str = "a", **how) -> None:
    put(ledger, *(intent(f"{name}{number}", **how) for number in range(count)))


def open_ledger(folder: Path) -> SqliteLedger:
    return SqliteLedger(folder / "ledger.db", now_us=lambda: 0, new_epoch=lambda: "e" * 32)


@pytest.fixture
def ledger(tmp_path):
    books = open_ledger(tmp_path)
    yield books
    books.close()


class Board(HealthBoard):
    """A board that remembers all it was told, and can be waited on."""

    def __init__(self) -> None:
        super().__init__(now=lambda: NOW)
        self.told: list[tuple[bool, str]] = []
        self.news = asyncio.Event()

    def report(self, component, *, ok, words, needed=False):
        assert component == "billing"
        self.told.append((ok, words))
        super().report(component, ok=ok, words=words, needed=needed)
        self.news.set()

    async def until(self, *, ok: bool, words: str = "") -> None:
        async with asyncio.timeout(10):
            while not any(one == ok and words in said for one, said in self.told):
                self.news.clear()
                await self.news.wait()

    @property
    def changes(self) -> list[bool]:
        states = [ok for ok, _words in self.told]
        return [ok for i, ok in enumerate(states) if i == 0 or states[i - 1] != ok]


def make_outbox(ledger, channel, board=None, **how) -> Outbox:
    return Outbox(
        ledger,
        channel,
        tenant="acme",
        node="n1",
        health=board or Board(),
        now=lambda: NOW,
        jitter=lambda: 0.0,
        **{"retry_s": 0.001, "retry_max_s": 0.01} | how,
    )


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a service and see that it heard, at whatever moment it came."""
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()


@contextlib.asynccontextmanager
async def running(box: Outbox) -> AsyncIterator[Outbox]:
    task = asyncio.create_task(box.run())
    try:
        yield box
    finally:
        await end(task)


async def test_what_was_there_and_what_comes_later_arrives_in_order(ledger):
    channel = FakeChannel(FakeBilling())
    fill(ledger, 3)
    async with running(make_outbox(ledger, channel)) as box:
        assert await box.flush(10)
        fill(ledger, 2, "later")
        assert await box.flush(10)
    assert channel.billing.seqs == [1, 2, 3, 4, 5]
    assert box.pending() == 0


async def test_flush_gives_up_when_nobody_receipts(ledger):
    channel = FakeChannel(FakeBilling())
    channel.cut = True
    fill(ledger, 1)
    async with running(make_outbox(ledger, channel)) as box:
        assert not await box.flush(0.05)
        assert box.pending() == 1


async def test_entries_held_back_by_an_outage_arrive_after_a_restart(tmp_path):
    billing = FakeBilling()
    ledger, cut = open_ledger(tmp_path), FakeChannel(billing)
    cut.cut = True
    put(ledger, intent("a1"), NotBilled(attempt_id="a1", reason="no", http_status=None))
    board = Board()
    async with running(make_outbox(ledger, cut, board)):
        await board.until(ok=False, words="2 entries wait: the wire is cut")
    ledger.close()

    restarted = open_ledger(tmp_path)
    async with running(make_outbox(restarted, FakeChannel(billing))) as box:
        assert await box.flush(10)
    restarted.close()
    assert billing.seqs == [1, 2]


async def test_an_outage_is_said_once_and_its_end_once(ledger):
    channel, board = FakeChannel(FakeBilling()), Board()
    channel.cut = True
    fill(ledger, 1)
    async with running(make_outbox(ledger, channel, board)) as box:
        await board.until(ok=False)
        async with asyncio.timeout(10):
            while len(channel.sent) < 5:
                board.news.clear()
                await board.news.wait()
        channel.cut = False
        assert await box.flush(10)
        await board.until(ok=True, words="receipted up to entry 1")
    assert board.changes == [True, False, True]


async def test_a_lost_receipt_costs_a_repetition_and_no_entry(ledger):
    channel = FakeChannel(FakeBilling())
    channel.loses_receipts = 2
    fill(ledger, 4)
    async with running(make_outbox(ledger, channel)) as box:
        assert await box.flush(10)
    assert len(channel.sent) == 3
    assert channel.billing.seqs == [1, 2, 3, 4]


async def test_a_server_restored_from_a_backup_gets_the_rest_again_and_it_is_said(ledger):
    channel, board = FakeChannel(FakeBilling()), Board()
    fill(ledger, 6)
    async with running(make_outbox(ledger, channel, board)) as box:
        assert await box.flush(10)
        channel.billing.restore_backup(up_to=2)
        fill(ledger, 1, "next")
        assert await box.flush(10)
        await board.until(ok=False, words="lost entries 3 to 6")
        await board.until(ok=True, words="receipted up to entry 7")
    assert channel.billing.seqs == [1, 2, 3, 4, 5, 6, 7]


async def test_a_refused_entry_stops_the_outbox_and_nothing_is_skipped(ledger):
    channel, board = FakeChannel(FakeBilling()), Board()
    channel.billing.refuses_from = 3
    fill(ledger, 5)
    async with running(make_outbox(ledger, channel, board)) as box:
        await board.until(ok=False, words="entry 3 is quarantined")
        assert (ledger.receipt_seq(), box.pending()) == (2, 3)
        assert channel.billing.seqs == [1, 2]
        channel.billing.refuses_from = None
        assert await box.flush(10)
    assert channel.billing.seqs == [1, 2, 3, 4, 5]


async def test_it_ends_when_told_even_if_news_comes_at_that_moment(ledger):
    box = make_outbox(ledger, FakeChannel(FakeBilling()))
    for number in range(20):
        task = asyncio.create_task(box.run())
        fill(ledger, 1, f"n{number}-")
        assert await box.flush(10)
        box._news.set()
        for _ in range(number % 4):  # The moment is a few turns of the loop wide.
            await asyncio.sleep(0)
        await end(task)


class Answering(FakeChannel):
    """A server that answers whatever the test says."""

    def __init__(self, *receipts: Receipt) -> None:
        super().__init__(FakeBilling())
        self.receipts = list(receipts)

    async def send(self, batch: bytes) -> Receipt:
        self.sent.append(batch)
        return self.receipts.pop(0) if len(self.receipts) > 1 else self.receipts[0]


@pytest.mark.parametrize(
    ("receipt", "words"),
    [
        (Receipt(epoch="e" * 32, acked_seq=1, head_hash="00" * 32), "forked"),
        (Receipt(epoch="e" * 32, acked_seq=9, head_hash="00" * 32), "restored from a backup"),
        (Receipt(epoch="f" * 32, acked_seq=1, head_hash="00" * 32), "epoch"),
        (Receipt(epoch="", acked_seq=0, head_hash="", problem="not a batch"), "not a batch"),
        (Receipt(epoch="e" * 32, acked_seq=0, head_hash=""), "does not say why"),
    ],
)
async def test_a_receipt_that_cannot_be_true_moves_nothing_and_is_said(ledger, receipt, words):
    board = Board()
    fill(ledger, 1)
    async with running(make_outbox(ledger, Answering(receipt), board)) as box:
        await board.until(ok=False, words=words)
        assert box.pending() == 1


async def test_a_batch_is_bounded_in_rows_and_in_bytes(ledger, monkeypatch):
    channel = FakeChannel(FakeBilling())
    fill(ledger, 30)
    fill(ledger, 1, "fat", provider="x" * 4_000)
    fill(ledger, 5, "thin")
    monkeypatch.setattr(outbox, "ROWS_MAX", 20)
    monkeypatch.setattr(outbox, "BATCH_BYTES_MAX", 4_000)
    async with running(make_outbox(ledger, channel)) as box:
        assert await box.flush(10)
    assert channel.billing.seqs == list(range(1, 37))
    sizes = [(len(raw), len(decode_batch(raw).entries)) for raw in channel.sent]
    assert all(size <= 4_000 or rows == 1 for size, rows in sizes)
    assert all(rows <= 20 for _size, rows in sizes)
    assert len(sizes) < 25


def test_waiting_doubles_up_to_its_cap_and_keeps_at_least_half(ledger):
    for luck, share in ((0.0, 0.5), (1.0, 1.0)):
        box = make_outbox(ledger, FakeChannel(FakeBilling()), retry_s=1.0, retry_max_s=30.0)
        box._jitter = lambda luck=luck: luck
        waits = [box._backoff_s(failures) for failures in (1, 2, 3, 6, 5_000)]
        assert waits == [share * seconds for seconds in (1.0, 2.0, 4.0, 30.0, 30.0)]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    breaks=st.lists(
        st.sampled_from(["add", "cut", "mend", "lose", "restore", "restart"]), max_size=12
    )
)
async def test_whatever_breaks_the_server_ends_with_the_ledgers_own_entries(
    tmp_path_factory, breaks
):
    folder, billing = tmp_path_factory.mktemp("outage"), FakeBilling()
    ledger, channel = open_ledger(folder), FakeChannel(billing)
    box = make_outbox(ledger, channel)
    task = asyncio.create_task(box.run())
    for number, name in enumerate(breaks):
        if name == "add":
            fill(ledger, 3, f"n{number}-")
        elif name == "restore":
            billing.restore_backup(len(billing.entries) // 2)
        elif name == "lose":
            channel.loses_receipts += 1
        elif name == "restart":
            await end(task)
            ledger.close()
            ledger = open_ledger(folder)
            channel.in_flight = 0
            box = make_outbox(ledger, channel)
            task = asyncio.create_task(box.run())
        else:
            channel.cut = name == "cut"
        await asyncio.sleep(0)
    channel.cut = False
    fill(ledger, 1, "last")  # A server that forgot is found out by the next entry.
    assert await box.flush(10)
    await end(task)
    assert [entry.hash for entry in billing.entries] == [
        entry.hash for entry in ledger.read(0, 1_000)
    ]
    ledger.close()
