"""A machine whose settings drift off their best place, as a model: knobs, drift, and what follows.

Nothing here was measured on a machine. It is a model with the traits that matter to whoever
adjusts: each knob has a best place, the machine slowly leaves it though nobody touched the
knob, off its place some kinds of defect grow more common (with the square of how far), and
light and exposure change the picture and no part. What it leaves out: a change works at
once, one knob does not move another, and there is no wear that a knob could not make good.

All of it is a function of a seed, a part's number and the settings made so far.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from qcnode.errors import AdjustmentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Knob(StrEnum):
    """What can be set at the machine."""

    LIGHT = "light"
    EXPOSURE = "exposure"
    PRESS_FORCE = "press_force"
    TEMPERATURE = "temperature"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far a knob may be turned: between `low` and `high`, by `step_max` at a time."""

    low: float
    high: float
    step_max: float
    unit: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and self.low < self.high < math.inf):
            raise ValueError(f"bounds run from a lower to a higher finite value: {self}")
        if not 0.0 < self.step_max <= self.high - self.low:
            raise ValueError(f"the largest step is more than 0 and within the bounds: {self}")

    def refusal(self, before: float, after: float) -> str | None:
        """Say why a knob may not be turned from `before` to `after`; None if it may."""
        if not math.isfinite(after):
            return f"{after} is no value"
        if not self.low <= after <= self.high:
            return f"{after:g} {self.unit} lies outside {self.low:g} to {self.high:g}"
        if abs(after - before) > self.step_max * (1.0 + 1e-9):
            return f"a step of {abs(after - before):g} {self.unit}, at most {self.step_max:g}"
        return None

    def toward(self, before: float, by: float) -> float:
        """Return where a turn by so much ends, cut to the largest step and to the bounds."""
        step = min(max(by, -self.step_max), self.step_max)
        return min(max(before + step, self.low), self.high)


BOUNDS: Final[Mapping[Knob, Bounds]] = {
    Knob.LIGHT: Bounds(low=70.0, high=140.0, step_max=4.0, unit="%"),
    Knob.EXPOSURE: Bounds(low=2.5, high=6.0, step_max=0.25, unit="ms"),
    Knob.PRESS_FORCE: Bounds(low=70.0, high=100.0, step_max=4.0, unit="kN"),
    Knob.TEMPERATURE: Bounds(low=160.0, high=200.0, step_max=5.0, unit="degC"),
}
"""What the virtual machine allows. Who may turn a knob is another question."""

BEST: Final[Mapping[Knob, float]] = {
    Knob.LIGHT: 100.0,
    Knob.EXPOSURE: 4.0,
    Knob.PRESS_FORCE: 85.0,
    Knob.TEMPERATURE: 180.0,
}
TOLERANCE: Final[Mapping[Knob, float]] = {
    Knob.LIGHT: 5.0,
    Knob.EXPOSURE: 0.5,
    Knob.PRESS_FORCE: 4.0,
    Knob.TEMPERATURE: 5.0,
}
"""How far off its best place a knob is one step off: the unit of all effects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A knob off its best place, to one side, makes a kind of defect more common.

    One tolerance off, its chance grows by `growth` times what it is at the best place.
    """

    kind: str
    knob: Knob
    side: int
    growth: float


EFFECTS: Final[Sequence[Effect]] = (
    # A punch that does not come through, and a stamp that does not bite.
    Effect(kind="blind_hole", knob=Knob.PRESS_FORCE, side=-1, growth=4.0),
    Effect(kind="worn_print", knob=Knob.PRESS_FORCE, side=-1, growth=2.5),
    Effect(kind="crack", knob=Knob.PRESS_FORCE, side=1, growth=4.0),
    Effect(kind="dent", knob=Knob.PRESS_FORCE, side=1, growth=2.5),
    # Metal that runs blue, oil that burns in; a seal that did not set.
    Effect(kind="heat_tint", knob=Knob.TEMPERATURE, side=1, growth=4.0),
    Effect(kind="stain", knob=Knob.TEMPERATURE, side=1, growth=2.5),
    Effect(kind="torn_seal", knob=Knob.TEMPERATURE, side=-1, growth=5.0),
)
CHANCE_MAX: Final = 0.3
"""No kind of defect is on more than this share of the parts, however far off a knob is."""
SMEAR_PX: Final = 3.0
"""How far a part moves in the picture during one best exposure more than the best one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How the machine leaves a setting: from part `onset` on, by `rate` tolerances per thousand.

    It also wanders by `sway` tolerances, up and down every `period` parts or so.
    """

    knob: Knob
    onset: int
    rate: float
    sway: float = 0.0
    period: int = 1_000
    phase: float = 0.0

    def at(self, seq: int) -> float:
        """Return how many tolerances the machine is off its setting at this part."""
        swing = self.sway * math.sin(2.0 * math.pi * seq / self.period + self.phase)
        return self.rate * max(0, seq - self.onset) / 1_000.0 + swing


