"""Invoices and totals as text for a terminal, at most `COLUMNS` wide. Pure.

Amounts are written exactly; only the lines of an invoice are rounded, and it says so.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

from qcbridge.billing.invoices import NOT_CHARGED, format_micro, format_pico, from_us

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qcbridge.billing.invoices import Invoice
    from qcbridge.billing.store import Totals

COLUMNS: Final = 100
_GAP: Final = "  "
_CELL_MIN: Final = 8
_PARTLY: Final = "Part of this is of the scripted provider: nobody is charged for that part."
_TO_RIGHT: Final = frozenset({"attempts", "input", "output", "amount", "entries"})


def invoice_text(invoice: Invoice) -> str:
    """Write an invoice the way a person reads it; what is not billed stands below the total."""
    return "\n".join(_fitted(_invoice_lines(invoice)))


def totals_text(totals: Totals) -> str:
    """Write a tenant's totals the way a person reads them."""
    return "\n".join(_fitted(_totals_lines(totals)))


def price_notes(invoice: Invoice) -> dict[str, int]:
    """Number the price rows of an invoice in the order of its lines, as notes below it."""
    rows = dict.fromkeys(row for line in invoice.lines for row in line.price_rows)
    return {row: number for number, row in enumerate(rows, start=1)}


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number of things, one of them in the singular."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _invoice_lines(invoice: Invoice) -> Iterator[str]:
    yield f"Invoice of {invoice.tenant} for {invoice.period.name} (UTC), preview"
    if invoice.scripted:
        yield NOT_CHARGED if invoice.scripted_only else _PARTLY
    if not invoice.lines:
        yield "Nothing was measured in this month."
    notes = price_notes(invoice)
    yield from _table(
        ("node", "provider", "model", "prices", "attempts", "input", "output", "amount"),
        [
            (
                line.node,
                line.provider,
                line.model,
                " ".join(f"[{notes[row]}]" for row in line.price_rows),
                line.attempts,
                line.usage.input_tokens,
                line.usage.output_tokens,
                f"{format_micro(line.amount_micro)} {line.currency}",
            )
            for line in invoice.lines
        ],
    )
    for currency, micro in invoice.total_micro.items():
        uncharged = invoice.scripted_micro.get(currency)
        part = "" if uncharged == micro else f"{format_micro(uncharged or 0)} {currency} of it: "
        whom = "" if uncharged is None else f" ({part}{NOT_CHARGED})"
        yield f"Total: {format_micro(micro)} {currency}{whom}"
    if invoice.lines:
        yield "Each line is rounded once, half to even, to six places; the total is their sum."
    yield from _not_in_the_total(invoice)
    if invoice.recomputed:
        yield f"Entries that differ from the price book: {invoice.differing}"
    for difference in invoice.differences:
        recorded, recomputed = (
            "no price" if cost is None else f"{format_pico(cost.pico)} {cost.currency}"
            for cost in (difference.recorded, difference.recomputed)
        )
        yield (
            f"  {difference.node} {difference.epoch} entry {difference.seq}:"
            f" recorded {recorded}, by the book {recomputed}"
        )
    for row, number in notes.items():
        yield f"[{number}] {row}"


def _not_in_the_total(invoice: Invoice) -> Iterator[str]:
    for held in invoice.held:
        yield (
            f"Held, not billed: {count(held.attempts, 'attempt')} of {held.node} at"
            f" {held.provider} {held.model}, at most {format_pico(held.hold_pico)} {held.currency}"
        )
    for blank in invoice.unpriced:
        yield (
            f"Unpriced, not billed: {count(blank.attempts, 'attempt')} of {blank.node} at"
            f" {blank.provider} {blank.model}, {blank.usage.input_tokens} input and"
            f" {blank.usage.output_tokens} output tokens"
        )
    for words in invoice.disputed:
        yield f"Disputed, not billed: {words}"


def _totals_lines(totals: Totals) -> Iterator[str]:
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
        f" disputed: {totals.disputed}"
    )
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
