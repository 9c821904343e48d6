"""What was agreed beside the price list: discounts, free quotas, rebates, packs, rates.

Pure. A contract is a file of terms; each names a provider, which of its models, and the
calendar months (UTC) it holds for. A discount is on the list price. A rebate is by the
tokens of a month, graduated: each stretch of the volume at its own rate, and a free
quota is a first stretch at 100 %. Every part of the month's use gets the same share of
the rebate, so that no department pays more for having come first. An exchange rate has
a source and a date. Shares are whole basis points, rates whole micro-units.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import re
import tomllib
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from qcnode.errors import BillingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

WHOLE_BP = 10_000
"""Basis points in the whole."""
MICRO = 10**6

_PERIOD = re.compile(r"\d{4}-(0[1-9]|1[0-2])")
_CURRENCY = re.compile(r"[A-Z]{3}")
_RATE = re.compile(r"([A-Z]{3})=([0-9]{1,9}(?:\.[0-9]{1,6})?),(\d{4}-\d{2}-\d{2}),(.{1,200})")
_AMOUNT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")
_NAME = re.compile(r"[^\s*]{1,200}")
_PATTERN = re.compile(r"[^\s*]{0,200}\*?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """The part of a month's tokens beyond `above_tokens` is `rebate_bp` cheaper."""

    above_tokens: int
    rebate_bp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """What holds for some models of one provider in some months; both months are included."""

    id: str
    provider: str
    model: str
    from_period: str
    to_period: str | None
    discount_bp: int = 0
    free_tokens: int = 0
    tiers: tuple[Tier, ...] = ()

    def covers(self, provider: str, model: str, period: str) -> bool:
        """Say whether this term is about that model in that month."""
        return (
            provider == self.provider
            and matches(self.model, model)
            and self.from_period <= period
            and (self.to_period is None or period <= self.to_period)
        )

    def rebate(self, tokens: int) -> tuple[int, int]:
        """Return the share of the price that `tokens` of a month get back, as a fraction."""
        if tokens <= 0:
            return 0, 1
        steps = [(0, WHOLE_BP if self.free_tokens else 0)]
        if self.free_tokens:
            steps.append((self.free_tokens, 0))
        steps += [(max(tier.above_tokens, self.free_tokens), tier.rebate_bp) for tier in self.tiers]
        back = 0
        for place, (above, rebate_bp) in enumerate(steps):
            until = steps[place + 1][0] if place + 1 < len(steps) else tokens
            back += max(0, min(until, tokens) - above) * rebate_bp
        return back, tokens * WHOLE_BP


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """The terms of one file, and what the file's bytes hash to; without a file, none."""

    terms: tuple[Term, ...] = ()
    sha256: str = ""

    def term(self, provider: str, model: str, period: str) -> Term | None:
        """Return the term for that model in that month, if there is one."""
        for term in self.terms:
            if term.covers(provider, model, period):
                return term
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeRate:
    """What one unit of a currency is in the invoice's currency, and who said so when."""

    currency: str
    rate_micro: int
    date: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Tokens bought in advance; they are used up before anything is charged for."""

    id: str
    provider: str
    model: str
    token_class: str
    """One class of tokens, or `*` for any."""
    tokens: int
    price_micro: int
    currency: str
    bought_us: int
    until_us: int
    """The instant from which what is left of it is lost."""

    def covers(self, provider: str, model: str, token_class: str) -> bool:
        """Say whether these tokens can be taken from this pack."""
        return (
            provider == self.provider
            and matches(self.model, model)
            and self.token_class in ("*", token_class)
        )


def matches(pattern: str, name: str) -> bool:
    """Say whether `pattern`, a name or the beginning of names and `*`, is about `name`."""
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name == pattern


def read_contract(path: Path) -> Contract:
    """Read a contract file; raises `BillingError` naming the term and the fix."""
    try:
        raw = path.read_bytes()
        value = tomllib.loads(raw.decode())
    except OSError as error:
        raise BillingError(f"{path}: no contract to read ({error.strerror})") from error
    except ValueError as error:
        raise BillingError(f"{path}: {error}") from error
    for key in value:
        if key != "term":
            raise BillingError(f"{path}: unknown key {key!r}: terms are written as [[term]]")
    terms = tuple(_term(path, item) for item in _tables(path, value, "term"))
    _check_apart(path, terms)
    return Contract(terms=terms, sha256=hashlib.sha256(raw).hexdigest())


def read_rate(text: str) -> ExchangeRate:
    """Read a rate as in `CNY=0.139512,2026-11-30,PBOC central parity`."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise BillingError(
            f"rate {text[:80]!r}: write CURRENCY=RATE,DATE,SOURCE,"
            " as in CNY=0.139512,2026-11-30,PBOC central parity"
        )
    currency, number, day, source = match.groups()
    try:
        dt.date.fromisoformat(day)
        micro = int(Decimal(number) * MICRO)
    except (ValueError, InvalidOperation) as error:
        raise BillingError(f"rate {text[:80]!r}: {day} is no date") from error
    if micro == 0:
        raise BillingError(f"rate {text[:80]!r}: a currency is worth more than nothing")
    return ExchangeRate(currency=currency, rate_micro=micro, date=day, source=source.strip())


