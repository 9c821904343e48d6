"""Invoices and totals as text for a terminal. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qcbridge.billing.invoices import format_micro, format_pico, from_us

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qcbridge.billing.invoices import Invoice
    from qcbridge.billing.store import Totals


def invoice_text(invoice: Invoice) -> str:
    """Write an invoice the way a person reads it; what is not billed stands below the total."""
    return "\n".join(_invoice_lines(invoice))


def totals_text(totals: Totals) -> str:
    """Write a tenant's totals the way a person reads them."""
    return "\n".join(_totals_lines(totals))


def _invoice_lines(invoice: Invoice) -> Iterator[str]:
    yield f"Invoice of {invoice.tenant} for {invoice.period.name} (UTC), preview"
    if not invoice.lines:
        yield "Nothing was measured in this month."
    yield from _table(
        ("node", "provider", "model", "price", "attempts", "input", "output", "amount"),
        [
            (
                line.node,
                line.provider,
                line.model,
                ", ".join(line.price_rows),
                line.attempts,
                line.usage.input_tokens,
                line.usage.output_tokens,
                f"{format_micro(line.amount_micro)} {line.currency}",
            )
            for line in invoice.lines
        ],
    )
    for currency, micro in invoice.total_micro.items():
        yield f"Total: {format_micro(micro)} {currency}"
    for held in invoice.held:
        yield (
            f"Held, not billed: {held.attempts} attempts of {held.node} at {held.provider}"
            f" {held.model}, at most {format_pico(held.hold_pico)} {held.currency}"
        )
    for blank in invoice.unpriced:
        yield (
            f"Unpriced, not billed: {blank.attempts} attempts of {blank.node} at {blank.provider}"
            f" {blank.model}, {blank.usage.input_tokens} input and"
            f" {blank.usage.output_tokens} output tokens"
        )
    for words in invoice.disputed:
        yield f"Disputed, not billed: {words}"
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


def _totals_lines(totals: Totals) -> Iterator[str]:
    yield f"{totals.tenant}: {totals.entries} entries of {totals.attempts} attempts"
    yield f"Tokens: {totals.input_tokens} input, {totals.output_tokens} output"
    for currency, pico in totals.cost_pico.items():
        yield f"Measured: {format_pico(pico)} {currency}"
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
    """Write columns as wide as their widest cell, numbers to the right."""
    if not rows:
        return
    table = [header, *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[place]) for row in table) for place in range(len(header))]
    to_right = [isinstance(cell, int) for cell in rows[0]]
    for row in table:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, to_right, strict=True)
        )
        yield "  ".join(cells).rstrip()
