"""Stand-ins for what the line loop meets, each with switches to break it.

The ones that stand for a port pass that port's contract suite.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from qcnode.domain import Action, Fault, Frame, Inspection, Passage, Prediction, Trigger
from qcnode.errors import (
    CameraError,
    JournalUnavailableError,
    LineUnavailableError,
    ModelError,
)
from qcnode.track import GATE_DEFAULT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from qcnode.domain import Disposition, Evidence, JournalRecord

NS_PER_MS = 1_000_000


class FakeClock:
    """A monotonic and a wall clock that move only when told."""

    def __init__(self) -> None:
        self._ns = 5_000 * NS_PER_MS

    def ns(self) -> int:
        return self._ns

    def now(self) -> datetime:
        return datetime(2026, 11, 22, 6, tzinfo=UTC) + timedelta(microseconds=self._ns // 1000)

    def advance(self, ms: float) -> None:
        self._ns += int(ms * NS_PER_MS)


def make_ids(prefix: str = "id") -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"{prefix}{next(numbers):06d}"


def make_trigger(seq: int, *, at_ns: int = 0, part_id: str | None = None) -> Trigger:
    return Trigger(
        seq=seq,
        part_id=part_id or f"P{seq:07d}",
        position=seq * 1000,
        at_ns=at_ns,
        deadline_ns=at_ns + 400 * NS_PER_MS,
    )


class FakeCamera:
    """Sees a grey picture of every part. It is blind for the triggers in `blind`."""

    def __init__(
        self,
        clock: FakeClock,
        *,
        blind: Iterable[int] = (),
        mixes_up: Iterable[int] = (),
        takes_ms: float = 0.0,
        encoded: bytes | None = None,
    ) -> None:
        self._clock = clock
        self._new_id = make_ids("frame")
        self.blind = set(blind)
        self.mixes_up = set(mixes_up)
        self.takes_ms = takes_ms
        self._encoded = encoded
        self.asked: list[int] = []
        self.closed = False

    def grab(self, trigger: Trigger) -> Frame:
        self.asked.append(trigger.seq)
        self._clock.advance(self.takes_ms)
        if self.closed or trigger.seq in self.blind:
            raise CameraError("camera fake: no picture: plug it in")
        return Frame(
            id=self._new_id(),
            part_id="another" if trigger.seq in self.mixes_up else trigger.part_id,
            camera="fake",
            name=f"fake/{trigger.part_id}",
            captured_at=self._clock.now(),
            pixels=np.full((24, 32, 3), trigger.seq % 251, np.uint8),
            encoded=self._encoded,
        )

    def close(self) -> None:
        self.closed = True


class FakeModel:
    """Gives each part the score it was told to, in order; None is a model that fails."""

    version = "fake@0"

    def __init__(self, scores: Iterable[float | None] = (), *, otherwise: float = 0.0) -> None:
        self._scores = deque(scores)
        self._otherwise = otherwise
        self.raises: Exception | None = None

    def predict(self, frame: Frame) -> Prediction:
        if self.raises is not None:
            raise self.raises
        score = self._scores.popleft() if self._scores else self._otherwise
        if score is None:
            raise ModelError(f"{frame.name}: the model gave no score")
        heat = np.full(frame.pixels.shape[:2], score, np.float32)
        return Prediction(score=score, model=self.version, heat=heat)


class FakeJournal:
    """Keeps records in memory, one outcome a trigger; refuses all while `full`."""

    def __init__(self) -> None:
        self.records: list[JournalRecord] = []
        self.evidence: dict[str, Evidence] = {}
        self.full = False
        self.takes_before_full: int | None = None

    def append(self, record: JournalRecord, *, evidence: Evidence | None = None) -> None:
        if self.takes_before_full is not None:
            self.full = self.takes_before_full <= 0
            self.takes_before_full -= 1
        if self.full:
            raise JournalUnavailableError("fake journal: the disk takes no records: make room")
        self.records.append(record)
        if evidence is not None:
            self.evidence[record.id] = evidence

    def missing_triggers(self, upto: int) -> list[int]:
        known = {outcome.trigger_seq for outcome in self.outcomes()}
        return [seq for seq in range(1, upto + 1) if seq not in known]

    def outcomes(self) -> list[Inspection | Fault]:
        return [record for record in self.records if isinstance(record, Inspection | Fault)]

    def inspections(self) -> list[Inspection]:
        return [record for record in self.records if isinstance(record, Inspection)]

    def faults(self) -> list[Fault]:
        return [record for record in self.records if isinstance(record, Fault)]

    def passages(self) -> list[Passage]:
        return [record for record in self.records if isinstance(record, Passage)]


class FakeLine:
    """A line of `parts` triggers, one `period_ms` after the other.

    `drops` are triggers it counts and never yields; for those in `late` it refuses every
    action; `repeats` come twice; `overdue` ones waited beyond their deadline. Parts meet
    the gate when the next one comes, or by `roll`.
    """

    def __init__(
        self,
        clock: FakeClock,
        *,
        parts: int,
        after: int = 0,
        period_ms: float = 100.0,
        drops: Iterable[int] = (),
        late: Iterable[int] = (),
        repeats: Iterable[int] = (),
        overdue: Iterable[int] = (),
    ) -> None:
        self._clock = clock
        self._new_id = make_ids("passage")
        self._last = after
        self._parts = parts
        self._period_ms = period_ms
        self._drops, self._late = set(drops), set(late)
        self._repeats, self._overdue = set(repeats), set(overdue)
        self._on_belt: dict[int, str] = {}
        self._passages: list[Passage] = []
        self.actions: dict[int, Action] = {}
        self.met: dict[int, Action] = {}
        self.disposed: list[tuple[str, Disposition]] = []
        self.unplugged = False
        self.stopped = False

    def last_trigger(self) -> int:
        return self._last

    def triggers(self) -> Iterator[Trigger]:
        for _ in range(self._parts):
            if self.stopped:
                return
            self.roll()
            self._clock.advance(self._period_ms)
            self._last += 1
            waited_ns = 500 * NS_PER_MS if self._last in self._overdue else 0
            trigger = make_trigger(self._last, at_ns=self._clock.ns() - waited_ns)
            self._on_belt[trigger.seq] = trigger.part_id
            if trigger.seq in self._drops:
                continue
            yield trigger
            if trigger.seq in self._repeats:
                yield trigger
        self.roll()

    def act(self, trigger: Trigger, action: Action) -> bool:
        if self.stopped or trigger.seq in self._late or trigger.seq not in self._on_belt:
            return False
        self.actions[trigger.seq] = action
        return True

    def passages(self) -> Sequence[Passage]:
        passed, self._passages = self._passages, []
        return passed

    def dispose(self, part_id: str, disposition: Disposition) -> None:
        if self.unplugged:
            raise LineUnavailableError("fake line: unplugged: plug it in")
        self.disposed.append((part_id, disposition))

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            for seq in self._on_belt:
                self.actions.pop(seq, None)
            self.roll()

    def roll(self) -> None:
        """Move every part on the belt through the gate."""
        for seq, part_id in self._on_belt.items():
            commanded = seq in self.actions
            self.met[seq] = self.actions.get(seq, GATE_DEFAULT)
            self._passages.append(
                Passage(
                    id=self._new_id(),
                    trigger_seq=seq,
                    part_id=part_id,
                    action=self.met[seq],
                    commanded=commanded,
                    at=self._clock.now(),
                )
            )
        self._on_belt.clear()
