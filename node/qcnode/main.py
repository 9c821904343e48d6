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
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import httpx2
import structlog
import uvicorn

from qcbridge.agent import Agent
from qcbridge.meter import Meter
from qcbridge.prices import PriceBook, open_book
from qcbridge.providers.openai_chat import OpenAIChatProvider
from qcbridge.transport import MeteringTransport
from qcnode.ahead import Ahead
from qcnode.audit import AuditDraw
from qcnode.books import batch
from qcnode.books.archive import ArchivedLedger, archived_ledgers
from qcnode.books.ballast import BALLAST_BYTES
from qcnode.books.inbox import Inbox
from qcnode.books.journal import Journal
from qcnode.books.ledger import SqliteLedger
from qcnode.books.mark import FileId
from qcnode.books.outbox import Outbox
from qcnode.books.pictures import PictureStore
from qcnode.books.pin import ServerKey
from qcnode.books.purse import PriceAge, Purse
from qcnode.books.seals import PublicKey, SigningKey
from qcnode.cameras.folder import FolderCamera, FolderPictures
from qcnode.cameras.opencv import OpenCvCamera
from qcnode.cameras.virtual import RenderedCamera, RenderedParts
from qcnode.certificate import AuditRules, LiveCertificate
from qcnode.desk import Desk, DeskRules
from qcnode.drift import DriftWatch
from qcnode.errors import (
    BudgetExceededError,
    LedgerCorruptError,
    LedgerUnavailableError,
    QcError,
    SealError,
    SettingsError,
    UnpricedError,
)
from qcnode.health import HealthBoard
from qcnode.ids import IdMaker
from qcnode.lines.fallback import FallbackChannel
from qcnode.lines.http import HttpChannel
from qcnode.lines.virtual import Belt, UnknownParts, VirtualLine
from qcnode.lines.world import last_trigger_in
from qcnode.listen import listen
from qcnode.logs import configure_logs
from qcnode.panel.accounts import Accounts
from qcnode.panel.app import create_panel, serve_config
from qcnode.panel.file import PanelFile
from qcnode.panel.guard import TOKEN_LENGTH_MIN
from qcnode.panel.sources import About
from qcnode.runtime.changes import ModelChanges
from qcnode.runtime.releases import Releases
from qcnode.runtime.slot import Slot, Step
from qcnode.runtime.tuning import open_tuned
from qcnode.sdnotify import Supervisor, feed_watchdog
from qcnode.station import Station
from qcnode.telling import Telling

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from datetime import date

    from pydantic import SecretStr

    from qcnode.books.budgets import Budget
    from qcnode.lines.mqtt import MqttChannel
    from qcnode.lines.virtual import PartSource
    from qcnode.manifest import ModelManifest
    from qcnode.money import CostCentre, WorstCase
    from qcnode.ports import Camera, Channel, Ledger
    from qcnode.runtime.onnx import OnnxModel
    from qcnode.settings import Settings

log = structlog.get_logger()

