"""One record for each HTTP request, whatever becomes of it, and no hold without a reason."""

import ast
import asyncio
import json
import tempfile
import types
from collections import Counter
from pathlib import Path

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qcbridge
from qcbridge.agent import FAILURES_MAX
from qcnode.books import chain
from qcnode.books.ledger import Budget
from qcnode.domain import Finding
from qcnode.errors import (
    BudgetExceededError,
    LedgerUnavailableError,
    ProviderRefusedError,
    ProviderUnavailableError,
    QcError,
    UnpricedError,
)
from qcnode.money import (
    CostCentre,
    Indeterminate,
    Intent,
    NotBilled,
    Reserved,
    Settled,
    TokenUsage,
)
from tests.bridge.metering import (
    COST,
    HOLD,
    OUTCOME,
    PATIENCE_S,
    PICTURE,
    USAGE,
    Rig,
    escalation,
    response,
)
from tests.bridge.priced import book, prices


@pytest.fixture
async def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    await made.close()


@pytest.fixture
def with_budget(tmp_path):
    """Make a rig whose budget of the day is so large."""
    rigs = []

    def make(limit, *, unit="money"):
        currency = "USD" if unit == "money" else None
        budget = Budget(name="day", limit=limit, unit=unit, currency=currency)
        rigs.append(Rig(tmp_path / str(len(rigs)), budgets=(budget,), answer=response()))
        return rigs[-1]

    yield make
    for made in rigs:
        made.ledger.close()


def worst_pico(with_budget):
    """Return what one attempt puts aside."""
    return with_budget(10**18).agent().worst().hold.pico


def kinds(rig):
    return [type(fact).__name__ for fact in rig.facts()]


async def review(agent, part_id="P-1", *, picture=PICTURE):
    return await agent.review(escalation(part_id), picture, None)


# -- money is put aside first --------------------------------------------------------------


async def test_money_is_put_aside_before_the_evidence_is_cut_and_the_intent_follows(rig):
    rig.endpoint.answer = response()

    await review(rig.agent())

    reserved, intent, settled = rig.facts()
    assert [type(fact) for fact in (reserved, intent, settled)] == [Reserved, Intent, Settled]
    assert intent.attempt == reserved.attempt
    assert intent.hold.pico < reserved.hold.pico  # What is sent is known by now.
    assert rig.ledger.totals().held_pico == {}


async def test_a_review_given_up_before_it_was_sent_costs_and_holds_nothing(rig):
    with pytest.raises(ProviderRefusedError, match="nothing to show"):
        await review(rig.agent(), picture=b"no picture")

    reserved, ended = rig.facts()
    assert isinstance(reserved, Reserved)
    assert isinstance(ended, NotBilled)
    assert ended.reason == "not sent: given up (ProviderRefusedError)"
    assert rig.endpoint.asked == []
    assert rig.ledger.totals().held_pico == {}


async def test_a_budget_that_does_not_cover_a_review_is_asked_before_anything_is_done(with_budget):
    rig = with_budget(1_000)

    with pytest.raises(BudgetExceededError):
        await review(rig.agent(), picture=b"what no one ever looks at")

    assert rig.facts() == []
    assert rig.endpoint.asked == []


async def test_an_unpriced_model_is_refused_before_anything_is_done(rig):
    with pytest.raises(UnpricedError):
        await review(rig.agent(provider_name="nobody-knows"), picture=b"never looked at")

    assert rig.facts() == []


async def test_an_attempt_says_for_whom_at_what_authority_and_where(rig):
    centre = CostCentre(line="l1", product="cap", department="d", application="qc", agent="eye")
    rig.endpoint.answer = response()

    await review(rig.agent(centre=centre, level="L3", region="cn-beijing"))

    attempts = [fact.attempt for fact in rig.facts() if isinstance(fact, Reserved | Intent)]
    assert [(one.centre, one.level, one.region) for one in attempts] == [
        (centre, "L3", "cn-beijing")
    ] * 2


