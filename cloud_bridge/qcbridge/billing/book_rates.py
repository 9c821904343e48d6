"""A price book as invoices use it: what each row says, and what the whole hashes to."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from qcbridge.billing.bill import Rate, Sums, split
from qcbridge.billing.invoices import from_us
from qcbridge.pricing.rows import STANDARD, Terms, TierBasis
from qcnode.books import chain
from qcnode.errors import UnpricedError
from qcnode.money import tokens_of

if TYPE_CHECKING:
    from qcbridge.prices import PriceBook
    from qcnode.money import Cost, TokenUsage

_OF_A_MONTH = (TierBasis.MONTH_CLASS, TierBasis.MONTH_TOTAL)


class BookRates:
    """The rows of a book, also those withdrawn since: what was priced by them was."""

    def __init__(self, book: PriceBook) -> None:
        self._book = book
        self._rows = {row.id: row for row in book.announced.prices}
        self._rates = {
            row_id: Rate(str(row.token_class), row.price_micro_per_mtok)
            for row_id, row in self._rows.items()
        }
        self._digest = _digest(book)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the book's file, or of its files' hashes in order."""
        return self._digest

    def rate(self, row_id: str) -> Rate | None:
        """Return what a row says; None when the book does not have it."""
        return self._rates.get(row_id)

    def falls_with_volume(self, row_id: str) -> bool:
        """Say whether the price depends on how much is used in a month."""
        row = self._rows.get(row_id)
        return row is not None and row.tier is not None and row.tier.basis in _OF_A_MONTH

    def says(
        self, usage: TokenUsage, provider: str, model: str, region: str, rated_us: int
    ) -> Cost | None:
        """Return what the book says this cost at that instant; None where it has no price."""
        terms = Terms(region=region) if region else STANDARD
        try:
            return self._book.price(usage, provider, model, from_us(rated_us), terms=terms)
        except UnpricedError:
            return None

    def allows(self, usage: TokenUsage, cost: Cost, rated_us: int) -> bool:
        """Say whether rows of the book that were in force then make that very cost.

        They may be others than the book would choose now: prices that fall with volume,
        or news that came later.
        """
        at = from_us(rated_us)
        rows = [self._rows.get(row_id) for row_id in cost.rows]
        if any(row is None or row.currency != cost.currency or not row.covers(at) for row in rows):
            return False
        sums = Sums(attempts=1, tokens=list(tokens_of(usage)), pico=cost.pico)
        return all(part.unit_micro is not None for part in split(sums, cost.rows, self))


def _digest(book: PriceBook) -> str:
    files = sorted(file.sha256 for file in book.files)
    if len(files) == 1:
        return files[0]
    if files:
        return hashlib.sha256("\n".join(files).encode()).hexdigest()
    rows = [
        (row.id, str(row.token_class), row.currency, row.price_micro_per_mtok)
        for row in book.announced.prices
    ]
    return hashlib.sha256(chain.canonical(sorted(rows))).hexdigest()
