"""Our record beside the provider's: what agrees, what differs, what only one of us has.

Pure. A record of one request is matched by the provider's id of it; an attempt whose
outcome nobody knows has no such id, so it is matched by model and time where exactly one
attempt and one record can be meant. Where the provider gives only sums, the attempts of
that model and time are added up and compared; what is left over settles an attempt of
unknown outcome only when there is one way to do so. Nothing is guessed: what stays open
is named. How much of a provider's bill is on our record is the capture rate.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from qcnode.books.attempts import State
from qcnode.money import Cost, TokenUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from qcbridge.billing.provider_bills import BilledRecord, ProviderBill

ALARM_BP: Final = 9_950
"""A capture rate below 99.5 % is an alarm."""
WHOLE_BP: Final = 10_000
SLACK_US: Final = 5_000_000
"""By how much a provider's clock may differ from ours."""
OPEN: Final = frozenset({State.INDETERMINATE, State.UNPRICED})

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Fate(StrEnum):
    """What became of a provider's record, or of an attempt of ours."""

    MATCHED = "matched"
    DIFFERING = "differing"
    LOST = "lost"
    """The provider billed it and we have no record of it."""
    SETTLED = "settled"
    """An attempt of ours whose cost was not known, and is now."""
    OURS_ALONE = "ours_alone"
    """We have it at a cost, and the provider's file does not."""
    OPEN = "open"
    """Still nobody knows what it cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OurAttempt:
    """An attempt as our books have it."""

    ledger_id: int
    node: str
    id: str
    model: str
    model_served: str | None
    state: State
    from_us: int
    """When it was announced."""
    to_us: int
    """When its outcome was written down."""
    ids: tuple[str, ...]
    """What the provider called request and answer."""
    usage: TokenUsage | None
    cost: Cost | None
    hold: Cost | None
    tokens_max: int = 0
    """The most tokens it can have used."""

    @property
    def tokens(self) -> int | None:
        """All tokens it used, where that is known."""
        return None if self.usage is None else self.usage.input_tokens + self.usage.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """A provider's record and the attempts of ours it is about."""

    fate: Fate
    record: BilledRecord
    attempts: tuple[OurAttempt, ...]
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What an attempt of unknown cost did cost, by the provider's own record."""

    attempt: OurAttempt
    usage: TokenUsage | None
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class DayCapture:
    """How much of what a provider billed for a day is on our record.

    Money where both sides name the same currency, else tokens, where both are known.
    """

    day: str
    unit: str
    """A currency, or `tokens`."""
    ours: int
    billed: int

    @property
    def rate_bp(self) -> int | None:
        """Ours over billed in basis points, rounded down; None where nothing was billed."""
        return self.ours * WHOLE_BP // self.billed if self.billed else None

    @property
    def alarm(self) -> bool:
        """Whether too much is missing."""
        return self.rate_bp is not None and self.rate_bp < ALARM_BP


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """What comparing one file with our books has shown."""

    pairings: tuple[Pairing, ...]
    settlements: tuple[Settlement, ...]
    ours_alone: tuple[OurAttempt, ...]
    still_open: tuple[OurAttempt, ...]
    days: tuple[DayCapture, ...]

    def count(self, fate: Fate) -> int:
        """Return how many records ended so; or attempts, where only we have them."""
        if fate is Fate.OURS_ALONE:
            return len(self.ours_alone)
        if fate is Fate.OPEN:
            return len(self.still_open)
        return sum(1 for pairing in self.pairings if pairing.fate is fate)


def span_of(bill: ProviderBill) -> tuple[int, int]:
    """Return from when to when a file speaks."""
    return (
        min(record.from_us for record in bill.records),
        max(record.to_us for record in bill.records),
    )


