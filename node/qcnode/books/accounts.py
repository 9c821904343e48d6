"""Double entry: every fact about money moves an amount from one account to another.

Pure. What is put aside stands between `holds` (of a cost centre) and `pending` (of a
provider), what was used between `usage` and `payable`. What moves sums to zero in each
currency, for every fact there is, so the accounts always balance.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qcnode.books.attempts import Standing
    from qcnode.money import Cost, CostCentre


class Book(StrEnum):
    """The four kinds of account."""

    HOLDS = "holds"
    PENDING = "pending"
    USAGE = "usage"
    PAYABLE = "payable"


@dataclass(frozen=True, slots=True)
class Account:
    """One account: of a cost centre (holds, usage) or of a provider (pending, payable)."""

    book: Book
    of: CostCentre | str


@dataclass(frozen=True, slots=True)
class Posting:
    """An amount that an account gains (or, below zero, gives)."""

    account: Account
    currency: str
    pico: int


def postings(before: Standing | None, after: Standing) -> Iterator[Posting]:
    """Yield what moves when an attempt goes from `before` to `after`."""
    had, has = (None if before is None else before.hold), after.hold
    if had != has:
        yield from _move(after, Book.HOLDS, Book.PENDING, had, has)
    cost_had, cost_has = (None if before is None else before.cost), after.cost
    if cost_had != cost_has:
        yield from _move(after, Book.USAGE, Book.PAYABLE, cost_had, cost_has)


def _move(
    standing: Standing, gains: Book, gives: Book, had: Cost | None, has: Cost | None
) -> Iterator[Posting]:
    attempt = standing.attempt
    for cost, sign in ((had, -1), (has, 1)):
        if cost is not None and cost.pico:
            yield Posting(Account(gains, attempt.centre), cost.currency, sign * cost.pico)
            yield Posting(Account(gives, attempt.provider), cost.currency, -sign * cost.pico)
