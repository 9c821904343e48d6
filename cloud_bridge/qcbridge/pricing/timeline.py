"""The prices of one model on one set of terms, from the first instant to the last.

Rows and aliases are cut into eras in which always the same rows are candidates. Within
an era the hour decides: each UTC day is worked out once, when first asked for, as a short
list of stretches, and kept. So a look-up is one dictionary access and one bisection.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from qcbridge.pricing.calendars import DayKind
from qcbridge.pricing.rates import Rates
from qcbridge.pricing.schedules import MINUTES_A_DAY, DayShape
from qcnode.errors import PriceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date, tzinfo
    from zoneinfo import ZoneInfo

    from qcbridge.pricing.calendars import HolidayCalendar
    from qcbridge.pricing.news import InForce
    from qcbridge.pricing.rows import Alias, PriceRow, Terms

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
US_A_DAY: Final = 86_400_000_000
_US_AN_HOUR: Final = 3_600_000_000
_US_A_MINUTE: Final = 60_000_000
_FIRST_US: Final = -62_135_596_800_000_000
_LAST_US: Final = 253_402_214_400_000_000
"""The last whole day that a datetime can name."""

_DAYS_KEPT: Final = 4_096
_ALIASES_MAX: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A stretch without a price, and why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Era:
    """A stretch in which always the same rows are candidates; without any it is a hole.

    `model` is the name that the asked one means then.
    """

    start_us: int
    end_us: int
    model: str
    rows: tuple[PriceRow, ...]

    @property
    def start(self) -> datetime:
        """When it begins."""
        return to_instant(self.start_us)

    @property
    def zone(self) -> ZoneInfo | None:
        """The time zone of its schedules, if it has any."""
        return next((schedule.zone for row in self.rows for schedule in row.schedules), None)

    @property
    def calendar(self) -> HolidayCalendar | None:
        """The calendar of its schedules, if they have one."""
        return next(
            (
                schedule.calendar
                for row in self.rows
                for schedule in row.schedules
                if schedule.calendar is not None
            ),
            None,
        )

    @property
    def edges(self) -> tuple[int, ...]:
        """The minutes of the local day at which something may change, from 0 to the last."""
        edges = {0}
        for row in self.rows:
            for schedule in row.schedules:
                for window in schedule.windows:
                    edges.update(window)
        return tuple(sorted(edges - {MINUTES_A_DAY}))

    def rows_at(self, day: DayShape, minute: int) -> tuple[PriceRow, ...]:
        """Return the rows that count at that minute of such a day."""
        return tuple(
            row
            for row in self.rows
            if (not row.during or any(one.holds(day, minute) for one in row.during))
            and not any(one.holds(day, minute) for one in row.outside)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """From `start` to `end` (not included) always the same prices hold, or none."""

    start: datetime
    end: datetime
    rates: Rates | Gap


class Timeline:
    """When which rates of one model hold."""

    def __init__(self, provider: str, model: str, eras: Sequence[Era], *, reason: str) -> None:
        self._provider = provider
        self._model = model
        self._eras = tuple(eras)
        self._nothing = Gap(reason=reason)
        self._days: dict[int, _Day] = {}
        self._rates: dict[tuple[str, ...], Rates] = {}

    def at(self, at: datetime) -> Rates | Gap:
        """Return what holds at that instant."""
        since = at - EPOCH
        day = self._days.get(since.days)
        if day is None:
            day = self._day(since.days)
        starts, rates = day
        if len(rates) == 1:
            return rates[0]
        in_day_us = since.seconds * 1_000_000 + since.microseconds
        return rates[bisect_right(starts, in_day_us) - 1]

    def stretches(self, start: datetime, end: datetime) -> Iterator[Stretch]:
        """Return what holds from `start` up to `end`, as long stretches as there are."""
        start_us, end_us = to_us(start), max(to_us(end), to_us(start) + 1)
        begun, held = start_us, self.at(start)
        for number in range(start_us // US_A_DAY, (end_us - 1) // US_A_DAY + 1):
            starts, rates = self._days.get(number) or self._day(number)
            for offset, now in zip(starts, rates, strict=True):
                at_us = number * US_A_DAY + offset
                if start_us < at_us < end_us and now != held:
                    yield Stretch(start=to_instant(begun), end=to_instant(at_us), rates=held)
                    begun, held = at_us, now
        yield Stretch(start=to_instant(begun), end=to_instant(end_us), rates=held)

    def candidates(self, at: datetime) -> tuple[PriceRow, ...]:
        """Return all rows that could count about then, whatever the hour."""
        era = self.era(at)
        return () if era is None else era.rows

    def era(self, at: datetime) -> Era | None:
        """Return the era that holds `at`."""
        at_us = to_us(at)
        return next((era for era in self._eras if era.start_us <= at_us < era.end_us), None)

    def rates_of(self, rows: tuple[PriceRow, ...]) -> Rates:
        """Return the rates that these rows make, the same object for the same rows."""
        ids = tuple(row.id for row in rows)
        found = self._rates.get(ids)
        if found is None:
            found = self._rates[ids] = Rates(self._provider, self._model, rows)
        return found

    def _day(self, number: int) -> _Day:
        start_us = number * US_A_DAY
        starts: list[int] = []
        rates: list[Rates | Gap] = []
        for at_us, held in self._of_day(start_us, start_us + US_A_DAY):
            if not rates or rates[-1] != held:
                starts.append(at_us - start_us)
                rates.append(held)
        if len(self._days) >= _DAYS_KEPT:
            self._days.clear()
        day = self._days[number] = (tuple(starts), tuple(rates))
        return day

    def _of_day(self, start_us: int, end_us: int) -> Iterator[tuple[int, Rates | Gap]]:
        at_us = start_us
        for era in self._eras:
            first, last = max(start_us, era.start_us), min(end_us, era.end_us)
            if first >= last:
                continue
            if first > at_us:
                yield at_us, self._nothing
            zone = era.zone
            if not era.rows:
                yield first, self._nothing
            elif zone is None:
                yield first, self.rates_of(era.rows)
            else:
                yield from self._of_hours(era, zone, first, last)
            at_us = last
        if at_us < end_us:
            yield at_us, self._nothing

    def _of_hours(
        self, era: Era, zone: ZoneInfo, first_us: int, last_us: int
    ) -> Iterator[tuple[int, Rates | Gap]]:
        calendar = era.calendar
        for at_us in sorted({first_us, *_turns(era.edges, zone, first_us, last_us)}):
            local = to_instant(at_us).astimezone(zone)
            day = shape_of(local.date(), calendar)
            if day is None:
                yield at_us, Gap(reason=_beyond(calendar, local.date()))
            else:
                rows = era.rows_at(day, local.hour * 60 + local.minute)
                yield at_us, self.rates_of(rows)


_Day = tuple[tuple[int, ...], tuple["Rates | Gap", ...]]


def shape_of(day: date, calendar: HolidayCalendar | None) -> DayShape | None:
    """Return all that schedules know of a day; None beyond the calendar's years."""
    if calendar is None:
        return DayShape(day.weekday(), DayKind.ORDINARY)
    kind = calendar.kind(day)
    return None if kind is None else DayShape(day.weekday(), kind)


