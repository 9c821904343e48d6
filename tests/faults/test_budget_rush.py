"""A thousand questions at once on a small budget: at no commit more is spent and held than is
allowed, and nothing that fits is turned away for good.

The chain itself is the witness: it is read back entry by entry, and what counts at each
seq is added up here, without any of the code that keeps the budget.
"""

import asyncio
import random

import pytest

from qcnode.books import chain
from qcnode.books.budgets import Budget
from qcnode.books.ledger import SqliteLedger
from qcnode.errors import BudgetExceededError
from qcnode.money import (
    Attempt,
    Cost,
    Indeterminate,
    Intent,
    NotBilled,
    Reserved,
    Settled,
    TokenUsage,
)

QUESTIONS = 1_000
WORST_PICO = 100_000
WORST = TokenUsage(text=900, output=100)
NOON_US = 1_795_348_800_000_000
PATIENCE_S = 120


def usd(pico):
    return Cost(currency="USD", pico=pico, rows=("row",))


def attempt(number):
    return Attempt(id=f"a{number}", escalation_id=f"e{number}", number=1, provider="p", model="m")


def reserved(number, pico):
    return Reserved(attempt=attempt(number), worst=WORST, hold=usd(pico))


def intent(number, pico):
    return Intent(
        attempt=attempt(number),
        worst=WORST,
        hold=usd(pico),
        request_sha256="0" * 64,
        request_bytes=1,
        image_sha256=None,
    )


def ending(number, kind, pico):
    """How an attempt ends: answered, refused at the door, or nobody knows."""
    if kind == "settled":
        return Settled(
            attempt_id=f"a{number}",
            usage=TokenUsage(text=700, output=50),
            cost=usd(pico),
            started_at_us=1,
            rated_at_us=2,
            raw_usage="{}",
            response_id=None,
            model_served=None,
            http_status=200,
            duration_ms=1,
        )
    if kind == "not_billed":
        return NotBilled(attempt_id=f"a{number}", reason="HTTP 429", http_status=429)
    return Indeterminate(attempt_id=f"a{number}", reason="time-out", hold=usd(pico))


