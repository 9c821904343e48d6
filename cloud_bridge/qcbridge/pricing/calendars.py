"""Public holidays and make-up working days, by year, as dated data files.

A calendar knows the years whose files it was made from and nothing of the others: what
is asked about another year has no answer, because a guess would be a wrong bill. Each
year is a file of its own that does not change once it is out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from qcbridge.pricing.toml_table import Table, parse_toml, read_bytes
from qcnode.errors import PriceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_DAYS_MAX = 366


class DayKind(StrEnum):
    """What a calendar says of a day."""

    ORDINARY = "ordinary"
    HOLIDAY = "holiday"
    MAKE_UP = "make_up"
    """A day of the weekend that is worked in exchange for a holiday."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalendarYear:
    """One year of a calendar, and where it stands."""

    id: str
    year: int
    holidays: dict[date, str]
    make_up_days: frozenset[date]
    source: str
    checked_at: date
    confirmed: bool
    sha256: str
    path: Path

    @property
    def name(self) -> str:
        """What this year is called, as its file and in signatures."""
        return f"{self.id}-{self.year}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HolidayCalendar:
    """The known years of the calendar `id`."""

    id: str
    years: dict[int, CalendarYear]

    def kind(self, day: date) -> DayKind | None:
        """Say what `day` is, or None where the year is not known."""
        year = self.years.get(day.year)
        if year is None:
            return None
        if day in year.holidays:
            return DayKind.HOLIDAY
        return DayKind.MAKE_UP if day in year.make_up_days else DayKind.ORDINARY

    def holiday(self, day: date) -> str | None:
        """Return what is celebrated on `day`, if anything."""
        year = self.years.get(day.year)
        return None if year is None else year.holidays.get(day)

    @property
    def ends(self) -> date:
        """The last day of the unbroken run of known years that begins with the first."""
        year = min(self.years)
        while year + 1 in self.years:
            year += 1
        return date(year, 12, 31)


def find_calendar(
    calendar_id: str, folders: Iterable[Path], *, signed: Mapping[str, str] | None = None
) -> HolidayCalendar | None:
    """Gather the years of a calendar; a folder that comes first wins over later ones.

    With `signed`, digests by name, no other years count, and a year with another digest
    is refused.
    """
    years: dict[int, CalendarYear] = {}
    for folder in folders:
        for path in sorted(folder.glob(f"{calendar_id}-[0-9][0-9][0-9][0-9].toml")):
            if signed is not None and path.stem not in signed:
                continue
            year = read_year(path)
            if year.year in years:
                continue
            if signed is not None and signed[path.stem] != year.sha256:
                raise PriceError(f"{path}: not the calendar that was signed with this book")
            years[year.year] = year
    return HolidayCalendar(id=calendar_id, years=years) if years else None


def read_year(path: Path) -> CalendarYear:
    """Read one year; raises `PriceError` naming file and line."""
    data = read_bytes(path)
    table = parse_toml(data, path)
    table.only(
        {"id", "year", "source", "checked_at", "holiday"},
        optional={"source_url", "confirmed", "make_up_days"},
    )
    calendar_id = table.text("id", r"[a-z0-9-]+", "small letters, digits and -")
    year = table.whole("year", 1970, 9998)
    if path.stem != f"{calendar_id}-{year}":
        raise table.refuse("id", f"the file of this year is called {calendar_id}-{year}.toml")
    holidays: dict[date, str] = {}
    for entry in table.tables("holiday"):
        entry.only({"name", "from", "to"})
        name = entry.text("name", r"[^\x00-\x1f]+", "one line")
        for day in _days(entry, year):
            if day in holidays:
                raise entry.refuse("from", f"{day} is in two holidays")
            holidays[day] = name
    make_up = frozenset(table.dates("make_up_days"))
    for day in sorted(make_up):
        if day.year != year or day in holidays:
            raise table.refuse("make_up_days", f"{day} is a holiday or of another year")
    return CalendarYear(
        id=calendar_id,
        year=year,
        holidays=holidays,
        make_up_days=make_up,
        source=table.text("source", r"[^\x00-\x1f]+", "one line on where this stands"),
        checked_at=table.day("checked_at"),
        confirmed=table.flag("confirmed", default=True),
        sha256=hashlib.sha256(data).hexdigest(),
        path=path,
    )


def _days(entry: Table, year: int) -> Iterable[date]:
    first, last = entry.day("from"), entry.day("to")
    if first > last or first.year != year or last.year != year:
        raise entry.refuse("to", f"{first} to {last} is no stretch of days in {year}")
    count = (last - first).days + 1
    if count > _DAYS_MAX:
        raise PriceError(f"{entry.at()}: {count} days in a row are no holiday")
    return [first + timedelta(days=number) for number in range(count)]
