"""The virtual line: a world that goes on whatever the node does, and remembers it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from qcnode.cameras.virtual import RenderedCamera, RenderedParts
from qcnode.domain import Action, Disposition, Limits
from qcnode.errors import LineUnavailableError
from qcnode.health import HealthBoard
from qcnode.lines.virtual import WAITING_MAX, Belt, UnknownParts, VirtualLine
from qcnode.lines.world import last_trigger_in
from qcnode.station import Station
from qcnode.track import RING
from tests.fakes import FakeClock, FakeJournal, FakeModel, make_ids

# 500 mm/s and 250 mm: the gate is 500 ms behind the camera, its guard begins after 470 ms.
BELT = Belt(period_ms=100.0, speed_mm_per_s=500.0, gate_mm=250.0, guard_ms=30.0, jitter=0.0)


def make_line(world, clock, *, count=None, belt=BELT, parts=None):
    return VirtualLine(
        parts=parts or UnknownParts(),
        belt=belt,
        world=world,
        count=count,
        seed=1,
        now=clock.now,
        new_id=make_ids("passage"),
        clock_ns=clock.ns,
        by_hand=True,
    )


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def world(tmp_path):
    return tmp_path / "world.log"


def move(line, clock, ms):
    clock.advance(ms)
    line.step(clock.ns())


def test_a_part_set_in_time_meets_its_action_and_one_nobody_set_the_default(world, clock):
    line = make_line(world, clock, count=2)
    triggers = line.triggers()
    line.step(clock.ns())
    move(line, clock, 250)
    assert line.act(next(triggers), Action.ACCEPT)
    next(triggers)
    move(line, clock, 500)

    assert [(p.trigger_seq, p.action, p.commanded) for p in line.passages()] == [
        (1, Action.ACCEPT, True),
        (2, Action.DIVERT, False),
    ]
    assert line.passages() == ()
    assert list(triggers) == []
    assert world.read_text().splitlines() == [
        "trigger 1 P0000001 unknown",
        "trigger 2 P0000002 unknown",
        "gate 1 ACCEPT commanded",
        "gate 2 DIVERT default",
    ]


@pytest.mark.parametrize(("after_ms", "in_time"), [(469, True), (470, False), (9000, False)])
def test_an_action_inside_the_guard_is_refused(world, clock, after_ms, in_time):
    line = make_line(world, clock, count=1)
    triggers = line.triggers()
    line.step(clock.ns())
    move(line, clock, 100)
    trigger = next(triggers)
    clock.advance(after_ms)  # Nobody moved the belt: what counts is the time, not the thread.

    assert line.act(trigger, Action.ACCEPT) is in_time
    assert trigger.deadline_ns - trigger.at_ns == 470_000_000


def test_the_encoder_wraps_on_the_way_to_the_gate(world, clock):
    belt = Belt(
        period_ms=100.0,
        speed_mm_per_s=500.0,
        gate_mm=250.0,
        guard_ms=30.0,
        jitter=0.0,
        first_position=RING - 1500,
    )
    line = make_line(world, clock, count=1, belt=belt)
    triggers = line.triggers()
    line.step(clock.ns())
    move(line, clock, 100)
    trigger = next(triggers)
    assert trigger.position == RING - 500
    move(line, clock, 300)
    assert line.act(trigger, Action.REJECT)
    move(line, clock, 200)

    assert [p.action for p in line.passages()] == [Action.REJECT]


def test_parts_pass_at_their_own_times_however_late_somebody_looks(world, clock):
    line = make_line(world, clock, count=5)
    triggers = line.triggers()
    line.step(clock.ns())
    start_ns = clock.ns()
    move(line, clock, 10_000)

    assert [(t.at_ns - start_ns) // 1_000_000 for t in triggers] == [100, 200, 300, 400, 500]


def test_a_node_that_does_not_keep_up_loses_triggers_but_the_line_counts_them(world, clock):
    line = make_line(world, clock, count=WAITING_MAX + 10)
    triggers = line.triggers()
    line.step(clock.ns())
    move(line, clock, 60_000)

    assert [t.seq for t in triggers] == list(range(1, WAITING_MAX + 1))
    assert line.last_trigger() == WAITING_MAX + 10
    assert len(line.passages()) == WAITING_MAX + 10


def test_a_stopped_line_drops_what_was_set_and_refuses_more(world, clock):
    line = make_line(world, clock)
    triggers = line.triggers()
    line.step(clock.ns())
    move(line, clock, 100)
    trigger = next(triggers)
    assert line.act(trigger, Action.ACCEPT)
    line.stop()
    line.stop()

    assert list(triggers) == []
    assert not line.act(trigger, Action.ACCEPT)
    assert [(p.action, p.commanded) for p in line.passages()] == [(Action.DIVERT, False)]


def test_a_restarted_line_counts_on_and_knows_what_its_gate_did_alone(world, clock):
    line = make_line(world, clock)
    triggers = line.triggers()
    line.step(clock.ns())
    move(line, clock, 350)
    assert line.act(next(triggers), Action.ACCEPT)
    del line, triggers  # Killed: nobody stopped it, three parts are under way.

    assert last_trigger_in(world) == 3
    line = make_line(world, clock, count=1)
    assert line.last_trigger() == 3
    assert [(p.trigger_seq, p.part_id, p.action, p.commanded) for p in line.passages()] == [
        (1, "P0000001", Action.DIVERT, False),
        (2, "P0000002", Action.DIVERT, False),
        (3, "P0000003", Action.DIVERT, False),
    ]
    line.step(clock.ns())
    move(line, clock, 200)
    assert [t.seq for t in _waiting(line)] == [4]


def _waiting(line):
    line.stop()
    return list(line.triggers())


def test_a_line_torn_by_a_power_cut_spoils_no_other(world, clock):
    world.write_text("trigger 1 P0000001 good\ngate 1 ACCEPT commanded\ntrigger 2 P00")
    line = make_line(world, clock, count=1)
    line.step(clock.ns())
    move(line, clock, 100)

    assert world.read_text().splitlines()[2:] == ["trigger 2 P00", "trigger 2 P0000002 unknown"]


def test_a_disposition_is_on_the_worlds_record_also_after_the_line_has_stopped(world, clock):
    line = make_line(world, clock)
    line.stop()
    line.dispose("P0000007", Disposition.RELEASE)

    assert world.read_text() == "dispose P0000007 RELEASE\n"


def test_a_world_that_cannot_be_recorded_is_a_line_that_cannot_be_reached(tmp_path, clock):
    line = make_line(tmp_path / "missing" / "world.log", clock)
    with pytest.raises(LineUnavailableError, match=r"world\.log"):
        line.dispose("P1", Disposition.SCRAP)


def test_names_with_spaces_stay_one_word_on_the_record(world, clock):
    class Named:
        def part(self, seq):
            return f"P{seq}", "bent pin"

    line = make_line(world, clock, count=1, parts=Named())
    line.step(clock.ns())
    move(line, clock, 100)

    assert world.read_text() == "trigger 1 P1 bent_pin\n"


@pytest.mark.parametrize("jitter", [-0.1, 0.5])
def test_parts_that_could_overtake_each_other_are_refused(jitter):
    with pytest.raises(ValueError, match="jitter"):
        Belt(period_ms=1.0, speed_mm_per_s=1.0, gate_mm=1.0, guard_ms=1.0, jitter=jitter)


def test_a_station_on_a_running_belt_loses_no_part(tmp_path):
    clock = FakeClock()
    parts = RenderedParts(seed=3, defect_share=0.5)
    new_id = make_ids()
    line = VirtualLine(
        parts=parts,
        belt=Belt(period_ms=10.0, speed_mm_per_s=500.0, gate_mm=250.0, guard_ms=30.0),
        world=tmp_path / "world.log",
        count=40,
        seed=3,
        now=clock.now,
        new_id=new_id,
        clock_ns=time.monotonic_ns,
    )
    journal = FakeJournal()
    station = Station(
        camera=RenderedCamera(parts, name="virtual", now=clock.now, new_id=new_id),
        model=FakeModel([0.1, 0.5, 0.9] * 13),
        limits=Limits(accept_below=0.2, reject_from=0.8),
        failsafe=Action.DIVERT,
        line=line,
        journal=journal,
        health=HealthBoard(clock.now),
        now=clock.now,
        new_id=new_id,
        clock_ns=time.monotonic_ns,
    )
    station.start()

    assert station.join(60)
    assert station.failure is None
    assert [o.trigger_seq for o in journal.outcomes()] == list(range(1, 41))
    assert [p.trigger_seq for p in journal.passages()] == list(range(1, 41))
    inspected = {i.trigger_seq: i.action for i in journal.inspections()}
    assert {p.trigger_seq: p.action for p in journal.passages() if p.commanded} == inspected


NODE = """
import sys, time
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from qcnode.domain import Action
from qcnode.lines.virtual import Belt, UnknownParts, VirtualLine
ids = count()
line = VirtualLine(
    parts=UnknownParts(), world=Path(sys.argv[1]), count=None, seed=1,
    belt=Belt(period_ms=4.0, speed_mm_per_s=2000.0, gate_mm=100.0, guard_ms=5.0),
    now=lambda: datetime.now(UTC), new_id=lambda: str(next(ids)),
)
for trigger in line.triggers():
    line.act(trigger, Action.ACCEPT)
    print(trigger.seq, flush=True)
"""


def test_a_kill_leaves_no_part_uncounted(world, clock):
    last = 0
    for kill_after in (7, 1, 23):
        with subprocess.Popen(
            [sys.executable, "-c", NODE, str(world)], stdout=subprocess.PIPE, text=True
        ) as node:
            told = [int(node.stdout.readline()) for _ in range(kill_after)]
            node.kill()
        assert told == list(range(last + 1, last + kill_after + 1))
        line = make_line(Path(world), clock)
        last = line.last_trigger()
        assert last >= told[-1]

    words = [entry.split() for entry in world.read_text().splitlines()]
    triggered = [int(word[1]) for word in words if word[0] == "trigger"]
    passed = sorted(int(word[1]) for word in words if word[0] == "gate")
    assert triggered == list(range(1, last + 1))
    assert passed == triggered