def reconcile(
    bill: ProviderBill,
    attempts: Sequence[OurAttempt],
    *,
    price: Callable[[TokenUsage, OurAttempt], Cost | None],
) -> Reconciliation:
    """Compare a provider's file with our attempts of its time.

    `price` says what tokens cost where the file itself does not; None when it cannot.
    """
    single = [record for record in bill.records if record.record_id is not None]
    summed = [record for record in bill.records if record.record_id is None]
    pairings, settlements, left = _match_requests(single, attempts, price)
    more, settled, left = _match_sums(summed, left, price)
    pairings += more
    settlements += settled
    done = {(one.attempt.ledger_id, one.attempt.id) for one in settlements}
    first, last = span_of(bill)
    left = [
        attempt
        for attempt in left
        if (attempt.ledger_id, attempt.id) not in done
        and first - SLACK_US <= attempt.to_us < last + SLACK_US
    ]
    return Reconciliation(
        pairings=tuple(pairings),
        settlements=tuple(settlements),
        ours_alone=tuple(attempt for attempt in left if attempt.cost is not None),
        still_open=tuple(attempt for attempt in left if attempt.state in OPEN),
        days=_days(pairings, settlements),
    )


def same_model(record: BilledRecord, attempt: OurAttempt) -> bool:
    """Say whether a provider's name for a model can mean that of an attempt.

    Providers bill dated names: what was asked for is their beginning. Routers put the
    vendor before it.
    """
    billed = record.model.rpartition("/")[2]
    if not billed:  # A sum over all models.
        return True
    for asked in (attempt.model_served, attempt.model):
        name = (asked or "").rpartition("/")[2]
        if name and (
            billed == name
            or billed.startswith((f"{name}-", f"{name}:"))
            or name.startswith(f"{billed}-")
        ):
            return True
    return False


def _match_requests(
    records: Iterable[BilledRecord],
    attempts: Sequence[OurAttempt],
    price: Callable[[TokenUsage, OurAttempt], Cost | None],
) -> tuple[list[Pairing], list[Settlement], list[OurAttempt]]:
    by_id = {one: attempt for attempt in attempts for one in attempt.ids}
    pairings: list[Pairing] = []
    settlements: list[Settlement] = []
    taken: set[tuple[int, str]] = set()
    unknown: list[BilledRecord] = []
    for record in records:
        attempt = by_id.get(record.record_id or "")
        if attempt is None:
            unknown.append(record)
            continue
        taken.add((attempt.ledger_id, attempt.id))
        if attempt.state in OPEN and (found := _settle(attempt, record, price)) is not None:
            settlements.append(found)
            pairings.append(Pairing(fate=Fate.SETTLED, record=record, attempts=(attempt,)))
        else:
            pairings.append(_compare(record, (attempt,)))
    left = [one for one in attempts if (one.ledger_id, one.id) not in taken]
    nameless = [one for one in left if one.state is State.INDETERMINATE]
    by_time = _only_ways(unknown, nameless)
    for place, record in enumerate(unknown):
        attempt = by_time.get(place)
        found = None if attempt is None else _settle(attempt, record, price)
        if attempt is None or found is None:
            words = "" if attempt is None else "its cost cannot be told"
            pairings.append(Pairing(fate=Fate.LOST, record=record, attempts=(), words=words))
            continue
        settlements.append(found)
        taken.add((attempt.ledger_id, attempt.id))
        pairings.append(Pairing(fate=Fate.SETTLED, record=record, attempts=(attempt,)))
    left = [one for one in left if (one.ledger_id, one.id) not in taken]
    return pairings, settlements, left


def _only_ways(
    records: Sequence[BilledRecord], attempts: Sequence[OurAttempt]
) -> dict[int, OurAttempt]:
    """Pair records and attempts of unknown outcome where each can only mean the other."""
    for_record: defaultdict[int, list[int]] = defaultdict(list)
    for_attempt: defaultdict[int, list[int]] = defaultdict(list)
    order = sorted(range(len(attempts)), key=lambda place: attempts[place].from_us)
    starts = [attempts[place].from_us for place in order]
    longest = max((one.to_us - one.from_us for one in attempts), default=0)
    for place, record in enumerate(records):
        first = bisect_left(starts, record.from_us - SLACK_US - longest)
        last = bisect_right(starts, record.from_us + SLACK_US)
        for other in order[first:last]:
            attempt = attempts[other]
            fits = (
                record.from_us <= attempt.to_us + SLACK_US
                and same_model(record, attempt)
                and (record.tokens is None or record.tokens <= attempt.tokens_max)
            )
            if fits:
                for_record[place].append(other)
                for_attempt[other].append(place)
    return {
        place: attempts[others[0]]
        for place, others in for_record.items()
        if len(others) == 1 and len(for_attempt[others[0]]) == 1
    }


