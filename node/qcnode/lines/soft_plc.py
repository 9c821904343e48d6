"""A PLC with a gate, in software: for the demo and the tests, and never at a real line.

`PlcProgram` is what a controls engineer would write, one `scan` at a time: it counts the
parts its camera eye sees, follows them by the encoder (`Tracker`), puts them right by the eye
before the gate, takes the node's results by the handshake, fires the gate, and checks that
what was turned away arrived (`Verifier`). A node that is silent for a second, or says that
its line does not run, has no say over any part any more. `SoftBelt` is the world under it: a
belt made of time, with parts that slip, fall off, get stuck or pass the camera's eye unseen.
`SoftPlc` polls the node's registers by Modbus TCP, as a PLC does.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pymodbus import ModbusException
from pymodbus.client import AsyncModbusTcpClient

from qcnode.domain import Action, Disposition, Trigger
from qcnode.track import RING, Default, Eye, Tracker, Verifier, ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from qcnode.lines.registers import RegisterMap
    from qcnode.lines.virtual import Belt, PartSource
    from qcnode.lines.world import World
    from qcnode.track import Crossing

RESULTS: Final = 32_768
WORD: Final = 0xFFFF
SILENT_NS: Final = 1_000_000_000
NS_PER_S: Final = 1_000_000_000
LAST_WORDS_NS: Final = 2 * NS_PER_S
SCAN_S: Final = 0.005
POLL_S: Final = 0.01
RETRY_S: Final = 0.2
ANSWER_S: Final = 1.0
EVENTS_MAX: Final = 10_000
LINE_DOWN: Final = 2
"""ErrorCode: the node's line does not run."""
ACK, BUFFER = 1, 2
ACTIONS: Final = {1: Action.ACCEPT, 2: Action.REJECT, 3: Action.DIVERT}
DISPOSITIONS: Final = {1: Disposition.RELEASE, 2: Disposition.SCRAP, 3: Disposition.REWORK}
ACTION_CODES: Final = {action: code for code, action in ACTIONS.items()}
WHY_CODES: Final = {
    None: 0,
    Default.UNSPOKEN: 1,
    Default.LATE: 2,
    Default.CROWDED: 3,
    Default.UNSEEN: 4,
    Default.STRAY: 5,
    Default.RELEASED: 6,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where things are along the belt, in pulses from the camera's eye on."""

    gate: int
    guard: int
    apart: int
    eye: int
    eye_window: int
    bin: int

    @classmethod
    def of(cls, belt: Belt) -> Geometry:
        """Return an eye 40 mm before the gate, and a bin 80 mm behind it."""
        mm = belt.pulses_per_mm
        return cls(
            gate=belt.gate_pulses,
            guard=belt.guard_pulses,
            apart=round(12 * mm),
            eye=belt.gate_pulses - round(40 * mm),
            eye_window=round(5 * mm),
            bin=belt.gate_pulses + round(80 * mm),
        )


@dataclass(frozen=True, slots=True)
class Edge:
    """One part at one sensor, with the encoder as it was latched there."""

    sensor: str
    position: int
    part: int


@dataclass(slots=True)
class PlcProgram:
    """The PLC's program: sensors and the node's registers in, gate and own registers out."""

    geometry: Geometry
    start: int
    seq: int = 0
    tracker: Tracker = field(init=False)
    verifier: Verifier = field(init=False)
    control: int = BUFFER
    unverified: int = 0
    taken: int = 0
    skipped: int = 0
    repeated: int = 0
    late: int = 0
    silences: int = 0
    defaults: Counter[Default] = field(default_factory=Counter)
    _position: int = 0
    _triggers: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=EVENTS_MAX))
    _crossings: deque[Crossing] = field(default_factory=lambda: deque(maxlen=EVENTS_MAX))
    _passages: int = 0
    _shown: dict[str, int] = field(default_factory=dict)
    _last_no: int | None = None
    _beat: int | None = None
    _beat_ns: int | None = None
    _telling: tuple[bool, bool] = (False, False)
    alive: bool = False
    """Whether the node has a say over parts."""

    def __post_init__(self) -> None:
        where = self.geometry
        self.tracker = Tracker(
            gate_pulses=where.gate,
            guard_pulses=where.guard,
            apart_pulses=where.apart,
            eye=Eye(before_gate_pulses=where.gate - where.eye, window_pulses=where.eye_window),
        )
        self.verifier = Verifier(within_pulses=where.bin - where.gate + 2 * where.eye_window)

    def scan(self, edges: Sequence[Edge], position: int, now_ns: int) -> list[Crossing]:
        """Do one cycle and return which parts met the gate in it, and what it did."""
        self._position = position
        for edge in edges:
            if edge.sensor == "camera":
                self.seq = (self.seq + 1) % RING
                self.tracker.add(_trigger(self.seq, edge.position))
                self._triggers.append((self.seq, edge.position))
            elif edge.sensor == "eye":
                self.tracker.see(edge.position)
            else:
                self.verifier.confirm(edge.position)
        self._watch(now_ns)
        crossings = self.tracker.pass_to(position)
        for crossing in crossings:
            self.verifier.expect(crossing, position=position)
            self._crossings.append(crossing)
            if crossing.default is not None:
                self.defaults[crossing.default] += 1
        self.unverified += len(self.verifier.pass_to(position))
        return crossings

    def written(self) -> dict[str, int]:
        """Return what to write, with the next trigger and passage in it; `told` when done."""
        seq, at = self.seq, self._shown.get("TriggerPos", 0)
        self._telling = (len(self._triggers) > 0, len(self._crossings) > 0)
        if self._triggers:
            seq, at = self._triggers[0]
        self._shown.update(
            Control=self.control,
            PlcHeartbeat=(self._shown.get("PlcHeartbeat", 0) + 1) & WORD,
            LineStart=self.start,
            EncoderPos=self._position,
            TriggerSeq=seq,
            TriggerPos=at,
            Unverified=min(WORD, self.unverified),
        )
        self._shown.setdefault("PassageNo", 0)
        if self._crossings:
            crossing = self._crossings[0]
            self._shown.update(
                PassageNo=(self._passages + 1) & WORD,
                PassageSeq=0 if crossing.trigger is None else crossing.trigger.seq,
                PassageAction=ACTION_CODES[crossing.action],
                PassageWhy=WHY_CODES[crossing.default],
            )
        return dict(self._shown)

    def told(self) -> None:
        """Take note that the node has what `written` gave; more may have come since."""
        trigger, crossing = self._telling
        self._telling = (False, False)
        if trigger:
            self._triggers.popleft()
        if crossing:
            self._crossings.popleft()
            self._passages = (self._passages + 1) & WORD

    def take(self, read: Mapping[str, int], now_ns: int) -> tuple[int, Disposition] | None:
        """Take the node's registers; return a part that was diverted before, and what of it."""
        if read["Heartbeat"] != self._beat:
            if self._beat is not None:
                self._beat_ns = now_ns
            self._beat = read["Heartbeat"]
        if read["ErrorCode"] == LINE_DOWN:
            self._beat_ns = None
        valid = bool(read["Status"] & 1 << 3)
        if not valid:
            self.control &= ~ACK
            return None
        if self.control & ACK:
            return None
        self.control |= ACK
        self._number(read["ResultNo"])
        if read["Disposition"]:
            return read["PartSeq"], DISPOSITIONS[read["Disposition"]]
        action = ACTIONS.get(read["Action"])
        if action is None or not self.alive:
            return None
        if not self.tracker.command(read["PartSeq"], action, position=self._position):
            self.late += 1
        return None

    def connected(self) -> None:
        """A connection was made: the node may have started anew, and its numbers with it."""
        self._last_no = None
        self._beat = self._beat_ns = None

    @property
    def idle(self) -> bool:
        """Whether the node knows all there is to know."""
        return not (self._triggers or self._crossings or len(self.tracker))

    def _watch(self, now_ns: int) -> None:
        """Let nobody speak for parts who is not there: a second without a beat is enough."""
        alive = self._beat_ns is not None and now_ns - self._beat_ns <= SILENT_NS
        if not alive:
            self.tracker.disown()
            self.silences += self.alive
        self.alive = alive

    def _number(self, number: int) -> None:
        self.taken += 1
        if self._last_no is not None:
            step = (number - self._last_no) % RESULTS
            self.repeated += step == 0
            self.skipped += step > 1
        self._last_no = number


