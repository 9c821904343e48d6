"""What may follow in an attempt, and that double entry holds whatever does."""

import contextlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcnode.books.accounts import Book, postings
from qcnode.books.attempts import LIVE, State, advance, subject_of
from qcnode.books.budgets import Budget
from qcnode.books.tally import Tally
from qcnode.errors import BudgetExceededError
from qcnode.money import (
    Adjusted,
    Attempt,
    Cost,
    CostCentre,
    Indeterminate,
    Intent,
    NotBilled,
    Reconciled,
    Reserved,
    Settled,
    TokenUsage,
    WrittenOff,
)

NOON_US = 1_795_348_800_000_000
WORST = TokenUsage(text=90, output=10)
USAGE = TokenUsage(text=7, output=3)


def usd(pico: int, currency: str = "USD") -> Cost:
    return Cost(currency=currency, pico=pico, rows=("row",))


def attempt(name: str, centre: CostCentre = CostCentre(), provider: str = "p") -> Attempt:  # noqa: B008
    return Attempt(
        id=name, escalation_id="e", number=1, provider=provider, model="m", centre=centre
    )


def reserved(name: str = "a", hold: int = 100, **how) -> Reserved:
    return Reserved(attempt=attempt(name, **how), worst=WORST, hold=usd(hold))


def intent(name: str = "a", hold: int = 80, **how) -> Intent:
    return Intent(
        attempt=attempt(name, **how),
        worst=WORST,
        hold=usd(hold),
        request_sha256="0" * 64,
        request_bytes=1,
        image_sha256=None,
    )


def settled(name: str = "a", pico: int | None = 60) -> Settled:
    return Settled(
        attempt_id=name,
        usage=USAGE,
        cost=None if pico is None else usd(pico),
        started_at_us=1,
        rated_at_us=2,
        raw_usage="{}",
        response_id=None,
        model_served=None,
        http_status=200,
        duration_ms=1,
    )


def not_billed(name: str = "a") -> NotBilled:
    return NotBilled(attempt_id=name, reason="refused", http_status=429)


def indeterminate(name: str = "a", hold: int = 80) -> Indeterminate:
    return Indeterminate(attempt_id=name, reason="time-out", hold=usd(hold))


def reconciled(name: str = "a", pico: int = 50) -> Reconciled:
    return Reconciled(
        attempt_id=name, usage=USAGE, cost=usd(pico), source="export", source_sha256="0" * 64
    )


def written_off(name: str = "a") -> WrittenOff:
    return WrittenOff(attempt_id=name, reason="older than 90 days")


def adjusted(name: str = "a", before: int | None = 60, after: int = 40) -> Adjusted:
    return Adjusted(
        attempt_id=name,
        before=None if before is None else usd(before),
        after=usd(after),
        reason="late price",
    )


def walk_through(*facts):
    standing = None
    for fact in facts:
        standing = advance(standing, fact, at_us=1)
    return standing


STEPS = {
    "reserved": reserved(),
    "intent": intent(),
    "settled": settled(),
    "unpriced": settled(pico=None),
    "not_billed": not_billed(),
    "indeterminate": indeterminate(),
    "reconciled": reconciled(),
    "written_off": written_off(),
}

ALLOWED = {
    (),
    ("reserved",),
    ("reserved", "not_billed"),
    *(
        (*start, *rest)
        for start in (("intent",), ("reserved", "intent"))
        for rest in (
            (),
            ("settled",),
            ("not_billed",),
            ("indeterminate",),
            ("indeterminate", "reconciled"),
            ("indeterminate", "written_off"),
            ("unpriced",),
            ("unpriced", "reconciled"),
            ("unpriced", "written_off"),
        )
    ),
}


def test_of_all_orders_of_steps_only_those_that_can_happen_are_taken():
    taken = set()
    for length in range(5):
        for names in itertools.product(STEPS, repeat=length):
            standing = None
            with contextlib.suppress(ValueError):
                for name in names:
                    standing = advance(standing, STEPS[name], at_us=1)
                taken.add(names)
    assert taken == ALLOWED


