"""Whoever advises on the process, and the adviser that is a rule and no agent.

`Adviser` (in `ports`) is the one port by which a change of the process is proposed, by rule
or by an agent. What is proposed is weighed, held, applied and recorded elsewhere
(`adjustments`), in the same way whoever it came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qcnode.domain import Decider
from qcnode.process import Knob
from qcnode.spc import Cusum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qcnode.process import Bounds

STOP: Final = "stop"
"""What is proposed when the line should stop, in place of a knob."""
TOO_DARK, TOO_BRIGHT, SMEARED = "too_dark", "too_bright", "smeared"
"""What can be wrong with a picture, counted like the kinds of defect."""
RULE: Final = "rule:cusum"
STEP_SHARE: Final = 0.5
"""How much of the largest step is taken at once: an error of direction then costs half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many parts came, and how many of them had what wrong with them."""

    parts: int = 0
    classes: Mapping[str, int]

    def __add__(self, other: Tally) -> Tally:
        kinds = {*self.classes, *other.classes}
        return Tally(
            parts=self.parts + other.parts,
            classes={
                kind: self.classes.get(kind, 0) + other.classes.get(kind, 0)
                for kind in sorted(kinds)
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What an adviser is told: counts, and where the knobs stand. No picture, no part's id.

    `last` is what came since it was told before, `hour` the last hour, and `usual` the hour
    that is taken for normal. `since_turned` is how many parts were made since a knob was
    turned; one that never was is not in it.
    """

    id: str
    last: Tally
    hour: Tally
    usual: Tally
    settings: Mapping[Knob, float]
    bounds: Mapping[Knob, Bounds]
    since_turned: Mapping[Knob, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A change that somebody proposes; `knob` is `STOP` to have the line stopped.

    `tokens` is what the answer used; None where nobody knows.
    """

    knob: str
    value: float
    reason: str
    by: Decider
    who: str
    provider: str | None = None
    tokens: int | None = 0
    confidence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cure:
    """Which knob is turned against a kind of defect, and to which side."""

    knob: Knob
    side: int


CURES: Final[Mapping[str, Sequence[Cure]]] = {
    "blind_hole": (Cure(knob=Knob.PRESS_FORCE, side=1),),
    "worn_print": (Cure(knob=Knob.PRESS_FORCE, side=1),),
    "crack": (Cure(knob=Knob.PRESS_FORCE, side=-1),),
    "dent": (Cure(knob=Knob.PRESS_FORCE, side=-1),),
    "heat_tint": (Cure(knob=Knob.TEMPERATURE, side=-1),),
    "stain": (Cure(knob=Knob.TEMPERATURE, side=-1),),
    "torn_seal": (Cure(knob=Knob.TEMPERATURE, side=1),),
    TOO_DARK: (Cure(knob=Knob.LIGHT, side=1), Cure(knob=Knob.EXPOSURE, side=1)),
    TOO_BRIGHT: (Cure(knob=Knob.LIGHT, side=-1), Cure(knob=Knob.EXPOSURE, side=-1)),
    SMEARED: (Cure(knob=Knob.EXPOSURE, side=-1),),
}
"""What a process engineer would write down before the shift; the first cure with room is taken.

It fits the virtual process because the same people wrote both. On a machine this table is
the first thing to get wrong.
"""


class RuleAdviser:
    """Turns the knob that the table names when a class has become more common. No tokens.

    Each class has a CUSUM against its rate in the usual hour. After a turn, those of all
    classes with a cure at that knob begin anew: the next turn takes new evidence.
    """

    def __init__(self, *, cures: Mapping[str, Sequence[Cure]] = CURES) -> None:
        self._cures = cures
        self._watches: dict[str, Cusum] = {}

    async def advise(self, reading: Reading) -> Advice | None:
        """Return the turn against the class that is surest to have risen, if any is."""
        if not self._watches:
            usual = rates(reading.usual, tuple(self._cures))
            self._watches = {kind: Cusum(usual=rate) for kind, rate in usual.items()}
        for kind, watch in self._watches.items():
            events = min(reading.last.classes.get(kind, 0), reading.last.parts)
            self._watches[kind] = watch.after(events=events, parts=reading.last.parts)
        alarmed = [(watch.share, kind) for kind, watch in self._watches.items() if watch.alarmed]
        for _, kind in sorted(alarmed, reverse=True):
            for cure in self._cures[kind]:
                value = _turned(reading, cure)
                if value is not None:
                    self._begin_anew(cure.knob)
                    return Advice(
                        knob=cure.knob,
                        value=value,
                        reason=_words(reading, kind),
                        by=Decider.NODE,
                        who=RULE,
                    )
        return None

    def _begin_anew(self, knob: Knob) -> None:
        for kind, cures in self._cures.items():
            if any(cure.knob is knob for cure in cures):
                self._watches[kind] = self._watches[kind].cleared()


def rates(usual: Tally, kinds: Sequence[str]) -> dict[str, float]:
    """Return how common each class is, from an hour in which few came of most.

    Half of it is the class's own count, and half the mean of all: of a class that was not
    seen at all it is not known that it never comes.
    """
    parts = max(1, usual.parts)
    own = {kind: min(1.0, usual.classes.get(kind, 0) / parts) for kind in kinds}
    mean = sum(own.values()) / max(1, len(own))
    least = 1.0 / (parts + 1.0)
    return {kind: max(least, (rate + mean) / 2.0) for kind, rate in own.items()}


def _turned(reading: Reading, cure: Cure) -> float | None:
    """Return where the knob goes, or None where there is no room left on that side."""
    bounds, before = reading.bounds[cure.knob], reading.settings[cure.knob]
    after = bounds.toward(before, cure.side * STEP_SHARE * bounds.step_max)
    return None if after == before else after


def _words(reading: Reading, kind: str) -> str:
    hour, usual = reading.hour, reading.usual
    return (
        f"{kind}: {hour.classes.get(kind, 0)} of the last {hour.parts} parts,"
        f" usually {usual.classes.get(kind, 0)} of {usual.parts}"
    )
