"""What a batch over MQTT costs, next to plain paho carrying the same bytes there and back.

Both send at QoS 1, eight batches at a time, and wait for the answer that belongs to each;
the answers come from one and the same client, which checks nothing. What is compared is
what the channel adds: futures, timeouts, a loop between the threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from qcnode.bench.measure import Result, in_turn, speed_ratio
from qcnode.books.batch import decode_receipt, encode_receipt
from qcnode.errors import LineUnavailableError
from qcnode.lines.mqtt import Broker, MqttChannel
from qcnode.lines.topics import NodeTopics
from qcnode.money import Receipt

if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOW = 8
BATCH_BYTES = 16 * 1024
_WAIT_S = 30.0
_TOPICS = NodeTopics(site="bench", area="bench", line="bench", node="bench", prefix="qc/bench")
_BATCH = b"x" * BATCH_BYTES
_RECEIPT = encode_receipt(Receipt(epoch="0" * 32, acked_seq=1, head_hash="0" * 64))


def sync_result(broker: str, *, rounds: int, batches: int) -> Result:
    """Measure at `broker`, HOST:PORT without a login; raises `LineUnavailableError`."""
    host, _, port = broker.rpartition(":")
    where = (host or "127.0.0.1", int(port))
    with _answering(where), _plain(where) as plain, asyncio.Runner() as runner:
        channel = MqttChannel(
            Broker(host=where[0], port=where[1], client_id="bench-ours"),
            _TOPICS,
            read_receipt=decode_receipt,
            new_id=(f"ours-{number}" for number in itertools.count()).__next__,
        )

        def ours(_number: int) -> float:
            return runner.run(_send(channel, batches))

        def reference(_number: int) -> float:
            return plain.send(batches)

        ours(-1)  # Connects.
        pairs = list(in_turn(rounds, ours, reference))
        runner.run(channel.close())
    rate = batches / min(mine for mine, _theirs in pairs)
    return Result(
        name="batches over MQTT at QoS 1 and back, over plain paho",
        values=speed_ratio(pairs),
        aim=0.95,
        note=f"best round {rate:,.0f} batches of 16 KiB a second",
    )


async def _send(channel: MqttChannel, batches: int) -> float:
    start = time.perf_counter()
    numbers = iter(range(batches))

    async def one_after_the_other() -> None:
        for _number in numbers:
            await channel.send(_BATCH)

    async with asyncio.TaskGroup() as tasks:
        for _place in range(WINDOW):
            tasks.create_task(one_after_the_other())
    return time.perf_counter() - start


class _Plain:
    """paho and nothing else."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._room = threading.Semaphore(WINDOW)
        self._answers = threading.Semaphore(0)
        client.on_message = self._take

    def send(self, batches: int) -> float:
        """Send so many and wait for all answers; return the seconds it took."""
        start = time.perf_counter()
        for number in range(batches):
            if not self._room.acquire(timeout=_WAIT_S):
                raise LineUnavailableError("the broker brings no answers: is it the bench's own?")
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ResponseTopic = _TOPICS.ack + "/plain"
            properties.CorrelationData = str(number).encode()
            self._client.publish(_TOPICS.usage, _BATCH, qos=1, properties=properties)
        for _number in range(batches):
            if not self._answers.acquire(timeout=_WAIT_S):
                raise LineUnavailableError("the broker brings no answers: is it the bench's own?")
        return time.perf_counter() - start

    def _take(self, _client: Client, _userdata: Any, _message: MQTTMessage) -> None:
        self._room.release()
        self._answers.release()


@contextlib.contextmanager
def _plain(where: tuple[str, int]) -> Iterator[_Plain]:
    with _client("bench-plain", where, _TOPICS.ack + "/plain") as client:
        yield _Plain(client)


@contextlib.contextmanager
def _answering(where: tuple[str, int]) -> Iterator[None]:
    def answer(client: Client, _userdata: Any, message: MQTTMessage) -> None:
        asked: Any = message.properties
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.CorrelationData = asked.CorrelationData
        client.publish(asked.ResponseTopic, _RECEIPT, qos=1, properties=properties)

    with _client("bench-server", where, _TOPICS.usage) as client:
        client.on_message = answer
        yield


@contextlib.contextmanager
def _client(name: str, where: tuple[str, int], topic: str) -> Iterator[Client]:
    client = Client(
        CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5
    )
    client.max_inflight_messages_set(100)
    ready = threading.Event()

    def subscribe(*_heard: Any) -> None:
        client.subscribe(topic, qos=1)

    def take_subscribed(*_heard: Any) -> None:
        ready.set()

    client.on_connect = subscribe
    client.on_subscribe = take_subscribed
    try:
        client.connect(*where)
    except OSError as error:
        raise LineUnavailableError(
            f"no broker at {where[0]}:{where[1]} ({error}): start one, or leave out --broker"
        ) from error
    client.loop_start()
    try:
        if not ready.wait(_WAIT_S):
            raise LineUnavailableError(f"the broker at {where[0]}:{where[1]} lets nobody in")
        yield client
    finally:
        client.disconnect()
        client.loop_stop()
