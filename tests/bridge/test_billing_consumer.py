"""Batches over a real broker, with a sender that asks until it has its receipt."""

import json
import queue
import threading
from contextlib import contextmanager

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from qcbridge.billing.consumer import Broker, MqttConsumer, broker_at
from qcbridge.billing.engine import StoreUnavailableError
from qcbridge.billing.intake import Intake
from qcbridge.billing.keys import Trust
from qcbridge.billing.offers import read_offer
from qcbridge.billing.store import BillingStore
from qcnode.books.batch import decode_receipt
from qcnode.errors import BillingError
from qcnode.money import Cost
from tests.bridge.books import Books
from tests.bridge.ledgers import (
    COST,
    attempts,
    batch_of,
    intent,
    key_of,
    raw_batch,
    settled,
    write,
)

NODE = "qc/v1/plant/hall/line-1/node-1"
PATIENCE_S = 30


class Sender:
    """As much of a node as it takes: publishes a batch, waits for receipts."""

    def __init__(self, port, base=NODE):
        self._base = base
        self.receipts = queue.Queue()
        self._subscribed = threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe(f"{base}/#", qos=1)
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_disconnect = lambda *_: self._subscribed.clear()
        self.client.on_message = self._on_message
        self.client.connect_async("127.0.0.1", port)
        self.client.loop_start()
        assert self._subscribed.wait(PATIENCE_S)

    def publish(self, raw, *, correlation=b"c", response=None, topic=None):
        properties = Properties(PacketTypes.PUBLISH)
        if correlation is not None:
            properties.CorrelationData = correlation
        if response is not None:
            properties.ResponseTopic = response
        self.client.publish(topic or f"{self._base}/meter/usage", raw, qos=1, properties=properties)

    def receipt(self, timeout_s=PATIENCE_S):
        """The next receipt as (topic, correlation, receipt)."""
        return self.receipts.get(timeout=timeout_s)

    def send_until_receipt(self, entries, *, step=7):
        """Send everything, again and again, until the server has it all."""
        acked_seq = 0
        while acked_seq < len(entries):
            piece = entries[acked_seq : acked_seq + step]
            self.publish(raw_batch(piece), correlation=f"{piece[0].seq}".encode())
            try:
                acked_seq = max(acked_seq, self.receipt(timeout_s=1)[2].acked_seq)
            except queue.Empty:
                continue

    def _on_message(self, _client, _userdata, message):
        if message.topic.endswith("/meter/usage"):
            return
        correlation = getattr(message.properties, "CorrelationData", None)
        self.receipts.put((message.topic, correlation, decode_receipt(message.payload)))

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@contextmanager
def consuming(books, mosquitto, **options):
    consumer = MqttConsumer(
        Broker(host="127.0.0.1", port=mosquitto.port, reconnect_max_s=1),
        Intake(books.store),
        **options,
    )
    consumer.start()
    try:
        assert consumer.wait_subscribed(PATIENCE_S)
        yield consumer
    finally:
        consumer.stop()


@pytest.fixture
def sender(mosquitto):
    opened = Sender(mosquitto.port)
    yield opened
    opened.close()


@pytest.mark.mosquitto
def test_a_published_batch_is_stored_and_its_receipt_comes_to_the_response_topic(
    sqlite_books, mosquitto, sender
):
    entries = write([intent(), settled()])
    with consuming(sqlite_books, mosquitto):
        sender.publish(raw_batch(entries), correlation=b"epoch-1.1-2", response=f"{NODE}/meter/r")
        topic, correlation, receipt = sender.receipt()

    assert topic == f"{NODE}/meter/r"
    assert correlation == b"epoch-1.1-2"
    assert (receipt.acked_seq, receipt.head_hash) == (2, entries[-1].hash.hex())
    assert sqlite_books.reports.totals("acme").entries == 2


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    "response", [None, "qc/v1/plant/hall/line-1/node-2/cmd/stop", f"{NODE}x/r"]
)
def test_a_receipt_goes_to_the_nodes_own_topics_only(sqlite_books, mosquitto, sender, response):
    with consuming(sqlite_books, mosquitto):
        sender.publish(raw_batch(write([intent()])), response=response)
        topic, correlation, receipt = sender.receipt()
    assert (topic, correlation, receipt.acked_seq) == (f"{NODE}/meter/ack", b"c", 1)


