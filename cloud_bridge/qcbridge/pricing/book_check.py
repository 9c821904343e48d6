"""What a person should know of a price book before money depends on it.

Two kinds of finding: what is wrong, and must be mended before the book prices anything
right, and what is only worth knowing. A book that does not agree with itself does not load
either, but here everything that is wrong with it is said at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from qcbridge.pricing import coverage
from qcbridge.pricing.news import Announced, in_force
from qcbridge.pricing.rows import PriceRow
from qcnode.errors import PriceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date, datetime

    from qcbridge.pricing.book_file import BookFile
    from qcbridge.pricing.news import InForce
    from qcbridge.pricing.rows import Alias

AGE_DAYS_MAX: Final = 100
SOON_DAYS: Final = 60
_NAMED_MAX: Final = 3


class Grade(StrEnum):
    """How bad it is."""

    WRONG = "wrong"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class BookFinding:
    """One thing about a book, in one line."""

    grade: Grade
    about: str
    """coverage, age, unconfirmed, calendar or ended."""
    words: str


def check_book(
    files: Sequence[BookFile], *, now: datetime, age_days_max: int = AGE_DAYS_MAX
) -> tuple[BookFinding, ...]:
    """Say what is wrong with these files as one book, and what is worth knowing."""
    announced = Announced(
        prices=tuple(row for file in files for row in file.prices),
        aliases=tuple(row for file in files for row in file.aliases),
        withdrawals=tuple(row for file in files for row in file.withdrawals),
    )
    try:
        book = in_force(announced)
    except PriceError as error:
        return (_wrong("coverage", str(error)),)
    return (
        *(_wrong("coverage", str(problem)) for problem in coverage.problems(book)),
        *_ages(book, now, age_days_max),
        *_unconfirmed(book, now),
        *_calendars(files, book, now),
        *_ended(book, now),
    )


def _ages(book: InForce, now: datetime, age_days_max: int) -> Iterator[BookFinding]:
    oldest = now.date() - timedelta(days=age_days_max)
    by_day: dict[date, list[PriceRow | Alias]] = {}
    for row in _current(book, now):
        if row.checked_at < oldest:
            by_day.setdefault(row.checked_at, []).append(row)
    for day, rows in sorted(by_day.items()):
        yield _wrong(
            "age",
            f"{_some(rows)}: looked up on {day}, {(now.date() - day).days} days ago:"
            " look again and put the day in checked_at",
        )


def _unconfirmed(book: InForce, now: datetime) -> Iterator[BookFinding]:
    rows = [row for row in _current(book, now) if not row.confirmed]
    if rows:
        yield _note(
            "unconfirmed",
            f"{_some(rows)}: not read at the vendor: look at the source, then set confirmed = true",
        )


def _calendars(files: Iterable[BookFile], book: InForce, now: datetime) -> Iterator[BookFinding]:
    calendars = {
        schedule.calendar.id: schedule.calendar
        for row in _current(book, now)
        if isinstance(row, PriceRow)
        for schedule in row.schedules
        if schedule.calendar is not None
    }
    for name, calendar in sorted(calendars.items()):
        left = (calendar.ends - now.date()).days
        words = (
            f"calendar {name} ends with {calendar.ends}: add {name}-{calendar.ends.year + 1}.toml,"
            " or nothing that depends on it has a price after that"
        )
        if left < 0:
            yield _wrong("calendar", words)
        elif left <= SOON_DAYS:
            yield _note("calendar", words)
    for year in sorted({year.name for file in files for year in file.years if not year.confirmed}):
        yield _note("calendar", f"calendar {year}: not read at its source")


def _ended(book: InForce, now: datetime) -> Iterator[BookFinding]:
    aliased = {(alias.provider, alias.model) for alias in book.aliases}
    last: dict[tuple[str, str], datetime | None] = {}
    for row in book.prices:
        key = (row.provider, row.model)
        end = last.get(key, row.valid_to)
        last[key] = None if end is None or row.valid_to is None else max(end, row.valid_to)
    for (provider, model), end in sorted(last.items()):
        if end is not None and end <= now and (provider, model) not in aliased:
            yield _note("ended", f"{model} by {provider} has had no price since {end.isoformat()}")


def _current(book: InForce, now: datetime) -> list[PriceRow | Alias]:
    """Return what holds now or later."""
    rows: list[PriceRow | Alias] = [*book.prices, *book.aliases]
    return [row for row in rows if row.valid_to is None or row.valid_to > now]


def _some(rows: Sequence[PriceRow | Alias]) -> str:
    named = ", ".join(row.id for row in rows[:_NAMED_MAX])
    more = len(rows) - _NAMED_MAX
    return f"{named} and {more} more" if more > 0 else named


def _wrong(about: str, words: str) -> BookFinding:
    return BookFinding(grade=Grade.WRONG, about=about, words=words)


def _note(about: str, words: str) -> BookFinding:
    return BookFinding(grade=Grade.NOTE, about=about, words=words)
