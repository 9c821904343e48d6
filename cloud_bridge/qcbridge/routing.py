"""Which of several providers is asked, and when another is asked as well. Pure.

The cheapest that has proved good enough on this line: the least its share of right
rulings can be, with 95 % confidence, reaches the floor. One that has not been seen
enough gets a share of the questions as trials, so that it can prove itself; one whose
share can be no more than less than the floor is not asked. What an answer is worth is
never guessed: without a figure for what a wrong ruling costs, nobody is asked twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from qcnode.certify import lower_bound, upper_bound

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qcnode.money import Cost

CONFIDENCE: Final = 0.95
_PICO_PER_MICRO: Final = 10**6


class Standing(StrEnum):
    """What is known of a provider's rulings on this line."""

    PROVED = "proved"
    UNPROVED = "unproved"
    DISPROVED = "disproved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A provider as it stands just now.

    `price` is the worst case of one request, None where it has no price. `against` says why
    it cannot be asked now, whoever else can; `right` and `wrong` are its settled rulings.
    """

    name: str
    price: Cost | None
    against: str | None = None
    right: int = 0
    wrong: int = 0

    @property
    def settled(self) -> int:
        """How many of its rulings the truth is known of."""
        return self.right + self.wrong

    @property
    def at_least(self) -> float:
        """The least share of right rulings that its record allows for."""
        return _at_least(self.right, self.settled)

    @property
    def expected(self) -> float:
        """The share of right rulings to be expected; one half where nothing is known."""
        return (self.right + 1) / (self.settled + 2)

    def standing(self, floor: float) -> Standing:
        """Say whether it has proved to be good enough."""
        if self.at_least >= floor:
            return Standing.PROVED
        return (
            Standing.DISPROVED if _at_most(self.right, self.settled) < floor else Standing.UNPROVED
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingRule:
    """What the line asks of providers.

    `error_cost_micro` is what a wrong ruling costs, or none at all, in millionths of the
    currency that the providers are paid in.
    """

    floor: float = 0.8
    trial_share: float = 0.1
    error_cost_micro: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """Who is asked and why; `passed_over` says the same of everybody else."""

    candidate: Candidate | None
    reason: str
    passed_over: tuple[str, ...]


def pick(candidates: Sequence[Candidate], rule: RoutingRule, *, coin: float) -> Pick:
    """Say who is asked; nobody where none is allowed, there, affordable and good enough.

    `coin`, from 0 to 1, decides whether this is one of the trials. Whoever is alone is asked
    whatever its record, because what its answer may do is for others to say.
    """
    free = [one for one in candidates if one.against is None and one.price is not None]
    if len(candidates) == 1 and free:
        return _picked(free[0], "the only provider there is", candidates, rule)
    usable = [one for one in free if one.standing(rule.floor) is not Standing.DISPROVED]
    if not usable:
        return Pick(
            candidate=None,
            reason="nobody can be asked",
            passed_over=tuple(_why_not(one, rule) for one in candidates),
        )
    proved = [one for one in usable if one.standing(rule.floor) is Standing.PROVED]
    unproved = [one for one in usable if one not in proved]
    if not proved:
        return _picked(
            _cheapest(unproved), "nobody has proved good enough yet: the cheapest", candidates, rule
        )
    if unproved and coin < rule.trial_share:
        least = min(one.settled for one in unproved)
        trial = _cheapest([one for one in unproved if one.settled == least])
        return _picked(trial, f"a trial, with {trial.settled} rulings settled", candidates, rule)
    best = _cheapest(proved)
    words = f"the cheapest proved good enough: right in {best.at_least:.0%} or more"
    return _picked(best, words, candidates, rule)


def second(
    candidates: Sequence[Candidate], asked: Iterable[str], rule: RoutingRule, *, right: float
) -> Pick:
    """Say who is asked for a second opinion on a ruling that is right by the chance `right`.

    Only somebody proved good enough, whose answer can be expected to save more than its
    price: what it is more often right, at least, times what a wrong ruling costs. Of several
    the one that leaves the most.
    """
    done = set(asked)
    worth: list[tuple[int, Candidate]] = []
    for one in candidates:
        if one.name in done or one.against is not None or one.price is None:
            continue
        if one.standing(rule.floor) is not Standing.PROVED:
            continue
        left = gain_pico(one, rule, right=right) - one.price.pico
        if left > 0:
            worth.append((left, one))
    if not worth:
        return Pick(candidate=None, reason="no second opinion is worth its price", passed_over=())
    left, best = max(worth, key=lambda each: each[0])
    words = (
        f"a second opinion: right in {best.at_least:.0%} or more where {right:.0%} was to be"
        f" expected, worth {left} pico more than its price"
    )
    return _picked(best, words, candidates, rule)


def gain_pico(candidate: Candidate, rule: RoutingRule, *, right: float) -> int:
    """Return what its answer saves at least, in expectation; nothing where no error has a cost."""
    if rule.error_cost_micro is None:
        return 0
    better = max(0.0, candidate.at_least - right)
    return int(better * rule.error_cost_micro * _PICO_PER_MICRO)


def _cheapest(candidates: Sequence[Candidate]) -> Candidate:
    """Return the cheapest, and of equally cheap ones the first declared.

    What costs in two currencies is not compared: then the first declared is meant.
    """
    prices = [one.price for one in candidates if one.price is not None]
    if len({price.currency for price in prices}) > 1:
        return candidates[0]
    return min(candidates, key=lambda one: 0 if one.price is None else one.price.pico)


def _picked(
    candidate: Candidate, reason: str, candidates: Sequence[Candidate], rule: RoutingRule
) -> Pick:
    others = (one for one in candidates if one is not candidate)
    return Pick(
        candidate=candidate,
        reason=reason,
        passed_over=tuple(_why_not(one, rule) for one in others),
    )


def _why_not(one: Candidate, rule: RoutingRule) -> str:
    if one.against is not None:
        return f"{one.name}: {one.against}"
    if one.price is None:
        return f"{one.name}: it has no price"
    standing = one.standing(rule.floor)
    if standing is Standing.DISPROVED:
        return f"{one.name}: right in {one.right} of {one.settled}, below {rule.floor:.0%}"
    return f"{one.name}: {standing}, {one.price.pico} pico {one.price.currency} at most"


@lru_cache(maxsize=1024)
def _at_least(right: int, settled: int) -> float:
    return lower_bound(right, settled, confidence=CONFIDENCE) if settled else 0.0


@lru_cache(maxsize=1024)
def _at_most(right: int, settled: int) -> float:
    return upper_bound(right, settled, confidence=CONFIDENCE) if settled else 1.0