@pytest.mark.mosquitto
def test_a_poisoned_message_is_kept_as_evidence_and_the_queue_goes_on(
    sqlite_books, mosquitto, sender
):
    with consuming(sqlite_books, mosquitto) as consumer:
        sender.publish(b"\xff not a batch", correlation=None)
        sender.publish(b"{}", correlation=b"bad")
        sender.publish(raw_batch(write([intent()])), correlation=b"good")
        answers = [sender.receipt(), sender.receipt()]
        assert consumer.alive

    assert [correlation for _, correlation, _ in answers] == [b"bad", b"good"]
    assert "not a ledger batch" in answers[0][2].problem
    assert (answers[1][2].acked_seq, answers[1][2].problem) == (1, None)
    assert len(sqlite_books.reports.refusals(None, limit=10)) == 2


@pytest.mark.mosquitto
def test_a_node_cannot_write_in_another_ones_name(sqlite_books, mosquitto, sender):
    with consuming(sqlite_books, mosquitto):
        sender.publish(raw_batch(write([intent()]), node="node-2"))
        _, _, receipt = sender.receipt()
    assert "in the name of node 'node-2'" in receipt.problem
    assert sqlite_books.reports.tenants() == ()


def _forgeries(raw):
    """What somebody can make of a batch that passed, who holds any key but the node's."""
    event = json.loads(raw)
    entries = event["data"]["entries"]
    forger = key_of(generation=666)
    dearer = write([intent(), settled(cost=Cost(currency="CNY", pico=10**12, rows=("x",)))])
    further = write([intent("extra"), settled("extra")], after=write([intent(), settled()]))
    yield raw_batch(dearer, key=forger)
    yield raw_batch(further[2:], key=forger)
    yield raw_batch(write([intent(), settled()], epoch="made-up"), key=forger)
    # The node's own signature, under something else.
    note, prev_hash = event["data"]["checkpoint"], entries[-1]["hash"]
    changed = [{"seq": e.seq, "body": e.body.decode(), "hash": e.hash.hex()} for e in further[2:]]
    yield _event(event, entries=changed, prev_hash=prev_hash, checkpoint=note)
    yield _event(event, entries=entries[:1])
    yield _event(event, entries=entries[1:], prev_hash="00" * 32)
    yield _event(event, epoch="epoch-2")
    yield _event(event, checkpoint=None)
    lower = entries[1] | {"body": entries[1]["body"].replace("1234567", "0")}
    yield _event(event, entries=[entries[0], lower])


def _event(event, **changes):
    return json.dumps(event | {"data": event["data"] | changes}).encode()


@pytest.mark.mosquitto
def test_who_owns_the_broker_cannot_forge_usage(tmp_path, mosquitto, sender):
    books = Books(f"sqlite:///{tmp_path}/b.db", trust=Trust.REGISTERED).open()
    books.nodes.add("acme", "node-1", key_of().public, by="jo")
    honest = raw_batch(write([intent(), settled()]))
    forgeries = list(_forgeries(honest))
    with consuming(books, mosquitto):
        for number, raw in enumerate([*forgeries, honest, *forgeries, honest]):
            sender.publish(raw, correlation=str(number).encode())
        answers = [sender.receipt()[2] for _ in range(2 * len(forgeries) + 2)]

    assert [receipt.problem is None for receipt in answers] == (
        [False] * len(forgeries) + [True] + [False] * len(forgeries) + [True]
    )
    assert books.ingest(read_offer(honest)).acked_seq == 2
    totals = books.reports.totals("acme")
    assert (totals.entries, totals.cost_pico) == (2, {"CNY": COST.pico})
    assert [head.epoch for head in totals.ledgers] == ["epoch-1"]
    refused = books.reports.refusals("acme", limit=50)
    assert {refusal.kind for refusal in refused} == {"unsigned", "broken"}
    books.close()


@pytest.mark.mosquitto
def test_what_was_published_while_the_server_was_away_is_taken_when_it_is_back(
    sqlite_books, mosquitto, sender
):
    with consuming(sqlite_books, mosquitto):
        pass
    sender.publish(raw_batch(write([intent()])))
    with consuming(sqlite_books, mosquitto):
        assert sender.receipt()[2].acked_seq == 1


