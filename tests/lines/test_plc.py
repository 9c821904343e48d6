"""A PLC that has belt and gate: its parts are sorted, and whatever fails, its gate diverts."""

import asyncio
import contextlib
import threading
import time
from collections import Counter
from datetime import UTC, datetime

import pytest

from qcnode.domain import Action, FaultKind, Limits, Verdict
from qcnode.health import HealthBoard
from qcnode.lines.handshake import NodeStatus
from qcnode.lines.plc import PlcLine, Way
from qcnode.lines.registers import shipped
from qcnode.lines.soft_plc import Geometry, PlcProgram, SoftBelt, SoftPlc
from qcnode.lines.virtual import Belt, UnknownParts
from qcnode.lines.world import World, read_fates
from qcnode.station import Station
from qcnode.track import Default
from tests.fakes import FakeCamera, FakeClock, FakeJournal, FakeModel, make_ids

BELT = Belt(period_ms=60.0, speed_mm_per_s=800.0, gate_mm=250.0, guard_ms=30.0)
WAIT_S = 30


def now():
    return datetime.now(UTC)


async def until(holds):
    while not holds():  # noqa: ASYNC110  # what is waited for sets no event
        await asyncio.sleep(0.01)


class Corner:
    """A node's station, a PLC on the same wire, and the world under it."""

    def __init__(self, tmp_path, port, *, parts, scores=(), first=0, **world):
        self.port, self.folder = port, tmp_path
        self.health, self.journal = HealthBoard(now), FakeJournal()
        self.running = True
        self.line = PlcLine(
            "127.0.0.1",
            port,
            registers=shipped(),
            way=Way(
                gate_pulses=BELT.gate_pulses,
                guard_pulses=BELT.guard_pulses,
                pulses_per_s=BELT.pulses_per_s,
            ),
            memory=tmp_path / "line.count",
            counted=lambda: 0,
            status=lambda: NodeStatus(ready=True, running=self.running, inspecting=False),
            config_checksum=1,
            health=self.health,
            now=now,
            new_id=make_ids("pass"),
            clock_ns=time.monotonic_ns,
        )
        self.camera = FakeCamera(FakeClock())
        self.station = Station(
            camera=self.camera,
            model=FakeModel(scores),
            line=self.line,
            journal=self.journal,
            limits=Limits(accept_below=0.3, reject_from=0.7),
            failsafe=Action.DIVERT,
            health=self.health,
            now=now,
            new_id=make_ids(),
            clock_ns=time.monotonic_ns,
        )
        self.belt = SoftBelt(
            BELT,
            parts=UnknownParts(),
            count=parts,
            seed=1,
            world=World(tmp_path / "world.log"),
            first=first,
            slip_pulses=60,
            **world,
        )
        self.program = PlcProgram(geometry=Geometry.of(BELT), start=7, seq=first)
        self.plc = SoftPlc(
            "127.0.0.1",
            port,
            registers=shipped(),
            program=self.program,
            belt=self.belt,
            clock_ns=time.monotonic_ns,
        )

    async def run(self, meanwhile=None):
        """Send every part, and let the station come to its end."""
        self.station.start()
        other = None if meanwhile is None else asyncio.create_task(meanwhile(self))
        try:
            async with asyncio.timeout(WAIT_S):
                await self.plc.run()
                if other is not None:
                    await other
        finally:
            self.line.finish()
            await asyncio.to_thread(self.station.join, 5)
            self.line.stop()

    def passages(self):
        return {one.trigger_seq: one for one in self.journal.passages()}


@pytest.fixture
def corner(tmp_path, free_port):
    made = []

    def make(**options):
        made.append(Corner(tmp_path, free_port(), **options))
        return made[-1]

    yield make
    for one in made:
        one.line.stop()


async def test_each_part_leaves_by_the_gate_as_it_was_judged(corner):
    scores = [0.1, 0.9, 0.5, 0.1, 0.9] * 6
    one = corner(parts=30, scores=scores)
    await one.run()

    wanted = {0.1: Action.ACCEPT, 0.9: Action.REJECT, 0.5: Action.DIVERT}
    judged = {each.trigger_seq: each.action for each in one.journal.inspections()}
    assert judged == {seq: wanted[score] for seq, score in enumerate(scores, start=1)}
    fates = read_fates(one.folder / "world.log")
    passages = one.passages()
    assert sorted(passages) == [fate.seq for fate in fates] == list(range(1, 31))
    for fate in fates:
        said = passages[fate.seq]
        assert said.action is fate.action
        if said.commanded:
            assert said.action is judged[fate.seq]
    # A machine with other work may be late for one; none went where it should not.
    assert sum(said.commanded for said in passages.values()) >= 20
    report = one.plc.report()
    assert (report["skipped"], report["repeated"]) == (0, 0)
    assert report["results"] == 30
    assert one.program.unverified == 0


