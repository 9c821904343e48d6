"""Invoices, totals and what was found, as text for a terminal, at most `COLUMNS` wide. Pure.

Amounts are written exactly; only the lines of an invoice are rounded, and it says so.
What is measured, held, indeterminate and unpriced always stands side by side.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from qcbridge.billing.bill import SCRIPTED, Why
from qcbridge.billing.invoices import NOT_CHARGED, format_micro, from_us, month
from qcnode.books.attempts import State
from qcnode.money import format_pico

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from qcbridge.billing.bill import InvoiceLine
    from qcbridge.billing.contracts import Pack
    from qcbridge.billing.issued import InvoiceHead
    from qcbridge.billing.issued_paper import Capture, IssuedInvoice
    from qcbridge.billing.reports import Difference, Totals
    from qcbridge.billing.value import Value

COLUMNS: Final = 100
_GAP: Final = "  "
_CELL_MIN: Final = 8
_BP: Final = 10_000
_PARTLY: Final = "Part of this is of the scripted provider: nobody is charged for that part."
_TO_RIGHT: Final = frozenset({"attempts", "tokens", "amount", "entries", "number", "total", "left"})


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceView:
    """An invoice and what a page says of it besides."""

    invoice: IssuedInvoice
    issued: bool
    scripted: bool
    scripted_only: bool
    total_micro: dict[str, int]
    scripted_micro: dict[str, int]
    notes: dict[str, int]
    quarantined: int


def view_of(invoice: IssuedInvoice, *, issued: bool = False) -> InvoiceView:
    """Return what a page shows of an invoice."""
    scripted, only = scripted_marks(invoice)
    return InvoiceView(
        invoice=invoice,
        issued=issued,
        scripted=scripted,
        scripted_only=only,
        total_micro=totals_micro(invoice),
        scripted_micro=scripted_micro(invoice),
        notes=price_notes(invoice),
        quarantined=sum(len(ledger.quarantined) for ledger in invoice.ledgers),
    )


def invoice_text(
    invoice: IssuedInvoice,
    *,
    issued: bool = False,
    differences: tuple[int, Sequence[Difference]] | None = None,
) -> str:
    """Write an invoice the way a person reads it; what is not billed stands below the total.

    `differences` are how many entries are not priced as the book says, and the first of them.
    """
    return "\n".join(_fitted(_invoice_lines(invoice, issued=issued, differences=differences)))


def invoice_json(
    invoice: IssuedInvoice,
    *,
    issued: bool = False,
    differences: tuple[int, Sequence[Difference]] | None = None,
) -> dict[str, Any]:
    """Return an invoice as plain values: whole numbers, and the same amounts as text."""
    value = asdict(invoice)
    period = month(invoice.period)
    totals = totals_micro(invoice)
    scripted, only = scripted_marks(invoice)
    for line, shown in zip(invoice.lines, value["lines"], strict=True):
        shown["cost_pico"] = line.list_pico
        shown["scripted"] = line.scripted
    return value | {
        "id": invoice.id if issued else None,
        "number": invoice.number if issued else None,
        "issued": issued,
        "period": {
            "name": period.name,
            "from": from_us(period.from_us).isoformat(),
            "to": from_us(period.to_us).isoformat(),
        },
        "rounding": "each line half to even to micro-units; the total is the sum of the lines",
        "total_micro": totals,
        "total": {name: format_micro(micro) for name, micro in totals.items()},
        "scripted": scripted,
        "scripted_only": only,
        "scripted_micro": scripted_micro(invoice),
        "differing": None if differences is None else differences[0],
        "differences": None if differences is None else [asdict(one) for one in differences[1]],
    }


def invoices_text(heads: Sequence[InvoiceHead]) -> str:
    """List issued invoices."""
    if not heads:
        return "No invoice was issued yet."
    rows = [
        (
            head.id,
            head.period,
            f"{format_micro(head.total_micro)} {head.currency}",
            f"{from_us(head.issued_us):%Y-%m-%d %H:%M:%S}",
            head.sha256[:16],
        )
        for head in heads
    ]
    return "\n".join(_table(("invoice", "period", "total", "issued (UTC)", "sha256"), rows))


def totals_text(totals: Totals, capture: Sequence[Capture] = ()) -> str:
    """Write a tenant's totals the way a person reads them."""
    return "\n".join(_fitted(_totals_lines(totals, capture)))


