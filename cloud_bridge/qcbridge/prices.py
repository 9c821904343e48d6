"""What tokens cost, by provider, model, class of token and instant.

A price book is rows of whole micro-currency units per million tokens, so that tokens
times price is pico-currency, exactly. Rows are added and never edited. A book in which
some instant has two rows, or none between two, does not load; outside what its rows
cover it has no price, and no price is an error and never zero.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcnode.errors import PriceError, UnpricedError
from qcnode.money import Cost, TokenUsage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

BUILT_IN = Path(__file__).with_name("prices")
"""The books that come with the package; they price the scripted provider alone."""

PRICE_MICRO_MAX = 100_000_000_000
"""A hundred thousand currency units per million tokens: with counts of tokens bounded at
ten million, every cost fits 64 bits."""


class TokenClass(StrEnum):
    """The disjoint kinds that the tokens of a request fall into."""

    INPUT = "input"
    CACHE_READ = "cache_read"
    IMAGE = "image"
    OUTPUT = "output"
    REASONING = "reasoning"


_COUNTS_AS = {TokenClass.IMAGE: TokenClass.INPUT, TokenClass.REASONING: TokenClass.OUTPUT}
"""Where a provider has no price of their own for these, they cost what the other costs."""

_INPUT_CLASSES = (TokenClass.INPUT, TokenClass.CACHE_READ, TokenClass.IMAGE)
_OUTPUT_CLASSES = (TokenClass.OUTPUT, TokenClass.REASONING)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRow:
    """One price from `valid_from` up to, and without, `valid_to` (None: no end known).

    `model` is a name, or the beginning of names when it ends in `*`. `where` is the
    file and line, for people.
    """

    provider: str
    model: str
    token_class: TokenClass
    currency: str
    price_micro_per_mtok: int
    valid_from: datetime
    valid_to: datetime | None
    source: str
    checked_at: date
    where: str

    @property
    def id(self) -> str:
        """What this row is called in the books."""
        start = self.valid_from.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"{self.provider}/{self.model}/{self.token_class}@{start}"

    def covers(self, at: datetime) -> bool:
        """Say whether this row is in force at that instant."""
        return self.valid_from <= at and (self.valid_to is None or at < self.valid_to)

    def meets(self, start: datetime, end: datetime) -> bool:
        """Say whether this row is in force at some instant from `start` to `end`."""
        return self.valid_from <= end and (self.valid_to is None or start < self.valid_to)

    def names(self, model: str) -> bool:
        """Say whether this row is about that model."""
        if self.model.endswith("*"):
            return model.startswith(self.model[:-1])
        return model == self.model


class PriceBook:
    """Rows that agree with each other; raises `PriceError` when they do not."""

    def __init__(self, rows: Iterable[PriceRow]) -> None:
        self._rows = tuple(
            sorted(rows, key=lambda row: (row.provider, row.token_class, row.valid_from))
        )
        _check(self._rows)

    @classmethod
    def load(cls, *paths: Path) -> PriceBook:
        """Read price files, and all `*.toml` of folders; without any, those built in.

        Raises `PriceError` naming file and line.
        """
        files: list[Path] = []
        for path in paths or (BUILT_IN,):
            files += sorted(path.glob("*.toml")) if path.is_dir() else [path]
        if not files:
            raise PriceError(f"{paths[0]}: no price file (*.toml) in this folder")
        return cls(row for file in files for row in _read(file))

    @property
    def rows(self) -> tuple[PriceRow, ...]:
        """All rows, by provider, class and start."""
        return self._rows

    def price(self, usage: TokenUsage, provider: str, model: str, at: datetime) -> Cost:
        """Return what `usage` cost at that instant, or raise `UnpricedError`."""
        in_force = {
            row.token_class: row for row in self._rows_of(provider, model) if row.covers(at)
        }
        counts = _split(usage, image_apart=TokenClass.IMAGE in in_force)
        rows: list[PriceRow] = []
        pico = 0
        for token_class, tokens in counts.items():
            row = in_force.get(token_class) or in_force.get(
                _COUNTS_AS.get(token_class, token_class)
            )
            if row is None:
                if tokens == 0:
                    continue
                raise UnpricedError(
                    f"no price for {token_class} tokens of {model} by {provider} at"
                    f" {at.isoformat()}: add the row to the price book"
                )
            pico += tokens * row.price_micro_per_mtok
            if row not in rows and (tokens or token_class in _COUNTS_AS.values()):
                rows.append(row)
        if not rows:
            raise UnpricedError(
                f"no price for {model} by {provider} at {at.isoformat()}:"
                " add its rows to the price book"
            )
        return Cost(currency=rows[0].currency, pico=pico, rows=tuple(row.id for row in rows))

    def worst_case(
        self,
        usage: TokenUsage,
        provider: str,
        model: str,
        at: datetime,
        until: datetime | None = None,
    ) -> Cost:
        """Return the most that so many tokens can cost from `at` to `until`.

        Every input token is taken at the dearest input class and every output token at
        the dearest output class, because how they divide is known only afterwards.
        Raises `UnpricedError` when one of the two has no price.
        """
        end = at if until is None else max(at, until)
        met = [row for row in self._rows_of(provider, model) if row.meets(at, end)]
        dearest: list[PriceRow] = []
        for needed, classes in (
            (TokenClass.INPUT, _INPUT_CLASSES),
            (TokenClass.OUTPUT, _OUTPUT_CLASSES),
        ):
            if not any(row.token_class is needed and row.covers(at) for row in met):
                raise UnpricedError(
                    f"no price for {needed} tokens of {model} by {provider} at {at.isoformat()}:"
                    " add the row to the price book"
                )
            dearest.append(
                max(
                    (row for row in met if row.token_class in classes),
                    key=lambda row: row.price_micro_per_mtok,
                )
            )
        entered, answered = dearest
        return Cost(
            currency=entered.currency,
            pico=usage.input_tokens * entered.price_micro_per_mtok
            + usage.output_tokens * answered.price_micro_per_mtok,
            rows=(entered.id, answered.id),
        )

    def _rows_of(self, provider: str, model: str) -> Iterator[PriceRow]:
        return (row for row in self._rows if row.provider == provider and row.names(model))


def _split(usage: TokenUsage, *, image_apart: bool) -> dict[TokenClass, int]:
    """Divide a usage into the classes that a book may price."""
    if image_apart and usage.unknown:
        raise UnpricedError(
            f"{usage.unknown} input tokens may be text or picture, and the two have prices of"
            " their own"
        )
    image = usage.image if image_apart else 0
    return {
        TokenClass.INPUT: usage.input_tokens - usage.cache_read - image,
        TokenClass.CACHE_READ: usage.cache_read,
        TokenClass.IMAGE: image,
        TokenClass.OUTPUT: usage.output,
        TokenClass.REASONING: usage.reasoning,
    }


def _check(rows: Sequence[PriceRow]) -> None:
    for index, row in enumerate(rows):
        for other in rows[index + 1 :]:
            if row.provider == other.provider and _may_share_a_model(row, other):
                _check_pair(row, other)
    _check_spans(rows)


def _check_pair(row: PriceRow, other: PriceRow) -> None:
    if row.currency != other.currency:
        raise PriceError(
            f"{row.where} and {other.where}: {row.currency} and {other.currency} for one model:"
            " give it one currency"
        )
    if row.token_class is not other.token_class:
        return
    if row.valid_to is None or other.valid_from < row.valid_to:
        raise PriceError(
            f"{row.where} and {other.where}: both price {row.token_class} tokens of"
            f" {row.model} from {other.valid_from.isoformat()}: end the first with valid_to"
        )


def _check_spans(rows: Sequence[PriceRow]) -> None:
    spans: dict[tuple[str, str], dict[TokenClass, list[PriceRow]]] = {}
    for row in rows:
        of_model = spans.setdefault((row.provider, row.model), {})
        of_model.setdefault(row.token_class, []).append(row)
    for (provider, model), of_model in spans.items():
        for span in of_model.values():
            _check_holes(span)
        for needed in (TokenClass.INPUT, TokenClass.OUTPUT):
            if needed not in of_model:
                first = next(iter(of_model.values()))[0]
                raise PriceError(
                    f"{first.where}: {model} by {provider} has no row for {needed} tokens: add it"
                )
        entered, answered = of_model[TokenClass.INPUT], of_model[TokenClass.OUTPUT]
        if _span(entered) != _span(answered):
            raise PriceError(
                f"{entered[0].where} and {answered[0].where}: input and output tokens of {model}"
                " are not priced over the same time: let their rows begin and end alike"
            )


def _check_holes(span: Sequence[PriceRow]) -> None:
    for row, following in itertools.pairwise(span):
        if row.valid_to != following.valid_from:
            raise PriceError(
                f"{row.where} and {following.where}: no price between {row.valid_to} and"
                f" {following.valid_from}: let one begin where the other ends"
            )


def _span(rows: Sequence[PriceRow]) -> tuple[datetime, datetime | None]:
    return rows[0].valid_from, rows[-1].valid_to


def _may_share_a_model(row: PriceRow, other: PriceRow) -> bool:
    return row.names(other.model.removesuffix("*")) or other.names(row.model.removesuffix("*"))


_KEYS = {
    "provider",
    "model",
    "class",
    "currency",
    "price_micro_per_mtok",
    "valid_from",
    "valid_to",
    "source",
    "checked_at",
}
_OPTIONAL = {"valid_to"}


def _read(file: Path) -> Iterator[PriceRow]:
    try:
        text = file.read_text(encoding="utf-8")
        book = tomllib.loads(text)
    except OSError as error:
        raise PriceError(f"{file}: no price file to read ({error.strerror})") from error
    except ValueError as error:
        raise PriceError(f"{file}: {error}") from error
    for key in book:
        if key != "price":
            raise PriceError(
                f"{file}:{_line_of(text, key)}: unknown key {key!r}: rows are [[price]]"
            )
    raw_rows = book.get("price", [])
    if not isinstance(raw_rows, list) or not all(isinstance(raw, dict) for raw in raw_rows):
        raise PriceError(f"{file}: rows are written as [[price]]")
    starts = [match.start() for match in re.finditer(r"(?m)^[ \t]*\[\[\s*price\s*\]\]", text)]
    for index, raw in enumerate(raw_rows):
        start = starts[index] if index < len(starts) else 0
        yield _row(raw, _Place(file=file, text=text, start=start))


@dataclass(frozen=True, slots=True)
class _Place:
    """One row in its file, so that an error can name the line."""

    file: Path
    text: str
    start: int

    def at(self, key: str | None = None) -> str:
        line = self.text.count("\n", 0, self.start) + 1
        if key is not None:
            line = _line_of(self.text, key, start=self.start) or line
        return f"{self.file}:{line}"

    def refuse(self, key: str, why: str) -> PriceError:
        return PriceError(f"{self.at(key)}: {key}: {why}")


def _row(raw: dict[str, Any], place: _Place) -> PriceRow:
    for key in raw:
        if key not in _KEYS:
            raise place.refuse(key, f"unknown key; known are {', '.join(sorted(_KEYS))}")
    for key in sorted(_KEYS - _OPTIONAL - raw.keys()):
        raise PriceError(f"{place.at()}: this row has no {key}: add it")
    valid_from, valid_to = (_instant(raw, key, place) for key in ("valid_from", "valid_to"))
    if valid_from is None:
        raise place.refuse("valid_from", "this row has no start")
    if valid_to is not None and valid_to <= valid_from:
        raise place.refuse("valid_to", "not after valid_from")
    return PriceRow(
        provider=_text(raw, "provider", place, r"[^\s*/]+", "a name without spaces"),
        model=_text(raw, "model", place, r"[^\s*]*\*?", "a name, or its beginning and one *"),
        token_class=_class(raw, place),
        currency=_text(raw, "currency", place, "[A-Z]{3}", "three capital letters, as USD"),
        price_micro_per_mtok=_micro(raw, place),
        valid_from=valid_from,
        valid_to=valid_to,
        source=_text(raw, "source", place, r"[^\x00-\x1f]+", "one line on where this stands"),
        checked_at=_day(raw, place),
        where=place.at(),
    )


def _text(raw: dict[str, Any], key: str, place: _Place, pattern: str, wanted: str) -> str:
    value = raw[key]
    if not isinstance(value, str) or not value or not re.fullmatch(pattern, value):
        raise place.refuse(key, f"{value!r:.60} is not {wanted}")
    return value


def _class(raw: dict[str, Any], place: _Place) -> TokenClass:
    try:
        return TokenClass(raw["class"])
    except ValueError as error:
        raise place.refuse(
            "class", f"{raw['class']!r:.60} is none of {', '.join(TokenClass)}"
        ) from error


def _micro(raw: dict[str, Any], place: _Place) -> int:
    value = raw["price_micro_per_mtok"]
    if type(value) is not int or not 0 <= value <= PRICE_MICRO_MAX:
        raise place.refuse(
            "price_micro_per_mtok",
            f"{value!r:.60} is not a whole number of micro-units from 0 to {PRICE_MICRO_MAX}",
        )
    return value


def _instant(raw: dict[str, Any], key: str, place: _Place) -> datetime | None:
    value = raw.get(key)
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise place.refuse(key, "not an instant: write it with its offset, 2026-01-01T00:00:00Z")
    return value.astimezone(UTC)


def _day(raw: dict[str, Any], place: _Place) -> date:
    value = raw["checked_at"]
    if isinstance(value, datetime):
        return value.date()
    if not isinstance(value, date):
        raise place.refuse("checked_at", "not a date: write it as 2026-01-01")
    return value


def _line_of(text: str, key: str, start: int = 0) -> int:
    found = re.compile(rf"(?m)^[ \t]*(?:\[+[ \t]*)?[\"']?{re.escape(key)}[\"']?").search(
        text, start
    )
    return 0 if found is None else text.count("\n", 0, found.start()) + 1
