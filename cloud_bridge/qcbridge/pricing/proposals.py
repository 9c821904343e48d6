"""Price rows as genai-prices has them, proposed for a person to accept.

That collection dates its prices by the day and has no holidays, so everything proposed is
marked as not confirmed, says where it stands, and says what the present book has instead.
What this book's rows cannot express is a comment, and never a guess.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, time
from decimal import Decimal
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from qcbridge.pricing.rows import PRICE_MICRO_MAX, PriceClass, ServiceTier, Terms
from qcnode.errors import PriceError, UnpricedError
from qcnode.money import TokenUsage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qcbridge.prices import PriceBook

SOURCE = "genai-prices"
_CLASSES = {
    "input_mtok": PriceClass.INPUT,
    "input_image_mtok": PriceClass.IMAGE,
    "cache_read_mtok": PriceClass.CACHE_READ,
    "cache_write_mtok": PriceClass.CACHE_WRITE,
    "cache_write_1h_mtok": PriceClass.CACHE_WRITE_1H,
    "output_mtok": PriceClass.OUTPUT,
    "output_reasoning_mtok": PriceClass.REASONING,
}
_KEYS = {token_class: key for key, token_class in _CLASSES.items()}
_NEEDED = {"input_mtok", "output_mtok"}
_TERMS = {
    (("processing", "batch"),): Terms(batch=True),
    (("service_tier", "flex"),): Terms(service=ServiceTier.FLEX),
    (("service_tier", "priority"),): Terms(service=ServiceTier.PRIORITY),
}
_AS_STANDARD = (("service_tier", "default"),)
_MODEL = re.compile(r"[^\s*\x00-\x1f]{1,200}")
_MICRO = Decimal(1_000_000)
_ALWAYS = datetime.min.replace(tzinfo=UTC)


def propose(
    source_provider: str,
    *,
    provider: str,
    at: datetime,
    present: PriceBook | None = None,
    models: Sequence[str] = (),
) -> str:
    """Return a book of proposals: what `source_provider` charges, under the name `provider`.

    Only prices that hold at `at` or later are proposed; those without a date begin on
    that day. Raises `PriceError` when there is nothing to read or nothing to propose.
    """
    try:
        from genai_prices.data import providers  # noqa: PLC0415  # 36 MB, for this alone
    except ImportError as error:
        raise PriceError(
            "genai-prices is not installed: pip install 'qcnode[prices]' to import from it"
        ) from error
    known = {one.id: one for one in providers}
    if source_provider not in known:
        raise PriceError(
            f"{source_provider!r:.60} is no provider of {SOURCE}; known are {', '.join(known)}"
        )
    found = known[source_provider]
    wanted = [one for one in found.models if not models or one.id in models]
    missing = set(models) - {one.id for one in wanted}
    if missing or not wanted:
        raise PriceError(
            f"{SOURCE} has no {', '.join(sorted(missing)) or 'models'} of {source_provider}"
        )
    proposer = _Proposer(provider=provider, at=at, present=present)
    lines = list(_head(provider, at, next(iter(found.pricing_urls or ()), None)))
    for model in wanted:
        lines += ["", *proposer.model(model.id, _standard(model.prices), _variants(model))]
    return "\n".join(lines).rstrip() + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Price:
    """One price list of the source: from when, or at which hours, it holds."""

    valid_from: datetime | None
    windows: tuple[str, ...]
    prices: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """What a price list is for."""

    name: str
    terms: Terms
    start: datetime
    end: datetime | None = None
    during: str | None = None
    outside: str | None = None

    def lines(self) -> Iterator[str]:
        """Write the keys of a row that say so."""
        yield f"model = {json.dumps(self.name)}"
        if self.terms.service is not ServiceTier.STANDARD:
            yield f'service = "{self.terms.service}"'
        if self.terms.batch:
            yield "batch = true"
        for key, schedule in (("during", self.during), ("outside", self.outside)):
            if schedule is not None:
                yield f"{key} = {json.dumps(schedule)}"
        yield f"valid_from = {_toml(self.start)}"
        if self.end is not None:
            yield f"valid_to = {_toml(self.end)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proposer:
    provider: str
    at: datetime
    present: PriceBook | None

    def model(
        self, name: str, standard: list[_Price], variants: list[tuple[Terms | None, str, _Price]]
    ) -> Iterator[str]:
        """Write all that is known of one model."""
        yield f"# {name}"
        if not _MODEL.fullmatch(name):
            yield "# left out: this name cannot stand in a price book"
            return
        if not all(price.prices.keys() >= _NEEDED for price in standard):
            yield "# left out: it has no price for input and output tokens"
            return
        hours = re.sub(r"[^A-Za-z0-9._-]", "-", name) + "-hours"
        schedule = hours if any(price.windows for price in standard) else None
        others = sorted({key for price in standard for key in price.prices} - _CLASSES.keys())
        if others:
            yield f"# left out, not tokens of text or picture: {', '.join(others)}"
        for words in sorted({words for terms, words, _ in variants if terms is None}):
            yield f"# left out: prices for {words}, terms that this book does not know"
        if schedule is not None:
            yield from _schedule(schedule, standard)
        yield from self._over_time(name, Terms(), standard, schedule)
        for terms in dict.fromkeys(terms for terms, _, _ in variants if terms is not None):
            own = [price for known, _, price in variants if known == terms]
            yield from self._over_time(name, terms, _merged(standard, own), None)

    def _over_time(
        self, name: str, terms: Terms, prices: list[_Price], schedule: str | None
    ) -> Iterator[str]:
        dated = sorted((price for price in prices if not price.windows), key=_begins)
        day = self.at.replace(hour=0, minute=0, second=0, microsecond=0)
        first = day
        for index, price in enumerate(dated):
            end = dated[index + 1].valid_from if index + 1 < len(dated) else None
            if end is not None and end <= self.at:
                continue
            start = price.valid_from or day
            first = min(first, start)
            offer = _Offer(name=name, terms=terms, start=start, end=end, outside=schedule)
            yield from self._rows(offer, price)
        timed = [price for price in prices if price.windows]
        if timed and schedule is not None:
            offer = _Offer(name=name, terms=terms, start=first, during=schedule)
            yield from self._rows(offer, timed[0])

    def _rows(self, offer: _Offer, price: _Price) -> Iterator[str]:
        for low, high, by_class in _tiers(price.prices):
            counts = dict(_counts(by_class))
            yield from self._differences(offer, price, counts, low)
            for key in sorted(by_class.keys() - {_KEYS[of] for of in counts}):
                yield f"# left out: {key} at {by_class[key]}, finer than a millionth"
            yield "[[price]]"
            yield from offer.lines()
            if low or high is not None:
                upper = "" if high is None else f", high = {high}"
                yield f'tier = {{ basis = "request_input", mode = "cliff", low = {low}{upper} }}'
            listed = ", ".join(f"{of} = {counts[of]:_}" for of in PriceClass if of in counts)
            yield f"micro_per_mtok = {{ {listed} }}"
            yield ""

    def _differences(
        self, offer: _Offer, price: _Price, counts: dict[PriceClass, int], low: int
    ) -> Iterator[str]:
        if self.present is None:
            return
        at = max(offer.start, self.at)
        if price.windows:
            hour, minute = map(int, price.windows[0][:5].split(":"))
            at = at.replace(hour=hour, minute=minute)
        have = _present(self.present, self.provider, offer, at, low)
        for token_class, micro in counts.items():
            if token_class not in have:
                yield f"# {token_class}: the present book has no price at {_toml(at)}"
            elif have[token_class] != micro:
                yield f"# {token_class}: the present book has {have[token_class]:_} at {_toml(at)}"


def _head(provider: str, at: datetime, url: str | None) -> Iterator[str]:
    yield f"# Proposed by `qcnode prices import` from {SOURCE} {version(SOURCE)}; not confirmed."
    yield "# Its dates name no time zone and are taken as UTC; it knows no holidays. Look each row"
    yield "# up at its vendor, mend it, and only then set confirmed = true."
    yield ""
    yield "[book]"
    yield f'title = "Proposals for {provider}"'
    yield f'source = "{SOURCE}"'
    yield ""
    yield "[defaults]"
    yield f"provider = {json.dumps(provider)}"
    yield 'currency = "USD"'
    yield f'source = "{SOURCE} {version(SOURCE)}, not read at the vendor"'
    if url is not None:
        yield f"source_url = {json.dumps(url)}"
    yield f"checked_at = {at.date().isoformat()}"
    yield "confirmed = false"


def _schedule(name: str, prices: list[_Price]) -> Iterator[str]:
    windows = sorted({window for price in prices for window in price.windows})
    lists = {json.dumps(price.prices, default=str) for price in prices if price.windows}
    if len(lists) > 1:
        yield "# its hours have different prices; only the first of them is proposed"
    yield "[[schedule]]"
    yield f"id = {json.dumps(name)}"
    yield 'tz = "UTC"'
    yield 'weekdays = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]'
    yield f"windows = {json.dumps(windows)}"
    yield ""


def _standard(prices: Any) -> list[_Price]:
    if not isinstance(prices, list):
        return [_Price(valid_from=None, windows=(), prices=_listed(prices))]
    return [_conditional(one.constraint, one.prices) for one in prices]


def _variants(model: Any) -> list[tuple[Terms | None, str, _Price]]:
    found: list[tuple[Terms | None, str, _Price]] = []
    for variant in model.price_variants or ():
        when = tuple(sorted(variant.when.items()))
        if when != _AS_STANDARD:
            words = ", ".join(f"{key} {value}" for key, value in when)
            price = _conditional(variant.constraint, variant.prices)
            found.append((_TERMS.get(when), words, price))
    return found


def _conditional(constraint: Any, prices: Any) -> _Price:
    start = getattr(constraint, "start_date", None)
    begins, ends = (getattr(constraint, key, None) for key in ("start_time", "end_time"))
    return _Price(
        valid_from=None if start is None else datetime.combine(start, time(), tzinfo=UTC),
        windows=_windows(begins, ends),
        prices=_listed(prices),
    )


def _windows(begins: time | None, ends: time | None) -> tuple[str, ...]:
    if begins is None or ends is None:
        return ()
    if ends.replace(tzinfo=None) == time():
        return (f"{begins:%H:%M}-24:00",)
    if ends < begins:
        return f"00:00-{ends:%H:%M}", f"{begins:%H:%M}-24:00"
    return (f"{begins:%H:%M}-{ends:%H:%M}",)


def _listed(prices: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(prices).items() if value is not None}


def _merged(standard: list[_Price], variants: list[_Price]) -> list[_Price]:
    """Return the prices on other terms: what a variant does not name is as in the standard."""
    base = sorted((price for price in standard if not price.windows), key=_begins)
    first = min(map(_begins, variants))
    starts = sorted({first, *(at for at in map(_begins, [*base, *variants]) if at > first)})
    merged: list[_Price] = []
    for start in starts:
        held = [one for one in base if _begins(one) <= start] or base
        prices = dict(held[-1].prices)
        for variant in reversed([one for one in variants if _begins(one) <= start]):
            prices |= variant.prices
        valid_from = None if start == _ALWAYS else start
        merged.append(_Price(valid_from=valid_from, windows=(), prices=prices))
    return merged


def _tiers(prices: dict[str, Any]) -> Iterator[tuple[int, int | None, dict[str, Decimal]]]:
    """Cut a price list at the starts of its tiers: low, high and the prices between."""
    known = {key: value for key, value in prices.items() if key in _CLASSES}
    lows = sorted({0, *(tier.start for value in known.values() for tier in _steps(value))})
    for low, high in zip(lows, [*lows[1:], None], strict=True):
        yield low, high, {key: _at(value, low) for key, value in known.items()}


def _steps(value: Any) -> Sequence[Any]:
    return () if isinstance(value, Decimal) else value.tiers


def _at(value: Any, low: int) -> Decimal:
    price: Decimal = value if isinstance(value, Decimal) else value.base
    for tier in _steps(value):
        if tier.start <= low:
            price = tier.price
    return price


def _counts(by_class: dict[str, Decimal]) -> Iterator[tuple[PriceClass, int]]:
    for key, price in by_class.items():
        micro = price * _MICRO
        if micro == micro.to_integral_value() and 0 <= micro <= PRICE_MICRO_MAX:
            yield _CLASSES[key], int(micro)


def _present(
    book: PriceBook, provider: str, offer: _Offer, at: datetime, low: int
) -> dict[PriceClass, int]:
    """Return what the present book has for a request that reaches into a tier."""
    found: dict[PriceClass, int] = {}
    for token_class in PriceClass:
        usage = TokenUsage(
            text=low + 1,
            image=int(token_class is PriceClass.IMAGE),
            cache_read=int(token_class is PriceClass.CACHE_READ),
            cache_write=int(token_class is PriceClass.CACHE_WRITE),
            cache_write_1h=int(token_class is PriceClass.CACHE_WRITE_1H),
            output=1,
            reasoning=int(token_class is PriceClass.REASONING),
        )
        try:
            lines = book.lines(usage, provider, offer.name, at, terms=offer.terms)
        except UnpricedError:
            continue
        for line in lines:
            found.setdefault(line.token_class, line.row.price_micro_per_mtok)
    return found


def _begins(price: _Price) -> datetime:
    return price.valid_from or _ALWAYS


def _toml(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
