"""Days and hours at which a vendor charges another price, on the vendor's own clock.

What holds at an instant depends on nothing but the weekday, the kind of day and the
minute there, in the vendor's time zone. So a finite table of day shapes shows whether
rows that use schedules leave an hour out or price one twice, in every year there is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from qcbridge.pricing.calendars import DayKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from qcbridge.pricing.calendars import HolidayCalendar
    from qcbridge.pricing.toml_table import Table

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_A_DAY = 24 * 60
_SATURDAY = 5
_WINDOW = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-(?:([01][0-9]|2[0-3]):([0-5][0-9])|24:00)")


class OnHolidays(StrEnum):
    """What a public holiday does to a schedule."""

    EXCLUDE = "exclude"
    """It never holds on one."""
    INCLUDE = "include"
    """It holds on every one, whatever the weekday."""


class OnMakeUpDays(StrEnum):
    """What a day of the weekend is that is worked in exchange for a holiday."""

    WEEKEND = "weekend"
    """Still the Saturday or Sunday it is."""
    WORKDAY = "workday"
    """A working day: it counts wherever some of Monday to Friday do."""


@dataclass(frozen=True, slots=True)
class DayShape:
    """All that a schedule knows of a day: weekday (Monday is 0) and kind."""

    weekday: int
    kind: DayKind

    def __str__(self) -> str:
        kind = "" if self.kind is DayKind.ORDINARY else f", {self.kind.replace('_', '-')}"
        return f"{WEEKDAYS[self.weekday]}{kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Windows of minutes of the local day, on some days. Windows do not cross midnight."""

    id: str
    zone: ZoneInfo
    weekdays: frozenset[int]
    windows: tuple[tuple[int, int], ...]
    calendar: HolidayCalendar | None = None
    holidays: OnHolidays | None = None
    make_up_days: OnMakeUpDays | None = None
    where: str = ""

    def holds(self, day: DayShape, minute: int) -> bool:
        """Say whether it holds at that minute of such a day."""
        return self.holds_on(day) and any(start <= minute < end for start, end in self.windows)

    def holds_on(self, day: DayShape) -> bool:
        """Say whether it holds at any time of such a day."""
        if day.kind is DayKind.HOLIDAY and self.holidays is not None:
            return self.holidays is OnHolidays.INCLUDE
        if day.kind is DayKind.MAKE_UP and self.make_up_days is OnMakeUpDays.WORKDAY:
            return any(weekday < _SATURDAY for weekday in self.weekdays)
        return day.weekday in self.weekdays


def read_schedule(table: Table, find_calendar: Callable[[str], HolidayCalendar | None]) -> Schedule:
    """Make a schedule of its table; raises `PriceError`."""
    table.only(
        {"id", "tz", "weekdays", "windows"}, optional={"calendar", "holidays", "make_up_days"}
    )
    zone_name = table.text("tz", r"[A-Za-z0-9_+/-]+", "a time zone, as Asia/Shanghai")
    try:
        zone = ZoneInfo(zone_name)
    except (KeyError, ValueError, OSError) as error:
        raise table.refuse("tz", f"{zone_name!r:.60} is no time zone known here") from error
    calendar, holidays, make_up_days = None, None, None
    if table.has("calendar"):
        name = table.text("calendar", r"[a-z0-9-]+", "the name of a calendar")
        calendar = find_calendar(name)
        if calendar is None:
            raise table.refuse(
                "calendar",
                f"no calendar {name!r:.60} is built in, or in calendars/ beside the book"
                f" (as {name:.60}-2026.toml)",
            )
        for key in ("holidays", "make_up_days"):
            if not table.has(key):
                raise table.refuse("calendar", f"with a calendar, say what {key} are")
        holidays = table.choice("holidays", OnHolidays)
        make_up_days = table.choice("make_up_days", OnMakeUpDays)
    else:
        for key in ("holidays", "make_up_days"):
            if table.has(key):
                raise table.refuse(key, "means nothing without a calendar: name one")
    return Schedule(
        id=table.text("id", r"[A-Za-z0-9._-]+", "a name of letters, digits and . _ -"),
        zone=zone,
        weekdays=frozenset(map(WEEKDAYS.index, table.choices("weekdays", WEEKDAYS))),
        windows=_windows(table),
        calendar=calendar,
        holidays=holidays,
        make_up_days=make_up_days,
        where=table.at(),
    )


def _windows(table: Table) -> tuple[tuple[int, int], ...]:
    wanted = "a window of local time as 09:00-12:00, the end not included"
    windows: list[tuple[int, int]] = []
    for text in table.texts("windows", r".{1,40}", wanted):
        found = _WINDOW.fullmatch(text)
        if found is None:
            raise table.refuse("windows", f"{text!r} is not {wanted}")
        start = int(found[1]) * 60 + int(found[2])
        end = MINUTES_A_DAY if found[3] is None else int(found[3]) * 60 + int(found[4])
        if end <= start:
            raise table.refuse(
                "windows", f"{text!r} ends before it begins: split it at midnight, 24:00"
            )
        windows.append((start, end))
    windows.sort()
    if not windows:
        raise table.refuse("windows", "no window: give one at least, 00:00-24:00 for whole days")
    for (_, end), (start, _) in pairwise(windows):
        if start < end:
            raise table.refuse("windows", "two of them overlap: make them one")
    return tuple(windows)
