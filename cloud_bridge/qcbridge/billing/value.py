"""What the tokens were worth: cost per correct decision, per defect caught, per part saved.

Pure. A decision counts once its truth is known. It caught a defect when a node with
nobody to ask would have passed the part, and saved a part when that node would have
scrapped a good one; harm is counted the same way round. Costs are exact and by currency;
an attempt whose cost is not known is counted beside them and never as nothing.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from qcbridge.billing.bill import round_half_even

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qcnode.money import CostCentre, Outcome

GOOD: Final = "GOOD"
DEFECTIVE: Final = "DEFECTIVE"
ACCEPT: Final = "ACCEPT"
REJECT: Final = "REJECT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One decision whose truth is known, and what it cost to come to it."""

    outcome: Outcome
    cost_pico: Mapping[str, int]
    attempts: int
    unknown: int = 0
    """Attempts whose cost nobody knows yet."""


class Account(NamedTuple):
    """Whose decisions they are."""

    department: str
    application: str
    function: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What one account got for its tokens."""

    account: Account
    decisions: int
    correct: int
    defects_caught: int
    false_rejects_avoided: int
    defects_let_through: int
    false_rejects_made: int
    attempts: int
    unknown: int
    cost_pico: dict[str, int]

    def per(self, count: int) -> dict[str, int] | None:
        """Return the cost for each of so many, in pico-units; None for none of them."""
        if not count:
            return None
        return {currency: round_half_even(pico, count) for currency, pico in self.cost_pico.items()}

    @property
    def per_correct(self) -> dict[str, int] | None:
        """Cost per correct decision."""
        return self.per(self.correct)

    @property
    def per_defect(self) -> dict[str, int] | None:
        """Cost per defect caught that a node alone would have passed."""
        return self.per(self.defects_caught)

    @property
    def per_saved(self) -> dict[str, int] | None:
        """Cost per good part that a node alone would have scrapped."""
        return self.per(self.false_rejects_avoided)


@dataclass(slots=True)
class _Counts:
    counts: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    cost_pico: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))


def value_of(judged: Iterable[Judged]) -> tuple[Value, ...]:
    """Add decisions up by department, application and function, in that order."""
    accounts: defaultdict[Account, _Counts] = defaultdict(_Counts)
    for one in judged:
        sums = accounts[account_of(one.outcome.centre)]
        counts = sums.counts
        for what in _what_it_was(one.outcome):
            counts[what] += 1
        counts["decisions"] += 1
        counts["attempts"] += one.attempts
        counts["unknown"] += one.unknown
        for currency, pico in one.cost_pico.items():
            sums.cost_pico[currency] += pico
    return tuple(
        Value(
            account=account,
            decisions=sums.counts["decisions"],
            correct=sums.counts["correct"],
            defects_caught=sums.counts["caught"],
            false_rejects_avoided=sums.counts["saved"],
            defects_let_through=sums.counts["let through"],
            false_rejects_made=sums.counts["scrapped"],
            attempts=sums.counts["attempts"],
            unknown=sums.counts["unknown"],
            cost_pico=dict(sorted(sums.cost_pico.items())),
        )
        for account, sums in sorted(accounts.items())
    )


def account_of(centre: CostCentre) -> Account:
    """Return whose decision it is."""
    return Account(centre.department, centre.application, centre.function)


def _what_it_was(outcome: Outcome) -> Iterable[str]:
    ruled, truth, alone = outcome.ruled, outcome.truth, outcome.node_alone
    if ruled == truth:
        yield "correct"
        if truth == DEFECTIVE and alone == ACCEPT:
            yield "caught"
        elif truth == GOOD and alone == REJECT:
            yield "saved"
    elif ruled == GOOD and truth == DEFECTIVE and alone != ACCEPT:
        yield "let through"
    elif ruled == DEFECTIVE and truth == GOOD and alone == ACCEPT:
        yield "scrapped"
