"""Batches that come over MQTT: stored first, acknowledged after.

The broker keeps the session, and a PUBLISH is acknowledged to it only when the batch is
committed or refused for good; while the database is away nothing is acknowledged and at
most `RECEIVE_MAX` messages are in hand. Even so a PUBACK promises nothing to the node:
the receipt does, published to the message's response topic. paho's thread only passes
messages on, so nothing that happens to a batch can end it.
"""

from __future__ import annotations

import queue
import ssl
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from qcbridge.billing.engine import StoreUnavailableError
from qcbridge.billing.offers import BATCH_BYTES_MAX, BatchRefusedError
from qcnode.books import batch as batches
from qcnode.errors import BillingError
from qcnode.money import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from paho.mqtt.reasoncodes import ReasonCode

    from qcbridge.billing.intake import Intake

log = structlog.get_logger()

USAGE = "meter/usage"
RECEIVE_MAX = 16
"""Messages the broker may have on their way to us at once."""
RECEIPTS_WAITING_MAX = 1_000
CONNECT_TIMEOUT_S = 2.0
STOP_TIMEOUT_S = 1.0
RETRY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where the broker is, and who the billing server is there.

    The client id is what the broker keeps the session under, so two servers may not
    share it. The password stays out of `repr` and so out of the logs.
    """

    host: str
    port: int
    prefix: str = "qc/v1"
    client_id: str = "qc-billing"
    share: str | None = None
    """The group of clients among which the broker shares the batches out; None is no group."""
    tls: bool = False
    ca_file: Path | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    keepalive_s: int = 30
    session_expiry_s: int = 7 * 24 * 3600
    reconnect_max_s: int = 30

    def __post_init__(self) -> None:
        if not self.prefix or self.prefix.startswith("/") or set(self.prefix) & set("#+\0"):
            raise BillingError(f"topic prefix {self.prefix!r}: write levels as in qc/v1")


def broker_at(
    url: str,
    *,
    prefix: str = "qc/v1",
    ca_file: Path | None = None,
    username: str | None = None,
    password: str | None = None,
) -> Broker:
    """Read a broker's address, as in mqtt://host:1883 or mqtts://host:8883."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise BillingError(f"broker address {url!r}: {error}") from error
    if parts.password is not None or parts.username is not None:
        raise BillingError(
            "the broker's address holds a user or password: give the user with --mqtt-user"
            " and the password in QCNODE_BILLING_MQTT_PASSWORD"
        )
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/"):
        raise BillingError(f"broker address {url!r}: write mqtt://HOST:PORT or mqtts://HOST:PORT")
    tls = parts.scheme == "mqtts"
    if ca_file is not None and not tls:
        raise BillingError("a CA file is for mqtts:// only: mqtt:// is not encrypted")
    if ca_file is not None and not ca_file.is_file():
        raise BillingError(f"no CA file at {ca_file}")
    return Broker(
        host=parts.hostname,
        port=port or (8883 if tls else 1883),
        prefix=prefix,
        tls=tls,
        ca_file=ca_file,
        username=username,
        password=password,
    )


@dataclass(frozen=True, slots=True)
class _Delivery:
    """A message, and the connection it came over; its id means nothing on another one."""

    message: mqtt.MQTTMessage
    connection: int


