"""After a month without a server everything goes out, once each, while the line goes on."""

import pytest

from tests.faults.drain import (
    Outage,
    billing_server,
    channel_over,
    check_nothing_lost_or_doubled,
)

ROWS = 20_000

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("way", ["http", pytest.param("mqtt", marks=pytest.mark.mosquitto)])
async def test_a_month_of_entries_is_drained_with_none_lost_and_none_doubled(
    way, tmp_path, postgres, free_port, request
):
    broker_port = request.getfixturevalue("mosquitto").port if way == "mqtt" else None
    outage, url, port = Outage(tmp_path, ROWS), postgres(), free_port()
    try:
        with billing_server(tmp_path, url, port, outage.key.public, broker_port=broker_port):
            channel = channel_over(way, billing_port=port, broker_port=broker_port)
            figures = await outage.drain(channel, timeout_s=300.0)
            await channel.close()
        assert figures.rows == ROWS
        assert figures.meanwhile_ms  # The line has gone on.
        assert outage.ledger.last_seq() == ROWS + len(figures.meanwhile_ms)
        check_nothing_lost_or_doubled(outage, url)
    finally:
        outage.close()