MICRO = 1_000_000
PICTURES_MAX = 5_000
REVIEW_SPARE_S = 5.0
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
IDLE_ASKS_S = 300.0
BORROWER_ASKS_S = 30.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MODELS = "models"
"""The folder of the home with the node's own copies of its models."""
WORLD = "world.log"
"""The virtual line's own record, which the node never reads."""
SCRIPTED = "scripted"
"""What the scripted provider is called in settings and price book."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A ledger that was put away, and what brings the rest of it to the billing server."""

    ledger: ArchivedLedger
    outbox: Outbox


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
    changes: ModelChanges
    desk: Desk
    agent: Agent | None
    channel: Channel | None
    outbox: Outbox | None
    archives: tuple[Archive, ...]
    telling: Telling
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
                self.station.start()
                self.changes.start()
                services = [
                    tasks.create_task(self.desk.run()),
                    tasks.create_task(feed_watchdog(supervisor, alive=self._alive)),
                    tasks.create_task(self._notice_failure()),
                    tasks.create_task(self._prove_ledger()),
                ]
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
    now = _now
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
        key = _node_key(settings)
        ledger = SqliteLedger(
            home / "ledger.db",
            now_us=_now_us,
            new_epoch=_new_epoch,
            budgets=settings.budgets(),
            key=key,
            identify=FileId.of,
            ballast_bytes=BALLAST_BYTES,
            health=health,
        )
        undo.callback(ledger.close)
        known = "chain verified" if not ledger.taken_on_trust else "proof under way"
        health.report("ledger", ok=True, words=f"{ledger.totals().entries} entries, {known}")
        agent = _build_agent(settings, ledger=ledger, health=health, new_id=new_id)
        _warn_of_budgets(settings, agent)
        purse = Purse(
            ledger=ledger,
            centre=settings.centre(),
            health=health,
            now=now,
            price_age=_price_age(settings),
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
            jitter=_jitter,
        )
        channel = channel or _build_channel(settings, telling.connection, health=health)
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
        ahead = Ahead(line, camera)
        certificate = _certificate(settings, model, journal, health=health, new_id=new_id)
        steps: deque[Step] = deque(maxlen=STEPS_MAX)
        slot = Slot(
            model,
            rule=settings.change.rule(),
            coin=_jitter,
            clock_ns=time.monotonic_ns,
            cpu_ns=time.thread_time_ns,
            tell=steps.append,
        )
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
        )

        def took_over(model: OnnxModel) -> None:
            station.certify(_certificate(settings, model, journal, health=health, new_id=new_id))

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
        desk = Desk(
            journal=journal,
            line=line,
            reviewer=agent,
            ledger=ledger,
            purse=purse,
            rules=DeskRules(
                limits=model.limits,
                centre=settings.centre(),
                level=settings.agent.level,
                workers=settings.agent.workers,
                waiting_max=settings.agent.waiting_max,
                ruling_timeout=timedelta(seconds=settings.agent.ruling_timeout_s),
                on_timeout=settings.agent.on_timeout,
                per_minute_max=settings.agent.per_minute_max,
            ),
            now=now,
            new_id=new_id,
            audited=station.recount_audit,
        )
        telling.attach(station=station, desk=desk)
        outbox = None
        archives: tuple[Archive, ...] = ()
        if channel is not None:
            server_key = ServerKey(home / "billing.pub", given=_server_key(settings))
            outbox = Outbox(
                ledger,
                channel,
                tenant=settings.node.tenant,
                node=settings.node.name,
                health=health,
                now=now,
                jitter=_jitter,
                inbox=Inbox(ledger),
                node_key=key.public,
                server_key=server_key,
                on_fork=ledger.forked,
                ask_every_s=_ask_every_s(settings),
            )
            archives = _open_archives(
                settings, key=key, server_key=server_key, channel=channel, health=health
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
            desk=desk,
            ledger=ledger,
            outlooks=purse.outlooks,
            health=health,
            about=_about(settings, model),
            file=panel_file,
            accounts=accounts,
            hosts=settings.panel.public_hosts,
            now=now,
            new_id=new_id,
            reference=_reference(settings, model.manifest),
            recertify=station.recertify,
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
            channel=channel,
            outbox=outbox,
            archives=archives,
            telling=telling,
            panel=serve_config(panel, settings.panel.host, settings.panel.port),
            panel_file=panel_file,
            accounts=accounts,
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


def _certificate(
    settings: Settings,
    model: OnnxModel,
    journal: Journal,
    *,
    health: HealthBoard,
    new_id: Callable[[], str],
) -> LiveCertificate:
    drift, audit, manifest = settings.drift, settings.audit, model.manifest

    def new_watch() -> DriftWatch:
        return DriftWatch(
            manifest.good_scores,
            manifest.pictures,
            defects_most=drift.defects_most,
            false_alarm=drift.false_alarm,
            coin=_jitter,
        )

    return LiveCertificate(
        model=model.version,
        earned=model.limits,
        good=manifest.good_scores,
        new_watch=new_watch if drift.enabled else None,
        rules=AuditRules(draw=AuditDraw(secrets.token_bytes(32), audit.share), target=audit.target)
        if audit.enabled
        else None,
        count_audit=lambda: journal.audit(model.version),
        last=journal.certificate(model.version),
        health=health,
        now=_now,
        new_id=new_id,
    )


def _build_channel(
    settings: Settings, over_mqtt: MqttChannel | None, *, health: HealthBoard
) -> Channel | None:
    metering = settings.metering
    if metering.channel == "none":
        return None
    if metering.channel == "http":
        return _http_channel(settings, metering.url, key="metering.url")
    assert over_mqtt is not None  # noqa: S101  # `Telling` has built it, by the same setting
    if metering.fallback_url is None:
        return over_mqtt
    return FallbackChannel(
        over_mqtt,
        _http_channel(settings, metering.fallback_url, key="metering.fallback_url"),
        health=health,
        monotonic_s=time.monotonic,
        patience_s=metering.fallback_after_s,
    )


def _http_channel(settings: Settings, url: str, *, key: str) -> HttpChannel:
    return HttpChannel(
        httpx2.AsyncClient(trust_env=False),
        url,
        token=_reveal(settings.secrets.billing_token),
        read_receipt=batch.decode_receipt,
        timeout_s=settings.metering.receipt_timeout_s,
        key=key,
    )


def _open_archives(
    settings: Settings,
    *,
    key: SigningKey,
    server_key: ServerKey,
    channel: Channel,
    health: HealthBoard,
) -> tuple[Archive, ...]:
    """Open the ledgers put away in the home; one that cannot be read is said and left."""
    archives: list[Archive] = []
    for path in archived_ledgers(settings.node.home):
        component = f"billing of {path.name}"
        try:
            ledger = ArchivedLedger(path, now_us=_now_us, key=key)
        except QcError as error:
            health.report(component, ok=False, words=str(error))
            continue
        outbox = Outbox(
            ledger,
            channel,
            tenant=settings.node.tenant,
            node=settings.node.name,
            health=health,
            now=_now,
            jitter=_jitter,
            node_key=key.public,
            server_key=server_key,
            component=component,
        )
        archives.append(Archive(ledger=ledger, outbox=outbox))
    return tuple(archives)


def _node_key(settings: Settings) -> SigningKey:
    name = f"{settings.node.tenant}/{settings.node.name}"
    given = _reveal(settings.secrets.node_key)
    if given is None:
        return SigningKey.open(settings.node.home / "node.key", name=name)
    return SigningKey.read(given.encode(), name=name, source="QCNODE_NODE_KEY (or its _FILE)")


def open_releases(settings: Settings) -> Releases:
    """Open the node's models; each is run on the engine that was measured for it."""
    return Releases(
        settings.node.home / MODELS,
        trusted=[_trusted_key(text) for text in settings.model.trusted_keys],
        load=lambda folder: open_tuned(
            folder,
            settings.node.home / MODELS,
            threads=settings.model.threads,
            warn=lambda words: log.warning("a slower engine is used", why=words),
        ),
        now=_now,
        threads=settings.model.threads,
    )


def _trusted_key(text: str) -> PublicKey:
    try:
        return PublicKey.parse(text)
    except SealError as error:
        raise SettingsError(f"model.trusted_keys: {error}") from error


def _ask_every_s(settings: Settings) -> float:
    """Return after how long an idle node asks the billing server: sooner when it borrows."""
    borrows = any(budget.shared for budget in settings.budgets())
    return BORROWER_ASKS_S if borrows else IDLE_ASKS_S


def _server_key(settings: Settings) -> PublicKey | None:
    text = settings.metering.server_key
    if text is None:
        return None
    try:
        return PublicKey.parse(text)
    except SealError as error:
        raise SettingsError(f"metering.server_key: {error}") from error


def worst_request(settings: Settings) -> WorstCase | None:
    """Return the most that one request may need; None when none is made, or it has no price."""
    agent = _build_agent(
        settings,
        # Nothing is asked, so there is nothing to put on record.
        ledger=cast("Ledger", None),
        health=HealthBoard(_now),
        new_id=_new_epoch,
    )
    return None if agent is None else agent.worst()


def _build_agent(
    settings: Settings, *, ledger: Ledger, health: HealthBoard, new_id: Callable[[], str]
) -> Agent | None:
    if not settings.agent.enabled:
        return None
    provider = settings.provider
    check_provider(settings)
    prices = _prices(settings)
    meter = Meter(
        ledger=ledger, prices=prices, health=health, now=_now, answer_timeout_s=provider.timeout_s
    )
    transport = MeteringTransport(
        httpx2.AsyncHTTPTransport(retries=0), meter=meter, monotonic_s=time.monotonic
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
        meter=meter,
        product=settings.agent.product,
        defect_classes=settings.agent.defect_classes,
        image_side_max_px=provider.image_side_max_px,
        attempts_max=settings.agent.attempts_max,
        review_timeout_s=(provider.timeout_s + REVIEW_SPARE_S) * settings.agent.attempts_max,
        health=health,
        new_id=new_id,
        monotonic_s=time.monotonic,
        centre=settings.centre(),
        level=settings.agent.level.value,
    )


def _about(settings: Settings, model: OnnxModel) -> About:
    provider = settings.provider
    asking = settings.agent.enabled
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
        started_at=_now(),
        on_timeout=settings.agent.on_timeout.value,
        defect_classes=settings.agent.defect_classes,
    )


