"""kill -9 at random moments under load: no part and no token is lost, and the bill is right."""

import os
import random
import shutil
import signal
import sqlite3
import time

import pytest

from qcnode.errors import LedgerCorruptError
from qcnode.lines.virtual import WAITING_MAX
from tests.faults.corner import (
    check_after_restart,
    check_money,
    check_parts,
    check_requests,
    in_flight,
    outcomes,
)

IN_FLIGHT_MAX = WAITING_MAX + 2
"""What the line's queue holds, and the one being judged. With a core to itself the node has one."""


def kill_at_random_moments(corner, kills, *, seed, meanwhile=lambda _trial: None):
    """Kill the node `kills` times, look at what it left, and return the parts in flight."""
    chance = random.Random(seed)
    lost = []
    for trial in range(kills):
        meanwhile(trial)
        pid = corner.start_node()
        if trial % 2:  # While a request is under way: its answer takes about 120 ms.
            corner.until_asked(corner.asked() + chance.randint(1, 5), pid)
            moment_s = chance.uniform(0, 0.15)
        else:  # Between two parts.
            corner.until_triggers(corner.triggers() + chance.randint(1, 25), pid)
            moment_s = chance.uniform(0, 0.04)
        # The moment itself: this is the fault, not a wait for anything.
        time.sleep(moment_s)
        os.kill(pid, signal.SIGKILL)
        assert corner.zygote.reap(pid) == -signal.SIGKILL

        flying = in_flight(corner.home)
        last = max(outcomes(corner.home), default=0)
        assert all(seq > last for seq in flying), "a part vanished between others"
        assert len(flying) <= IN_FLIGHT_MAX
        check_requests(corner.home)
        lost.append(len(flying))
    return lost


SERVICES = (pytest.mark.mosquitto, pytest.mark.postgres)


@pytest.mark.parametrize(
    ("around", "kills"),
    [
        ("make_corner", 8),
        pytest.param("make_serviced_corner", 6, marks=SERVICES),
        pytest.param("make_corner", 100, marks=pytest.mark.long),
        pytest.param("make_serviced_corner", 100, marks=(pytest.mark.long, *SERVICES)),
    ],
)
def test_a_node_killed_again_and_again_loses_nothing(request, around, kills):
    corner = request.getfixturevalue(around)()

    lost = kill_at_random_moments(corner, kills, seed=20261122)
    ledger = check_after_restart(corner)
    assert ledger.attempts >= kills // 2, "the books were under no load"

    print(  # noqa: T201  # the figure for docs/faults.md; pytest shows it with -s
        f"\n{kills} kills: {corner.triggers()} parts, in flight at a kill"
        f" {min(lost)}/{sorted(lost)[len(lost) // 2]}/{max(lost)} (min/median/max),"
        f" {ledger.attempts} attempts, {ledger.indeterminate} indeterminate,"
        f" {ledger.entries} entries on ledger and bill"
    )


def test_the_checks_do_find_what_they_look_for(make_corner):
    """The control: each promise is broken by hand, and its check must fail."""
    corner = make_corner()
    kill_at_random_moments(corner, 1, seed=7)
    check_after_restart(corner)

    broken = corner.home.with_name("broken")
    shutil.copytree(corner.home, broken)
    with sqlite3.connect(broken / "journal.db") as journal:
        journal.execute("DELETE FROM record WHERE trigger_seq = 3")
    journal.close()
    with pytest.raises(AssertionError, match="without an outcome"):
        check_parts(broken)

    with (broken / "provider.log").open("a") as books:
        books.write('{"attempt": "nobody-intended-this", "billed": true, "usage": null}\n')
    with pytest.raises(AssertionError, match="without an intent"):
        check_requests(broken)
    with pytest.raises(AssertionError, match="neither settled nor held"):
        check_money(broken)

    with sqlite3.connect(broken / "ledger.db") as ledger:
        for (name,) in ledger.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall():
            ledger.execute(f"DROP TRIGGER {name}")
        ledger.execute(
            "UPDATE entry SET body = CAST(replace(body, 'at_us', 'AT_US') AS BLOB) WHERE seq = 1"
        )
    ledger.close()
    with pytest.raises(LedgerCorruptError, match="entry 1"):
        check_requests(broken)
