"""From sums of recorded costs to the lines of an invoice.

Pure. What the entries say was spent comes in as groups, one for each price that one
node was charged for one cost centre; out come lines, one for each token class and
price row. Recorded costs are exact in pico-units of the currency they were priced in
and stay so on every line. What is billed is worked out beside them from whole numbers
alone (pack, discount, rebate, exchange rate) and rounded once, on the line, half to
even, to micro-units of the invoice's currency; the total is the sum of the lines. The
server groups by its columns and a verifier by hashed bodies, and both come here.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from qcbridge.billing.contracts import MICRO, WHOLE_BP
from qcnode.errors import BillingError
from qcnode.money import TokenClass

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from qcbridge.billing.contracts import Contract, ExchangeRate, Pack

SCRIPTED = "scripted"
"""The provider that answers from a script: its prices are made up and it sends no bill."""
PICO_PER_MICRO = 10**6
CLASSES = tuple(TokenClass)

_FALLBACKS = {
    TokenClass.TEXT: ("input",),
    TokenClass.IMAGE: ("image", "input"),
    TokenClass.UNKNOWN: ("input",),
    TokenClass.CACHE_READ: ("cache_read", "input"),
    TokenClass.CACHE_WRITE: ("cache_write", "input"),
    TokenClass.CACHE_WRITE_1H: ("cache_write_1h", "cache_write", "input"),
    TokenClass.OUTPUT: ("output",),
    TokenClass.REASONING: ("reasoning", "output"),
}
"""Which rows may have priced a class, the nearest first; what they add up to decides."""


class Why(StrEnum):
    """Why a line is on an invoice."""

    USAGE = "usage"
    """Use in the month of the invoice."""
    LATE = "late"
    """Use in a month that was closed when it became known."""
    CREDIT = "credit"
    """Takes back what an earlier invoice has billed."""
    DEBIT = "debit"
    """Stands in the place of what was taken back."""


class Rate(NamedTuple):
    """What a row of the price book says."""

    token_class: str
    price_micro_per_mtok: int


class Rates(Protocol):
    """A price book, as far as the lines of an invoice need one."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over what the book says."""

    def rate(self, row_id: str) -> Rate | None:
        """Return what that row says; None when the book does not have it."""

    def falls_with_volume(self, row_id: str) -> bool:
        """Say whether the price depends on how much is used in a month."""


class GroupKey(NamedTuple):
    """What a group of recorded costs has in common; in this order lines are sorted."""

    why: str
    month: str
    """The month of the use."""
    of_invoice: int
    """Whose line a credit or debit is about; else 0."""
    node: str
    department: str
    application: str
    function: str
    provider: str
    model: str
    currency: str
    rows: tuple[str, ...]


@dataclass(slots=True)
class Sums:
    """How many attempts, tokens by class and pico-units; what is taken back counts below zero."""

    attempts: int = 0
    tokens: list[int] = field(default_factory=lambda: [0] * len(CLASSES))
    pico: int = 0

    def add(self, attempts: int, tokens: Sequence[int], pico: int) -> None:
        """Count more in."""
        self.attempts += attempts
        self.pico += pico
        own = self.tokens
        for place, count in enumerate(tokens):
            if count:
                own[place] += count


class LineKey(NamedTuple):
    """What one line of an invoice is about; in this order they stand."""

    why: str
    month: str
    of_invoice: int
    node: str
    department: str
    application: str
    function: str
    provider: str
    model: str
    currency: str
    token_class: str
    """Empty where the recorded cost cannot be told apart by class."""
    price_row: str