def draw_drifts(seed: int, *, shift: int, most: float = 3.0) -> tuple[Drift, ...]:
    """Draw what drifts in a shift of so many parts, by up to `most` tolerances at its end.

    The lamp always loses light. Press and oven leave their place to either side, and each
    begins when the first eighth of the shift is over, or later. Exposure does not drift.
    """
    rng = np.random.default_rng([seed, 4])
    drifts = []
    for knob in (Knob.LIGHT, Knob.PRESS_FORCE, Knob.TEMPERATURE):
        onset = round(shift * rng.uniform(0.125, 0.4))
        side = -1.0 if knob is Knob.LIGHT else float(rng.choice((-1.0, 1.0)))
        end = side * most * rng.uniform(0.7, 1.0)
        drifts.append(
            Drift(
                knob=knob,
                onset=onset,
                rate=end * 1_000.0 / (shift - onset),
                sway=0.15,
                period=max(2, round(shift * rng.uniform(0.2, 0.5))),
                phase=float(rng.uniform(0.0, 2.0 * math.pi)),
            )
        )
    return tuple(drifts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under what a part is made and seen: how far off each knob is, in tolerances.

    `off` holds what the machine really does, which nobody can read from it.
    """

    off: Mapping[Knob, float]

    def chance(self, kind: str, base: float) -> float:
        """Return the chance of this kind of defect, which is `base` with all at its best."""
        growth = sum(
            effect.growth * max(0.0, effect.side * self.off[effect.knob]) ** 2
            for effect in EFFECTS
            if effect.kind == kind
        )
        return base if growth == 0.0 else min(max(base, CHANCE_MAX), base * (1.0 + growth))

    @property
    def brightness(self) -> float:
        """Return how bright the picture is, as a share of the best."""
        return self._share(Knob.LIGHT) * self._share(Knob.EXPOSURE)

    @property
    def smear_px(self) -> float:
        """Return how far the part moves in the picture while the shutter is open too long."""
        return SMEAR_PX * max(0.0, self._share(Knob.EXPOSURE) - 1.0)

    def _share(self, knob: Knob) -> float:
        return max(0.05, 1.0 + self.off[knob] * TOLERANCE[knob] / BEST[knob])


def conditions(settings: Mapping[Knob, float], drifts: Sequence[Drift], *, seq: int) -> Conditions:
    """Return what settings and drift come to at this part."""
    off = {knob: (settings[knob] - BEST[knob]) / TOLERANCE[knob] for knob in Knob}
    for drift in drifts:
        off[drift.knob] += drift.at(seq)
    return Conditions(off=off)


class VirtualProcess:
    """The machine itself: it forgets no setting, and makes each part under those of its time.

    A setting holds from the part after the last one that anybody has asked about, so a
    part that is looked at again was made under the same conditions. Any thread may ask.
    """

    def __init__(self, drifts: Sequence[Drift], *, bounds: Mapping[Knob, Bounds] = BOUNDS) -> None:
        self._drifts = tuple(drifts)
        self._bounds = bounds
        self._lock = threading.Lock()
        self._from = [0]
        self._settings: list[Mapping[Knob, float]] = [dict(BEST)]
        self._made = 0
        self._halted = False

    def conditions(self, seq: int) -> Conditions:
        """Return under what this part is, or was, made and seen."""
        with self._lock:
            self._made = max(self._made, seq)
            settings = self._settings[bisect_right(self._from, seq) - 1]
        return conditions(settings, self._drifts, seq=seq)

    def settings(self) -> Mapping[Knob, float]:
        """Return where the knobs stand."""
        with self._lock:
            return dict(self._settings[-1])

    def turn(self, knob: Knob, value: float) -> None:
        """Set a knob for the parts to come. Raises `AdjustmentError` beyond what it allows."""
        with self._lock:
            last = self._settings[-1]
            refusal = self._bounds[knob].refusal(last[knob], value)
            if refusal is not None:
                raise AdjustmentError(f"{knob}: {refusal}")
            self._settings.append({**last, knob: value})
            self._from.append(self._made + 1)

    @property
    def halted(self) -> bool:
        """Whether it was told to make no more parts."""
        return self._halted

    def halt(self) -> None:
        """Make no more parts until `start`; halting twice is harmless."""
        self._halted = True

    def start(self) -> None:
        """Make parts again."""
        self._halted = False
