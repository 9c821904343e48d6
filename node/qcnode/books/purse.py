"""The purse: what the budgets leave for questions just now, and what is wrong with them.

It decides nothing and holds nothing back: the ledger refuses what does not fit, whatever
was said here before. Without a price, with prices that nobody has checked for too long,
or with a shared budget of which nothing is lent, it leaves nothing. Any thread may ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from qcnode.books.forecast import Alarm, Arrivals, Outlook, affordable, outlook
from qcnode.domain import Allowance
from qcnode.errors import BudgetExceededError
from qcnode.policy import share_to_ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import date

    from qcnode.books.ledger import BudgetState, SqliteLedger
    from qcnode.health import HealthBoard
    from qcnode.money import CostCentre, LedgerTotals, WorstCase

BUDGET = "budget"
PRICES = "prices"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ORDER = tuple(Alarm)
_ALL = Allowance(fits=None, share=1.0)
_NOTHING = Allowance(fits=0, share=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceAge:
    """When the prices in force were last checked, and for how long that is good.

    `checked_on` gives None where there is no price at all. `capped` says that a budget of
    calls bounds what may be spent at stale prices; without it nothing is.
    """

    checked_on: Callable[[], date | None]
    days_max: int
    capped: bool


class Purse:
    """What may be asked on one cost centre's account."""

    def __init__(
        self,
        *,
        ledger: SqliteLedger,
        centre: CostCentre,
        health: HealthBoard,
        now: Callable[[], datetime],
        price_age: PriceAge | None = None,
    ) -> None:
        self._ledger = ledger
        self._centre = centre
        self._health = health
        self._now = now
        self._price_age = price_age
        self._arrivals = Arrivals()
        self._worst: WorstCase | None = None

    def arrived(self, at: datetime) -> None:
        """Note one more part that somebody has to rule on."""
        self._arrivals.add((at - _EPOCH) // timedelta(microseconds=1))

    def look(self, worst: WorstCase | None) -> Allowance:
        """Say what may be asked when the next request may need so much; None has no price.

        What is wrong goes on the health board.
        """
        self._worst = worst
        totals = self._ledger.totals()
        usable = self._look_at_prices(worst, totals)
        outlooks = self.outlooks()
        try:
            allowance = _ALL if worst is None else self._allowance(outlooks, worst, totals)
        except BudgetExceededError as error:  # Of another currency.
            self._health.report(BUDGET, ok=False, words=str(error))
            return _NOTHING
        self._report(outlooks)
        return allowance if usable else _NOTHING

    def outlooks(self) -> tuple[Outlook, ...]:
        """Return how each budget stands that counts what is spent here, as of now."""
        return tuple(outlook(state, worst=self._amount(state)) for state in self._states())

    def _states(self) -> Iterable[BudgetState]:
        return (state for state in self._ledger.budgets() if state.budget.covers(self._centre))

    def _amount(self, state: BudgetState) -> int | None:
        """Return what the next request may need of a budget; None is not known."""
        worst = self._worst
        if worst is None:
            return None
        try:
            return state.budget.amount(worst.hold, worst.usage)
        except BudgetExceededError:
            return None

    def _allowance(
        self, outlooks: tuple[Outlook, ...], worst: WorstCase, totals: LedgerTotals
    ) -> Allowance:
        fits, share = _ALL.fits, _ALL.share
        for one in outlooks:
            state = one.state
            amount = state.budget.amount(worst.hold, worst.usage)
            if amount:
                left = max(0, state.left) // amount
                fits = left if fits is None else min(fits, left)
            pays_for = affordable(state, worst=amount, usual=_usual(state, totals) or amount)
            share = min(share, share_to_ask(pays_for, self._arrivals.expected(state)))
        return Allowance(fits=fits, share=share)

    def _look_at_prices(self, worst: WorstCase | None, totals: LedgerTotals) -> bool:
        """Say whether anything may be asked at these prices; report what is wrong with them."""
        if worst is None:
            words = "the provider's model has no price: undecided parts wait for people"
            self._health.report(PRICES, ok=False, words=words)
            return False
        stale = self._stale()
        if stale is not None:
            self._health.report(PRICES, ok=False, words=stale)
        elif totals.unpriced:
            words = (
                f"{totals.unpriced} answers had no price and are held at their worst case:"
                " add the rows to the price file"
            )
            self._health.report(PRICES, ok=False, words=words)
        else:
            self._health.report(PRICES, ok=True, words=self._checked())
        return stale is None or self._price_age is None or self._price_age.capped

    def _stale(self) -> str | None:
        age = self._price_age
        checked_on = None if age is None else age.checked_on()
        if age is None or checked_on is None:
            return None
        days = (self._now().date() - checked_on).days
        if days <= age.days_max:
            return None
        return (
            f"last checked on {checked_on}, {days} days ago, and {age.days_max} are allowed:"
            " check them and set checked_at in the price file"
        )

    def _checked(self) -> str:
        checked_on = None if self._price_age is None else self._price_age.checked_on()
        return "known" if checked_on is None else f"checked on {checked_on}"

    def _report(self, outlooks: tuple[Outlook, ...]) -> None:
        if not outlooks:
            return
        wrong = sorted(
            (one for one in outlooks if one.alarm is not None),
            key=lambda one: _ORDER.index(one.alarm or Alarm.MUCH),
        )
        if not wrong:
            names = ", ".join(one.state.budget.name for one in outlooks)
            self._health.report(BUDGET, ok=True, words=f"enough of {names}")
            return
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        self._health.report(BUDGET, ok=False, words=words_of(wrong[0]) + more)


def words_of(one: Outlook) -> str:
    """Say what is wrong with a budget, and what becomes of parts."""
    state, name = one.state, one.state.budget.name
    window = f"this {state.budget.window}"
    percent = 100 * state.used // state.limit if state.limit else 100
    if one.alarm is Alarm.NOT_LENT:
        return (
            f"{name} is shared and the billing server has lent none of it:"
            " undecided parts wait for people"
        )
    if one.alarm is Alarm.EXHAUSTED:
        return f"{name} is used up for {window}: undecided parts wait for people"
    if one.alarm is Alarm.OVER:
        return f"{name}: {percent} % used, and {window} will want more: only the best questions go"
    if one.alarm is Alarm.MUCH:
        return f"{name}: {percent} % used in {window}"
    return f"{name}: {percent} % used"


def _usual(state: BudgetState, totals: LedgerTotals) -> int | None:
    """Return what a request has cost so far on average; None where none was ever settled."""
    if state.budget.unit == "calls":
        return 1
    answered = totals.settled + totals.reconciled - totals.unpriced
    if answered <= 0:
        return None
    if state.budget.unit == "tokens":
        return (totals.input_tokens + totals.output_tokens) // answered
    return totals.cost_pico.get(state.budget.currency or "", 0) // answered or None
