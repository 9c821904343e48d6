"""The virtual line in a time of its own: nothing is late, and it stands while somebody looks."""

from itertools import pairwise

import pytest

from qcnode.domain import Action, Limits
from qcnode.health import HealthBoard
from qcnode.lines.paced import BeltClock, PacedLine
from qcnode.lines.virtual import Belt, UnknownParts, VirtualLine
from qcnode.station import Station
from tests.fakes import FakeCamera, FakeClock, FakeJournal, FakeModel, make_ids

PERIOD_MS = 12_000.0


def make_paced(folder, *, count, between=lambda _: True):
    wall, clock = FakeClock(), BeltClock()
    line = VirtualLine(
        parts=UnknownParts(),
        belt=Belt(
            period_ms=PERIOD_MS, speed_mm_per_s=500.0, gate_mm=250.0, guard_ms=30.0, jitter=0.0
        ),
        world=folder / "world.log",
        count=count,
        seed=1,
        now=wall.now,
        new_id=make_ids("passage"),
        clock_ns=clock.ns,
        by_hand=True,
    )
    return PacedLine(line, clock, period_ns=int(PERIOD_MS * 1e6), between=between), clock, wall


def run_station(line, clock, wall):
    journal = FakeJournal()
    Station(
        camera=FakeCamera(wall),
        model=FakeModel([0.1, 0.9] * 50),
        limits=Limits(accept_below=0.2, reject_from=0.8),
        failsafe=Action.DIVERT,
        line=line,
        journal=journal,
        health=HealthBoard(wall.now),
        now=wall.now,
        new_id=make_ids(),
        clock_ns=clock.ns,
    ).run()
    return journal


def test_every_part_is_judged_in_time_and_meets_the_gate_as_commanded(tmp_path):
    journal = run_station(*make_paced(tmp_path, count=40))

    assert [one.trigger_seq for one in journal.outcomes()] == list(range(1, 41))
    assert journal.faults() == []
    assert len(journal.passages()) == 40
    assert all(passage.commanded for passage in journal.passages())


def test_the_belt_stands_between_two_parts_for_as_long_as_somebody_looks(tmp_path):
    looks = []

    def between(count):
        looks.append((count, clock.ns(), (tmp_path / "world.log").read_text().count("trigger")))
        return True

    line, clock, wall = make_paced(tmp_path, count=3, between=between)
    run_station(line, clock, wall)

    assert [(count, triggered) for count, _, triggered in looks] == [(1, 1), (2, 2), (3, 3)]
    times = [at for _, at, _ in looks]
    assert {later - sooner for sooner, later in pairwise(times)} == {int(PERIOD_MS * 1e6)}


@pytest.mark.parametrize("last", [1, 7])
def test_no_part_comes_any_more_once_somebody_says_so(tmp_path, last):
    journal = run_station(*make_paced(tmp_path, count=20, between=lambda count: count < last))

    assert len(journal.outcomes()) == len(journal.passages()) == last
    assert all(passage.commanded for passage in journal.passages())
