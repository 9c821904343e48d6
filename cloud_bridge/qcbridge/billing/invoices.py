"""Months, instants and amounts, as papers write them. Pure.

A month is a calendar month in UTC. An instant is whole microseconds since 1970, an amount
whole pico-units, or on an invoice whole micro-units, of its currency.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from qcnode.errors import BillingError

NOT_CHARGED: Final = "scripted provider: nobody is charged"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """From one instant up to, and without, another; `name` is what people call it."""

    name: str
    from_us: int
    to_us: int


def month(name: str) -> Period:
    """Return the calendar month in UTC that `name` (as in 2026-11) stands for."""
    match = _MONTH.fullmatch(name)
    if match is None or not 1970 <= int(match[1]) < 9999:  # noqa: PLR2004  # years time stamps reach
        raise BillingError(f"period {name[:40]!r} is no month: write it as in 2026-11")
    year, number = int(match[1]), int(match[2])
    first = datetime(year, number, 1, tzinfo=UTC)
    after = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return Period(name=name, from_us=to_us(first), to_us=to_us(after))


def month_of(at: datetime) -> Period:
    """Return the calendar month in UTC that holds `at`."""
    return month(at.astimezone(UTC).strftime("%Y-%m"))


def next_month(name: str) -> str:
    """Return the name of the month after `name`."""
    return month_of(from_us(month(name).to_us)).name


def to_us(at: datetime) -> int:
    """Count whole microseconds since 1970 UTC."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def from_us(at_us: int) -> datetime:
    """Return the instant that `at_us` counts."""
    return _EPOCH + timedelta(microseconds=at_us)


def format_micro(micro: int) -> str:
    """Write micro-units in units of the currency, with all six places."""
    whole, rest = divmod(abs(micro), 10**6)
    return f"{'-' if micro < 0 else ''}{whole}.{rest:06d}"
