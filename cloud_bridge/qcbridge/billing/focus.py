"""An issued invoice as FOCUS 1.2 cost and usage rows.

Pure. One row for each line, and within it for each hour (or day), region and agent:
tokens and list cost are exact there, and what is billed is divided so that the rows of a
line add up to the line to the last micro-unit. Amounts are whole numbers of a power of
ten that goes with the column, so no column is ever rounded on the way out. We make
other people's models available and send the bill: so the provider and the issuer are
one, and who made the model is the publisher.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from qcbridge.billing.bill import (
    CLASSES,
    LineKey,
    Why,
    apportion,
    billed_factor,
    gather,
    round_half_even,
)
from qcbridge.billing.contracts import MICRO, WHOLE_BP
from qcbridge.billing.focus_rules import COLUMNS, TOTAL
from qcbridge.billing.invoices import format_micro, from_us, month
from qcnode.books import chain
from qcnode.errors import BillingError
from qcnode.money import TokenClass

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from qcbridge.billing.bill import Cell, GroupKey, InvoiceLine
    from qcbridge.billing.contracts import Pack
    from qcbridge.billing.invoices import Period
    from qcbridge.billing.issued_paper import IssuedInvoice, PackLine

HOUR_US: Final = 3_600_000_000
BUCKETS: Final = {"hour": HOUR_US, "day": 24 * HOUR_US}

CUSTOM: Final = (
    ("x_Attempts", "decimal"),
    ("x_ExchangeRate", "decimal"),
    ("x_ExchangeRateDate", "string"),
    ("x_ExchangeRateSource", "string"),
    (TOTAL, "decimal"),
    ("x_Model", "string"),
    ("x_Node", "string"),
    ("x_OfInvoice", "string"),
    ("x_Pack", "string"),
    ("x_PriceRow", "string"),
    ("x_Term", "string"),
    ("x_TokenClass", "string"),
    ("x_UsageMonth", "string"),
    ("x_Why", "string"),
)
HEADER: Final = (*(column.name for column in COLUMNS), *(name for name, _ in CUSTOM))
KINDS: Final = {column.name: column.kind for column in COLUMNS} | dict(CUSTOM)
SCALES: Final = {
    "BilledCost": 6,
    "ConsumedQuantity": 0,
    "ContractedCost": 22,
    "ContractedUnitPrice": 22,
    "EffectiveCost": 12,
    "ListCost": 18,
    "ListUnitPrice": 18,
    "PricingCurrencyContractedUnitPrice": 16,
    "PricingCurrencyEffectiveCost": 12,
    "PricingCurrencyListUnitPrice": 12,
    "PricingQuantity": 6,
    "x_Attempts": 0,
    "x_ExchangeRate": 6,
    TOTAL: 6,
}
"""How many decimal places the whole numbers in a column have."""

_PLACE: Final = {name: place for place, name in enumerate(HEADER)}
_PRICED_UNIT: Final = "1000000 Tokens"
_CLASS_WORDS: Final = {
    TokenClass.TEXT: "text input",
    TokenClass.IMAGE: "image input",
    TokenClass.UNKNOWN: "input",
    TokenClass.CACHE_READ: "cached input",
    TokenClass.CACHE_WRITE: "cache write",
    TokenClass.CACHE_WRITE_1H: "cache write (1 h)",
    TokenClass.OUTPUT: "output",
    TokenClass.REASONING: "reasoning",
}


class _Use(NamedTuple):
    """What is used of one line in one bucket of time."""

    from_us: int
    line: str
    product: str
    agent: str
    level: str
    region: str


class _Amount(NamedTuple):
    attempts: int
    tokens: int
    pico: int


@dataclass(slots=True)
class FocusRows:
    """Makes the rows of one invoice; each is a tuple in the order of `HEADER`.

    Cells come node by node, so that memory holds one node's month at a time.
    """

    invoice: IssuedInvoice
    bucket_us: int = HOUR_US
    _period: Period = field(init=False)
    _lines: dict[LineKey, list[InvoiceLine]] = field(init=False)
    _rates: dict[str, tuple[int, str | None, str | None]] = field(init=False)
    _packs: dict[str, Pack] = field(init=False)

    def __post_init__(self) -> None:
        invoice = self.invoice
        self._period = month(invoice.period)
        self._lines = {}
        for line in invoice.lines:
            self._lines.setdefault(line.key, []).append(line)
        self._rates = {invoice.currency: (MICRO, None, None)}
        for rate in invoice.exchange:
            self._rates[rate.currency] = (rate.rate_micro, rate.date, rate.source)
        self._packs = {pack.id: pack for pack in invoice.packs}

    def rows(self, nodes: Iterable[Sequence[Cell]]) -> Iterator[tuple[Any, ...]]:
        """Yield all rows; raises `BillingError` when the cells are not what was billed."""
        waiting = set(self._lines)
        for cells in nodes:
            for key, uses in self._by_line(cells).items():
                if key not in waiting:
                    raise self._differs(key)
                waiting.remove(key)
                yield from self._line_rows(key, uses)
        if waiting:
            raise self._differs(min(waiting))
        for purchase in self.invoice.purchases:
            yield self._purchase_row(purchase)

    def _by_line(self, cells: Sequence[Cell]) -> Mapping[LineKey, dict[_Use, _Amount]]:
        parts = {key: self._parts(key, sums.tokens) for key, sums in gather(cells).items()}
        lines: defaultdict[LineKey, dict[_Use, _Amount]] = defaultdict(dict)
        for cell in cells:
            start = cell.hour_us - cell.hour_us % self.bucket_us
            use = _Use(start, cell.line, cell.product, cell.agent, cell.level, cell.region)
            whole, of_class = parts[cell.key]
            if whole is not None:
                amount = _Amount(cell.attempts, sum(cell.tokens), cell.pico)
                _count_in(lines[whole], use, amount)
                continue
            for place, tokens in enumerate(cell.tokens):
                found = of_class.get(place) if tokens else None
                if found is not None:
                    line_key, unit = found
                    amount = _Amount(cell.attempts, tokens, tokens * unit)
                    _count_in(lines[line_key], use, amount)
        return lines

    def _parts(
        self, key: GroupKey, tokens: Sequence[int]
    ) -> tuple[LineKey | None, dict[int, tuple[LineKey, int]]]:
        """Find the lines that a group went into when the invoice was made."""
        whole = LineKey(*key[:-1], "", " + ".join(key.rows))
        if whole in self._lines:
            return whole, {}
        of_class: dict[int, tuple[LineKey, int]] = {}
        for place, token_class in enumerate(CLASSES):
            for row in key.rows:
                line_key = LineKey(*key[:-1], token_class, row)
                found = self._lines.get(line_key)
                if found:
                    of_class[place] = (line_key, found[0].unit_micro or 0)
                    break
            else:
                if tokens[place]:
                    raise self._differs(whole)
        return None, of_class

    def _line_rows(self, key: LineKey, uses: dict[_Use, _Amount]) -> Iterator[tuple[Any, ...]]:
        parts = self._lines[key]
        kept = [(use, amount) for use, amount in sorted(uses.items()) if any(amount)]
        if sum(amount.pico for _, amount in kept) != sum(line.list_pico for line in parts) or sum(
            amount.tokens for _, amount in kept
        ) != sum(line.tokens for line in parts):
            raise self._differs(key)
        left = kept
        for line in parts:
            if line.pack is None:
                continue
            tokens = apportion(line.tokens, [amount.tokens for _, amount in left])
            yield from self._rows_of(line, _only(line, left, tokens))
            rest = [amount.tokens - taken for (_, amount), taken in zip(left, tokens, strict=True)]
            left = _only(line, left, rest)
        for line in parts:
            if line.pack is None:
                yield from self._rows_of(line, left)

    def _rows_of(
        self, line: InvoiceLine, uses: Iterable[tuple[_Use, _Amount]]
    ) -> Iterator[tuple[Any, ...]]:
        constant = self._constant(line)
        billed = _Spread(*line.factor, 10**6, nothing=line.amount_micro == 0 and _free(line))
        effective = self._effective(line)
        priced_in = self._effective(line, own_currency=True)
        for use, amount in uses:
            if not any(amount):
                continue
            row = constant.copy()
            end = use.from_us + self.bucket_us
            row[_PLACE["BilledCost"]] = billed.next(amount.pico)
            weight = amount.tokens if line.pack is not None else amount.pico
            row[_PLACE["EffectiveCost"]] = effective.next(weight)
            row[_PLACE["PricingCurrencyEffectiveCost"]] = priced_in.next(weight)
            row[_PLACE["ChargePeriodStart"]] = use.from_us
            row[_PLACE["ChargePeriodEnd"]] = end
            row[_PLACE["RegionId"]] = row[_PLACE["RegionName"]] = use.region or None
            row[_PLACE["Tags"]] = _tags(line, use)
            row[_PLACE["x_Attempts"]] = amount.attempts
            self._quantities(row, line, amount)
            yield tuple(row)

    def _quantities(self, row: list[Any], line: InvoiceLine, amount: _Amount) -> None:
        rate, less = line.rate_micro, WHOLE_BP - line.discount_bp
        if line.unit_micro is None:  # One charge, at the cost that was recorded.
            sign = -1 if amount.pico < 0 else 1
            unit_pico, quantity = abs(amount.pico), sign * 10**6
        else:
            unit_pico, quantity = line.unit_micro * 10**6, amount.tokens
        row[_PLACE["PricingQuantity"]] = quantity
        row[_PLACE["ListUnitPrice"]] = unit_pico * rate
        row[_PLACE["ListCost"]] = unit_pico * rate * quantity // 10**6
        row[_PLACE["ContractedUnitPrice"]] = unit_pico * rate * less
        row[_PLACE["ContractedCost"]] = unit_pico * rate * less * quantity // 10**6
        row[_PLACE["PricingCurrencyListUnitPrice"]] = unit_pico
        row[_PLACE["PricingCurrencyContractedUnitPrice"]] = unit_pico * less
        if amount.tokens:
            row[_PLACE["ConsumedQuantity"]], row[_PLACE["ConsumedUnit"]] = amount.tokens, "Tokens"
        else:
            row[_PLACE["ConsumedQuantity"]] = amount.attempts
            row[_PLACE["ConsumedUnit"]] = "Requests"

    def _effective(self, line: InvoiceLine, *, own_currency: bool = False) -> _Spread:
        """Return what spreads the cost after everything, in pico-units."""
        if line.pack is not None:
            pack = self._packs[line.pack]
            price = pack.price_micro * self._rates[pack.currency][0]
            if own_currency:
                return _Spread(price * MICRO, pack.tokens * line.rate_micro, 1)
            return _Spread(price, pack.tokens, 1)
        rate_micro = MICRO if own_currency else line.rate_micro
        numerator, denominator = billed_factor(line.discount_bp, line.rebate, rate_micro)
        return _Spread(numerator, denominator, 1, nothing=line.scripted)

    def _constant(self, line: InvoiceLine) -> list[Any]:
        """Return what all rows of a line have in common."""
        corrects = line.why != Why.USAGE
        words = _CLASS_WORDS[TokenClass(line.token_class)] if line.token_class else "request"
        values = self._common(line.rate_micro, line.currency)
        values |= {
            "ChargeCategory": "Usage",
            "ChargeClass": "Correction" if corrects else None,
            "ChargeDescription": _describe(line, words),
            "ChargeFrequency": "Usage-Based",
            "PricingCategory": _category(line),
            "PricingUnit": "Units" if line.unit_micro is None else _PRICED_UNIT,
            "PublisherName": line.provider,
            "ResourceId": f"{self.invoice.tenant}/{line.node}",
            "ResourceName": line.node,
            "ResourceType": "Inspection Node",
            "ServiceName": f"{line.provider} inference",
            "SkuId": f"{line.provider}/{line.model}",
            "SkuMeter": f"{words} tokens" if line.token_class else "Requests",
            "SkuPriceId": _price_id(line),
            "SkuPriceDetails": _details(line),
            "SubAccountId": line.department or None,
            "SubAccountName": line.department or None,
            "SubAccountType": "Department" if line.department else None,
            "x_Model": line.model,
            "x_Node": line.node,
            "x_OfInvoice": f"{self.invoice.tenant}-{line.of_invoice:06d}"
            if line.of_invoice
            else None,
            "x_Pack": line.pack,
            "x_PriceRow": line.price_row or None,
            "x_Term": line.term,
            "x_TokenClass": line.token_class or None,
            "x_UsageMonth": line.month,
            "x_Why": line.why,
        }
        return [values.get(name) for name in HEADER]

    def _common(self, rate_micro: int, currency: str) -> dict[str, Any]:
        invoice = self.invoice
        _, day, source = self._rates.get(currency, (MICRO, None, None))
        return {
            "BillingAccountId": invoice.tenant,
            "BillingAccountName": invoice.tenant,
            "BillingAccountType": "Tenant",
            "BillingCurrency": invoice.currency,
            "BillingPeriodStart": self._period.from_us,
            "BillingPeriodEnd": self._period.to_us,
            "InvoiceId": invoice.id,
            "InvoiceIssuerName": invoice.issuer,
            "PricingCurrency": currency,
            "ProviderName": invoice.issuer,
            "ServiceCategory": "AI and Machine Learning",
            "ServiceSubcategory": "Generative AI",
            TOTAL: invoice.total_micro,
            "x_ExchangeRate": rate_micro,
            "x_ExchangeRateDate": day,
            "x_ExchangeRateSource": source,
        }

    def _purchase_row(self, purchase: PackLine) -> tuple[Any, ...]:
        pack, rate = purchase.pack, purchase.rate_micro
        late = pack.bought_us < self._period.from_us
        start = pack.bought_us - pack.bought_us % self.bucket_us
        unit_pico = pack.price_micro * 10**6
        values = self._common(rate, pack.currency)
        values |= {
            "BilledCost": purchase.amount_micro,
            "EffectiveCost": 0,
            "PricingCurrencyEffectiveCost": 0,
            "ChargeCategory": "Purchase",
            "ChargeClass": "Correction" if late else None,
            "ChargeDescription": f"{pack.tokens} tokens of {pack.provider} bought in advance",
            "ChargeFrequency": "One-Time",
            "ChargePeriodStart": start,
            "ChargePeriodEnd": start + self.bucket_us,
            "PricingCategory": "Committed",
            "PricingQuantity": 10**6,
            "PricingUnit": "Units",
            "ListUnitPrice": unit_pico * rate,
            "ListCost": unit_pico * rate,
            "ContractedUnitPrice": unit_pico * rate * WHOLE_BP,
            "ContractedCost": unit_pico * rate * WHOLE_BP,
            "PricingCurrencyListUnitPrice": unit_pico,
            "PricingCurrencyContractedUnitPrice": unit_pico * WHOLE_BP,
            "PublisherName": pack.provider,
            "ServiceName": f"{pack.provider} inference",
            "SkuId": f"{pack.provider}/{pack.model}/pack",
            "SkuMeter": "Token packs",
            "SkuPriceId": f"{pack.provider}/{pack.model}/pack/{pack.id}",
            "SkuPriceDetails": chain.canonical({"x_Tokens": pack.tokens}).decode(),
            "x_Pack": pack.id,
            "x_Why": "purchase",
        }
        return tuple(values.get(name) for name in HEADER)

    def _differs(self, key: LineKey) -> BillingError:
        return BillingError(
            f"invoice {self.invoice.id}: the entries stored now are not what line {key.node}"
            f" {key.provider} {key.model} {key.token_class or 'request'} billed: verify it with"
            f" `qcnode billing verify-invoice {self.invoice.number}`"
        )


class _Spread:
    """Divides an amount over rows, so that the rounded parts add up to the rounded whole."""

    def __init__(
        self, numerator: int, denominator: int, step: int, *, nothing: bool = False
    ) -> None:
        self._numerator = 0 if nothing else numerator
        self._denominator = denominator * step
        self._weight = 0
        self._given = 0

    def next(self, weight: int) -> int:
        """Return the part of the next row."""
        self._weight += weight
        upto = round_half_even(self._weight * self._numerator, self._denominator)
        part, self._given = upto - self._given, upto
        return part


def _count_in(uses: dict[_Use, _Amount], use: _Use, amount: _Amount) -> None:
    had = uses.get(use)
    if had is not None:
        amount = _Amount(
            had.attempts + amount.attempts, had.tokens + amount.tokens, had.pico + amount.pico
        )
    uses[use] = amount


def _only(
    line: InvoiceLine, uses: Iterable[tuple[_Use, _Amount]], tokens: Iterable[int]
) -> list[tuple[_Use, _Amount]]:
    """Return the part of `uses` that is so many tokens each."""
    unit = line.unit_micro or 0
    return [
        (use, _Amount(amount.attempts if count else 0, count, count * unit))
        for (use, amount), count in zip(uses, tokens, strict=True)
    ]


def _free(line: InvoiceLine) -> bool:
    return line.pack is not None or line.scripted


def _category(line: InvoiceLine) -> str:
    if line.pack is not None:
        return "Committed"
    return "Other" if line.unit_micro is None else "Standard"


def _price_id(line: InvoiceLine) -> str:
    """Return one price's id: a row of the book that is about many models is one for each."""
    row = line.price_row or "as recorded"
    return row if f"/{line.model}/" in row else f"{row}#{line.provider}/{line.model}"


def _details(line: InvoiceLine) -> str:
    details: dict[str, Any] = {"x_TokenClass": line.token_class or "request"}
    if line.unit_micro is not None:
        details["x_ListPrice"] = f"{format_micro(line.unit_micro)} {line.currency}/1000000 Tokens"
    return chain.canonical(details).decode()


def _describe(line: InvoiceLine, words: str) -> str:
    what = f"{words} tokens" if line.token_class else "requests at their recorded cost"
    said = f"{line.model}: {what}, {line.why}"
    if line.of_invoice:
        said += f" of invoice {line.of_invoice}"
    return f"{said}, {line.month}" if line.why != Why.USAGE else said


def _tags(line: InvoiceLine, use: _Use) -> str:
    named = {
        "department": line.department,
        "appid": line.application,
        "funcid": line.function,
        "line": use.line,
        "product": use.product,
        "agent": use.agent,
        "agentlevel": use.level,
    }
    return chain.canonical({name: value for name, value in named.items() if value}).decode()


def instant(at_us: int) -> str:
    """Write an instant as FOCUS wants it."""
    return from_us(at_us).strftime("%Y-%m-%dT%H:%M:%SZ")
