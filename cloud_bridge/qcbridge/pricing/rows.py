"""The rows of a price book, as plain values.

A row is one price for one class of token of one model, on certain terms, over a stretch
of instants, by day and hour where the vendor has such hours. It says where it was read
and when somebody last looked. Rows are added and never edited: one that takes the place
of another names it, and one that was taken back by its vendor is withdrawn by a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import date

    from qcbridge.pricing.schedules import Schedule

PRICE_MICRO_MAX = 100_000_000_000
"""A hundred thousand currency units per million tokens: with counts of tokens bounded at
ten million, every cost fits 64 bits."""


class PriceClass(StrEnum):
    """The kinds of token that may have a price of their own."""

    INPUT = "input"
    """Text; and pictures and what may be either, where pictures have no row of their own."""
    IMAGE = "image"
    CACHE_READ = "cache_read"
    CACHE_WRITE = "cache_write"
    CACHE_WRITE_1H = "cache_write_1h"
    OUTPUT = "output"
    REASONING = "reasoning"


INPUT_CLASSES = frozenset(
    {
        PriceClass.INPUT,
        PriceClass.IMAGE,
        PriceClass.CACHE_READ,
        PriceClass.CACHE_WRITE,
        PriceClass.CACHE_WRITE_1H,
    }
)
OUTPUT_CLASSES = frozenset({PriceClass.OUTPUT, PriceClass.REASONING})


class ServiceTier(StrEnum):
    """How urgently the provider was asked to work; batches are a flag of their own."""

    STANDARD = "standard"
    FLEX = "flex"
    PRIORITY = "priority"


class RatingInstant(StrEnum):
    """Which end of a request decides its price where prices change in between."""

    START = "start"
    COMPLETION = "completion"


class TierBasis(StrEnum):
    """What is counted to find the tier."""

    REQUEST_INPUT = "request_input"
    """All input of this request, cached or not."""
    REQUEST_CLASS = "request_class"
    """The tokens of the row's own class in this request."""
    MONTH_CLASS = "month_class"
    """The tokens of the row's own class this month, this request's coming after."""
    MONTH_TOTAL = "month_total"
    """All tokens this month, this request's coming after."""


class TierMode(StrEnum):
    """What a tier prices."""

    CLIFF = "cliff"
    """The whole request, once it reaches into the tier."""
    GRADUATED = "graduated"
    """The tokens that lie in the tier, and no others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Tokens numbered from 1: those above `low`, up to and including `high` (None: no end)."""

    basis: TierBasis
    mode: TierMode
    low: int
    high: int | None

    def holds(self, number: int) -> bool:
        """Say whether the token of that number lies in this tier."""
        return self.low < number and (self.high is None or number <= self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms a request was made, where the provider's prices depend on it."""

    region: str | None = None
    service: ServiceTier = ServiceTier.STANDARD
    batch: bool = False


STANDARD = Terms()


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRow:
    """One price from `valid_from` up to, and without, `valid_to` (None: no end known).

    `model` is a name, or the beginning of names when it ends in `*`. With schedules the
    row counts while one of `during` holds and none of `outside`. `recorded_at` is when it
    became known (None: was always), `withdrawn_at` when it was taken back. A row that
    `replaces` others ends them where it begins. `where` is the file and line, for people.
    """

    provider: str
    model: str
    token_class: PriceClass
    currency: str
    price_micro_per_mtok: int
    valid_from: datetime
    valid_to: datetime | None
    source: str
    checked_at: date
    where: str
    region: str | None = None
    service: ServiceTier = ServiceTier.STANDARD
    batch: bool = False
    tier: Tier | None = None
    during: tuple[Schedule, ...] = ()
    outside: tuple[Schedule, ...] = ()
    rating_instant: RatingInstant = RatingInstant.COMPLETION
    promotion: str | None = None
    replaces: tuple[str, ...] = ()
    recorded_at: datetime | None = None
    source_url: str | None = None
    evidence_sha256: str | None = None
    confirmed: bool = True
    id: str = ""
    """What this row is called in the books; made from the rest when empty."""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", _name(self))

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """All days and hours that decide whether this row counts."""
        return self.during + self.outside

    def covers(self, at: datetime) -> bool:
        """Say whether `at` lies between this row's beginning and end."""
        return self.valid_from <= at and (self.valid_to is None or at < self.valid_to)

    def names(self, model: str) -> bool:
        """Say whether this row is about that model."""
        if self.model.endswith("*"):
            return model.startswith(self.model[:-1])
        return model == self.model


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """From `valid_from` on, requests for `model` are served and billed as `target`.

    Rows of `model` itself do not count while its name means another.
    """

    provider: str
    model: str
    target: str
    valid_from: datetime
    valid_to: datetime | None
    source: str
    checked_at: date
    where: str
    recorded_at: datetime | None = None
    source_url: str | None = None
    confirmed: bool = True

    @property
    def id(self) -> str:
        """What this row is called in the books."""
        return f"{self.provider}/{self.model}->{self.target}@{_stamp(self.valid_from)}" + _known(
            self.recorded_at
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """The news that rows, named by their ids, do not count after all; itself a row."""

    rows: tuple[str, ...]
    recorded_at: datetime
    source: str
    checked_at: date
    where: str
    source_url: str | None = None
    confirmed: bool = True


def _name(row: PriceRow) -> str:
    of = [row.token_class.value]
    if row.region is not None:
        of.append(f"region={row.region}")
    if row.service is not ServiceTier.STANDARD:
        of.append(row.service.value)
    if row.batch:
        of.append("batch")
    if row.tier is not None:
        of.append(f"over={row.tier.low}")
    of += [f"during={schedule.id}" for schedule in row.during]
    of += [f"outside={schedule.id}" for schedule in row.outside]
    return (
        f"{row.provider}/{row.model}/{';'.join(of)}@{_stamp(row.valid_from)}"
        f"{_known(row.recorded_at)}"
    )


def _known(at: datetime | None) -> str:
    return "" if at is None else f";known={_stamp(at)}"


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