def _match_sums(
    records: Sequence[BilledRecord],
    attempts: Sequence[OurAttempt],
    price: Callable[[TokenUsage, OurAttempt], Cost | None],
) -> tuple[list[Pairing], list[Settlement], list[OurAttempt]]:
    pairings: list[Pairing] = []
    settlements: list[Settlement] = []
    # A provider counts a request when it is done.
    in_time = sorted(attempts, key=lambda one: one.to_us)
    done_us = [one.to_us for one in in_time]
    taken = [False] * len(in_time)
    for record in _one_for_each(records):
        places = [
            place
            for place in range(
                bisect_left(done_us, record.from_us), bisect_left(done_us, record.to_us)
            )
            if not taken[place] and same_model(record, in_time[place])
        ]
        mine = [in_time[place] for place in places]
        open_ones = [one for one in mine if one.state in OPEN]
        known = [one for one in mine if one.cost is not None]
        found = _settle_rest(record, known, open_ones, price)
        settlements += found
        settled = {(one.attempt.ledger_id, one.attempt.id) for one in found}
        for place in places:
            one = in_time[place]
            taken[place] = one.state not in OPEN or (one.ledger_id, one.id) in settled
        if not mine:
            pairings.append(Pairing(fate=Fate.LOST, record=record, attempts=()))
        elif found:
            pairings.append(Pairing(fate=Fate.SETTLED, record=record, attempts=tuple(mine)))
        else:
            pairings.append(_compare(record, tuple(known)))
    left = [one for one, gone in zip(in_time, taken, strict=True) if not gone]
    return pairings, settlements, left


def _one_for_each(records: Iterable[BilledRecord]) -> list[BilledRecord]:
    """Add up what a provider tells apart and we do not: keys, projects, kinds of token."""
    sums: dict[tuple[str, int, int], BilledRecord] = {}
    for record in records:
        key = (record.model, record.from_us, record.to_us)
        had = sums.get(key)
        sums[key] = record if had is None else _add(had, record)
    return [sums[key] for key in sorted(sums)]


def _add(one: BilledRecord, other: BilledRecord) -> BilledRecord:
    def both(first: int | None, second: int | None) -> int | None:
        if first is None or second is None:
            return second if first is None else first
        return first + second

    if None not in (one.currency, other.currency) and one.currency != other.currency:
        # Two currencies have no sum; the tokens are compared instead.
        return replace(one, currency=None, cost_pico=None)
    return replace(
        one,
        requests=both(one.requests, other.requests),
        input_tokens=both(one.input_tokens, other.input_tokens),
        cached_tokens=both(one.cached_tokens, other.cached_tokens),
        output_tokens=both(one.output_tokens, other.output_tokens),
        currency=one.currency or other.currency,
        cost_pico=both(one.cost_pico, other.cost_pico),
    )


def _settle_rest(
    record: BilledRecord,
    known: Sequence[OurAttempt],
    open_ones: Sequence[OurAttempt],
    price: Callable[[TokenUsage, OurAttempt], Cost | None],
) -> list[Settlement]:
    """Settle attempts of unknown outcome by what a sum leaves over, where that tells them."""
    nameless = [one for one in open_ones if one.state is State.INDETERMINATE]
    if record.requests is None or record.tokens is None or len(nameless) != len(open_ones):
        return []
    usages = [one.usage for one in known if one.usage is not None]
    requests = record.requests - len(known)
    entered = (record.input_tokens or 0) - sum(usage.input_tokens for usage in usages)
    cached = (record.cached_tokens or 0) - sum(usage.cache_read for usage in usages)
    answered = (record.output_tokens or 0) - sum(usage.output_tokens for usage in usages)
    if requests == 0 and entered == 0 and answered == 0:
        return [
            Settlement(
                attempt=one,
                usage=TokenUsage(),
                cost=Cost(currency=one.hold.currency, pico=0, rows=()),
            )
            for one in nameless
            if one.hold is not None
        ]
    if requests != 1 or len(nameless) != 1 or min(entered, cached, answered) < 0:
        return []
    (one,) = nameless
    if entered + answered > one.tokens_max:
        return []
    usage = TokenUsage(
        unknown=entered - min(cached, entered), cache_read=min(cached, entered), output=answered
    )
    cost = _cost_left(record, known) or price(usage, one)
    return [] if cost is None else [Settlement(attempt=one, usage=usage, cost=cost)]


