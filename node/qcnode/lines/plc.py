"""A line whose belt, camera trigger and gate are a PLC's, which polls the node by Modbus TCP.

The PLC counts the parts, follows them by its encoder and fires the gate; the node serves the
register map (`modbus.RegisterServer`), in a thread of its own that waits for nothing else.
What holds here:

- A part's action goes to the PLC when it is set, not when it is on record, and once.
- `act` says no when the PLC is silent, when it takes no results, and when by its own encoder
  the part is nearer to the gate than the guard. Whether the gate then did as it was told
  only the PLC knows, and says so for each part (`Passage`).
- The line's count is kept in a small file through restarts of the node; a PLC that begins
  to count anew is gone on from, so no number comes twice.
- `stop` tells the PLC that nobody speaks for its parts any more (ErrorCode 2), and it forgets
  every action it was given; a node that dies is found out by its heartbeat.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import structlog

from qcnode.domain import Action, Disposition, Passage, Trigger
from qcnode.errors import LineUnavailableError
from qcnode.lines.handshake import BUFFERS, Result
from qcnode.lines.modbus import BEAT_S, RegisterServer
from qcnode.track import GATE_DEFAULT, RING, Default, ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from qcnode.health import HealthBoard
    from qcnode.lines.handshake import NodeStatus
    from qcnode.lines.registers import RegisterMap

log = structlog.get_logger()

COMPONENT: Final = "plc"
GATE: Final = "gate"
WAITING_MAX: Final = 64
"""Triggers the station has not fetched; beyond this they are counted and pass unjudged."""
ON_BELT_MAX: Final = 10_000
PASSAGES_MAX: Final = 100_000
JUMP_MAX: Final = 10_000
"""A count that leaps further was not counted: it is a PLC that began anew without a word."""
IDLE_S: Final = 0.05
GOODBYE_LOOKS: Final = 30
GOODBYE_LOOK_S: Final = 0.01
RETRY_S: Final = 5.0
END_S: Final = 2.0
NS_PER_S: Final = 1_000_000_000
PASSAGES: Final = 1 << 16
ACTION_OF: Final = {1: Action.ACCEPT, 2: Action.REJECT, 3: Action.DIVERT}
WHY: Final = {
    1: Default.UNSPOKEN,
    2: Default.LATE,
    3: Default.CROWDED,
    4: Default.UNSEEN,
    5: Default.STRAY,
    6: Default.RELEASED,
}
"""The PLC's words for it, as qc_gate.h has them; 0 is none: the gate did as it was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The way from camera to gate, in pulses of the PLC's encoder, and how fast it is gone."""

    gate_pulses: int
    guard_pulses: int
    pulses_per_s: int

    def __post_init__(self) -> None:
        if not 0 <= self.guard_pulses < self.gate_pulses < RING // 2 or self.pulses_per_s <= 0:
            raise ValueError(
                f"the guard must lie between camera and gate, and the belt run: {self}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Count:
    """How the PLC's count and ours hang together; `start` is the PLC's own beginning."""

    start: int
    theirs: int
    ours: int


class PlcLine:
    """The node's side. `memory` is the file of the count; without it, `counted` came before.

    The server starts with the first call of `last_trigger`, which waits for the PLC's first
    word: until then nobody knows what the line has counted.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registers: RegisterMap,
        way: Way,
        memory: Path,
        counted: Callable[[], int],
        status: Callable[[], NodeStatus],
        config_checksum: int,
        health: HealthBoard,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        clock_ns: Callable[[], int],
    ) -> None:
        self._way = way
        self._memory = memory
        self._counted = counted
        self._status = status
        self._health = health
        self._now = now
        self._new_id = new_id
        self._clock_ns = clock_ns
        self._server = RegisterServer(
            host,
            port,
            registers=registers,
            status=self._shown_status,
            config_checksum=config_checksum,
            monotonic_s=lambda: clock_ns() / NS_PER_S,
            wrote=self._heard,
        )
        self._where = f"{host}:{port}"
        self._news = threading.Condition(threading.RLock())
        self._count: _Count | None = None
        self._position = 0
        self._passage_no: int | None = None
        self._unverified = 0
        self._on_belt: dict[int, int] = {}
        self._waiting: deque[Trigger] = deque()
        self._passages: deque[Passage] = deque(maxlen=PASSAGES_MAX)
        self._defaults: Counter[Default] = Counter()
        self._untold = 0
        self._trouble: str | None = None
        self._ending = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._halt = asyncio.Event()
        self._stopped = False
        self._finishing = False
        self._failure: LineUnavailableError | None = None

    # -- the line --------------------------------------------------------------

    def last_trigger(self) -> int:
        """Return the line's count; before the PLC's first word it is waited for."""
        self._start()
        with self._news:
            while self._count is None and not self._stopped:
                self._news.wait(IDLE_S)
            if self._count is not None:
                return self._count.ours
        kept = self._kept()
        return self._counted() if kept is None else kept.ours

    def triggers(self) -> Iterator[Trigger]:
        """Yield each part the PLC saw at the camera, until `stop`."""
        self._start()
        while True:
            with self._news:
                while not self._waiting and not self._over():
                    self._news.wait(IDLE_S)
                if self._failure is not None:
                    raise self._failure
                if not self._waiting:
                    return
                trigger = self._waiting.popleft()
            yield trigger

    def act(self, trigger: Trigger, action: Action) -> bool:
        """Hand the part's action to the PLC; False when it cannot be there in time."""
        with self._news:
            gate = self._on_belt.get(trigger.seq)
            if gate is None or self._stopped or self._count is None or self._server.plc_silent():
                return False
            if ahead(self._position, gate) <= self._way.guard_pulses:
                return False
            return self._server.put(
                Result(
                    seq=self._their_seq(self._count, trigger.seq),
                    verdict=None,
                    action=action,
                    latency_us=(self._clock_ns() - trigger.at_ns) // 1000,
                )
            )

    def passages(self) -> Sequence[Passage]:
        """Return what the PLC said of parts at the gate since the last call."""
        with self._news:
            passed = tuple(self._passages)
            self._passages.clear()
            return passed

    def dispose(self, part_id: str, disposition: Disposition) -> None:
        """Tell the PLC what becomes of a diverted part; results of parts under way go first."""
        with self._news:
            seq = seq_of(part_id)
            if seq is None or self._count is None or self._server.plc_silent():
                raise LineUnavailableError(f"the PLC cannot be told of part {part_id}: is it on?")
            if self._server.shown().buffers_left <= BUFFERS // 2:
                raise LineUnavailableError("the PLC is behind with its results: told again later")
            self._server.put(
                Result(
                    seq=self._their_seq(self._count, seq),
                    verdict=None,
                    action=None,
                    latency_us=0,
                    disposition=disposition,
                )
            )

    def finish(self) -> None:
        """Expect no more parts; `triggers` ends when those on the belt have met the gate."""
        with self._news:
            self._finishing = True
            self._news.notify_all()

    def stop(self) -> None:
        """Let go of the gate: the PLC is told, and parts under way take its default."""
        with self._ending:  # Who stops it second finds the belt empty, too.
            with self._news:
                if self._stopped:
                    return
                self._stopped = True
                self._server.clear()
                self._news.notify_all()
                self._wait_until_told()
                self._forget_belt()
            if self._loop is not None and self._thread is not None:
                self._loop.call_soon_threadsafe(self._halt.set)
                self._thread.join(END_S)

    def defaults(self) -> Mapping[Default, int]:
        """Return how many parts met the gate's default, by the PLC's reasons."""
        with self._news:
            return dict(self._defaults)

    # -- the thread ------------------------------------------------------------

    def _start(self) -> None:
        with self._news:
            if self._thread is not None or self._stopped:
                return
            self._tell_health()
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._run, name="plc", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        assert self._loop is not None  # noqa: S101  # made before this thread
        try:
            self._loop.run_until_complete(self._serve())
        except LineUnavailableError as error:
            with self._news:
                self._failure, self._stopped = error, True
                self._news.notify_all()
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        """Serve until `stop`; an address in use is tried again."""
        serving = asyncio.create_task(self._keep_listening())
        try:
            while not self._halt.is_set():
                if serving.done():
                    serving.result()
                self._tell_health()
                try:
                    async with asyncio.timeout(BEAT_S):
                        await self._halt.wait()
                except TimeoutError:
                    continue
        finally:
            serving.cancel()
            await asyncio.wait({serving}, timeout=END_S)

    async def _keep_listening(self) -> None:
        while True:
            try:
                await self._server.run(lambda: None)
            except LineUnavailableError as error:
                self._trouble = str(error)
                self._tell_health()
                await asyncio.sleep(RETRY_S)
                self._trouble = None

    def _tell_health(self) -> None:
        if self._stopped:
            return
        if self._server.plc_silent():
            words = self._trouble or (
                f"the PLC is silent: is it on, and does it write to {self._where}?"
            )
            self._health.report(COMPONENT, ok=False, words=words, needed=True)
        else:
            self._health.report(COMPONENT, ok=True, words=self._words(), needed=True)
        arrived = self._unverified == 0
        words = (
            "parts turned away arrive"
            if arrived
            else (
                f"reject not verified: {self._unverified} parts turned away did not arrive; look"
                " for them, then set Unverified back at the PLC"
            )
        )
        self._health.report(GATE, ok=arrived, words=words)

    def _words(self) -> str:
        defaults = [f"{count} {why}" for why, count in sorted(self._defaults.items())]
        if self._untold:
            defaults.append(f"{self._untold} never told of")
        return f"polls {self._where}; at the default: {', '.join(defaults) or 'none'}"

    def _shown_status(self) -> NodeStatus:
        status = self._status()
        return replace(status, running=status.running and not self._stopped)

    # -- what the PLC writes ---------------------------------------------------

    def _heard(self, inputs: Mapping[str, int]) -> None:
        if inputs["LineStart"] == 0:
            return  # It has not said yet how it counts.
        with self._news:
            self._position = inputs["EncoderPos"]
            try:
                self._take_count(inputs)
            except LineUnavailableError as error:
                self._failure, self._stopped = error, True
            self._take_passage(inputs)
            self._unverified = inputs["Unverified"]
            self._news.notify_all()

    def _take_count(self, inputs: Mapping[str, int]) -> None:
        start, theirs = inputs["LineStart"], inputs["TriggerSeq"]
        count = self._count
        if count is None or count.start != start:
            if count is not None:
                log.warning("the PLC counts anew", start=start, counted=count.ours)
                self._forget_belt()
            self._count = self._joined(count or self._kept(), start, theirs)
            self._keep(self._count)
            return
        fresh = (theirs - count.theirs) % RING
        if fresh == 0:
            return
        if fresh > JUMP_MAX:
            log.warning("the PLC's count leaps", by=fresh, counted=count.ours)
            self._forget_belt()
            fresh = 1
        self._count = _Count(start=start, theirs=theirs, ours=count.ours + fresh)
        self._keep(self._count)
        self._pass_camera(self._count.ours, inputs["TriggerPos"])

    def _joined(self, known: _Count | None, start: int, theirs: int) -> _Count:
        """Return how their count goes on from ours."""
        if known is None:
            return _Count(start=start, theirs=theirs, ours=self._counted())
        missed = (theirs - known.theirs) % RING if known.start == start else theirs
        if missed > JUMP_MAX:
            log.warning("the PLC's count is unknown to us", theirs=theirs, counted=known.ours)
            missed = 0
        return _Count(start=start, theirs=theirs, ours=known.ours + missed)

    def _pass_camera(self, seq: int, position: int) -> None:
        gate = (position + self._way.gate_pulses) % RING
        at_ns = self._clock_ns()
        left = max(0, ahead(self._position, gate) - self._way.guard_pulses)
        trigger = Trigger(
            seq=seq,
            part_id=part_id_of(seq),
            position=position,
            at_ns=at_ns,
            deadline_ns=at_ns + left * NS_PER_S // self._way.pulses_per_s,
        )
        self._on_belt[seq] = gate
        if len(self._on_belt) > ON_BELT_MAX:
            del self._on_belt[next(iter(self._on_belt))]
        if len(self._waiting) < WAITING_MAX and not self._stopped:
            self._waiting.append(trigger)

    def _take_passage(self, inputs: Mapping[str, int]) -> None:
        number = inputs["PassageNo"]
        last, self._passage_no = self._passage_no, number
        if last is None or number == last or self._count is None:
            return
        self._untold += (number - last - 1) % PASSAGES
        why = WHY.get(inputs["PassageWhy"])
        if why is not None:
            self._defaults[why] += 1
        theirs = inputs["PassageSeq"]
        if theirs == 0:
            log.warning("a part at the gate that no trigger had announced")
            return
        behind = (self._count.theirs - theirs) % RING
        action = ACTION_OF.get(inputs["PassageAction"])
        if behind >= self._count.ours or action is None:
            log.warning("the PLC speaks of a part that is none", seq=theirs)
            return
        seq = self._count.ours - behind
        self._on_belt.pop(seq, None)
        self._meet_gate(seq, action, commanded=inputs["PassageWhy"] == 0)

    def _meet_gate(self, seq: int, action: Action, *, commanded: bool) -> None:
        self._passages.append(
            Passage(
                id=self._new_id(),
                trigger_seq=seq,
                part_id=part_id_of(seq),
                action=action,
                commanded=commanded,
                at=self._now(),
            )
        )

    # -- helpers ---------------------------------------------------------------

    def _over(self) -> bool:
        return self._stopped or (self._finishing and not self._on_belt)

    @staticmethod
    def _their_seq(count: _Count, seq: int) -> int:
        return (count.theirs - (count.ours - seq)) % RING

    def _wait_until_told(self) -> None:
        """Wait until the PLC has read that the line does not run, if it still reads."""
        if self._thread is None or self._server.plc_silent():
            return
        before = self._server.reads
        for _ in range(GOODBYE_LOOKS):
            if self._server.reads > before:
                return
            self._news.wait(GOODBYE_LOOK_S)

    def _forget_belt(self) -> None:
        for seq in self._on_belt:
            self._defaults[Default.RELEASED] += 1
            self._meet_gate(seq, GATE_DEFAULT, commanded=False)
        self._on_belt.clear()

    def _kept(self) -> _Count | None:
        try:
            start, theirs, ours = (int(word) for word in self._memory.read_text("ascii").split())
        except FileNotFoundError:
            return None
        except ValueError:
            log.warning("the line's count cannot be read, so the journal's is taken")
            return None
        except OSError as error:
            raise LineUnavailableError(f"{self._memory}: cannot be read ({error})") from error
        # A power cut may have lost the last few; the journal has them.
        behind = max(0, self._counted() - ours)
        return _Count(start=start, theirs=(theirs + behind) % RING, ours=ours + behind)

    def _keep(self, count: _Count) -> None:
        """Note the count; not through a power cut, after which the journal's is taken."""
        fresh = self._memory.with_name(f"{self._memory.name}.new")
        try:
            fresh.write_text(f"{count.start} {count.theirs} {count.ours}\n", "ascii")
            fresh.replace(self._memory)
        except OSError as error:
            raise LineUnavailableError(
                f"{self._memory}: the line's count cannot be kept ({error.strerror}): make room or"
                " fix its rights"
            ) from error


def part_id_of(seq: int) -> str:
    """Return the id of a part that is known by its number alone."""
    return f"P{seq:07d}"


def seq_of(part_id: str) -> int | None:
    """Return the number behind an id of `part_id_of`; None if it is none."""
    number = part_id[1:]
    return int(number) if part_id[:1] == "P" and number.isdecimal() else None
