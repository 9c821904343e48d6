"""`qcnode demo --line full`: the whole line side around the demo's node, each part a real one.

A broker (Mosquitto, with the shipped configuration and access rules), a PLC in software that
has belt, eyes and gate and polls the node by Modbus TCP, a GigE Vision camera in software whose
pictures come over the camera protocol, and a Sparkplug host that watches. PLC and camera are
processes of their own and know the world; the node knows only what they tell it. What each of
them saw is counted where it stands and set side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import pwd
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions
from pydantic import SecretStr

from qcnode.cameras.aravis import check_library
from qcnode.cameras.fake_gige import FakeGigeCamera
from qcnode.cameras.virtual import RenderedParts
from qcnode.domain import Passage
from qcnode.errors import CameraError, LineUnavailableError, SettingsError
from qcnode.lines.sparkplug import BadMetric, decode
from qcnode.lines.virtual import Belt
from qcnode.lines.world import World
from qcnode.listen import listen
from qcnode.wiring.eyes import WORLD
from qcnode.wiring.line import belt_of

if TYPE_CHECKING:
    from paho.mqtt.client import MQTTMessage

    from qcnode.main import Node
    from qcnode.settings import Settings

ADDRESS: Final = "127.0.0.1"
SPARKPLUG_USER: Final = "demo-node-spb"
WATCHER: Final = "monitor"
START_S: Final = 20.0
END_S: Final = 5.0
LOOK_S: Final = 0.05
LAST_WORDS_S: Final = 5.0
SLIP_PULSES: Final = 60
LINE_START: Final = 1
FEATURES: Final = """version: 1
features:
  - {set: Width, to: 320}
  - {set: Height, to: 240}
  - {set: PixelFormat, to: RGB8}
  - {set: AcquisitionFrameRate, to: 200}