async def test_asking_again_is_another_attempt_of_the_same_question_within_the_budget(with_budget):
    review_pico = worst_pico(with_budget)
    rig = with_budget(3 * review_pico)
    rig.endpoint.answer = 500

    with pytest.raises((ProviderUnavailableError, BudgetExceededError)):
        await review(rig.agent(attempts_max=9))

    intents = [fact for fact in rig.facts() if isinstance(fact, Intent)]
    assert [one.attempt.number for one in intents] == list(range(1, len(intents) + 1))
    assert {one.attempt.escalation_id for one in intents} == {"e-P-1"}
    assert len({one.attempt.id for one in intents}) == len(intents)
    keys = {request.headers["Idempotency-Key"] for request in rig.endpoint.asked}
    assert keys == {"e-P-1"}
    # Every failure is held, and the one that would not fit beside them was never made.
    held = rig.ledger.totals().held_pico["USD"]
    assert held == sum(one.hold.pico for one in intents) <= 3 * review_pico
    assert 1 < len(intents) < 9


# -- B: answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stream",
    [
        b'data: {"usage": {"prompt_tokens": 9, "completion_tokens": 2}}\n\ndata: [DONE]\n\n',
        b'{"usage": {"prompt_tokens": 9, "completion_tokens": 2}}',
    ],
)
async def test_b5_a_stream_nobody_asked_for_is_no_answer_and_is_held(rig, stream):
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    rig.endpoint.answer = httpx2.Response(200, headers=headers, content=stream)

    await rig.ask()

    assert isinstance(rig.outcome(), Indeterminate)
    assert "stream of events" in rig.outcome().reason
    assert rig.ledger.totals().held_pico == {"USD": HOLD}


async def test_b5_we_ask_for_no_stream(rig):
    rig.endpoint.answer = response()
    await review(rig.agent())
    (request,) = rig.endpoint.asked
    assert json.loads(request.content)["stream"] is False


async def test_b5_an_answer_cut_off_is_held(rig):
    whole = response().content
    rig.endpoint.answer = whole[: len(whole) * 2 // 3]

    await rig.ask()

    assert isinstance(rig.outcome(), Indeterminate)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 10**12, "completion_tokens": 1},
        {"prompt_tokens": 10.0, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": "10", "completion_tokens": 1},
        {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 12},
    ],
)
async def test_b6_an_answer_without_a_count_to_believe_is_held_and_handed_on(rig, usage):
    answer = {"id": "r-1", "choices": [{"message": {"content": "fine"}}]}
    if usage is not None:
        answer["usage"] = usage
    rig.endpoint.answer = httpx2.Response(200, json=answer, headers={"x-request-id": "req-7"})

    assert (await rig.ask()).json()["id"] == "r-1"

    assert isinstance(rig.outcome(), Indeterminate)
    assert rig.outcome().request_id == "req-7"
    assert rig.ledger.totals().held_pico == {"USD": HOLD}
    assert rig.ledger.totals().cost_pico == {}


@pytest.mark.parametrize(
    "refusal",
    [
        response(said=None, finish="content_filter"),
        response(said="I cannot help with that."),
        response(status=400, said=None),
        response(status=403, said=None),
    ],
    ids=["blocked answer", "refusal in words", "blocked prompt", "moderated"],
)
async def test_b7_a_refusal_that_states_what_it_used_is_billed(rig, refusal):
    rig.endpoint.answer = refusal

    with pytest.raises(ProviderRefusedError):
        await review(rig.agent(attempts_max=1))

    assert isinstance(rig.outcome(), Settled)
    assert rig.outcome().cost.pico == COST
    assert rig.outcome().http_status == refusal.status_code


@pytest.mark.parametrize(
    ("status", "fact"), [(400, Indeterminate), (403, NotBilled), (429, NotBilled)]
)
async def test_b7_a_refusal_that_states_nothing_is_billed_only_as_far_as_its_status_says(
    rig, status, fact
):
    rig.endpoint.answer = status
    await rig.ask()
    assert isinstance(rig.outcome(), fact)


async def test_b4_more_tokens_than_were_held_are_settled_as_they_were_counted(rig):
    usage = {
        "prompt_tokens": 50_000,
        "completion_tokens": 10,
        "prompt_tokens_details": {"text_tokens": 1_000, "image_tokens": 49_000},
    }
    rig.endpoint.answer = response(usage)

    await rig.ask()

    assert rig.outcome().cost.pico == 1_000 * 300_000 + 49_000 * 350_000 + 10 * 1_200_000
    assert rig.outcome().cost.pico > HOLD


