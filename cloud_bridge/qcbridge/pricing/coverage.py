"""The proof that exactly one row prices each class of token at each instant.

It is made on the very eras that prices are looked up in. Within an era what counts
depends on the shape of the local day and the minute alone, so all shapes at all edges of
windows are every case there is, for all years. Names are covered by one model for each
name that rows give, and one made-up name for each beginning that ends in `*`.
"""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from qcbridge.pricing.calendars import DayKind
from qcbridge.pricing.rows import INPUT_CLASSES, PriceClass, Terms, TierBasis, TierMode
from qcbridge.pricing.schedules import WEEKDAYS, DayShape
from qcbridge.pricing.timeline import eras_of, to_us
from qcnode.errors import PriceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from qcbridge.pricing.news import InForce
    from qcbridge.pricing.rows import Alias, PriceRow
    from qcbridge.pricing.timeline import Era

_ANYTHING_ELSE = "\x00"
_NEEDED = (PriceClass.INPUT, PriceClass.OUTPUT)
_BY_CLASS = frozenset({TierBasis.REQUEST_CLASS, TierBasis.MONTH_CLASS})


def problems(book: InForce) -> Iterator[PriceError]:
    """Say everything that keeps the book from having one price for everything it covers."""
    for row in book.prices:
        yield from _of_row(row)
    said: set[str] = set()
    known = _terms(book)
    for alias in book.aliases:
        yield from _of_alias(book, alias, known.get(alias.provider, []))
    for provider, model in _names(book):
        for terms in known.get(provider, ()):
            try:
                eras, _ = eras_of(book, provider, model, terms)
            except PriceError as error:
                found = [error]
            else:
                found = list(_of_model(eras, model.removesuffix(_ANYTHING_ELSE)))
            for problem in found:
                if str(problem) not in said:
                    said.add(str(problem))
                    yield problem


def _names(book: InForce) -> list[tuple[str, str]]:
    names = {(alias.provider, alias.model): None for alias in book.aliases}
    for row in book.prices:
        name = row.model[:-1] + _ANYTHING_ELSE if row.model.endswith("*") else row.model
        names[row.provider, name] = None
    return sorted(names)


def _terms(book: InForce) -> dict[str, list[Terms]]:
    """Return all terms that a provider has prices on, in the order of the rows."""
    found: dict[str, dict[Terms, None]] = {}
    for row in book.prices:
        terms = Terms(region=row.region, service=row.service, batch=row.batch)
        found.setdefault(row.provider, {})[terms] = None
    return {provider: list(terms) for provider, terms in found.items()}


def _of_row(row: PriceRow) -> Iterator[PriceError]:
    zones = {schedule.zone.key for schedule in row.schedules}
    calendars = {
        schedule.calendar.id: schedule.calendar
        for schedule in row.schedules
        if schedule.calendar is not None
    }
    if len(zones) > 1 or len(calendars) > 1:
        yield PriceError(
            f"{row.where}: its schedules are in different time zones or calendars: use one of each"
        )
        return
    for schedule in row.schedules:
        calendar = schedule.calendar
        if calendar is None:
            continue
        first = row.valid_from.astimezone(schedule.zone).date()
        last = None if row.valid_to is None else row.valid_to.astimezone(schedule.zone).date()
        years = range(first.year, (first if last is None else last).year + 1)
        missing = [year for year in years if year not in calendar.years]
        if missing:
            yield PriceError(
                f"{row.where}: this price depends on the holidays of {missing[0]}, which calendar"
                f" {calendar.id} does not know: add {calendar.id}-{missing[0]}.toml"
            )


def _of_alias(book: InForce, alias: Alias, terms: Sequence[Terms]) -> Iterator[PriceError]:
    start_us = to_us(alias.valid_from)
    try:
        found = [eras_of(book, alias.provider, alias.model, one)[0] for one in terms]
    except PriceError:
        return  # A circle, which is said of its names.
    eras = [era for each in found for era in each]
    if not any(era.rows and era.start_us <= start_us < era.end_us for era in eras):
        yield PriceError(
            f"{alias.where}: {alias.target} by {alias.provider} has no price when"
            f" {alias.model} begins to mean it: add its rows"
        )


def _of_model(eras: Sequence[Era], model: str) -> Iterator[PriceError]:
    for era in eras:
        yield from _of_era(era, model)
    for token_class in PriceClass:
        yield from _holes(eras, token_class, model)
    first = next((era.rows[0] for era in eras if era.rows), None)
    if first is None:
        return
    spans = [_span(eras, token_class) for token_class in _NEEDED]
    for token_class, span in zip(_NEEDED, spans, strict=True):
        if span is None:
            yield PriceError(
                f"{first.where}: {model} by {first.provider} has no row for"
                f" {token_class} tokens: add it"
            )
    if None not in spans and spans[0] != spans[1]:
        wheres = [_first_row(eras, token_class).where for token_class in _NEEDED]
        yield PriceError(
            f"{wheres[0]} and {wheres[1]}: input and output tokens of {model}"
            " are not priced over the same time: let their rows begin and end alike"
        )
    currencies = {row.currency: row for era in eras for row in era.rows}
    if len(currencies) > 1:
        one, other = list(currencies.values())[:2]
        yield PriceError(
            f"{one.where} and {other.where}: {one.currency} and {other.currency} for one model:"
            " give it one currency"
        )


