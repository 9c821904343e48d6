"""What a window comes to, what is wrong with a budget, and what the purse leaves for questions."""

import random
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.books.budgets import Budget
from qcnode.books.forecast import Alarm, Arrivals, affordable, forecast, outlook
from qcnode.books.ledger import BudgetState
from qcnode.books.purse import PriceAge, Purse, words_of
from qcnode.health import HealthBoard
from qcnode.money import Cost, CostCentre, LedgerTotals, TokenUsage, WorstCase

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR_US = 3_600_000_000
DAY = Budget(name="day", limit=1_000, currency="USD")
START = datetime(2026, 11, 22, tzinfo=UTC)
START_US = (START - EPOCH) // timedelta(microseconds=1)


def state(*, hour=12.0, budget=DAY, **how) -> BudgetState:
    at_us = START_US + round(hour * HOUR_US)
    figures = {"limit": budget.limit, "used": 0, "held": 0, "calls": 0}
    return BudgetState(budget=budget, span=budget.span(at_us), at_us=at_us, **figures | how)


# -- the forecast --------------------------------------------------------------------


@pytest.mark.parametrize(
    "nothing", [{}, {"calls": 3}, {"used": 5}, {"used": 5, "calls": 1, "hour": 0}]
)
def test_where_nothing_is_counted_yet_there_is_no_forecast(nothing):
    assert forecast(state(**nothing)) is None


def test_a_forecast_goes_on_at_the_rate_so_far_and_says_when_the_limit_is_reached():
    coming = forecast(state(hour=6, used=500, calls=50))

    assert coming.expected == 2_000
    assert coming.low < 2_000 < coming.high
    assert coming.used_up_us == START_US + 12 * HOUR_US


def test_a_budget_that_lasts_is_never_used_up():
    assert forecast(state(hour=18, used=500, calls=50)).used_up_us is None


def test_at_the_end_of_the_window_the_forecast_is_what_is_counted():
    coming = forecast(state(hour=23.9999, used=500, calls=50))

    assert (coming.low, coming.expected, coming.high) == (500, 500, 500)


@given(
    hour=st.floats(0.01, 23.99),
    used=st.integers(1, 10**15),
    calls=st.integers(1, 10**6),
    more=st.integers(1, 10**6),
)
def test_an_interval_holds_its_forecast_and_narrows_with_more_requests(hour, used, calls, more):
    few = forecast(state(hour=hour, used=used, calls=calls))
    many = forecast(state(hour=hour, used=used, calls=calls + more))

    assert used <= few.low <= few.expected <= few.high
    assert many.expected == few.expected
    assert many.high - many.low <= few.high - few.low


@pytest.mark.parametrize("hour", [1.0, 6.0, 12.0, 20.0])
@pytest.mark.parametrize("per_day", [30, 300])
def test_nine_times_of_ten_the_window_ends_within_the_interval(hour, per_day):
    """Requests that come by chance at a steady rate, of costs that differ a little."""
    chance = random.Random(f"{hour} {per_day}")
    inside = above = told = 0
    for _ in range(2_000):
        arrivals = [chance.uniform(0, 24) for _ in range(_poisson(chance, per_day))]
        costs = [chance.randint(80, 120) for _ in arrivals]
        gone = [cost for at, cost in zip(arrivals, costs, strict=True) if at < hour]
        coming = forecast(state(hour=hour, used=sum(gone), calls=len(gone)))
        if coming is not None:
            told += 1
            inside += coming.low <= sum(costs) <= coming.high
            above += sum(costs) > coming.high

    assert inside / told > 0.86
    assert above / told < 0.10


def _poisson(chance, mean):
    count, left = 0, chance.expovariate(1)
    while left < mean:
        count, left = count + 1, left + chance.expovariate(1)
    return count