class Part(NamedTuple):
    """What one class of tokens makes of a group's sums."""

    token_class: str
    price_row: str
    unit_micro: int | None
    tokens: int
    pico: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLine:
    """What was used at one price, what it costs by the list, and what is billed for it.

    `list_pico` is what the entries recorded, in `currency`. What is billed is that less
    `discount_bp` and the fraction `rebate`, times `rate_micro`; nothing, when the tokens
    were taken from a pack or the provider is the scripted one.
    """

    why: str
    month: str
    of_invoice: int
    node: str
    department: str
    application: str
    function: str
    provider: str
    model: str
    token_class: str
    price_row: str
    unit_micro: int | None
    currency: str
    attempts: int
    tokens: int
    list_pico: int
    pack: str | None = None
    term: str | None = None
    discount_bp: int = 0
    rebate: tuple[int, int] = (0, 1)
    rate_micro: int = MICRO
    amount_micro: int = 0

    @property
    def scripted(self) -> bool:
        """Whether this is use of the provider that charges nobody."""
        return self.provider == SCRIPTED

    @property
    def factor(self) -> tuple[int, int]:
        """What a pico-unit by the list is in pico-units billed, as a fraction."""
        return billed_factor(self.discount_bp, self.rebate, self.rate_micro)

    @property
    def key(self) -> LineKey:
        """What it is about; only the part taken from a pack has the same."""
        return LineKey(
            self.why,
            self.month,
            self.of_invoice,
            self.node,
            self.department,
            self.application,
            self.function,
            self.provider,
            self.model,
            self.currency,
            self.token_class,
            self.price_row,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How many tokens an invoice takes from a pack, and how many there were before."""

    pack: str
    before: int
    tokens: int


class TermsThen(NamedTuple):
    """At what terms an earlier invoice billed something."""

    term: str | None
    discount_bp: int
    rebate: tuple[int, int]
    rate_micro: int


class Earlier(Protocol):
    """The terms of earlier invoices, by which what they billed is taken back."""

    def terms(
        self, number: int, provider: str, model: str, token_class: str, currency: str
    ) -> TermsThen:
        """Return the terms at which invoice `number` billed these tokens."""


def split(sums: Sums, rows: tuple[str, ...], rates: Rates | None) -> list[Part]:
    """Divide a group's cost among token classes.

    Only when every row is known and tokens times prices are exactly what was recorded;
    else the cost stays in one part as it was recorded.
    """
    priced = {} if rates is None else _by_class(rows, rates)
    parts: dict[tuple[str, str], Part] = {}
    for token_class, tokens in zip(CLASSES, sums.tokens, strict=True):
        if not tokens:
            continue
        found = next((priced[name] for name in _FALLBACKS[token_class] if name in priced), None)
        if found is None:
            return [_whole(sums, rows)]
        row, unit = found
        parts[token_class, row] = Part(str(token_class), row, unit, tokens, tokens * unit)
    if sum(part.pico for part in parts.values()) != sums.pico:
        return [_whole(sums, rows)]
    # Tokens at no cost at all, or nothing left of what was taken back within the month.
    return list(parts.values()) or ([_whole(sums, rows)] if sums.attempts or sums.pico else [])


def _by_class(rows: tuple[str, ...], rates: Rates) -> dict[str, tuple[str, int]]:
    priced: dict[str, tuple[str, int]] = {}
    for row in rows:
        rate = rates.rate(row)
        if rate is None or rate.token_class in priced:
            return {}
        priced[rate.token_class] = (row, rate.price_micro_per_mtok)
    return priced


def _whole(sums: Sums, rows: tuple[str, ...]) -> Part:
    return Part("", " + ".join(rows), None, sum(sums.tokens), sums.pico)


def billed_factor(discount_bp: int, rebate: tuple[int, int], rate_micro: int) -> tuple[int, int]:
    """Return the share of a recorded cost that is billed, in another currency, as a fraction."""
    back, whole = rebate
    return (WHOLE_BP - discount_bp) * (whole - back) * rate_micro, WHOLE_BP * whole * MICRO


def round_half_even(numerator: int, denominator: int) -> int:
    """Round a fraction to the nearest whole number, a half to the even one."""
    whole, rest = divmod(numerator, denominator)
    twice = 2 * rest
    if twice > denominator or (twice == denominator and whole % 2 == 1):
        return whole + 1
    return whole


def amount_micro(line: InvoiceLine) -> int:
    """Return what is billed for a line; the only rounding there is."""
    numerator, denominator = line.factor
    return round_half_even(line.list_pico * numerator, denominator * PICO_PER_MICRO)


def make_lines(
    groups: Mapping[GroupKey, Sums],
    *,
    period: str,
    rates: Rates | None,
    contract: Contract,
    packs: Sequence[tuple[Pack, int]] = (),
    exchange: Sequence[ExchangeRate] = (),
    currency: str | None = None,
    earlier: Earlier | None = None,
) -> tuple[tuple[InvoiceLine, ...], tuple[Draw, ...]]:
    """Work out the lines of a month, and what they take from `packs` (each with what is left).

    Without `currency` each line is billed in the currency it was priced in, and the
    scripted provider's lines carry their amounts: that is a statement, and no invoice.
    """
    lines, draws = _draw(_at_list(groups, rates), packs)
    in_one = {} if currency is None else _exchange(lines, exchange, currency)
    tokens_of: defaultdict[str, int] = defaultdict(int)
    for line in lines:
        term = contract.term(line.provider, line.model, period)
        if term is not None and line.pack is None and line.why in (Why.USAGE, Why.LATE):
            tokens_of[term.id] += line.tokens
    rebates = {term.id: term.rebate(tokens_of[term.id]) for term in contract.terms}
    priced: list[InvoiceLine] = []
    for line in lines:
        rate_micro = in_one.get(line.currency, MICRO)
        term = contract.term(line.provider, line.model, period)
        if line.why in (Why.CREDIT, Why.DEBIT) and earlier is not None:
            had = earlier.terms(
                line.of_invoice, line.provider, line.model, line.token_class, line.currency
            )
            changed = replace(
                line,
                term=had.term,
                discount_bp=had.discount_bp,
                rebate=had.rebate,
                rate_micro=had.rate_micro if currency is not None else MICRO,
            )
        elif term is None or line.pack is not None:
            changed = replace(line, rate_micro=rate_micro)
        else:
            changed = replace(
                line,
                term=term.id,
                discount_bp=term.discount_bp,
                rebate=rebates[term.id],
                rate_micro=rate_micro,
            )
        free = line.pack is not None or (currency is not None and line.scripted)
        priced.append(replace(changed, amount_micro=0 if free else amount_micro(changed)))
    return tuple(priced), draws


def _at_list(groups: Mapping[GroupKey, Sums], rates: Rates | None) -> list[InvoiceLine]:
    """Gather what different groups used at one price row into one line."""
    gathered: dict[LineKey, list[Any]] = {}
    for key, sums in groups.items():
        for part in split(sums, key.rows, rates):
            line_key = LineKey(*key[:-1], part.token_class, part.price_row)
            had = gathered.setdefault(line_key, [part.unit_micro, 0, 0, 0])
            had[1] += sums.attempts
            had[2] += part.tokens
            had[3] += part.pico
    return [
        InvoiceLine(
            **key._asdict(), unit_micro=unit, attempts=attempts, tokens=tokens, list_pico=pico
        )
        for key, (unit, attempts, tokens, pico) in sorted(gathered.items())
        if attempts or tokens or pico
    ]


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Divide a whole number by whole weights, so that the parts add up to it.

    What is divided up to any place is as near below its share as a whole number can be,
    and no part is more than its weight when `total` is not more than their sum.
    """
    whole, so_far, given = sum(weights), 0, 0
    parts: list[int] = []
    for weight in weights:
        so_far += weight
        upto = total * so_far // whole if whole else 0
        parts.append(upto - given)
        given = upto
    return parts


def _draw(
    lines: list[InvoiceLine], packs: Sequence[tuple[Pack, int]]
) -> tuple[list[InvoiceLine], tuple[Draw, ...]]:
    """Take tokens from packs, from every line the same share; what is taken is its own line."""
    draws: list[Draw] = []
    for pack, left in packs:
        takers = [
            place
            for place, line in enumerate(lines)
            if line.pack is None
            and line.unit_micro is not None
            and line.tokens > 0
            and line.why in (Why.USAGE, Why.LATE)
            and pack.covers(line.provider, line.model, line.token_class)
        ]
        wanted = [lines[place].tokens for place in takers]
        taken = min(left, sum(wanted))
        draws.append(Draw(pack=pack.id, before=left, tokens=taken))
        if not taken:
            continue
        covered = dict(zip(takers, apportion(taken, wanted), strict=True))
        divided: list[InvoiceLine] = []
        for place, line in enumerate(lines):
            tokens, unit = covered.get(place, 0), line.unit_micro or 0
            if not tokens:
                divided.append(line)
                continue
            divided.append(replace(line, tokens=tokens, list_pico=tokens * unit, pack=pack.id))
            if tokens < line.tokens:
                rest = line.tokens - tokens
                divided.append(replace(line, tokens=rest, list_pico=rest * unit))
        lines = divided
    return lines, tuple(draws)


def _exchange(
    lines: Iterable[InvoiceLine], exchange: Sequence[ExchangeRate], currency: str
) -> dict[str, int]:
    """Return what each currency is in the invoice's; raises `BillingError` when one is unknown."""
    rates = {currency: MICRO}
    for rate in exchange:
        if rates.setdefault(rate.currency, rate.rate_micro) != rate.rate_micro:
            raise BillingError(f"two rates for {rate.currency}: give one")
    for line in lines:
        if line.currency not in rates and line.why in (Why.USAGE, Why.LATE):
            raise BillingError(
                f"there is use in {line.currency} and the invoice is in {currency}: state what"
                f" one {line.currency} is, as in --rate {line.currency}=0.139512,2026-11-30,SOURCE"
            )
    return rates


def recorded_pico(lines: Iterable[InvoiceLine]) -> dict[str, int]:
    """Return what the entries behind `lines` recorded, by currency; never summed together."""
    sums: dict[str, int] = {}
    for line in lines:
        sums[line.currency] = sums.get(line.currency, 0) + line.list_pico
    return dict(sorted(sums.items()))


class Cell(NamedTuple):
    """What one group used in one hour, told apart by what no invoice line shows."""

    key: GroupKey
    hour_us: int
    line: str
    product: str
    agent: str
    level: str
    region: str
    attempts: int
    tokens: tuple[int, ...]
    pico: int


def gather(cells: Iterable[Cell]) -> dict[GroupKey, Sums]:
    """Add cells up into the groups that lines are made of."""
    groups: defaultdict[GroupKey, Sums] = defaultdict(Sums)
    for cell in cells:
        groups[cell.key].add(cell.attempts, cell.tokens, cell.pico)
    return dict(groups)