async def test_what_a_provider_says_of_its_answer_is_on_record_word_for_word(rig):
    raw = '{"completion_tokens":  100, "prompt_tokens":1000, "cost": 1.40e-4 }'
    rig.endpoint.answer = httpx2.Response(
        200,
        content=f'{{"model": "m-1", "usage": {raw}, "id": "r-9"}}'.encode(),
        headers={"Request-Id": "req_011", "x-unrelated": "1"},
    )

    await rig.ask()

    settled = rig.outcome()
    assert settled.raw_usage == raw
    assert (settled.response_id, settled.model_served) == ("r-9", "m-1")
    assert settled.request_id == "req_011"


async def test_a12_a_cost_a_provider_states_is_kept_beside_ours_and_changes_nothing(rig):
    rig.endpoint.answer = response(USAGE | {"cost": 95.5})

    await rig.ask()

    assert rig.outcome().stated_cost == "95.5"
    assert rig.outcome().cost.pico == COST


# -- C: attempts, retries, duplicates --------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        httpx2.ReadTimeout("slow"),
        httpx2.ReadError("reset"),
        httpx2.RemoteProtocolError("cut off"),
        httpx2.WriteTimeout("slow"),
        502,
    ],
    ids=repr,
)
async def test_c1_a_request_that_may_have_been_billed_is_on_record_and_held(rig, trouble):
    rig.endpoint.answer = trouble

    with pytest.raises(ProviderUnavailableError):
        await review(rig.agent(attempts_max=1))

    assert kinds(rig) == ["Reserved", "Intent", "Indeterminate"]
    intent, indeterminate = rig.facts()[1:]
    assert indeterminate.hold == intent.hold
    assert rig.ledger.totals().held_pico == {"USD": intent.hold.pico}


async def test_c1_a_caller_that_runs_out_of_patience_leaves_its_request_on_record(rig):
    async def hang(_request):
        await asyncio.Event().wait()

    rig.endpoint.answer = hang

    with pytest.raises(ProviderUnavailableError, match="no ruling in"):
        await review(rig.agent(review_timeout_s=0.2))

    rig.settle()
    assert rig.ledger.totals().indeterminate == 1
    assert rig.ledger.totals().open == 0


@pytest.mark.parametrize("attempts_max", [1, 2, 3])
async def test_c2_a_failure_is_answered_by_as_many_requests_as_were_allowed(rig, attempts_max):
    rig.endpoint.answer = 500

    with pytest.raises(ProviderUnavailableError):
        await review(rig.agent(attempts_max=attempts_max))

    assert len(rig.endpoint.asked) == attempts_max < FAILURES_MAX
    assert kinds(rig) == ["Reserved", "Intent", "Indeterminate"] * attempts_max


async def test_c2_a_client_that_asks_again_by_itself_is_refused(rig):
    rig.endpoint.answer = 500
    await rig.ask("a1")

    with pytest.raises(ProviderRefusedError, match="an attempt of its own"):
        await rig.ask("a1")

    assert len(rig.endpoint.asked) == 1
    assert kinds(rig) == ["Intent", "Indeterminate"]


async def test_c3_after_a_time_out_the_second_provider_and_the_first_are_both_on_record(tmp_path):
    rig = Rig(tmp_path, prices=book(prices(), prices(provider="other", times=2)))
    first, second = rig.agent(attempts_max=1), rig.agent(attempts_max=1, provider_name="other")
    rig.endpoint.answer = httpx2.ReadTimeout("slow")
    with pytest.raises(ProviderUnavailableError):
        await review(first)
    rig.endpoint.answer = response()

    await review(second)

    intents = [fact.attempt for fact in rig.facts() if isinstance(fact, Intent)]
    assert [(one.provider, one.escalation_id) for one in intents] == [
        ("scripted", "e-P-1"),
        ("other", "e-P-1"),
    ]
    totals = rig.ledger.totals()
    assert (totals.indeterminate, totals.settled) == (1, 1)
    assert totals.held_pico["USD"] > 0
    assert totals.cost_pico == {"USD": 2 * COST}
    await rig.close()