def eras_of(
    book: InForce, provider: str, model: str, terms: Terms
) -> tuple[tuple[Era, ...], str | None]:
    """Cut what is known of a model into eras, in order and without a break between them.

    The second value says why there are none, where the terms are the reason.
    """
    aliases = [row for row in book.aliases if row.provider == provider]
    pieces = list(_pieces(aliases, model, _FIRST_US, _LAST_US, depth=0))
    cut: list[tuple[int, int, str, PriceRow]] = []
    problem: str | None = None
    for start_us, end_us, name in pieces:
        rows, why = _on_terms(book.rows_of(provider, name), terms)
        problem = problem or why
        for row in rows:
            first = max(start_us, to_us(row.valid_from))
            last = end_us if row.valid_to is None else min(end_us, to_us(row.valid_to))
            if first < last:
                cut.append((first, last, name, row))
    turns = sorted({turn for first, last, _, _ in cut for turn in (first, last)})
    eras: list[Era] = []
    for start_us, end_us in pairwise(turns):
        inside = [piece for piece in cut if piece[0] <= start_us < piece[1]]
        name = inside[0][2] if inside else model
        rows_inside = tuple(piece[3] for piece in inside)
        eras.append(Era(start_us=start_us, end_us=end_us, model=name, rows=rows_inside))
    return tuple(eras), problem


