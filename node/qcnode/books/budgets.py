"""What may be spent: limits by scope, unit and window.

Pure. A budget covers what is spent for the cost centres it names, counted in money,
tokens or calls from the start of its window to the end, in the tenant's own time zone.
An attempt counts in the window in which it began, first with its hold, then with what
it cost. A shared budget has no limit of its own here: the billing server lends this
node a part of it, and without a lease in force nothing may be spent.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from qcnode.errors import BudgetExceededError
from qcnode.money import CostCentre, format_pico

if TYPE_CHECKING:
    from qcnode.money import Cost, Leased, TokenUsage

Unit: TypeAlias = Literal["money", "tokens", "calls"]
Window: TypeAlias = Literal["hour", "day", "week", "month"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_DECEMBER = 12
EVERYTHING = CostCentre()
_HOUR_US = timedelta(hours=1) // _US
_WINDOWS_MAX = 64
"""How many windows a meter remembers: late news of older ones changes no budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """From one instant up to, and without, another."""

    from_us: int
    until_us: int

    def holds(self, at_us: int) -> bool:
        """Say whether `at_us` lies in it."""
        return self.from_us <= at_us < self.until_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that may be spent in one window; `limit` is in pico-units for money.

    `scope` names the cost centre it is for; a field left empty is any. `shared` says
    that the limit is the billing server's to lend.
    """

    name: str
    limit: int
    unit: Unit = "money"
    currency: str | None = None
    window: Window = "day"
    zone: str = "UTC"
    scope: CostCentre = EVERYTHING
    shared: bool = False

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"a budget is never negative: {self}")
        if (self.unit == "money") != (self.currency is not None):
            raise ValueError(f"budget {self.name}: money has a currency, {self.unit} has none")
        zone_of(self.zone)

    def covers(self, centre: CostCentre) -> bool:
        """Say whether what is spent for `centre` counts here."""
        if self.scope is EVERYTHING or self.scope == EVERYTHING:
            return True
        return all(
            not wanted or wanted == getattr(centre, name)
            for name in CostCentre.__slots__
            for wanted in (getattr(self.scope, name),)
        )

    def span(self, at_us: int) -> Span:
        """Return the window that holds `at_us`."""
        return _span(self.window, self.zone, at_us)

    def amount(self, hold: Cost, worst: TokenUsage) -> int:
        """Return what a request of this worst case counts here."""
        if self.unit == "money":
            if hold.currency != self.currency:
                raise BudgetExceededError(
                    f"this request costs {hold.currency} and budget {self.name} is in"
                    f" {self.currency}: set the budget in the currency of the price book"
                )
            return hold.pico
        return worst.input_tokens + worst.output_tokens if self.unit == "tokens" else 1

    def words(self, amount: int) -> str:
        """Write an amount of this budget's unit for people."""
        if self.unit == "money":
            return f"{format_pico(amount)} {self.currency}"
        return f"{amount} {self.unit}"


class Counted(NamedTuple):
    """What is counted in one window: all of it, what of it is held, and for how many calls."""

    used: int = 0
    held: int = 0
    calls: int = 0


_NOTHING = Counted()


