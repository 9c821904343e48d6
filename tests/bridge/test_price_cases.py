"""Known wrong bills of others, one test each: A1 to A12, B4, D3, D8 and D9."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcbridge.prices import PriceBook, PriceClass, PriceRow, Terms, shipped
from qcbridge.pricing.calendars import DayKind, find_calendar
from qcbridge.pricing.rerating import re_rate
from qcbridge.pricing.rows import ServiceTier, Tier, TierBasis, TierMode
from qcbridge.pricing.stated_cost import compare_stated
from qcnode.errors import PriceError, UnpricedError
from qcnode.money import Cost, TokenUsage
from tests.bridge.price_books import (
    ACME,
    AT,
    EVERY_DAY,
    ONE,
    alias,
    both,
    holidays,
    instant,
    load,
    output,
    row,
    schedule,
    withdrawal,
)

MILLION = TokenUsage(text=1_000_000)
DEEPSEEK = ("deepseek", "deepseek-v4-flash")


def deepseek() -> PriceBook:
    return PriceBook.load(shipped()["deepseek"])


@pytest.mark.parametrize(
    ("at", "usd"),
    [
        ("2026-11-16T02:00Z", "0.30"),  # a Monday, at peak
        ("2026-11-21T02:00Z", "0.15"),  # a Saturday
        ("2026-10-02T02:00Z", "0.15"),  # National Day, a Friday
        ("2026-08-16T16:30Z", "0.22"),  # half an hour after the change, by Beijing's midnight
        ("2026-06-15T02:00Z", "0.14"),  # before peak prices existed
    ],
)
def test_the_five_probes_of_the_deepseek_list_price_right_to_the_unit(at, usd):
    cost = deepseek().price(MILLION, *DEEPSEEK, instant(at))
    assert (cost.currency, cost.pico) == ("USD", int(usd.replace(".", "")) * 10**10)


@pytest.mark.parametrize(
    ("at", "usd"),
    [
        ("2026-08-16T15:59:59.999999Z", "0.14"),  # the old price to its last instant
        ("2026-08-16T16:00Z", "0.22"),
        ("2026-08-17T00:59:59Z", "0.22"),
        ("2026-08-17T01:00Z", "0.44"),  # the first peak
        ("2026-08-17T04:00Z", "0.22"),  # lunch
        ("2026-08-17T06:00Z", "0.44"),
        ("2026-08-17T10:00Z", "0.22"),
        ("2026-08-22T02:00Z", "0.44"),  # a Saturday that still had peaks
        ("2026-08-23T02:00Z", "0.22"),  # the first Sunday without
        ("2026-09-20T02:00Z", "0.15"),  # a Sunday that was worked
        ("2026-09-25T02:00Z", "0.15"),  # Mid-Autumn, a Friday
        ("2026-10-08T02:00Z", "0.30"),  # the first day after the holidays
    ],
)
def test_the_deepseek_list_changes_at_its_own_midnights_and_hours(at, usd):
    cost = deepseek().price(MILLION, *DEEPSEEK, instant(at))
    assert cost.pico == int(usd.replace(".", "")) * 10**10


def test_the_market_book_has_the_table_of_the_documents_and_the_cut_at_its_instant():
    book, million = PriceBook.load(shipped()["market-2026"]), TokenUsage(text=10**6, output=10**6)
    table = {
        ("openai", "gpt-5.5-instant"): (50, 200),
        ("baidu", "wenxin-5.1"): (35, 140),
        ("anthropic", "claude-opus-4-8"): (150, 750),
        ("google", "gemini-3.5-pro"): (30, 120),
        ("alibaba", "qwen3-max"): (20, 80),
        ("deepseek", "deepseek-v4-pro"): (10, 40),
    }
    listed = instant("2026-06-01T12:00+08:00")
    for (provider, model), cents in table.items():
        assert book.price(million, provider, model, listed).pico == sum(cents) * 10**10
    cut = instant("2026-06-01T00:00+08:00")
    before = book.price(million, "deepseek", "deepseek-v4-pro", cut - timedelta(microseconds=1))
    after = book.price(million, "deepseek", "deepseek-v4-pro", cut)
    assert (before.pico, after.pico) == (200 * 10**10, 50 * 10**10)
    assert after.pico * 4 == before.pico


def test_a1_the_weekday_is_that_of_the_vendors_calendar_and_not_utcs(tmp_path):
    # 15:00 to 20:00 UTC is 23:00 to 04:00 in Beijing, where the day changes in between.
    book = load(
        tmp_path,
        schedule(windows='["23:00-24:00", "00:00-04:00"]'),
        both(10, 1, during='"peak"'),
        both(1, 1, outside='"peak"'),
    )
    prices = {
        at: book.price(ONE, *ACME, instant(at)).pico
        for at in (
            "2026-11-15T15:30Z",  # Sunday there
            "2026-11-15T16:30Z",  # Sunday in UTC, Monday there
            "2026-11-20T15:30Z",  # Friday there
            "2026-11-20T16:30Z",  # Friday in UTC, Saturday there
        )
    }
    assert list(prices.values()) == [1, 10, 10, 1]


def test_a2_holidays_are_off_peak_and_worked_weekends_are_what_the_vendor_says(tmp_path):
    def cost(at: str, **changes: object) -> int:
        book = load(
            tmp_path,
            schedule(**holidays(**changes)),
            both(10, 1, during='"peak"'),
            both(1, 1, outside='"peak"'),
        )
        return book.price(ONE, *ACME, instant(at)).pico

    national_day, worked_saturday = "2026-10-02T10:00+08:00", "2026-10-10T10:00+08:00"
    assert cost(national_day) == 1
    assert cost(worked_saturday) == 1
    assert cost(worked_saturday, make_up_days='"workday"') == 10
    assert cost(national_day, holidays='"include"') == 10


def test_a2_the_calendar_that_ships_is_the_state_councils_for_2026():
    calendar = find_calendar("cn-public", [shipped()["scripted"].parent / "calendars"])
    year = calendar.years[2026]
    assert len(year.holidays) == 3 + 9 + 3 + 5 + 3 + 3 + 7
    assert sorted(year.make_up_days) == [
        date(2026, month, day)
        for month, day in ((1, 4), (2, 14), (2, 28), (5, 9), (9, 20), (10, 10))
    ]
    assert all(day.weekday() >= 5 for day in year.make_up_days)
    assert calendar.holiday(date(2026, 10, 1)) == "National Day"
    assert calendar.kind(date(2026, 9, 20)) is DayKind.MAKE_UP
    assert calendar.kind(date(2027, 1, 1)) is None


def test_a2_beyond_the_known_holidays_there_is_no_price_and_no_guess():
    book = deepseek()
    last = instant("2026-12-31T23:59:59+08:00")
    assert book.price(MILLION, *DEEPSEEK, last).pico == 15 * 10**10
    with pytest.raises(UnpricedError, match="cn-public-2027"):
        book.price(MILLION, *DEEPSEEK, last + timedelta(seconds=1))


def test_a3_a_rule_change_leaves_what_was_before_alone():
    # Weekends lost their peaks on 2026-08-23; the Saturday before keeps its peak.
    assert deepseek().price(MILLION, *DEEPSEEK, instant("2026-08-22T02:00Z")).pico == 44 * 10**10
    assert deepseek().price(MILLION, *DEEPSEEK, instant("2026-08-29T02:00Z")).pico == 22 * 10**10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tz": '"Mars/Olympus"'}, "no time zone known here"),
        ({"windows": '["9-12"]'}, "is not a window of local time"),
        ({"windows": '["09:00-25:00"]'}, "is not a window of local time"),
        ({"windows": '["22:00-06:00"]'}, "split it at midnight"),
        ({"windows": '["09:00-12:00", "11:00-13:00"]'}, "overlap"),
        ({"windows": "[]"}, "give one at least"),
        ({"weekdays": '["monday"]'}, "none of mon"),
        ({"weekdays": '["mon", "mon"]'}, "different words"),
        ({"calendar": '"mars"'}, "no calendar 'mars'"),
        ({"calendar": '"cn-public"'}, "say what holidays are"),
        ({"holidays": '"exclude"'}, "means nothing without a calendar"),
    ],
)
def test_a4_a_schedule_that_cannot_be_read_is_refused_with_its_line(tmp_path, changes, words):
    with pytest.raises(PriceError, match=words) as error:
        load(
            tmp_path, schedule(**changes), both(1, 1, during='"peak"'), both(1, 1, outside='"peak"')
        )
    assert f"{tmp_path}/book.toml:" in str(error.value)


def test_a5_the_book_says_whether_the_start_or_the_completion_of_a_request_decides(tmp_path):
    started, completed = instant("2026-11-16T00:59:58Z"), instant("2026-11-16T01:00:03Z")
    costs = {}
    for which in ("start", "completion"):
        book = load(
            tmp_path,
            schedule(),
            both(20, 1, during='"peak"', rating_instant=f'"{which}"'),
            both(10, 1, outside='"peak"', rating_instant=f'"{which}"'),
        )
        at = book.rated_at(*ACME, started=started, completed=completed)
        costs[which] = book.price(ONE, *ACME, at).pico
    assert costs == {"start": 10, "completion": 20}


def test_a6_an_announced_price_that_is_taken_back_never_holds(tmp_path):
    old = "acme/eye-1/input@2026-01-01T00:00:00Z"
    rise = "acme/eye-1/input@2026-09-01T00:00:00Z;known=2026-07-15T00:00:00Z"
    book = load(
        tmp_path,
        row(valid_from="2026-01-01T00:00:00Z", price_micro_per_mtok=2),
        output(valid_from="2026-01-01T00:00:00Z"),
        row(
            valid_from="2026-09-01T00:00:00Z",
            price_micro_per_mtok=3,
            recorded_at="2026-07-15T00:00:00Z",
            replaces=f'["{old}"]',
        ),
        withdrawal(rise, recorded_at="2026-08-28T00:00:00Z"),
    )
    autumn = instant("2026-10-01T00:00Z")
    assert book.price(ONE, *ACME, autumn).pico == 2
    for known, price in (("2026-07-01", 2), ("2026-08-01", 3), ("2026-08-28", 2)):
        then = book.as_known_at(instant(f"{known}T00:00Z"))
        assert then.price(ONE, *ACME, autumn).pico == price
        assert then.price(ONE, *ACME, instant("2026-08-31T00:00Z")).pico == 2
    assert rise in {row.id for row in book.announced.prices}
    assert rise not in {row.id for row in book.rows}


def test_a6_the_example_of_the_how_to_does_what_it_says(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "prices.md"
    example = page.read_text(encoding="utf-8").split("```toml")[1].split("```")[0]
    book = load(tmp_path, both(2, 10, currency='"USD"'), example)
    autumn = instant("2026-10-01T00:00Z")
    assert book.price(MILLION, *ACME, autumn).pico == 2 * 10**6
    announced = book.as_known_at(instant("2026-08-01T00:00Z"))
    assert announced.price(MILLION, *ACME, autumn).pico == 3 * 10**12


def test_a6_deepseeks_cancelled_retirement_of_v4_pro_is_on_record_and_does_not_count():
    book, at = deepseek(), instant("2026-09-20T20:00Z")
    assert book.price(MILLION, "deepseek", "deepseek-v4-pro", at).pico == 66 * 10**10
    believed = book.as_known_at(instant("2026-09-11T00:00Z"))
    assert believed.price(MILLION, "deepseek", "deepseek-v4-pro", at).pico == 15 * 10**10


def test_a7_a_new_price_moves_nothing_that_was_priced_before(tmp_path):
    first = load(tmp_path, both(1, 2))
    days = [AT + timedelta(days=number) for number in range(0, 300, 7)]
    before = [first.price(MILLION, *ACME, day) for day in days]
    change = "2026-08-01T00:00:00Z"
    ids = [row.id for row in first.rows]
    names = ", ".join(f'"{name}"' for name in ids)
    second = load(
        tmp_path,
        both(1, 2),
        both(
            5,
            6,
            valid_from=change,
            recorded_at="2026-07-30T00:00:00Z",
            replaces=f"[{names}]",
        ),
    )
    for day, cost in zip(days, before, strict=True):
        now = second.price(MILLION, *ACME, day)
        assert (now == cost) == (day < instant(change))
        assert second.as_known_at(instant("2026-07-01T00:00Z")).price(MILLION, *ACME, day) == cost


def test_a8_no_price_is_unpriced_and_never_nothing(tmp_path):
    book = load(tmp_path, both(0, 0, model='"free"'))
    assert book.price(MILLION, "acme", "free", AT) == Cost(
        currency="CNY", pico=0, rows=tuple(row.id for row in book.rows)
    )
    for what in ("worst_case", "price"):
        with pytest.raises(UnpricedError, match="no price for other by acme"):
            getattr(book, what)(MILLION, "acme", "other", AT)


def test_a9_a_name_means_another_model_from_an_instant_on(tmp_path):
    book = load(
        tmp_path,
        both(10, 1, model='"eye-1"'),
        both(3, 1, model='"eye-2"'),
        alias(valid_from="2026-03-01T00:00:00Z", valid_to="2026-05-01T00:00:00Z"),
    )

    def cost(at: str) -> int:
        return book.price(ONE, *ACME, instant(at)).pico

    assert [cost("2026-02-28T23:59:59Z"), cost("2026-03-01T00:00Z")] == [10, 3]
    assert [cost("2026-04-30T23:59:59Z"), cost("2026-05-01T00:00Z")] == [3, 10]
    row_ids = book.price(ONE, *ACME, instant("2026-04-01T00:00Z")).rows
    assert all("/eye-2/" in row_id for row_id in row_ids)


def tier(basis: str, mode: str, low: int, high: int | None) -> str:
    end = "" if high is None else f", high = {high}"
    return f'{{ basis = "{basis}", mode = "{mode}", low = {low}{end} }}'


def test_a10_a_cliff_prices_the_whole_request_by_its_whole_input(tmp_path):
    book = load(
        tmp_path,
        both(1, 10, tier=tier("request_input", "cliff", 0, 32)),
        both(2, 20, tier=tier("request_input", "cliff", 32, 128)),
    )

    def cost(**tokens: int) -> int:
        return book.price(TokenUsage(**tokens), *ACME, AT).pico

    assert cost(text=32, output=1) == 32 + 10
    assert cost(text=33, output=1) == 66 + 20  # also the output, and from the first token
    assert cost(text=20, image=13) == 66  # it is the whole input that counts
    with pytest.raises(UnpricedError, match="beyond its last tier"):
        cost(text=129)


def test_a10_graduated_tiers_price_each_token_where_it_lies(tmp_path):
    book = load(
        tmp_path,
        row(price_micro_per_mtok=5, tier=tier("request_class", "graduated", 0, 10)),
        row(price_micro_per_mtok=3, tier=tier("request_class", "graduated", 10, 30)),
        row(price_micro_per_mtok=1, tier=tier("request_class", "graduated", 30, None)),
        output(price_micro_per_mtok=0),
    )
    costs = [book.price(TokenUsage(text=n), *ACME, AT).pico for n in (0, 1, 10, 11, 30, 50)]
    assert costs == [0, 5, 50, 53, 110, 130]


def test_a10_tiers_by_the_month_need_to_be_told_the_month_and_are_else_the_list_price(tmp_path):
    graduated = load(
        tmp_path,
        row(price_micro_per_mtok=5, tier=tier("month_class", "graduated", 0, 100)),
        row(price_micro_per_mtok=3, tier=tier("month_class", "graduated", 100, None)),
        output(price_micro_per_mtok=0),
    )
    ten = TokenUsage(text=10)
    assert graduated.price(ten, *ACME, AT).pico == 50
    assert graduated.price(ten, *ACME, AT, volume=TokenUsage(text=95)).pico == 5 * 5 + 5 * 3
    assert graduated.price(ten, *ACME, AT, volume=TokenUsage(text=100, output=9)).pico == 30
    cliff = load(
        tmp_path,
        both(5, 5, tier=tier("month_total", "cliff", 0, 100)),
        both(3, 3, tier=tier("month_total", "cliff", 100, None)),
    )
    assert cliff.price(ten, *ACME, AT, volume=TokenUsage(text=60, output=39)).pico == 50
    assert cliff.price(ten, *ACME, AT, volume=TokenUsage(text=60, output=40)).pico == 30


@given(size=st.integers(0, 140), cached=st.integers(0, 140), answered=st.integers(0, 50))
def test_a10_the_quick_way_through_the_tiers_and_the_long_one_agree(size, cached, answered):
    cliff = [("input", 0, 32), ("input", 32, 128), ("output", 0, 64), ("output", 64, None)]
    rows = [
        PriceRow(
            provider="acme",
            model="eye-1",
            token_class=PriceClass(of),
            currency="CNY",
            price_micro_per_mtok=number + 1,
            valid_from=AT,
            valid_to=None,
            source="a test",
            checked_at=AT.date(),
            where="here",
            tier=Tier(basis=TierBasis.REQUEST_INPUT, mode=TierMode.CLIFF, low=low, high=high),
        )
        for number, (of, low, high) in enumerate(cliff)
    ]
    rows.append(replace(rows[0], token_class=PriceClass.CACHE_READ, tier=None, id=""))
    book, usage = PriceBook(rows), TokenUsage(text=size, cache_read=cached, output=answered)
    try:
        lines = book.lines(usage, *ACME, AT)
    except UnpricedError:
        assert size + cached > 128
        with pytest.raises(UnpricedError, match="beyond its last tier"):
            book.price(usage, *ACME, AT)
    else:
        cost = book.price(usage, *ACME, AT)
        assert cost.pico == sum(line.pico for line in lines)
        assert cost.rows == tuple(line.row.id for line in lines)


def test_a10_requests_are_never_tiered_on_their_sum(tmp_path):
    book = load(
        tmp_path,
        both(1, 10, tier=tier("request_input", "cliff", 0, 32)),
        both(2, 20, tier=tier("request_input", "cliff", 32, None)),
    )
    small = TokenUsage(text=20)
    assert 2 * book.price(small, *ACME, AT).pico == 40
    assert book.price(small + small, *ACME, AT).pico == 80


def test_a11_batch_flex_and_priority_have_prices_of_their_own_and_no_other(tmp_path):
    book = load(
        tmp_path,
        both(10, 1),
        both(5, 1, batch="true"),
        both(6, 1, service='"flex"'),
        both(20, 1, service='"priority"'),
    )

    def cost(terms: Terms) -> int:
        return book.price(ONE, *ACME, AT, terms=terms).pico

    assert cost(Terms()) == 10
    assert cost(Terms(batch=True)) == 5
    assert cost(Terms(service=ServiceTier.FLEX)) == 6
    assert cost(Terms(service=ServiceTier.PRIORITY)) == 20
    with pytest.raises(UnpricedError, match=r"none on these terms \(flex, batch\)"):
        cost(Terms(service=ServiceTier.FLEX, batch=True))


@pytest.mark.parametrize(
    ("stated", "unit", "difference"),
    [
        ("0.0123", "units", 0),
        ("1.23", "cents", 0),
        ("12300", "micro-units", 0),
        ("1.23E-2", "units", 0),
        ("0.01231", "units", 10**7),  # rounded by the provider
        ("0.0246", None, 123 * 10**8),  # twice as much
        ("123", None, 123 * 10**12 - 123 * 10**8),  # a unit nobody knows
        ("free", None, None),
        ("1e999999999", None, None),
        ("1/3", None, None),
        ("", None, None),
    ],
)
def test_a12_a_stated_cost_is_compared_in_every_unit_and_never_becomes_the_cost(
    stated, unit, difference
):
    cost = Cost(currency="USD", pico=123 * 10**8, rows=())
    found = compare_stated(cost, stated)
    assert (found.unit, found.difference_pico) == (unit, difference)
    assert cost.pico == 123 * 10**8


def test_b4_an_estimate_of_a_pictures_tokens_sizes_the_hold_and_never_the_cost(tmp_path):
    book = load(tmp_path, both(10, 20))
    estimated = TokenUsage(text=500, image=85, output=300)
    counted = TokenUsage(text=500, image=2_833, output=40)  # what the provider bills
    hold = book.worst_case(estimated, *ACME, AT)
    cost = book.price(counted, *ACME, AT)
    assert hold.pico == 585 * 10 + 300 * 20
    assert cost.pico == 3_333 * 10 + 40 * 20
    assert cost.pico > hold.pico  # settled at what was used, above the hold too


def test_d3_a_reservation_is_made_at_the_dearest_tier_hour_and_class_it_may_meet(tmp_path):
    book = load(
        tmp_path,
        schedule(),
        both(1, 10, tier=tier("request_input", "cliff", 0, 100), outside='"peak"'),
        both(2, 20, tier=tier("request_input", "cliff", 100, 200), outside='"peak"'),
        both(3, 30, tier=tier("request_input", "cliff", 0, 100), during='"peak"'),
        both(4, 40, tier=tier("request_input", "cliff", 100, 200), during='"peak"'),
    )
    night, morning = instant("2026-11-16T00:30Z"), instant("2026-11-16T01:00Z")
    tiny = timedelta(microseconds=1)

    def hold(text: int, until=None) -> int:
        return book.worst_case(TokenUsage(text=text, output=1), *ACME, night, until).pico

    assert hold(100) == 100 * 1 + 10
    assert hold(101) == 101 * 2 + 20  # it may reach the tier
    assert hold(100, morning - tiny) == 100 * 1 + 10
    assert hold(100, morning) == 100 * 3 + 30  # the answer may come at peak
    assert hold(150, morning) == 150 * 4 + 40
    with pytest.raises(UnpricedError, match="send less"):
        hold(201)


def test_d3_with_no_word_of_the_month_every_tier_of_it_may_be_met(tmp_path):
    book = load(
        tmp_path,
        both(5, 1, tier=tier("month_class", "cliff", 0, 100)),
        both(9, 1, tier=tier("month_class", "cliff", 100, None)),
    )
    assert book.worst_case(TokenUsage(text=10), *ACME, AT).pico == 90
    early = TokenUsage(text=50)
    assert book.worst_case(TokenUsage(text=10), *ACME, AT, volume=early).pico == 50
    near = TokenUsage(text=95)
    assert book.worst_case(TokenUsage(text=10), *ACME, AT, volume=near).pico == 90


def test_d3_past_the_known_holidays_the_dearest_hour_bounds_the_hold():
    book, late = deepseek(), instant("2026-12-31T23:59:50+08:00")
    usage = TokenUsage(text=1_000_000)
    hold = book.worst_case(usage, *DEEPSEEK, late, late + timedelta(seconds=60))
    assert hold.pico == 30 * 10**10
    with pytest.raises(UnpricedError):
        book.worst_case(usage, *DEEPSEEK, late + timedelta(seconds=11))


def test_d8_money_of_two_currencies_never_meets(tmp_path):
    with pytest.raises(PriceError, match="one currency"):
        load(tmp_path, row(), output(currency='"USD"'))
    dollars = load(tmp_path, both(1, 2, currency='"USD"'))
    before = dollars.price(MILLION, *ACME, AT)
    yuan = load(tmp_path, both(7, 14))
    with pytest.raises(PriceError, match="charged in USD and this book prices it in CNY"):
        re_rate(before, MILLION, *ACME, AT, book=yuan)


def test_d9_a_price_in_yuan_is_a_cost_in_yuan():
    book = PriceBook.load(Path("deepseek-cny"))
    cost = book.price(MILLION, *DEEPSEEK, instant("2026-11-16T02:00Z"))
    assert (cost.currency, cost.pico) == ("CNY", 2 * 10**12)


def test_late_news_makes_a_difference_to_be_added_and_edits_nothing(tmp_path):
    before = load(tmp_path, both(4, 1)).price(MILLION, *ACME, AT)
    cheaper = load(tmp_path, both(1, 1))
    late = re_rate(before, MILLION, *ACME, AT, book=cheaper)
    assert late is not None
    assert (late.before, late.after.pico, late.change_pico) == (before, 10**6, -3 * 10**6)
    assert re_rate(late.after, MILLION, *ACME, AT, book=cheaper) is None
    unpriced = re_rate(None, MILLION, *ACME, AT, book=cheaper)
    assert unpriced is not None
    assert unpriced.change_pico == 10**6


def test_a_clock_that_may_be_wrong_gets_both_costs_of_a_change(tmp_path):
    book = load(tmp_path, schedule(), both(20, 1, during='"peak"'), both(10, 1, outside='"peak"'))
    edge, second = instant("2026-11-16T01:00Z"), timedelta(seconds=1)

    def costs(at, doubt) -> list[int]:
        return [cost.pico for cost in book.around(ONE, *ACME, at, doubt)]

    assert costs(edge - 2 * second, second) == [10]
    assert costs(edge - second, second) == [10, 20]
    assert costs(edge, second) == [20, 10]
    assert costs(edge + second, timedelta(0)) == [20]
    assert costs(edge + 2 * second, second) == [20]
    assert costs(edge, timedelta(days=1)) == [20, 10]
    with pytest.raises(UnpricedError):
        book.around(ONE, "acme", "other", edge, second)


def test_the_side_of_a_change_without_a_price_adds_no_cost(tmp_path):
    book = load(tmp_path, both(1, 1, valid_from="2026-03-01T00:00:00Z"))
    edge = instant("2026-03-01T00:00Z")
    assert len(book.around(ONE, *ACME, edge, timedelta(hours=1))) == 1


def test_every_day_of_a_vendor_without_weekends_has_its_peak(tmp_path):
    book = load(
        tmp_path,
        schedule(weekdays=EVERY_DAY),
        both(20, 1, during='"peak"'),
        both(10, 1, outside='"peak"'),
    )
    noon = instant("2026-11-16T02:00Z")
    prices = {book.price(ONE, *ACME, noon + timedelta(days=n)).pico for n in range(370)}
    assert prices == {20}