# -- what is wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "worst", "alarm"),
    [
        ({"used": 100, "calls": 10}, 50, None),
        ({"used": 799, "calls": 80, "hour": 23}, 50, None),
        ({"used": 800, "calls": 80, "hour": 23}, 50, Alarm.MUCH),
        ({"used": 700, "calls": 70, "hour": 6}, 50, Alarm.OVER),
        # A single early request foretells a lot, and nothing for sure.
        ({"used": 10, "calls": 1, "hour": 0.1}, 50, None),
        ({"used": 951, "calls": 95, "hour": 23}, 50, Alarm.EXHAUSTED),
        ({"used": 951, "calls": 95, "hour": 23}, None, Alarm.MUCH),
        ({"used": 1_000, "calls": 95, "hour": 23}, None, Alarm.EXHAUSTED),
        ({"used": 1_300, "calls": 95, "hour": 23}, 50, Alarm.EXHAUSTED),  # a debt
        ({"limit": 0, "lent": False}, 50, Alarm.NOT_LENT),
    ],
)
def test_the_worst_that_is_wrong_with_a_budget_is_said(how, worst, alarm):
    one = outlook(state(**how), worst=worst)

    assert one.alarm is alarm
    assert "day" in words_of(one)


# -- how many questions --------------------------------------------------------------


@given(
    limit=st.integers(0, 10**6),
    used=st.integers(0, 10**6),
    worst=st.integers(1, 10**4),
    usual=st.integers(0, 10**4),
)
def test_what_a_budget_pays_for_is_the_most_that_fits_with_the_last_at_its_worst(
    limit, used, worst, usual
):
    now = state(limit=limit, used=used)
    usual = min(usual, worst)

    count = affordable(now, worst=worst, usual=usual)

    def fits(questions):
        return questions == 0 or max(1, usual) * (questions - 1) + worst <= now.left

    assert fits(count)
    assert not fits(count + 1)
    assert count <= affordable(replace(now, limit=limit + 1), worst=worst, usual=usual)


def test_what_is_free_is_paid_for_by_any_budget():
    assert affordable(state(limit=0), worst=0, usual=0) == sys.maxsize


# -- how many parts will come --------------------------------------------------------


def arrived(count, *, first=0.0, last=12.0):
    arrivals = Arrivals()
    for number in range(count):
        hour = first + (last - first) * number / max(1, count - 1)
        arrivals.add(START_US + round(hour * HOUR_US))
    return arrivals


def test_parts_are_expected_to_come_as_often_as_they_came():
    assert arrived(120).expected(state(hour=12)) == 120
    assert arrived(120).expected(state(hour=18)) == 40


@pytest.mark.parametrize(
    ("arrivals", "why"),
    [
        (Arrivals(), "none came"),
        (arrived(19), "too few came"),
        (arrived(120, first=11.5), "too short a time to speak for a day"),
    ],
)
def test_how_many_will_come_is_not_guessed(arrivals, why):
    assert arrivals.expected(state(hour=12)) is None, why


def test_when_much_is_used_up_already_a_guess_is_better_than_none():
    burst = arrived(120, first=11.5)

    assert burst.expected(state(hour=12, used=250)) == 120 * 24
    assert burst.expected(state(hour=12, used=249)) is None


