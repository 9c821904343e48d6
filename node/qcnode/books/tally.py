"""What ledger entries amount to: who is open, what was spent, what is held.

Pure, and made from the entries alone, so it can be thrown away and counted again.
Attempts under way are kept here; how a finished one stands is looked up among the
entries, so this stays small however long the ledger is. A hold is given back only for
a known cost, a known refusal or a write-off by a stated rule: what is unpriced or
indeterminate goes on counting at its worst case.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from qcnode.books.accounts import Account, Book
from qcnode.books.attempts import LIVE, AttemptFact, Standing, State, advance, subject_of
from qcnode.books.budgets import Budget, Counted, Meter
from qcnode.money import (
    EpochOpened,
    Intent,
    Leased,
    LedgerTotals,
    Outcome,
    Reconciled,
    Reserved,
    Settled,
    TokenUsage,
    WrittenOff,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qcnode.money import Attempt, CostCentre, LedgerFact

_Key = TypeVar("_Key")

Find: TypeAlias = "Callable[[str], Standing | None]"
"""Look up how a finished attempt stands, by its id; None when there is none."""

Step: TypeAlias = tuple[Standing | None, Standing | None]
"""How an attempt stood before a fact, and how it stands after; of no attempt, neither."""

_NO_STEP: Step = (None, None)


@dataclass(slots=True)
class Tally:
    """The sums up to and with entry `seq`, whose hash is `hash`."""

    seq: int
    hash: bytes
    live: dict[str, Standing] = field(default_factory=dict)
    """Reserved or announced and without an outcome, by attempt id."""
    worst: dict[str, TokenUsage] = field(default_factory=dict)
    """The worst case of each live attempt."""
    counts: dict[State, int] = field(default_factory=dict)
    """Attempts by the state they are in."""
    usage: TokenUsage = field(default_factory=TokenUsage)
    sums: dict[tuple[CostCentre, str, str], tuple[int, int]] = field(default_factory=dict)
    """Held and used by cost centre, provider and currency: what all the postings come to."""
    written_off_pico: dict[str, int] = field(default_factory=dict)
    meters: list[Meter] = field(default_factory=list)
    leases: dict[str, Leased] = field(default_factory=dict)
    """The latest lease of each shared budget."""

    @classmethod
    def start(cls, genesis: bytes, budgets: Sequence[Budget] = ()) -> Tally:
        """Return the tally of no entries."""
        return cls(seq=0, hash=genesis, meters=[Meter(budget) for budget in budgets])

    def copy(self) -> Tally:
        """Return one that can be added to without touching this one."""
        # Not `dataclasses.replace`, which every commit would pay for.
        return Tally(
            seq=self.seq,
            hash=self.hash,
            live=self.live.copy(),
            worst=self.worst.copy(),
            counts=self.counts.copy(),
            usage=self.usage,
            sums=self.sums.copy(),
            written_off_pico=self.written_off_pico.copy(),
            meters=[meter.copy() for meter in self.meters],
            leases=self.leases.copy(),
        )

    def check(self, fact: LedgerFact, *, at_us: int, find: Find) -> Step:
        """Return the step that `fact` is, or raise when it may not follow.

        Raises `BudgetExceededError` when its hold does not fit a budget, and `ValueError`
        when it has no place after what is on record.
        """
        step = self.follow(fact, at_us=at_us, find=find)
        if self.meters and isinstance(fact, Reserved | Intent):
            self._check_budgets(fact, step[0], at_us)
        return step

    def follow(self, fact: LedgerFact, *, at_us: int, find: Find) -> Step:
        """Do what `check` does, without the budgets: they were others when it was written.

        That an attempt which begins here was never made before is for `find` to know.
        """
        if isinstance(fact, Outcome | Leased):
            return _NO_STEP
        if isinstance(fact, EpochOpened):
            if self.seq:
                raise ValueError("an epoch is opened by its first entry and by no other")
            return _NO_STEP
        attempt_id = subject_of(fact)
        before = self.live.get(attempt_id) or find(attempt_id)
        return before, advance(before, fact, at_us=at_us)

    def add(self, seq: int, digest: bytes, fact: LedgerFact, step: Step) -> None:
        """Count the entry that follows; `step` is what `check` returned for its fact."""
        self.seq, self.hash = seq, digest
        if isinstance(fact, Leased):
            self.leases[fact.budget] = fact
            return
        before, after = step
        if after is None or isinstance(fact, EpochOpened | Outcome):
            return
        self._post(before, after)
        if self.meters:
            self._meter(before, after, fact)
        self._count(before, after, fact)
        attempt_id = after.attempt.id
        if isinstance(fact, Reserved | Intent):
            self.live[attempt_id] = after
            self.worst[attempt_id] = fact.worst
        elif self.live.pop(attempt_id, None) is not None:
            del self.worst[attempt_id]

    def balances(self) -> dict[tuple[Account, str], int]:
        """Return what stands in each account by currency; over all accounts it is zero."""
        balances: dict[tuple[Account, str], int] = {}
        for (centre, provider, currency), (held, used) in self.sums.items():
            for book, of, pico in (
                (Book.HOLDS, centre, held),
                (Book.PENDING, provider, -held),
                (Book.USAGE, centre, used),
                (Book.PAYABLE, provider, -used),
            ):
                _add(balances, (Account(book, of), currency), pico)
        return {key: pico for key, pico in balances.items() if pico}

    def totals(self) -> LedgerTotals:
        """Return the sums as everybody else sees them."""
        counts = self.counts
        return LedgerTotals(
            entries=self.seq,
            attempts=sum(counts.values()),
            reserved=counts.get(State.RESERVED, 0),
            open=counts.get(State.INTENT, 0),
            settled=counts.get(State.SETTLED, 0) + counts.get(State.UNPRICED, 0),
            not_billed=counts.get(State.NOT_BILLED, 0),
            indeterminate=counts.get(State.INDETERMINATE, 0),
            reconciled=counts.get(State.RECONCILED, 0),
            written_off=counts.get(State.WRITTEN_OFF, 0),
            unpriced=counts.get(State.UNPRICED, 0),
            usage=self.usage,
            cost_pico=self._sum(used=True),
            held_pico=self._sum(used=False),
            written_off_pico=dict(self.written_off_pico),
        )

    def _count(self, before: Standing | None, after: Standing, fact: AttemptFact) -> None:
        if before is not None:
            self.counts[before.state] -= 1
        self.counts[after.state] = self.counts.get(after.state, 0) + 1
        if isinstance(fact, Settled):
            self.usage += fact.usage
        elif before is None or before.hold is None:
            return
        elif isinstance(fact, Reconciled):
            # What was counted when it was settled without a price is not counted again.
            if fact.usage is not None and before.state is State.INDETERMINATE:
                self.usage += fact.usage
        elif isinstance(fact, WrittenOff):
            _add(self.written_off_pico, before.hold.currency, before.hold.pico)

    def _check_budgets(self, fact: Reserved | Intent, had: Standing | None, at_us: int) -> None:
        for meter in self.meters:
            budget = meter.budget
            if not budget.covers(fact.attempt.centre):
                continue
            amount = budget.amount(fact.hold, fact.worst)
            if had is not None and had.hold is not None:  # What was reserved is counted.
                amount -= budget.amount(had.hold, self.worst[fact.attempt.id])
                at_us = had.at_us
            if amount > 0:
                meter.check(amount, at_us=at_us, lease=self.leases.get(budget.name))

    def _meter(self, before: Standing | None, after: Standing, fact: AttemptFact) -> None:
        if before is not None and before.state not in LIVE and before.hold is None:
            return  # A known cost put right later is no spending of that window.
        for meter in self.meters:
            if meter.budget.covers(after.attempt.centre):
                meter.add(self._counted(meter.budget, before, after, fact), after.at_us)

    def _counted(
        self, budget: Budget, before: Standing | None, after: Standing, fact: AttemptFact
    ) -> Counted:
        """Return by how much the count of `budget` changes."""
        calls = int(after.state is not State.NOT_BILLED) - int(before is not None)
        if budget.unit == "money":
            used, held = _money(after, budget)
            had_used, had_held = (0, 0) if before is None else _money(before, budget)
            return Counted(used - had_used, held - had_held, calls)
        if budget.unit == "calls":
            was_held = before is not None and before.hold is not None
            return Counted(calls, int(after.hold is not None) - int(was_held), calls)
        used, held = self._tokens(after, fact)
        return Counted(used, held, calls)

    def _tokens(self, after: Standing, fact: AttemptFact) -> tuple[int, int]:
        """Return by how much the tokens change, all of them and those held.

        What an attempt without an answer may have used stays held for good: tokens are
        not written off.
        """
        had = self.worst.get(after.attempt.id)
        held = 0 if had is None else had.input_tokens + had.output_tokens
        if isinstance(fact, Reserved | Intent):
            more = fact.worst.input_tokens + fact.worst.output_tokens - held
            return more, more
        if isinstance(fact, Settled):
            return fact.usage.input_tokens + fact.usage.output_tokens - held, -held
        return (-held, -held) if after.state is State.NOT_BILLED else (0, 0)

    def _post(self, before: Standing | None, after: Standing) -> None:
        """Move what `accounts.postings` says, in one step for the four accounts concerned."""
        attempt = after.attempt
        if before is not None:
            for cost, held in ((before.hold, True), (before.cost, False)):
                if cost is not None:
                    self._move(attempt, cost.currency, -cost.pico, held=held)
        for cost, held in ((after.hold, True), (after.cost, False)):
            if cost is not None:
                self._move(attempt, cost.currency, cost.pico, held=held)

    def _move(self, attempt: Attempt, currency: str, pico: int, *, held: bool) -> None:
        key = (attempt.centre, attempt.provider, currency)
        holds, used = self.sums.get(key, (0, 0))
        self.sums[key] = (holds + pico, used) if held else (holds, used + pico)

    def _sum(self, *, used: bool) -> dict[str, int]:
        sums: dict[str, int] = {}
        for (_centre, _provider, currency), pair in self.sums.items():
            _add(sums, currency, pair[used])
        return {currency: pico for currency, pico in sums.items() if pico}


def _money(standing: Standing, budget: Budget) -> tuple[int, int]:
    """Return what an attempt counts in a budget of money, and what of it is held."""
    cost, hold = standing.cost, standing.hold
    if cost is not None:
        return (cost.pico, 0) if cost.currency == budget.currency else (0, 0)
    if hold is None or hold.currency != budget.currency:
        return 0, 0
    return hold.pico, hold.pico


def _add(sums: dict[_Key, int], key: _Key, amount: int) -> None:
    sums[key] = sums.get(key, 0) + amount