def _cost_left(record: BilledRecord, known: Sequence[OurAttempt]) -> Cost | None:
    if record.cost_pico is None or record.currency is None:
        return None
    ours = [one.cost for one in known if one.cost is not None]
    if any(cost.currency != record.currency for cost in ours):
        return None
    pico = record.cost_pico - sum(cost.pico for cost in ours)
    return Cost(currency=record.currency, pico=pico, rows=()) if pico >= 0 else None


def _settle(
    attempt: OurAttempt,
    record: BilledRecord,
    price: Callable[[TokenUsage, OurAttempt], Cost | None],
) -> Settlement | None:
    """Say what an attempt cost by the provider's record of it; None where that is not told."""
    usage = attempt.usage or _usage_of(record)
    if record.cost_pico is not None and record.currency is not None:
        cost: Cost | None = Cost(currency=record.currency, pico=record.cost_pico, rows=())
    else:
        cost = None if usage is None else price(usage, attempt)
    if cost is None:
        return None
    return Settlement(attempt=attempt, usage=usage, cost=cost)


def _usage_of(record: BilledRecord) -> TokenUsage | None:
    if record.input_tokens is None or record.output_tokens is None:
        return None
    cached = min(record.cached_tokens or 0, record.input_tokens)
    reasoning = min(record.reasoning_tokens or 0, record.output_tokens)
    return TokenUsage(
        unknown=record.input_tokens - cached,
        cache_read=cached,
        output=record.output_tokens - reasoning,
        reasoning=reasoning,
    )


def _compare(record: BilledRecord, attempts: tuple[OurAttempt, ...]) -> Pairing:
    """Say whether what we have is what the provider has, in all that both know."""
    said: list[str] = []
    costs = [one.cost for one in attempts if one.cost is not None]
    if record.cost_pico is not None and len(costs) == len(attempts):
        if any(cost.currency != record.currency for cost in costs):
            said.append(f"the provider bills in {record.currency}")
        else:
            ours = sum(cost.pico for cost in costs)
            if ours != record.cost_pico:
                said.append(f"cost {ours} of ours, {record.cost_pico} billed (pico)")
    usages = [one.usage for one in attempts if one.usage is not None]
    if len(usages) == len(attempts):
        for name, mine, theirs in (
            ("input", sum(one.input_tokens for one in usages), record.input_tokens),
            ("output", sum(one.output_tokens for one in usages), record.output_tokens),
        ):
            if theirs is not None and mine != theirs:
                said.append(f"{name} tokens {mine} of ours, {theirs} billed")
    if record.requests is not None and record.requests != len(attempts):
        said.append(f"requests {len(attempts)} of ours, {record.requests} billed")
    fate = Fate.DIFFERING if said else Fate.MATCHED
    return Pairing(fate=fate, record=record, attempts=attempts, words="; ".join(said))


def _days(pairings: Iterable[Pairing], settlements: Iterable[Settlement]) -> tuple[DayCapture, ...]:
    now_known = {(one.attempt.ledger_id, one.attempt.id): one for one in settlements}
    sums: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for pairing in pairings:
        record = pairing.record
        costs: list[Cost] = []
        tokens = 0
        for attempt in pairing.attempts:
            found = now_known.get((attempt.ledger_id, attempt.id))
            cost = attempt.cost if found is None else found.cost
            usage = attempt.usage if found is None else found.usage
            if cost is not None:
                costs.append(cost)
            if usage is not None:
                tokens += usage.input_tokens + usage.output_tokens
        if record.cost_pico is not None and all(one.currency == record.currency for one in costs):
            both = sums[_day(record.from_us), record.currency or ""]
            both[0] += sum(cost.pico for cost in costs)
            both[1] += record.cost_pico
        elif record.tokens is not None:
            both = sums[_day(record.from_us), "tokens"]
            both[0] += tokens
            both[1] += record.tokens
    return tuple(
        DayCapture(day=day, unit=unit, ours=ours, billed=billed)
        for (day, unit), (ours, billed) in sorted(sums.items())
    )


def _day(at_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=at_us)).date().isoformat()