def read_amount(text: str) -> int:
    """Read an amount of money, as in 5000.00, in whole micro-units; raises `BillingError`."""
    if not _AMOUNT.fullmatch(text):
        raise BillingError(f"amount {text[:40]!r}: write it as in 5000.00, with up to six places")
    return int(Decimal(text) * MICRO)


def check_currency(text: str) -> str:
    """Return `text` when it is three capital letters; raises `BillingError`."""
    if not _CURRENCY.fullmatch(text):
        raise BillingError(f"currency {text[:20]!r}: write three capital letters, as USD")
    return text


def _tables(path: Path, value: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = value.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise BillingError(f"{path}: write [[{key}]] for each {key}")
    return found


_TERM_KEYS = {
    "id",
    "provider",
    "model",
    "from_period",
    "to_period",
    "discount_bp",
    "free_tokens",
    "tier",
}


def _term(path: Path, raw: Mapping[str, Any]) -> Term:
    where = f"{path}: term {str(raw.get('id', '?'))[:60]!r}"
    for key in raw:
        if key not in _TERM_KEYS:
            raise BillingError(f"{where}: unknown key {key!r}")
    tiers = tuple(
        Tier(
            above_tokens=_count(where, item, "above_tokens"),
            rebate_bp=_bp(where, item, "rebate_bp"),
        )
        for item in raw.get("tier", [])
    )
    if any(one.above_tokens >= two.above_tokens for one, two in itertools.pairwise(tiers)):
        raise BillingError(f"{where}: give its tiers in rising order of above_tokens")
    to_period = raw.get("to_period")
    return Term(
        id=_text(where, raw, "id", _NAME),
        provider=_text(where, raw, "provider", _NAME),
        model=_text(where, raw, "model", _PATTERN),
        from_period=_text(where, raw, "from_period", _PERIOD),
        to_period=None if to_period is None else _text(where, raw, "to_period", _PERIOD),
        discount_bp=_bp(where, raw, "discount_bp"),
        free_tokens=_count(where, raw, "free_tokens"),
        tiers=tiers,
    )


def _text(where: str, raw: Mapping[str, Any], key: str, form: re.Pattern[str]) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value or not form.fullmatch(value):
        raise BillingError(f"{where}: {key} is {value!r:.60}: see docs/how-to/billing.md")
    return value


def _count(where: str, raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key, 0)
    if type(value) is not int or value < 0:
        raise BillingError(f"{where}: {key} is {value!r:.60}, not a whole number of tokens")
    return value


def _bp(where: str, raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key, 0)
    if type(value) is not int or not 0 <= value <= WHOLE_BP:
        raise BillingError(
            f"{where}: {key} is {value!r:.60}, not whole basis points from 0 to {WHOLE_BP}"
        )
    return value


def _check_apart(path: Path, terms: Iterable[Term]) -> None:
    """Refuse two terms for one model and month: which one counts would be a guess."""
    seen: list[Term] = []
    for term in terms:
        for other in seen:
            if other.id == term.id:
                raise BillingError(f"{path}: two terms are called {term.id!r}")
            meet = (other.to_period is None or term.from_period <= other.to_period) and (
                term.to_period is None or other.from_period <= term.to_period
            )
            one = matches(other.model, term.model.removesuffix("*"))
            two = matches(term.model, other.model.removesuffix("*"))
            if term.provider == other.provider and meet and (one or two):
                raise BillingError(
                    f"{path}: the terms {other.id!r} and {term.id!r} meet in some month and"
                    " model: end the first with to_period"
                )
        seen.append(term)