@dataclass(slots=True)
class _Part:
    number: int
    camera: int
    slip: int
    seen: int = 0
    """How many of its sensors it has passed."""
    action: Action | None = None


class SoftBelt:
    """The world: parts on a belt made of time, its own record, and what goes wrong with them.

    `missed` parts pass the camera's eye unseen, `stuck` ones never arrive in the bin, and
    each slips by up to `slip_pulses` on its way.
    """

    def __init__(
        self,
        belt: Belt,
        *,
        parts: PartSource,
        count: int,
        seed: int,
        world: World | None,
        first: int = 0,
        slip_pulses: int = 0,
        missed: Collection[int] = (),
        stuck: Collection[int] = (),
    ) -> None:
        self._belt = belt
        self._geometry = Geometry.of(belt)
        self._parts = parts
        self._seed = seed
        self._world = world
        self._slip_pulses = slip_pulses
        self._missed = missed
        self._stuck = stuck
        self._left = count
        self._number = first
        self._first = first
        self._start_ns: int | None = None
        self._on_belt: deque[_Part] = deque()
        self._seqs: dict[int, int] = {}
        self._seen_by_camera = first
        self.gate: Counter[Action] = Counter()
        self.off_pulses: list[int] = []

    def position(self, now_ns: int) -> int:
        """Return the encoder."""
        moved_ns = 0 if self._start_ns is None else now_ns - self._start_ns
        pulses = moved_ns * self._belt.pulses_per_s // NS_PER_S
        return (self._belt.first_position + pulses) % RING

    def move(self, now_ns: int) -> list[Edge]:
        """Move on, and return what the sensors saw on the way, in order."""
        if self._start_ns is None:
            self._start_ns = now_ns
        moved = (now_ns - self._start_ns) * self._belt.pulses_per_s // NS_PER_S
        while self._left and self._due(self._number + 1) <= moved:
            self._number += 1
            self._left -= 1
            self._on_belt.append(self._new_part(self._number))
        found: list[tuple[int, Edge]] = []
        for part in self._on_belt:
            found += self._edges(part, moved)
        found.sort(key=lambda one: one[0])
        while self._on_belt and self._on_belt[0].seen == len(_SENSORS):
            self._on_belt.popleft()
        return [edge for _at, edge in found]

    def cross(self, crossing: Crossing, position: int) -> None:
        """The gate acts: the part that lies there goes where it points."""
        part = self._at_gate(crossing, position)
        if part is None:
            return
        part.action = crossing.action
        self.gate[crossing.action] += 1
        self.off_pulses.append(ahead(self._lies(part), position))
        if self._world is not None:
            how = "commanded" if crossing.commanded else "default"
            self._world.write("gate", str(part.number), crossing.action, how)

    def dispose(self, seq: int, disposition: Disposition) -> None:
        """Write down what becomes of a diverted part."""
        if self._world is not None:
            self._world.write("dispose", self._parts_id(seq), disposition)

    def finish(self) -> None:
        """Send no more parts."""
        self._left = 0

    @property
    def sent(self) -> int:
        """How many parts have come so far."""
        return self._number - self._first

    @property
    def empty(self) -> bool:
        """Whether every part that is to come has come and gone."""
        return not self._left and not self._on_belt

    def _due(self, number: int) -> int:
        jitter = np.random.default_rng([self._seed, number]).uniform(-1.0, 1.0)
        periods = number - self._first + jitter * self._belt.jitter
        return round(periods * self._belt.period_ms / 1000 * self._belt.pulses_per_s)

    def _new_part(self, number: int) -> _Part:
        rng = np.random.default_rng([self._seed, number, 1])
        slip = int(rng.integers(-self._slip_pulses, self._slip_pulses + 1))
        if self._world is not None:
            part = self._parts.part(number)
            assert part is not None  # noqa: S101  # there are as many as are sent
            self._world.write("trigger", str(number), *part)
        return _Part(number=number, camera=self._due(number), slip=slip)

    def _edges(self, part: _Part, moved: int) -> list[tuple[int, Edge]]:
        found = []
        while part.seen < len(_SENSORS):
            sensor = _SENSORS[part.seen]
            way = {"camera": 0, "eye": self._geometry.eye, "bin": self._geometry.bin}[sensor]
            at = part.camera + way + (part.slip if way else 0)
            if at > moved:
                break
            if sensor == "bin" and part.action is None and moved < at + self._belt.pulses_per_s:
                break  # The gate's own scan is still to come.
            part.seen += 1
            if self._is_seen(part, sensor):
                place = (self._belt.first_position + at) % RING
                found.append((at, Edge(sensor=sensor, position=place, part=part.number)))
        return found

    def _is_seen(self, part: _Part, sensor: str) -> bool:
        if sensor == "camera":
            if part.number in self._missed:
                return False
            self._seen_by_camera += 1
            self._seqs[self._seen_by_camera] = part.number
            return True
        if sensor == "bin":
            return part.action is not Action.ACCEPT and part.number not in self._stuck
        return True

    def _at_gate(self, crossing: Crossing, position: int) -> _Part | None:
        if crossing.trigger is not None:
            number = self._seqs.pop(crossing.trigger.seq, None)
            return next((one for one in self._on_belt if one.number == number), None)
        # A stray: it is the one nearest to the gate that no trigger had announced.
        unseen = [one for one in self._on_belt if one.action is None and one.number in self._missed]
        return min(unseen, key=lambda one: abs(ahead(self._lies(one), position)), default=None)

    def _lies(self, part: _Part) -> int:
        """Return where the encoder is when this part is at the gate."""
        way = part.camera + part.slip + self._geometry.gate
        return (self._belt.first_position + way) % RING

    def _parts_id(self, seq: int) -> str:
        part = self._parts.part(seq)
        return "-" if part is None else part[0]


