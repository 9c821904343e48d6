"""The outbox: everything recorded reaches the billing server once in effect, whatever breaks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from qcnode.books import chain, outbox
from qcnode.books.batch import decode_batch
from qcnode.books.inbox import Inbox
from qcnode.books.ledger import SqliteLedger
from qcnode.books.outbox import Outbox
from qcnode.books.pin import ServerKey
from qcnode.books.seals import Checkpoint, SigningKey, origin_of
from qcnode.errors import LedgerUnavailableError
from qcnode.health import HealthBoard
from qcnode.money import Attempt, Cost, Intent, Leased, NotBilled, Receipt, TokenUsage
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


def open_ledger(folder: Path, *, name="ledger.db", epoch="e" * 32, **how) -> SqliteLedger:
    return SqliteLedger(folder / name, now_us=lambda: 0, new_epoch=lambda: epoch, **how)


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


async def ended(task: asyncio.Task[None]) -> None:
    """Wait until a service ends by itself."""
    await asyncio.wait({task}, timeout=10)
    assert task.done()
    assert task.exception() is None


def pinned(key: SigningKey, folder: Path) -> ServerKey:
    return ServerKey(folder / "billing.pub", given=key.public)


def rows_of(raw: bytes) -> list[int]:
    return [entry.seq for entry in decode_batch(raw).entries]


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
        await board.until(ok=False, words="entry 3 is refused")
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


def receipt(*, epoch="e" * 32, acked_seq=0, head_hash="", **how) -> Receipt:
    return Receipt(epoch=epoch, acked_seq=acked_seq, head_hash=head_hash, **how)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (receipt(epoch="f" * 32, acked_seq=1, head_hash="00" * 32), "epoch"),
        (receipt(epoch="", problem="not a batch"), "not a batch"),
        (receipt(), "does not say why"),
        (receipt(missing=((1, 1),)), "does not say why"),
        (receipt(missing=((5, 4), (-3, 0), (7, 10**9))), "does not say why"),
    ],
)
async def test_a_receipt_that_cannot_be_true_moves_nothing_and_is_said(ledger, answer, words):
    board = Board()
    fill(ledger, 1)
    async with running(make_outbox(ledger, Answering(answer), board)) as box:
        await board.until(ok=False, words=words)
        assert box.pending() == 1
    assert True not in board.changes[1:]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (receipt(acked_seq=1, head_hash="00" * 32), "forked"),
        (receipt(acked_seq=9, head_hash="00" * 32), "restored from a backup"),
        (receipt(problem="fork: another entry 1 is stored here"), "another entry 1"),
    ],
)
async def test_a_fork_ends_the_sending_and_the_ledger_is_told(ledger, answer, words):
    board, told = Board(), []
    fill(ledger, 1)
    channel = Answering(answer)
    box = make_outbox(ledger, channel, board, on_fork=told.append)
    await ended(asyncio.create_task(box.run()))
    assert len(channel.sent) == 1
    assert box.pending() == 1
    assert words in told[0]
    await board.until(ok=False, words="begins a new epoch")


async def test_a_ledger_that_cannot_be_marked_stops_no_node(ledger):
    def fail(_why):
        raise LedgerUnavailableError("no disk")

    fill(ledger, 1)
    channel = Answering(receipt(problem="fork"))
    await ended(asyncio.create_task(make_outbox(ledger, channel, on_fork=fail).run()))


async def test_up_to_a_window_of_batches_is_in_flight_and_never_more(ledger, monkeypatch):
    monkeypatch.setattr(outbox, "ROWS_MAX", 10)
    monkeypatch.setattr(outbox, "FEW_ROWS", 10)
    channel = FakeChannel(FakeBilling())
    fill(ledger, 200)
    reads = []
    read = ledger.read
    ledger.read = lambda after_seq, limit: reads.append(after_seq) or read(after_seq, limit)
    async with running(make_outbox(ledger, channel)) as box:
        assert await box.flush(10)
        channel.open.clear()
        fill(ledger, 200, "more")
        await channel.until(lambda: channel.in_flight == outbox.WINDOW)
        assert len(reads) == 20 + outbox.WINDOW  # What is in flight is all that is read.
        channel.open.set()
        assert await box.flush(10)
    assert channel.in_flight_most == outbox.WINDOW
    assert channel.billing.seqs == list(range(1, 401))
    assert len(reads) == 40


async def test_a_few_entries_wait_for_the_batches_before_them(ledger, monkeypatch):
    monkeypatch.setattr(outbox, "ROWS_MAX", 10)
    monkeypatch.setattr(outbox, "FEW_ROWS", 10)
    slower = itertools.count(0, 40)  # so that one comes back after the other
    one_by_one = []
    channel = FakeChannel(FakeBilling(), turns=lambda: next(slower) if one_by_one else 0)
    fill(ledger, 200)
    async with running(make_outbox(ledger, channel)) as box:
        assert await box.flush(10)
        channel.open.clear()
        one_by_one.append(True)
        fill(ledger, 10 * outbox.WINDOW + 3, "more")
        await channel.until(lambda: channel.in_flight == outbox.WINDOW)
        channel.open.set()
        assert await box.flush(10)
    assert len(rows_of(channel.sent[-1])) == 3
    assert channel.in_flight_then[-1] == 1


async def test_a_way_that_fails_is_tried_again_with_one_batch(ledger, monkeypatch):
    monkeypatch.setattr(outbox, "ROWS_MAX", 10)
    monkeypatch.setattr(outbox, "FEW_ROWS", 10)
    channel, board = FakeChannel(FakeBilling()), Board()
    fill(ledger, 200)
    async with running(make_outbox(ledger, channel, board)) as box:
        assert await box.flush(10)
        channel.cut, channel.in_flight_most = True, 0
        fill(ledger, 200, "more")
        await board.until(ok=False, words="cut")
        channel.in_flight_most = 0
        before = len(channel.sent)
        await channel.until(lambda: len(channel.sent) >= before + 2)
        assert channel.in_flight_most == 1
        channel.cut = False
        assert await box.flush(10)
    assert channel.billing.seqs == list(range(1, 401))


async def test_what_the_server_misses_goes_first(ledger, monkeypatch):
    monkeypatch.setattr(outbox, "ROWS_MAX", 10)
    monkeypatch.setattr(outbox, "FEW_ROWS", 10)
    billing = FakeBilling()
    fill(ledger, 200)
    channel = FakeChannel(billing, turns=lambda: 20)
    take, lost = billing.take, {31, 51}

    def forget_some(raw: bytes) -> Receipt:
        first = rows_of(raw)[0]
        if first in lost:
            lost.discard(first)
            return billing._head(decode_batch(raw))
        return take(raw)

    billing.take = forget_some
    async with running(make_outbox(ledger, channel)) as box:
        assert await box.flush(10)
    assert billing.seqs == list(range(1, 201))
    sent = [rows_of(raw)[0] for raw in channel.sent]
    assert len(sent) == 22  # each of the twenty once, and the two lost ones again
    for first in (31, 51):
        again = sent.index(first, sent.index(first) + 1)
        assert again <= sent.index(first) + 2 * outbox.WINDOW


async def test_a_server_that_keeps_no_early_batches_gets_everything_all_the_same(
    ledger, monkeypatch
):
    monkeypatch.setattr(outbox, "ROWS_MAX", 10)
    monkeypatch.setattr(outbox, "FEW_ROWS", 10)
    luck = random.Random(7)
    billing = FakeBilling()
    billing.keeps_ahead = False
    channel = FakeChannel(billing, turns=lambda: luck.randrange(40))
    fill(ledger, 300)
    async with running(make_outbox(ledger, channel)) as box:
        assert await box.flush(20)
    assert billing.seqs == list(range(1, 301))


async def test_a_late_receipt_is_not_taken_for_a_server_that_went_back(ledger, monkeypatch):
    monkeypatch.setattr(outbox, "ROWS_MAX", 10)
    monkeypatch.setattr(outbox, "FEW_ROWS", 10)
    board, luck = Board(), random.Random(3)
    channel = FakeChannel(FakeBilling(), turns=lambda: luck.randrange(60))
    channel.doubles = True
    fill(ledger, 400)
    with capture_logs() as logs:
        async with running(make_outbox(ledger, channel, board)) as box:
            assert await box.flush(20)
    assert [line for line in logs if "went back" in line["event"]] == []
    assert board.changes == [True]
    assert channel.billing.seqs == list(range(1, 401))


async def test_c8_an_entry_whose_receipt_was_lost_goes_again_and_is_there_once(ledger):
    """The server took it and its word was lost, or it never came: the node cannot tell."""
    channel = FakeChannel(FakeBilling())
    fill(ledger, 3)
    channel.loses_receipts = 1
    async with running(make_outbox(ledger, channel)) as box:
        assert await box.flush(10)
    assert [rows_of(raw) for raw in channel.sent] == [[1, 2, 3], [1, 2, 3]]
    assert channel.billing.seqs == [1, 2, 3]


async def test_c13_a_mark_that_could_not_be_kept_costs_a_repetition_and_no_entry(tmp_path):
    ledger, channel, board = open_ledger(tmp_path), FakeChannel(FakeBilling()), Board()
    fill(ledger, 4)

    def no_disk(_receipt):
        raise LedgerUnavailableError("the disk took no receipt")

    ledger.confirm = no_disk
    async with running(make_outbox(ledger, channel, board)) as box:
        await board.until(ok=False, words="the disk took no receipt")
        assert box.pending() == 4
    ledger.close()
    assert channel.billing.seqs == [1, 2, 3, 4]

    restarted = open_ledger(tmp_path)
    async with running(make_outbox(restarted, channel)) as box:
        assert await box.flush(10)
    entries = restarted.totals().entries
    restarted.close()
    assert channel.billing.seqs == list(range(1, entries + 1))


async def test_entries_go_by_their_number_whatever_the_clock_says(tmp_path):
    at = iter(range(10**15, 0, -(3_600 * 10**6)))  # an hour back at each look
    ledger = SqliteLedger(
        tmp_path / "ledger.db", now_us=lambda: next(at), new_epoch=lambda: "e" * 32
    )
    channel = FakeChannel(FakeBilling())
    fill(ledger, 10)
    box = make_outbox(ledger, channel)
    box._now = lambda: NOW - timedelta(days=next(at) % 40)
    async with running(box):
        assert await box.flush(10)
    ledger.close()
    assert channel.billing.seqs == list(range(1, 11))
    times = [entry.at_us for entry in channel.billing.entries]
    assert times == sorted(times, reverse=True)


async def test_a_quarantined_entry_is_said_once_and_the_queue_goes_on(ledger):
    channel, board = FakeChannel(FakeBilling()), Board()
    channel.billing.quarantines = {2}
    fill(ledger, 3)
    with capture_logs() as logs:
        async with running(make_outbox(ledger, channel, board)) as box:
            assert await box.flush(10)
            fill(ledger, 3, "later")
            assert await box.flush(10)
            await board.until(ok=True, words="entry 6, 1 quarantined there: 2")
    assert channel.billing.seqs == [1, 2, 3, 4, 5, 6]
    assert [line["entries"] for line in logs if "until a person" in line["event"]] == [[2]]


async def test_every_batch_ends_with_the_nodes_signed_checkpoint(tmp_path):
    key = SigningKey.open(tmp_path / "node.key", name="acme/n1")
    ledger = open_ledger(tmp_path, key=key)
    channel = FakeChannel(FakeBilling())
    fill(ledger, 3)
    async with running(make_outbox(ledger, channel)) as box:
        assert await box.flush(10)
    ledger.close()
    (batch,) = channel.billing.batches
    said = key.public.check(batch.checkpoint)
    assert said.origin == "qcnode/acme/n1/" + "e" * 32
    assert (said.size, said.head_hash) == (3, batch.entries[-1].hash)


async def test_a_receipt_signed_by_the_server_is_kept_with_its_signature(ledger, tmp_path):
    key = SigningKey.open(tmp_path / "billing.key", name="billing")
    channel = FakeChannel(FakeBilling(key=key))
    fill(ledger, 3)
    async with running(make_outbox(ledger, channel, server_key=pinned(key, tmp_path))) as box:
        assert await box.flush(10)
    db = sqlite3.connect(f"file:{tmp_path / 'ledger.db'}?mode=ro", uri=True)
    (note,) = db.execute("SELECT note FROM checkpoint WHERE signer = 'server'").fetchone()
    db.close()
    assert key.public.check(note).size == 3


@pytest.mark.parametrize("how", ["unsigned", "another key", "another entry", "another ledger"])
async def test_a_receipt_the_server_did_not_sign_moves_nothing_and_is_an_alarm(
    ledger, tmp_path, how
):
    key = SigningKey.open(tmp_path / "billing.key", name="billing")
    other = SigningKey.open(tmp_path / "other.key", name="billing")
    fill(ledger, 3)
    board, told, entries = Board(), [], ledger.read(0, 3)

    def signed(by=key, *, at=3, epoch="e" * 32):
        origin = origin_of("acme", "n1", epoch)
        return by.sign(Checkpoint(origin=origin, size=at, head_hash=entries[at - 1].hash))

    notes = {
        "unsigned": None,
        "another key": signed(other),
        "another entry": signed(at=2),
        "another ledger": signed(epoch="f" * 32),
    }
    answer = receipt(
        acked_seq=3,
        head_hash=entries[2].hash.hex(),
        note=notes[how],
        problem=None if how == "unsigned" else "fork: it says",
    )
    box = make_outbox(
        ledger, Answering(answer), board, server_key=pinned(key, tmp_path), on_fork=told.append
    )
    async with running(box):
        await board.until(ok=False, words="who else answers there?")
        assert box.pending() == 3
    assert told == []  # Nor can it make the node begin a new epoch.


async def test_the_first_servers_key_is_believed_and_another_one_never(ledger, tmp_path):
    its = SigningKey.open(tmp_path / "billing.key", name="billing")
    other = SigningKey.open(tmp_path / "other.key", name="billing")
    channel, board = FakeChannel(FakeBilling(key=its)), Board()
    fill(ledger, 3)
    server_key = ServerKey(tmp_path / "billing.pub")
    async with running(make_outbox(ledger, channel, board, server_key=server_key)) as box:
        assert await box.flush(10)
        channel.billing.key = other
        fill(ledger, 3, "later")
        await board.until(ok=False, words="who else answers there?")
        assert box.pending() == 3
        channel.billing.key = its
        assert await box.flush(10)


async def test_facts_the_server_did_not_seal_are_left_out_and_the_queue_goes_on(ledger, tmp_path):
    key = SigningKey.open(tmp_path / "billing.key", name="billing")
    channel = FakeChannel(FakeBilling(key=key))
    lease = Leased(lease_id="l1", budget="all", unit="calls", limit=9, from_us=0, until_us=9)
    channel.billing.leases, channel.billing.forgets_seal = (lease,), True
    fill(ledger, 1)
    box = make_outbox(
        ledger, channel, server_key=pinned(key, tmp_path), inbox=Inbox(ledger), ask_every_s=0.01
    )
    async with running(box):
        assert await box.flush(10)
        assert ledger.facts_about("l1") == []
        channel.billing.forgets_seal = False
        await channel.until(lambda: len(channel.billing.entries) == 2)
        assert await box.flush(10)
    assert ledger.facts_about("l1") == [lease]


async def test_a_refusal_that_is_not_signed_is_said_and_changes_nothing(ledger, tmp_path):
    key = SigningKey.open(tmp_path / "billing.key", name="billing")
    fill(ledger, 3)
    board, told = Board(), []
    answer = receipt(acked_seq=2, head_hash="00" * 32, problem="fork: it says")
    box = make_outbox(
        ledger, Answering(answer), board, server_key=pinned(key, tmp_path), on_fork=told.append
    )
    async with running(box):
        await board.until(ok=False, words="refuses our batch: fork: it says")
        assert box.pending() == 3
    assert told == []


async def test_two_epochs_share_a_channel_and_each_gets_its_own_receipts(tmp_path):
    old = open_ledger(tmp_path, name="old.db", epoch="a" * 32)
    new = open_ledger(tmp_path, name="new.db", epoch="b" * 32)
    fill(old, 5)
    fill(new, 3)
    servers = {"a" * 32: FakeBilling(), "b" * 32: FakeBilling()}

    class Both(FakeChannel):
        async def send(self, batch: bytes) -> Receipt:
            await asyncio.sleep(0)
            return servers[decode_batch(batch).epoch].take(batch)

    channel = Both(FakeBilling())
    boxes = [make_outbox(books, channel) for books in (old, new)]
    async with running(boxes[0]), running(boxes[1]):
        assert [await box.flush(10) for box in boxes] == [True, True]
    old.close()
    new.close()
    assert [len(server.entries) for server in servers.values()] == [5, 3]


async def test_a_server_that_lost_everything_while_nothing_was_new_is_found_out(tmp_path):
    ledger, billing = open_ledger(tmp_path), FakeBilling()
    fill(ledger, 4)
    async with running(make_outbox(ledger, FakeChannel(billing))) as box:
        assert await box.flush(10)
        billing.restore_backup(up_to=1)
    board = Board()
    async with running(make_outbox(ledger, FakeChannel(billing), board)):
        await board.until(ok=False, words="lost entries 2 to 4")
        await board.until(ok=True, words="receipted up to entry 4")
    ledger.close()
    assert billing.seqs == [1, 2, 3, 4]


async def test_a_ledger_without_entries_asks_and_is_lent_its_first_budget(tmp_path):
    node, server = (
        SigningKey.open(tmp_path / f"{n[0]}.key", name=n) for n in ("acme/n1", "billing")
    )
    ledger = open_ledger(tmp_path, key=node)
    channel, board = FakeChannel(FakeBilling(key=server)), Board()
    lease = Leased(lease_id="l1", budget="all", unit="calls", limit=9, from_us=0, until_us=9)
    channel.billing.leases = (lease,)
    box = make_outbox(
        ledger,
        channel,
        board,
        inbox=Inbox(ledger),
        node_key=node.public,
        server_key=pinned(server, tmp_path),
    )
    async with running(box):
        await channel.until(lambda: len(channel.billing.entries) == 1)
        await board.until(ok=True, words="receipted up to entry 1")
    assert ledger.facts_about("l1") == [lease]
    ledger.close()
    question = channel.billing.batches[0]
    assert question.entries == ()
    said = node.public.check(question.checkpoint)
    assert (said.size, said.head_hash) == (0, chain.genesis("e" * 32))


async def test_an_idle_node_asks_now_and_then_what_the_server_has(ledger):
    channel = FakeChannel(FakeBilling())
    fill(ledger, 4)
    async with running(make_outbox(ledger, channel, ask_every_s=0.01)) as box:
        assert await box.flush(10)
        await channel.until(lambda: len(channel.sent) >= 4)
    assert [rows_of(raw) for raw in channel.sent[1:4]] == [[4]] * 3


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
        st.sampled_from(["add", "many", "cut", "mend", "lose", "double", "restore", "restart"]),
        max_size=12,
    ),
    seed=st.integers(0, 2**32),
    keeps_ahead=st.booleans(),
)
async def test_whatever_breaks_the_server_ends_with_the_ledgers_own_entries(
    tmp_path_factory, monkeypatch, breaks, seed, keeps_ahead
):
    luck = random.Random(seed)
    monkeypatch.setattr(outbox, "ROWS_MAX", 10)
    monkeypatch.setattr(outbox, "FEW_ROWS", 5)
    folder, billing = tmp_path_factory.mktemp("outage"), FakeBilling()
    billing.keeps_ahead = keeps_ahead
    ledger, channel = open_ledger(folder), FakeChannel(billing, turns=lambda: luck.randrange(12))
    box = make_outbox(ledger, channel)
    task = asyncio.create_task(box.run())
    for number, name in enumerate(breaks):
        if name == "add":
            fill(ledger, 3, f"n{number}-")
        elif name == "many":
            fill(ledger, 60, f"n{number}-")
        elif name == "double":
            channel.doubles = not channel.doubles
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
