"""What a budget will have come to at the end of its window, and what to say of it now.

Pure. A forecast goes on at the rate of the window so far, as if requests came one by one
at a steady rate; a shift that ends or a worse lot is not foreseen, and the interval says
no more than how far chance alone may lead away from that. Without anything counted there
is no forecast.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcnode.books.ledger import BudgetState

SURE = 1.645
"""Nineteen times of twenty what comes lies on this side of so many standard deviations."""
MUCH_PERCENT = 80
_HOUR_US = 3_600_000_000
_HOURS_MAX = 7 * 24
_ARRIVALS_MIN = 20
_WINDOW_PART = 24
_LIMIT_PART = 4


class Alarm(StrEnum):
    """What is wrong with a budget, the worst first; each one holds for those that follow."""

    NOT_LENT = "not lent"
    """Shared, and the billing server has lent this node none of it."""
    EXHAUSTED = "exhausted"
    """Not one more request fits."""
    OVER = "over"
    """Going on like this more will be wanted than the limit, by chance not once in twenty."""
    MUCH = "much"
    """More than eighty percent are used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a window comes to at its end: most likely, and nine times of ten between these.

    `used_up_us` is when the limit is reached at this rate; None is not in this window.
    """

    expected: int
    low: int
    high: int
    used_up_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A budget as it stands, what it will come to, and what is wrong with that."""

    state: BudgetState
    forecast: Forecast | None
    alarm: Alarm | None


def outlook(state: BudgetState, *, worst: int | None = None) -> Outlook:
    """Look at one budget; `worst` is what the next request may need of it, if that is known."""
    coming = forecast(state)
    alarm = None
    if not state.lent:
        alarm = Alarm.NOT_LENT
    elif state.left < (1 if worst is None else worst):
        alarm = Alarm.EXHAUSTED
    elif coming is not None and coming.low > state.limit:
        alarm = Alarm.OVER
    elif state.used * 100 >= state.limit * MUCH_PERCENT:
        alarm = Alarm.MUCH
    return Outlook(state=state, forecast=coming, alarm=alarm)


def forecast(state: BudgetState) -> Forecast | None:
    """Go on at the rate of the window so far; None while nothing is counted in it.

    The requests to come are as many as those that came, in proportion to the time, give
    or take what both counts vary by chance: for requests of one size their variance is
    n * r * (1 + r), with r the time to come over the time gone. One more than came is
    taken for n there, because a few may have come early by luck.
    """
    gone, to_come = state.at_us - state.span.from_us, state.span.until_us - state.at_us
    if state.calls <= 0 or state.used <= 0 or gone <= 0:
        return None
    ratio = to_come / gone
    each = state.used / state.calls
    spread = SURE * each * math.sqrt((state.calls + 1) * ratio * (1 + ratio))
    expected = state.used + state.used * to_come // gone
    return Forecast(
        expected=expected,
        low=max(state.used, expected - round(spread)),
        high=expected + round(spread),
        used_up_us=_used_up(state, gone) if expected > state.limit else None,
    )


def affordable(state: BudgetState, *, worst: int, usual: int) -> int:
    """Return how many more requests a budget pays for in this window.

    The last one must fit at its worst case, those before it cost what they usually do.
    """
    if state.left < worst:
        return 0
    if worst <= 0:
        return sys.maxsize  # What is free is never used up.
    return 1 + (state.left - worst) // max(1, min(usual, worst))


class Arrivals:
    """How often something came, hour by hour over the last week."""

    def __init__(self) -> None:
        self._hours: dict[int, int] = {}
        self._since_us: int | None = None

    def add(self, at_us: int) -> None:
        """Note that it came once more."""
        if self._since_us is None:
            self._since_us = at_us
        hour = at_us // _HOUR_US
        self._hours[hour] = self._hours.get(hour, 0) + 1
        for old in [known for known in self._hours if known <= hour - _HOURS_MAX]:
            del self._hours[old]

    def expected(self, state: BudgetState) -> int | None:
        """Return how often it will come until the end of a budget's window.

        None while that would be a guess: it has come too rarely, or been watched for too
        short a part of the window. When much is used up already, a guess is better.
        """
        if self._since_us is None:
            return None
        since_us = max(self._since_us, state.at_us - _HOURS_MAX * _HOUR_US)
        watched, came = state.at_us - since_us, sum(self._hours.values())
        window = state.span.until_us - state.span.from_us
        hasty = watched * _WINDOW_PART < window and state.used * _LIMIT_PART < state.limit
        if watched <= 0 or came < _ARRIVALS_MIN or hasty:
            return None
        return came * (state.span.until_us - state.at_us) // watched


def _used_up(state: BudgetState, gone: int) -> int:
    return state.at_us + max(0, state.left) * gone // state.used
