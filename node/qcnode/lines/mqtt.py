"""The node's connection to the broker over MQTT 5; first of all, ledger batches and receipts.

A broker's acknowledgement is no receipt: a batch counts as delivered when the server's
receipt has come, matched by correlation data that no two sends share, so that a late
receipt is never taken for the answer to a repetition. paho's network thread only hands
things over to the event loop, where everything is decided, so no callback can end that
thread. A connection that is lost is not mended but made anew by the next send, so nothing
waits in a queue of the library that a restart would lose.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
from paho.mqtt.client import MQTT_ERR_SUCCESS, Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from qcnode.errors import LineUnavailableError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qcnode.lines.topics import NodeTopics
    from qcnode.money import Receipt

log = structlog.get_logger()

CONTENT_TYPE: Final = "application/cloudevents+json"
NO_SUBSCRIBERS: Final = 0x10
"""The broker took a message and there is nobody to give it to."""
WITH_WILL: Final = 0x04
"""Leaving with this, the broker publishes the will all the same."""
_FAILURE: Final = 0x80
_RECEIPT_BYTES_MAX: Final = 256 * 1024
_KEEPALIVE_S: Final = 30
_GOODBYE_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where the broker is and how it knows us; with `ca_file` the way there is encrypted.

    `client_id` is the node's name unless said otherwise: two clients of one id throw
    each other out for ever.
    """

    host: str
    port: int
    username: str | None = None
    password: str | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    client_id: str | None = None

    def __repr__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """What the broker says when a connection ends without a word."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What came in on a topic that a passenger subscribed to."""

    topic: str
    payload: bytes
    retained: bool
    response_topic: str | None = None
    correlation: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A topic to listen to; `retained` says whether what was retained there is wanted too."""

    topic: str
    retained: bool = False


class Passenger(Protocol):
    """Who speaks and listens on a connection beside the batches; called in the event loop."""

    def will(self) -> Will:
        """Return the will of the connection about to be made."""

    def topics(self) -> Sequence[Wish]:
        """Return what to subscribe to."""

    def took(self, message: Message) -> None:
        """Take a message in; this must not raise."""

    def refused(self, words: str) -> None:
        """Hear that the broker does not let us listen; the connection stands all the same."""


class MqttChannel:
    """Sends each batch at QoS 1 and waits for the receipt that belongs to it.

    Several may be on their way at once; how many is the sender's to say. It belongs to the
    event loop that first sends. `read_receipt` reads a receipt and raises `ValueError`
    when it is none; `new_id` gives what is never given again, not even after a restart.
    """

    name = "mqtt"

    def __init__(
        self,
        broker: Broker,
        topics: NodeTopics,
        *,
        read_receipt: Callable[[bytes], Receipt],
        new_id: Callable[[], str],
        timeout_s: float = 10.0,
        passenger: Passenger | None = None,
    ) -> None:
        self._broker = broker
        self._topics = topics
        self._read_receipt = read_receipt
        self._new_id = new_id
        self._timeout_s = timeout_s
        self._passenger = passenger
        self._tls = tls_of(broker)
        self._opening = asyncio.Lock()
        self._link: Link | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()

    async def send(self, batch: bytes) -> Receipt:
        """Deliver one CloudEvent and return the server's receipt for it."""
        link: Link | None = None
        ask: _Ask | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                link = await self._linked()
                ask = link.ask(batch, self._new_id().encode())
                answer = await ask.answer
        except TimeoutError as error:
            acknowledged = ask is not None and ask.acknowledged
            if not acknowledged:  # Half-open, or dead without a word.
                await self._unlink(link)
            raise LineUnavailableError(self._no_answer(acknowledged=acknowledged)) from error
        except LineUnavailableError:
            if link is not None and link.lost:
                await self._unlink(link)
            raise
        finally:
            if link is not None and ask is not None:
                link.forget(ask)
        try:
            return self._read_receipt(answer)
        except ValueError as error:
            raise LineUnavailableError(
                f"{self._topics.ack} at broker {self._broker} brought what is no receipt ({error}):"
                " who else writes there?"
            ) from error

    async def linked(self) -> Link:
        """Return the connection as it stands, or make it; raises `LineUnavailableError`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._linked()
        except TimeoutError as error:
            raise LineUnavailableError(self._no_answer(acknowledged=False)) from error

    async def drop(self, link: Link) -> None:
        """Give a connection up, so that the next one is made anew."""
        await self._unlink(link)

    async def close(self) -> None:
        """Leave; closing twice is harmless."""
        self._closed.set()
        await self._unlink(self._link)
        for leaving in tuple(self._leaving):
            await leaving

    async def _linked(self) -> Link:
        async with self._opening:
            if self._closed.is_set():
                raise LineUnavailableError(f"the way to broker {self._broker} is closed")
            if self._link is not None and self._link.lost:
                await self._unlink(self._link)
            if self._link is None:
                link = Link(self._broker, self._topics, self._tls, self._timeout_s, self._passenger)
                try:
                    await link.open()
                except BaseException:
                    await self._unlink(link)
                    raise
                if self._closed.is_set():
                    await self._unlink(link)
                    raise LineUnavailableError(f"the way to broker {self._broker} is closed")
                self._link = link
            return self._link

    async def _unlink(self, link: Link | None) -> None:
        if link is None:
            return
        if self._link is link:
            self._link = None
        if not link.closing:
            link.closing = True
            leaving = asyncio.create_task(link.close())
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            await asyncio.shield(leaving)

    def _no_answer(self, *, acknowledged: bool) -> str:
        if acknowledged:
            return (
                f"broker {self._broker} took the batch and no receipt came in"
                f" {self._timeout_s:g} s: is the billing server running?"
            )
        return f"broker {self._broker} did not answer in {self._timeout_s:g} s: is it reachable?"


@dataclass(slots=True, eq=False)
class _Ask:
    """A batch on its way, and the answer to it."""

    correlation: bytes
    answer: asyncio.Future[bytes]
    mid: int | None = None
    acknowledged: bool = False

    def fail(self, words: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(LineUnavailableError(words))
            self.answer.exception()  # Whoever waits will raise it; nobody need.


class Link:
    """One connection, from its making to its loss; used once.

    With `topics` it is for batches too; without, for its passenger alone.
    """

    def __init__(
        self,
        broker: Broker,
        topics: NodeTopics | None,
        tls: ssl.SSLContext | None,
        timeout_s: float,
        passenger: Passenger | None = None,
    ) -> None:
        self._broker = broker
        self._topics = topics
        self._passenger = passenger
        self._client_id = broker.client_id or (topics.node if topics else "")
        self._loop = asyncio.get_running_loop()
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._granted: dict[int, asyncio.Future[list[int]]] = {}
        self._said: dict[int, asyncio.Future[int]] = {}
        self._why_lost = f"the connection to broker {broker} is not made yet"
        self._asks: dict[bytes, _Ask] = {}
        self._started = False
        self.lost = False
        self.closing = False
        self._client = client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        client.connect_timeout = timeout_s
        if broker.username is not None:
            client.username_pw_set(broker.username, broker.password)
        if tls is not None:
            client.tls_set_context(tls)
        if passenger is not None:
            will = passenger.will()
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        client.on_connect = self._heard(self._take_connect)
        client.on_subscribe = self._heard(self._take_subscribe)
        client.on_publish = self._heard(self._take_publish)
        client.on_disconnect = self._heard(self._take_disconnect)
        client.on_message = self._heard(self._take_message)

    async def open(self) -> None:
        """Connect and subscribe, or raise `LineUnavailableError`."""
        limits = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # as paho has it
        limits.MaximumPacketSize = _RECEIPT_BYTES_MAX
        try:
            await asyncio.to_thread(
                self._client.connect,
                self._broker.host,
                self._broker.port,
                _KEEPALIVE_S,
                # Receipts are matched to what is in flight; old ones would be of no use.
                clean_start=True,
                properties=limits,
            )
        except (OSError, ValueError) as error:
            raise LineUnavailableError(
                f"broker {self._broker} cannot be reached ({error}): is it running, and is"
                " mqtt.host and mqtt.port its address?"
            ) from error
        self._client.loop_start()
        self._started = True
        await self._connected
        if self._topics is not None:
            (reason,) = await self._subscribe(self._topics.ack, qos=1)
            if reason >= _FAILURE:
                raise LineUnavailableError(
                    f"broker {self._broker} does not let us read {self._topics.ack}"
                    f" (reason {reason}): allow it to this node"
                )
        if self._passenger is not None and (topics := self._passenger.topics()):
            reasons = await self._subscribe([(wish.topic, _options(wish)) for wish in topics])
            for wish, reason in zip(topics, reasons, strict=True):
                if reason >= _FAILURE:
                    self._passenger.refused(
                        f"broker {self._broker} does not let us read {wish.topic}"
                        f" (reason {reason}): allow it to this node"
                    )

    def check(self) -> None:
        """Raise `LineUnavailableError` when the connection is gone."""
        if self.lost:
            raise LineUnavailableError(self._why_lost)

    async def say(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        expiry_s: int | None = None,
        correlation: bytes | None = None,
    ) -> int:
        """Publish and return the broker's reason: at QoS 1 its acknowledgement's, at QoS 0 none.

        Raises `LineUnavailableError` when the connection is lost before that.
        """
        about = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # as paho has it
        if expiry_s is not None:
            about.MessageExpiryInterval = expiry_s
        if correlation is not None:
            about.CorrelationData = correlation
        self.check()
        sent = self._client.publish(topic, payload, qos=qos, retain=retain, properties=about)
        if sent.rc != MQTT_ERR_SUCCESS:
            raise LineUnavailableError(f"broker {self._broker} was lost: is it running?")
        if qos == 0:
            return 0
        said: asyncio.Future[int] = self._loop.create_future()
        self._said[sent.mid] = said
        try:
            return await said
        finally:
            self._said.pop(sent.mid, None)

    async def _subscribe(self, *what: Any, **how: Any) -> list[int]:
        result, mid = self._client.subscribe(*what, **how)
        if result != MQTT_ERR_SUCCESS or mid is None:
            raise LineUnavailableError(f"broker {self._broker} was lost while subscribing")
        granted: asyncio.Future[list[int]] = self._loop.create_future()
        self._granted[mid] = granted
        return await granted

    def ask(self, batch: bytes, correlation: bytes) -> _Ask:
        """Publish; what comes back for it will be the answer."""
        assert self._topics is not None  # noqa: S101  # a link for batches has them
        ask = _Ask(correlation=correlation, answer=self._loop.create_future())
        about = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # as paho has it
        about.ContentType = CONTENT_TYPE
        about.ResponseTopic = self._topics.ack
        about.CorrelationData = correlation
        sent = self._client.publish(self._topics.usage, batch, qos=1, properties=about)
        if sent.rc != MQTT_ERR_SUCCESS:
            self.lost = True
            raise LineUnavailableError(f"broker {self._broker} was lost: is it running?")
        ask.mid = sent.mid
        self._asks[correlation] = ask
        return ask

    def forget(self, ask: _Ask) -> None:
        """Wait for this answer no longer."""
        self._asks.pop(ask.correlation, None)

    async def close(self, *, reason: int | None = None) -> None:
        """End the connection and its thread."""
        self._fail(f"the connection to broker {self._broker} was given up")
        if reason is None:
            self._client.disconnect()
        else:
            self._client.disconnect(ReasonCode(PacketTypes.DISCONNECT, identifier=reason))
        if not self._started:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await asyncio.shield(self._gone)
        # Without a socket paho's thread has to end, however full its buffers are.
        if isinstance(sock := self._client.socket(), socket.socket):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        await asyncio.to_thread(self._client.loop_stop)

    def _heard(self, take: Callable[..., None]) -> Callable[..., None]:
        """Hand what paho's thread hears to the event loop; this cannot raise."""

        def hand_over(_client: Client, _userdata: Any, *heard: Any) -> None:
            with contextlib.suppress(RuntimeError):  # The loop has ended.
                self._loop.call_soon_threadsafe(take, *heard)

        return hand_over

    def _take_connect(self, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.value < _FAILURE:
            _settle(self._connected)
            return
        self._fail(
            f"broker {self._broker} refuses us ({reason}):"
            " check mqtt.username, QCNODE_MQTT_PASSWORD and the certificate"
        )

    def _take_subscribe(self, mid: int, reasons: list[Any], _properties: Any) -> None:
        granted = self._granted.pop(mid, None)
        if granted is not None and not granted.done():
            granted.set_result([reason.value for reason in reasons])

    def _take_publish(self, mid: int, reason: Any, _properties: Any) -> None:
        said = self._said.get(mid)
        if said is not None and not said.done():
            said.set_result(reason.value)
            return
        ask = next((one for one in self._asks.values() if one.mid == mid), None)
        if ask is None or self._topics is None:
            return
        if reason.value == NO_SUBSCRIBERS:
            ask.fail(
                f"nobody at broker {self._broker} listens to {self._topics.usage}:"
                " start the billing server"
            )
        elif reason.value >= _FAILURE:
            ask.fail(
                f"broker {self._broker} does not take {self._topics.usage} ({reason}):"
                " allow it to this node"
            )
        else:
            ask.acknowledged = True

    def _take_message(self, message: MQTTMessage) -> None:
        if self._passenger is not None and (
            self._topics is None or message.topic != self._topics.ack
        ):
            self._passenger.took(
                Message(
                    topic=message.topic,
                    payload=bytes(message.payload),
                    retained=bool(message.retain),
                    response_topic=getattr(message.properties, "ResponseTopic", None),
                    correlation=getattr(message.properties, "CorrelationData", None),
                )
            )
            return
        correlation = getattr(message.properties, "CorrelationData", None)
        ask = self._asks.get(correlation) if isinstance(correlation, bytes) else None
        if ask is None:
            log.debug("a receipt nobody waits for", topic=message.topic)
            return
        if not ask.answer.done():
            ask.answer.set_result(bytes(message.payload))

    def _take_disconnect(self, _flags: Any, reason: Any, _properties: Any) -> None:
        # Mosquitto 2.0 does not say so when another client takes our id over.
        self._fail(
            f"broker {self._broker} was lost ({reason}): is it running, and does no other client"
            f" use our id {self._client_id}?"
        )
        _settle(self._gone)

    def _fail(self, words: str) -> None:
        if not self.lost:
            self._why_lost = words
        self.lost = True
        waiting: list[asyncio.Future[Any]] = [
            self._connected,
            *self._granted.values(),
            *self._said.values(),
        ]
        for future in waiting:
            if not future.done():
                future.set_exception(LineUnavailableError(words))
                future.exception()  # Whoever waits will raise it; nobody need.
        for ask in self._asks.values():
            ask.fail(words)


def _options(wish: Wish) -> SubscribeOptions:
    handling = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
    if not wish.retained:
        handling = SubscribeOptions.RETAIN_DO_NOT_SEND
    # As published: who retains what nobody may retain is to be found out.
    return SubscribeOptions(qos=1, retainAsPublished=True, retainHandling=handling)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def tls_of(broker: Broker) -> ssl.SSLContext | None:
    """Return what encrypts the way to the broker, if anything; raises `SettingsError`."""
    if broker.ca_file is None:
        if broker.cert_file is not None:
            raise SettingsError("mqtt.cert_file is set and mqtt.ca_file is not: set both")
        return None
    try:
        context = ssl.create_default_context(cafile=broker.ca_file)
        if broker.cert_file is not None:
            context.load_cert_chain(broker.cert_file, broker.key_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"mqtt.ca_file, cert_file, key_file: cannot be used ({error}): are they PEM files?"
        ) from error
    return context
