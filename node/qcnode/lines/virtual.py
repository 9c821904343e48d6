"""A belt with an encoder, a trigger at the camera and a gate, made of nothing but time.

The belt's place is a function of the monotonic clock alone, so what happens never
depends on which thread ran when: its own thread only finds out. The world keeps its own
record, written event by event so that it survives a kill of the node: it is the line's
counter of triggers, and the witness against which the node's books are checked. Without
the node the gate is de-energised: parts that were under way when it died have taken the
gate's default.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from qcnode.domain import Passage, Trigger
from qcnode.errors import LineUnavailableError
from qcnode.lines.world import World
from qcnode.track import GATE_DEFAULT, RING, Tracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from qcnode.domain import Action, Disposition
    from qcnode.track import Crossing

WAITING_MAX = 64
"""Triggers the node has not fetched; beyond this they are counted and pass unjudged."""
PASSAGES_MAX = 100_000
IDLE_S = 0.05
NS_PER_S = 1_000_000_000


class PartSource(Protocol):
    """What comes down the belt. The camera is given the same part by the same number."""

    def part(self, seq: int) -> tuple[str, str] | None:
        """Return id and truth (one word) of the part with this number; None when no more come."""


class UnknownParts:
    """Parts that somebody else puts before the camera: they have ids and no known truth."""

    def part(self, seq: int) -> tuple[str, str]:
        """Return the part's id."""
        return f"P{seq:07d}", "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Belt:
    """How the belt runs, and where the gate is. `jitter` is a share of the period.

    The encoder starts just before it wraps, as it would sooner or later anyway.
    """

    period_ms: float
    speed_mm_per_s: float
    gate_mm: float
    guard_ms: float
    jitter: float = 0.15
    pulses_per_mm: float = 20.0
    first_position: int = RING - 50_000

    def __post_init__(self) -> None:
        if not 0.0 <= self.jitter < 0.5:  # noqa: PLR2004  # beyond half a period parts overtake
            raise ValueError(f"the jitter is a share below a half of the period: {self}")

    @property
    def pulses_per_s(self) -> int:
        """Return how fast the encoder counts."""
        return max(1, round(self.speed_mm_per_s * self.pulses_per_mm))

    @property
    def gate_pulses(self) -> int:
        """Return the way from camera to gate."""
        return round(self.gate_mm * self.pulses_per_mm)

    @property
    def guard_pulses(self) -> int:
        """Return the part of that way in which the gate can no longer be set."""
        return round(self.guard_ms * self.pulses_per_s / 1000)


