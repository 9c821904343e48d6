"""An invoice as a value, worked out from entries alone.

Pure. Amounts are summed exactly in pico-units and rounded once, on the line, half to
even, to whole micro-units of the currency; the total is the sum of the lines as they
stand there. What was measured is billed. What is held (open or indeterminate), what has
no price and what is disputed stands beside it and is never added in. Currencies are
never summed together. An entry belongs to the period in which its node wrote it. Use of
the scripted provider is measured like any other and marked: nobody is charged for it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from qcnode.errors import BillingError, UnpricedError
from qcnode.money import Cost, TokenUsage

if TYPE_CHECKING:
    from collections.abc import Iterable

SCRIPTED = "scripted"
"""The provider that answers from a script: its prices are made up and it sends no bill."""
NOT_CHARGED = "scripted provider: nobody is charged"
PICO_PER_MICRO = 1_000_000
DIFFERENCES_NAMED_MAX = 100

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


class Pricing(Protocol):
    """A price book, as far as an invoice needs one."""

    def price(self, usage: TokenUsage, provider: str, model: str, at: datetime) -> Cost:
        """Return what this usage cost at that instant, or raise `UnpricedError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """From one instant up to, and without, another; `name` is what people call it."""

    name: str
    from_us: int
    to_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BillEntry:
    """One stored entry, as far as the bill is concerned.

    `closed` says that a later entry, of any period, has ended the hold of this one.
    """

    node: str
    epoch: str
    seq: int
    kind: str
    at_us: int
    attempt_id: str
    provider: str | None
    model: str | None
    usage: TokenUsage | None
    cost: Cost | None
    rated_us: int | None
    hold: Cost | None
    closed: bool
    dispute: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLine:
    """Measured use of one node at one price; `amount_micro` is what is billed."""

    node: str
    provider: str
    model: str
    currency: str
    price_rows: tuple[str, ...]
    attempts: int
    usage: TokenUsage
    cost_pico: int
    amount_micro: int
    scripted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLine:
    """Attempts nobody knows the cost of yet, at the most they can cost; not billed."""

    node: str
    provider: str
    model: str
    currency: str
    attempts: int
    hold_pico: int
    scripted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpricedLine:
    """Measured use without a known price; not billed, and not free."""

    node: str
    provider: str
    model: str
    attempts: int
    usage: TokenUsage
    scripted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An entry whose recorded cost is not what the price book says."""

    node: str
    epoch: str
    seq: int
    recorded: Cost | None
    recomputed: Cost | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """What one tenant owes for one period, and what is not known yet.

    `scripted` says whether any of it is of the scripted provider, `scripted_only` whether
    all of it is; `scripted_micro` is how much of `total_micro` nobody is charged for.
    `recomputed` says whether a price book was at hand; `differing` then counts the
    entries it disagrees with, and `differences` names the first of them.
    """

    tenant: str
    period: Period
    lines: tuple[InvoiceLine, ...]
    total_micro: dict[str, int]
    scripted: bool
    scripted_only: bool
    scripted_micro: dict[str, int]
    held: tuple[HeldLine, ...]
    unpriced: tuple[UnpricedLine, ...]
    disputed: tuple[str, ...]
    recomputed: bool
    differing: int
    differences: tuple[Difference, ...]


def make_invoice(
    tenant: str, period: Period, entries: Iterable[BillEntry], *, prices: Pricing | None = None
) -> Invoice:
    """Work out the invoice of `tenant` from its entries; those outside `period` are left out."""
    measured: defaultdict[tuple[str, str, str, str, tuple[str, ...]], _Sum] = defaultdict(_Sum)
    held: defaultdict[tuple[str, str, str, str], _Sum] = defaultdict(_Sum)
    unpriced: defaultdict[tuple[str, str, str], _Sum] = defaultdict(_Sum)
    disputed: list[str] = []
    differing, differences = 0, list[Difference]()
    for entry in entries:
        if not period.from_us <= entry.at_us < period.to_us:
            continue
        if entry.dispute is not None:
            disputed.append(f"{entry.node}: {entry.dispute}")
            continue
        provider, model = entry.provider or "", entry.model or ""
        if entry.usage is not None:
            if entry.cost is None:
                unpriced[entry.node, provider, model].add(entry.usage, 0)
            else:
                key = (entry.node, provider, model, entry.cost.currency, entry.cost.rows)
                measured[key].add(entry.usage, entry.cost.pico)
            difference = None if prices is None else _difference(entry, entry.usage, prices)
            if difference is not None:
                differing += 1
                differences.append(difference)
                del differences[DIFFERENCES_NAMED_MAX:]
        elif entry.hold is not None and not entry.closed:
            held[entry.node, provider, model, entry.hold.currency].add(None, entry.hold.pico)
    lines = tuple(
        InvoiceLine(
            node=node,
            provider=provider,
            model=model,
            currency=currency,
            price_rows=rows,
            attempts=total.attempts,
            usage=total.usage(),
            cost_pico=total.pico,
            amount_micro=round_to_micro(total.pico),
            scripted=provider == SCRIPTED,
        )
        for (node, provider, model, currency, rows), total in sorted(measured.items())
    )
    on_hold = tuple(
        HeldLine(
            node=node,
            provider=provider,
            model=model,
            currency=currency,
            attempts=total.attempts,
            hold_pico=total.pico,
            scripted=provider == SCRIPTED,
        )
        for (node, provider, model, currency), total in sorted(held.items())
    )
    blank = tuple(
        UnpricedLine(
            node=node,
            provider=provider,
            model=model,
            attempts=total.attempts,
            usage=total.usage(),
            scripted=provider == SCRIPTED,
        )
        for (node, provider, model), total in sorted(unpriced.items())
    )
    providers = {line.provider for line in lines} | {line.provider for line in on_hold}
    providers |= {line.provider for line in blank}
    return Invoice(
        tenant=tenant,
        period=period,
        lines=lines,
        total_micro=_total_micro(lines),
        scripted=SCRIPTED in providers,
        scripted_only=providers == {SCRIPTED},
        scripted_micro=_total_micro(line for line in lines if line.scripted),
        held=on_hold,
        unpriced=blank,
        disputed=tuple(disputed),
        recomputed=prices is not None,
        differing=differing,
        differences=tuple(differences),
    )


def round_to_micro(pico: int) -> int:
    """Round pico-units to whole micro-units, half to even; the only rounding there is."""
    whole, rest = divmod(pico, PICO_PER_MICRO)
    half = PICO_PER_MICRO // 2
    if rest > half or (rest == half and whole % 2 == 1):
        return whole + 1
    return whole


def month(name: str) -> Period:
    """Return the calendar month in UTC that `name` (as in 2026-11) stands for."""
    match = _MONTH.fullmatch(name)
    if match is None or not 1970 <= int(match[1]) < 9999:  # noqa: PLR2004  # years time stamps reach
        raise BillingError(f"period {name[:40]!r} is no month: write it as in 2026-11")
    year, number = int(match[1]), int(match[2])
    first = datetime(year, number, 1, tzinfo=UTC)
    after = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return Period(name=name, from_us=to_us(first), to_us=to_us(after))


def month_of(at: datetime) -> Period:
    """Return the calendar month in UTC that holds `at`."""
    return month(at.astimezone(UTC).strftime("%Y-%m"))


def to_us(at: datetime) -> int:
    """Count whole microseconds since 1970 UTC."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def from_us(at_us: int) -> datetime:
    """Return the instant that `at_us` counts."""
    return _EPOCH + timedelta(microseconds=at_us)


def format_pico(pico: int) -> str:
    """Write pico-units exactly, in units of the currency, without trailing zeros."""
    whole, rest = divmod(abs(pico), 10**12)
    digits = f"{rest:012d}".rstrip("0").ljust(2, "0")
    return f"{'-' if pico < 0 else ''}{whole}.{digits}"


def format_micro(micro: int) -> str:
    """Write micro-units in units of the currency, with all six places."""
    whole, rest = divmod(abs(micro), 10**6)
    return f"{'-' if micro < 0 else ''}{whole}.{rest:06d}"


def to_json(invoice: Invoice) -> dict[str, Any]:
    """Return the invoice as plain values: whole numbers, and the same amounts as text."""
    value = asdict(invoice)
    value["period"] = {
        "name": invoice.period.name,
        "from": from_us(invoice.period.from_us).isoformat(),
        "to": from_us(invoice.period.to_us).isoformat(),
    }
    value["rounding"] = "each line half to even to micro-units; the total is the sum of the lines"
    value["total"] = {name: format_micro(micro) for name, micro in invoice.total_micro.items()}
    return value


def _total_micro(lines: Iterable[InvoiceLine]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for line in lines:
        totals[line.currency] = totals.get(line.currency, 0) + line.amount_micro
    return dict(sorted(totals.items()))


class _Sum:
    """A running sum of one line; whole numbers, so the order of the entries is all one."""

    def __init__(self) -> None:
        self.attempts = 0
        self.pico = 0
        self._usage = TokenUsage()

    def add(self, usage: TokenUsage | None, pico: int) -> None:
        self.attempts += 1
        self.pico += pico
        if usage is not None:
            self._usage += usage

    def usage(self) -> TokenUsage:
        return self._usage


def _difference(entry: BillEntry, usage: TokenUsage, prices: Pricing) -> Difference | None:
    recomputed: Cost | None
    rated_us = entry.at_us if entry.rated_us is None else entry.rated_us
    try:
        recomputed = prices.price(usage, entry.provider or "", entry.model or "", from_us(rated_us))
    except UnpricedError:
        recomputed = None
    if recomputed == entry.cost:
        return None
    return Difference(
        node=entry.node,
        epoch=entry.epoch,
        seq=entry.seq,
        recorded=entry.cost,
        recomputed=recomputed,
    )
