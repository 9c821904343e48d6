"""A million triggers through the real station, line and tracker, with every fault there is.

`python -m tests.prove_line` runs them on a virtual clock: pictures that do not come, a model
that is too slow for the belt, a disk that takes no records, a broker that is away, and a node
killed between any two steps, which loses what was not on disk yet. The world's own record is
the witness: every trigger it counted must be one verdict or one fault in the journal, met
the gate once, passed only if it was judged to pass, and reached the reader behind the
broker. Prints one line of JSON, and exits with 1 when anything is not explained.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import structlog

from qcnode.domain import Action, Fault, FaultKind, Inspection, Limits, Passage, Prediction
from qcnode.errors import CameraError, JournalUnavailableError
from qcnode.health import HealthBoard
from qcnode.lines.virtual import Belt, UnknownParts, VirtualLine
from qcnode.station import Station
from tests.fakes import FakeCamera, FakeClock, make_ids

BELT = Belt(period_ms=100.0, speed_mm_per_s=500.0, gate_mm=250.0, guard_ms=30.0)
LIFE = 20_000
"""Triggers of one life of the node, on average; then it is killed."""
STRETCH = 300
"""Parts that one trouble lasts, at most."""
STEPS = 5
"""Places in the handling of one part where it may die."""
UNSAVED_MAX = 40
NEVER, VERDICT, FAULT = 0, 1, 2


class KilledError(BaseException):
    """The process is gone: nothing of it runs any more, `finally` included."""


class Faults:
    """What is broken now: stretches of one trouble, drawn from a seed."""

    def __init__(self, seed: int, *, life: int, stretch: int) -> None:
        self._dice = random.Random(seed)
        self._life = life
        self._stretch = stretch
        self._left = 0
        self._kind = "none"
        self.seen: Counter[str] = Counter()
        self.dead = False
        self._to_live = 0

    def begin_life(self) -> None:
        self.dead = False
        self._to_live = 1 + int(self._dice.expovariate(1 / self._life) * STEPS)

    def next_part(self) -> str:
        if self._left == 0:
            self._kind = self._dice.choices(
                ["none", "camera", "slow", "disk", "broker"], [70, 10, 8, 4, 8]
            )[0]
            self._left = self._dice.randrange(1, self._stretch)
            self.seen[self._kind] += 1
        self._left -= 1
        return self._kind

    def step(self) -> None:
        """Die between two steps, now and then."""
        self._to_live -= 1
        if self._to_live <= 0 and not self.dead:
            self.dead = True
            self.seen["kill -9"] += 1
            raise KilledError

    def unsaved(self) -> int:
        return self._dice.randrange(UNSAVED_MAX)

    def score(self) -> float:
        return self._dice.choices([0.1, 0.9, 0.5], [85, 8, 7])[0]

    def slow_ms(self) -> float:
        return self._dice.choices([5.0, 200.0, 480.0, 900.0, 8_000.0], [30, 30, 20, 19, 1])[0]


class Book:
    """A journal: what is on disk survives, what waits for it dies with the node."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.full = False
        self.waiting: list[object] = []
        self.outcome = bytearray(1)
        self.may_pass = bytearray(1)
        self.doubled: list[int] = []
        self.kinds: Counter[str] = Counter()
        self.passages = 0
        self.told = 0
        self.order: list[int] = []
        self.in_hand = 0
        self._excused: set[int] = set()

    def append(self, record, *, evidence=None) -> None:  # noqa: ARG002  # the port's
        if self._faults.dead:
            return
        self._faults.step()
        if self.full:
            raise JournalUnavailableError("the disk takes no records: make room")
        self.waiting.append(record)
        if len(self.waiting) > UNSAVED_MAX:
            self.save(len(self.waiting) - UNSAVED_MAX)

    def missing_triggers(self, upto: int) -> list[int]:
        self._reach(upto)
        return [seq for seq in range(1, upto + 1) if self.outcome[seq] == NEVER]

    def save(self, count: int) -> None:
        for record in self.waiting[:count]:
            self._save(record)
        del self.waiting[:count]

    def crash(self) -> None:
        self.save(max(0, len(self.waiting) - self._faults.unsaved()))
        # What was on its way to the disk when the node died had been judged all the same.
        self._excused |= {one.trigger_seq for one in self.waiting if isinstance(one, Inspection)}
        self._excused.add(self.in_hand)
        self.waiting.clear()

    def tell(self) -> None:
        """The broker is there: everything on disk has reached the reader behind it."""
        self.told = len(self.order)

    def _save(self, record) -> None:
        if isinstance(record, Passage):
            self.passages += 1
            return
        seq = record.trigger_seq
        self._reach(seq)
        if self.outcome[seq] != NEVER:
            self.doubled.append(seq)
        self.order.append(seq)
        if isinstance(record, Inspection):
            self.outcome[seq] = VERDICT
            self.may_pass[seq] = record.action is Action.ACCEPT
            self.kinds[record.verdict.value] += 1
        elif isinstance(record, Fault):
            self.outcome[seq] = FAULT
            self.may_pass[seq] = record.kind is FaultKind.INTERRUPTED and seq in self._excused
            self.kinds[f"fault {record.kind.value}"] += 1

    def _reach(self, seq: int) -> None:
        if seq >= len(self.outcome):
            more = bytes(seq + 4_096 - len(self.outcome))
            self.outcome += more
            self.may_pass += more


