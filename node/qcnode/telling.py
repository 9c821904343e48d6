"""Builds what tells others of the line, and takes their commands: MQTT, Sparkplug, Modbus.

All of it reads the journal, the ledger and the health board at its own pace, so nothing
here can make the line wait. `main` builds one of these beside everything else.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import zlib
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from qcnode.books.command_log import CommandLog
from qcnode.domain import Finding
from qcnode.errors import KillSwitchError, RulingError, SettingsError
from qcnode.lines import tags
from qcnode.lines.announcer import About, Announcer
from qcnode.lines.commands import CommandPath
from qcnode.lines.edge import EdgeNode, Write
from qcnode.lines.handshake import NodeStatus
from qcnode.lines.messages import Command, KillCommand, RuleCommand, Totals, stamp
from qcnode.lines.mqtt import Broker, MqttChannel
from qcnode.lines.sparkplug_node import BdSeqFile, SparkplugNode
from qcnode.lines.topics import NodeTopics

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from datetime import datetime
    from typing import Any

    from qcnode.books.journal import Journal
    from qcnode.books.ledger import SqliteLedger
    from qcnode.desk import Desk
    from qcnode.health import HealthBoard
    from qcnode.kill import KillSwitch
    from qcnode.lines.sparkplug import Value
    from qcnode.money import Receipt
    from qcnode.settings import Settings
    from qcnode.station import Station

MS_PER_S = 1_000
LOST_S = 1.0
"""So long without a picture, and hosts are told that the camera is gone."""
STUCK_S = 1.0
"""So long in hand, and the PLC is told by the heartbeat that the line loop stands."""


class Telling:
    """What tells others; `attach` gives it the parts that are built after it."""

    def __init__(
        self,
        settings: Settings,
        *,
        journal: Journal,
        ledger: SqliteLedger,
        health: HealthBoard,
        sw_version: str,
        model: str,
        read_receipt: Callable[[bytes], Receipt],
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        jitter: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._ledger = ledger
        self._health = health
        self._now = now
        self._started_s = time.monotonic()
        self._about = About(
            node=settings.node.name,
            boot_id=secrets.token_hex(8),
            sw_version=sw_version,
            model=model,
        )
        self._station: Station | None = None
        self._desk: Desk | None = None
        self._switch: KillSwitch | None = None
        self._log: CommandLog | None = None
        self._announcer: Announcer | None = None
        self._sparkplug: SparkplugNode | None = None
        self.connection: MqttChannel | None = None
        mqtt = settings.mqtt
        if mqtt.commands and not mqtt.events:
            raise SettingsError("mqtt.commands = true needs mqtt.events = true: answers are said")
        if mqtt.events:
            self._announcer = self._build_announcer(new_id=new_id, jitter=jitter)
        if mqtt.events or settings.metering.channel == "mqtt":
            self.connection = over_mqtt(
                settings, read_receipt=read_receipt, new_id=new_id, passenger=self._announcer
            )
        if settings.sparkplug.enabled:
            self._sparkplug = self._build_sparkplug(jitter)
        # Where the PLC has the gate, the line itself serves the registers.
        results = settings.modbus.enabled and settings.line.kind != "modbus"
        self._modbus = self._build_modbus(model) if results else None

    def attach(self, *, station: Station, desk: Desk, switch: KillSwitch | None = None) -> None:
        """Take in what is told of, and what commands change."""
        self._station, self._desk, self._switch = station, desk, switch

    def status(self) -> NodeStatus:
        """Return how the node is, as a PLC is shown it."""
        busy_s = self._busy_s()
        return NodeStatus(
            ready=self._health.ready(),
            running=self._is_running() and busy_s < STUCK_S,
            inspecting=busy_s > 0,
        )

    def runs(self) -> list[Coroutine[Any, Any, None]]:
        """Return what is to run as tasks, until cancelled."""
        found: list[Coroutine[Any, Any, None]] = []
        if self._announcer is not None and self.connection is not None:
            found.append(self._announcer.run(self.connection))
        if self._sparkplug is not None:
            found.append(self._sparkplug.run())
        if self._modbus is not None:
            found.append(self._modbus.run())
        return found

    async def close(self) -> None:
        """Leave. Closing twice is harmless."""
        if self.connection is not None:
            await self.connection.close()
        if self._log is not None:
            self._log.close()

    # -- MQTT -----------------------------------------------------------------------------

    def _build_announcer(
        self, *, new_id: Callable[[], str], jitter: Callable[[], float]
    ) -> Announcer:
        commands = None
        if self._settings.mqtt.commands:
            self._log = CommandLog(self._settings.node.home / "commands.db")
            commands = CommandPath(
                book=self._log,
                handlers={
                    "ping": self._ping,
                    "refresh": self._refresh,
                    "rule": self._rule,
                    "kill": self._kill,
                },
                actors=self._settings.mqtt.actors,
                now=self._now,
            )
        return Announcer(
            _topics(self._settings),
            about=self._about,
            journal=self._journal,
            health=self._health,
            ready=self._health.ready,
            running=self._is_running,
            pending_ms=lambda: int(self._busy_s() * MS_PER_S),
            totals=self._totals,
            commands=commands,
            now=self._now,
            new_id=new_id,
            monotonic_s=time.monotonic,
            jitter=jitter,
        )

    def _is_running(self) -> bool:
        return self._station is not None and not self._station.join(0.0)

    def _sees(self) -> bool:
        """Say whether the camera gives pictures; one that missed a part or two still does."""
        before = self._now() - timedelta(seconds=LOST_S)
        return not any(
            one.component == "camera" and not one.ok and one.since < before
            for one in self._health.all()
        )

    def _busy_s(self) -> float:
        return 0.0 if self._station is None else self._station.busy_s()

    def _totals(self) -> Totals:
        totals = self._ledger.totals()
        return Totals(
            epoch=self._ledger.epoch,
            last_seq=self._ledger.last_seq(),
            acked_seq=self._ledger.receipt_seq(),
            input_tokens=totals.input_tokens,
            output_tokens=totals.output_tokens,
            cost_pico=totals.cost_pico,
            held_pico=totals.held_pico,
            ts=stamp(self._now()),
        )

    # -- commands -------------------------------------------------------------------------

    async def _ping(self, _command: Command) -> str:
        return f"{self._about.node} hears you"

    async def _refresh(self, _command: Command) -> str:
        return "what is retained is said anew"

    async def _rule(self, command: Command) -> str:
        assert isinstance(command, RuleCommand)  # noqa: S101  # by its name
        if self._desk is None:
            raise RulingError(f"{command.escalation_id}: the desk is not open yet")
        ruling = await self._desk.settle(
            command.escalation_id,
            Finding(command.finding),
            who=f"{command.actor}@mqtt",
            defect_class=command.defect_class,
            reason=command.reason,
        )
        return "left open" if ruling.disposition is None else f"the part is {ruling.disposition}"

    async def _kill(self, command: Command) -> str:
        assert isinstance(command, KillCommand)  # noqa: S101  # by its name
        switch = self._switch
        if switch is None:
            raise KillSwitchError("the node is not up yet: use the file")
        who = f"{command.actor}@mqtt"
        await asyncio.to_thread(switch.stop, command.scope, who=who, reason=command.reason)
        return f"{command.scope} is stopped"

    # -- Sparkplug --------------------------------------------------------------------------

    def _build_sparkplug(self, jitter: Callable[[], float]) -> SparkplugNode:
        ours, node = self._settings.sparkplug, self._settings.node
        # One client id a user: the edge node is a client of its own, for it has its own will.
        name = ours.username or f"{node.name}-spb"
        try:
            edge = EdgeNode(
                group=ours.group or f"{node.site}:{node.area}",
                node=ours.edge_node or ours.username or node.name,
                tags=tags.NODE_TAGS,
                devices={tags.CAMERA: tags.CAMERA_TAGS},
                host=ours.primary_host,
            )
        except ValueError as error:
            raise SettingsError(f"sparkplug: {error}") from error
        return SparkplugNode(
            _broker(self._settings, sparkplug_as=name),
            edge,
            bd_seq=BdSeqFile(node.home / "bdseq"),
            journal=self._journal,
            values=self._values,
            wrote=_nothing_is_written,
            health=self._health,
            now_ms=lambda: int(self._now().timestamp() * MS_PER_S),
            jitter=jitter,
            here=lambda: {tags.CAMERA: self._sees()},
        )

    # -- Modbus -------------------------------------------------------------------------------

    def _build_modbus(self, model: str) -> _Modbus:
        try:
            # pymodbus and PyYAML are an extra.
            from qcnode.lines.modbus import ModbusResults  # noqa: PLC0415
            from qcnode.lines.registers import shipped  # noqa: PLC0415
        except ImportError as error:
            raise SettingsError(
                f"modbus.enabled = true needs {error.name}: pip install 'qcnode[modbus]'"
            ) from error

        return ModbusResults(
            self._settings.modbus.host,
            self._settings.modbus.port,
            registers=shipped(),
            journal=self._journal,
            status=self.status,
            config_checksum=zlib.crc32(model.encode()),
            health=self._health,
            now=self._now,
            monotonic_s=time.monotonic,
        )

    def _values(self) -> Mapping[str | None, Mapping[str, Value]]:
        ready, running = self._health.ready(), self._is_running()
        node: dict[str, Value] = {
            "Node Info/Software Version": self._about.sw_version,
            "Node Info/Boot Id": self._about.boot_id,
            "Status/PackML State": ("Execute" if ready else "Held") if running else "Stopped",
            "Status/Ready": ready,
            "Status/Degraded": any(not health.ok for health in self._health.all()),
            # Each minute: a value that always changes would be most of what is sent.
            "Status/Uptime s": int((time.monotonic() - self._started_s) // 60) * 60,
            **tags.books(
                self._ledger.totals(),
                last_seq=self._ledger.last_seq(),
                acked_seq=self._ledger.receipt_seq(),
            ),
        }
        return {None: node, tags.CAMERA: tags.counters(self._journal.counts())}


class _Modbus(Protocol):
    """The Modbus server, whose library is an extra."""

    async def run(self) -> None:
        """Serve until cancelled."""


def over_mqtt(
    settings: Settings,
    *,
    read_receipt: Callable[[bytes], Receipt],
    new_id: Callable[[], str],
    passenger: Announcer | None = None,
) -> MqttChannel:
    """Return the node's one connection as its own user, for batches and what rides along."""
    return MqttChannel(
        _broker(settings),
        _topics(settings),
        read_receipt=read_receipt,
        new_id=new_id,
        timeout_s=settings.metering.receipt_timeout_s,
        passenger=passenger,
    )


def _topics(settings: Settings) -> NodeTopics:
    node = settings.node
    return NodeTopics(
        prefix=settings.mqtt.prefix,
        site=node.site,
        area=node.area,
        line=node.line,
        node=node.name,
    )


async def _nothing_is_written(_write: Write) -> None:
    """No tag here is writable yet but the rebirth, which the session does itself."""


def _broker(settings: Settings, *, sparkplug_as: str | None = None) -> Broker:
    mqtt, sparkplug, known = settings.mqtt, settings.sparkplug, settings.secrets
    if sparkplug_as is None:
        password, client_id = known.mqtt_password, None
        username, cert_file, key_file = mqtt.username, mqtt.cert_file, mqtt.key_file
    else:
        password, client_id = known.sparkplug_password, sparkplug_as
        username = sparkplug.username
        cert_file, key_file = sparkplug.cert_file, sparkplug.key_file
    return Broker(
        host=mqtt.host,
        port=mqtt.port,
        username=username,
        password=None if password is None else password.get_secret_value(),
        ca_file=mqtt.ca_file,
        cert_file=cert_file,
        key_file=key_file,
        client_id=client_id,
    )