@dataclass(slots=True)
class Meter:
    """What one budget has counted, window by window."""

    budget: Budget
    windows: dict[int, Counted] = field(default_factory=dict)
    """By the start of the window."""
    _last: Span = field(default_factory=lambda: Span(from_us=0, until_us=0))

    def copy(self) -> Meter:
        """Return one that can count on without touching this one."""
        return Meter(self.budget, dict(self.windows), self._last)

    def add(self, change: Counted, at_us: int) -> None:
        """Count a change (below zero to give back) in the window of `at_us`."""
        if change == _NOTHING:
            return
        start = self.span(at_us).from_us
        had = self.windows.get(start)
        if had is None and len(self.windows) >= _WINDOWS_MAX:
            if start < min(self.windows):
                return
            del self.windows[min(self.windows)]
        used, held, calls = had or _NOTHING
        self.windows[start] = Counted(used + change[0], held + change[1], calls + change[2])

    def at(self, at_us: int) -> Counted:
        """Return what is counted in the window of `at_us`."""
        return self.windows.get(self.span(at_us).from_us, _NOTHING)

    def used_at(self, at_us: int) -> int:
        """Return what is spent and held in the window of `at_us`."""
        return self.at(at_us).used

    def span(self, at_us: int) -> Span:
        """Return the window that holds `at_us`."""
        if not self._last.holds(at_us):
            self._last = self.budget.span(at_us)
        return self._last

    def limit_at(self, at_us: int, lease: Leased | None) -> int:
        """Return the limit in force at an instant: its own, or what is lent."""
        if not self.budget.shared:
            return self.budget.limit
        if lease is None or not in_force(lease, at_us):
            return 0
        return min(self.budget.limit, lease.limit)

    def check(self, amount: int, *, at_us: int, lease: Leased | None) -> None:
        """Raise `BudgetExceededError` when `amount` more does not fit."""
        limit = self.limit_at(at_us, lease)
        left = limit - self.used_at(at_us)
        if amount <= left:
            return
        budget = self.budget
        if budget.shared and limit == 0:
            raise BudgetExceededError(
                f"budget {budget.name} is shared and the billing server has lent this node none of"
                " it: connect the billing server, or rule on the part by hand"
            )
        raise BudgetExceededError(
            f"budget {budget.name} has {budget.words(max(left, 0))} left in this {budget.window}"
            f" and the request may need {budget.words(amount)}:"
            " raise the budget, or rule on the part by hand"
        )


def in_force(lease: Leased | None, at_us: int) -> bool:
    """Say whether something is lent at an instant."""
    return lease is not None and lease.from_us <= at_us < lease.until_us


@functools.cache
def zone_of(name: str) -> ZoneInfo:
    """Return the time zone of that name; raises `ValueError`."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"no time zone is called {name!r}: write one as in Asia/Shanghai"
        ) from error


def _span(window: Window, zone: str, at_us: int) -> Span:
    # Wall-clock starts: a day of 23 or 25 hours is one day.
    here = zone_of(zone)
    local = (_EPOCH + at_us * _US).astimezone(here)
    if window == "hour":
        # Counted in real time: a clock set back repeats an hour, and each is its own. One
        # set by less than an hour (Lord Howe) cuts the hours around it short.
        into = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
        start_us = at_us - into // _US
        return Span(
            from_us=_turn(here, start_us, at_us) or start_us,
            until_us=_turn(here, at_us, start_us + _HOUR_US - 1) or start_us + _HOUR_US,
        )
    day = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0, tzinfo=None)
    if window == "day":
        first, after = day, day + timedelta(days=1)
    elif window == "week":
        first = day - timedelta(days=day.weekday())
        after = first + timedelta(days=7)
    else:
        first = day.replace(day=1)
        after = (
            first.replace(year=first.year + 1, month=1)
            if first.month == _DECEMBER
            else first.replace(month=first.month + 1)
        )
    return Span(from_us=_to_us(first, here), until_us=_to_us(after, here))


def _turn(here: ZoneInfo, after_us: int, until_us: int) -> int | None:
    """Return the instant after one and up to another at which the clocks there are set."""
    before, after = _offset(here, after_us), _offset(here, until_us)
    if before == after:
        return None
    while until_us - after_us > 1:
        middle = (after_us + until_us) // 2
        if _offset(here, middle) == before:
            after_us = middle
        else:
            until_us = middle
    return until_us


def _offset(here: ZoneInfo, at_us: int) -> timedelta | None:
    return (_EPOCH + at_us * _US).astimezone(here).utcoffset()


def _to_us(local: datetime, here: ZoneInfo) -> int:
    return (local.replace(tzinfo=here) - _EPOCH) // _US
