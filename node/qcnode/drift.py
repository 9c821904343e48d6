"""Whether the parts of today are still like those a limit was earned from.

Pure but for the coin that breaks ties, which is given. Each watch wagers against the claim
that nothing has changed: its capital starts at 1 and, while the claim is true, is no more
than 1 on average, so it ever reaches 1 / delta with a chance of delta at most (Ville). A
stake is kept for a start at each part to come, so a change late in a long quiet time is
found almost as fast. All watches together share one chance of a false alarm, for the whole
life of a certificate and not for each hour.

Defective parts must not look like drift. So scores are watched in two ways: below a cap,
where nine in ten good parts lie and few defects do, by the ranks of the scores (a conformal
martingale), and above it only by how many there are, against the share of good parts that
may lie there and the most defects the line is said to have.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qcnode.certify import upper_bound
from qcnode.sight import Outline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qcnode.manifest import PictureNorm
    from qcnode.sight import Look

PARTS_MIN: Final = 19
"""From fewer good parts nothing can be said of the parts to come."""
BULK_SHARE: Final = 0.9
REFERENCE_MAX: Final = 5_000
"""Beyond so many the ranks hardly change, and no wager is bold enough to live on that."""
FROZEN_AFTER: Final = 3
"""So many identical pictures in a row come from no camera that works: each has its noise."""
WATCHES: Final = 5
_RISING: Final = (-0.6, -1.2, -1.9)
_FALLING: Final = (0.6, 1.2, 1.9)
_BOLDNESS: Final = (0.25, 0.6, 0.95)
_USUAL: Final = 0.05
"""The share of good pictures that lie beyond the usual, to either side."""
_MARGIN: Final = 0.02
"""How far beyond the usual a figure may wander, as a share of it, and do no harm."""
_PLACE_MARGIN: Final = 0.03
"""Two pixels of the small copy from which places are told."""
_IN_PLACE: Final = 0.05
"""Parts that lie further apart than this share of the picture have no place to leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Why the parts of today are not those of the certificate."""

    words: str
    picture_at_fault: bool
    """Whether light, focus, place or camera is what changed, and not the parts alone."""


class Wager:
    """Capital staked against a claim; `bets` ways to stake it, started at every part."""

    def __init__(self, bets: int) -> None:
        self._staked = [0.0] * bets
        self._parts = 0

    def take(self, factors: Sequence[float]) -> None:
        """Let each bet win or lose on one part; each factor is 1 at most, on average."""
        self._parts += 1
        stake = 1.0 / (self._parts * (self._parts + 1)) / len(self._staked)
        self._staked = [
            (staked + stake) * factor for staked, factor in zip(self._staked, factors, strict=True)
        ]

    @property
    def capital(self) -> float:
        """What is staked, and what is kept for starts to come."""
        return 1.0 / (self._parts + 1) + math.fsum(self._staked)


class ShareWatch:
    """Watches that no more than `most` of the parts are out of the usual."""

    def __init__(self, most: float, *, delta: float) -> None:
        self._most = min(most, 0.999)
        self._alarm_at = 1.0 / delta
        self._wager = Wager(len(_BOLDNESS))

    def take(self, *, out: bool) -> bool:
        """Note one part and say whether there are too many by now."""
        most = self._most
        if out:
            factors = [1.0 + bold * (1.0 - most) / most for bold in _BOLDNESS]
        else:
            factors = [1.0 - bold for bold in _BOLDNESS]
        self._wager.take(factors)
        return self._wager.capital >= self._alarm_at


class RankWatch:
    """Watches that each value ranks anywhere among those before it, as likely as not.

    It wagers that values rise, or that they fall, by the sign of its `tilts`.
    """

    def __init__(
        self,
        reference: Sequence[float],
        *,
        tilts: Sequence[float],
        delta: float,
        coin: Callable[[], float],
    ) -> None:
        self._reference = sorted(reference)
        self._tilts = tuple(tilts)
        self._alarm_at = 1.0 / delta
        self._coin = coin
        self._wager = Wager(len(self._tilts))

    def take(self, value: float) -> bool:
        """Note one value and say whether the order of the last ones is no chance."""
        low, high = bisect_left(self._reference, value), bisect_right(self._reference, value)
        above, equal = len(self._reference) - high, high - low
        p = (above + self._coin() * (equal + 1)) / (len(self._reference) + 1)
        self._wager.take([1.0 + tilt * (p - 0.5) for tilt in self._tilts])
        if len(self._reference) < REFERENCE_MAX:
            insort(self._reference, value)
        return self._wager.capital >= self._alarm_at


class ScoreWatch:
    """Watches the scores of all judged parts, most of which are taken to be good.

    `good` are the scores behind the certificate, `defects_most` the largest share of
    defective parts that is no drift. Scores that rise are held against `good` and all parts
    since, scores that fall against the parts since alone: a part the model was taught
    without scores a little higher than its like on the line, and that is no fall.
    """

    def __init__(
        self,
        good: Sequence[float],
        *,
        defects_most: float,
        delta: float,
        coin: Callable[[], float],
    ) -> None:
        scores, n = sorted(good), len(good)
        index = math.ceil(BULK_SHARE * n)
        self._cap = scores[index - 1]
        # A quarter of the chance is for the cap being off, one for each wager.
        beyond = upper_bound(n - index, n, confidence=1.0 - delta / 4.0)
        self._many = ShareWatch(defects_most + (1.0 - defects_most) * beyond, delta=delta / 4.0)
        bulk = [score for score in scores if score < self._cap]
        self._rises = RankWatch(bulk, tilts=_RISING, delta=delta / 4.0, coin=coin)
        self._falls = RankWatch([], tilts=_FALLING, delta=delta / 4.0, coin=coin)

    def take(self, score: float) -> str | None:
        """Note one score and say what is unusual by now."""
        too_many = self._many.take(out=score > self._cap)
        if score < self._cap:
            if self._rises.take(score):
                return "the scores of good parts have risen"
            if self._falls.take(score):
                return "the scores of good parts have fallen"
        return "too many parts are unlike good ones" if too_many else None


class FigureWatch:
    """Watches one figure of the pictures against those of teaching."""

    def __init__(self, values: Sequence[float], *, delta: float, least_margin: float = 0.0) -> None:
        ordered, n = sorted(values), len(values)
        beyond = math.floor(_USUAL * n)
        low, high = ordered[beyond], ordered[n - 1 - beyond]
        margin = max(_MARGIN * max(abs(low), abs(high)), least_margin)
        self.low, self.high = low - margin, high + margin
        # Of pictures like these, as many as rank beyond the two, and one to each side.
        outside = upper_bound(min(2 * beyond + 1, n - 1), n, confidence=1.0 - delta / 2.0)
        self._many = ShareWatch(outside, delta=delta / 2.0)
        self.last = low

    def take(self, value: float) -> bool:
        """Note one picture and say whether too many are out of range by now."""
        self.last = value
        return self._many.take(out=self.strays)

    @property
    def strays(self) -> bool:
        """Whether the last picture was out of range."""
        return not self.low <= self.last <= self.high

    def words(self, what: str, lower: str, higher: str) -> str:
        """Say where the last picture lies."""
        side = lower if self.last < self.low else higher
        return f"{side}: {what} {self.last:.3g}, good parts had {self.low:.3g} to {self.high:.3g}"


class DriftWatch:
    """All that is watched of one certificate; after an alarm there is nothing left to watch."""

    def __init__(
        self,
        good: Sequence[float],
        norm: PictureNorm | None,
        *,
        defects_most: float,
        false_alarm: float,
        coin: Callable[[], float],
    ) -> None:
        delta = false_alarm / WATCHES
        self._scores = (
            ScoreWatch(good, defects_most=defects_most, delta=2 * delta, coin=coin)
            if len(good) >= PARTS_MIN
            else None
        )
        self._figures: dict[str, FigureWatch] = {}
        self._outline: Outline | None = None
        self._mark: int | None = None
        self._same = 0
        if norm is None or len(norm.brightness) < PARTS_MIN:
            return
        self._figures["brightness"] = FigureWatch(norm.brightness, delta=delta)
        self._figures["focus"] = FigureWatch(norm.focus, delta=delta)
        if max(norm.shift) <= _IN_PLACE:
            self._outline = Outline.decoded(norm.outline)
            self._figures["place"] = FigureWatch(
                norm.shift, delta=delta, least_margin=_PLACE_MARGIN
            )

    def watches(self) -> str:
        """Say what is watched."""
        names = [*(["scores"] if self._scores else []), *self._figures, "frozen pictures"]
        return ", ".join(names)

    def take(self, score: float | None, look: Look | None) -> Alarm | None:
        """Note a part, and return an alarm when it is no chance any more."""
        alarm = None if look is None else self._see(look)
        moved = None if score is None or self._scores is None else self._scores.take(score)
        if alarm is not None or moved is None:
            return alarm
        astray = self._astray()
        if astray:
            return Alarm(words=f"{moved}; {'; '.join(astray)}", picture_at_fault=True)
        known = "light, focus and place are as taught" if self._figures else "pictures unmeasured"
        return Alarm(words=f"{moved}; {known}: new material?", picture_at_fault=False)

    def _see(self, look: Look) -> Alarm | None:
        self._same = self._same + 1 if look.mark == self._mark else 1
        self._mark = look.mark
        if self._same >= FROZEN_AFTER:
            return Alarm(
                words=f"the camera is frozen: {self._same} identical pictures in a row",
                picture_at_fault=True,
            )
        values = {"brightness": look.brightness, "focus": look.focus}
        if self._outline is not None:
            values["place"] = self._outline.shift(look.small)
        late = [name for name, watch in self._figures.items() if watch.take(values[name])]
        if not late:
            return None
        return Alarm(words="; ".join(self._astray() or late), picture_at_fault=True)

    def _astray(self) -> list[str]:
        return [watch.words(*_WORDS[name]) for name, watch in self._figures.items() if watch.strays]


_WORDS: Final = {
    "brightness": ("brightness", "darker than taught", "brighter than taught"),
    "focus": ("focus", "out of focus", "sharper than taught"),
    "place": ("shift", "in place", "out of place"),
}
