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
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2
import structlog
import uvicorn

from qcbridge.agent import Agent
from qcbridge.prices import PriceBook
from qcbridge.providers.openai_chat import OpenAIChatProvider
from qcbridge.transport import MeteringTransport
from qcnode.books import batch
from qcnode.books.budgets import Budget
from qcnode.books.journal import Journal
from qcnode.books.ledger import SqliteLedger
from qcnode.books.outbox import Outbox
from qcnode.books.pictures import PictureStore
from qcnode.cameras.folder import FolderCamera, FolderPictures
from qcnode.cameras.opencv import OpenCvCamera
from qcnode.cameras.virtual import RenderedCamera, RenderedParts
from qcnode.desk import Desk, DeskRules
from qcnode.errors import QcError, SettingsError
from qcnode.health import HealthBoard
from qcnode.ids import IdMaker
from qcnode.lines.http import HttpChannel
from qcnode.lines.mqtt import Broker, MqttChannel
from qcnode.lines.topics import NodeTopics
from qcnode.lines.virtual import Belt, UnknownParts, VirtualLine
from qcnode.lines.world import last_trigger_in
from qcnode.listen import listen
from qcnode.logs import configure_logs
from qcnode.panel.app import create_panel, serve_config
from qcnode.panel.guard import TOKEN_LENGTH_MIN
from qcnode.panel.sources import About
from qcnode.runtime.onnx import OnnxModel
from qcnode.sdnotify import Supervisor, feed_watchdog
from qcnode.station import Station

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from pydantic import SecretStr

    from qcnode.lines.virtual import PartSource
    from qcnode.manifest import ModelManifest
    from qcnode.ports import Camera, Channel
    from qcnode.settings import Settings

log = structlog.get_logger()

