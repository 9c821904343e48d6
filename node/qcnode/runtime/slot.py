"""The place of the model at the line, in which one model follows another without a pause.

`Slot` is a `Model` to everybody else. The line's thread is never made to wait: what the
other model says of a part is worked out in a thread of its own, on
the last picture there is, and compared when it is ready. A newcomer goes through shadow,
canary and a time of being watched; by the stated rule it is sent back at any of them, at
once and by itself, and a part on which it fails is judged by the old model instead.

Each answer carries the limits of the model that gave it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from qcnode.errors import ModelError
from qcnode.policy import judge
from qcnode.runtime.swap import Agreement, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from qcnode.domain import Frame, Limits, Prediction
    from qcnode.runtime.swap import ChangeRule

NS_PER_S: Final = 1_000_000_000
_IDLE_S: Final = 1.0


class SwappableModel(Protocol):
    """A `Model` that has its own limits and can be told to give up a picture."""

    @property
    def version(self) -> str:
        """Name and digest of what judges."""

    @property
    def limits(self) -> Limits:
        """The limits it was released with."""

    @property
    def side(self) -> int | None:
        """How fine it looks, by the rule of `qcnode.picture`; None where it wants all pixels."""

    def predict(self, frame: Frame) -> Prediction:
        """Return the score, or raise `ModelError`."""

    def interrupt(self) -> None:
        """End the picture in hand with a `ModelError`; any thread may ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that happened to a newcomer; `stage` is None when the change is over."""

    model: str
    stage: Stage | None
    taken: bool
    """Whether the newcomer decides all parts from here on."""
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How a change is going."""

    old: str
    new: str
    stage: Stage
    parts: int
    of: int
    agreeing: float
    slower: float
    disagreements: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Change:
    """A change under way."""

    old: SwappableModel
    new: SwappableModel
    stage: Stage
    agreement: Agreement
    began: int
    """How many parts both had judged when this stage began."""