def test_nights_count_and_what_is_older_than_a_week_does_not():
    arrivals = Arrivals()
    for day in range(20):
        for minute in range(8 * 60):  # one shift a day
            arrivals.add(START_US + day * 24 * HOUR_US + minute * HOUR_US // 60)
    at = state(hour=20 * 24)
    week = replace(at, span=Budget(name="w", limit=1, unit="calls", window="week").span(at.at_us))

    days_left = (week.span.until_us - week.at_us) / (24 * HOUR_US)
    assert arrivals.expected(week) == pytest.approx(480 * days_left, rel=0.01)


# -- the purse -----------------------------------------------------------------------

WORST = WorstCase(
    usage=TokenUsage(text=90, output=10), hold=Cost(currency="USD", pico=50, rows=("r",))
)
NO_TOTALS = LedgerTotals(
    entries=0,
    attempts=0,
    reserved=0,
    open=0,
    settled=0,
    not_billed=0,
    indeterminate=0,
    reconciled=0,
    written_off=0,
    unpriced=0,
    usage=TokenUsage(),
    cost_pico={},
    held_pico={},
    written_off_pico={},
)


class Books:
    """A ledger whose budgets stand as the test says."""

    def __init__(self, *states, totals=NO_TOTALS):
        self.states = states
        self.sums = totals

    def budgets(self):
        return self.states

    def totals(self):
        return self.sums


class Wallet:
    """A purse, and the health board it writes on."""

    def __init__(self, *states, totals=NO_TOTALS, centre=CostCentre(line="line1"), **how):  # noqa: B008
        self.health = HealthBoard(lambda: START)
        self.purse = Purse(
            ledger=Books(*states, totals=totals),
            centre=centre,
            health=self.health,
            now=lambda: START + timedelta(hours=12),
            **how,
        )

    def look(self, worst=WORST):
        return self.purse.look(worst)

    def said(self):
        return {one.component: (one.ok, one.words) for one in self.health.all()}


def test_without_a_budget_everything_may_be_asked():
    allowance = Wallet().look()

    assert (allowance.fits, allowance.share) == (None, 1.0)


def test_the_tightest_budget_says_how_many_requests_fit():
    wallet = Wallet(
        state(used=100, calls=1),
        state(budget=Budget(name="tokens", limit=350, unit="tokens"), used=40, calls=1),
        state(budget=Budget(name="calls", limit=9, unit="calls"), used=1, calls=1),
    )

    assert wallet.look().fits == 3  # 310 tokens left for requests of 100


def test_what_another_cost_centre_may_spend_is_nothing_to_this_one():
    other = replace(DAY, limit=0, scope=CostCentre(line="line2"))

    assert Wallet(state(budget=other)).look().fits is None


def test_a_budget_that_lasts_for_a_third_of_the_parts_asks_about_a_third():
    totals = replace(NO_TOTALS, settled=40, cost_pico={"USD": 400})
    wallet = Wallet(state(used=550, calls=40), totals=totals)
    for number in range(120):
        wallet.purse.arrived(START + timedelta(minutes=6 * number))

    # 450 left: one at its worst 50, and 40 at the usual 10; 120 parts are to come.
    assert wallet.look().share == pytest.approx(41 / 120)


def test_a_budget_in_another_currency_lets_nothing_be_asked_and_says_so():
    yuan = Budget(name="yuan", limit=10**9, currency="CNY")

    wallet = Wallet(state(budget=yuan))

    assert (wallet.look().fits, wallet.look().share) == (0, 0.0)
    assert "CNY" in wallet.said()["budget"][1]


def test_without_a_price_nothing_may_be_asked():
    wallet = Wallet(state())

    assert wallet.look(None).fits == 0
    assert not wallet.said()["prices"][0]


@pytest.mark.parametrize(
    ("checked_on", "capped", "well", "fits"),
    [
        (date(2026, 8, 14), False, True, 20),  # a hundred days ago
        (date(2026, 8, 13), False, False, 0),
        (date(2026, 8, 13), True, False, 20),
    ],
)
def test_prices_nobody_has_checked_for_too_long_are_an_alarm_and_stop_questions_or_are_capped(
    checked_on, capped, well, fits
):
    age = PriceAge(checked_on=lambda: checked_on, days_max=100, capped=capped)
    wallet = Wallet(state(), price_age=age)

    assert wallet.look().fits == fits
    ok, words = wallet.said()["prices"]
    assert ok is well
    assert str(checked_on) in words


def test_answers_without_a_price_are_an_alarm_while_they_are_held():
    wallet = Wallet(state(), totals=replace(NO_TOTALS, settled=3, unpriced=2))

    assert wallet.look().fits == 20
    ok, words = wallet.said()["prices"]
    assert not ok
    assert "2 answers" in words


def test_the_worst_budget_is_the_one_that_is_spoken_of():
    gone = replace(DAY, name="month", window="month")
    wallet = Wallet(state(used=850, calls=9, hour=23.5), state(budget=gone, used=1_000, calls=9))

    wallet.look()

    ok, words = wallet.said()["budget"]
    assert not ok
    assert words.startswith("month is used up")
    assert words.endswith("(and 1 more)")
