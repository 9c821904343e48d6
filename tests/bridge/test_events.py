"""Usage as events that other billing platforms take: CloudEvents, OpenMeter, Lago."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from qcbridge.billing.events import LAGO_BATCH, OPENMETER_BATCH, lines, write_events
from qcbridge.billing.usage import Usage
from qcnode.errors import BillingError
from qcnode.money import Adjusted, Cost, Reconciled
from tests.bridge.paper_world import DECEMBER, NOVEMBER, USAGE, PaperWorld, at


@pytest.fixture
def world(tmp_path):
    opened = PaperWorld(f"sqlite:///{tmp_path}/billing.db")
    yield opened
    opened.close()


def events_of(world, period=NOVEMBER):
    return list(Usage(world.books.database).events("acme", period))


def bodies(world, form):
    return [json.loads(line) for line in lines(events_of(world), form)]


def test_an_event_is_one_attempt_with_its_tokens_money_and_account(world):
    cost = world.node().use(at_us=at("2026-11-16T01:02:03"), region="cn-north")
    world.node().lose(at_us=at("2026-11-16T02"))
    world.node().refuse(at_us=at("2026-11-16T03"))
    world.send()

    [event] = bodies(world, "cloudevents")

    assert event == {
        "specversion": "1.0",
        "type": "org.qcnode.usage.v1",
        "source": "urn:qcnode:node:acme:node-1",
        "id": "epoch-of-node-1.2",
        "time": "2026-11-16T01:02:03.000000Z",
        "subject": "acme",
        "datacontenttype": "application/json",
        "data": {
            "node": "node-1",
            "department": "assembly",
            "application": "vision",
            "function": "solder",
            "line": "L1",
            "product": "P7",
            "level": "L3",
            "region": "cn-north",
            "attempt": "node-1-a1",
            "provider": "deepseek",
            "model": "deepseek-flash",
            "currency": "CNY",
            "cost": f"0.00{cost.pico // 10**6:04d}{cost.pico % 10**6:06d}".rstrip("0"),
            "cost_pico": str(cost.pico),
            "price_rows": ",".join(cost.rows),
            "tokens": 1_760,
            "text_tokens": 800,
            "image_tokens": 700,
            "unknown_tokens": 0,
            "cache_read_tokens": 200,
            "cache_write_tokens": 0,
            "cache_write_1h_tokens": 0,
            "output_tokens": 50,
            "reasoning_tokens": 10,
        },
    }
    assert Decimal(event["data"]["cost"]) == Decimal(cost.pico).scaleb(-12)


def test_the_sdk_of_cloudevents_reads_every_event(world):
    for hour in range(3):
        world.node().use(at_us=at(f"2026-11-16T0{hour}"))
    world.send()
    for line in lines(events_of(world), "cloudevents"):
        event = JSONFormat().read(CloudEvent, line)
        assert event.get_type() == "org.qcnode.usage.v1"
        assert event.get_subject() == "acme"
        assert event.get_time().tzinfo is not None
        assert event.get_data()["tokens"] == 1_760


def test_a_line_for_openmeter_is_a_batch_of_cloudevents(world):
    world.node().use(at_us=at("2026-11-16T01"))
    world.send()
    [event] = events_of(world)
    many = [replace(event, id=str(n)) for n in range(OPENMETER_BATCH + 1)]
    batches = [json.loads(line) for line in lines(many, "openmeter")]
    assert [len(batch) for batch in batches] == [OPENMETER_BATCH, 1]
    # Meters sum numbers, and group by words.
    assert isinstance(batches[0][0]["data"]["text_tokens"], int)
    assert isinstance(batches[0][0]["data"]["cost"], str)
    assert len({one["id"] for batch in batches for one in batch}) == len(many)


def test_a_line_for_lago_is_a_batch_of_no_more_than_it_takes(world):
    cost = world.node().use(at_us=at("2026-11-16T01:02:03.456"))
    world.send()
    [event] = events_of(world)
    many = [replace(event, id=str(n)) for n in range(LAGO_BATCH + 1)]
    batches = [json.loads(line)["events"] for line in lines(many, "lago")]
    assert [len(batch) for batch in batches] == [LAGO_BATCH, 1]
    [body] = bodies(world, "lago")
    [one] = body["events"]
    assert set(one) == {
        *("transaction_id", "external_subscription_id", "code", "timestamp"),
        *("precise_total_amount_cents", "properties"),
    }
    assert (one["transaction_id"], one["external_subscription_id"]) == ("epoch-of-node-1.2", "acme")
    moment = datetime(2026, 11, 16, 1, 2, 3, 456_000, tzinfo=UTC)
    assert Decimal(one["timestamp"]) == Decimal(str(moment.timestamp()))
    assert Decimal(one["precise_total_amount_cents"]) == Decimal(cost.pico * 100).scaleb(-12)


def test_c9_an_event_that_is_exported_again_has_the_same_id_and_bytes(world):
    for hour in range(5):
        world.node(f"node-{hour % 2}").use(at_us=at(f"2026-11-16T0{hour}"))
    world.send()
    first = list(lines(events_of(world), "cloudevents"))
    world.node("node-0").use(at_us=at("2026-11-17T01"))
    world.send()
    world.clock("2026-11-30T00")
    again = list(lines(events_of(world), "cloudevents"))
    assert set(first) < set(again)
    assert len(again) == len(first) + 1


def test_a_cost_put_right_is_taken_back_and_stands_anew(world):
    node = world.node()
    attempt = node.intent(at_us=at("2026-11-16T01"))
    cost = node.settle(attempt, at_us=at("2026-11-16T01"))
    after = Cost(currency="USD", pico=7, rows=())
    node.write(
        Adjusted(attempt_id=attempt.id, before=cost, after=after, reason="r"),
        at_us=at("2026-12-02T00"),
    )
    node.send()
    assert [event.cost_pico for event in events_of(world)] == [cost.pico]
    back, anew = events_of(world, DECEMBER)
    assert (back.id, back.cost_pico, back.currency) == ("epoch-of-node-1.3.back", -cost.pico, "CNY")
    assert back.tokens == tuple(-count for count in events_of(world)[0].tokens)
    assert (anew.id, anew.cost_pico, anew.currency) == ("epoch-of-node-1.3", 7, "USD")


def test_what_the_server_decided_is_one_event_though_the_node_repeats_it(world):
    node = world.node()
    lost = node.lose(at_us=at("2026-11-16T01"))
    node.send()
    decided = Reconciled(
        attempt_id=lost.id,
        usage=USAGE,
        cost=Cost(currency="CNY", pico=5, rows=()),
        source="s",
        source_sha256="ab" * 32,
    )
    world.resolutions.resolve(node.ledger, [decided], by="test")
    [event] = events_of(world)
    assert (event.id, event.cost_pico) == ("epoch-of-node-1.decision.1", 5)
    node.write(decided, at_us=at("2026-11-17T00"))
    node.send()
    assert events_of(world) == [event]


def test_all_events_of_a_month_are_all_that_was_recorded(world):
    for hour in range(9):
        world.node(f"node-{hour % 3}").use(
            at_us=at(f"2026-11-16T0{hour}"), provider="openai" if hour % 2 else "deepseek"
        )
    world.send()
    sums = {}
    for event in events_of(world):
        sums[event.currency] = sums.get(event.currency, 0) + event.cost_pico
    assert sums == world.recorded()


def test_events_are_written_whole_or_not_at_all(world, tmp_path):
    world.node().use(at_us=at("2026-11-16T01"))
    world.send()
    folder = tmp_path / "out"
    folder.mkdir()
    assert write_events(folder / "e.jsonl", events_of(world), "lago") == 1
    assert [path.name for path in folder.iterdir()] == ["e.jsonl"]
    with pytest.raises(BillingError, match="cannot be written"):
        write_events(folder / "none" / "e.jsonl", [], "lago")
    with pytest.raises(BillingError, match="known are cloudevents, openmeter, lago"):
        list(lines([], "stripe"))


def test_the_servers_own_export_of_entries_is_that_of_the_nodes(world, tmp_path):
    node = world.node()
    for hour in range(3):
        node.use(at_us=at(f"2026-11-16T0{hour}"))
    node.send()
    [path] = Usage(world.books.database).export("acme", tmp_path / "entries")
    own = [json.loads(line) for line in node.export(tmp_path).read_text().splitlines()]
    ours = [json.loads(line) for line in path.read_text().splitlines()]
    assert ours[1:] == own[1:]
    assert (ours[0]["epoch"], ours[0]["confirmed"]) == (node.epoch, 6)
