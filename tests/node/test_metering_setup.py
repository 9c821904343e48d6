"""How a node's way to the billing server is built from its settings and its home."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from qcnode import telling
from qcnode.books import batch
from qcnode.books.ledger import SqliteLedger
from qcnode.books.pin import ServerKey
from qcnode.books.seals import SigningKey
from qcnode.errors import SettingsError
from qcnode.health import HealthBoard
from qcnode.settings import MeteringSettings, NodeSettings, Settings
from qcnode.wiring import billing
from tests.bridge.fakes_billing import FakeBilling, FakeChannel
from tests.bridge.ledgers import intent

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def settings_for(home, **metering):
    return Settings(
        node=NodeSettings(tenant="acme", name="n1", home=home),
        metering=MeteringSettings(**metering),
    )


def build_channel(settings):
    over_mqtt = telling.over_mqtt(settings, read_receipt=batch.decode_receipt, new_id=lambda: "id")
    return billing.build_channel(settings, over_mqtt, health=HealthBoard(lambda: NOW))


@pytest.mark.parametrize(
    ("metering", "name"),
    [
        ({"channel": "http"}, "http"),
        ({"channel": "mqtt"}, "mqtt"),
        ({"channel": "mqtt", "fallback_url": "http://127.0.0.1:1"}, "mqtt, then http"),
    ],
)
async def test_the_way_is_the_one_in_the_settings(tmp_path, metering, name):
    channel = build_channel(settings_for(tmp_path, **metering))
    assert channel.name == name
    await channel.close()


def test_without_metering_there_is_no_way(tmp_path):
    assert build_channel(settings_for(tmp_path)) is None


def test_a_fallback_that_is_no_address_is_named(tmp_path):
    settings = settings_for(tmp_path, channel="mqtt", fallback_url="billing.local")
    with pytest.raises(SettingsError, match=r"metering\.fallback_url"):
        build_channel(settings)


def test_a_server_key_that_is_none_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"metering\.server_key"):
        billing.server_key_of(settings_for(tmp_path, server_key="billing+1+nonsense"))


async def test_what_was_put_away_is_opened_and_what_cannot_be_read_is_said(tmp_path):
    key = SigningKey.open(tmp_path / "node.key", name="acme/n1")
    for epoch in ("a" * 32, "b" * 32):
        ledger = SqliteLedger(
            tmp_path / f"ledger-{epoch}.db",
            now_us=lambda: 0,
            new_epoch=lambda epoch=epoch: epoch,
            key=key,
        )
        ledger.submit(intent()).result(10)
        ledger.close()
    held = billing.ArchivedLedger(tmp_path / f"ledger-{'b' * 32}.db", now_us=lambda: 0, key=key)
    health = HealthBoard(lambda: NOW)
    archives = billing.open_archives(
        settings_for(tmp_path),
        key=key,
        server_key=ServerKey(tmp_path / "billing.pub"),
        channel=FakeChannel(FakeBilling()),
        health=health,
    )
    held.close()
    assert [archive.ledger.epoch for archive in archives] == ["a" * 32]
    assert archives[0].outbox.pending() == archives[0].ledger.last_seq()
    archives[0].ledger.close()
    (said,) = health.all()
    assert (said.ok, said.component) == (False, f"billing of ledger-{'b' * 32}.db")