_SENSORS: Final = ("camera", "eye", "bin")


class SoftPlc:
    """Runs program and belt against a node until the belt is empty, or for ever."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registers: RegisterMap,
        program: PlcProgram,
        belt: SoftBelt,
        clock_ns: Callable[[], int],
    ) -> None:
        self._host = host
        self._port = port
        self._registers = registers
        self._program = program
        self._belt = belt
        self._clock_ns = clock_ns
        self._inputs = registers.inputs()
        self._outputs = registers.outputs()
        self._ready = self._running = self._ended = False

    async def run(self, *, after: Callable[[], None] | None = None) -> None:
        """Wait for the node, then send every part and see it through.

        With `after`, which is called when the belt is empty, it goes on until cancelled: what
        becomes of diverted parts may still be said.
        """
        polling = asyncio.create_task(self._poll())
        told = False
        try:
            empty_ns: int | None = None
            while True:
                now_ns = self._clock_ns()
                if self._belt.empty:
                    empty_ns = empty_ns or now_ns
                    # Beyond that, nobody is there to be told.
                    if self._program.idle or now_ns - empty_ns > LAST_WORDS_NS:
                        if after is None:
                            break
                        if not told:
                            after()
                        told = True
                self._running = self._running or (self._ready and self._program.alive)
                # The first part waits for the node.
                edges = self._belt.move(now_ns) if self._running else []
                position = self._belt.position(now_ns)
                for crossing in self._program.scan(edges, position, now_ns):
                    self._belt.cross(crossing, position)
                await asyncio.sleep(SCAN_S)
        finally:
            # pymodbus may take a cancellation for a request that failed.
            self._ended = True
            polling.cancel()
            await asyncio.wait({polling}, timeout=2 * ANSWER_S)

    def report(self) -> dict[str, Any]:
        """Return what the PLC saw of the node and of its gate."""
        program, off = self._program, sorted(self._belt.off_pulses)
        return {
            "parts": self._belt.sent,
            "results": program.taken,
            "skipped": program.skipped,
            "repeated": program.repeated,
            "late": program.late,
            "gate": {action.value: self._belt.gate[action] for action in Action},
            "defaults": {why.value: count for why, count in sorted(program.defaults.items())},
            "unverified": program.unverified,
            "silences": program.silences,
            "gate_off_pulses": {"p50": off[len(off) // 2], "max": off[-1]} if off else None,
        }

    async def _poll(self) -> None:
        while not self._ended:
            client = AsyncModbusTcpClient(
                self._host, port=self._port, timeout=ANSWER_S, retries=0, reconnect_delay=0
            )
            try:
                if await client.connect():
                    self._program.connected()
                    while not self._ended:
                        await self._exchange(client)
                        await asyncio.sleep(POLL_S)
            except (ModbusException, OSError):
                pass  # The watchdog sees to the parts; another connection is tried.
            finally:
                client.close()
            await asyncio.sleep(RETRY_S)

    async def _exchange(self, client: AsyncModbusTcpClient) -> None:
        values = self._program.written()
        words: list[int] = []
        for register in self._inputs:
            value = values.get(register.name, 0)
            words += [value] if register.size == 1 else [value >> 16, value & WORD]
        answer = await client.write_registers(self._inputs[0].address, words)
        if answer.isError():
            raise ModbusException(f"the node refuses what the PLC writes: {answer}")
        self._program.told()
        first, last = self._outputs[0], self._outputs[-1]
        count = last.address + last.size - first.address
        answer = await client.read_holding_registers(first.address, count=count)
        if answer.isError():
            raise ModbusException(f"the node does not show its registers: {answer}")
        read = {}
        for register in self._outputs:
            at = register.address - first.address
            read[register.name] = answer.registers[at]
            if register.size > 1:
                read[register.name] = answer.registers[at] << 16 | answer.registers[at + 1]
        disposed = self._program.take(read, self._clock_ns())
        if disposed is not None:
            self._belt.dispose(*disposed)
        self._ready = read["ErrorCode"] == 0


def _trigger(seq: int, position: int) -> Trigger:
    return Trigger(seq=seq, part_id=str(seq), position=position, at_ns=0, deadline_ns=0)