PICO_PER_MICRO = 1_000_000
MICRO = 1_000_000
PICTURES_MAX = 5_000
REVIEW_SPARE_S = 5.0
NOTICE_S = 0.2
STUCK_S = 5.0
STATION_STOP_S = 1.5
AGENT_STOP_S = 2.0
OUTBOX_STOP_S = 0.5
JOURNAL_STOP_S = 1.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
WORLD = "world.log"
"""The virtual line's own record, which the node never reads."""
SCRIPTED = "scripted"
"""What the scripted provider is called in settings and price book."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Everything of one node, built and not yet running."""

    settings: Settings
    manifest: ModelManifest
    health: HealthBoard
    journal: Journal
    ledger: SqliteLedger
    line: VirtualLine
    camera: Camera
    station: Station
    desk: Desk
    agent: Agent | None
    channel: Channel | None
    outbox: Outbox | None
    panel: uvicorn.Config
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
                self.station.start()
                services = [
                    tasks.create_task(self.desk.run()),
                    tasks.create_task(feed_watchdog(supervisor, alive=self._alive)),
                    tasks.create_task(self._notice_failure()),
                ]
                if self.outbox is not None:
                    services.append(tasks.create_task(self.outbox.run()))
                tasks.create_task(server.serve(sockets=[self.socket]))
                log.info("node running", panel=self.url, model=self.manifest.version)
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
        await asyncio.to_thread(self.journal.close, JOURNAL_STOP_S)
        await asyncio.to_thread(self.ledger.close)
        self.socket.close()

    def _alive(self) -> bool:
        # A camera or model that never returns cannot be stopped from within.
        return self.station.failure is None and self.station.busy_s() < STUCK_S

    async def _notice_failure(self) -> None:
        while True:
            if self.station.failure is not None:
                raise self.station.failure
            await asyncio.sleep(NOTICE_S)

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
    now = _now
    new_id = IdMaker(lambda: time.time_ns() // 1_000_000)
    health = HealthBoard(now)
    home = _open_home(settings.node.home)
    with contextlib.ExitStack() as undo:
        panel_socket = listen(
            settings.panel.host, settings.panel.port, fix="set another panel.port"
        )
        undo.callback(panel_socket.close)
        model = OnnxModel(settings.model.dir, threads=settings.model.threads)
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
        ledger = SqliteLedger(
            home / "ledger.db", now_us=_now_us, new_epoch=_new_epoch, budgets=_budgets(settings)
        )
        undo.callback(ledger.close)
        health.report("ledger", ok=True, words=f"{ledger.totals().entries} entries, chain verified")
        agent = _build_agent(settings, ledger=ledger, health=health, new_id=new_id)
        channel = channel or _build_channel(settings)
        camera, parts = CAMERAS[settings.camera.kind](settings, new_id)
        undo.callback(camera.close)
        line = VirtualLine(
            parts=parts,
            belt=Belt(
                period_ms=settings.line.period_ms,
                speed_mm_per_s=settings.line.speed_mm_per_s,
                gate_mm=settings.line.gate_mm,
                guard_ms=settings.line.guard_ms,
            ),
            world=home / WORLD,
            count=settings.line.parts,
            seed=settings.line.seed,
            now=now,
            new_id=new_id,
        )
        undo.callback(line.stop)
        station = Station(
            camera=camera,
            model=model,
            line=line,
            journal=journal,
            limits=model.limits,
            failsafe=settings.line.failsafe,
            health=health,
            now=now,
            new_id=new_id,
            clock_ns=time.monotonic_ns,
        )
        desk = Desk(
            journal=journal,
            line=line,
            reviewer=agent,
            ledger=ledger,
            rules=DeskRules(
                level=settings.agent.level,
                workers=settings.agent.workers,
                waiting_max=settings.agent.waiting_max,
                ruling_timeout=timedelta(seconds=settings.agent.ruling_timeout_s),
                on_timeout=settings.agent.on_timeout,
            ),
            health=health,
            now=now,
            new_id=new_id,
        )
        outbox = None
        if channel is not None:
            outbox = Outbox(
                ledger,
                channel,
                tenant=settings.node.tenant,
                node=settings.node.name,
                health=health,
                now=now,
                jitter=_jitter,
            )
        panel = create_panel(
            station_live=station.live,
            journal=journal,
            desk=desk,
            ledger=ledger,
            health=health,
            about=_about(settings, model),
            hosts=settings.panel.public_hosts,
            token=panel_token(settings),
            now=now,
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
            desk=desk,
            agent=agent,
            channel=channel,
            outbox=outbox,
            panel=serve_config(panel, settings.panel.host, settings.panel.port),
            socket=panel_socket,
        )
        undo.pop_all()
        return node


# -- what can be chosen in the settings ----------------------------------------------


def _rendered(settings: Settings, new_id: Callable[[], str]) -> tuple[Camera, PartSource]:
    parts = RenderedParts(seed=settings.line.seed, defect_share=settings.camera.defect_rate)
    return RenderedCamera(parts, name="rendered", now=_now, new_id=new_id), parts


def _folder(settings: Settings, new_id: Callable[[], str]) -> tuple[Camera, PartSource]:
    pictures = FolderPictures(
        Path(_source(settings, "a folder")),
        # A restart begins the folder anew; the line's numbers go on.
        first_seq=last_trigger_in(settings.node.home / WORLD) + 1,
        shuffle_seed=settings.line.seed if settings.camera.shuffle else None,
    )
    return FolderCamera(pictures, name="folder", now=_now, new_id=new_id), pictures


def _opencv(settings: Settings, new_id: Callable[[], str]) -> tuple[Camera, PartSource]:
    camera = OpenCvCamera(
        _source(settings, "a USB index, a video file or a URL"),
        name="opencv",
        timeout_s=settings.camera.timeout_ms / 1000,
        now=_now,
        new_id=new_id,
    )
    return camera, UnknownParts()


CAMERAS = {"rendered": _rendered, "folder": _folder, "opencv": _opencv}


def _source(settings: Settings, wanted: str) -> str:
    if settings.camera.source is None:
        raise SettingsError(f"camera.source is missing: kind {settings.camera.kind} needs {wanted}")
    return settings.camera.source


def _build_channel(settings: Settings) -> Channel | None:
    metering, known = settings.metering, settings.secrets
    if metering.channel == "none":
        return None
    if metering.channel == "http":
        return HttpChannel(
            httpx2.AsyncClient(trust_env=False),
            metering.url,
            token=_reveal(known.billing_token),
            read_receipt=batch.decode_receipt,
            timeout_s=metering.receipt_timeout_s,
        )
    node, mqtt = settings.node, settings.mqtt
    return MqttChannel(
        Broker(
            host=mqtt.host,
            port=mqtt.port,
            username=mqtt.username,
            password=_reveal(known.mqtt_password),
            ca_file=mqtt.ca_file,
            cert_file=mqtt.cert_file,
            key_file=mqtt.key_file,
        ),
        NodeTopics(
            prefix=mqtt.prefix, site=node.site, area=node.area, line=node.line, node=node.name
        ),
        read_receipt=batch.decode_receipt,
        timeout_s=metering.receipt_timeout_s,
    )


def _build_agent(
    settings: Settings, *, ledger: SqliteLedger, health: HealthBoard, new_id: Callable[[], str]
) -> Agent | None:
    if not settings.agent.enabled:
        return None
    provider = settings.provider
    check_provider(settings)
    prices = PriceBook.load(*([] if provider.prices is None else [provider.prices]))
    transport = MeteringTransport(
        httpx2.AsyncHTTPTransport(retries=0),
        ledger=ledger,
        prices=prices,
        health=health,
        now=_now,
        monotonic_s=time.monotonic,
        answer_timeout_s=provider.timeout_s,
    )
    return Agent(
        provider=OpenAIChatProvider(
            name=provider.name,
            model=provider.model,
            base_url=provider.base_url,
            api_key=settings.secrets.provider_api_key,
            transport=transport,
            timeout_s=provider.timeout_s,
            output_tokens_max=provider.output_tokens_max,
        ),
        product=settings.agent.product,
        defect_classes=settings.agent.defect_classes,
        image_side_max_px=provider.image_side_max_px,
        attempts_max=settings.agent.attempts_max,
        review_timeout_s=(provider.timeout_s + REVIEW_SPARE_S) * settings.agent.attempts_max,
        prices=prices,
        health=health,
        new_id=new_id,
        now=_now,
        monotonic_s=time.monotonic,
    )


def _about(settings: Settings, model: OnnxModel) -> About:
    provider, budget = settings.provider, settings.budget
    asking = settings.agent.enabled
    limit = "no limit"
    if budget.per_day_micro is not None:
        whole, part = divmod(budget.per_day_micro, MICRO)
        limit = f"{whole}.{part:06d}".rstrip("0").rstrip(".") + " a day"
    return About(
        site=settings.node.site,
        line=settings.node.line,
        node=settings.node.name,
        version=version("qcnode"),
        model=model.version,
        guarantee="\n".join(_promises(model.manifest)),
        limits=model.limits,
        provider=provider.name if asking else None,
        provider_model=provider.model if asking else None,
        scripted=asking and provider.name == SCRIPTED,
        currency=budget.currency,
        budget=limit,
        started_at=_now(),
        on_timeout=settings.agent.on_timeout.value,
    )


def _promises(manifest: ModelManifest) -> Iterator[str]:
    yield "Of the model alone, for parts like those it was calibrated on:"
    for promise in (manifest.reject_from, manifest.accept_below):
        if promise.guarantee is None:
            yield promise.reason
        else:
            yield f"{promise.guarantee} (n = {promise.n})"


def _budgets(settings: Settings) -> tuple[Budget, ...]:
    budget = settings.budget
    if budget.per_day_micro is None:
        return ()
    return (
        Budget(
            name="day",
            currency=budget.currency,
            limit=budget.per_day_micro * PICO_PER_MICRO,
        ),
    )


def check_provider(settings: Settings) -> None:
    """Raise `SettingsError` where a provider beyond this machine has no key, or no name."""
    host = urlsplit(settings.provider.base_url).hostname
    if settings.provider.name == SCRIPTED and host not in LOOPBACK:
        raise SettingsError(
            f"provider.name = {SCRIPTED!r} for {settings.provider.base_url!r}: everything would say"
            " that nobody is charged; give it the name its price file has"
        )
    if settings.secrets.provider_api_key is None and host not in LOOPBACK:
        raise SettingsError(
            f"provider.base_url = {settings.provider.base_url!r}: there is no key for it; set"
            " QCNODE_PROVIDER_API_KEY, or QCNODE_PROVIDER_API_KEY_FILE"
        )


def panel_token(settings: Settings) -> str | None:
    """Return the panel's token, if it has one; raises `SettingsError` where it needs a better."""
    token = _reveal(settings.secrets.panel_token)
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


def _reveal(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _now() -> datetime:
    return datetime.now(UTC)


def _now_us() -> int:
    return time.time_ns() // 1000


def _new_epoch() -> str:
    return secrets.token_hex(16)


def _jitter() -> float:
    return secrets.randbelow(1_000_000) / 1_000_000