async def test_a_node_that_dies_has_no_say_over_parts_under_way(corner):
    one = corner(parts=60)

    async def die(corner):
        await until(lambda: len(corner.journal.inspections()) >= 10)
        corner.running = False  # the heartbeat stands, as when the line loop hangs

    await one.run(die)

    fates = read_fates(one.folder / "world.log")
    assert {fate.action for fate in fates[-5:]} == {Action.DIVERT}
    assert fates[2].action is Action.ACCEPT
    assert one.program.silences == 1


async def test_a_line_that_was_stopped_is_believed_at_once(corner):
    one = corner(parts=40)

    async def stop(corner):
        await until(lambda: len(corner.journal.inspections()) >= 10)
        await asyncio.to_thread(corner.station.stop)

    await one.run(stop)

    passages = one.passages()
    for fate in read_fates(one.folder / "world.log"):
        if fate.seq in passages:
            assert fate.action is passages[fate.seq].action, fate
    assert one.journal.passages()[-1].action is Action.DIVERT


async def test_a_part_that_did_not_arrive_is_an_alarm_until_somebody_sets_it_back(corner):
    one = corner(parts=12, scores=[0.9] * 12, stuck=(4,))
    seen = []

    async def watch(corner):
        await until(lambda: corner.program.unverified)
        await until(lambda: any(h.component == "gate" and not h.ok for h in corner.health.all()))
        seen.extend(h.words for h in corner.health.all() if h.component == "gate")

    await one.run(watch)

    assert one.program.unverified == 1
    assert "reject not verified: 1 part" in seen[0]


async def test_a_part_the_trigger_missed_is_a_stray_and_diverted(corner):
    one = corner(parts=20, missed=(7,))
    await one.run()

    assert one.program.defaults[Default.STRAY] == 1
    by_seq = {fate.seq: fate.action for fate in read_fates(one.folder / "world.log")}
    assert by_seq[7] is Action.DIVERT
    assert one.station.outcomes()[Verdict.OK] >= 15
    assert sum(one.station.outcomes().values()) == 19  # the PLC counted nineteen


async def test_a_verdict_the_gate_took_no_more_is_on_record_as_late(corner):
    one = corner(parts=12)
    grab = one.camera.grab

    def slow(trigger):
        if trigger.seq == 5:
            time.sleep(0.3)
        return grab(trigger)

    one.camera.grab = slow
    await one.run()

    faults = {fault.trigger_seq: fault.kind for fault in one.journal.faults()}
    assert faults[5] is FaultKind.LATE
    assert not one.passages()[5].commanded
    assert one.passages()[5].action is Action.DIVERT


async def test_the_count_goes_on_when_the_node_starts_again(corner):
    one = corner(parts=10)
    await one.run()
    other = corner(parts=5, first=10)
    other.journal = one.journal
    other.station._journal = one.journal
    other.program.seq = 13  # three parts went by while there was no node
    await other.run()

    assert [fault.kind for fault in one.journal.faults() if fault.trigger_seq in {11, 12, 13}] == [
        FaultKind.INTERRUPTED
    ] * 3
    assert one.journal.missing_triggers(18) == []
    assert (
        Counter(record.trigger_seq for record in one.journal.outcomes()).most_common(1)[0][1] == 1
    )


async def test_a_plc_that_counts_anew_repeats_no_number(corner):
    one = corner(parts=10)
    await one.run()
    other = corner(parts=5)
    other.journal = other.station._journal = one.journal
    other.program.start = 8
    await other.run()

    assert one.journal.missing_triggers(15) == []
    assert len(one.journal.outcomes()) == 15


def test_a_node_without_its_plc_says_so_and_can_be_stopped(tmp_path, free_port):
    one = Corner(tmp_path, free_port(), parts=1)
    one.station.start()
    try:
        deadline = time.monotonic() + WAIT_S
        while not any(h.component == "plc" for h in one.health.all()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "the PLC is silent" in next(
            h.words for h in one.health.all() if h.component == "plc"
        )
        assert not one.health.ready()
    finally:
        one.station.stop()
    assert one.station.join(5)
    assert not [thread for thread in threading.enumerate() if thread.name == "plc"]
    with contextlib.suppress(FileNotFoundError):
        assert not (tmp_path / "line.count").read_text()
