"""What a usage costs by the rows in force at one instant: integers, exactly.

Tokens times micro-units per million tokens are pico-units, so nothing is ever rounded.
A class without a price is an error and never free.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcbridge.pricing.rows import (
    INPUT_CLASSES,
    OUTPUT_CLASSES,
    PriceClass,
    TierBasis,
    TierMode,
)
from qcnode.errors import UnpricedError
from qcnode.money import Cost

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from qcbridge.pricing.rows import PriceRow, Tier
    from qcnode.money import TokenUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLine:
    """The part of a cost that one row makes up."""

    row: PriceRow
    token_class: PriceClass
    tokens: int

    @property
    def pico(self) -> int:
        """What these tokens cost."""
        return self.tokens * self.row.price_micro_per_mtok


class Rates:
    """The rows of one model in force at one instant: for each class one, or its tiers."""

    def __init__(self, provider: str, model: str, rows: Iterable[PriceRow]) -> None:
        by_class: dict[PriceClass, list[PriceRow]] = {}
        for row in rows:
            by_class.setdefault(row.token_class, []).append(row)
        self._ladders = {
            token_class: tuple(sorted(ladder, key=_low)) for token_class, ladder in by_class.items()
        }
        self._of = f"{model} by {provider}"
        first = self._ladders[PriceClass.INPUT][0]
        self.currency = first.currency
        self.rating_instant = first.rating_instant
        # Most models have one price for each class, or steps by the size of the request.
        self._flats, self._ends = _steps(self._ladders)

    @property
    def rows(self) -> tuple[PriceRow, ...]:
        """All rows in force, by class and tier."""
        return tuple(
            row for token_class in PriceClass for row in self._ladders.get(token_class, ())
        )

    def price(self, usage: TokenUsage, at: datetime, volume: TokenUsage | None = None) -> Cost:
        """Return what `usage` costs; `at` is for the words of an `UnpricedError`."""
        flats, ends = self._flats, self._ends
        step = bisect_left(ends, usage.input_tokens) if ends else 0
        if step >= len(flats) or (usage.unknown and flats[step].image_differs):
            return self._sum(self.lines(usage, at, volume))
        flat = flats[step]
        pico = (usage.text + usage.unknown) * flat.input + usage.output * flat.output
        used = 0
        if usage.image:
            pico += usage.image * flat.image
            used = flat.image_bit
        if usage.reasoning:
            pico += usage.reasoning * flat.reasoning
            used |= flat.reasoning_bit
        if usage.cache_read:
            if flat.cache_read is None:
                return self._sum(self.lines(usage, at, volume))
            pico += usage.cache_read * flat.cache_read
            used |= _READ
        if usage.cache_write:
            if flat.cache_write is None:
                return self._sum(self.lines(usage, at, volume))
            pico += usage.cache_write * flat.cache_write
            used |= _WRITE
        if usage.cache_write_1h:
            if flat.cache_write_1h is None:
                return self._sum(self.lines(usage, at, volume))
            pico += usage.cache_write_1h * flat.cache_write_1h
            used |= _WRITE_1H
        return Cost(currency=self.currency, pico=pico, rows=flat.rows[used])

    def lines(
        self, usage: TokenUsage, at: datetime, volume: TokenUsage | None = None
    ) -> list[CostLine]:
        """Return what each row makes up; input and output are there even with no tokens."""
        request = self._request(usage, at, volume)
        lines: list[CostLine] = []
        for token_class, tokens in self._split(usage).items():
            ladder = self._ladders.get(token_class)
            if ladder is None:
                if tokens:
                    raise UnpricedError(
                        f"no price for {token_class} tokens of {self._of} at {at.isoformat()}:"
                        " add the row to the price book"
                    )
                continue
            if tokens or token_class in _ALWAYS_SHOWN:
                lines += self._climb(ladder, tokens, request)
        if usage.unknown:
            self._check_unknown(usage, lines, request)
        return lines

    def worst(
        self, usage: TokenUsage, at: datetime, volume: TokenUsage | None = None
    ) -> tuple[PriceRow, PriceRow]:
        """Return the dearest rows that input and output tokens of such a request can meet.

        How they divide into classes is known only afterwards, and so is how far a request
        reaches into the tiers: up to the bounds that `usage` gives.
        """
        request = self._request(usage, at, volume)
        dearest: list[PriceRow] = []
        for classes, most in (
            (INPUT_CLASSES, usage.input_tokens),
            (OUTPUT_CLASSES, usage.output_tokens),
        ):
            met: list[PriceRow] = []
            for token_class in sorted(classes & self._ladders.keys()):
                ladder = self._ladders[token_class]
                met += [row for row in ladder if row.tier is None or request.meets(row, most)]
                if not _fits(ladder, usage.input_tokens, most):
                    raise UnpricedError(
                        f"no price for {token_class} tokens of a request of"
                        f" {usage.input_tokens} input tokens to {self._of} at {at.isoformat()}:"
                        " send less, or add the tier to the price book"
                    )
            dearest.append(max(met, key=_price))
        return dearest[0], dearest[1]

    def _request(self, usage: TokenUsage, at: datetime, volume: TokenUsage | None) -> _Request:
        return _Request(
            at=at,
            input_tokens=usage.input_tokens,
            month=None if volume is None else self._split(volume),
        )

    def _climb(
        self, ladder: tuple[PriceRow, ...], tokens: int, request: _Request
    ) -> Iterator[CostLine]:
        """Lay tokens on the tiers of their class."""
        lowest, token_class = ladder[0].tier, ladder[0].token_class
        if lowest is None:
            yield CostLine(row=ladder[0], token_class=token_class, tokens=tokens)
            return
        if lowest.mode is TierMode.CLIFF or not tokens:
            number = request.number(ladder[0], tokens)
            rungs = [(row, tokens) for row in ladder if row.tier and row.tier.holds(number)]
        else:
            first = request.number(ladder[0], tokens) if lowest.basis in _MONTHLY else 1
            rungs = [(row, _within(row.tier, first, tokens)) for row in ladder if row.tier]
        if sum(part for _, part in rungs) < tokens or not rungs:
            raise UnpricedError(
                f"no price for {token_class} tokens of {self._of} beyond its last tier, at"
                f" {request.at.isoformat()}: add the next one to the price book"
            )
        for row, part in rungs:
            if part or not tokens:
                yield CostLine(row=row, token_class=token_class, tokens=part)

    def _split(self, usage: TokenUsage) -> dict[PriceClass, int]:
        """Divide a usage into the classes that have a price here."""
        image_apart = PriceClass.IMAGE in self._ladders
        reasoning_apart = PriceClass.REASONING in self._ladders
        return {
            PriceClass.INPUT: usage.text + usage.unknown + (0 if image_apart else usage.image),
            PriceClass.IMAGE: usage.image if image_apart else 0,
            PriceClass.CACHE_READ: usage.cache_read,
            PriceClass.CACHE_WRITE: usage.cache_write,
            PriceClass.CACHE_WRITE_1H: usage.cache_write_1h,
            PriceClass.OUTPUT: usage.output + (0 if reasoning_apart else usage.reasoning),
            PriceClass.REASONING: usage.reasoning if reasoning_apart else 0,
        }

    def _check_unknown(
        self, usage: TokenUsage, lines: Iterable[CostLine], request: _Request
    ) -> None:
        """Refuse to price tokens of text or picture where the two cost differently."""
        ladder = self._ladders.get(PriceClass.IMAGE)
        if ladder is None:
            return
        as_pictures = self._climb(ladder, usage.unknown, request)
        met = {
            line.row.price_micro_per_mtok
            for line in [*lines, *as_pictures]
            if line.token_class in (PriceClass.INPUT, PriceClass.IMAGE)
        }
        if len(met) > 1:
            raise UnpricedError(
                f"{usage.unknown} tokens of {self._of} at {request.at.isoformat()} may be text or"
                " picture, which have prices of their own: how they overlap with the cache is"
                " not told"
            )

    def _sum(self, lines: list[CostLine]) -> Cost:
        rows = dict.fromkeys(line.row.id for line in lines)
        return Cost(currency=self.currency, pico=sum(line.pico for line in lines), rows=tuple(rows))


_ALWAYS_SHOWN = frozenset({PriceClass.INPUT, PriceClass.OUTPUT})


_BITS = {
    PriceClass.IMAGE: 1,
    PriceClass.CACHE_READ: 2,
    PriceClass.CACHE_WRITE: 4,
    PriceClass.CACHE_WRITE_1H: 8,
    PriceClass.REASONING: 16,
}
_READ, _WRITE, _WRITE_1H = 2, 4, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flat:
    """One price for each class, for requests of a size.

    `rows` are the ids for each combination of classes that were used beside input and
    output; a class without a row of its own has no bit.
    """

    input: int
    image: int
    cache_read: int | None
    cache_write: int | None
    cache_write_1h: int | None
    output: int
    reasoning: int
    image_differs: bool
    image_bit: int
    reasoning_bit: int
    rows: tuple[tuple[str, ...], ...]


def _steps(
    ladders: Mapping[PriceClass, tuple[PriceRow, ...]],
) -> tuple[tuple[_Flat, ...], tuple[int, ...]]:
    """Work out the prices for each size of request, and the sizes at which each step ends.

    None at all where something else than the size of the request decides.
    """
    tiers = [row.tier for ladder in ladders.values() for row in ladder if row.tier is not None]
    if any((tier.basis, tier.mode) != _BY_SIZE for tier in tiers):
        return (), ()
    lows = sorted({0, *(tier.low for tier in tiers)})
    ends = {tier.high for tier in tiers if tier.high is not None}
    flats: list[_Flat] = []
    for low in sorted({*lows, *ends}):
        held = {
            of: next((row for row in ladder if row.tier is None or row.tier.holds(low + 1)), None)
            for of, ladder in ladders.items()
        }
        rows = {of: row for of, row in held.items() if row is not None}
        if len(rows) < len(ladders):
            break  # Beyond the last tier of one class; `lines` says of which.
        flats.append(_flat(rows))
    return tuple(flats), tuple(sorted({*lows, *ends}))[1 : len(flats) + 1]


def _flat(rows: Mapping[PriceClass, PriceRow]) -> _Flat:
    price = {of: row.price_micro_per_mtok for of, row in rows.items()}
    entered, answered = price[PriceClass.INPUT], price[PriceClass.OUTPUT]
    return _Flat(
        input=entered,
        image=price.get(PriceClass.IMAGE, entered),
        cache_read=price.get(PriceClass.CACHE_READ),
        cache_write=price.get(PriceClass.CACHE_WRITE),
        cache_write_1h=price.get(PriceClass.CACHE_WRITE_1H),
        output=answered,
        reasoning=price.get(PriceClass.REASONING, answered),
        image_differs=price.get(PriceClass.IMAGE, entered) != entered,
        image_bit=_BITS[PriceClass.IMAGE] if PriceClass.IMAGE in rows else 0,
        reasoning_bit=_BITS[PriceClass.REASONING] if PriceClass.REASONING in rows else 0,
        rows=tuple(
            tuple(
                rows[of].id
                for of in PriceClass
                if of in rows and (of in _ALWAYS_SHOWN or used & _BITS[of])
            )
            for used in range(sum(_BITS.values()) + 1)
        ),
    )


_BY_SIZE = (TierBasis.REQUEST_INPUT, TierMode.CLIFF)
_MONTHLY = frozenset({TierBasis.MONTH_CLASS, TierBasis.MONTH_TOTAL})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What decides the tier: how large the request is, and what came before it this month.

    Tokens are numbered from 1. Without a month they are priced as its first ones are.
    """

    at: datetime
    input_tokens: int
    month: dict[PriceClass, int] | None

    def number(self, row: PriceRow, tokens: int) -> int:
        """Return the number of the token that decides for all `tokens` of a class."""
        basis = None if row.tier is None else row.tier.basis
        if basis is TierBasis.REQUEST_INPUT:
            return max(1, self.input_tokens)
        if basis is TierBasis.REQUEST_CLASS:
            return max(1, tokens)
        return (self._before(row, basis) or 0) + 1

    def meets(self, row: PriceRow, most: int) -> bool:
        """Say whether a request up to these sizes, `most` tokens of its side, meets a tier."""
        tier = row.tier
        if tier is None:
            return True
        if tier.basis in _MONTHLY:
            before = self._before(row, tier.basis)
            if before is None:
                return True  # The month may stand anywhere.
            first, last = before + 1, before + max(1, most)
        else:
            by_input = tier.basis is TierBasis.REQUEST_INPUT
            first, last = 1, max(1, self.input_tokens if by_input else most)
        return tier.low < last and (tier.high is None or first <= tier.high)

    def _before(self, row: PriceRow, basis: TierBasis | None) -> int | None:
        if self.month is None:
            return None
        if basis is TierBasis.MONTH_CLASS:
            return self.month[row.token_class]
        return sum(self.month.values())


def _within(tier: Tier, first: int, tokens: int) -> int:
    """Return how many of the tokens numbered from `first` on lie in a tier."""
    last = first + tokens - 1 if tier.high is None else min(first + tokens - 1, tier.high)
    return max(0, last - max(first - 1, tier.low))


def _fits(ladder: tuple[PriceRow, ...], input_tokens: int, most: int) -> bool:
    last = ladder[-1].tier
    if last is None or last.high is None or last.basis in _MONTHLY:
        return True
    return (input_tokens if last.basis is TierBasis.REQUEST_INPUT else most) <= last.high


def _low(row: PriceRow) -> int:
    return 0 if row.tier is None else row.tier.low


def _price(row: PriceRow) -> int:
    return row.price_micro_per_mtok
