"""The rule by which a model takes over from another, or is sent back. Pure.

Both judge the same parts; the one in service is taken at its word. A newcomer may pass no
more than a set share of the parts the old one rejects, and stop no more than a set share of
those it passes. Against each claim capital is staked that, while the claim holds, is 1 on
average, so that it ever reaches 1 / delta with a chance of delta at most (Ville): that is
the stated chance of sending a good model back, however long it is watched.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qcnode.domain import Verdict

_BOLD: Final = 0.5
_CAREFUL: Final = 2.0


class Stage(StrEnum):
    """How far a newcomer has come."""

    SHADOW = "shadow"
    """It judges beside the model in service, and nothing follows from it."""
    CANARY = "canary"
    """It decides a share of the parts; the old model judges these, too."""
    WATCHED = "watched"
    """It decides all parts, and the old model stays warm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRule:
    """How long each stage lasts, in parts that both judged, and what sends a model back.

    Beside these, one failure to answer does, and taking more than `slower_most` times the
    processor time. `false_alarm` is the chance, over a whole change, that a model within
    both tolerances is sent back.
    """

    shadow_parts: int = 200
    canary_share: float = 0.1
    canary_parts: int = 100
    watched_parts: int = 500
    passes_rejected_most: float = 0.05
    stops_passed_most: float = 0.1
    false_alarm: float = 0.01
    slower_most: float = 3.0

    def __post_init__(self) -> None:
        shares = (self.passes_rejected_most, self.stops_passed_most, self.false_alarm)
        if not all(0.0 < share < _BOLD for share in shares) or not 0.0 < self.canary_share <= 1.0:
            raise ValueError(f"a share lies between 0 and 0.5, that of the canary up to 1: {self}")
        if min(self.shadow_parts, self.canary_parts, self.watched_parts) < 1:
            raise ValueError(f"each stage takes a part at least: {self}")

    def parts_of(self, stage: Stage) -> int:
        """Return how many parts a stage lasts."""
        return {
            Stage.SHADOW: self.shadow_parts,
            Stage.CANARY: self.canary_parts,
            Stage.WATCHED: self.watched_parts,
        }[stage]


@dataclass(slots=True, kw_only=True)
class Claim:
    """No more than `most` of these parts are out; the capital staked against it."""

    most: float
    bold: float = 1.0
    careful: float = 1.0

    def take(self, *, out: bool) -> None:
        """Win or lose on one part."""
        self.bold *= _ratio(_BOLD, self.most, out=out)
        self.careful *= _ratio(min(_CAREFUL * self.most, _BOLD), self.most, out=out)

    @property
    def capital(self) -> float:
        """The mean of both stakes, which is 1 on average while the claim holds."""
        return (self.bold + self.careful) / 2.0


class Agreement:
    """What both models said of the same parts, and what follows from it."""

    def __init__(self, rule: ChangeRule) -> None:
        self.rule = rule
        self.pairs: Counter[tuple[Verdict, Verdict]] = Counter()
        """How often the old model said one thing and the new one another, or the same."""
        self.old_cpu_ns = 0
        self.new_cpu_ns = 0
        self._passes = Claim(most=rule.passes_rejected_most)
        self._stops = Claim(most=rule.stops_passed_most)

    def take(self, old: Verdict, new: Verdict, *, old_cpu_ns: int, new_cpu_ns: int) -> None:
        """Note one part."""
        self.pairs[old, new] += 1
        self.old_cpu_ns += old_cpu_ns
        self.new_cpu_ns += new_cpu_ns
        if old is Verdict.NOT_OK:
            self._passes.take(out=new is Verdict.OK)
        elif old is Verdict.OK:
            self._stops.take(out=new is not Verdict.OK)

    @property
    def parts(self) -> int:
        """How many parts both judged."""
        return sum(self.counts().values())

    def counts(self) -> dict[tuple[Verdict, Verdict], int]:
        """Return the pairs as they are now; any thread may ask."""
        return dict(self.pairs)

    def agreeing(self) -> float:
        """Return the share of parts of which both said the same."""
        counts = self.counts()
        same = sum(count for (old, new), count in counts.items() if old is new)
        return same / sum(counts.values()) if counts else 0.0

    def slower(self) -> float:
        """Return how many times the processor time the new model takes."""
        return self.new_cpu_ns / self.old_cpu_ns if self.old_cpu_ns else 1.0

    def objection(self) -> str | None:
        """Say why the new model is sent back; None while there is no reason."""
        alarm_at = 2.0 / self.rule.false_alarm
        for claim, old, what in (
            (self._passes, Verdict.NOT_OK, "passes {} of {} parts that the old model rejects"),
            (self._stops, Verdict.OK, "stops {} of {} parts that the old model passes"),
        ):
            if claim.capital >= alarm_at:
                judged = {new: n for (said, new), n in self.pairs.items() if said is old}
                passed = judged.get(Verdict.OK, 0)
                total = sum(judged.values())
                out = passed if old is Verdict.NOT_OK else total - passed
                return f"it {what.format(out, total)}, and {claim.most:.0%} are tolerated"
        return None

    def too_slow(self) -> str | None:
        """Say so if the new model takes too long; asked once there are enough parts."""
        if self.slower() <= self.rule.slower_most:
            return None
        return (
            f"it takes {self.slower():.1f} times the processor time of the old model, and"
            f" {self.rule.slower_most:g} times are allowed"
        )


def _ratio(taken: float, claimed: float, *, out: bool) -> float:
    return taken / claimed if out else (1.0 - taken) / (1.0 - claimed)
