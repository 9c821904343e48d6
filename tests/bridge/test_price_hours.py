"""Prices by the hour against a reckoning without cleverness, and when work is cheapest."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qcbridge.prices import PriceBook, PriceClass, PriceRow
from qcbridge.pricing.calendars import CalendarYear, DayKind, HolidayCalendar
from qcbridge.pricing.cheap_hours import cheapest_window
from qcbridge.pricing.rates import Rates
from qcbridge.pricing.schedules import OnHolidays, OnMakeUpDays, Schedule
from qcnode.errors import PriceError, UnpricedError
from qcnode.money import TokenUsage
from tests.bridge.price_books import ACME, ONE, both, instant, load, schedule

ZONES = ("UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")

# Three weeks in which every weekday is once ordinary, once a holiday and once made up.
ORDINARY = date(2026, 3, 2)
HOLIDAYS = {ORDINARY + timedelta(days=7 + number): "holiday" for number in range(7)}
MAKE_UP = frozenset(ORDINARY + timedelta(days=14 + number) for number in range(7))
CALENDAR = HolidayCalendar(
    id="test",
    years={
        2026: CalendarYear(
            id="test",
            year=2026,
            holidays=HOLIDAYS,
            make_up_days=MAKE_UP,
            source="a test",
            checked_at=date(2026, 11, 1),
            confirmed=True,
            sha256="",
            path=Path("test-2026.toml"),
        )
    },
)


def instants(first: str, last: str) -> st.SearchStrategy[datetime]:
    days = (datetime.fromisoformat(day) for day in (first, last))
    return st.datetimes(*days, timezones=st.just(UTC))


@st.composite
def schedules(draw, zone: str, name: str) -> Schedule:
    edges = sorted(draw(st.sets(st.integers(0, 48), min_size=2, max_size=6)))
    pairs = zip(edges[::2], edges[1::2], strict=False)
    calendar = draw(st.sampled_from([None, CALENDAR]))
    return Schedule(
        id=name,
        zone=ZoneInfo(zone),
        weekdays=draw(st.frozensets(st.integers(0, 6))),
        windows=tuple((start * 30, end * 30) for start, end in pairs),
        calendar=calendar,
        holidays=None if calendar is None else draw(st.sampled_from(OnHolidays)),
        make_up_days=None if calendar is None else draw(st.sampled_from(OnMakeUpDays)),
    )


def price_rows(
    micro: int,
    *,
    during: tuple[Schedule, ...] = (),
    outside: tuple[Schedule, ...] = (),
    start: datetime = datetime(2026, 1, 2, tzinfo=UTC),
    end: datetime | None = datetime(2026, 12, 30, tzinfo=UTC),
) -> list[PriceRow]:
    return [
        PriceRow(
            provider="acme",
            model="eye-1",
            token_class=token_class,
            currency="EUR",
            price_micro_per_mtok=micro,
            valid_from=start,
            valid_to=end,
            source="a test",
            checked_at=date(2026, 11, 1),
            where=f"row {micro}",
            during=during,
            outside=outside,
        )
        for token_class in (PriceClass.INPUT, PriceClass.OUTPUT)
    ]


def holds(one: Schedule, at: datetime) -> bool:
    """Reckon without edges, eras and caches whether a schedule holds."""
    local = at.astimezone(one.zone)
    weekday = local.weekday()
    if one.calendar is not None:
        kind = one.calendar.kind(local.date())
        if kind is DayKind.HOLIDAY:
            if one.holidays is OnHolidays.EXCLUDE:
                return False
            return any(a <= minute_of(local) < b for a, b in one.windows)
        if kind is DayKind.MAKE_UP and one.make_up_days is OnMakeUpDays.WORKDAY:
            return bool(one.weekdays & {0, 1, 2, 3, 4}) and any(
                a <= minute_of(local) < b for a, b in one.windows
            )
    return weekday in one.weekdays and any(a <= minute_of(local) < b for a, b in one.windows)


def minute_of(local: datetime) -> int:
    return local.hour * 60 + local.minute


def counts(row: PriceRow, at: datetime) -> bool:
    return (
        row.covers(at)
        and (not row.during or any(holds(one, at) for one in row.during))
        and not any(holds(one, at) for one in row.outside)
    )


@given(data=st.data(), zone=st.sampled_from(ZONES))
def test_at_every_instant_the_price_is_the_one_that_a_plain_reckoning_finds(data, zone):
    peak, valley = data.draw(schedules(zone, "peak")), data.draw(schedules(zone, "valley"))
    change = data.draw(instants("2026-02-01", "2026-11-01"))
    rows = [
        *price_rows(1, end=change),
        *price_rows(2, start=change, during=(peak,)),
        *price_rows(3, start=change, during=(valley,), outside=(peak,)),
        *price_rows(4, start=change, outside=(peak, valley)),
    ]
    book = PriceBook(rows)
    entered = [row for row in rows if row.token_class is PriceClass.INPUT]
    drawn = data.draw(
        st.lists(
            instants("2026-01-03", "2026-12-29"),
            min_size=5,
            max_size=15,
        )
    )
    near = [at.replace(minute=0, second=0, microsecond=0) for at in drawn]
    tiny = timedelta(microseconds=1)
    switches = [datetime(2026, month, day, 1, tzinfo=UTC) for month, day in ((3, 29), (10, 25))]
    for at in (*drawn, *near, *(one - tiny for one in near), change, change - tiny, *switches):
        (expected,) = [row.price_micro_per_mtok for row in entered if counts(row, at)]
        assert book.price(ONE, *ACME, at).pico == expected


@settings(max_examples=60)  # Each goes through a thousand half hours.
@given(data=st.data())
def test_a_book_loads_exactly_when_each_instant_has_one_row(data):
    one, other = (data.draw(schedules("Asia/Shanghai", name)) for name in ("one", "other"))
    likeness = data.draw(st.sampled_from(["none", "but for holidays", "the rest of the day"]))
    if likeness == "but for holidays":
        other = replace(other, weekdays=one.weekdays, windows=one.windows)
    elif likeness == "the rest of the day":
        edges = [0, *(edge for window in one.windows for edge in window), 24 * 60]
        rest = tuple((a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b)
        one = replace(one, weekdays=frozenset(range(7)), calendar=None)
        other = replace(one, id="other", windows=rest)
    choices = st.sampled_from([(), (one,), (other,), (one, other)])
    rows: list[PriceRow] = []
    for number in range(data.draw(st.integers(1, 2))):
        during = data.draw(choices)
        outside = () if during and data.draw(st.booleans()) else data.draw(choices)
        rows += price_rows(number, during=during, outside=outside)
    first = datetime.combine(ORDINARY, time(), tzinfo=ZoneInfo("Asia/Shanghai")).astimezone(UTC)
    halves = [first + timedelta(minutes=30 * number) for number in range(21 * 48)]
    entered = [row for row in rows if row.token_class is PriceClass.INPUT]
    one_each = all(sum(counts(row, at) for row in entered) == 1 for at in halves)
    try:
        PriceBook(rows)
    except PriceError:
        assert not one_each
    else:
        assert one_each


@given(
    data=st.data(),
    start=instants("2026-01-03", "2026-12-01"),
    hours=st.integers(1, 24 * 20),
)
def test_stretches_join_without_a_gap_and_hold_what_a_look_up_finds(data, start, hours):
    peak = data.draw(schedules("America/New_York", "peak"))
    book = PriceBook([*price_rows(2, during=(peak,)), *price_rows(1, outside=(peak,))])
    end = start + timedelta(hours=hours)
    stretches = list(book.stretches(*ACME, start, end))
    assert (stretches[0].start, stretches[-1].end) == (start, end)
    for one, following in pairwise(stretches):
        assert one.end == following.start
        assert one.rates != following.rates
    for one in stretches:
        for at in (one.start, one.start + (one.end - one.start) / 2):
            assert isinstance(one.rates, Rates)
            assert one.rates.price(ONE, at) == book.price(ONE, *ACME, at)


@pytest.mark.parametrize(
    ("window", "at", "price"),
    [
        # Berlin, 2026-03-29: 01:59:59 is followed by 03:00, at 01:00 UTC.
        ("02:30-03:30", "2026-03-29T00:59:59Z", 1),
        ("02:30-03:30", "2026-03-29T01:00:00Z", 2),
        ("02:30-03:30", "2026-03-29T01:30:00Z", 1),
        ("02:15-02:45", "2026-03-29T01:00:00Z", 1),  # a window that is not there that day
        # 2026-10-25: from 02:00 to 03:00 comes twice, and so does the window.
        ("02:30-03:30", "2026-10-25T00:29:59Z", 1),
        ("02:30-03:30", "2026-10-25T00:30:00Z", 2),
        ("02:30-03:30", "2026-10-25T01:00:00Z", 1),
        ("02:30-03:30", "2026-10-25T01:30:00Z", 2),
        ("02:30-03:30", "2026-10-25T02:30:00Z", 1),
    ],
)
def test_the_vendors_clock_counts_also_when_it_is_put_on_or_back(tmp_path, window, at, price):
    book = load(
        tmp_path,
        schedule(tz='"Europe/Berlin"', weekdays='["sun"]', windows=f'["{window}"]'),
        both(2, 1, during='"peak"'),
        both(1, 1, outside='"peak"'),
    )
    assert book.price(ONE, *ACME, instant(at)).pico == price


def night_book(tmp_path) -> PriceBook:
    return load(tmp_path, schedule(), both(20, 2, during='"peak"'), both(10, 1, outside='"peak"'))


@pytest.mark.parametrize(
    ("earliest", "hours", "work", "expected"),
    [
        # Begun at once, the night before a working day.
        ("2026-11-15T20:00Z", 24, 1, ("2026-11-15T20:00Z", "2026-11-16T00:00Z", 11)),
        # At peak: lunch is the first cheap hour, and 12:00 to 14:00 in Beijing.
        ("2026-11-16T02:00Z", 24, 1, ("2026-11-16T04:00Z", "2026-11-16T05:00Z", 11)),
        # Three hours do not fit into lunch.
        ("2026-11-16T02:00Z", 24, 3, ("2026-11-16T10:00Z", "2026-11-16T22:00Z", 11)),
        # Nothing is cheap before it must be done.
        ("2026-11-16T01:00Z", 3, 3, ("2026-11-16T01:00Z", "2026-11-16T01:00Z", 22)),
    ],
)
def test_work_that_can_wait_is_begun_when_it_costs_least(tmp_path, earliest, hours, work, expected):
    start, last_start, pico = expected
    found = cheapest_window(
        night_book(tmp_path),
        TokenUsage(text=1, output=1),
        *ACME,
        earliest=instant(earliest),
        latest=instant(earliest) + timedelta(hours=hours),
        duration=timedelta(hours=work),
    )
    assert (found.start, found.last_start) == (instant(start), instant(last_start))
    assert found.cost.pico == pico


@example(start=0, span=30, work=2)
@given(start=st.integers(0, 24 * 14), span=st.integers(1, 60), work=st.integers(1, 20))
def test_no_hour_to_begin_is_cheaper_than_the_one_that_is_found(
    tmp_path_factory, start, span, work
):
    book = night_book(tmp_path_factory.mktemp("book"))
    earliest = instant("2026-11-13T00:00Z") + timedelta(hours=start)
    latest, duration = earliest + timedelta(hours=span + work), timedelta(hours=work)

    def dearest(begin: datetime) -> int:
        halves = [begin + timedelta(minutes=30 * number) for number in range(2 * work)]
        return max(book.price(ONE, *ACME, at).pico for at in halves)

    found = cheapest_window(book, ONE, *ACME, earliest=earliest, latest=latest, duration=duration)
    begins = [earliest + timedelta(minutes=30 * number) for number in range(2 * span + 1)]
    best = min(map(dearest, begins))
    assert found.cost.pico == best == dearest(found.start) == dearest(found.last_start)
    assert found.start == next(at for at in begins if dearest(at) == best)


def test_work_that_does_not_fit_or_has_no_price_is_refused(tmp_path):
    book, at = night_book(tmp_path), instant("2026-11-16T00:00Z")
    with pytest.raises(ValueError, match="does not fit"):
        cheapest_window(book, ONE, *ACME, earliest=at, latest=at, duration=timedelta(hours=1))
    before = instant("2025-06-01T00:00Z")
    with pytest.raises(UnpricedError, match="throughout any"):
        cheapest_window(
            book,
            ONE,
            *ACME,
            earliest=before,
            latest=before + timedelta(days=1),
            duration=timedelta(hours=1),
        )