@pytest.mark.mosquitto
def test_a_broker_killed_in_the_middle_loses_nothing_in_effect(sqlite_books, mosquitto, sender):
    entries = write(attempts(60))
    with consuming(sqlite_books, mosquitto):
        sending = threading.Thread(target=sender.send_until_receipt, args=(entries,))
        sending.start()
        for _ in range(2):
            seen = sqlite_books.reports.totals("acme").entries
            while sqlite_books.reports.totals("acme").entries == seen and sending.is_alive():
                sending.join(0.01)
            mosquitto.kill()
            mosquitto.start()
        sending.join(4 * PATIENCE_S)
        assert not sending.is_alive()

    straight = sqlite_books.ingest(batch_of(entries, tenant="straight"))
    totals, expected = sqlite_books.reports.totals("acme"), sqlite_books.reports.totals("straight")
    assert totals.ledgers[0].head_hash == straight.head_hash
    assert totals.cost_pico == expected.cost_pico
    assert totals.held_pico == expected.held_pico
    assert totals.entries == len(entries)


class AwayStore(BillingStore):
    """A store whose database comes back when it is plugged in."""

    plugged = False
    asked = 0

    def take(self, offer):
        self.asked += 1
        if not self.plugged:
            raise StoreUnavailableError("the billing database does not answer: test")
        return super().take(offer)


@pytest.mark.mosquitto
def test_a_database_that_is_away_keeps_messages_waiting_and_unacknowledged(
    tmp_path, mosquitto, sender
):
    books = Books(f"sqlite:///{tmp_path}/away.db", store=AwayStore).open()
    store = books.store
    with consuming(books, mosquitto):
        sender.publish(raw_batch(write([intent()])))
        with pytest.raises(queue.Empty):
            sender.receipt(timeout_s=0.5)
    store.plugged = True
    with consuming(books, mosquitto):  # Not acknowledged, so the broker has it still.
        assert sender.receipt()[2].acked_seq == 1
    assert store.asked >= 2
    books.close()


class BrokenStore(BillingStore):
    """A store with a defect nobody foresaw."""

    def take(self, _offer):
        raise ZeroDivisionError


@pytest.mark.mosquitto
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_is_told_and_does_not_look_like_health(tmp_path, mosquitto, sender):
    books = Books(f"sqlite:///{tmp_path}/broken.db", store=BrokenStore).open()
    died = threading.Event()
    with consuming(books, mosquitto, on_death=died.set) as consumer:
        sender.publish(raw_batch(write([intent()])))
        assert died.wait(PATIENCE_S)
        consumer._worker.join(PATIENCE_S)
        assert not consumer.alive
    books.close()


@pytest.mark.mosquitto
def test_consumers_that_share_the_batches_answer_each_once(sqlite_books, mosquitto, sender):
    intake = Intake(sqlite_books.store)
    consumers = [
        MqttConsumer(
            Broker(host="127.0.0.1", port=mosquitto.port, client_id=name, share="billing"), intake
        )
        for name in ("billing-1", "billing-2")
    ]
    for consumer in consumers:
        consumer.start()
        assert consumer.wait_subscribed(PATIENCE_S)
    for number in range(20):
        entries = write([intent()], epoch=f"epoch-{number}")
        sender.publish(raw_batch(entries), correlation=str(number).encode())
    answered = [sender.receipt()[1] for _ in range(20)]
    for consumer in consumers:
        consumer.stop()

    assert sorted(answered, key=int) == [str(number).encode() for number in range(20)]
    assert sender.receipts.empty()
    assert sqlite_books.reports.totals("acme").entries == 20


@pytest.mark.mosquitto
def test_a_broker_that_comes_up_later_is_found(sqlite_books, mosquitto):
    mosquitto.kill()
    consumer = MqttConsumer(
        Broker(host="127.0.0.1", port=mosquitto.port, reconnect_max_s=1), Intake(sqlite_books.store)
    )
    consumer.start()
    assert not consumer.wait_subscribed(0)
    mosquitto.start()
    assert consumer.wait_subscribed(PATIENCE_S)
    assert consumer.subscribed
    consumer.stop()
    assert not consumer.subscribed


@pytest.mark.parametrize("prefix", ["", "/qc", "qc/#", "qc/+"])
def test_a_prefix_that_is_no_topic_is_named(prefix):
    with pytest.raises(BillingError, match="topic prefix"):
        Broker(host="127.0.0.1", port=1883, prefix=prefix)


def test_an_address_says_how_to_reach_the_broker(tmp_path):
    assert broker_at("mqtt://broker").port == 1883
    secured = broker_at("mqtts://broker", username="billing", password="secret")
    assert (secured.port, secured.tls) == (8883, True)
    assert "secret" not in repr(secured)
    with pytest.raises(BillingError, match="no CA file"):
        broker_at("mqtts://broker", ca_file=tmp_path / "none.pem")