def _reference(settings: Settings, manifest: ModelManifest) -> bytes | None:
    """Return the picture of the best good part in the release, if it holds one."""
    good = [frame for frame in manifest.golden if frame.label == "good"]
    if not good:
        return None
    best = min(good, key=lambda frame: frame.score)
    # The release was verified when it was loaded; a picture that went since is none.
    try:
        return (settings.model.dir / best.path).read_bytes()
    except OSError:
        return None


def _promises(manifest: ModelManifest) -> Iterator[str]:
    yield "Of the model alone, for parts like those it was calibrated on:"
    for promise in (manifest.reject_from, manifest.accept_below):
        if promise.guarantee is None:
            yield promise.reason
        else:
            likely = "" if promise.alpha_95 is None else f", 95 %: {promise.alpha_95:.3f}"
            yield f"{promise.guarantee} (n = {promise.n}{likely})"


def _price_age(settings: Settings) -> PriceAge | None:
    """Return how old the prices in force may be; those of the script never grow old."""
    provider, metering = settings.provider, settings.metering
    if not settings.agent.enabled or provider.name == SCRIPTED:
        return None
    prices = _prices(settings)
    return PriceAge(
        checked_on=lambda: checked_on(prices, provider.name, provider.model, _now()),
        days_max=metering.prices_age_max_days,
        capped=metering.stale_prices == "calls",
    )


def checked_on(prices: PriceBook, provider: str, model: str, at: datetime) -> date | None:
    """Return when the oldest of the prices in force was last checked; None without a price."""
    try:
        return min(row.checked_at for row in prices.rows_in_force(provider, model, at))
    except UnpricedError:
        return None


def _prices(settings: Settings) -> PriceBook:
    return open_book(settings.provider.prices, settings.provider.prices_key)


def _warn_of_budgets(settings: Settings, agent: Agent | None) -> None:
    worst = None if agent is None else agent.worst()
    if worst is None:
        return
    for budget in settings.budgets():
        if words := allows_nothing(budget, settings.centre(), worst):
            log.warning("this budget allows no question at all", budget=budget.name, why=words)


def allows_nothing(budget: Budget, centre: CostCentre, worst: WorstCase) -> str | None:
    """Say why a budget lets not even the first request of a window pass; None if it does."""
    if not budget.covers(centre):
        return None
    try:
        amount = budget.amount(worst.hold, worst.usage)
    except BudgetExceededError as error:
        return str(error)
    if amount <= budget.limit:
        return None
    return f"one request may need {budget.words(amount)}, and it has {budget.words(budget.limit)}"


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