"""


class FullLine:
    """Everything around the node; `start` before it is built, `attach` when it is.

    What is missing on this machine is one line that names the package.
    """

    def __init__(self, home: Path) -> None:
        self._home = home / "line"
        self._world = home / WORLD
        self._first = 0
        self._broker: subprocess.Popen[bytes] | None = None
        self._plc: subprocess.Popen[bytes] | None = None
        self._host: SparkplugHost | None = None
        self._said: dict[str, Any] = {}

    def start(self, settings: Settings, undo: contextlib.ExitStack) -> Settings:
        """Start all of it, and return the settings of the node that works with it."""
        _check_programs()
        self._first, _left = World(self._world).history()
        self._home.mkdir(parents=True, exist_ok=True)
        passwords = {
            user: secrets.token_urlsafe(18)
            for user in (settings.node.name, SPARKPLUG_USER, WATCHER)
        }
        port = self._start_broker(passwords, undo)
        self._host = SparkplugHost(port, password=passwords[WATCHER])
        undo.callback(self._host.close)
        features = self._home / "camera.yaml"
        features.write_text(FEATURES, "ascii")
        self._start_camera(settings, undo)
        plc_port = _free_port()
        line = settings.line.model_copy(update={"kind": "modbus"})
        full = settings.model_copy(
            update={
                "line": line,
                "camera": settings.camera.model_copy(
                    update={
                        "kind": "gige",
                        "source": ADDRESS,
                        "features": features,
                        "timeout_ms": 300.0,
                    }
                ),
                "mqtt": settings.mqtt.model_copy(
                    update={
                        "host": ADDRESS,
                        "port": port,
                        "username": settings.node.name,
                        "events": True,
                    }
                ),
                "sparkplug": settings.sparkplug.model_copy(
                    update={"enabled": True, "username": SPARKPLUG_USER}
                ),
                "modbus": settings.modbus.model_copy(
                    update={"enabled": True, "host": ADDRESS, "port": plc_port}
                ),
                "secrets": settings.secrets.model_copy(
                    update={
                        "mqtt_password": SecretStr(passwords[settings.node.name]),
                        "sparkplug_password": SecretStr(passwords[SPARKPLUG_USER]),
                    }
                ),
            }
        )
        self._plc = self._start_plc(full, undo)
        return full

    async def see_through(self, node: Node) -> None:
        """Wait until the PLC has seen its last part through, then expect no more."""
        assert self._plc is not None  # noqa: S101  # `start` came before
        assert self._plc.stdout is not None  # noqa: S101  # a pipe
        out = await asyncio.to_thread(self._plc.stdout.readline)
        with contextlib.suppress(ValueError):
            self._said = json.loads(out)
        node.line.finish()

    async def report(self, node: Node) -> dict[str, Any]:
        """Return what each of them saw; a Sparkplug host is given time for the last tags."""
        assert self._host is not None  # noqa: S101  # `start` came before
        last = node.line.last_trigger()
        judged = sum(node.station.outcomes().values())
        deadline, gate = time.monotonic() + LAST_WORDS_S, _gate(node, after=self._first)
        # The journal's writer and the host come a little after the last part.
        while time.monotonic() < deadline and not (
            self._host.inspected >= last and gate.total() >= judged
        ):
            await asyncio.sleep(LOOK_S)
            gate = await asyncio.to_thread(_gate, node, after=self._first)
        return {
            "triggers": last - self._first,
            "judged_or_faulted": judged,
            "plc": self._said,
            "gate": dict(gate),
            "sparkplug": self._host.report(),
            "camera": {"opened": getattr(node.camera, "opened", None)},
            "agrees": self._agrees(last - self._first, judged),
        }

    def _agrees(self, triggers: int, judged: int) -> bool:
        host = self._host
        return (
            self._said.get("parts") == triggers == judged
            and self._said.get("skipped") == self._said.get("repeated") == 0
            and host is not None
            and host.unreadable == 0
            and host.kinds["NBIRTH"] >= 1
        )

    # -- the parts -------------------------------------------------------------

    def _start_broker(self, passwords: dict[str, str], undo: contextlib.ExitStack) -> int:
        port = _free_port()
        config = _write_broker(self._home / "broker", port, passwords)
        mosquitto = _program("mosquitto")
        self._broker = subprocess.Popen(  # noqa: S603  # the system's broker, our file
            [mosquitto, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        undo.callback(_end, self._broker)
        return port

    def _start_camera(self, settings: Settings, undo: contextlib.ExitStack) -> None:
        camera = self._child(
            "camera",
            *("--world", str(self._world), "--seed", str(settings.line.seed)),
            *("--defect-rate", str(settings.camera.defect_rate)),
        )
        undo.callback(_end, camera)
        assert camera.stdout is not None  # noqa: S101  # a pipe
        said = camera.stdout.readline().decode().strip()
        if said != "ready":
            raise SettingsError(said or "the camera in software did not start; its words are above")

    def _start_plc(self, settings: Settings, undo: contextlib.ExitStack) -> subprocess.Popen[bytes]:
        line = settings.line
        plc = self._child(
            "plc",
            *("--port", str(settings.modbus.port), "--parts", str(line.parts or 1)),
            *("--world", str(self._world), "--seed", str(line.seed)),
            *("--defect-rate", str(settings.camera.defect_rate)),
            *("--belt", json.dumps(_belt_words(belt_of(settings)))),
        )
        undo.callback(_end, plc)
        return plc

    def _child(self, role: str, *options: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603  # our own module
            [sys.executable, "-m", "qcnode.line_demo", role, *options],
            # It closes when this process dies, however it dies.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )


class SparkplugHost:
    """Watches what the edge node says, and counts it; in a thread of its own."""

    def __init__(self, port: int, *, password: str) -> None:
        self.kinds: Counter[str] = Counter()
        self.unreadable = 0
        self.inspected = 0
        self._aliases: dict[int, str] = {}
        self._verdicts: set[str] = set()
        self._client = client = Client(
            CallbackAPIVersion.VERSION2, client_id=WATCHER, protocol=MQTTProtocolVersion.MQTTv5
        )
        client.username_pw_set(WATCHER, password)
        client.on_message = lambda _client, _data, message: self._take(message)
        client.on_connect = lambda *_: self._subscribe()
        _until_connected(client, port)
        client.loop_start()

    def report(self) -> dict[str, Any]:
        """Return how many messages of each kind came, and verdicts over plain MQTT."""
        return {
            **{kind: self.kinds[kind] for kind in ("NBIRTH", "DBIRTH", "NDATA", "DDATA", "NDEATH")},
            "inspected_tag": self.inspected,
            "unreadable": self.unreadable,
            "mqtt_verdicts": len(self._verdicts),
        }

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def _subscribe(self) -> None:
        topics = ("spBv1.0/#", "qc/v1/#")
        self._client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in topics])

    def _take(self, message: MQTTMessage) -> None:
        parts = message.topic.split("/")
        if parts[0] != "spBv1.0":
            if parts[-2:] == ["ev", "verdict"]:
                with contextlib.suppress(ValueError, KeyError):
                    self._verdicts.add(json.loads(message.payload)["id"])
            return
        self.kinds[parts[2]] += 1
        try:
            payload = decode(bytes(message.payload))
        except ValueError:
            self.unreadable += 1
            return
        for metric in payload.metrics:
            if isinstance(metric, BadMetric):
                self.unreadable += 1
                continue
            if metric.name is not None and metric.alias is not None:
                self._aliases[metric.alias] = metric.name
            name = metric.name or self._aliases.get(metric.alias or -1)
            if name == "Counters/Inspected" and isinstance(metric.value, int):
                self.inspected = metric.value


# -- before --------------------------------------------------------------------------------


def _check_programs() -> None:
    check_library()
    for name in ("mosquitto", "mosquitto_passwd"):
        _program(name)
    try:
        import pymodbus  # noqa: F401, PLC0415  # an extra
    except ImportError as error:
        raise SettingsError("--line full needs pymodbus: pip install 'qcnode[modbus]'") from error


def _program(name: str) -> str:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    found = shutil.which(name, path=path)
    if found is None:
        raise SettingsError(f"--line full needs {name}: apt-get install mosquitto")
    return found


def _write_broker(folder: Path, port: int, passwords: dict[str, str]) -> Path:
    """Write the shipped configuration with this demo's places, and return it."""
    shipped = Path(__file__).resolve().parents[2] / "deploy" / "mosquitto"
    if not shipped.is_dir():
        raise SettingsError("--line full needs deploy/mosquitto: run it in a checkout")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "listeners").mkdir(parents=True)
    owner = pwd.getpwuid(os.geteuid()).pw_name
    for name in ("mosquitto.conf", "listeners/loopback.conf"):
        text = (shipped / name).read_text("utf-8")
        text = text.replace("/etc/mosquitto/qcnode", str(folder))
        text = text.replace("/var/lib/mosquitto/", f"{folder}/")
        (folder / name).write_text(
            re.sub(r"^listener 1883 ", f"listener {port} ", text, flags=re.MULTILINE)
        )
    config = folder / "mosquitto.conf"
    # Started by root the broker becomes another user, who may not see this folder.
    config.write_text(f"{config.read_text()}\nuser {owner}\n")
    shutil.copyfile(shipped / "acl", folder / "acl")
    file = folder / "passwords"
    file.write_text("".join(f"{user}:{word}\n" for user, word in passwords.items()))
    for path in (file, folder / "acl"):
        path.chmod(0o600)
    subprocess.run([_program("mosquitto_passwd"), "-U", str(file)], check=True)  # noqa: S603
    return config


