import asyncio
import json
from collections import Counter

import numpy as np
import pytest

from qcbridge.agent import FAILURES_MAX, PAUSE_S
from qcbridge.prices import PriceBook
from qcnode.books.ledger import Budget
from qcnode.domain import Finding
from qcnode.errors import (
    BudgetExceededError,
    ProviderRefusedError,
    ProviderUnavailableError,
)
from qcnode.picture import encode_png
from tests.bridge.asking import (
    NOW,
    Clock,
    ListProvider,
    answer,
    ask,
    bridge,
    make_agent,
    make_escalation,
)


def down():
    return ProviderUnavailableError("the provider is down")


async def test_an_answer_becomes_an_opinion_by_the_model_s_name():
    agent, _ = make_agent(ListProvider(answer()))

    opinion = await ask(agent)

    assert (opinion.finding, opinion.who) == (Finding.GOOD, "agent:scripted-provider")


async def test_a_provider_that_was_away_is_asked_once_more_as_another_attempt():
    provider = ListProvider(down(), answer())
    agent, _ = make_agent(provider)

    await ask(agent)

    attempts = [metered.attempt for _, metered in provider.asked]
    assert [(a.id, a.number, a.escalation_id) for a in attempts] == [
        ("a-1", 1, "e-P-1"),
        ("a-2", 2, "e-P-1"),
    ]


async def test_no_more_attempts_are_made_than_allowed():
    provider = ListProvider(down(), down(), answer())
    agent, _ = make_agent(provider)

    with pytest.raises(ProviderUnavailableError):
        await ask(agent)
    assert len(provider.asked) == 2


@pytest.mark.parametrize(
    "given",
    [
        "I think it is fine!",
        answer("P-2"),
        answer(disposition="RELEASE"),
        ProviderRefusedError("HTTP 401"),
        BudgetExceededError("nothing left today"),
    ],
)
async def test_what_asking_again_cannot_help_is_not_asked_again(given):
    provider = ListProvider(given, answer())
    agent, _ = make_agent(provider)

    with pytest.raises((ProviderRefusedError, BudgetExceededError)):
        await ask(agent)
    assert len(provider.asked) == 1


async def test_each_attempt_reserves_at_least_the_bytes_and_the_picture_it_sends():
    provider = ListProvider(answer())
    agent, _ = make_agent(provider)

    await ask(agent)

    ((prompt, metered),) = provider.asked
    sent = prompt.system + prompt.user + json.dumps(prompt.schema)
    assert metered.worst.input_tokens >= len(sent.encode()) + metered.worst.image
    assert metered.image_sha256 is not None


async def test_a_review_ends_in_time_however_long_the_provider_takes():
    agent, _ = make_agent(ListProvider(None), review_timeout_s=0.01)

    with pytest.raises(ProviderUnavailableError, match="no ruling in"):
        await ask(agent)


async def test_a_picture_that_cannot_be_shown_goes_to_a_person_and_is_nobody_s_failure():
    provider = ListProvider()
    agent, _ = make_agent(provider)

    for _ in range(FAILURES_MAX + 1):
        with pytest.raises(ProviderRefusedError, match="nothing to show"):
            await agent.review(make_escalation(), b"no picture", None)
    assert agent.reachable()
    assert not provider.asked


@pytest.mark.parametrize("trouble", [down, lambda: "prose", lambda: ProviderRefusedError("401")])
async def test_after_five_failures_in_a_row_a_provider_is_left_alone_for_a_while(trouble):
    clock = Clock()
    provider = ListProvider(*(trouble() for _ in range(FAILURES_MAX)), answer())
    agent, health = make_agent(provider, clock=clock, attempts_max=1)
    for _ in range(FAILURES_MAX):
        with pytest.raises((ProviderUnavailableError, ProviderRefusedError)):
            await ask(agent)

    assert not agent.reachable()
    assert [(h.component, h.ok) for h in health.all()] == [("provider", False)]
    with pytest.raises(ProviderUnavailableError, match="left alone"):
        await ask(agent)
    assert len(provider.asked) == FAILURES_MAX

    clock.at_s = PAUSE_S
    assert agent.reachable()
    assert (await ask(agent)).finding is Finding.GOOD
    assert agent.reachable()
    assert [(h.component, h.ok) for h in health.all()] == [("provider", True)]


async def test_a_failure_now_and_then_leaves_the_provider_in_use():
    agent, health = make_agent(
        ListProvider(*([down()] * (FAILURES_MAX - 1) + [answer()]) * 3), attempts_max=1
    )

    for _ in range(3):
        for _ in range(FAILURES_MAX - 1):
            with pytest.raises(ProviderUnavailableError):
                await ask(agent)
        await ask(agent)

    assert agent.reachable()
    assert all(component.ok for component in health.all())


async def test_one_question_at_a_time_tries_whether_the_provider_is_back():
    clock = Clock()
    provider = ListProvider(*[down()] * FAILURES_MAX, None)
    agent, _ = make_agent(provider, clock=clock, attempts_max=1)
    for _ in range(FAILURES_MAX):
        with pytest.raises(ProviderUnavailableError):
            await ask(agent)
    clock.at_s = PAUSE_S

    probe = asyncio.create_task(ask(agent))
    await provider.waits.wait()
    with pytest.raises(ProviderUnavailableError, match="left alone"):
        await ask(agent)
    assert not agent.reachable()

    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert agent.reachable()  # The next question may try.


async def test_a_provider_still_away_is_left_alone_again_after_one_attempt():
    clock = Clock()
    provider = ListProvider(*[down()] * (FAILURES_MAX + 1), answer())
    agent, _ = make_agent(provider, clock=clock, attempts_max=FAILURES_MAX)
    with pytest.raises(ProviderUnavailableError):
        await ask(agent)
    clock.at_s = PAUSE_S

    with pytest.raises(ProviderUnavailableError):
        await ask(agent)

    assert len(provider.asked) == FAILURES_MAX + 1
    assert not agent.reachable()


