"""What an agent has earned on this line, and what its confidence is worth there.

Pure. Only parts drawn blind count for the level, because a person saw them without the
agent's answer and the draw depends on nothing it said. Of these, those teach something
where agent and node alone differ: one of them was right. An agent no better than the node
wins half of them at most.

Rising: the stake of a player who bets on the agent, at several odds at once, is a
nonnegative supermartingale while the agent is no better. It exceeds 2^k / `alpha` with a
chance of at most alpha / 2^k (Ville), at whatever time one looks. The k-th attempt asks
for that, so an agent that is no better ever rises with a chance of at most `alpha`.

Falling: players who bet against it start anew whenever they have lost (an e-detector).
An agent exactly as good as the node falls once in 1 / `beta` differing parts or more rarely
on average, and a better one more rarely still.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from qcnode.domain import AgentLevel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ALPHA: Final = 0.05
BETA: Final = 0.01
STAKES: Final = tuple(number / 10 for number in range(1, 10))
"""What share of its money each player puts on the next part."""
LADDER: Final = (AgentLevel.L1, AgentLevel.L2, AgentLevel.L3)
"""What rulings on parts can earn. L4 is granted where L3 is earned."""
SETTLED_MIN: Final = 40
"""So many settled parts it takes before a confidence is worth anything."""
EACH_MIN: Final = 5
"""So many right and so many wrong ones before confidence can tell them apart."""
FOLDS: Final = 5
_STEPS: Final = 50
_EDGE: Final = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """How far the evidence reaches. `up` and `down` are shares of what the next step takes."""

    level: AgentLevel
    parts: int
    up: float
    down: float
    rises: int = 0
    falls: int = 0


def earned(
    gains: Iterable[bool],
    *,
    start: AgentLevel = AgentLevel.L2,
    alpha: float = ALPHA,
    beta: float = BETA,
) -> Trust:
    """Return the level that these parts, in the order they were settled, have earned.

    Each is one on which agent and node alone differed; true where the agent was right.
    """
    rung = LADDER.index(min(start, AgentLevel.L3))
    rises = falls = parts = 0
    attempt = 1
    ups, downs = _fresh()
    for gain in gains:
        parts += 1
        sign = 1.0 if gain else -1.0
        for at, stake in enumerate(STAKES):
            ups[at] *= 1.0 + stake * sign
            downs[at] = max(1.0, downs[at]) * (1.0 - stake * sign)
        if _mean(downs) >= 1.0 / beta:
            if rung > 0:
                rung, falls = rung - 1, falls + 1
                attempt += 1
                ups, downs = _fresh()
            else:
                downs = [1.0] * len(STAKES)
        elif rung < len(LADDER) - 1 and _mean(ups) >= 2.0**attempt / alpha:
            rung, rises = rung + 1, rises + 1
            attempt += 1
            ups, downs = _fresh()
    return Trust(
        level=LADDER[rung],
        parts=parts,
        up=min(1.0, max(0.0, math.log(max(_mean(ups), 1.0)) / math.log(2.0**attempt / alpha))),
        down=min(1.0, max(0.0, math.log(max(_mean(downs), 1.0)) / math.log(1.0 / beta))),
        rises=rises,
        falls=falls,
    )


class Calibration(Protocol):
    """What a stated confidence is worth on this line."""

    def __call__(self, stated: float | None) -> float | None:
        """Return the chance that such an answer is right; None is not known."""


@dataclass(frozen=True, slots=True)
class Constant:
    """The confidence says nothing, so all answers are worth the same."""

    chance: float

    def __call__(self, stated: float | None) -> float | None:  # noqa: ARG002  # it says nothing
        """Return the one chance there is."""
        return self.chance


@dataclass(frozen=True, slots=True)
class Platt:
    """A logistic curve over the stated confidence's own log-odds; never a falling one."""

    slope: float
    offset: float

    def __call__(self, stated: float | None) -> float | None:
        """Return the curve's value."""
        return None if stated is None else _sigmoid(self.slope * _log_odds(stated) + self.offset)


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Steps that never fall; each is the share of right answers it holds, less a little."""

    bounds: tuple[float, ...]
    chances: tuple[float, ...]

    def __call__(self, stated: float | None) -> float | None:
        """Return the step's value."""
        if stated is None:
            return None
        return self.chances[max(0, bisect_right(self.bounds, stated) - 1)]


