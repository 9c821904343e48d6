"""What ledger entries amount to: who is open, what was spent, what is held.

Pure, and made from the entries alone, so it can be thrown away and counted again.
An attempt counts in the UTC day in which its intent was made, first at its hold,
then at what it cost. A hold is given back only for a known cost or a known refusal:
what is unpriced or indeterminate goes on counting at its worst case.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from qcnode.domain import Indeterminate, Intent, LedgerTotals, Settled
from qcnode.errors import BudgetExceededError

if TYPE_CHECKING:
    from qcnode.domain import Cost, LedgerEntry, LedgerFact

_US_PER_DAY = 86_400_000_000
_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that may be spent in one window, in one currency."""

    currency: str
    limit_pico: int
    window: Literal["day"] = "day"
    """From midnight to midnight in UTC."""

    def __post_init__(self) -> None:
        if self.limit_pico < 0:
            raise ValueError(f"a budget is never negative: {self}")


@dataclass(slots=True)
class Tally:
    """The sums up to and with entry `seq`, whose hash is `hash`."""

    seq: int
    hash: bytes
    open: dict[str, tuple[Intent, int]] = field(default_factory=dict)
    """Intents without an outcome by attempt id, each with the time of its entry."""
    settled: int = 0
    not_billed: int = 0
    indeterminate: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_pico: dict[str, int] = field(default_factory=dict)
    held_pico: dict[str, int] = field(default_factory=dict)
    counted_pico: dict[tuple[str, int], int] = field(default_factory=dict)
    """Costs and holds by currency and UTC day of the intent."""

    def copy(self) -> Tally:
        """Return one that can be added to without touching this one."""
        return replace(
            self,
            open=dict(self.open),
            cost_pico=dict(self.cost_pico),
            held_pico=dict(self.held_pico),
            counted_pico=dict(self.counted_pico),
        )

    def left_pico(self, budget: Budget, at_us: int) -> int:
        """Return what `budget` has left in the window of `at_us`; below zero is a debt."""
        counted = self.counted_pico.get((budget.currency, at_us // _US_PER_DAY), 0)
        return budget.limit_pico - counted

    def check(self, fact: LedgerFact, *, at_us: int, budget: Budget | None) -> None:
        """Raise when `fact` may not follow: `BudgetExceededError`, or `ValueError`."""
        if not isinstance(fact, Intent):
            if fact.attempt_id not in self.open:
                raise ValueError(
                    f"attempt {fact.attempt_id} is not open:"
                    " it has no intent on record, or its outcome already"
                )
            return
        if fact.hold.pico < 0:
            raise ValueError(f"attempt {fact.attempt.id} would hold less than nothing: {fact.hold}")
        if budget is None:
            return
        if fact.hold.currency != budget.currency:
            raise BudgetExceededError(
                f"this request costs {fact.hold.currency} and the budget is in {budget.currency}:"
                " set the budget in the currency of the price book"
            )
        left = self.left_pico(budget, at_us)
        if fact.hold.pico > left:
            raise BudgetExceededError(
                f"the budget of this {budget.window} has {max(left, 0)} pico-{budget.currency}"
                f" left and the request may cost {fact.hold.pico}:"
                " raise the budget, or rule on the part by hand"
            )

    def add(self, entry: LedgerEntry, fact: LedgerFact) -> None:
        """Count the entry that follows; the caller has checked it."""
        self.seq, self.hash = entry.seq, entry.hash
        if isinstance(fact, Intent):
            self.open[fact.attempt.id] = (fact, entry.at_us)
            self._count(fact.hold, entry.at_us)
            _add(self.held_pico, fact.hold.currency, fact.hold.pico)
            return
        intent, intended_us = self.open.pop(fact.attempt_id)
        held = intent.hold
        _add(self.held_pico, held.currency, -held.pico)
        if isinstance(fact, Settled):
            self.settled += 1
            self.input_tokens += fact.usage.input_tokens
            self.output_tokens += fact.usage.output_tokens
            if fact.cost is None:
                self.unpriced += 1  # Its hold goes on counting: unknown is never zero.
                return
            self._count(held, intended_us, sign=-1)
            self._count(fact.cost, intended_us)
            _add(self.cost_pico, fact.cost.currency, fact.cost.pico)
        elif isinstance(fact, Indeterminate):
            self.indeterminate += 1
            self._count(held, intended_us, sign=-1)
            self._count(fact.hold, intended_us)
            _add(self.held_pico, fact.hold.currency, fact.hold.pico)
        else:
            self.not_billed += 1
            self._count(held, intended_us, sign=-1)

    def totals(self) -> LedgerTotals:
        """Return the sums as everybody else sees them."""
        outcomes = self.settled + self.not_billed + self.indeterminate
        return LedgerTotals(
            entries=self.seq,
            attempts=outcomes + len(self.open),
            open=len(self.open),
            settled=self.settled,
            not_billed=self.not_billed,
            indeterminate=self.indeterminate,
            unpriced=self.unpriced,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cost_pico=dict(self.cost_pico),
            held_pico={currency: pico for currency, pico in self.held_pico.items() if pico},
        )

    def _count(self, cost: Cost, at_us: int, *, sign: int = 1) -> None:
        _add(self.counted_pico, (cost.currency, at_us // _US_PER_DAY), sign * cost.pico)


def attempt_of(fact: LedgerFact) -> str:
    """Return the id of the attempt that `fact` is about."""
    return fact.attempt.id if isinstance(fact, Intent) else fact.attempt_id


def _add(sums: dict[_Key, int], key: _Key, amount: int) -> None:
    sums[key] = sums.get(key, 0) + amount
