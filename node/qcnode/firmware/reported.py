"""What devices say they run: their retained topics, read once from the broker."""

from __future__ import annotations

import queue
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from qcnode.errors import LineUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

WAIT_S: Final = 5.0
QUIET_S: Final = 1.0
BYTES_MAX: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Who asks the broker, and how it is reached."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


def read_reports(reader: Reader, topics: Iterable[str]) -> dict[str, bytes]:
    """Return what is retained at each topic; raises `LineUnavailableError`."""
    wanted = sorted(set(topics))
    heard: queue.Queue[tuple[str, bytes]] = queue.Queue(max(1, 2 * len(wanted)))
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    if reader.username is not None:
        client.username_pw_set(reader.username, reader.password)
    client.on_message = lambda _client, _data, message: (
        None if heard.full() else heard.put_nowait((message.topic, bytes(message.payload)))
    )
    subscribed: queue.Queue[bool] = queue.Queue(1)
    client.on_connect = lambda client, _data, _flags, reason, _properties: (
        subscribed.put_nowait(False)
        if reason.is_failure
        else _subscribe(client, wanted, subscribed)
    )
    try:
        if reader.ca_file is not None:
            client.tls_set(
                ca_certs=str(reader.ca_file),
                certfile=None if reader.cert_file is None else str(reader.cert_file),
                keyfile=None if reader.key_file is None else str(reader.key_file),
            )
        client.connect_timeout = WAIT_S
        client.connect(reader.host, reader.port)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise LineUnavailableError(f"{reader.host}:{reader.port}: {error}") from error
    client.loop_start()
    try:
        if not subscribed.get(timeout=WAIT_S):
            raise LineUnavailableError(
                f"{reader.host}:{reader.port}: refuses this user: see QCNODE_MQTT_PASSWORD"
            )
        return _collect(heard, len(wanted))
    except queue.Empty:
        raise LineUnavailableError(
            f"{reader.host}:{reader.port}: did not answer in {WAIT_S:g} s"
        ) from None
    finally:
        client.disconnect()
        client.loop_stop()


def _subscribe(client: Client, topics: list[str], subscribed: queue.Queue[bool]) -> None:
    if topics:
        client.subscribe([(topic, 1) for topic in topics])
    subscribed.put_nowait(True)


def _collect(heard: queue.Queue[tuple[str, bytes]], count: int) -> dict[str, bytes]:
    """Return what came; a topic where nothing is retained says nothing, so wait a little."""
    found: dict[str, bytes] = {}
    until = time.monotonic() + WAIT_S
    while len(found) < count and time.monotonic() < until:
        try:
            topic, payload = heard.get(timeout=QUIET_S if found else 2 * QUIET_S)
        except queue.Empty:
            break
        found[topic] = payload[:BYTES_MAX]
    return found
