"""What of a book counts, as it was known at some instant.

Prices are announced, changed and taken back before they ever hold. So a row has two
times: when it holds, and when it became known. Nothing is edited: looking at the book as
of an earlier day gives what was known then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qcbridge.pricing.rows import PriceRow
from qcnode.errors import PriceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from qcbridge.pricing.rows import Alias, Withdrawal


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """All rows of a book, those that no longer count or do not count yet among them."""

    prices: tuple[PriceRow, ...]
    aliases: tuple[Alias, ...]
    withdrawals: tuple[Withdrawal, ...]

    def as_known_at(self, at: datetime | None) -> Announced:
        """Leave out what became known after `at`; None is now and leaves out nothing."""
        if at is None:
            return self
        return Announced(
            prices=tuple(row for row in self.prices if _known(row.recorded_at, at)),
            aliases=tuple(row for row in self.aliases if _known(row.recorded_at, at)),
            withdrawals=tuple(row for row in self.withdrawals if row.recorded_at <= at),
        )


class InForce:
    """The rows that count: withdrawn ones are gone, replaced ones end where they must."""

    def __init__(self, prices: Iterable[PriceRow], aliases: Iterable[Alias]) -> None:
        self.prices = tuple(prices)
        self.aliases = tuple(aliases)
        self._named: dict[tuple[str, str], list[PriceRow]] = {}
        self._patterns: dict[str, list[PriceRow]] = {}
        for row in self.prices:
            if row.model.endswith("*"):
                self._patterns.setdefault(row.provider, []).append(row)
            else:
                self._named.setdefault((row.provider, row.model), []).append(row)

    def rows_of(self, provider: str, model: str) -> list[PriceRow]:
        """Return the rows that are about that model, whenever."""
        patterns = (row for row in self._patterns.get(provider, ()) if row.names(model))
        return [*self._named.get((provider, model), ()), *patterns]


def in_force(announced: Announced) -> InForce:
    """Apply withdrawals and replacements; raises `PriceError` for one of an unknown row."""
    everything = _by_id([*announced.prices, *announced.aliases])
    withdrawn: set[str] = set()
    for withdrawal in announced.withdrawals:
        for row_id in withdrawal.rows:
            if row_id not in everything:
                raise PriceError(
                    f"{withdrawal.where}: no row {row_id!r:.120} to withdraw:"
                    " name it as `qcnode prices show` does"
                )
            withdrawn.add(row_id)
    live = [row for row in announced.prices if row.id not in withdrawn]
    ends: dict[str, datetime] = {}
    for row in live:
        for row_id in row.replaces:
            _check_replaced(row, everything.get(row_id))
            ends[row_id] = min(row.valid_from, ends.get(row_id, row.valid_from))
    return InForce(
        _ended(live, ends), (row for row in announced.aliases if row.id not in withdrawn)
    )


def withdrawn_at(announced: Announced) -> dict[str, datetime]:
    """Return when each withdrawn row was taken back."""
    return {
        row_id: withdrawal.recorded_at
        for withdrawal in announced.withdrawals
        for row_id in withdrawal.rows
    }


def _by_id(rows: Iterable[PriceRow | Alias]) -> dict[str, PriceRow | Alias]:
    found: dict[str, PriceRow | Alias] = {}
    for row in rows:
        other = found.setdefault(row.id, row)
        if other is not row:
            raise PriceError(
                f"{other.where} and {row.where}: both price {row.id}:"
                " give the later one its recorded_at, or another valid_from"
            )
    return found


def _check_replaced(row: PriceRow, replaced: PriceRow | Alias | None) -> None:
    if not isinstance(replaced, PriceRow) or (
        replaced.provider,
        replaced.model,
        replaced.token_class,
    ) != (row.provider, row.model, row.token_class):
        raise PriceError(
            f"{row.where}: replaces: names no row for {row.token_class} tokens of {row.model}"
        )


def _ended(rows: Sequence[PriceRow], ends: dict[str, datetime]) -> Iterable[PriceRow]:
    for row in rows:
        end = ends.get(row.id)
        if end is None or (row.valid_to is not None and row.valid_to <= end):
            yield row
        elif end > row.valid_from:
            yield replace(row, valid_to=end)


def _known(recorded_at: datetime | None, at: datetime) -> bool:
    return recorded_at is None or recorded_at <= at
