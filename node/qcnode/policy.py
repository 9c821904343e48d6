"""The rules by which parts are judged and agents are trusted.

Pure functions: no clock, no settings, no log. Whoever asks brings all that counts
as values and gets the same answer every time.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING

from qcnode.domain import Action, Decider, Disposition, Finding, Limits, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qcnode.domain import Allowance, Prediction

_PRIOR_STEPS = 4
_PRIOR_WEIGHT = 4.0
"""What two limits say of the band, at nine scores, weighs as much as 36 rulings."""


def judge(prediction: Prediction | None, limits: Limits) -> Verdict:
    """Say what the evidence supports; a score on a limit gets the stricter verdict.

    Where the limits cross (parts pass up to a score from which others are rejected)
    everything between them is asked about.
    """
    if prediction is None:
        return Verdict.UNDEFINED
    accept_below, reject_from = _in_order(limits)
    if reject_from is not None and prediction.score >= reject_from:
        return Verdict.NOT_OK
    if accept_below is not None and prediction.score < accept_below:
        return Verdict.OK
    return Verdict.NOT_DECIDABLE


def widened(limits: Limits, good: Sequence[float], *, picture_at_fault: bool) -> Limits:
    """Return the limits that are left of those whose certificate was revoked.

    Nothing is rejected unasked, since good parts may score anything now. What passes must
    look better than the middle of the `good` parts that were calibrated on, and where the
    picture itself is at fault nothing passes either: it may hide what there is to see.
    """
    if picture_at_fault or not good or limits.accept_below is None:
        return Limits(accept_below=None, reject_from=None)
    accept_below = min(*_known(limits), median_low(good))
    return Limits(accept_below=accept_below, reject_from=None)


def _known(limits: Limits) -> list[float]:
    return [one for one in (limits.accept_below, limits.reject_from) if one is not None]


def action_for(verdict: Verdict, *, failsafe: Action) -> Action:
    """Say what the gate does; without evidence it does what the line chose beforehand."""
    if verdict is Verdict.OK:
        return Action.ACCEPT
    if verdict is Verdict.NOT_OK:
        return Action.REJECT
    if verdict is Verdict.NOT_DECIDABLE:
        return Action.DIVERT
    return failsafe


def choose_decider(
    verdict: Verdict,
    allowance: Allowance,
    *,
    cloud_reachable: bool,
    room: bool,
    rank: float,
) -> Decider:
    """Say who has the last word on a part.

    The operator is the answer to every doubt about the cloud: a part is never passed
    because nobody could be asked, and what the limits decide is nobody's question. As a
    budget runs low the questions worth most are asked first: `rank` is the share of the
    undecided parts that would be more worth asking about, so with enough for a third of
    them the best third is asked, and people rule on the rest. `room` says whether the
    agent has any left.
    """
    if verdict in (Verdict.OK, Verdict.NOT_OK):
        return Decider.NODE
    if verdict is Verdict.UNDEFINED:
        return Decider.OPERATOR  # Without a picture the agent has nothing to see.
    affordable = allowance.fits is None or allowance.fits > 0
    if cloud_reachable and affordable and room and rank < allowance.share:
        return Decider.AGENT
    return Decider.OPERATOR


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens for questions, as many as were left at an instant; each question takes one."""

    tokens: float
    at_s: float


def refilled(bucket: Bucket, now_s: float, *, per_minute: float, most: int) -> Bucket:
    """Return the bucket as it is now: it fills steadily and holds `most`."""
    gone_s = max(0.0, now_s - bucket.at_s)
    return Bucket(min(float(most), bucket.tokens + gone_s * per_minute / 60.0), now_s)


def share_to_ask(affordable: int, expected: int | None) -> float:
    """Return what share of the parts to come may be asked about, of the best ones.

    The first questions of a thousand parts avoid an error each four, the next hundred
    one each thirty-five: a budget spread over the whole window over the best of them
    avoids the most. Where nobody knows yet how many parts will come (None), each
    question that fits is asked, and the budget itself is the limit.
    """
    if affordable <= 0:
        return 0.0
    if expected is None or affordable >= expected:
        return 1.0
    return affordable / expected


def rank_among(doubt: float, recent: Sequence[float]) -> float:
    """Return what share of `recent` doubts, in rising order, is larger: of the largest, 0."""
    return 1.0 - bisect_right(recent, doubt) / len(recent) if recent else 0.0


