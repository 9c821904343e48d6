"""How fast the price book answers: `price` at random instants of a year with hours and holidays."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from typing import Final

from qcbridge.prices import PriceBook, shipped
from qcnode.bench.measure import Result
from qcnode.money import TokenUsage

_FROM: Final = datetime(2026, 9, 11, tzinfo=UTC)
_DAYS: Final = 110


def lookup_result(*, rounds: int, lookups: int) -> Result:
    """Measure the shipped book with the most rules: DeepSeek's peak hours and holidays."""
    book = PriceBook.load(shipped()["deepseek"])
    usage = TokenUsage(text=1_204, cache_read=128, output=58)
    draw = random.Random(1)  # noqa: S311  # repeatable, guards nothing
    instants = [
        _FROM + timedelta(seconds=draw.randrange(_DAYS * 86_400)) for _number in range(lookups)
    ]
    rates: list[float] = []
    for _round in range(rounds):
        start = time.process_time()
        for at in instants:
            book.price(usage, "deepseek", "deepseek-v4-flash", at)
        rates.append(lookups / (time.process_time() - start))
    return Result(
        name="price look-ups a second of CPU time, with peak hours and holidays",
        values=tuple(rates),
        aim=200_000,
    )