def to_us(at: datetime) -> int:
    """Return whole microseconds since 1970 UTC."""
    return (at - EPOCH) // timedelta(microseconds=1)


def to_instant(us: int) -> datetime:
    """Return the instant, in UTC, so many microseconds after 1970."""
    return EPOCH + timedelta(microseconds=us)


def _pieces(
    aliases: Sequence[Alias], model: str, start_us: int, end_us: int, *, depth: int
) -> Iterator[tuple[int, int, str]]:
    """Say what a name means over time: first to last instant, and the model it then means."""
    at_us = start_us
    of_model = sorted((row for row in aliases if row.model == model), key=_begins)
    for row in of_model:
        first = max(at_us, to_us(row.valid_from))
        last = end_us if row.valid_to is None else min(end_us, to_us(row.valid_to))
        if first >= last:
            continue
        if first > at_us:
            yield at_us, first, model
        if depth >= _ALIASES_MAX:
            raise PriceError(f"{row.where}: {model} means one name after another: end the circle")
        yield from _pieces(aliases, row.target, first, last, depth=depth + 1)
        at_us = last
    if at_us < end_us:
        yield at_us, end_us, model


def _on_terms(rows: list[PriceRow], terms: Terms) -> tuple[list[PriceRow], str | None]:
    """Choose the rows for these terms: those for the region, else those for every region."""
    fitting = [row for row in rows if (row.service, row.batch) == (terms.service, terms.batch)]
    if rows and not fitting:
        batch = ", batch" if terms.batch else ""
        return [], f"none on these terms ({terms.service}{batch})"
    regions = {row.region for row in fitting}
    if terms.region in regions:
        return [row for row in fitting if row.region == terms.region], None
    if None in regions:
        return [row for row in fitting if row.region is None], None
    named = sorted(region for region in regions if region is not None)
    if terms.region is None and len(named) == 1:
        return fitting, None
    if named:
        return [], f"none for region {terms.region or '(not said)'}; known are {', '.join(named)}"
    return [], None


def _turns(edges: Iterable[int], zone: tzinfo, first_us: int, last_us: int) -> Iterator[int]:
    """Return the instants at which local time crosses an edge, or jumps."""
    offsets = {_offset_us(zone, first_us)}
    hours = [*range(first_us, last_us, _US_AN_HOUR), last_us - 1]
    for before, after in pairwise(hours):
        if _offset_us(zone, before) != _offset_us(zone, after):
            offsets.add(_offset_us(zone, after))
            yield _jump(zone, before, after)
    for offset in offsets:
        for day in range((first_us + offset) // US_A_DAY, (last_us + offset) // US_A_DAY + 1):
            for edge in edges:
                at_us = day * US_A_DAY + edge * _US_A_MINUTE - offset
                if first_us < at_us < last_us:
                    yield at_us


def _jump(zone: tzinfo, before_us: int, after_us: int) -> int:
    """Return the first instant, between two, at which the clock has been put on or back."""
    old = _offset_us(zone, before_us)
    while after_us - before_us > 1:
        middle = (before_us + after_us) // 2
        if _offset_us(zone, middle) == old:
            before_us = middle
        else:
            after_us = middle
    return after_us


def _offset_us(zone: tzinfo, at_us: int) -> int:
    offset = to_instant(at_us).astimezone(zone).utcoffset()
    return 0 if offset is None else offset // timedelta(microseconds=1)


def _beyond(calendar: HolidayCalendar | None, day: date) -> str:
    name = "" if calendar is None else calendar.id
    return (
        f"whether {day} is a holiday is not known:"
        f" add the calendar file {name}-{day.year}.toml beside the book"
    )


def _begins(row: Alias) -> datetime:
    return row.valid_from
