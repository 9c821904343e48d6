"""What every way to the billing server keeps, shown over HTTP and over MQTT with Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx2
import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from qcnode.books import chain
from qcnode.books.batch import decode_receipt, encode_batch, encode_receipt
from qcnode.books.outbox import WINDOW
from qcnode.errors import LineUnavailableError, SettingsError
from qcnode.lines.http import HttpChannel
from qcnode.lines.mqtt import Broker, MqttChannel
from qcnode.lines.topics import NodeTopics
from qcnode.money import NotBilled
from tests.bridge.fakes_billing import FakeBilling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.services import Mosquitto

TOPICS = NodeTopics(site="s", area="a", line="l", node="n1")
TOKEN = "a-token"


def new_id() -> str:
    return secrets.token_hex(8)


def batches(count: int) -> list[bytes]:
    """Return `count` batches of two entries each, one continuing the other."""
    entries, before = [], chain.genesis("epoch")
    for seq in range(1, 2 * count + 1):
        fact = NotBilled(attempt_id=f"a{seq}", reason="no", http_status=None)
        entries.append(chain.make_entry(fact, epoch="epoch", seq=seq, at_us=seq, prev_hash=before))
        before = entries[-1].hash
    at = datetime(2026, 11, 20, tzinfo=UTC)
    return [
        encode_batch("acme", "n1", entries[start : start + 2], at=at)
        for start in range(0, 2 * count, 2)
    ]


class HttpSide:
    """A billing server as an ASGI application in this process."""

    def __init__(self) -> None:
        self.billing = FakeBilling()
        self.status = 200
        self.raw: bytes | None = None
        self.silent = False
        self.heard: list[dict[str, str]] = []

    def channel(self, *, token: str | None = TOKEN, timeout_s: float = 5.0) -> HttpChannel:
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(self._app))
        return HttpChannel(
            client,
            "http://billing.local",
            token=token,
            read_receipt=decode_receipt,
            timeout_s=timeout_s,
        )

    def go_silent(self) -> None:
        self.silent = True

    def say_nonsense(self) -> None:
        self.raw = b"<html>hello</html>"

    async def _app(self, scope, receive, send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.heard.append({"path": scope["path"], **headers})
        if self.silent:
            await asyncio.Event().wait()
        status, answer = self.status, b""
        if headers.get("authorization") != f"Bearer {TOKEN}":
            status = 401
        elif status == 200:
            answer = self.raw or encode_receipt(self.billing.take(body))
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": answer})


class MqttSide:
    """A billing server behind a real broker, which it may leave at any time."""

    def __init__(self, broker: Mosquitto) -> None:
        self.broker = broker
        self.billing = FakeBilling()
        self.raw: bytes | None = None
        self.silent = False
        self.stale_first = False
        self.answers = 1
        self.held: list[Callable[[], None]] | None = None
        self.heard = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id="billing", protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.username_pw_set("billing", "secret")
        self._client.on_message = self._answer

    async def start(self) -> None:
        subscribed = asyncio.Event()
        self._client.on_subscribe = lambda *_heard: self._loop.call_soon_threadsafe(subscribed.set)
        self._client.on_connect = lambda client, *_heard: client.subscribe(TOPICS.usage, qos=1)
        await asyncio.to_thread(self._client.connect, "127.0.0.1", self.broker.port)
        self._client.loop_start()
        await asyncio.wait_for(subscribed.wait(), 10)

    async def stop(self) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    def channel(self, *, password: str | None = None, timeout_s: float = 5.0) -> MqttChannel:
        return MqttChannel(
            Broker(
                host="127.0.0.1",
                port=self.broker.port,
                username="n1",
                password=password or "secret",
            ),
            TOPICS,
            read_receipt=decode_receipt,
            new_id=new_id,
            timeout_s=timeout_s,
        )

    def go_silent(self) -> None:
        self.silent = True

    def say_nonsense(self) -> None:
        self.raw = b"<html>hello</html>"

    def _answer(self, client: Client, _userdata, message) -> None:
        answer = self.raw or encode_receipt(self.billing.take(message.payload))
        self._loop.call_soon_threadsafe(self.heard.set)
        if self.silent:
            return
        about = Properties(PacketTypes.PUBLISH)
        if self.stale_first:
            about.CorrelationData = b"another batch"
            client.publish(message.properties.ResponseTopic, b"{}", qos=1, properties=about)
        about = Properties(PacketTypes.PUBLISH)
        about.CorrelationData = message.properties.CorrelationData

        def publish() -> None:
            for _ in range(self.answers):
                client.publish(message.properties.ResponseTopic, answer, qos=1, properties=about)

        if self.held is None:
            publish()
        else:
            self.held.append(publish)
            self._loop.call_soon_threadsafe(self.heard.set)


@pytest.fixture
def broker(make_mosquitto) -> Mosquitto:
    """A broker where each user may do what its part needs, and a stranger nothing."""
    return make_mosquitto(
        users=dict.fromkeys(("n1", "billing", "reader", "stranger"), "secret"),
        acl=(
            "user n1\n"
            f"topic write {TOPICS.usage}\ntopic read {TOPICS.ack}\n"
            f"user reader\ntopic read {TOPICS.ack}\n"
            "user billing\n"
            f"topic read {TOPICS.usage}\ntopic write {TOPICS.ack}\n"
        ),
    )


@pytest.fixture
async def mqtt(broker) -> AsyncIterator[MqttSide]:
    side = MqttSide(broker)
    await side.start()
    yield side
    await side.stop()


@pytest.fixture
def http() -> HttpSide:
    return HttpSide()


@pytest.fixture(params=["http", pytest.param("mqtt", marks=pytest.mark.mosquitto)])
def side(request):
    return request.getfixturevalue(request.param)


@contextlib.asynccontextmanager
async def closing(channel):
    try:
        yield channel
    finally:
        await channel.close()
        await channel.close()


async def test_the_servers_receipt_comes_back_for_each_batch(side):
    first, second = batches(2)
    async with closing(side.channel()) as channel:
        assert (await channel.send(first)).acked_seq == 2
        assert (await channel.send(second)).acked_seq == 4
    assert side.billing.seqs == [1, 2, 3, 4]


async def test_the_same_batch_may_go_again_and_gets_the_same_receipt(side):
    (batch,) = batches(1)
    async with closing(side.channel()) as channel:
        assert await channel.send(batch) == await channel.send(batch)
    assert side.billing.seqs == [1, 2]


async def test_a_window_of_batches_may_be_under_way_and_each_gets_its_own_receipt(side):
    several = batches(WINDOW)
    async with closing(side.channel()) as channel:
        receipts = await asyncio.gather(*(channel.send(batch) for batch in several))
    assert side.billing.seqs == list(range(1, 2 * WINDOW + 1))
    assert max(receipt.acked_seq for receipt in receipts) == 2 * WINDOW


async def test_a_refusal_is_a_receipt_with_a_problem(side):
    (batch,) = batches(1)
    side.billing.refuses_from = 2
    async with closing(side.channel()) as channel:
        receipt = await channel.send(batch)
    assert (receipt.acked_seq, receipt.problem) == (1, "entry 2 is refused")


async def test_no_receipt_in_time_is_no_delivery(side):
    (batch,) = batches(1)
    side.go_silent()
    async with closing(side.channel(timeout_s=0.5)) as channel:
        with pytest.raises(LineUnavailableError, match=r"receipt.* in 0\.5 s"):
            await channel.send(batch)


async def test_an_answer_that_is_no_receipt_is_no_delivery(side):
    (batch,) = batches(1)
    side.say_nonsense()
    async with closing(side.channel()) as channel:
        with pytest.raises(LineUnavailableError, match="no receipt"):
            await channel.send(batch)


async def test_a_large_batch_goes_through_whole(side):
    before = chain.genesis("epoch")
    fact = NotBilled(attempt_id="a1", reason="x" * 250_000, http_status=None)
    entry = chain.make_entry(fact, epoch="epoch", seq=1, at_us=1, prev_hash=before)
    batch = encode_batch("acme", "n1", [entry], at=datetime(2026, 11, 20, tzinfo=UTC))
    async with closing(side.channel()) as channel:
        assert (await channel.send(batch)).head_hash == entry.hash.hex()


# HTTP alone


async def test_http_posts_a_cloudevent_with_the_token(http):
    (batch,) = batches(1)
    async with closing(http.channel()) as channel:
        await channel.send(batch)
    (heard,) = http.heard
    assert heard["path"] == "/v1/batches"
    assert heard["content-type"] == "application/cloudevents+json"
    assert heard["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        (401, "QCNODE_BILLING_TOKEN"),
        (403, "QCNODE_BILLING_TOKEN"),
        (404, "metering.url"),
        (307, "log"),
        (422, "version"),
        (503, "log"),
    ],
)
async def test_http_names_the_fix_for_what_the_server_does_not_take(http, status, fix):
    (batch,) = batches(1)
    http.status = status
    async with closing(http.channel()) as channel:
        with pytest.raises(LineUnavailableError, match=fix) as raised:
            await channel.send(batch)
    assert TOKEN not in str(raised.value)


async def test_http_without_a_token_is_told_to_set_it(http):
    (batch,) = batches(1)
    async with closing(http.channel(token=None)) as channel:
        with pytest.raises(LineUnavailableError, match="QCNODE_BILLING_TOKEN"):
            await channel.send(batch)


async def test_http_says_when_nobody_is_there(free_port):
    (batch,) = batches(1)
    url = f"http://127.0.0.1:{free_port()}"
    channel = HttpChannel(
        httpx2.AsyncClient(trust_env=False), url, token=None, read_receipt=decode_receipt
    )
    async with closing(channel):
        with pytest.raises(LineUnavailableError, match="running"):
            await channel.send(batch)


@pytest.mark.parametrize("url", ["billing.local", "ftp://billing.local", "http://", ""])
def test_http_refuses_an_address_that_is_none(url):
    with pytest.raises(SettingsError, match=r"metering\.url"):
        HttpChannel(httpx2.AsyncClient(), url, token=None, read_receipt=decode_receipt)


# MQTT alone


@pytest.mark.mosquitto
async def test_mqtt_a_broker_without_a_billing_server_has_delivered_nothing(broker):
    (batch,) = batches(1)
    async with closing(MqttSide(broker).channel()) as channel:
        with pytest.raises(LineUnavailableError, match="nobody at broker"):
            await channel.send(batch)


@pytest.mark.mosquitto
async def test_mqtt_a_receipt_for_another_batch_is_not_taken_for_ours(mqtt):
    (batch,) = batches(1)
    mqtt.stale_first = True
    async with closing(mqtt.channel()) as channel:
        assert (await channel.send(batch)).acked_seq == 2


@pytest.mark.mosquitto
async def test_mqtt_receipts_may_come_late_in_any_order_and_twice(mqtt):
    several = batches(WINDOW)
    mqtt.answers, mqtt.held = 2, []
    async with closing(mqtt.channel()) as channel:
        sending = [asyncio.create_task(channel.send(batch)) for batch in several]
        async with asyncio.timeout(10):
            while len(mqtt.held) < WINDOW:
                mqtt.heard.clear()
                await mqtt.heard.wait()
        assert not any(task.done() for task in sending)
        for publish in reversed(mqtt.held):
            publish()
        receipts = await asyncio.gather(*sending)
    assert [receipt.acked_seq for receipt in receipts] == list(range(2, 2 * WINDOW + 1, 2))


@pytest.mark.mosquitto
async def test_mqtt_the_late_receipt_of_an_earlier_try_does_not_answer_a_later_one(mqtt):
    """What the server said before it may have forgotten says nothing of what it has now."""
    first, second = batches(2)
    mqtt.held = []
    async with closing(mqtt.channel(timeout_s=0.5)) as channel:
        with pytest.raises(LineUnavailableError, match="took the batch and no receipt"):
            await channel.send(first)
        late, mqtt.held = mqtt.held, None
        mqtt.silent = True
        again = asyncio.create_task(channel.send(first))
        for publish in late:
            publish()
        with pytest.raises(LineUnavailableError, match="no receipt"):
            await again
        mqtt.silent = False
        assert (await channel.send(second)).acked_seq == 4


@pytest.mark.mosquitto
async def test_mqtt_an_acknowledgement_of_the_broker_is_no_receipt(mqtt):
    (batch,) = batches(1)
    mqtt.go_silent()
    async with closing(mqtt.channel(timeout_s=0.5)) as channel:
        with pytest.raises(LineUnavailableError, match="took the batch and no receipt came"):
            await channel.send(batch)
    assert mqtt.billing.seqs == [1, 2]  # The node cannot know, and so sends it again.


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    ("user", "reason", "words"),
    [("n1", 16, "nobody at broker"), ("reader", 135, "Not authorized")],
)
async def test_mqtt_5_reasons_16_and_135_are_no_delivery(broker, user, reason, words):
    """MQTT 3.1.1 hides both behind success; Mosquitto tells them to MQTT 5."""
    (batch,) = batches(1)
    heard = []
    channel = MqttChannel(
        Broker(host="127.0.0.1", port=broker.port, username=user, password="secret"),
        TOPICS,
        read_receipt=decode_receipt,
        new_id=new_id,
    )
    async with closing(channel):
        link = await channel._linked()
        hear = link._client.on_publish

        def note(client, userdata, mid, code, properties):
            heard.append(code.value)
            hear(client, userdata, mid, code, properties)

        link._client.on_publish = note
        with pytest.raises(LineUnavailableError, match=words):
            await channel.send(batch)
    assert heard == [reason]


@pytest.mark.mosquitto
async def test_mqtt_a_wrong_password_is_said(mqtt):
    (batch,) = batches(1)
    async with closing(mqtt.channel(password="wrong")) as channel:
        with pytest.raises(LineUnavailableError, match="QCNODE_MQTT_PASSWORD"):
            await channel.send(batch)


@pytest.mark.mosquitto
async def test_mqtt_a_node_that_may_not_speak_here_is_told(mqtt):
    (batch,) = batches(1)
    channel = MqttChannel(
        Broker(
            host="127.0.0.1",
            port=mqtt.broker.port,
            username="stranger",
            password="secret",
        ),
        TOPICS,
        read_receipt=decode_receipt,
        new_id=new_id,
        timeout_s=5.0,
    )
    async with closing(channel):
        with pytest.raises(LineUnavailableError, match="Not authorized"):
            await channel.send(batch)


@pytest.mark.mosquitto
async def test_mqtt_a_killed_broker_is_said_and_its_successor_is_used(mqtt):
    first, second = batches(2)
    async with closing(mqtt.channel()) as channel:
        await channel.send(first)
        mqtt.broker.kill()
        with pytest.raises(LineUnavailableError, match="broker"):
            await channel.send(second)
        await mqtt.stop()
        mqtt.broker.start()
        restarted = MqttSide(mqtt.broker)
        restarted.billing = mqtt.billing
        await restarted.start()
        assert (await channel.send(second)).acked_seq == 4
        await restarted.stop()
    assert mqtt.billing.seqs == [1, 2, 3, 4]


@pytest.mark.mosquitto
async def test_mqtt_a_broker_killed_while_a_receipt_is_awaited_ends_the_waiting(mqtt):
    (batch,) = batches(1)
    mqtt.go_silent()
    async with closing(mqtt.channel(timeout_s=30.0)) as channel:
        sending = asyncio.create_task(channel.send(batch))
        await asyncio.wait_for(mqtt.heard.wait(), 10)
        mqtt.broker.kill()
        with pytest.raises(LineUnavailableError, match="lost"):
            await asyncio.wait_for(sending, 10)


@pytest.mark.mosquitto
async def test_mqtt_a_second_client_of_our_id_is_named_as_the_cause(mqtt):
    (batch,) = batches(1)
    mqtt.go_silent()
    async with closing(mqtt.channel(timeout_s=30.0)) as channel:
        sending = asyncio.create_task(channel.send(batch))
        await asyncio.wait_for(mqtt.heard.wait(), 10)
        async with closing(mqtt.channel(timeout_s=0.5)) as other:
            with pytest.raises(LineUnavailableError):
                await other.send(batch)
            with pytest.raises(LineUnavailableError, match="no other client"):
                await asyncio.wait_for(sending, 10)


async def test_mqtt_a_server_that_accepts_and_says_nothing_does_not_hold_us(free_port):
    (batch,) = batches(1)
    port, silent = free_port(), asyncio.Event()

    async def say_nothing(_reader, writer):
        await silent.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", port)
    channel = MqttChannel(
        Broker(host="127.0.0.1", port=port),
        TOPICS,
        read_receipt=decode_receipt,
        new_id=new_id,
        timeout_s=0.3,
    )
    async with closing(channel):
        with pytest.raises(LineUnavailableError, match="did not answer"):
            await channel.send(batch)
    silent.set()
    server.close()
    await server.wait_closed()


async def test_mqtt_says_when_there_is_no_broker(free_port):
    (batch,) = batches(1)
    channel = MqttChannel(
        Broker(host="127.0.0.1", port=free_port()),
        TOPICS,
        read_receipt=decode_receipt,
        new_id=new_id,
    )
    async with closing(channel):
        with pytest.raises(LineUnavailableError, match=r"mqtt\.host"):
            await channel.send(batch)


def test_mqtt_refuses_certificates_that_cannot_be_used(tmp_path):
    broken = tmp_path / "ca.pem"
    broken.write_text("no certificate")
    with pytest.raises(SettingsError, match="PEM"):
        MqttChannel(
            Broker(host="h", port=8883, ca_file=broken),
            TOPICS,
            read_receipt=decode_receipt,
            new_id=new_id,
        )


def test_a_password_is_in_no_text_about_a_broker():
    assert "secret" not in repr(Broker(host="h", port=1, username="u", password="secret"))


@pytest.mark.parametrize("name", ["", "N1", "a/b", "a+b", "#", "x" * 33, "a b"])
def test_a_name_that_would_leave_its_branch_is_no_topic_level(name):
    with pytest.raises(SettingsError, match=r"node\.line"):
        NodeTopics(site="s", area="a", line=name, node="n")