def _free_port() -> int:
    with listen(ADDRESS, 0) as probe:
        return int(probe.getsockname()[1])


def _until_connected(client: Client, port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            client.connect(ADDRESS, port)
        except OSError as error:
            if time.monotonic() > deadline:
                raise LineUnavailableError(
                    f"the demo's broker did not start on port {port} ({error})"
                ) from error
            time.sleep(LOOK_S)
        else:
            return


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _gate(node: Node, *, after: int) -> Counter[str]:
    """Count the passages on record beyond a trigger: as commanded, or by the gate's default."""
    found: Counter[str] = Counter()
    mark = 0
    while records := node.journal.read(mark):
        for seq, record in records:
            mark = seq
            if isinstance(record, Passage) and record.trigger_seq > after:
                found["commanded" if record.commanded else "default"] += 1
    return found


def _belt_words(belt: Belt) -> dict[str, float]:
    names = ("period_ms", "speed_mm_per_s", "gate_mm", "guard_ms", "pulses_per_mm")
    return {name: getattr(belt, name) for name in names}


# -- the processes around the node -----------------------------------------------------------


def main() -> None:
    """Be the PLC or the camera until standard input closes. The top of these processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["plc", "camera"])
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--defect-rate", type=float, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--belt", default="{}")
    options = parser.parse_args()
    _leave_with_parent()
    if options.role == "camera":
        _be_camera(options)
    else:
        _be_plc(options)


def _leave_with_parent() -> None:
    def watch() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _be_camera(options: argparse.Namespace) -> None:
    parts = RenderedParts(seed=options.seed, defect_share=options.defect_rate)
    world = World(options.world)

    def picture() -> bytes:
        """Show the part that lies in front of the camera: the last one the line counted."""
        return parts.render(world.history()[0]).pixels.tobytes()

    try:
        camera = FakeGigeCamera(ADDRESS, serial="QC-DEMO", picture=picture)
    except CameraError as error:
        print(error, flush=True)  # noqa: T201  # to the demo
        return
    print("ready", flush=True)  # noqa: T201  # to the demo
    try:
        threading.Event().wait()
    finally:
        camera.close()


def _be_plc(options: argparse.Namespace) -> None:
    from qcnode.lines.registers import shipped  # noqa: PLC0415  # an extra
    from qcnode.lines.soft_plc import Geometry, PlcProgram, SoftBelt, SoftPlc  # noqa: PLC0415

    # It tries again until the node listens, and the demo's screen is not the place to say so.
    logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)
    belt = Belt(**json.loads(options.belt))
    world = World(options.world)
    first, _left = world.history()
    soft = SoftBelt(
        belt,
        parts=RenderedParts(seed=options.seed, defect_share=options.defect_rate),
        count=options.parts,
        seed=options.seed,
        world=world,
        first=first,
        slip_pulses=SLIP_PULSES,
    )
    plc = SoftPlc(
        ADDRESS,
        options.port,
        registers=shipped(),
        program=PlcProgram(geometry=Geometry.of(belt), start=LINE_START, seq=first),
        belt=soft,
        clock_ns=time.monotonic_ns,
    )

    def tell() -> None:
        print(json.dumps(plc.report()), flush=True)  # noqa: T201  # to the demo

    asyncio.run(plc.run(after=tell))


if __name__ == "__main__":
    main()
