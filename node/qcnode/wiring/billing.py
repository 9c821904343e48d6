"""Builds the way from a node's ledger to the billing server, from its settings."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2
import structlog

from qcnode.books import batch
from qcnode.books.archive import ArchivedLedger, archived_ledgers
from qcnode.books.inbox import Inbox
from qcnode.books.outbox import Outbox
from qcnode.books.pin import ServerKey
from qcnode.books.seals import PublicKey, SigningKey
from qcnode.errors import (
    QcError,
    SealError,
    SettingsError,
)
from qcnode.lines.fallback import FallbackChannel
from qcnode.lines.http import HttpChannel
from qcnode.wiring.machine import jitter, now, now_us, reveal

if TYPE_CHECKING:
    from pathlib import Path

    from qcnode.books.ledger import SqliteLedger
    from qcnode.health import HealthBoard
    from qcnode.lines.mqtt import MqttChannel
    from qcnode.ports import Channel
    from qcnode.settings import Settings


log = structlog.get_logger()

IDLE_ASKS_S = 300.0
BORROWER_ASKS_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A ledger that was put away, and what brings the rest of it to the billing server."""

    ledger: ArchivedLedger
    outbox: Outbox


def build_senders(
    settings: Settings,
    *,
    ledger: SqliteLedger,
    channel: Channel | None,
    key: SigningKey,
    home: Path,
    health: HealthBoard,
) -> tuple[Outbox | None, tuple[Archive, ...]]:
    """Build what brings entries to the billing server; nothing where they stay on the node."""
    if channel is None:
        return None, ()
    server_key = ServerKey(home / "billing.pub", given=server_key_of(settings))
    outbox = Outbox(
        ledger,
        channel,
        tenant=settings.node.tenant,
        node=settings.node.name,
        health=health,
        now=now,
        jitter=jitter,
        inbox=Inbox(ledger),
        node_key=key.public,
        server_key=server_key,
        on_fork=ledger.forked,
        ask_every_s=ask_every_s(settings),
    )
    archives = open_archives(
        settings, key=key, server_key=server_key, channel=channel, health=health
    )
    return outbox, archives


def build_channel(
    settings: Settings, over_mqtt: MqttChannel | None, *, health: HealthBoard
) -> Channel | None:
    """Build the way by which entries leave; None where they stay on the node."""
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
        token=reveal(settings.secrets.billing_token),
        read_receipt=batch.decode_receipt,
        timeout_s=settings.metering.receipt_timeout_s,
        key=key,
    )


def open_archives(
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
            ledger = ArchivedLedger(path, now_us=now_us, key=key)
        except QcError as error:
            health.report(component, ok=False, words=str(error))
            continue
        outbox = Outbox(
            ledger,
            channel,
            tenant=settings.node.tenant,
            node=settings.node.name,
            health=health,
            now=now,
            jitter=jitter,
            node_key=key.public,
            server_key=server_key,
            component=component,
        )
        archives.append(Archive(ledger=ledger, outbox=outbox))
    return tuple(archives)


def node_key(settings: Settings) -> SigningKey:
    """Return the key that this node signs with, made in its home where none is given."""
    name = f"{settings.node.tenant}/{settings.node.name}"
    given = reveal(settings.secrets.node_key)
    if given is None:
        return SigningKey.open(settings.node.home / "node.key", name=name)
    return SigningKey.read(given.encode(), name=name, source="QCNODE_NODE_KEY (or its _FILE)")


def ask_every_s(settings: Settings) -> float:
    """Return after how long an idle node asks the billing server: sooner when it borrows."""
    borrows = any(budget.shared for budget in settings.budgets())
    return BORROWER_ASKS_S if borrows else IDLE_ASKS_S


def server_key_of(settings: Settings) -> PublicKey | None:
    """Return the billing server's public key, where the settings name it."""
    text = settings.metering.server_key
    if text is None:
        return None
    try:
        return PublicKey.parse(text)
    except SealError as error:
        raise SettingsError(f"metering.server_key: {error}") from error
