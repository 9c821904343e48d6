"""Two ways to the billing server: the second carries while the first is out, and no longer."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from qcnode.books import chain
from qcnode.books.batch import encode_batch
from qcnode.errors import LineUnavailableError
from qcnode.health import HealthBoard
from qcnode.lines.fallback import COMPONENT, FallbackChannel
from qcnode.money import NotBilled
from tests.bridge.fakes_billing import FakeBilling, FakeChannel

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def batches(count):
    """Return `count` batches of one entry each, one continuing the other."""
    entries, before = [], chain.genesis("epoch")
    for seq in range(1, count + 1):
        fact = NotBilled(attempt_id=f"a{seq}", reason="no", http_status=None)
        entries.append(chain.make_entry(fact, epoch="epoch", seq=seq, at_us=seq, prev_hash=before))
        before = entries[-1].hash
    return [encode_batch("acme", "n1", [entry], at=NOW) for entry in entries]


class World:
    """Two wires to one server, and a clock that a test sets."""

    def __init__(self):
        self.billing = FakeBilling()
        self.mqtt, self.http = FakeChannel(self.billing), FakeChannel(self.billing)
        self.mqtt.name, self.http.name = "mqtt", "http"
        self.at_s = 1_000.0
        self.health = HealthBoard(lambda: NOW)
        self.channel = FallbackChannel(
            self.mqtt,
            self.http,
            health=self.health,
            monotonic_s=lambda: self.at_s,
            patience_s=30.0,
            look_again_s=60.0,
        )

    async def fails(self, batch):
        with pytest.raises(LineUnavailableError):
            await self.channel.send(batch)

    def ways(self):
        """Return how many batches went each way."""
        return len(self.mqtt.sent), len(self.http.sent)

    def health_of_the_way(self):
        (one,) = (one for one in self.health.all() if one.component == COMPONENT)
        return one.ok, one.words


@pytest.fixture
async def world():
    world = World()
    yield world
    await world.channel.close()


async def test_while_the_first_way_lives_nothing_goes_the_second(world):
    for batch in batches(3):
        await world.channel.send(batch)
    assert world.ways() == (3, 0)


async def test_the_same_bytes_go_the_second_way_once_the_first_was_silent_for_long(world):
    first, second = batches(2)
    world.mqtt.cut = True
    await world.fails(first)
    world.at_s += 29.0
    await world.fails(first)
    assert world.ways() == (2, 0)
    world.at_s += 1.0
    assert (await world.channel.send(first)).acked_seq == 1
    assert world.mqtt.sent == [first] * 3
    assert world.http.sent == [first]
    assert (await world.channel.send(second)).acked_seq == 2
    assert world.ways() == (3, 2)


async def test_a_receipt_in_between_begins_the_silence_anew(world):
    first, second = batches(2)
    world.mqtt.cut = True
    await world.fails(first)
    world.mqtt.cut = False
    await world.channel.send(first)
    world.at_s += 60.0
    world.mqtt.cut = True
    await world.fails(second)
    assert world.ways()[1] == 0


async def test_the_first_way_is_taken_again_when_it_brings_a_receipt(world):
    one, two, three, four, five = batches(5)
    world.mqtt.cut = True
    await world.fails(one)
    world.at_s += 30.0
    await world.channel.send(one)
    world.at_s += 59.0
    await world.channel.send(two)
    assert len(world.mqtt.sent) == 2  # It is left alone for a while,
    world.at_s += 1.0
    await world.channel.send(three)
    await asyncio.sleep(0)
    assert world.mqtt.sent[2:] == [three]  # then looked at,
    world.at_s += 60.0
    world.mqtt.cut = False
    await world.channel.send(four)
    await asyncio.sleep(0)
    await world.channel.send(five)
    assert world.http.sent == [one, two, three, four]
    assert world.mqtt.sent[3:] == [four, five]  # and used.
    assert world.billing.seqs == [1, 2, 3, 4, 5]


async def test_each_change_of_way_is_said_once(world):
    one, two, three = batches(3)
    with capture_logs() as logs:
        world.mqtt.cut = True
        await world.fails(one)
        world.at_s += 30.0
        for _ in range(3):
            await world.channel.send(one)
        ok, words = world.health_of_the_way()
        assert not ok
        assert words == "by http, mqtt is out: the wire is cut"
        world.at_s += 60.0
        world.mqtt.cut = False
        await world.channel.send(two)
        await asyncio.sleep(0)
        await world.channel.send(three)
    assert world.health_of_the_way() == (True, "by mqtt")
    assert [line["ok"] for line in logs] == [False, True]


async def test_with_both_ways_out_the_failure_is_the_second_ones(world):
    (batch,) = batches(1)
    world.mqtt.cut = world.http.cut = True
    await world.fails(batch)
    world.at_s += 30.0
    await world.fails(batch)
    assert world.ways() == (2, 1)


async def test_a_first_way_that_hangs_holds_nothing_up_and_is_let_go_at_the_end(world):
    one, two = batches(2)
    world.mqtt.cut = True
    await world.fails(one)
    world.at_s += 30.0
    await world.channel.send(one)
    world.at_s += 60.0
    world.mqtt.open.clear()
    assert (await world.channel.send(two)).acked_seq == 2
    world.at_s += 600.0
    await world.channel.send(two)
    await asyncio.sleep(0)
    assert world.mqtt.in_flight == 1  # One at a time looks, however long it takes.
    await world.channel.close()
    assert world.mqtt.in_flight == 0