def reconciliation_text(report: Mapping[str, Any], *, fresh: bool) -> str:
    """Write what comparing a provider's file has shown."""
    return "\n".join(_fitted(_reconciliation_lines(report, fresh=fresh)))


def value_text(period: str, rows: Sequence[Value]) -> str:
    """Write what tokens were worth, by account."""
    if not rows:
        return f"No decision of {period} has a known truth yet."
    return "\n".join(_fitted(_value_lines(period, rows)))


def packs_text(packs: Sequence[tuple[Pack, int]]) -> str:
    """List packs and what is left in each."""
    if not packs:
        return "No pack was bought."
    header = ("pack", "provider", "model", "class", "tokens", "left", "price", "until (UTC)")
    rows = [
        (
            pack.id,
            pack.provider,
            pack.model,
            pack.token_class,
            pack.tokens,
            left,
            f"{format_micro(pack.price_micro)} {pack.currency}",
            f"{from_us(pack.until_us):%Y-%m-%d}",
        )
        for pack, left in packs
    ]
    return "\n".join(_table(header, rows))


def money(amounts: Mapping[str, int] | None) -> str:
    """Write amounts in pico-units by currency; what is not known is a dash."""
    if not amounts:
        return "-"
    return ", ".join(f"{format_pico(pico)} {currency}" for currency, pico in amounts.items())


def totals_micro(invoice: IssuedInvoice) -> dict[str, int]:
    """Return what an invoice comes to, by currency; one that was issued has one."""
    if invoice.currency:
        return {invoice.currency: invoice.total_micro}
    return _by_currency(invoice.lines)


def scripted_micro(invoice: IssuedInvoice) -> dict[str, int]:
    """Return how much of that nobody is charged for."""
    if invoice.currency:
        return {}
    return _by_currency(line for line in invoice.lines if line.scripted)


def scripted_marks(invoice: IssuedInvoice) -> tuple[bool, bool]:
    """Say whether any use is of the scripted provider, and whether all of it is."""
    providers = {line.provider for line in invoice.lines}
    providers |= {one.provider for one in invoice.beside}
    return SCRIPTED in providers, providers == {SCRIPTED}


def price_notes(invoice: IssuedInvoice) -> dict[str, int]:
    """Number the price rows of an invoice in the order of its lines, as notes below it."""
    rows = dict.fromkeys(line.price_row for line in invoice.lines if line.price_row)
    return {row: number for number, row in enumerate(rows, start=1)}


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number of things, one of them in the singular."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def rate_words(ours: int, billed: int) -> str:
    """Write a capture rate as a percentage, rounded down."""
    if not billed:
        return "unknown"
    basis = ours * _BP // billed
    return f"{basis // 100}.{basis % 100:02} %"


def account_words(line: InvoiceLine) -> str:
    """Write whose account a line is on: department, application, function."""
    account = (line.department, line.application, line.function)
    return " / ".join(word or "-" for word in account) if any(account) else ""


def about(line: InvoiceLine) -> str:
    """Say what a line is besides plain use of the month, in a few words."""
    if line.why == Why.USAGE:
        words = ""
    elif line.why == Why.LATE:
        words = f"late use of {line.month}"
    else:
        words = f"{line.why} to invoice {line.of_invoice}, use of {line.month}"
    return f"{words} from pack {line.pack}".strip() if line.pack else words