@pytest.mark.parametrize(
    ("before", "fact", "words"),
    [
        ([], settled(), "no intent"),
        ([], adjusted(), "no intent"),
        ([intent(), settled()], adjusted(before=61), "costs"),
        ([intent(), not_billed()], adjusted(before=None), "no cost"),
        ([intent(), settled()], reconciled(), "adjust it"),
        ([intent(hold=-1)], None, "less than nothing"),
        ([reserved(), intent(provider="another")], None, "not what was reserved"),
        ([intent(), settled(pico=-1)], None, "never negative"),
    ],
)
def test_what_cannot_follow_is_refused_in_words(before, fact, words):
    with pytest.raises(ValueError, match=words):
        walk_through(*before, fact)


def test_a_cost_may_be_put_right_again_and_again():
    standing = walk_through(
        intent(),
        settled(),
        adjusted(before=60, after=40),
        adjusted(before=40, after=0),
        adjusted(before=0, after=90),
    )
    assert (standing.state, standing.cost, standing.hold) == (State.SETTLED, usd(90), None)


# Random histories of several attempts, centres and budgets

CENTRES = [CostCentre(), CostCentre(line="1"), CostCentre(line="1", department="qa")]
FACTS = st.one_of(
    st.builds(
        reserved,
        st.sampled_from("abc"),
        st.integers(0, 300),
        centre=st.sampled_from(CENTRES),
    ),
    st.builds(intent, st.sampled_from("abc"), st.integers(0, 300), centre=st.sampled_from(CENTRES)),
    st.builds(settled, st.sampled_from("abc"), st.none() | st.integers(0, 400)),
    st.builds(not_billed, st.sampled_from("abc")),
    st.builds(indeterminate, st.sampled_from("abc"), st.integers(0, 300)),
    st.builds(reconciled, st.sampled_from("abc"), st.integers(0, 400)),
    st.builds(written_off, st.sampled_from("abc")),
    st.builds(
        adjusted,
        st.sampled_from("abc"),
        st.none() | st.integers(0, 400),
        st.integers(0, 400),
    ),
)
BUDGETS = (
    Budget(name="all", limit=500, currency="USD"),
    Budget(name="line", limit=250, currency="USD", scope=CostCentre(line="1"), window="month"),
    Budget(name="tokens", limit=250, unit="tokens"),
    Budget(name="calls", limit=4, unit="calls", window="hour"),
)


@settings(max_examples=300, deadline=None)
@given(facts=st.lists(FACTS, max_size=30))
def test_accounts_balance_and_budgets_hold_in_any_history(facts):
    tally = Tally.start(b"\0" * 32, BUDGETS)
    standings, moved = {}, {}
    debt = dict.fromkeys((budget.name for budget in BUDGETS), 0)
    for seq, fact in enumerate(facts, 1):
        name = subject_of(fact)
        try:
            before, after = tally.check(fact, at_us=NOON_US, find=standings.get)
        except (ValueError, BudgetExceededError):
            continue
        for_currency = {}
        for posting in postings(before, after):
            key = (posting.account, posting.currency)
            moved[key] = moved.get(key, 0) + posting.pico
            for_currency[posting.currency] = for_currency.get(posting.currency, 0) + posting.pico
        assert set(for_currency.values()) <= {0}
        tally.add(seq, b"", fact, (before, after))
        standings[name] = after

        assert tally.balances() == {key: pico for key, pico in moved.items() if pico}
        assert sum(tally.balances().values()) == 0
        totals = tally.totals()
        held = sum(one.hold.pico for one in standings.values() if one.hold)
        spent = sum(one.cost.pico for one in standings.values() if one.cost)
        assert totals.held_pico.get("USD", 0) == held
        assert totals.cost_pico.get("USD", 0) == spent
        assert totals.attempts == len(standings)
        assert set(tally.live) == {key for key, one in standings.items() if one.state in LIVE}
        for meter in tally.meters:
            used, limit = meter.used_at(NOON_US), meter.budget.limit
            if isinstance(fact, Reserved | Intent):
                # Only what cost more than its hold may stand above the limit, never a hold.
                assert used <= max(limit, debt[meter.budget.name])
            debt[meter.budget.name] = max(debt[meter.budget.name], used)


def test_the_books_of_the_double_entry_are_the_four_that_are_named():
    steps = [reserved(), intent(), settled()]
    seen, standing = set(), None
    for fact in steps:
        after = advance(standing, fact, at_us=1)
        seen |= {posting.account.book for posting in postings(standing, after)}
        standing = after
    assert seen == set(Book)
