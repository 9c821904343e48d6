"""A tap between a client and the broker: it passes bytes on and reads what the client says.

MQTT 3.1.1 and 5 are read as far as a conformance checker needs it: how the client
connects, what it subscribes to, what it publishes, and how it leaves.
"""

from __future__ import annotations

import asyncio
import contextlib

from tests.lines.conformance import Checker, Connected

CONNECT, PUBLISH, SUBSCRIBE, DISCONNECT = 1, 3, 8, 14
V5 = 5


class Tap:
    """Listens on a port of its own, and tells a `Checker` what the client behind it does."""

    def __init__(self, broker_port: int, checker: Checker) -> None:
        self.checker = checker
        self.port = 0
        self.kinds: list[str] = []
        self._broker_port = broker_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._version = V5

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self.cut()

    def cut(self):
        """End what is connected without a word."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _serve(self, reader, writer):
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._broker_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back_writer}
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await asyncio.gather(
                self._pump(reader, back_writer, self._client_says),
                self._pump(back_reader, writer, self._broker_says),
            )
        self._writers -= {writer, back_writer}
        for each in (writer, back_writer):
            each.transport.abort()

    async def _pump(self, reader, writer, says):
        try:
            while True:
                head = await reader.readexactly(1)
                length, raw_length = await _length(reader)
                body = await reader.readexactly(length)
                says(head[0], body)
                writer.write(head + raw_length + body)
                await writer.drain()
        finally:
            writer.close()

    def _client_says(self, head, body):
        kind = head >> 4
        if kind == CONNECT:
            self._connect(body)
        elif kind == SUBSCRIBE:
            packet = _Packet(body)
            packet.skip(2)
            if self._version == V5:
                packet.properties()
            while packet.left():
                topic = packet.text()
                self.checker.subscribed(topic, qos=packet.byte() & 3)
        elif kind == PUBLISH:
            qos, (topic, payload) = head >> 1 & 3, self._publish(head, body)
            parts = topic.split("/")
            self.kinds.append(parts[2] if topic.startswith("spBv1.0") else topic)
            self.checker.published(topic, payload, qos=qos, retain=bool(head & 1))
        elif kind == DISCONNECT:
            reason = (body[0] if body else 0) if self._version == V5 else None
            self.checker.disconnected(reason)

    def _broker_says(self, head, body):
        if head >> 4 == PUBLISH:
            topic, payload = self._publish(head, body)
            if "/STATE/" in topic:
                self.checker.host_says(online=b'"online": true' in payload)

    def _publish(self, head, body):
        packet = _Packet(body)
        topic = packet.text()
        if head >> 1 & 3:
            packet.skip(2)
        if self._version == V5:
            packet.properties()
        return topic, packet.rest()

    def _connect(self, body):
        packet = _Packet(body)
        packet.text()
        self._version = packet.byte()
        flags = packet.byte()
        packet.skip(2)
        expiry = packet.properties().get(0x11, 0) if self._version == V5 else None
        packet.text()
        topic, payload = None, b""
        if flags & 4:
            if self._version == V5:
                packet.properties()
            topic, payload = packet.text(), packet.binary()
        self.checker.connected(
            Connected(
                will_topic=topic,
                will_payload=payload,
                will_qos=flags >> 3 & 3,
                will_retain=bool(flags & 0x20),
                clean=bool(flags & 2),
                expiry_s=expiry,
            )
        )


class _Packet:
    def __init__(self, raw):
        self._raw, self._at = raw, 0

    def left(self):
        return self._at < len(self._raw)

    def skip(self, count):
        self._at += count

    def byte(self):
        self._at += 1
        return self._raw[self._at - 1]

    def number(self, size):
        self._at += size
        return int.from_bytes(self._raw[self._at - size : self._at], "big")

    def binary(self):
        size = self.number(2)
        self._at += size
        return self._raw[self._at - size : self._at]

    def text(self):
        return self.binary().decode()

    def rest(self):
        return self._raw[self._at :]

    def properties(self):
        """Skip MQTT 5's properties; of a CONNECT, return those of four bytes that stand first."""
        size, shift = 0, 0
        while True:
            byte = self.byte()
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        inner = _Packet(self._raw[self._at : self._at + size])
        self._at += size
        found = {}
        while inner.left():
            name = inner.byte()
            if name not in (0x11, 0x27):
                break
            found[name] = inner.number(4)
        return found


async def _length(reader):
    size, shift, raw = 0, 0, b""
    while True:
        byte = await reader.readexactly(1)
        raw += byte
        size |= (byte[0] & 0x7F) << shift
        shift += 7
        if not byte[0] & 0x80:
            return size, raw