class MqttConsumer:
    """Takes what nodes publish under `{prefix}/+/+/+/+/meter/usage` to the intake.

    `on_death` is called when a thread of it ends unasked, which only a defect can cause.
    """

    def __init__(
        self, broker: Broker, intake: Intake, *, on_death: Callable[[], None] | None = None
    ) -> None:
        self._broker = broker
        self._intake = intake
        self._on_death = on_death
        # Old connections may leave messages behind, hence some room above what one may send.
        self._deliveries: queue.Queue[_Delivery | None] = queue.Queue(4 * RECEIVE_MAX)
        self._stopping = threading.Event()
        self._subscribed = threading.Event()
        self._connection = 0
        self._reachable = True
        self._client = self._make_client()
        self._worker = threading.Thread(target=self._work, name="billing-mqtt", daemon=True)

    @property
    def subscribed(self) -> bool:
        """Whether the broker is connected and has taken the subscription."""
        return self._subscribed.is_set() and self._client.is_connected()

    @property
    def alive(self) -> bool:
        """Whether both threads run; paho says it is connected even when its own has ended."""
        network = self._client._thread  # noqa: SLF001  # paho tells of its thread in no other way
        return network is not None and network.is_alive() and self._worker.is_alive()

    def start(self) -> None:
        """Begin to connect and return; the broker may come up later."""
        connect = _properties(PacketTypes.CONNECT)
        connect.SessionExpiryInterval = self._broker.session_expiry_s
        connect.ReceiveMaximum = RECEIVE_MAX
        self._client.connect_async(
            self._broker.host,
            self._broker.port,
            keepalive=self._broker.keepalive_s,
            clean_start=False,
            properties=connect,
        )
        self._worker.start()
        self._client.loop_start()

    def wait_subscribed(self, timeout_s: float) -> bool:
        """Wait for the subscription and say whether it stands."""
        return self._subscribed.wait(timeout_s)

    def stop(self) -> None:
        """Leave; the broker keeps the session and what was not acknowledged."""
        self._stopping.set()
        self._client.disconnect()
        # paho waits for its thread without limit, and that may hang in a TLS handshake.
        leaving = threading.Thread(target=self._client.loop_stop, daemon=True)
        leaving.start()
        leaving.join(CONNECT_TIMEOUT_S)
        try:
            self._deliveries.put_nowait(None)
        except queue.Full:
            log.debug("the worker sees the stop without being woken")
        if self._worker.is_alive():
            self._worker.join(STOP_TIMEOUT_S)

    def _make_client(self) -> mqtt.Client:
        broker = self._broker
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=broker.client_id,
            protocol=mqtt.MQTTv5,
            manual_ack=True,
        )
        # The last net under the callbacks: paho's thread ends by an exception in one of
        # them, and goes on claiming to be connected.
        client.suppress_exceptions = True
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.reconnect_delay_set(1, broker.reconnect_max_s)
        client.max_queued_messages_set(RECEIPTS_WAITING_MAX)
        if broker.username is not None:
            client.username_pw_set(broker.username, broker.password)
        if broker.tls:
            cafile = None if broker.ca_file is None else str(broker.ca_file)
            try:
                client.tls_set_context(ssl.create_default_context(cafile=cafile))
            except (OSError, ValueError) as error:
                raise BillingError(f"CA file {cafile}: {error}") from error
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    # What follows runs in paho's thread and only passes things on.

    def _on_connect(
        self,
        client: mqtt.Client,
        _userdata: Any,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._say_unreachable(f"the broker refuses the connection: {reason}")
            return
        self._connection += 1
        self._reachable = True
        log.info("broker connected", session_kept=flags.session_present)
        # Always: a broker that lost its sessions in a crash says so here, and only here.
        group = "" if self._broker.share is None else f"$share/{self._broker.share}/"
        topics = f"{group}{self._broker.prefix}/+/+/+/+/{USAGE}"
        client.subscribe(topics, options=SubscribeOptions(qos=1))

    def _on_subscribe(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        _mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            log.error("the broker refuses the subscription: check its ACL", reasons=refused)
            return
        self._subscribed.set()

    def _on_connect_fail(self, _client: mqtt.Client, _userdata: Any) -> None:
        self._say_unreachable("the broker does not answer")

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        _flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._subscribed.clear()
        if not self._stopping.is_set():
            self._say_unreachable(f"the broker is gone: {reason}")

    def _on_message(self, client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        try:
            self._deliveries.put_nowait(_Delivery(message, self._connection))
        except queue.Full:
            # More than we asked for. Without a receipt the node sends it again.
            log.warning("more messages than the receive maximum, one is left to its node")
            client.ack(message.mid, message.qos)

    def _say_unreachable(self, words: str) -> None:
        if self._reachable:
            log.warning(
                "batches wait", why=words, broker=f"{self._broker.host}:{self._broker.port}"
            )
        self._reachable = False

    # What follows runs in the worker thread.

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                delivery = self._deliveries.get()
                if delivery is None:
                    return
                self._handle(delivery)
        finally:
            if not self._stopping.is_set() and self._on_death is not None:
                self._on_death()

    def _handle(self, delivery: _Delivery) -> None:
        message = delivery.message
        if delivery.connection != self._connection:
            return  # It is delivered again over the connection that stands now.
        base = message.topic.removesuffix(f"/{USAGE}")
        receipt = self._take(bytes(message.payload), node=base.rpartition("/")[2])
        if receipt is None:
            return
        self._send(receipt, message, base)
        if delivery.connection == self._connection:
            self._client.ack(message.mid, message.qos)

    def _take(self, payload: bytes, *, node: str) -> Receipt | None:
        """Store a batch, however long the database is away; None when stopped meanwhile."""
        told = False
        while not self._stopping.is_set():
            try:
                return self._intake.take(payload, via="mqtt", node=node)
            except StoreUnavailableError as error:
                if not told:
                    log.warning("the database is away, batches wait", why=str(error))
                told = True
                self._stopping.wait(RETRY_S)
            except BatchRefusedError as refused:
                # Without an epoch that could be read, the receipt is about none.
                return Receipt(epoch="", acked_seq=0, head_hash="", problem=str(refused))
            except BillingError as error:
                log.error("a batch cannot be stored", why=str(error), node=node)  # noqa: TRY400  # one line says all a person can use
                return Receipt(epoch="", acked_seq=0, head_hash="", problem=str(error))
        return None

    def _send(self, receipt: Receipt, message: mqtt.MQTTMessage, base: str) -> None:
        asked = getattr(message.properties, "ResponseTopic", None)
        correlation = getattr(message.properties, "CorrelationData", None)
        if not receipt.epoch and correlation is None:
            return  # Nobody could tell what it answers; the refusal is on record.
        topic = f"{base}/meter/ack"
        # A node is answered under its own topics only: whoever publishes a batch must not
        # make this server write where the broker would not let the node itself.
        if isinstance(asked, str) and asked.startswith(f"{base}/meter/") and _is_plain(asked):
            topic = asked
        properties = _properties(PacketTypes.PUBLISH)
        properties.ContentType = "application/json"
        if correlation is not None:
            properties.CorrelationData = correlation
        sent = self._client.publish(
            topic, batches.encode_receipt(receipt), qos=1, properties=properties
        )
        self._note_unsent(sent.rc, topic)

    def _note_unsent(self, code: MQTTErrorCode, topic: str) -> None:
        if code not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN):
            log.warning(
                "a receipt was not sent, its node will ask again", topic=topic, rc=int(code)
            )


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]  # paho types all but this


def _is_plain(topic: str) -> bool:
    return not set(topic) & set("#+\0") and len(topic) < BATCH_BYTES_MAX // 1024
