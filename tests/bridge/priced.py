"""Price books for tests that are about what is done with prices, and not about the books."""

from datetime import UTC, date, datetime

from qcbridge.prices import PriceBook, PriceClass, PriceRow, RatingInstant

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
MICRO = {
    PriceClass.INPUT: 300_000,
    PriceClass.CACHE_READ: 30_000,
    PriceClass.IMAGE: 350_000,
    PriceClass.OUTPUT: 1_200_000,
}


def prices(
    provider="scripted",
    model="scripted-provider",
    *,
    start=LONG_AGO,
    end=None,
    instant=RatingInstant.COMPLETION,
    region=None,
    times=1,
    micro=MICRO,
):
    """Return the rows of one model over one stretch of time, `times` as dear as usual."""
    return [
        PriceRow(
            provider=provider,
            model=model,
            token_class=token_class,
            currency="USD",
            price_micro_per_mtok=price * times,
            valid_from=start,
            valid_to=end,
            source="a test",
            checked_at=date(2026, 11, 1),
            where="here",
            rating_instant=instant,
            region=region,
        )
        for token_class, price in micro.items()
    ]


def book(*rows):
    """Return a price book of these lists of rows; without any, of the usual one."""
    return PriceBook(row for each in rows or (prices(),) for row in each)
