"""Builds everything of a node once and runs it. The only place that knows all parts.

The order of building is the order of trust: eyes and books first, the line after them, so
that a node which cannot judge or record never takes a trigger. The order of stopping
is the reverse: the line lets go first, and the books are closed last.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog
import uvicorn

from qcnode.ahead import Ahead
from qcnode.books import batch
from qcnode.books.ballast import BALLAST_BYTES
from qcnode.books.journal import Journal
from qcnode.books.ledger import SqliteLedger
from qcnode.books.mark import FileId
from qcnode.books.pictures import PictureStore
from qcnode.books.purse import Purse
from qcnode.desk import Desk, DeskRules
from qcnode.errors import (
    LedgerCorruptError,
    LedgerUnavailableError,
    QcError,
    SettingsError,
)
from qcnode.health import HealthBoard
from qcnode.ids import IdMaker
from qcnode.kill import LINE, KillSwitch
from qcnode.listen import listen
from qcnode.logs import configure_logs
from qcnode.panel.accounts import Accounts
from qcnode.panel.app import create_panel, serve_config
from qcnode.panel.file import PanelFile
from qcnode.panel.guard import TOKEN_LENGTH_MIN
from qcnode.panel.sources import About
from qcnode.runtime.changes import ModelChanges
from qcnode.runtime.slot import Slot, Step
from qcnode.sdnotify import Supervisor, feed_watchdog
from qcnode.station import Station
from qcnode.telling import Telling
from qcnode.wiring.agents import (
    SCRIPTED,
    build_agent,
    build_rechecks,
    price_age,
    warn_of_budgets,
)
from qcnode.wiring.authority import build_kill_switch, build_warrant
from qcnode.wiring.billing import (
    Archive,
    build_channel,
    build_senders,
    node_key,
)
from qcnode.wiring.evidence import means_of, settled_first
from qcnode.wiring.eyes import (
    CAMERAS,
    MODELS,
    Judging,
    PartMarks,
    certificate_of,
    open_releases,
    reference_of,
)
from qcnode.wiring.line import build_line
from qcnode.wiring.machine import LOOPBACK, jitter, new_epoch, now, now_us, reveal

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from qcbridge.rechecks import Rechecks
    from qcbridge.router import Router
    from qcnode.books.outbox import Outbox
    from qcnode.lines.plc import PlcLine
    from qcnode.lines.virtual import VirtualLine
    from qcnode.manifest import ModelManifest
    from qcnode.ports import Camera, Channel
    from qcnode.runtime.onnx import OnnxModel
    from qcnode.settings import Settings
    from qcnode.warrant import Warrant

log = structlog.get_logger()

MICRO = 1_000_000
PICTURES_MAX = 5_000
NOTICE_S = 0.2
PROOF_REST_S = 0.01
"""Between pages of 100 entries, which keep the line's thread waiting for some 3 ms."""
STUCK_S = 5.0
STEPS_MAX = 1_000
MODEL_PATIENCE_S = 2.0
"""Longer than any gate waits, and less than STUCK_S: the part is given up, not the node."""
STATION_STOP_S = 1.5
AGENT_STOP_S = 2.0
OUTBOX_STOP_S = 0.5
JOURNAL_STOP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Everything of one node, built and not yet running."""

    settings: Settings
    manifest: ModelManifest
    health: HealthBoard
    journal: Journal
    ledger: SqliteLedger
    line: VirtualLine | PlcLine
    camera: Camera
    station: Station
    changes: ModelChanges
    desk: Desk
    agent: Router | None
    rechecks: Rechecks | None
    channel: Channel | None
    outbox: Outbox | None
    archives: tuple[Archive, ...]
    telling: Telling
    kill: KillSwitch
    warrant: Warrant
    panel: uvicorn.Config
    panel_file: PanelFile
    accounts: Accounts
    socket: socket.socket
    started: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        """Where the panel is."""
        host, port = self.socket.getsockname()[:2]
        return f"http://{host}:{port}/"

    async def run(self, stop: asyncio.Event) -> None:
        """Judge parts until `stop` is set, then finish what is in flight.

        Raises what stopped the station or a service, after the line has let go.
        """
        supervisor = Supervisor(os.environ)
        server = QuietServer(self.panel)
        try:
            async with asyncio.TaskGroup() as tasks:
                # What was built lives as long as the process. Frozen, it is not searched by
                # the collector, which would hold the line up for most of a gate's time.
                gc.collect()
                gc.freeze()
                self.kill.start()
                self.station.start()
                self.changes.start()
                services = [
                    tasks.create_task(self.desk.run()),
                    tasks.create_task(feed_watchdog(supervisor, alive=self._alive)),
                    tasks.create_task(self._notice_failure()),
                    tasks.create_task(self._prove_ledger()),
                ]
                if self.rechecks is not None:
                    services.append(tasks.create_task(self.rechecks.run()))
                if self.outbox is not None:
                    services.append(tasks.create_task(self.outbox.run()))
                services += [tasks.create_task(archive.outbox.run()) for archive in self.archives]
                services += [tasks.create_task(tells) for tells in self.telling.runs()]
                tasks.create_task(server.serve(sockets=[self.socket]))
                log.info("node running", panel=self.url, model=self.manifest.version)
                self._tell_first_token()
                supervisor.ready(f"judging parts, panel at {self.url}")
                self.started.set()
                await stop.wait()
                log.info("node stopping")
                supervisor.stopping("finishing what is in flight")
                server.should_exit = True
                await self._drain()
                for service in services:
                    service.cancel()
        finally:
            self.changes.stop()
            self.line.stop()
            await asyncio.to_thread(self.station.join, STATION_STOP_S)

    async def close(self) -> None:
        """Close the books last. Closing twice is harmless."""
        self.line.stop()
        self.camera.close()
        if self.agent is not None:
            await self.agent.close()
        if self.channel is not None:
            await self.channel.close()
        await self.telling.close()
        await asyncio.to_thread(self.kill.close)
        await asyncio.to_thread(self.journal.close, JOURNAL_STOP_S)
        await asyncio.to_thread(self.ledger.close)
        for archive in self.archives:
            await asyncio.to_thread(archive.ledger.close)
        await asyncio.to_thread(self.panel_file.close)
        self.socket.close()

    def _tell_first_token(self) -> None:
        """Say how the first administrator is made; a token that was given is no news."""
        token = self.accounts.first_token
        if token is not None and self.accounts.metrics_open:
            log.warning(
                "the panel has no administrator: make one", page=f"{self.url}login", token=token
            )

    def _alive(self) -> bool:
        # A camera or model that never returns cannot be stopped from within.
        return self.station.failure is None and self.station.busy_s() < STUCK_S

    async def _notice_failure(self) -> None:
        while True:
            if self.station.failure is not None:
                raise self.station.failure
            await asyncio.sleep(NOTICE_S)

    async def _prove_ledger(self) -> None:
        """Count the ledger from its first entry, when opening did not; the board is told."""
        if self.ledger.taken_on_trust:
            with contextlib.suppress(LedgerCorruptError, LedgerUnavailableError):
                await asyncio.to_thread(self.ledger.prove, rest_s=PROOF_REST_S)

    async def _drain(self) -> None:
        self.station.stop()
        await asyncio.to_thread(self.station.join, STATION_STOP_S)
        self.desk.stop_asking()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGENT_STOP_S):
                await self.desk.settled()
        if self.outbox is not None:
            await self.outbox.flush(OUTBOX_STOP_S)


class QuietServer(uvicorn.Server):
    """A server that leaves signals to the process it is part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def run_node(settings: Settings) -> None:
    """Run a node until SIGTERM or SIGINT. The top of the process."""
    configure_logs()
    try:
        asyncio.run(_run_until_signal(settings))
    except* QcError as group:
        # One line each, and the exit code of wrong input: a restart alone mends nothing.
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):  # A service has tasks of its own.
            error = error.exceptions[0]
        raise error from None