def boundary(limits: Limits) -> float | None:
    """Return the score from which the node alone, with nobody to ask, would reject.

    That is the middle between two limits, or the one there is.
    """
    accept_below, reject_from = _in_order(limits)
    if accept_below is None or reject_from is None:
        return reject_from if accept_below is None else accept_below
    return (accept_below + reject_from) / 2


def alone(score: float | None, limits: Limits) -> Action:
    """Say what would have become of a part with nobody to ask; without evidence, nothing."""
    turns = boundary(limits)
    if score is None or turns is None:
        return Action.DIVERT
    return Action.ACCEPT if score < turns else Action.REJECT


@dataclass(frozen=True, slots=True)
class Leaning:
    """How likely a part of some score is defective: never less for a higher score."""

    scores: tuple[float, ...]
    chances: tuple[float, ...]

    def chance(self, score: float) -> float:
        """Return how likely a part of this score is defective."""
        at = bisect_right(self.scores, score)
        if at in (0, len(self.scores)):
            return self.chances[max(0, at - 1)]
        low, high = self.scores[at - 1], self.scores[at]
        into = (score - low) / (high - low)
        return self.chances[at - 1] * (1 - into) + self.chances[at] * into

    def doubt(self, score: float) -> float:
        """Return how likely the node alone would be wrong: at most a half.

        Questions about parts of one line cost about as many tokens each, so in this
        order they also save the most for each token.
        """
        chance = self.chance(score)
        return min(chance, 1.0 - chance)


def lean(limits: Limits, recent: Sequence[float], ruled: Iterable[tuple[float, bool]]) -> Leaning:
    """Weigh what was ruled on this line (score, defective) against what the limits say.

    The limits alone say: certainly good at the one, certainly defective at the other, and
    an even chance where the node would change its mind. A limit that was not earned stands
    where the `recent` scores end. Rulings move this, so the band follows the line: how
    common defects are, and that the chance need not rise as fast on both sides.
    """
    points = [*_prior(limits, recent), *((score, float(bad), 1.0) for score, bad in ruled)]
    points.sort(key=lambda point: (point[0], -point[1]))
    # Pool adjacent violators: neighbours that would fall are taken together.
    pools: list[list[float]] = []  # weight, sum of scores, sum of chances
    for score, chance, weight in points:
        pools.append([weight, weight * score, weight * chance])
        while len(pools) > 1 and pools[-2][2] * pools[-1][0] >= pools[-1][2] * pools[-2][0]:
            last = pools.pop()
            pools[-1] = [one + other for one, other in zip(pools[-1], last, strict=True)]
    return Leaning(
        scores=tuple(scores / weight for weight, scores, _chances in pools),
        chances=tuple(chances / weight for weight, _scores, chances in pools),
    )


def _prior(limits: Limits, recent: Sequence[float]) -> Iterable[tuple[float, float, float]]:
    """Yield scores, chances and their weights, as the limits alone have them."""
    accept_below, reject_from = _in_order(limits)
    turns = boundary(limits)
    if turns is None:
        yield (sum(recent) / len(recent) if recent else 0.0), 0.5, _PRIOR_WEIGHT
        return
    yield turns, 0.5, _PRIOR_WEIGHT
    below = turns - (min([*recent, turns]) if accept_below is None else accept_below)
    above = (max([*recent, turns]) if reject_from is None else reject_from) - turns
    for step in range(1, _PRIOR_STEPS + 1):
        away = step / _PRIOR_STEPS
        if below:
            yield turns - below * away, 0.5 - away / 2, _PRIOR_WEIGHT
        if above:
            yield turns + above * away, 0.5 + away / 2, _PRIOR_WEIGHT


def _in_order(limits: Limits) -> tuple[float | None, float | None]:
    """Return the limits, the lower one first: between crossed ones everything is asked."""
    accept_below, reject_from = limits.accept_below, limits.reject_from
    if accept_below is None or reject_from is None:
        return accept_below, reject_from
    return min(accept_below, reject_from), max(accept_below, reject_from)


def disposition_of(finding: Finding) -> Disposition | None:
    """Say what a finding means for the part; an unsure one means nothing yet."""
    if finding is Finding.GOOD:
        return Disposition.RELEASE
    if finding is Finding.DEFECTIVE:
        return Disposition.SCRAP
    return None
