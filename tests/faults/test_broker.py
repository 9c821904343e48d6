"""What carries the entries is killed while the node works: the bill is whole in the end."""

import pytest

from tests.faults.corner import check_after_restart, stop_gently

pytestmark = [pytest.mark.mosquitto, pytest.mark.postgres]


def keep_metering_without(corner, pid):
    """See that parts are judged and asked about while something is down."""
    before = corner.ledger_totals()
    corner.until_triggers(corner.triggers() + 20, pid)
    corner.until_asked(corner.asked() + 3, pid)
    corner.until_recorded(before.entries + 3, pid)


def test_a_broker_that_comes_and_goes_costs_no_entry(make_serviced_corner, mosquitto):
    corner = make_serviced_corner()
    mosquitto.kill()
    pid = corner.start_node()
    corner.until_asked(3, pid)
    assert corner.billed().entries == 0
    mosquitto.start()

    for loses_its_database in (False, True):
        corner.until_asked(corner.asked() + 3, pid)
        mosquitto.kill()
        keep_metering_without(corner, pid)
        mosquitto.start(empty=loses_its_database)
    assert stop_gently(corner.zygote, pid) == 0

    assert check_after_restart(corner).attempts > 9


def test_without_a_broker_entries_go_over_http_and_that_is_said_once(
    make_serviced_corner, mosquitto
):
    corner = make_serviced_corner(fallback_after_s=1.0)
    mosquitto.kill()
    pid = corner.start_node()
    corner.until_asked(3, pid)
    corner.until(lambda: corner.billed().entries > 3, pid)
    keep_metering_without(corner, pid)
    assert stop_gently(corner.zygote, pid) == 0
    assert corner.log().count("by http, mqtt is out") == 1

    mosquitto.start()
    assert check_after_restart(corner).attempts > 6


def test_a_database_killed_under_load_costs_no_entry(make_serviced_corner, postgres):
    corner = make_serviced_corner()
    pid = corner.start_node()
    corner.until_asked(3, pid)

    postgres.kill()
    try:
        keep_metering_without(corner, pid)
    finally:
        postgres.start()  # for the other tests as well
    corner.until_asked(corner.asked() + 3, pid)
    assert stop_gently(corner.zygote, pid) == 0

    assert check_after_restart(corner).attempts > 6
