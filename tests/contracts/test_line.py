"""What every line keeps to, the fake one included."""

import time

import pytest
from pymodbus.client import ModbusTcpClient

from qcnode.ahead import Ahead
from qcnode.domain import Action, Disposition
from qcnode.errors import CameraError
from qcnode.health import HealthBoard
from qcnode.lines.handshake import NodeStatus
from qcnode.lines.plc import PlcLine, Way
from qcnode.lines.registers import shipped
from qcnode.lines.soft_plc import Geometry, PlcProgram, SoftBelt
from qcnode.lines.virtual import Belt, UnknownParts, VirtualLine
from tests.fakes import FakeClock, FakeLine, make_ids

PARTS = 4


class FakeBench:
    """The fake line, and how time goes by for it."""

    def __init__(self, _tmp_path):
        self.line = FakeLine(FakeClock(), parts=PARTS)
        self.triggers = self.line.triggers()

    def next_trigger(self):
        return next(self.triggers)

    def roll(self):
        self.line.roll()


class VirtualBench:
    """The virtual line, moved by hand: a part every 100 ms, the gate 500 ms on."""

    def __init__(self, tmp_path):
        self._clock = FakeClock()
        self.line = VirtualLine(
            parts=UnknownParts(),
            belt=Belt(period_ms=100.0, speed_mm_per_s=500.0, gate_mm=250.0, guard_ms=30.0),
            world=tmp_path / "world.log",
            count=PARTS,
            seed=1,
            now=self._clock.now,
            new_id=make_ids(),
            clock_ns=self._clock.ns,
            by_hand=True,
        )
        self.triggers = self.line.triggers()
        self.line.step(self._clock.ns())
        self._clock.advance(20)

    def next_trigger(self):
        self._clock.advance(100)
        self.line.step(self._clock.ns())
        return next(self.triggers)

    def roll(self):
        self._clock.advance(501)
        self.line.step(self._clock.ns())


class AheadBench(VirtualBench):
    """The virtual line with somebody between who fetches its triggers early."""

    def __init__(self, tmp_path):
        super().__init__(tmp_path)
        self.virtual, self.line = self.line, Ahead(self.line, NoCamera())
        self.triggers = self.line.triggers()

    def next_trigger(self):
        self._clock.advance(100)
        self.virtual.step(self._clock.ns())
        return next(self.triggers)

    def roll(self):
        self._clock.advance(501)
        self.virtual.step(self._clock.ns())


class PlcBench:
    """A PLC's line: its program and its wire by hand, a part every 100 ms, the gate 500 ms on."""

    def __init__(self, tmp_path, port):
        belt = Belt(period_ms=100.0, speed_mm_per_s=500.0, gate_mm=250.0, guard_ms=30.0)
        self._clock = FakeClock()
        self.line = PlcLine(
            "127.0.0.1",
            port,
            registers=shipped(),
            way=Way(
                gate_pulses=belt.gate_pulses,
                guard_pulses=belt.guard_pulses,
                pulses_per_s=belt.pulses_per_s,
            ),
            memory=tmp_path / "line.count",
            counted=lambda: 0,
            status=lambda: NodeStatus(ready=True, running=True, inspecting=False),
            config_checksum=1,
            health=HealthBoard(self._clock.now),
            now=self._clock.now,
            new_id=make_ids(),
            clock_ns=self._clock.ns,
        )
        self._belt = SoftBelt(belt, parts=UnknownParts(), count=PARTS, seed=1, world=None)
        self._program = PlcProgram(geometry=Geometry.of(belt), start=1)
        self.line._start()
        self._wire = Wire(port)
        # The node beats each half second of the real clock; ours stands meanwhile.
        deadline = time.monotonic() + 20
        while not self._program.alive:
            assert time.monotonic() < deadline, "the PLC never heard the node"
            self._exchange()
            self._program.scan([], 0, self._clock.ns())
            time.sleep(0.01)
        self._scan()
        self._clock.advance(20)
        self.triggers = self.line.triggers()

    def next_trigger(self):
        self._clock.advance(100)
        self._scan()
        return next(self.triggers)

    def roll(self):
        for _ in range(11):  # A second in which the node's heart is heard.
            self._exchange()
        for _ in range(6):
            self._clock.advance(100)
            self._scan()

    def _scan(self):
        edges, position = self._belt.move(self._clock.ns()), self._belt.position(self._clock.ns())
        self._program._beat_ns = self._clock.ns()  # its own clock is not the node's
        for crossing in self._program.scan(edges, position, self._clock.ns()):
            self._belt.cross(crossing, position)
        self._exchange()
        self._exchange()

    def _exchange(self):
        self._wire.write(self._program.written())
        self._program.told()
        self._program.take(self._wire.read(), self._clock.ns())

    def close(self):
        self._wire.close()
        self.line.stop()


