"""How far an attempt has come, and what may follow.

Pure, and the same for node, billing server and verifier. Money is first put aside
(reserved), then the request is announced (intent) and sent, then it has an outcome. What
is not known by then may be learnt later, and a known cost may be put right; nothing
else can follow. No step skips the record of the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from qcnode.money import (
    Adjusted,
    Attempt,
    Cost,
    EpochOpened,
    Indeterminate,
    Intent,
    Leased,
    LedgerFact,
    NotBilled,
    Outcome,
    Reconciled,
    Reserved,
    Settled,
    WrittenOff,
)


class State(StrEnum):
    """Where an attempt stands."""

    RESERVED = "reserved"
    INTENT = "intent"
    SETTLED = "settled"
    UNPRICED = "unpriced"
    """Settled by count, with no price known: its hold goes on counting."""
    NOT_BILLED = "not_billed"
    INDETERMINATE = "indeterminate"
    RECONCILED = "reconciled"
    WRITTEN_OFF = "written_off"


AttemptFact: TypeAlias = (
    Reserved | Intent | Settled | NotBilled | Indeterminate | Reconciled | WrittenOff | Adjusted
)
"""The facts that are about one attempt."""

LIVE = frozenset({State.RESERVED, State.INTENT})
_LEARNABLE = frozenset({State.INDETERMINATE, State.UNPRICED})
_PRICED = frozenset({State.SETTLED, State.RECONCILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One attempt as it stands: what it holds or what it cost, never both."""

    attempt: Attempt
    state: State
    at_us: int
    """When it began; budgets count it in the window of this instant."""
    hold: Cost | None
    cost: Cost | None


def advance(before: Standing | None, fact: AttemptFact, *, at_us: int) -> Standing:
    """Return how the attempt stands after `fact`; raises `ValueError` when it may not follow."""
    if isinstance(fact, Reserved):
        if before is not None:
            raise ValueError(f"attempt {fact.attempt.id} is on record already ({before.state})")
        return _begin(fact.attempt, State.RESERVED, fact.hold, at_us)
    if isinstance(fact, Intent):
        if before is None:
            return _begin(fact.attempt, State.INTENT, fact.hold, at_us)
        if before.state is not State.RESERVED:
            raise ValueError(
                f"attempt {fact.attempt.id} has its intent on record already ({before.state})"
            )
        if before.attempt != fact.attempt:
            raise ValueError(f"attempt {fact.attempt.id} is not what was reserved for")
        return _begin(fact.attempt, State.INTENT, fact.hold, before.at_us)
    if before is None:
        raise ValueError(f"attempt {fact.attempt_id} is not open: it has no intent on record")
    return _conclude(before, fact)


def _begin(attempt: Attempt, state: State, hold: Cost, at_us: int) -> Standing:
    if hold.pico < 0:
        raise ValueError(f"attempt {attempt.id} would hold less than nothing: {hold}")
    return Standing(attempt=attempt, state=state, at_us=at_us, hold=hold, cost=None)


def _conclude(  # noqa: PLR0911  # one for each kind of fact
    before: Standing,
    fact: Settled | NotBilled | Indeterminate | Reconciled | WrittenOff | Adjusted,
) -> Standing:
    state = before.state
    if isinstance(fact, NotBilled):
        _want(state in LIVE, before, "is not open: its outcome is on record already")
        return _step(before, State.NOT_BILLED)
    if isinstance(fact, Settled):
        _want(state is State.INTENT, before, "is not open: its outcome is on record already")
        if fact.cost is None:
            return _step(before, State.UNPRICED, hold=before.hold)
        return _step(before, State.SETTLED, cost=_not_negative(fact.cost))
    if isinstance(fact, Indeterminate):
        _want(state is State.INTENT, before, "is not open: its outcome is on record already")
        held = before.hold
        if held is not None and held.currency != fact.hold.currency:
            raise ValueError(f"attempt {fact.attempt_id} is held in another currency")
        if held is not None and fact.hold.pico > held.pico:
            raise ValueError(f"attempt {fact.attempt_id} would hold more than was put aside")
        return _step(before, State.INDETERMINATE, hold=_not_negative(fact.hold))
    if isinstance(fact, Reconciled):
        _want(state in _LEARNABLE, before, "has a known cost: adjust it instead")
        return _step(before, State.RECONCILED, cost=_not_negative(fact.cost))
    if isinstance(fact, WrittenOff):
        _want(state in _LEARNABLE, before, "has a known cost: it cannot be written off")
        return _step(before, State.WRITTEN_OFF)
    _want(state in _PRICED or state is State.UNPRICED, before, "has no cost to adjust")
    if fact.before != before.cost:
        raise ValueError(
            f"attempt {fact.attempt_id} costs {before.cost}, not {fact.before} as is said"
        )
    after = State.SETTLED if state is State.UNPRICED else state
    return _step(before, after, cost=_not_negative(fact.after))


def _step(
    before: Standing, state: State, *, hold: Cost | None = None, cost: Cost | None = None
) -> Standing:
    # Not `dataclasses.replace`: it costs as much as all the rest of an entry.
    return Standing(attempt=before.attempt, state=state, at_us=before.at_us, hold=hold, cost=cost)


def _want(holds: bool, before: Standing, words: str) -> None:  # noqa: FBT001  # an assertion
    if not holds:
        raise ValueError(f"attempt {before.attempt.id} {words} ({before.state})")


def _not_negative(cost: Cost) -> Cost:
    if cost.pico < 0:
        raise ValueError(f"a cost is never negative: {cost}")
    return cost


def subject_of(fact: LedgerFact) -> str:
    """Return what a fact is about: the id of its attempt, escalation, lease or epoch."""
    if isinstance(fact, Reserved | Intent):
        return fact.attempt.id
    if isinstance(fact, Outcome):
        return fact.escalation_id
    if isinstance(fact, Leased):
        return fact.lease_id
    if isinstance(fact, EpochOpened):
        return fact.previous_epoch
    return fact.attempt_id