def test_the_worst_case_of_an_attempt_is_told_with_its_cost():
    agent, _ = make_agent(ListProvider())

    worst = agent.worst()

    assert worst.usage.image == 256
    assert worst.usage.output == 300
    assert worst.hold.pico == worst.usage.input_tokens * 300_000 + 300 * 1_200_000


async def test_no_attempt_reserves_more_than_the_worst_case_told_before():
    provider = ListProvider(answer("ü" * 128))
    agent, _ = make_agent(provider, attempts_max=1)
    large = encode_png(np.zeros((1000, 1000, 3), np.uint8))

    await agent.review(make_escalation("ü" * 128), large, None)

    ((_, metered),) = provider.asked
    attempt = metered.attempt
    hold = PriceBook.load().worst_case(metered.worst, attempt.provider, attempt.model, NOW)
    assert 0 < hold.pico <= agent.worst().hold.pico


def test_a_model_without_a_price_has_no_cost_and_not_a_cost_of_nothing():
    provider = ListProvider()
    provider.model = "a-model-nobody-priced"
    agent, _ = make_agent(provider)

    assert agent.worst() is None


# -- the whole way: agent, client, transport, ledger, and a server that speaks HTTP --------


async def test_a_part_is_put_to_the_provider_and_its_tokens_are_on_record(tmp_path):
    async with bridge(tmp_path) as way:
        way.provider.parts(P_1="dent")
        opinion = await ask(way.agent)
        totals = way.ledger.totals()
        (row,) = way.provider.requests()

    assert (opinion.finding, opinion.defect_class) == (Finding.DEFECTIVE, "dent")
    assert (totals.attempts, totals.settled, totals.unpriced) == (1, 1, 0)
    assert totals.input_tokens == row["usage"]["prompt_tokens"]
    assert totals.output_tokens == row["usage"]["completion_tokens"]
    assert totals.cost_pico["USD"] > 0


async def test_prose_is_no_ruling_and_is_metered_all_the_same(tmp_path):
    async with bridge(tmp_path, prose_rate=1.0) as way:
        with pytest.raises(ProviderRefusedError, match="no ruling"):
            await ask(way.agent)
        totals = way.ledger.totals()

    assert (totals.attempts, totals.settled) == (1, 1)
    assert totals.cost_pico["USD"] > 0


@pytest.mark.parametrize(
    ("behaviour", "not_billed", "indeterminate"),
    [
        ({"error_rate": 1.0}, 0, 2),
        ({"reset_rate": 1.0}, 0, 2),
        ({"timeout_rate": 1.0}, 0, 2),
        ({"limit_rate": 1.0}, 2, 0),
    ],
)
async def test_each_attempt_that_came_to_nothing_is_on_record_as_what_is_known_of_it(
    tmp_path, behaviour, not_billed, indeterminate
):
    async with bridge(tmp_path, answer_timeout_s=0.5, **behaviour) as way:
        with pytest.raises(ProviderUnavailableError):
            await ask(way.agent)
        totals = way.ledger.totals()

    assert (totals.attempts, totals.open, totals.settled) == (2, 0, 0)
    assert (totals.not_billed, totals.indeterminate) == (not_billed, indeterminate)


async def test_a_wrong_key_is_said_so_and_costs_nothing(tmp_path):
    async with bridge(tmp_path, api_key="another-key") as way:
        with pytest.raises(ProviderRefusedError, match="QCNODE_PROVIDER_API_KEY"):
            await ask(way.agent)
        totals = way.ledger.totals()

    assert (totals.attempts, totals.not_billed) == (1, 1)


async def test_asking_again_ends_where_the_budget_ends(tmp_path):
    # Enough for one attempt at its worst, held for good by a reset, and not for another.
    worst = make_agent(ListProvider())[0].worst()
    budget = Budget(name="day", currency="USD", limit=worst.hold.pico)
    async with bridge(tmp_path, budget=budget, reset_rate=1.0, agent={"attempts_max": 5}) as way:
        with pytest.raises(BudgetExceededError):
            await ask(way.agent)
        books = way.provider.requests()

    assert len(books) == 1


async def test_many_reviews_at_once_leave_no_request_without_an_intent(tmp_path):
    rates = {"error_rate": 0.1, "limit_rate": 0.1, "reset_rate": 0.1, "prose_rate": 0.1}
    async with bridge(tmp_path, **rates, agent={"attempts_max": 3}) as way:
        parts = [f"P-{number}" for number in range(60)]
        way.provider.parts(**{part.replace("-", "_"): "good" for part in parts})
        came = await asyncio.gather(
            *(ask(way.agent, part) for part in parts), return_exceptions=True
        )
        entries = way.ledger.read(0, 10_000)
        totals = way.ledger.totals()
        books = way.provider.requests()

    facts = [(entry.kind, json.loads(entry.body)["fact"]) for entry in entries]
    intents = Counter(fact["attempt"]["id"] for kind, fact in facts if kind == "intent")
    assert intents == Counter(row["attempt"] for row in books)
    assert totals.open == 0
    billed = [row for row in books if row["billed"] and row["outcome"] != "reset"]
    assert totals.settled == len(billed)
    assert totals.input_tokens == sum(row["usage"]["prompt_tokens"] for row in billed)
    failed = [one for one in came if isinstance(one, BaseException)]
    ruled = [one for one in came if not isinstance(one, BaseException)]
    assert all(isinstance(one, (ProviderUnavailableError, ProviderRefusedError)) for one in failed)
    assert {one.finding for one in ruled} == {Finding.GOOD}
