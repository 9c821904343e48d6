"""What tokens cost, by provider, model, class of token, terms and instant.

A price book is rows of whole micro-currency units per million tokens, so that tokens
times price is pico-currency, exactly. Rows are added and never edited. A book in which
some instant has two rows for the same thing, or none between two, does not load; outside
what its rows cover it has no price, and no price is an error and never zero. Its parts
are in `qcbridge.pricing`; whoever asks for prices asks here.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qcbridge.pricing import coverage
from qcbridge.pricing.book_file import BookFile, one_source, read_book
from qcbridge.pricing.book_seal import read_seal
from qcbridge.pricing.news import Announced, in_force
from qcbridge.pricing.rates import Rates
from qcbridge.pricing.rows import (
    PRICE_MICRO_MAX,
    STANDARD,
    PriceClass,
    PriceRow,
    RatingInstant,
    ServiceTier,
    Terms,
)
from qcbridge.pricing.timeline import Gap, Timeline, eras_of
from qcbridge.pricing.toml_table import read_bytes
from qcnode.books.seals import PublicKey
from qcnode.errors import PriceError, UnpricedError
from qcnode.money import Cost

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from qcbridge.pricing.rates import CostLine
    from qcbridge.pricing.rows import Alias, Withdrawal
    from qcbridge.pricing.timeline import Era, Stretch
    from qcnode.money import TokenUsage

__all__ = [
    "BUILT_IN",
    "PRICE_MICRO_MAX",
    "STANDARD",
    "PriceBook",
    "PriceClass",
    "PriceRow",
    "RatingInstant",
    "ServiceTier",
    "Terms",
    "open_book",
    "shipped",
]

BUILT_IN = Path(__file__).with_name("prices")
"""The books that come with the package. One is the default, for the scripted provider, whose
prices are made up; which of the others is right, the operator says."""

DEFAULT: Final = BUILT_IN / "scripted.toml"

_TIMELINES_KEPT: Final = 4_096
_TINY: Final = timedelta(microseconds=1)
"""What makes an end that counts of one that does not."""


def shipped() -> dict[str, Path]:
    """Return the books that come with the package, by name."""
    return {path.stem: path for path in sorted(BUILT_IN.glob("*.toml"))}


def open_book(prices: Path | None, key: str | None = None) -> PriceBook:
    """Read the book that settings name, and check its signature where they name a key.

    Raises `PriceError`.
    """
    public = None if key is None else PublicKey.parse(key)
    return PriceBook.load(*([] if prices is None else [prices]), key=public)


class PriceBook:
    """Rows that agree with each other; raises `PriceError` when they do not."""

    def __init__(
        self,
        rows: Iterable[PriceRow],
        *,
        aliases: Iterable[Alias] = (),
        withdrawals: Iterable[Withdrawal] = (),
        files: Iterable[BookFile] = (),
        known_at: datetime | None = None,
    ) -> None:
        self._announced = Announced(
            prices=tuple(
                sorted(rows, key=lambda row: (row.provider, row.token_class, row.valid_from))
            ),
            aliases=tuple(aliases),
            withdrawals=tuple(withdrawals),
        )
        self.files = tuple(files)
        self._book = in_force(self._announced.as_known_at(known_at))
        for problem in coverage.problems(self._book):
            raise problem
        self._standard: dict[tuple[str, str], Timeline] = {}
        self._others: dict[tuple[str, str, Terms], Timeline] = {}

    @classmethod
    def load(cls, *paths: Path, key: PublicKey | None = None) -> PriceBook:
        """Read price files, and all `*.toml` of folders; without any, the one built in.

        A path that does not exist and is the name of a book that ships means that one.
        With `key`, each file must bear its signature. Raises `PriceError` naming file
        and line.
        """
        files = read_files(*paths, key=key)
        one_source(files)
        return cls(
            (row for file in files for row in file.prices),
            aliases=(row for file in files for row in file.aliases),
            withdrawals=(row for file in files for row in file.withdrawals),
            files=files,
        )

    @property
    def rows(self) -> tuple[PriceRow, ...]:
        """The rows that count, by provider, class and start; withdrawn ones do not."""
        return self._book.prices

    @property
    def announced(self) -> Announced:
        """All rows, also those withdrawn, replaced or not known yet."""
        return self._announced

    def as_known_at(self, at: datetime) -> PriceBook:
        """Return the book as it was known at `at`; raises `PriceError` if it had holes then."""
        return PriceBook(
            self._announced.prices,
            aliases=self._announced.aliases,
            withdrawals=self._announced.withdrawals,
            files=self.files,
            known_at=at,
        )

    def price(
        self,
        usage: TokenUsage,
        provider: str,
        model: str,
        at: datetime,
        *,
        terms: Terms = STANDARD,
        volume: TokenUsage | None = None,
    ) -> Cost:
        """Return what `usage` cost at that instant, or raise `UnpricedError`.

        `at` is the instant that decides, as `rated_at` chooses it. `volume` is what was
        used this month before, for prices that fall with volume; without it they are the
        list price of the first tier, which the invoice makes good.
        """
        timeline = self._standard.get((provider, model)) if terms is STANDARD else None
        rates = None if timeline is None else timeline.at(at)
        if not isinstance(rates, Rates):  # The first time, or without a price.
            rates = self._rates(provider, model, at, terms)
        return rates.price(usage, at, volume)

    def lines(
        self,
        usage: TokenUsage,
        provider: str,
        model: str,
        at: datetime,
        *,
        terms: Terms = STANDARD,
        volume: TokenUsage | None = None,
    ) -> list[CostLine]:
        """Return the same as `price`, row by row."""
        return self._rates(provider, model, at, terms).lines(usage, at, volume)

    def worst_case(
        self,
        usage: TokenUsage,
        provider: str,
        model: str,
        at: datetime,
        until: datetime | None = None,
        *,
        terms: Terms = STANDARD,
        volume: TokenUsage | None = None,
    ) -> Cost:
        """Return the most that so many tokens can cost from `at` to `until`.

        Every input token is taken at the dearest input class and every output token at
        the dearest output class, at the dearest hour and tier that the answer may still
        meet, because all that is known only afterwards. Raises `UnpricedError` when there
        is no price at `at`.
        """
        entered, answered = self._rates(provider, model, at, terms).worst(usage, at, volume)
        timeline = self._timeline(provider, model, terms)
        if until is not None and until > at:
            for stretch in timeline.stretches(at, until + _TINY):
                rates = stretch.rates
                if isinstance(rates, Gap):
                    # Past the known holidays it is one of the rows there, and that bounds it.
                    rows = timeline.candidates(stretch.start)
                    if not rows:
                        continue
                    rates = Rates(provider, model, rows)
                pair = rates.worst(usage, stretch.start, volume)
                entered = max(entered, pair[0], key=_price)
                answered = max(answered, pair[1], key=_price)
        return Cost(
            currency=entered.currency,
            pico=usage.input_tokens * entered.price_micro_per_mtok
            + usage.output_tokens * answered.price_micro_per_mtok,
            rows=(entered.id, answered.id),
        )

    def around(
        self,
        usage: TokenUsage,
        provider: str,
        model: str,
        at: datetime,
        uncertainty: timedelta,
        *,
        terms: Terms = STANDARD,
        volume: TokenUsage | None = None,
    ) -> tuple[Cost, ...]:
        """Return all costs that are possible when a clock may be off by so much either way.

        The one at `at` comes first; more than one means that a change of price is so
        near that the clock cannot tell. Stretches without a price have none to add.
        """
        first = self.price(usage, provider, model, at, terms=terms, volume=volume)
        costs = {(first.currency, first.pico): first}
        timeline = self._timeline(provider, model, terms)
        for stretch in timeline.stretches(at - uncertainty, at + uncertainty + _TINY):
            if isinstance(stretch.rates, Gap):
                continue
            try:
                cost = stretch.rates.price(usage, stretch.start, volume)
            except UnpricedError:
                continue
            costs.setdefault((cost.currency, cost.pico), cost)
        return tuple(costs.values())

    def rated_at(
        self,
        provider: str,
        model: str,
        *,
        started: datetime,
        completed: datetime,
        terms: Terms = STANDARD,
    ) -> datetime:
        """Return which of the two instants decides the price of a request.

        The rows in force at completion say so. Raises `UnpricedError` without any.
        """
        rates = self._rates(provider, model, completed, terms)
        return completed if rates.rating_instant is RatingInstant.COMPLETION else started

    def rows_in_force(
        self, provider: str, model: str, at: datetime, *, terms: Terms = STANDARD
    ) -> tuple[PriceRow, ...]:
        """Return the rows that price a request at that instant, or raise `UnpricedError`."""
        return self._rates(provider, model, at, terms).rows

    def stretches(
        self,
        provider: str,
        model: str,
        start: datetime,
        end: datetime,
        *,
        terms: Terms = STANDARD,
    ) -> Iterator[Stretch]:
        """Return what holds from `start` up to `end`, as long stretches as there are."""
        return self._timeline(provider, model, terms).stretches(start, end)

    def era(
        self, provider: str, model: str, at: datetime, *, terms: Terms = STANDARD
    ) -> Era | None:
        """Return all that could count about then, and the name the model goes by; to explain."""
        return self._timeline(provider, model, terms).era(at)

    def providers_of(self, model: str) -> tuple[str, ...]:
        """Return who has a price for that model, at whatever time."""
        named = {row.provider for row in self.rows if row.names(model)}
        named |= {alias.provider for alias in self._book.aliases if alias.model == model}
        return tuple(sorted(named))

    @property
    def aliases(self) -> tuple[Alias, ...]:
        """The names that stand for others, withdrawn ones left out."""
        return self._book.aliases

    def _rates(self, provider: str, model: str, at: datetime, terms: Terms) -> Rates:
        timeline = self._standard.get((provider, model)) if terms is STANDARD else None
        if timeline is None:
            timeline = self._timeline(provider, model, terms)
        rates = timeline.at(at)
        if isinstance(rates, Gap):
            raise UnpricedError(
                f"no price for {model} by {provider} at {at.isoformat()}: {rates.reason}"
            )
        return rates

    def _timeline(self, provider: str, model: str, terms: Terms) -> Timeline:
        if terms is STANDARD or terms == STANDARD:
            found = self._standard.get((provider, model))
        else:
            found = self._others.get((provider, model, terms))
        if found is not None:
            return found
        eras, problem = eras_of(self._book, provider, model, terms)
        made = Timeline(provider, model, eras, reason=problem or "add its rows to the price book")
        # Names come from settings, but also from what nodes report, which is anything.
        if len(self._standard) + len(self._others) >= _TIMELINES_KEPT:
            self._standard.clear()
            self._others.clear()
        if terms == STANDARD:
            self._standard[provider, model] = made
        else:
            self._others[provider, model, terms] = made
        return made


def read_files(*paths: Path, key: PublicKey | None = None) -> list[BookFile]:
    """Read the files that `PriceBook.load` would, without asking whether they agree."""
    files: list[Path] = []
    for path in paths or (DEFAULT,):
        files += _files(path)
    if not files:
        raise PriceError(f"{paths[0]}: no price file (*.toml) in this folder")
    return [_read(file, key) for file in files]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.toml"))
    if not path.exists() and path.name in shipped():
        return [shipped()[path.name]]
    return [path]


def _read(path: Path, key: PublicKey | None) -> BookFile:
    folders = [BUILT_IN / "calendars"]
    if key is None:
        return read_book(path, calendar_folders=folders)
    data = read_bytes(path)
    seal = read_seal(path, data, key)
    return read_book(path, calendar_folders=folders, signed_calendars=seal.calendars, data=data)


def _price(row: PriceRow) -> int:
    return row.price_micro_per_mtok