class VirtualLine:
    """The belt, its gate and the parts on it; `count` is how many parts to send, None is no end.

    `world` is the file of the world's own record. A test moves the belt `by_hand`, with
    `step`; otherwise it starts with the first call of `triggers`.
    """

    def __init__(
        self,
        *,
        parts: PartSource,
        belt: Belt,
        world: Path,
        count: int | None,
        seed: int,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        clock_ns: Callable[[], int] = time.monotonic_ns,
        by_hand: bool = False,
    ) -> None:
        self._parts = parts
        self._belt = belt
        self._seed = seed
        self._now = now
        self._new_id = new_id
        self._clock_ns = clock_ns
        self._tracker = Tracker(gate_pulses=belt.gate_pulses, guard_pulses=belt.guard_pulses)
        self._waiting: deque[Trigger] = deque()
        self._passages: deque[Passage] = deque(maxlen=PASSAGES_MAX)
        self._news = threading.Condition(threading.RLock())
        self._halt = threading.Event()
        self._thread: threading.Thread | None = None
        self._by_hand = by_hand
        self._stopped = False
        self._failure: LineUnavailableError | None = None
        self._start_ns: int | None = None
        self._coming: _Coming | None = None
        self._sent = 0
        self._count = count
        self._world = World(world)
        self._seq, left = self._world.history()
        for seq, part_id in left:
            self._meet_gate(seq, part_id, GATE_DEFAULT, commanded=False)

    def last_trigger(self) -> int:
        """Return the line's count of triggers, by the world's own record."""
        with self._news:
            return self._seq

    def triggers(self) -> Iterator[Trigger]:
        """Yield each part as it passes the camera, and end when the last has met the gate.

        Triggers that nobody fetches in time wait in a short queue; when it is full they
        are counted and missing here, and their parts take the gate's default.
        """
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
        """Set the part's action; return False when the gate is too near or already passed."""
        with self._news:
            position = self._position(self._clock_ns())
            return self._tracker.command(trigger.seq, action, position=position)

    def passages(self) -> Sequence[Passage]:
        """Return what the gate did since the last call."""
        with self._news:
            passed = tuple(self._passages)
            self._passages.clear()
            return passed

    def dispose(self, part_id: str, disposition: Disposition) -> None:
        """Write down what becomes of a diverted part."""
        self._world.write("dispose", part_id, disposition)

    def finish(self) -> None:
        """Send no more parts; those on the belt still meet the gate as commanded."""
        with self._news:
            self._count, self._coming = self._sent, None
            self._news.notify_all()

    def stop(self) -> None:
        """Stop triggering and let go of the gate: parts under way take its default."""
        with self._news:
            if not self._stopped:
                self._stopped = True
                self._halt.set()
                self._meet_gates(self._tracker.release())
                self._news.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def step(self, now_ns: int) -> None:
        """Move the belt to where it is at `now_ns`; parts pass camera and gate on the way."""
        with self._news:
            if self._stopped:
                return
            if self._start_ns is None:
                self._start_ns = now_ns
                self._coming = self._next_part(self._start_ns)
            while self._coming is not None and self._coming.due_ns <= now_ns:
                self._pass_gate(self._coming.due_ns)
                self._pass_camera(self._coming)
                self._coming = self._next_part(self._start_ns)
            self._pass_gate(now_ns)
            self._news.notify_all()

    # -- inside ----------------------------------------------------------------

    def _start(self) -> None:
        if not self._by_hand and self._thread is None:
            self.step(self._clock_ns())
            self._thread = threading.Thread(target=self._run, name="belt", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._halt.wait(self._idle_s()):
            try:
                self.step(self._clock_ns())
            except LineUnavailableError as error:
                with self._news:
                    self._failure = error
                    self._stopped = True
                    self._news.notify_all()
                return
            with self._news:
                if self._over():
                    return

    def _idle_s(self) -> float:
        """Return how long nothing can happen on the belt."""
        with self._news:
            now_ns = self._clock_ns()
            next_ns = now_ns + int(IDLE_S * NS_PER_S)
            if self._coming is not None:
                next_ns = min(next_ns, self._coming.due_ns)
            if (pulses := self._tracker.pulses_to_gate(self._position(now_ns))) is not None:
                next_ns = min(next_ns, now_ns + pulses * NS_PER_S // self._belt.pulses_per_s)
            return max(0, next_ns - now_ns) / NS_PER_S

    def _over(self) -> bool:
        run_empty = self._start_ns is not None and self._coming is None and not len(self._tracker)
        return self._stopped or run_empty

    def _next_part(self, start_ns: int) -> _Coming | None:
        if self._count is not None and self._sent >= self._count:
            return None
        seq = self._seq + 1
        part = self._parts.part(seq)
        if part is None:
            return None
        jitter = np.random.default_rng([self._seed, seq]).uniform(-1.0, 1.0) * self._belt.jitter
        after_ns = int((self._sent + 1 + jitter) * self._belt.period_ms * 1_000_000)
        return _Coming(seq, part[0], part[1], start_ns + after_ns)

    def _position(self, now_ns: int) -> int:
        moved_ns = 0 if self._start_ns is None else now_ns - self._start_ns
        pulses = moved_ns * self._belt.pulses_per_s // NS_PER_S
        return (self._belt.first_position + pulses) % RING

    def _pass_camera(self, coming: _Coming) -> None:
        to_guard = self._belt.gate_pulses - self._belt.guard_pulses
        trigger = Trigger(
            seq=coming.seq,
            part_id=coming.part_id,
            position=self._position(coming.due_ns),
            at_ns=coming.due_ns,
            deadline_ns=coming.due_ns + to_guard * NS_PER_S // self._belt.pulses_per_s,
        )
        self._world.write("trigger", str(coming.seq), coming.part_id, coming.truth)
        self._seq = coming.seq
        self._sent += 1
        self._tracker.add(trigger)
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append(trigger)

    def _pass_gate(self, now_ns: int) -> None:
        self._meet_gates(self._tracker.pass_to(self._position(now_ns)))

    def _meet_gates(self, crossings: Sequence[Crossing]) -> None:
        for crossing in crossings:
            trigger = crossing.trigger
            assert trigger is not None  # noqa: S101  # strays are for an eye to see; here is none
            self._meet_gate(
                trigger.seq, trigger.part_id, crossing.action, commanded=crossing.commanded
            )

    def _meet_gate(self, seq: int, part_id: str, action: Action, *, commanded: bool) -> None:
        self._world.write("gate", str(seq), action, "commanded" if commanded else "default")
        self._passages.append(
            Passage(
                id=self._new_id(),
                trigger_seq=seq,
                part_id=part_id,
                action=action,
                commanded=commanded,
                at=self._now(),
            )
        )


@dataclass(frozen=True, slots=True)
class _Coming:
    """The next part on its way to the camera."""

    seq: int
    part_id: str
    truth: str
    due_ns: int