async def _run_until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    node = build_node(settings)
    try:
        await node.run(stop)
    finally:
        await node.close()


def build_node(settings: Settings, *, channel: Channel | None = None) -> Node:
    """Build a node from its settings; `channel` stands in for the one in the settings.

    Raises a `QcError` naming what cannot be used.
    """
    new_id = IdMaker(lambda: time.time_ns() // 1_000_000)
    health = HealthBoard(now)
    home = _open_home(settings.node.home)
    with contextlib.ExitStack() as undo:
        panel_socket = listen(
            settings.panel.host, settings.panel.port, fix="set another panel.port"
        )
        undo.callback(panel_socket.close)
        releases = open_releases(settings)
        kept, model = releases.first(settings.model.dir)
        steps: deque[Step] = deque(maxlen=STEPS_MAX)
        slot = Slot(
            model,
            rule=settings.change.rule(),
            coin=jitter,
            clock_ns=time.monotonic_ns,
            cpu_ns=time.thread_time_ns,
            tell=steps.append,
        )
        journal = Journal(
            home / "journal.db",
            pictures=PictureStore(
                home / "pictures",
                pictures_max=PICTURES_MAX,
                heat_full=model.limits.reject_from,
            ),
            health=health,
        )
        undo.callback(journal.close)
        key = node_key(settings)
        ledger = SqliteLedger(
            home / "ledger.db",
            now_us=now_us,
            new_epoch=new_epoch,
            budgets=settings.budgets(),
            key=key,
            identify=FileId.of,
            ballast_bytes=BALLAST_BYTES,
            health=health,
        )
        undo.callback(ledger.close)
        known = "chain verified" if not ledger.taken_on_trust else "proof under way"
        health.report("ledger", ok=True, words=f"{ledger.totals().entries} entries, {known}")
        kill = build_kill_switch(home, health=health)
        agent = build_agent(
            settings,
            ledger=ledger,
            health=health,
            new_id=new_id,
            means=means_of(
                settings, journal=journal, golden=lambda: reference_of(settings, model.manifest)
            ),
            stops=kill,
            record=journal.submit,
            records=lambda: warrant.records(),  # noqa: PLW0108  # it is built further down
        )
        warn_of_budgets(settings, agent)
        purse = Purse(
            ledger=ledger,
            centre=settings.centre(),
            health=health,
            now=now,
            price_age=price_age(settings),
        )
        telling = Telling(
            settings,
            journal=journal,
            ledger=ledger,
            health=health,
            sw_version=version("qcnode"),
            model=model.version,
            read_receipt=batch.decode_receipt,
            now=now,
            new_id=new_id,
            jitter=jitter,
        )
        channel = channel or build_channel(settings, telling.connection, health=health)
        camera, parts = CAMERAS[settings.camera.kind](settings, new_id, lambda: slot.side)
        undo.callback(camera.close)
        line = build_line(
            settings,
            parts=parts,
            journal=journal,
            health=health,
            telling=telling,
            model=model.version,
            new_id=new_id,
        )
        undo.callback(line.stop)
        ahead = Ahead(line, camera)
        certificate = certificate_of(settings, model, journal, health=health, new_id=new_id)
        station = Station(
            camera=ahead,
            model=slot,
            line=ahead,
            journal=journal,
            limits=model.limits,
            failsafe=settings.line.failsafe,
            health=health,
            now=now,
            new_id=new_id,
            clock_ns=time.monotonic_ns,
            certificate=certificate,
            stopped=lambda: kill.stopped(LINE),
        )

        marks, judging = PartMarks(model.manifest), Judging(model.manifest)

        def took_over(model: OnnxModel) -> None:
            marks.follow(model.manifest)
            judging.follow(model.manifest)
            station.certify(certificate_of(settings, model, journal, health=health, new_id=new_id))

        changes = ModelChanges(
            home / MODELS,
            releases=releases,
            slot=slot,
            current=(kept, model),
            health=health,
            now=now,
            steps=steps,
            took_over=took_over,
            patience_s=MODEL_PATIENCE_S,
        )
        warrant = build_warrant(
            settings,
            home=home,
            journal=journal,
            limits=lambda: slot.limits,
            stops=kill,
            certified=station.certified,
            health=health,
        )
        desk = Desk(
            journal=journal,
            line=line,
            reviewer=agent and settled_first(settings, agent, journal=journal),
            ledger=ledger,
            purse=purse,
            rules=DeskRules(
                limits=lambda: slot.limits,
                centre=settings.centre(),
                workers=settings.agent.workers,
                waiting_max=settings.agent.waiting_max,
                ruling_timeout=timedelta(seconds=settings.agent.ruling_timeout_s),
                on_timeout=settings.agent.on_timeout,
                per_minute_max=settings.agent.per_minute_max,
            ),
            warrant=warrant,
            now=now,
            new_id=new_id,
            audited=station.recount_audit,
            suspect=marks.suspect,
        )
        telling.attach(station=station, desk=desk, switch=kill)
        outbox, archives = build_senders(
            settings, ledger=ledger, channel=channel, key=key, home=home, health=health
        )
        for archive in archives:
            undo.callback(archive.ledger.close)
        panel_file = PanelFile(home / "panel.db")
        undo.callback(panel_file.close)
        accounts = Accounts(
            panel_file,
            now=now,
            new_secret=lambda: secrets.token_urlsafe(24),
            given=panel_token(settings),
        )
        panel = create_panel(
            station_live=station.live,
            journal=journal,
            journal_file=home / "journal.db",
            desk=desk,
            ledger=ledger,
            outlooks=purse.outlooks,
            health=health,
            about=_about(settings, judging),
            file=panel_file,
            accounts=accounts,
            hosts=settings.panel.public_hosts,
            now=now,
            new_id=new_id,
            reference=reference_of(settings, model.manifest),
            recertify=station.recertify,
            switch=kill,
            changes=changes,
        )
        node = Node(
            settings=settings,
            manifest=model.manifest,
            health=health,
            journal=journal,
            ledger=ledger,
            line=line,
            camera=camera,
            station=station,
            changes=changes,
            desk=desk,
            agent=agent,
            rechecks=build_rechecks(settings, agent, journal=journal),
            channel=channel,
            outbox=outbox,
            archives=archives,
            telling=telling,
            kill=kill,
            warrant=warrant,
            panel=serve_config(panel, settings.panel.host, settings.panel.port),
            panel_file=panel_file,
            accounts=accounts,
            socket=panel_socket,
        )
        undo.pop_all()
        return node


def _about(settings: Settings, judging: Judging) -> About:
    provider = settings.provider[0]
    asking = settings.agent.enabled
    return About(
        site=settings.node.site,
        line=settings.node.line,
        node=settings.node.name,
        version=version("qcnode"),
        in_service=judging.in_service,
        provider=provider.name if asking else None,
        provider_model=provider.model if asking else None,
        scripted=asking and provider.name == SCRIPTED,
        started_at=now(),
        on_timeout=settings.agent.on_timeout.value,
        defect_classes=settings.agent.defect_classes,
    )


def panel_token(settings: Settings) -> str | None:
    """Return the panel's token, if it has one; raises `SettingsError` where it needs a better."""
    token = reveal(settings.secrets.panel_token)
    if token is None and settings.panel.host not in LOOPBACK:
        raise SettingsError(
            f"panel.host = {settings.panel.host!r}: beyond this machine the panel needs"
            " QCNODE_PANEL_TOKEN (or QCNODE_PANEL_TOKEN_FILE)"
        )
    if token is not None and len(token) < TOKEN_LENGTH_MIN:
        raise SettingsError(
            f"QCNODE_PANEL_TOKEN: a token of {len(token)} characters can be guessed; use at least"
            f" {TOKEN_LENGTH_MIN}"
        )
    return token


def _open_home(home: Path) -> Path:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{home}: cannot keep the books there ({error.strerror})") from error
    return home
