"""The shipped broker, really started: its own files, with the paths put into a test's folder."""

from __future__ import annotations

import queue
import shutil
import signal
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from paho.mqtt.reasoncodes import ReasonCode

PATIENCE_S = 20.0
INSTALLED = "/etc/mosquitto/qcnode"
DATA = "/var/lib/mosquitto/"


@dataclass(kw_only=True)
class Broker:
    """The broker of `deploy/mosquitto` with one of its listeners."""

    program: Path
    home: Path
    port: int
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def database(self) -> Path:
        return self.home / "data" / "qcnode.db"

    def start(self) -> None:
        log = (self.home / "broker.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [self.program, "-c", self.home / "etc" / "mosquitto.conf"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        pause = threading.Event()
        for _ in range(int(PATIENCE_S / 0.05)):
            if self._process.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            pause.wait(0.05)
        pytest.fail(f"the broker did not start:\n{(self.home / 'broker.log').read_text()}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE_S)
            self._process = None


@dataclass(kw_only=True)
class Talker:
    """One user of the broker, whose every answer is waited for."""

    client: Client
    answers: queue.Queue[ReasonCode] = field(default_factory=queue.Queue)
    puback: queue.Queue[int] = field(default_factory=queue.Queue)
    heard: queue.Queue[MQTTMessage] = field(default_factory=queue.Queue)
    gone: queue.Queue[ReasonCode] = field(default_factory=queue.Queue)
    subscribed: queue.Queue[int] = field(default_factory=queue.Queue)
    session_present: bool = False

    def connect(self, port: int, *, session_s: int = 0) -> int:
        """Connect and return the broker's reason code, 0 for welcome."""

        def on_connect(
            _client: Client, _data: object, flags: ConnectFlags, reason: ReasonCode, _: object
        ) -> None:
            self.session_present = flags.session_present
            self.answers.put(reason)

        self.client.on_connect = on_connect
        self.client.on_disconnect = lambda _c, _d, _f, reason, _p: self.gone.put(reason)
        self.client.on_publish = lambda _c, _d, _m, reason, _p: self.puback.put(reason.value)
        self.client.on_subscribe = lambda _c, _d, _m, reasons, _p: self.subscribed.put(
            reasons[0].value
        )
        self.client.on_message = lambda _c, _d, message: self.heard.put(message)
        keep = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        keep.SessionExpiryInterval = session_s
        self.client.connect("127.0.0.1", port, clean_start=session_s == 0, properties=keep)
        self.client.loop_start()
        return int(self.answers.get(timeout=PATIENCE_S).value)

    def publish(self, topic: str, payload: bytes = b"{}") -> int:
        """Publish at QoS 1 and return the reason code of the PUBACK."""
        self.client.publish(topic, payload, qos=1)
        return self.puback.get(timeout=PATIENCE_S)

    def subscribe(self, topic: str) -> int:
        self.client.subscribe(topic, qos=1)
        return self.subscribed.get(timeout=PATIENCE_S)

    def hear(self) -> tuple[str, bytes]:
        message = self.heard.get(timeout=PATIENCE_S)
        return message.topic, bytes(message.payload)

    def leave(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def install_broker(
    tmp_path: Path,
    repository: Path,
    free_port: Callable[[], int],
    program: Callable[[str], Path],
) -> Iterator[Callable[..., Broker]]:
    """Install the shipped files with one listener, and stop what was started."""
    brokers: list[Broker] = []

    def install(listener: str, **users: str) -> Broker:
        etc, data, port = tmp_path / "etc", tmp_path / "data", free_port()
        (etc / "listeners").mkdir(parents=True)
        data.mkdir()
        shipped = repository / "deploy" / "mosquitto"
        shutil.copy(shipped / "acl", etc / "acl")
        for name in ("mosquitto.conf", f"listeners/{listener}.conf"):
            text = (shipped / name).read_text()
            text = text.replace(INSTALLED, str(etc)).replace(DATA, f"{data}/")
            text = text.replace("listener 1883 ", f"listener {port} ")
            text = text.replace("listener 8883", f"listener {port} 127.0.0.1")
            (etc / name).write_text(text)
        # Started by root the broker becomes the user `mosquitto`, who may not see this folder.
        with (etc / "mosquitto.conf").open("a") as conf:
            conf.write(f"\nuser {tmp_path.owner()}\n")
        if users:
            passwords = etc / "passwords"
            passwords.write_text("".join(f"{user}:{word}\n" for user, word in users.items()))
            passwords.chmod(0o600)
            subprocess.run([program("mosquitto_passwd"), "-U", passwords], check=True)
        broker = Broker(program=program("mosquitto"), home=tmp_path, port=port)
        brokers.append(broker)
        return broker

    yield install
    for broker in brokers:
        broker.stop(signal.SIGKILL)


@pytest.fixture
def talker() -> Iterator[Callable[..., Talker]]:
    """Make users of the broker, and take them all off the line in the end."""
    talkers: list[Talker] = []

    def make(name: str, password: str | None = None) -> Talker:
        client = Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5
        )
        if password is not None:
            client.username_pw_set(name, password)
        talkers.append(Talker(client=client))
        return talkers[-1]

    yield make
    for one in talkers:
        one.leave()