class Slot:
    """One model in service, and at most one that may take its place."""

    def __init__(
        self,
        model: SwappableModel,
        *,
        rule: ChangeRule,
        coin: Callable[[], float],
        clock_ns: Callable[[], int],
        cpu_ns: Callable[[], int],
        tell: Callable[[Step], None],
    ) -> None:
        self._model = model
        self._rule = rule
        self._coin = coin
        self._clock_ns = clock_ns
        self._cpu_ns = cpu_ns
        self._tell = tell
        self._change: _Change | None = None
        self._lock = threading.Lock()
        self._shadow: _Shadow | None = None
        self._in_hand: tuple[SwappableModel, int] | None = None

    # -- the line's side -----------------------------------------------------------

    @property
    def version(self) -> str:
        """Name and digest of the model in service."""
        return self._model.version

    @property
    def limits(self) -> Limits:
        """The limits of the model in service."""
        return self._model.limits

    @property
    def side(self) -> int | None:
        """How fine the model in service looks; a newcomer unpacks again what it wants finer."""
        return self._model.side

    def predict(self, frame: Frame) -> Prediction:
        """Return the score with the limits it is judged by, or raise `ModelError`."""
        change = self._change
        if change is None:
            return self._ask(self._model, frame)[0]
        newcomer_decides = change.stage is Stage.WATCHED or (
            change.stage is Stage.CANARY and self._coin() < self._rule.canary_share
        )
        if newcomer_decides:
            try:
                prediction, cpu_ns = self._ask(change.new, frame)
            except ModelError as error:
                self._send_back(change, f"it failed ({error})")
                return self._ask(change.old, frame)[0]
        else:
            prediction, cpu_ns = self._ask(change.old, frame)
        counts = newcomer_decides or change.stage is Stage.SHADOW
        shadow = self._shadow
        if shadow is not None and counts:
            shadow.put(_Pair(frame, prediction, cpu_ns, by_new=newcomer_decides))
        return prediction

    def _ask(self, model: SwappableModel, frame: Frame) -> tuple[Prediction, int]:
        began = self._cpu_ns()
        self._in_hand = (model, self._clock_ns())
        try:
            prediction = model.predict(frame)
        finally:
            self._in_hand = None
        return replace(prediction, limits=model.limits), self._cpu_ns() - began

    # -- whoever changes models ----------------------------------------------------

    def offer(self, model: SwappableModel) -> None:
        """Begin a change to `model`, which is loaded and warm; raises `ModelError` if one is on."""
        with self._lock:
            if self._change is not None:
                raise ModelError(
                    f"{self._change.new.version} is being taken in just now: wait, or roll it back"
                )
            self._shadow = _Shadow(self._compare, self._clock_ns)
            self._change = _Change(
                old=self._model,
                new=model,
                stage=Stage.SHADOW,
                agreement=Agreement(rule=self._rule),
                began=0,
            )
            self._shadow.start()
        words = f"judges beside {self._model.version} for {self._rule.shadow_parts} parts"
        self._tell(Step(model=model.version, stage=Stage.SHADOW, taken=False, words=words))

    def put(self, model: SwappableModel) -> None:
        """Let `model` decide from the next part on, without a trial: a person asked for it."""
        with self._lock:
            self._end_change()
            self._model = model
        self._tell(Step(model=model.version, stage=None, taken=True, words="put in service"))

    def send_back(self, words: str) -> bool:
        """End the change under way, if there is one, in favour of the old model."""
        change = self._change
        return change is not None and self._send_back(change, words)

    def progress(self) -> Progress | None:
        """Return how the change under way is going."""
        change = self._change
        if change is None:
            return None
        agreement = change.agreement
        return Progress(
            old=change.old.version,
            new=change.new.version,
            stage=change.stage,
            parts=agreement.parts - change.began,
            of=self._rule.parts_of(change.stage),
            agreeing=agreement.agreeing(),
            slower=agreement.slower(),
            disagreements={
                f"{old.value} -> {new.value}": count
                for (old, new), count in sorted(agreement.counts().items())
                if old is not new
            },
        )

    def interrupt_after(self, patience_s: float) -> None:
        """Stop a model that has had a picture in hand for too long; the part goes the safe way."""
        for held in (self._in_hand, None if self._shadow is None else self._shadow.in_hand):
            if held is not None and self._clock_ns() - held[1] > patience_s * NS_PER_S:
                held[0].interrupt()

    # -- the comparison, in the shadow's thread ------------------------------------

    def _compare(self, pair: _Pair, shadow: _Shadow) -> None:
        change = self._change
        if change is None or self._shadow is not shadow:
            return
        other = change.old if pair.by_new else change.new
        began = self._cpu_ns()
        shadow.in_hand = (other, self._clock_ns())
        try:
            answer = other.predict(pair.frame)
        except ModelError as error:
            # What the old model cannot judge says nothing of the new one.
            if other is change.new:
                self._send_back(change, f"it failed ({error})")
            return
        finally:
            shadow.in_hand = None
        cpu_ns = self._cpu_ns() - began
        first = judge(pair.prediction, (change.new if pair.by_new else change.old).limits)
        second = judge(answer, other.limits)
        old, new = (second, first) if pair.by_new else (first, second)
        old_ns, new_ns = (cpu_ns, pair.cpu_ns) if pair.by_new else (pair.cpu_ns, cpu_ns)
        change.agreement.take(old, new, old_cpu_ns=old_ns, new_cpu_ns=new_ns)
        objection = change.agreement.objection()
        if objection is not None:
            self._send_back(change, objection)
        elif change.agreement.parts - change.began >= self._rule.parts_of(change.stage):
            self._go_on(change)

    def _go_on(self, change: _Change) -> None:
        """Move on to the next stage, or end a change that went well."""
        slow = change.agreement.too_slow()
        if slow is not None:
            self._send_back(change, slow)
            return
        following = {Stage.SHADOW: Stage.CANARY, Stage.CANARY: Stage.WATCHED}
        stage = following.get(change.stage)
        agreement = change.agreement
        with self._lock:
            if self._change is not change:
                return
            if stage is None:
                self._end_change()
            else:
                self._change = replace(change, stage=stage, began=agreement.parts)
                if stage is Stage.WATCHED:
                    self._model = change.new
        said = f"{agreement.agreeing():.1%} of {agreement.parts} parts judged alike"
        self._tell(
            Step(
                model=change.new.version,
                stage=stage,
                taken=stage is not Stage.CANARY,
                words=said,
            )
        )

    def _send_back(self, change: _Change, words: str) -> bool:
        with self._lock:
            current = self._change
            # A stage may have passed meanwhile: what counts is that it is the same newcomer.
            if current is None or current.new is not change.new:
                return False
            self._model = current.old
            self._end_change()
        parts = change.agreement.parts
        self._tell(
            Step(
                model=change.new.version,
                stage=None,
                taken=False,
                words=f"sent back from {current.stage} after {parts} parts: {words}",
            )
        )
        return True

    def _end_change(self) -> None:
        self._change = None
        if self._shadow is not None:
            self._shadow.stop()
            self._shadow = None


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """A picture and what the deciding model said of it."""

    frame: Frame
    prediction: Prediction
    cpu_ns: int
    by_new: bool


class _Shadow:
    """A thread that compares the last picture there is; older ones give way."""

    def __init__(
        self, compare: Callable[[_Pair, _Shadow], None], clock_ns: Callable[[], int]
    ) -> None:
        self._compare = compare
        self._clock_ns = clock_ns
        self._news = threading.Condition()
        self._next: _Pair | None = None
        self._stopping = False
        self.in_hand: tuple[SwappableModel, int] | None = None
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, pair: _Pair) -> None:
        with self._news:
            self._next = pair
            self._news.notify()

    def stop(self) -> None:
        """Let the thread end by itself: it may be the one that asks."""
        with self._news:
            self._stopping = True
            self._news.notify()

    def _run(self) -> None:
        # At the line's own priority: on a busy machine a thread that has the interpreter's lock
        # and is not given the processor would hold the line up with it.
        while True:
            with self._news:
                while self._next is None and not self._stopping:
                    self._news.wait(_IDLE_S)
                if self._stopping:
                    return
                pair, self._next = self._next, None
            if pair is not None:
                self._compare(pair, self)
