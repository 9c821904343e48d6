"""What recorded requests would have cost by other prices, and which budgets would have given out.

Pure, and made from the entries of a ledger. Only requests whose tokens are known can be
priced again; the others are counted, and nothing is guessed for them. The past is not run
again: with other prices a node would have asked another number of questions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from qcnode.books.budgets import Counted, Meter
from qcnode.errors import UnpricedError
from qcnode.money import (
    Adjusted,
    Attempt,
    Cost,
    Indeterminate,
    Intent,
    Reconciled,
    Settled,
    TokenUsage,
    WrittenOff,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import tzinfo

    from qcnode.books.budgets import Budget
    from qcnode.money import LedgerFact

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request whose tokens are known, and what it cost by the books; None is unpriced.

    `began_us` is when its intent went on record, which is when budgets count it.
    """

    attempt: Attempt
    usage: TokenUsage
    cost: Cost | None
    began_us: int
    started_us: int
    ended_us: int

    @property
    def began(self) -> datetime:
        """When it began, as a time."""
        return to_time(self.began_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a ledger has of requests: those with known tokens, and how many others."""

    asked: tuple[Asked, ...]
    unknown: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One day with one model: what it cost in a currency, before and after.

    A cost of None is unpriced, in part or whole; `unpriced` says how many of the requests
    the other prices do not cover.
    """

    day: str
    provider: str
    model: str
    currency: str
    requests: int
    tokens: int
    before_pico: int | None
    after_pico: int | None
    unpriced: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrun:
    """A budget that would have been exceeded: in how many windows, when first, and by how much.

    `most` is the largest excess at the end of a window.
    """

    budget: Budget
    windows: int
    first_us: int
    most: int


def recorded(entries: Iterable[tuple[int, LedgerFact]]) -> Recorded:
    """Go through facts with their times, in the order of the ledger."""
    begun: dict[str, tuple[Attempt, int]] = {}
    asked: dict[str, Asked] = {}
    unknown: set[str] = set()
    for at_us, fact in entries:
        if isinstance(fact, Intent):
            begun[fact.attempt.id] = fact.attempt, at_us
        elif isinstance(fact, Settled):
            attempt, began_us = begun[fact.attempt_id]
            asked[fact.attempt_id] = Asked(
                attempt=attempt,
                usage=fact.usage,
                cost=fact.cost,
                began_us=began_us,
                started_us=fact.started_at_us,
                ended_us=fact.started_at_us + fact.duration_ms * 1_000,
            )
        elif isinstance(fact, Indeterminate):
            unknown.add(fact.attempt_id)
        elif isinstance(fact, Reconciled):
            _reconcile(fact, begun, asked, unknown)
        elif isinstance(fact, Adjusted) and fact.attempt_id in asked:
            asked[fact.attempt_id] = replace(asked[fact.attempt_id], cost=fact.after)
        elif isinstance(fact, WrittenOff):
            asked.pop(fact.attempt_id, None)
    return Recorded(asked=tuple(asked.values()), unknown=len(unknown))


def _reconcile(
    fact: Reconciled,
    begun: dict[str, tuple[Attempt, int]],
    asked: dict[str, Asked],
    unknown: set[str],
) -> None:
    known = asked.get(fact.attempt_id)
    if known is not None:
        asked[fact.attempt_id] = replace(known, cost=fact.cost)
    elif fact.usage is not None:
        attempt, began_us = begun[fact.attempt_id]
        unknown.discard(fact.attempt_id)
        asked[fact.attempt_id] = Asked(
            attempt=attempt,
            usage=fact.usage,
            cost=fact.cost,
            began_us=began_us,
            started_us=began_us,
            ended_us=began_us,
        )


def reprice(
    asked: Sequence[Asked], price: Callable[[Asked], Cost], zone: tzinfo
) -> tuple[Line, ...]:
    """Price requests again with `price`, which raises `UnpricedError` where it cannot.

    Days are those of `zone`. What costs another currency afterwards is a line of its own.
    """
    sums: dict[tuple[str, str, str, str], Line] = {}
    for one in asked:
        after = priced(one, price)
        currencies = {cost.currency for cost in (one.cost, after) if cost is not None} or {""}
        for currency in sorted(currencies):
            attempt = one.attempt
            day = one.began.astimezone(zone).date().isoformat()
            key = (day, attempt.provider, attempt.model, currency)
            line = sums.get(key) or Line(
                day=day,
                provider=attempt.provider,
                model=attempt.model,
                currency=currency,
                requests=0,
                tokens=0,
                before_pico=None,
                after_pico=None,
                unpriced=0,
            )
            sums[key] = replace(
                line,
                requests=line.requests + 1,
                tokens=line.tokens + one.usage.input_tokens + one.usage.output_tokens,
                before_pico=_plus(line.before_pico, one.cost, currency),
                after_pico=_plus(line.after_pico, after, currency),
                unpriced=line.unpriced + (after is None),
            )
    return tuple(sums[key] for key in sorted(sums))


def priced(one: Asked, price: Callable[[Asked], Cost]) -> Cost | None:
    """Return what a request costs by `price`, None where it has none."""
    try:
        return price(one)
    except UnpricedError:
        return None


def overruns(
    asked: Iterable[Asked], cost_of: Callable[[Asked], Cost | None], budgets: Iterable[Budget]
) -> tuple[Overrun, ...]:
    """Say which budgets of money such costs would have exceeded."""
    in_order = sorted(asked, key=lambda one: one.began_us)
    found = (_overrun(in_order, cost_of, budget) for budget in budgets if budget.unit == "money")
    return tuple(overrun for overrun in found if overrun is not None)


def _overrun(
    asked: Sequence[Asked], cost_of: Callable[[Asked], Cost | None], budget: Budget
) -> Overrun | None:
    meter, worst, first_us = Meter(budget), dict[int, int](), None
    for one in asked:
        cost = cost_of(one)
        if cost is None or cost.currency != budget.currency:
            continue
        if not budget.covers(one.attempt.centre):
            continue
        meter.add(Counted(cost.pico, 0, 1), one.began_us)
        excess = meter.used_at(one.began_us) - budget.limit
        if excess > 0:
            worst[meter.span(one.began_us).from_us] = excess
            first_us = one.began_us if first_us is None else first_us
    if first_us is None:
        return None
    return Overrun(budget=budget, windows=len(worst), first_us=first_us, most=max(worst.values()))


def to_time(at_us: int) -> datetime:
    """Return an instant of the books as a time."""
    return _EPOCH + timedelta(microseconds=at_us)


def _plus(pico: int | None, cost: Cost | None, currency: str) -> int | None:
    if cost is None or cost.currency != currency:
        return pico
    return (pico or 0) + cost.pico