class Rush:
    """Many who ask at the same moment, each with a worst case and an end of its own."""

    def __init__(self, ledger, seed, *, looks_first=None):
        chance = random.Random(seed)
        self.ledger = ledger
        self.looks_first = looks_first
        self.plans = []
        for _ in range(QUESTIONS):
            kind = chance.choices(("settled", "not_billed", "indeterminate"), (90, 8, 2))[0]
            worst = chance.choice((WORST_PICO, WORST_PICO // 2, WORST_PICO // 3))
            worst = WORST_PICO if kind == "indeterminate" else worst
            self.plans.append((worst, kind, chance.random(), chance.randrange(4)))
        self.news = asyncio.Condition()
        self.turned_away = []

    def announced(self, number):
        """What leaves may need less than was put aside for it."""
        worst, _, _, steps = self.plans[number]
        return worst - worst // 10 if steps else worst

    def cost(self, number):
        """What is counted of it for good."""
        _, kind, share, _ = self.plans[number]
        if kind == "not_billed":
            return 0
        return int(self.announced(number) * (1 if kind == "indeterminate" else share))

    async def ask_all(self, *, patient):
        """Have all ask at once, and return who was turned away for good."""
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
            asking = [
                tasks.create_task(self.ask(number, patient=patient)) for number in range(QUESTIONS)
            ]
        return [number for number, task in enumerate(asking) if not task.result()]

    async def ask(self, number, *, patient):
        """Ask, and again after each news if `patient`; say whether it came to an answer."""
        worst, kind, _, steps = self.plans[number]
        while True:
            before = self.ledger.totals().entries
            try:
                if self.looks_first is not None:
                    self.looks_first(worst)
                await self.record((reserved if steps else intent)(number, worst))
                break
            except BudgetExceededError:
                self.turned_away.append((worst, before, self.ledger.totals().entries))
                if not patient:
                    return False
                async with self.news:
                    if self.ledger.totals().entries == before:
                        await self.news.wait()
        for _ in range(steps):
            await asyncio.sleep(0)
        if steps:
            await self.record(intent(number, self.announced(number)))
        await self.record(ending(number, kind, self.cost(number)))
        async with self.news:
            self.news.notify_all()
        return True

    async def record(self, fact):
        await asyncio.wrap_future(self.ledger.submit(fact))


def counted_at_each_seq(ledger, unit):
    """Add up what counts after each entry, from the chain alone."""
    counts, running, total = [0], {}, 0
    for entry in entries(ledger):
        fact = chain.fact_of(entry)
        name = fact.attempt.id if isinstance(fact, Reserved | Intent) else fact.attempt_id
        had = running.get(name, 0)
        if unit == "calls":
            now = int(not isinstance(fact, NotBilled))
        elif unit == "tokens":
            now = tokens_of(fact, had)
        else:
            now = money_of(fact)
        total += now - had
        running[name] = now
        counts.append(total)
    return counts


def money_of(fact):
    if isinstance(fact, NotBilled):
        return 0
    return fact.cost.pico if isinstance(fact, Settled) else fact.hold.pico


def tokens_of(fact, had):
    if isinstance(fact, Reserved | Intent):
        return fact.worst.input_tokens + fact.worst.output_tokens
    if isinstance(fact, Settled):
        return fact.usage.input_tokens + fact.usage.output_tokens
    return 0 if isinstance(fact, NotBilled) else had


def entries(ledger):
    after = 0
    while page := ledger.read(after, 1_000):
        yield from page
        after = page[-1].seq


@pytest.fixture
def open_ledger(tmp_path):
    opened = []

    def open_ledger(*budgets):
        ledger = SqliteLedger(
            tmp_path / f"ledger{len(opened)}.db",
            now_us=lambda: NOON_US,
            new_epoch=lambda: "e" * 32,
            budgets=budgets,
        )
        opened.append(ledger)
        return ledger

    yield open_ledger
    for ledger in opened:
        ledger.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_d1_spent_and_held_never_pass_the_limit_and_nothing_that_fits_is_turned_away(
    open_ledger, seed
):
    # Room for what all of them come to and one worst case beside it: of a thousand worst
    # cases at once it holds less than half.
    limit = sum(map(Rush(None, seed).cost, range(QUESTIONS))) + WORST_PICO
    ledger = open_ledger(
        Budget(name="money", limit=limit, currency="USD"),
        Budget(name="calls", limit=QUESTIONS + 1, unit="calls", window="hour"),
        Budget(name="tokens", limit=QUESTIONS * 1_000, unit="tokens", window="month"),
    )
    rush = Rush(ledger, seed)

    assert await rush.ask_all(patient=True) == []

    money, calls, tokens = (
        counted_at_each_seq(ledger, unit) for unit in ("money", "calls", "tokens")
    )
    assert max(money) <= limit
    assert max(calls) <= QUESTIONS + 1
    assert max(tokens) <= QUESTIONS * 1_000
    # Each got through, so no hold leaked and nobody was turned away for good ...
    totals = ledger.totals()
    assert totals.attempts == QUESTIONS
    assert (totals.reserved, totals.open) == (0, 0)
    # ... and whenever somebody was, there was a moment at which it did not fit.
    assert len(rush.turned_away) > QUESTIONS // 2
    for worst, before, after in rush.turned_away:
        assert max(money[before : after + 1]) + worst > limit
    assert [state.used for state in ledger.budgets()] == [money[-1], calls[-1], tokens[-1]]


@pytest.mark.parametrize("seed", [1, 2])
async def test_d1_on_a_budget_for_a_few_who_comes_later_is_turned_away_only_if_it_does_not_fit(
    open_ledger, seed
):
    limit = 40 * WORST_PICO
    ledger = open_ledger(Budget(name="money", limit=limit, currency="USD"))
    rush = Rush(ledger, seed)

    left_out = await rush.ask_all(patient=False)
    assert left_out
    # Now one after the other, so that each is turned away by what is spent alone.
    money = counted_at_each_seq(ledger, "money")
    for number in left_out:
        fits = money[-1] + rush.plans[number][0] <= limit
        assert await rush.ask(number, patient=False) is fits
        money = counted_at_each_seq(ledger, "money") if fits else money

    assert max(money) <= limit
    assert limit - money[-1] < WORST_PICO // 3
    assert ledger.totals().attempts < QUESTIONS


async def test_the_control_that_looks_at_the_budget_before_it_spends_overspends(open_ledger):
    limit = 40 * WORST_PICO
    ledger = open_ledger()  # Nobody keeps a budget here but whoever asks.

    def look_first(worst):
        totals = ledger.totals()
        used = sum(totals.cost_pico.values()) + sum(totals.held_pico.values())
        if used + worst > limit:
            raise BudgetExceededError("not enough left")

    await Rush(ledger, 1, looks_first=look_first).ask_all(patient=False)

    assert max(counted_at_each_seq(ledger, "money")) > 2 * limit