def calibrate(pairs: Sequence[tuple[float | None, bool]]) -> Calibration | None:
    """Return what confidence is worth, by settled answers; None with too few of them.

    Platt's curve and isotonic steps have to predict answers they were not fitted to better
    than the plain share of right ones does (log loss over five folds), or that share it is.
    """
    if len(pairs) < SETTLED_MIN:
        return None
    stated = [(confidence, right) for confidence, right in pairs if confidence is not None]
    rights = sum(right for _, right in pairs)
    plain = Constant((rights + 1) / (len(pairs) + 2))
    best = sum(right for _, right in stated)
    if min(best, len(stated) - best) < EACH_MIN or len(stated) < SETTLED_MIN:
        return plain
    fits = {"plain": _plain, "platt": _platt, "isotonic": _isotonic}
    losses = {name: _held_out(fit, stated) for name, fit in fits.items()}
    # In that order where they tie: the simplest.
    chosen = min(fits, key=lambda name: losses[name])
    return plain if chosen == "plain" else fits[chosen](stated)


def _held_out(fit: _Fit, pairs: Sequence[tuple[float, bool]]) -> float:
    loss = 0.0
    for fold in range(FOLDS):
        model = fit([one for at, one in enumerate(pairs) if at % FOLDS != fold])
        for confidence, right in pairs[fold::FOLDS]:
            chance = model(confidence)
            assert chance is not None  # noqa: S101  # a confidence was stated
            loss -= math.log(_inside(chance if right else 1.0 - chance))
    return loss


class _Fit(Protocol):
    def __call__(self, pairs: Sequence[tuple[float, bool]], /) -> Calibration: ...


def _plain(pairs: Sequence[tuple[float, bool]]) -> Calibration:
    return Constant((sum(right for _, right in pairs) + 1) / (len(pairs) + 2))


def _platt(pairs: Sequence[tuple[float, bool]]) -> Calibration:
    """Fit by Newton's method, to targets a little inside 0 and 1 as Platt has them."""
    rights = sum(right for _, right in pairs)
    high, low = (rights + 1) / (rights + 2), 1 / (len(pairs) - rights + 2)
    points = [(_log_odds(confidence), high if right else low) for confidence, right in pairs]
    share = _inside(rights / len(pairs))
    slope, offset = 0.0, math.log(share / (1.0 - share))
    for _ in range(_STEPS):
        # A little ridge keeps the step finite where all state the same.
        ga, gb, haa, hab, hbb = 1e-3 * slope, 0.0, 1e-3, 0.0, 1e-6
        for x, target in points:
            value = _sigmoid(slope * x + offset)
            error, weight = value - target, value * (1.0 - value)
            ga, gb = ga + error * x, gb + error
            haa, hab, hbb = haa + weight * x * x, hab + weight * x, hbb + weight
        determinant = haa * hbb - hab * hab
        step_a, step_b = (hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant
        slope, offset = slope - max(-2.0, min(2.0, step_a)), offset - max(-2.0, min(2.0, step_b))
        if abs(step_a) + abs(step_b) < 1e-9:  # noqa: PLR2004  # it stands
            break
    return Platt(slope, offset) if slope > 0.0 else _plain(pairs)


def _isotonic(pairs: Sequence[tuple[float, bool]]) -> Calibration:
    """Pool adjacent violators; each pool counts one wrong answer more than it saw."""
    pools: list[list[float]] = []  # lowest confidence, how many, how many right
    for confidence, right in sorted(pairs):
        if pools and pools[-1][0] == confidence:
            pools[-1][1] += 1
            pools[-1][2] += right
        else:
            pools.append([confidence, 1.0, float(right)])
        while len(pools) > 1 and pools[-2][2] * pools[-1][1] >= pools[-1][2] * pools[-2][1]:
            last = pools.pop()
            pools[-1][1] += last[1]
            pools[-1][2] += last[2]
    chances: list[float] = []
    for _, count, rights in pools:
        chances.append(max([*chances[-1:], (rights + 0.5) / (count + 1.5)]))
    return Isotonic(tuple(pool[0] for pool in pools), tuple(chances))


def _fresh() -> tuple[list[float], list[float]]:
    return [1.0] * len(STAKES), [1.0] * len(STAKES)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _inside(share: float) -> float:
    return min(1.0 - _EDGE, max(_EDGE, share))


def _log_odds(share: float) -> float:
    inside = _inside(share)
    return math.log(inside / (1.0 - inside))


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-40.0, min(40.0, value))))
