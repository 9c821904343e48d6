"""When the same work costs least: for audits and re-checks that can wait.

A part on the line never waits for a price; this is for what has time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcbridge.pricing.rows import STANDARD, Terms
from qcbridge.pricing.timeline import Gap
from qcnode.errors import UnpricedError

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from qcbridge.prices import PriceBook
    from qcbridge.pricing.timeline import Stretch
    from qcnode.money import Cost, TokenUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class CheapHours:
    """Work begun from `start` up to and including `last_start` costs `cost` at most."""

    start: datetime
    last_start: datetime
    cost: Cost
    now: Cost | None
    """What it would cost begun at once; None where that has no price."""


def cheapest_window(
    book: PriceBook,
    usage: TokenUsage,
    provider: str,
    model: str,
    *,
    earliest: datetime,
    latest: datetime,
    duration: timedelta,
    terms: Terms = STANDARD,
) -> CheapHours:
    """Return when to begin work of `duration` so that it is done by `latest` and costs least.

    Work that meets several prices is taken at the dearest of them. The first of equally
    cheap times is returned. Raises `UnpricedError` when no time there has a price
    throughout, and `ValueError` when the work does not fit.
    """
    if earliest + duration > latest:
        raise ValueError(f"work of {duration} does not fit between {earliest} and {latest}")
    stretches = list(book.stretches(provider, model, earliest, latest, terms=terms))
    costs = [_cost(stretch, usage) for stretch in stretches]
    # The price can only fall where a stretch begins, so these are all starts worth a look.
    starts = [earliest, *(stretch.start for stretch in stretches[1:])]
    best: CheapHours | None = None
    at_once: Cost | None = None
    for start in starts:
        if start + duration > latest:
            break
        cost = _dearest(stretches, costs, start, start + duration)
        if start == earliest:
            at_once = cost
        if cost is not None and (best is None or cost.pico < best.cost.pico):
            best = CheapHours(start=start, last_start=start, cost=cost, now=at_once)
    if best is None:
        raise UnpricedError(
            f"no price for {model} by {provider} throughout any {duration} from"
            f" {earliest.isoformat()} to {latest.isoformat()}: add the rows to the price book"
        )
    return CheapHours(
        start=best.start,
        last_start=_last_start(stretches, costs, best, duration, latest),
        cost=best.cost,
        now=at_once,
    )


def _cost(stretch: Stretch, usage: TokenUsage) -> Cost | None:
    if isinstance(stretch.rates, Gap):
        return None
    try:
        return stretch.rates.price(usage, stretch.start)
    except UnpricedError:
        return None


def _dearest(
    stretches: list[Stretch], costs: list[Cost | None], start: datetime, end: datetime
) -> Cost | None:
    met = [
        cost
        for stretch, cost in zip(stretches, costs, strict=True)
        if stretch.start < end and start < stretch.end
    ] or [next(c for s, c in zip(stretches, costs, strict=True) if s.start <= start < s.end)]
    known = [cost for cost in met if cost is not None]
    return max(known, key=lambda cost: cost.pico) if len(known) == len(met) else None


def _last_start(
    stretches: list[Stretch],
    costs: list[Cost | None],
    best: CheapHours,
    duration: timedelta,
    latest: datetime,
) -> datetime:
    """Return until when the work may begin at no more than the best cost."""
    end = latest
    for stretch, cost in zip(stretches, costs, strict=True):
        if stretch.end > best.start + duration and (cost is None or cost.pico > best.cost.pico):
            end = max(stretch.start, best.start + duration)
            break
    return min(end, latest) - duration