def _by_currency(lines: Iterable[InvoiceLine]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for line in lines:
        totals[line.currency] = totals.get(line.currency, 0) + line.amount_micro
    return dict(sorted(totals.items()))


def _invoice_lines(
    invoice: IssuedInvoice,
    *,
    issued: bool,
    differences: tuple[int, Sequence[Difference]] | None,
) -> Iterator[str]:
    if issued:
        yield (
            f"Invoice {invoice.id} to {invoice.tenant} for {invoice.period} (UTC), issued"
            f" {from_us(invoice.issued_us):%Y-%m-%d %H:%M:%S} by {invoice.issuer}"
        )
    else:
        yield f"Invoice of {invoice.tenant} for {invoice.period} (UTC), preview"
    scripted, only = scripted_marks(invoice)
    if scripted:
        yield NOT_CHARGED if only else _PARTLY
    if not invoice.lines:
        yield "Nothing was measured in this month."
    yield from _line_table(invoice)
    for purchase in invoice.purchases:
        yield (
            f"Pack {purchase.pack.id}: {purchase.pack.tokens} tokens of {purchase.pack.provider},"
            f" {format_micro(purchase.amount_micro)} {invoice.currency}"
        )
    uncharged = scripted_micro(invoice)
    for currency, micro in totals_micro(invoice).items():
        free = uncharged.get(currency)
        part = "" if free == micro else f"{format_micro(free or 0)} {currency} of it: "
        yield f"Total: {format_micro(micro)} {currency}" + (
            "" if free is None else f" ({part}{NOT_CHARGED})"
        )
    if invoice.lines:
        yield "Each line is rounded once, half to even, to six places; the total is their sum."
    for rate in invoice.exchange:
        yield (
            f"One {rate.currency} is {format_micro(rate.rate_micro)} {invoice.currency}:"
            f" {rate.source}, {rate.date}"
        )
    yield from _beside(invoice)
    if differences is not None:
        yield from _priced_otherwise(*differences)
    for row, number in price_notes(invoice).items():
        yield f"[{number}] {row}"


def _line_table(invoice: IssuedInvoice) -> Iterator[str]:
    notes = price_notes(invoice)
    accounts = [account_words(line) for line in invoice.lines]
    corrects = any(about(line) for line in invoice.lines)
    yield from _table(
        (
            "node",
            *(("account",) if any(accounts) else ()),
            "provider",
            "model",
            "class",
            "price",
            "attempts",
            "tokens",
            "amount",
            *(("why",) if corrects else ()),
        ),
        [
            (
                line.node,
                *((account,) if any(accounts) else ()),
                line.provider,
                line.model,
                line.token_class or "request",
                f"[{notes[line.price_row]}]" if line.price_row else "",
                line.attempts,
                line.tokens,
                f"{format_micro(line.amount_micro)} {invoice.currency or line.currency}",
                *((about(line),) if corrects else ()),
            )
            for line, account in zip(invoice.lines, accounts, strict=True)
        ],
    )


def _beside(invoice: IssuedInvoice) -> Iterator[str]:
    words = {
        State.RESERVED: "Held, not billed: {n} reserved",
        State.INTENT: "Held, not billed: {n} on the way",
        State.INDETERMINATE: "Held, not billed: {n} indeterminate",
        State.UNPRICED: "Unpriced, not billed: {n}",
    }
    for one in invoice.beside:
        said = words[State(one.state)].format(n=count(one.attempts, "attempt"))
        yield f"{said} at {one.provider}, at most {format_pico(one.hold_pico)} {one.currency}"
    quarantined = Counter(ledger.node for ledger in invoice.ledgers for _ in ledger.quarantined)
    for node, number in sorted(quarantined.items()):
        yield f"Quarantined, not billed: {count(number, 'entry', 'entries')} of {node}"
    yield from _captured(invoice.capture)


def _reconciliation_lines(report: Mapping[str, Any], *, fresh: bool) -> Iterator[str]:
    counts = report["counts"]
    yield f"{report['file']} of {report['provider']}, {report['from']} to {report['to']}"
    if not fresh:
        yield "This file was taken before; nothing was changed."
    yield (
        f"{count(report['records'], 'record')}: {counts['matched']} matched,"
        f" {counts['differing']} differing, {counts['settled']} settled,"
        f" {counts['lost']} of which we have no record"
    )
    yield (
        f"Ours alone: {counts['ours_alone']}; still open: {counts['open']};"
        f" written off: {counts['written_off']}"
    )
    for day in report["days"]:
        said = "unknown" if day["rate_bp"] is None else rate_words(day["rate_bp"], _BP)
        alarm = "  ALARM: under 99.5 %" if day["alarm"] else ""
        yield (
            f"{day['day']}: {day['ours']} of {day['billed']} {day['unit']} on record,"
            f" capture rate {said}{alarm}"
        )
    for what in ("differing", "lost"):
        for one in report[what]:
            name = one["id"] or one["model"]
            yield f"{what}: {name} at {one['at']}, {one['cost']} {one['currency']} {one['words']}"


def _value_lines(period: str, rows: Sequence[Value]) -> Iterator[str]:
    yield f"What the tokens of {period} were worth, where the truth is known"
    for row in rows:
        yield " / ".join(word for word in row.account if word) or "(no account)"
        yield (
            f"  {count(row.decisions, 'decision')}, {row.correct} correct;"
            f" {row.defects_caught} defects caught, {row.false_rejects_avoided} false rejects"
            f" avoided; {row.defects_let_through} let through, {row.false_rejects_made} made"
        )
        unknown = f", {row.unknown} of unknown cost" if row.unknown else ""
        yield f"  {money(row.cost_pico)} for {count(row.attempts, 'attempt')}{unknown}"
        yield (
            f"  per correct decision {money(row.per_correct)}; per defect caught"
            f" {money(row.per_defect)}; per false reject avoided {money(row.per_saved)}"
        )


def _captured(capture: Iterable[Capture]) -> Iterator[str]:
    for one in capture:
        yield f"Capture rate of {one.provider}: {rate_words(one.ours_pico, one.billed_pico)}"


def _priced_otherwise(number: int, differences: Iterable[Difference]) -> Iterator[str]:
    yield f"Entries that differ from the price book: {number}"
    for difference in differences:
        recorded, recomputed = (
            "no price" if cost is None else f"{format_pico(cost.pico)} {cost.currency}"
            for cost in (difference.recorded, difference.recomputed)
        )
        yield (
            f"  {difference.node} {difference.epoch} entry {difference.seq}:"
            f" recorded {recorded}, by the book {recomputed}"
        )


def _totals_lines(totals: Totals, capture: Sequence[Capture]) -> Iterator[str]:
    entries = count(totals.entries, "entry", "entries")
    yield f"{totals.tenant}: {entries} of {count(totals.attempts, 'attempt')}"
    if totals.scripted:
        yield NOT_CHARGED if totals.scripted_only else _PARTLY
    yield f"Tokens: {totals.input_tokens} input, {totals.output_tokens} output"
    for part in totals.measured:
        whom = f" ({NOT_CHARGED})" if part.scripted else ""
        yield f"Measured: {format_pico(part.cost_pico)} {part.currency}{whom}"
    for currency, pico in totals.held_pico.items():
        yield f"Held, not billed: at most {format_pico(pico)} {currency}"
    yield (
        f"Open: {totals.open}; indeterminate: {totals.indeterminate};"
        f" not billed: {totals.not_billed}; unpriced: {totals.unpriced};"
        f" quarantined: {totals.quarantined}"
    )
    yield from _captured(capture)
    yield from _table(
        ("node", "ledger", "entries", "head", "last heard (UTC)"),
        [
            (
                head.node,
                head.epoch,
                head.acked_seq,
                head.head_hash[:16],
                f"{from_us(head.last_us):%Y-%m-%d %H:%M:%S}",
            )
            for head in totals.ledgers
        ],
    )


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Iterator[str]:
    """Write columns as wide as their widest cell, numbers and amounts to the right.

    Where that is too wide, the widest columns of text are folded until it fits.
    """
    if not rows:
        return
    table = [header, *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[place]) for row in table) for place in range(len(header))]
    to_right = [name in _TO_RIGHT for name in header]
    folding = [place for place, right in enumerate(to_right) if not right]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > COLUMNS:
        widest = max(folding, key=lambda place: widths[place])
        if widths[widest] <= _CELL_MIN:
            break
        widths[widest] -= 1
    for row in table:
        folded = [
            textwrap.wrap(cell, width, break_on_hyphens=False) or [""]
            for cell, width in zip(row, widths, strict=True)
        ]
        for number in range(max(len(pieces) for pieces in folded)):
            cells = (
                piece.rjust(width) if right else piece.ljust(width)
                for piece, width, right in zip(
                    (pieces[number] if number < len(pieces) else "" for pieces in folded),
                    widths,
                    to_right,
                    strict=True,
                )
            )
            yield _GAP.join(cells).rstrip()


def _fitted(lines: Iterator[str]) -> Iterator[str]:
    """Fold what is too wide, and set the rest of it in."""
    for line in lines:
        if len(line) <= COLUMNS:
            yield line
        else:
            yield from textwrap.wrap(
                line, COLUMNS, subsequent_indent=" " * 6, break_on_hyphens=False
            )