def _of_era(era: Era, model: str) -> Iterator[PriceError]:
    schedules = [schedule for row in era.rows for schedule in row.schedules]
    calendars = {one.calendar.id for one in schedules if one.calendar is not None}
    if len({schedule.zone.key for schedule in schedules}) > 1 or len(calendars) > 1:
        yield PriceError(
            f"{era.rows[0].where}: the schedules of {model} are in different time zones or"
            " calendars: use one of each"
        )
        return
    if len({row.rating_instant for row in era.rows}) > 1:
        yield PriceError(
            f"{era.rows[0].where}: rows of {model} are rated at different instants of a request:"
            " give them one rating_instant"
        )
    present = {row.token_class for row in era.rows}
    kinds = list(DayKind) if calendars else [DayKind.ORDINARY]
    for kind in kinds:
        for weekday in range(len(WEEKDAYS) if schedules else 1):
            for minute in era.edges:
                day = DayShape(weekday, kind)
                counted = era.rows_at(day, minute) if schedules else era.rows
                when = f" on {day} at {minute // 60:02d}:{minute % 60:02d}" if schedules else ""
                found = list(_of_moment(era, present, counted, model, when))
                yield from found
                if found:
                    return  # One example says enough; the rest follows from it.


def _of_moment(
    era: Era, present: set[PriceClass], counted: Sequence[PriceRow], model: str, when: str
) -> Iterator[PriceError]:
    for token_class in sorted(present):
        rows = [row for row in counted if row.token_class is token_class]
        if not rows:
            candidate = next(row for row in era.rows if row.token_class is token_class)
            yield PriceError(
                f"{candidate.where}: no price for {token_class} tokens of {model}{when}:"
                " add a row for the hours outside its schedule"
            )
        elif any(row.tier is None for row in rows):
            if len(rows) > 1:
                yield _twice(rows[0], rows[1], model, era.start, when)
        else:
            yield from _of_ladder(rows, model, era.start, when)


def _of_ladder(
    rows: Sequence[PriceRow], model: str, start: datetime, when: str
) -> Iterator[PriceError]:
    rungs = sorted(
        ((row.tier, row) for row in rows if row.tier is not None), key=lambda rung: rung[0].low
    )
    first, lowest = rungs[0]
    for tier, row in rungs:
        if (tier.basis, tier.mode) != (first.basis, first.mode):
            yield PriceError(
                f"{lowest.where} and {row.where}: tiers of one price count differently:"
                " give them one basis and one mode"
            )
        if tier.mode is TierMode.GRADUATED and tier.basis not in _BY_CLASS:
            yield PriceError(
                f"{row.where}: tier: graduated tiers count the tokens of their own class:"
                " use basis request_class or month_class"
            )
        if tier.basis is TierBasis.REQUEST_CLASS and tier.mode is TierMode.CLIFF:
            in_or_out = "input" if row.token_class in INPUT_CLASSES else "output"
            if row.token_class.value != in_or_out:
                yield PriceError(
                    f"{row.where}: tier: a cliff by the tokens of {row.token_class} alone is"
                    " no vendor's: use basis request_input"
                )
    if first.low != 0:
        yield PriceError(f"{lowest.where}: tier: nothing prices the first tokens: begin with low 0")
    for (tier, row), (above, following) in pairwise(rungs):
        if tier.high is None or above.low < tier.high:
            yield _twice(row, following, model, start, when)
        elif above.low > tier.high:
            yield PriceError(
                f"{row.where} and {following.where}: no price for tokens {tier.high + 1} to"
                f" {above.low}: let one tier begin where the other ends"
            )


def _twice(row: PriceRow, other: PriceRow, model: str, start: datetime, when: str) -> PriceError:
    return PriceError(
        f"{row.where} and {other.where}: both price {row.token_class} tokens of {model} from"
        f" {start.isoformat()}{when}: end the first with valid_to, or let the other replace it"
    )


def _holes(eras: Sequence[Era], token_class: PriceClass, model: str) -> Iterator[PriceError]:
    last: PriceRow | None = None
    for missing, group in groupby(eras, key=lambda era: _row_of(era, token_class) is None):
        stretch = list(group)
        if not missing:
            last = _row_of(stretch[-1], token_class)
            continue
        following = next(
            (
                row
                for era in eras
                if era.start_us >= stretch[-1].end_us
                and (row := _row_of(era, token_class)) is not None
            ),
            None,
        )
        if last is not None and following is not None:
            yield PriceError(
                f"{last.where} and {following.where}: no price between {last.valid_to} and"
                f" {following.valid_from} for {token_class} tokens of {model}:"
                " let one begin where the other ends"
            )


def _span(eras: Sequence[Era], token_class: PriceClass) -> tuple[int, int] | None:
    present = [era for era in eras if _row_of(era, token_class) is not None]
    return (present[0].start_us, present[-1].end_us) if present else None


def _first_row(eras: Sequence[Era], token_class: PriceClass) -> PriceRow:
    return next(row for era in eras if (row := _row_of(era, token_class)) is not None)


def _row_of(era: Era, token_class: PriceClass) -> PriceRow | None:
    return next((row for row in era.rows if row.token_class is token_class), None)
