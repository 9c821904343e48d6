"""One price book as a file that people write: TOML, every mistake named by its line.

What the keys mean stands at the head of `prices/scripted.toml`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcbridge.pricing.calendars import CalendarYear, HolidayCalendar, find_calendar
from qcbridge.pricing.rows import (
    PRICE_MICRO_MAX,
    Alias,
    PriceClass,
    PriceRow,
    RatingInstant,
    ServiceTier,
    Tier,
    TierBasis,
    TierMode,
    Withdrawal,
)
from qcbridge.pricing.schedules import Schedule, read_schedule
from qcbridge.pricing.toml_table import Table, parse_toml, read_bytes
from qcnode.errors import PriceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

_NAME = (r"[^\s*/]{1,100}", "a name without spaces")
_MODEL = (r"[^\s*]{0,200}\*?", "a name, or its beginning and one *")
_EXACT_MODEL = (r"[^\s*]{1,200}", "the whole name of a model")
_LINE = (r"[^\x00-\x1f]{1,500}", "one line on where this stands")
_URL = (r"https?://[^\s\x00-\x1f]{1,500}", "an address that begins with https://")
_SHA256 = (r"[0-9a-f]{64}", "a SHA-256 in hex")
_ROW_ID = (r"[^\x00-\x1f]{1,400}", "the id of a row")
_WHOLE = "a whole number of micro-units"
_PARTS = {"book", "defaults", "schedule", "price", "alias", "withdrawal"}
_DEFAULTS = {"provider", "currency", "rating_instant", "source", "checked_at"}
_TOKENS_MAX = 10**15

_STANDING = {"source", "checked_at"}
_STANDING_OPTIONAL = {"source_url", "confirmed", "recorded_at"}
_PRICE = _STANDING | {"provider", "model", "currency", "valid_from"}
_ONE_CLASS = {"class", "price_micro_per_mtok"}
_CLASSES = {"micro_per_mtok"}
_PRICE_OPTIONAL = _STANDING_OPTIONAL | {
    "valid_to",
    "region",
    "service",
    "batch",
    "tier",
    "during",
    "outside",
    "rating_instant",
    "promotion",
    "replaces",
    "evidence_sha256",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BookFile:
    """What stands in one file, and the years of calendars it leans on."""

    path: Path
    sha256: str
    title: str
    source: str | None
    """The one source of all its rows, where it says so: sources are not mixed."""
    prices: tuple[PriceRow, ...]
    aliases: tuple[Alias, ...]
    withdrawals: tuple[Withdrawal, ...]
    years: tuple[CalendarYear, ...]


def read_book(
    path: Path,
    *,
    calendar_folders: Iterable[Path],
    signed_calendars: Mapping[str, str] | None = None,
    data: bytes | None = None,
) -> BookFile:
    """Read a book; raises `PriceError` naming file and line.

    Calendars are looked for in `calendars/` beside the file, then in the given folders;
    with `signed_calendars` only those count. `data` are the bytes, if already read.
    """
    data = read_bytes(path) if data is None else data
    table = parse_toml(data, path)
    table.only(set(), optional=_PARTS)
    defaults = table.table("defaults")
    if defaults is not None:
        defaults.only(set(), optional=_DEFAULTS | _STANDING_OPTIONAL)
    title, source = _heading(table.table("book"))
    folders = [path.parent / "calendars", *calendar_folders]
    calendars: dict[str, HolidayCalendar] = {}

    def calendar(name: str) -> HolidayCalendar | None:
        found = calendars.get(name) or find_calendar(name, folders, signed=signed_calendars)
        if found is not None:
            calendars[name] = found
        return found

    schedules: dict[str, Schedule] = {}
    for one in table.tables("schedule"):
        schedule = read_schedule(one, calendar)
        if schedule.id in schedules:
            raise one.refuse("id", f"another schedule is called {schedule.id}")
        schedules[schedule.id] = schedule
    return BookFile(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        title=title or path.stem,
        source=source,
        prices=tuple(
            row
            for one in table.tables("price")
            for row in _prices(one.over(defaults, _DEFAULTS | _STANDING_OPTIONAL), schedules)
        ),
        aliases=tuple(
            _alias(one.over(defaults, _STANDING | _STANDING_OPTIONAL | {"provider"}))
            for one in table.tables("alias")
        ),
        withdrawals=tuple(
            _withdrawal(one.over(defaults, _STANDING | _STANDING_OPTIONAL))
            for one in table.tables("withdrawal")
        ),
        years=tuple(year for found in calendars.values() for year in found.years.values()),
    )


def _heading(table: Table | None) -> tuple[str | None, str | None]:
    if table is None:
        return None, None
    table.only(set(), optional={"title", "source"})
    return table.text_or_none("title", *_LINE), table.text_or_none("source", *_LINE)


def _prices(table: Table, schedules: Mapping[str, Schedule]) -> Iterator[PriceRow]:
    """Make the row, or the row for each class, that a [[price]] stands for."""
    several = table.has("micro_per_mtok")
    table.only(_PRICE | (_CLASSES if several else _ONE_CLASS), optional=_PRICE_OPTIONAL)
    group = table.table("micro_per_mtok") if several else None
    if group is None:
        price = table.whole("price_micro_per_mtok", 0, PRICE_MICRO_MAX, wanted=_WHOLE)
        yield _price(table, table.choice("class", PriceClass), price, schedules)
        return
    group.only(set(), optional=set(PriceClass))
    for token_class in PriceClass:
        if group.has(token_class):
            price = group.whole(token_class, 0, PRICE_MICRO_MAX, wanted=_WHOLE)
            yield _price(table, token_class, price, schedules)


def _price(
    table: Table, token_class: PriceClass, price: int, schedules: Mapping[str, Schedule]
) -> PriceRow:
    valid_from, valid_to = _span(table)
    replaces = table.texts("replaces", *_ROW_ID)
    if table.has("micro_per_mtok"):
        # Each class takes the place of its like.
        replaces = tuple(one for one in replaces if re.search(rf"/{token_class}[;@]", one))
    return PriceRow(
        provider=table.text("provider", *_NAME),
        model=table.text("model", *_MODEL),
        token_class=token_class,
        currency=table.text("currency", "[A-Z]{3}", "three capital letters, as USD"),
        price_micro_per_mtok=price,
        valid_from=valid_from,
        valid_to=valid_to,
        source=table.text("source", *_LINE),
        checked_at=table.day("checked_at"),
        where=table.at(),
        region=table.text_or_none("region", *_NAME),
        service=table.choice("service", ServiceTier, ServiceTier.STANDARD),
        batch=table.flag("batch", default=False),
        tier=_tier(table),
        during=_schedules(table, "during", schedules),
        outside=_schedules(table, "outside", schedules),
        rating_instant=table.choice("rating_instant", RatingInstant, RatingInstant.COMPLETION),
        promotion=_promotion(table, valid_to),
        replaces=replaces,
        recorded_at=table.instant("recorded_at"),
        source_url=table.text_or_none("source_url", *_URL),
        evidence_sha256=table.text_or_none("evidence_sha256", *_SHA256),
        confirmed=table.flag("confirmed", default=True),
    )


def _alias(table: Table) -> Alias:
    table.only(
        _STANDING | {"provider", "model", "target", "valid_from"},
        optional=_STANDING_OPTIONAL | {"valid_to"},
    )
    valid_from, valid_to = _span(table)
    return Alias(
        provider=table.text("provider", *_NAME),
        model=table.text("model", *_EXACT_MODEL),
        target=table.text("target", *_EXACT_MODEL),
        valid_from=valid_from,
        valid_to=valid_to,
        source=table.text("source", *_LINE),
        checked_at=table.day("checked_at"),
        where=table.at(),
        recorded_at=table.instant("recorded_at"),
        source_url=table.text_or_none("source_url", *_URL),
        confirmed=table.flag("confirmed", default=True),
    )


def _withdrawal(table: Table) -> Withdrawal:
    table.only(_STANDING | {"rows", "recorded_at"}, optional=_STANDING_OPTIONAL)
    recorded_at = table.instant("recorded_at")
    if recorded_at is None:
        raise table.refuse("recorded_at", "when was this known?")
    return Withdrawal(
        rows=table.texts("rows", *_ROW_ID),
        recorded_at=recorded_at,
        source=table.text("source", *_LINE),
        checked_at=table.day("checked_at"),
        where=table.at(),
        source_url=table.text_or_none("source_url", *_URL),
        confirmed=table.flag("confirmed", default=True),
    )


def _span(table: Table) -> tuple[datetime, datetime | None]:
    valid_from, valid_to = table.instant("valid_from"), table.instant("valid_to")
    if valid_from is None:
        raise table.refuse("valid_from", "this row has no start")
    if valid_to is not None and valid_to <= valid_from:
        raise table.refuse("valid_to", "not after valid_from")
    return valid_from, valid_to


def _tier(table: Table) -> Tier | None:
    tier = table.table("tier")
    if tier is None:
        return None
    tier.only({"basis", "mode", "low"}, optional={"high"})
    low = tier.whole("low", 0, _TOKENS_MAX)
    high = tier.whole("high", 1, _TOKENS_MAX) if tier.has("high") else None
    if high is not None and high <= low:
        raise table.refuse("tier", "high is not above low")
    return Tier(
        basis=tier.choice("basis", TierBasis),
        mode=tier.choice("mode", TierMode),
        low=low,
        high=high,
    )


def _schedules(table: Table, key: str, schedules: Mapping[str, Schedule]) -> tuple[Schedule, ...]:
    names = table.texts(key, r"\S+", "the id of a schedule")
    for name in names:
        if name not in schedules:
            raise table.refuse(key, f"no [[schedule]] {name!r:.60} in this file")
    return tuple(schedules[name] for name in names)


def _promotion(table: Table, valid_to: datetime | None) -> str | None:
    name = table.text_or_none("promotion", *_LINE)
    if name is not None and valid_to is None:
        raise table.refuse("promotion", "a promotion ends: give this row its valid_to")
    return name


def one_source(files: Iterable[BookFile]) -> None:
    """Refuse files that say they have different sources; raises `PriceError`."""
    first: BookFile | None = None
    for file in files:
        if file.source is None:
            continue
        if first is not None and first.source != file.source:
            raise PriceError(
                f"{first.path} and {file.path}: prices of two sources ({first.source};"
                f" {file.source}): choose one book, they are never mixed"
            )
        first = first or file