class Rolling:
    """The virtual line on the virtual clock: the belt moves as far as the next trigger."""

    def __init__(
        self, line: VirtualLine, clock: FakeClock, faults: Faults, eyes: Eyes, book: Book
    ) -> None:
        self._line, self._clock, self._faults = line, clock, faults
        self._eyes, self._book = eyes, book

    def last_trigger(self) -> int:
        return self._line.last_trigger()

    def triggers(self):
        inner = self._line.triggers()
        while True:
            self._line.step(self._clock.ns())
            if self._line._waiting:
                self._eyes.trouble(self._faults.next_part())
                yield next(inner)
            elif self._line._over():
                return
            else:
                coming = self._line._coming
                due_ns = self._clock.ns() if coming is None else coming.due_ns
                self._clock.advance(max(5.0, (due_ns - self._clock.ns()) / 1e6))

    def act(self, trigger, action) -> bool:
        if self._faults.dead:
            return False
        self._faults.step()
        self._line.step(self._clock.ns())
        self._book.in_hand = trigger.seq
        return self._line.act(trigger, action)

    def passages(self):
        return () if self._faults.dead else self._line.passages()

    def dispose(self, part_id, disposition) -> None:
        self._line.dispose(part_id, disposition)

    def stop(self) -> None:
        if not self._faults.dead:
            self._line.stop()


class Eyes:
    """Camera and model at once, as far as faults go."""

    version = "model@1"

    def __init__(self, clock: FakeClock, faults: Faults, book: Book) -> None:
        self._clock, self._faults, self._book = clock, faults, book
        self._camera = FakeCamera(clock, takes_ms=4.0)
        self._trouble = "none"

    def trouble(self, kind: str) -> None:
        """Say what is broken from now on."""
        self._trouble = kind
        self._book.full = kind == "disk"
        if kind != "broker":
            self._book.tell()

    def grab(self, trigger):
        self._faults.step()
        self._camera.asked.clear()
        if self._trouble == "camera":
            self._clock.advance(50.0)
            raise CameraError("camera: no picture: plug it in")
        return self._camera.grab(trigger)

    def predict(self, _frame) -> Prediction:
        self._faults.step()
        self._clock.advance(self._faults.slow_ms() if self._trouble == "slow" else 11.0)
        return Prediction(score=self._faults.score(), model=self.version)

    def close(self) -> None:
        """Nothing is held."""


def run(
    triggers: int, seed: int, folder: Path, *, life: int = LIFE, stretch: int = STRETCH
) -> dict[str, object]:
    """Run so many triggers, and say what became of them."""
    faults, clock = Faults(seed, life=life, stretch=stretch), FakeClock()
    book, world = Book(faults), folder / "world.log"
    lives, sent = 0, 0
    ids = make_ids()
    while sent < triggers:
        lives += 1
        faults.begin_life()
        book.full = False
        line = VirtualLine(
            parts=UnknownParts(),
            belt=BELT,
            world=world,
            count=triggers - sent,
            seed=seed,
            now=clock.now,
            new_id=ids,
            clock_ns=clock.ns,
            by_hand=True,
        )
        eyes = Eyes(clock, faults, book)
        rolling = Rolling(line, clock, faults, eyes, book)
        station = Station(
            camera=eyes,
            model=eyes,
            line=rolling,
            journal=book,
            limits=Limits(accept_below=0.3, reject_from=0.7),
            failsafe=Action.DIVERT,
            health=HealthBoard(clock.now),
            now=clock.now,
            new_id=ids,
            clock_ns=clock.ns,
        )
        try:
            station.run()
        except KilledError:
            book.crash()
            clock.advance(700.0)  # until it is started again
        else:
            book.full = False
            station._settle_debts()
            book.save(len(book.waiting))
        sent = line.last_trigger()
    book.tell()
    return _weigh(book, faults, world, lives)


def _weigh(book: Book, faults: Faults, world: Path, lives: int) -> dict[str, object]:
    sent, met, unexplained, gates = 0, bytearray(1), 0, Counter[str]()
    with world.open(encoding="utf-8") as lines:
        for line in lines:
            kind, seq, *rest = line.split()
            if kind == "trigger":
                sent += 1
                met.append(0)
            elif kind == "gate":
                met[int(seq)] += 1
                gates[f"{rest[0]} {rest[1]}"] += 1
                unexplained += rest[0] == "ACCEPT" and not book.may_pass[int(seq)]
    outcomes = Counter(book.outcome[1 : sent + 1])
    return {
        "triggers": sent,
        "verdicts": outcomes[VERDICT],
        "faults": outcomes[FAULT],
        "without an outcome": outcomes[NEVER],
        "with two outcomes": len(book.doubled),
        "met the gate not exactly once": sum(count != 1 for count in met[1:]),
        "passed without having been judged to": unexplained,
        "not heard of behind the broker": len(book.order) - book.told,
        "lives": lives,
        "outcomes": dict(sorted(book.kinds.items())),
        "gate": dict(sorted(gates.items())),
        "troubles": dict(sorted(faults.seen.items())),
    }


def is_whole(found: dict[str, object]) -> bool:
    """Say whether every trigger is explained."""
    wrong = ("without an outcome", "with two outcomes", "met the gate not exactly once")
    more = ("passed without having been judged to", "not heard of behind the broker")
    return not any(found[name] for name in (*wrong, *more))


def main() -> None:
    """Run, print and say by the exit code whether all was explained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--triggers", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = run(options.triggers, options.seed, Path(folder))
    found["seconds"] = round(time.monotonic() - start, 1)
    print(json.dumps(found))  # noqa: T201  # its output
    sys.exit(0 if is_whole(found) else 1)


if __name__ == "__main__":
    main()