async def check_each_counts(rig, *, named):
    for number in range(3):
        await rig.ask(f"a{number}")

    totals = rig.ledger.totals()
    assert (totals.attempts, totals.settled) == (3, 3)
    assert totals.cost_pico == {"USD": 3 * COST}
    assert totals.usage == TokenUsage(text=1_200, image=1_800, output=300)
    settled = [fact for fact in rig.facts() if isinstance(fact, Settled)]
    assert [fact.response_id for fact in settled] == [named] * 3


async def test_c4_one_response_fetched_three_times_is_three_requests_and_three_costs(rig):
    rig.endpoint.answer = response(id="r-1")
    await check_each_counts(rig, named="r-1")


async def test_c5_one_answer_taken_down_twice_is_refused(rig):
    await rig.ask()
    settled = rig.outcome()

    again = rig.ledger.submit(settled)

    with pytest.raises(ValueError, match="not open"):
        again.result(PATIENCE_S)
    assert rig.ledger.totals().cost_pico == {"USD": COST}


@pytest.mark.parametrize("response_id", ["", None])
async def test_c6_answers_without_a_name_are_told_apart_by_their_attempts(rig, response_id):
    rig.endpoint.answer = response(id=response_id)
    await check_each_counts(rig, named=None)


async def test_c7_a_request_that_is_no_attempt_goes_nowhere(rig):
    for how in ({}, {"extensions": {"qcnode.attempt": "a1"}}):
        with pytest.raises(LedgerUnavailableError, match="which attempt"):
            await rig.client.post("https://provider.example/", content=b"{}", **how)
    assert rig.endpoint.asked == []


OTHER_WAYS_OUT = {
    "requests",
    "aiohttp",
    "httpx",
    "urllib3",
    "http.client",
    "urllib.request",
    "openai",
    "anthropic",
    "google.genai",
    "litellm",
}
CLIENTS = {"AsyncClient", "Client"}
AT_ONCE = {"get", "post", "put", "patch", "delete", "head", "options", "request", "stream"}
TRANSPORTS = {"AsyncHTTPTransport", "HTTPTransport"}


