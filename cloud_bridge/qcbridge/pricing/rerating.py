"""The difference between what was charged and what late news of prices makes it.

Nothing on record is edited: the difference becomes a fact of its own that names the one
it adjusts. Money of two currencies is never set off against each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcbridge.pricing.rows import STANDARD, Terms
from qcnode.errors import PriceError

if TYPE_CHECKING:
    from datetime import datetime

    from qcbridge.prices import PriceBook
    from qcnode.money import Cost, TokenUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerating:
    """What one attempt cost by the old news, and by the new."""

    before: Cost | None
    """None where it had no price."""
    after: Cost

    @property
    def change_pico(self) -> int:
        """What is to be added to what was charged; less than nothing is a credit."""
        return self.after.pico - (0 if self.before is None else self.before.pico)


def re_rate(
    before: Cost | None,
    usage: TokenUsage,
    provider: str,
    model: str,
    at: datetime,
    *,
    book: PriceBook,
    terms: Terms = STANDARD,
    volume: TokenUsage | None = None,
) -> Rerating | None:
    """Price a usage again, at the instant it was rated at, and say what changes, if anything.

    Raises `UnpricedError` when the book has no price for it any more, and `PriceError`
    when it has one in another currency.
    """
    after = book.price(usage, provider, model, at, terms=terms, volume=volume)
    if before is not None and before.currency != after.currency:
        raise PriceError(
            f"{model} by {provider} was charged in {before.currency} and this book prices it in"
            f" {after.currency}: correct it by hand, currencies are never mixed"
        )
    if before is not None and before.pico == after.pico:
        return None
    return Rerating(before=before, after=after)