class Wire:
    """Modbus TCP, as a PLC speaks it."""

    def __init__(self, port):
        self._client = ModbusTcpClient("127.0.0.1", port=port, timeout=5)
        deadline = time.monotonic() + 20
        while not self._client.connect():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def write(self, values):
        words = []
        for register in shipped().inputs():
            value = values.get(register.name, 0)
            words += [value] if register.size == 1 else [value >> 16, value & 0xFFFF]
        assert not self._client.write_registers(0, words).isError()

    def read(self):
        answer = self._client.read_holding_registers(100, count=14)
        found = {}
        for register in shipped().outputs():
            at = register.address - 100
            found[register.name] = answer.registers[at]
            if register.size == 2:
                found[register.name] = answer.registers[at] << 16 | answer.registers[at + 1]
        return found

    def close(self):
        self._client.close()


class NoCamera:
    """Sees nothing."""

    def grab(self, trigger):
        raise CameraError(f"part {trigger.part_id} is not looked at")

    def close(self):
        """Nothing is held."""


BENCHES = {"fake": FakeBench, "virtual": VirtualBench, "ahead": AheadBench}


@pytest.fixture(params=[*BENCHES, "plc"])
def bench(request, tmp_path, free_port):
    if request.param != "plc":
        yield BENCHES[request.param](tmp_path)
        return
    bench = PlcBench(tmp_path, free_port())
    yield bench
    bench.close()


def test_triggers_are_counted_from_one_without_gaps_and_parts_have_their_own_ids(bench):
    assert bench.line.last_trigger() == 0
    first, second = bench.next_trigger(), bench.next_trigger()

    assert (first.seq, second.seq) == (1, 2)
    assert first.part_id != second.part_id
    assert first.at_ns < second.at_ns
    assert first.at_ns < first.deadline_ns
    assert bench.line.last_trigger() == 2


@pytest.mark.parametrize("action", list(Action))
def test_the_gate_does_what_was_set_in_time(bench, action):
    trigger = bench.next_trigger()
    assert bench.line.act(trigger, action)
    bench.roll()

    passage = bench.line.passages()[0]
    assert (passage.trigger_seq, passage.part_id) == (trigger.seq, trigger.part_id)
    assert (passage.action, passage.commanded) == (action, True)


def test_the_last_action_set_in_time_stands(bench):
    trigger = bench.next_trigger()
    assert bench.line.act(trigger, Action.ACCEPT)
    assert bench.line.act(trigger, Action.REJECT)
    bench.roll()

    assert bench.line.passages()[0].action is Action.REJECT


def test_a_part_nobody_acted_on_is_diverted_and_nothing_changes_that_later(bench):
    trigger = bench.next_trigger()
    bench.roll()

    assert not bench.line.act(trigger, Action.ACCEPT)
    passage = bench.line.passages()[0]
    assert (passage.action, passage.commanded) == (Action.DIVERT, False)


def test_a_passage_is_told_once(bench):
    bench.next_trigger()
    bench.roll()

    assert [passage.trigger_seq for passage in bench.line.passages()][:1] == [1]
    assert 1 not in [passage.trigger_seq for passage in bench.line.passages()]


def test_a_stopped_line_ends_its_triggers_and_its_gate_is_on_the_default(bench):
    trigger = bench.next_trigger()
    assert bench.line.act(trigger, Action.ACCEPT)
    bench.line.stop()
    bench.line.stop()

    assert not bench.line.act(trigger, Action.ACCEPT)
    passage = bench.line.passages()[0]
    assert (passage.action, passage.commanded) == (Action.DIVERT, False)
    assert list(bench.triggers) == []


def test_a_disposition_is_taken(bench):
    bench.line.dispose(bench.next_trigger().part_id, Disposition.RELEASE)