def ways_out(source):
    """Name each place in Python source where a request could leave without the meter."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""] + [f"{node.module}.{name}" for name in names]
            yield from OTHER_WAYS_OUT.intersection(names)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("httpx2"):
                yield f"from {node.module} import"
        called = node.func if isinstance(node, ast.Call) else None
        if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name):
            continue
        if called.value.id != "httpx2":
            continue
        handed = {word.arg: word.value for word in node.keywords}.get("transport")
        metered = isinstance(handed, ast.Name) and handed.id == "transport"
        if (called.attr in CLIENTS and not metered) or called.attr in AT_ONCE | TRANSPORTS:
            yield f"httpx2.{called.attr}"


def test_c7_no_module_of_the_bridge_has_another_way_out():
    root = Path(qcbridge.__file__).parent
    # The billing server asks nobody for tokens.
    modules = [path for path in root.rglob("*.py") if "billing" not in path.parts]
    assert len(modules) > 10

    found = {
        str(path.relative_to(root)): ways
        for path in modules
        if (ways := sorted(ways_out(path.read_text(encoding="utf-8"))))
    }

    # Every step of its client is an attempt of its own: test_pydantic_model.
    assert found == {"pydantic_model.py": ["httpx2.AsyncClient", "openai"]}


@pytest.mark.parametrize(
    "source",
    [
        "import httpx2\nhttpx2.AsyncClient()",
        "import httpx2\nhttpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport())",
        "import httpx2\nhttpx2.post('https://x.example')",
        "from httpx2 import AsyncClient",
        "import requests",
        "import urllib.request",
        "from urllib import request",
        "from openai import AsyncOpenAI",
    ],
)
def test_c7_another_way_out_would_be_found(source):
    assert list(ways_out(source))


def test_c7_the_node_opens_a_way_to_providers_only_under_the_meter():
    node = Path(qcbridge.__file__).parents[2] / "node" / "qcnode"
    builders = [node / "main.py", *sorted((node / "wiring").glob("*.py"))]
    tree = ast.parse("\n".join(one.read_text(encoding="utf-8") for one in builders))

    def opened_in(node):
        return {
            id(call)
            for call in ast.walk(node)
            if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr in TRANSPORTS
        }

    metered = [
        call
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "MeteringTransport"
    ]
    assert metered
    assert opened_in(tree) == set().union(*map(opened_in, metered))


async def test_c10_the_key_of_a_request_is_ours_whatever_a_model_or_a_client_says(rig):
    rig.client.headers["Idempotency-Key"] = "chosen-elsewhere"
    rig.endpoint.answer = response(
        idempotency_key="chosen-by-the-model", headers={"Idempotency-Key": "by-the-server"}
    )

    await rig.ask("a1", escalation_id="e7", body=b'{"idempotency_key": "in-the-body"}')
    await rig.ask("a2", escalation_id="e7", number=2)

    keys = [request.headers["Idempotency-Key"] for request in rig.endpoint.asked]
    assert keys == ["e7", "e7"]


# -- D: budgets and holds --------------------------------------------------------------------


@pytest.mark.parametrize("fits", [1, 3, 10])
async def test_d1_many_reviews_at_once_never_spend_and_hold_more_than_the_budget(with_budget, fits):
    worst = worst_pico(with_budget)
    rig = with_budget(fits * worst + worst // 2)
    agent = rig.agent(attempts_max=1)
    over = []

    def look():
        totals = rig.ledger.totals()
        used = totals.cost_pico.get("USD", 0) + totals.held_pico.get("USD", 0)
        if used > fits * worst + worst // 2:
            over.append(used)

    rig.ledger.add_listener(look)
    came = await asyncio.gather(*(review(agent, "P-1") for _ in range(200)), return_exceptions=True)

    assert over == []
    refused = [one for one in came if isinstance(one, BudgetExceededError)]
    ruled = [one for one in came if not isinstance(one, BaseException)]
    assert len(refused) + len(ruled) == 200
    assert len(ruled) >= fits  # No false "used up" while a worst case fits.
    assert all(one.finding is Finding.GOOD for one in ruled)
    assert rig.ledger.totals().held_pico == {}


async def test_d1_one_call_left_is_one_call_made(with_budget):
    rig = with_budget(1, unit="calls")
    agent = rig.agent(attempts_max=1)

    came = await asyncio.gather(*(review(agent) for _ in range(50)), return_exceptions=True)

    assert len(rig.endpoint.asked) == 1
    assert sum(isinstance(one, BudgetExceededError) for one in came) == 49


@types.coroutine
def cut_at(coroutine, wait):
    """Run a coroutine and cancel it at its n-th wait; say whether it came so far."""
    waits, value, error = 0, None, None
    while True:
        try:
            waited = coroutine.send(value) if error is None else coroutine.throw(error)
        except StopIteration:
            return waits >= wait
        except asyncio.CancelledError:
            return True
        except QcError:
            return waits >= wait
        value = error = None
        waits += 1
        if waits == wait:
            asyncio.current_task().cancel()
        try:
            value = yield waited
        except BaseException as caught:  # noqa: BLE001  # whatever it is goes to the coroutine
            error = caught


async def _slow_answer(_request):
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return response()


TROUBLE = {
    "answered": _slow_answer,
    "prose": response(said="It looks fine to me!"),
    "refused": 401,
    "limited": 429,
    "failed": 500,
    "unreachable": httpx2.ConnectError("refused"),
    "timed out": httpx2.ReadTimeout("slow"),
    "without usage": httpx2.Response(200, json={"choices": []}),
}


def check_no_hold_without_a_reason(rig):
    """Everything put aside or announced has ended, and holds stand for what nobody knows alone."""
    rig.settle()
    facts, totals = rig.facts(), rig.ledger.totals()
    assert (totals.reserved, totals.open) == (0, 0), facts
    doubtful = sum(fact.hold.pico for fact in facts if isinstance(fact, Indeterminate))
    assert totals.held_pico.get("USD", 0) == doubtful
    begun = Counter(fact.attempt.id for fact in facts if isinstance(fact, Reserved))
    ended = Counter(
        fact.attempt_id for fact in facts if isinstance(fact, Settled | NotBilled | Indeterminate)
    )
    assert begun == ended
    assert set(begun.values()) <= {1}
    # Nothing left that was not announced, and what was announced and not sent holds nothing.
    sent = Counter(request.headers["X-QC-Attempt"] for request in rig.endpoint.asked)
    announced = {fact.attempt.id for fact in facts if isinstance(fact, Intent)}
    assert set(sent) <= announced
    assert set(sent.values()) <= {1}


async def _cut_everywhere(folder, trouble):
    wait = 0
    came_so_far = True
    while came_so_far:
        wait += 1
        rig = Rig(folder / str(wait), answer=TROUBLE[trouble])
        came_so_far = await asyncio.create_task(_run(cut_at(review(rig.agent()), wait)))
        check_no_hold_without_a_reason(rig)
        await rig.close()
    return wait


async def _run(awaitable):
    return await awaitable


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_d2_a_review_cancelled_at_any_of_its_waits_leaves_no_hold_behind(tmp_path, trouble):
    assert await _cut_everywhere(tmp_path, trouble) > 4


async def _failing(folder, trouble, lost, budget_at, wait):
    rig = Rig(folder, answer=TROUBLE[trouble])
    submitted = 0

    def fails(fact):
        nonlocal submitted
        submitted += 1
        if submitted in lost:
            return LedgerUnavailableError("the disk is full")
        if submitted == budget_at and isinstance(fact, Reserved | Intent):
            return BudgetExceededError("a window has ended meanwhile")
        return None

    rig.faulty.fails = fails
    agent = rig.agent(attempts_max=3)
    await asyncio.create_task(_run(cut_at(review(agent), wait)))
    # The disk is well again: what it did not take is tried once more, with nobody asking.
    rig.faulty.fails = lambda _fact: None
    rig.settle()
    agent.reachable()
    check_no_hold_without_a_reason(rig)
    await rig.close()


@settings(max_examples=120, deadline=None)
@given(
    trouble=st.sampled_from(sorted(TROUBLE)),
    lost=st.sets(st.integers(1, 10), max_size=4),
    budget_at=st.none() | st.integers(1, 8),
    wait=st.integers(1, 25),
)
def test_d2_whatever_fails_wherever_no_hold_is_left_behind(trouble, lost, budget_at, wait):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_failing(Path(folder), trouble, lost, budget_at, wait))


async def test_d2_an_outcome_the_disk_did_not_take_holds_nobody_up_for_good(with_budget):
    worst = worst_pico(with_budget)
    rig = with_budget(worst + worst // 2)
    agent = rig.agent(attempts_max=1)
    rig.faulty.fails = lambda fact: (
        LedgerUnavailableError("the disk is full") if isinstance(fact, Settled) else None
    )
    await review(agent)
    assert rig.ledger.budget_left_pico() < worst  # Its worst case stands in the way.
    rig.faulty.fails = lambda _fact: None

    assert not agent.reachable()  # Whoever asks this has the outcome tried again.
    rig.settle()

    assert agent.reachable()
    assert rig.ledger.totals().settled == 1
    assert rig.ledger.budget_left_pico() >= worst


async def test_d2_outcomes_that_wait_are_not_lost_with_the_next_request(rig):
    rig.faulty.fails = lambda fact: (
        LedgerUnavailableError("the disk is full") if isinstance(fact, Settled) else None
    )
    for number in range(3):
        await rig.ask(f"a{number}")
    rig.faulty.fails = lambda _fact: None

    await asyncio.create_task(_run(cut_at(rig.ask("a4"), 1)))

    rig.settle()
    assert rig.ledger.totals().settled == 3


@pytest.mark.parametrize("trouble", ["failed", "timed out", "without usage"])
async def test_d4_an_error_is_not_free(rig, trouble):
    rig.endpoint.answer = TROUBLE[trouble]

    with pytest.raises((ProviderUnavailableError, ProviderRefusedError)):
        await review(rig.agent(attempts_max=1))

    totals = rig.ledger.totals()
    assert totals.indeterminate == 1
    assert totals.held_pico["USD"] > 0
    assert totals.cost_pico == {}


# -- what a part proved to be --------------------------------------------------------------


async def test_what_a_part_proved_to_be_is_on_record_and_moves_no_money(rig):
    rig.endpoint.answer = response()
    await review(rig.agent())
    before = rig.ledger.totals()

    (entry,) = rig.ledger.submit_all([OUTCOME]).result(PATIENCE_S)

    after = rig.ledger.totals()
    assert chain.fact_of(entry) == OUTCOME
    assert (after.entries, after.attempts) == (before.entries + 1, before.attempts)
    assert (after.cost_pico, after.held_pico) == (before.cost_pico, before.held_pico)
    assert rig.ledger.verify() == after.entries
