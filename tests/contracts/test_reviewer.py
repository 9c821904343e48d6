"""What everybody who is asked about a part keeps to, whoever it is."""

import itertools
from datetime import UTC, datetime, timedelta

import httpx2
import numpy as np
import pytest
from pydantic import SecretStr

from qcbridge.agent import Agent
from qcbridge.meter import Meter
from qcbridge.prices import PriceBook
from qcbridge.providers.openai_chat import OpenAIChatProvider
from qcbridge.router import Route, Router
from qcbridge.routing import RoutingRule
from qcbridge.settled import Settled, SettledFirst
from qcbridge.transport import MeteringTransport
from qcnode.books.ledger import SqliteLedger
from qcnode.domain import Escalation, Finding
from qcnode.errors import (
    BudgetExceededError,
    LedgerUnavailableError,
    ProviderRefusedError,
    ProviderUnavailableError,
    UnpricedError,
)
from qcnode.health import HealthBoard
from qcnode.picture import encode_png
from tests.scripted import KEY, scripted_provider

NOW = datetime(2026, 11, 2, 9, tzinfo=UTC)
PIXELS = np.full((300, 400, 3), 90, np.uint8)
HEAT = np.zeros((30, 40, 3), np.uint8)
HEAT[10:12, 20:24] = 255
ERRORS = (
    ProviderUnavailableError,
    ProviderRefusedError,
    BudgetExceededError,
    UnpricedError,
    LedgerUnavailableError,
)


def make_escalation(part_id):
    return Escalation(
        id=f"e-{part_id}",
        inspection_id=f"i-{part_id}",
        part_id=part_id,
        reason="between the limits",
        score=0.5,
        opened_at=NOW,
        expires_at=NOW + timedelta(hours=1),
    )


def make_agent(provider, ledger, new_id=None):
    ids = itertools.count(1)
    health = HealthBoard(lambda: NOW)
    meter = Meter(
        ledger=ledger,
        prices=PriceBook.load(),
        health=health,
        now=lambda: NOW,
        answer_timeout_s=10.0,
    )
    transport = MeteringTransport(httpx2.AsyncHTTPTransport(), meter=meter, monotonic_s=lambda: 0.0)
    client = OpenAIChatProvider(
        name="scripted",
        model="scripted-provider",
        base_url=provider.base_url,
        api_key=SecretStr(KEY),
        transport=transport,
        timeout_s=10.0,
        output_tokens_max=300,
    )
    return Agent(
        provider=client,
        meter=meter,
        product="a cap",
        defect_classes=("dent",),
        image_side_max_px=448,
        attempts_max=2,
        review_timeout_s=30.0,
        health=health,
        new_id=new_id or (lambda: f"a-{next(ids)}"),
        monotonic_s=lambda: 0.0,
        retry_pause_s=0.0,
    )


def make_router(provider, ledger):
    """One provider behind the router; the agents' errors are the router's."""
    health, ids = HealthBoard(lambda: NOW), itertools.count(1)
    route = Route(
        provider="scripted",
        model="scripted-provider",
        agent=make_agent(provider, ledger),
        permit="on this machine",
        health=health,
    )
    return Router(
        [route],
        rule=RoutingRule(),
        health=health,
        now=lambda: NOW,
        new_id=lambda: f"c-{next(ids)}",
        coin=lambda: 1.0,
        record=None,
    )


def make_router_of_two(provider, ledger):
    """Two ways to one provider behind the router, so that the second stands in for the first."""
    health, ids = HealthBoard(lambda: NOW), itertools.count(1)
    routes = [
        Route(
            provider=name,
            model="scripted-provider",
            agent=make_agent(provider, ledger, new_id=lambda: f"a-{next(ids)}"),
            permit="on this machine",
            health=HealthBoard(lambda: NOW),
        )
        for name in ("one", "other")
    ]
    return Router(
        routes,
        rule=RoutingRule(),
        health=health,
        now=lambda: NOW,
        new_id=lambda: f"c-{next(ids)}",
        coin=lambda: 1.0,
        record=None,
    )


class NoJournal:
    """A journal in which nothing has happened yet."""

    def cursor(self, _):
        return 0

    def read(self, *_):
        return []


def make_settled_first(provider, ledger):
    """Whoever answers from settled cases first, and finds none."""
    return SettledFirst(make_agent(provider, ledger), Settled(NoJournal()), alike=True)


REVIEWERS = {
    "agent": make_agent,
    "router": make_router,
    "router of two": make_router_of_two,
    "settled first": make_settled_first,
}


@pytest.fixture
def ledger(tmp_path):
    ledger = SqliteLedger(
        tmp_path / "ledger.db", now_us=lambda: 1_793_000_000_000_000, new_epoch=lambda: "e" * 32
    )
    yield ledger
    ledger.close()


@pytest.fixture(params=REVIEWERS)
def make_reviewer(request):
    return REVIEWERS[request.param]


async def test_a_part_gets_an_opinion_that_says_whose_it_is(make_reviewer, tmp_path, ledger):
    with scripted_provider(tmp_path) as provider:
        provider.parts(P_1="dent", P_2="good")
        reviewer = make_reviewer(provider, ledger)
        picture, heat = encode_png(PIXELS), encode_png(HEAT)
        one = await reviewer.review(make_escalation("P-1"), picture, heat)
        other = await reviewer.review(make_escalation("P-2"), picture, None)
        await reviewer.close()

    assert (one.finding, other.finding) == (Finding.DEFECTIVE, Finding.GOOD)
    assert one.who
    assert one.reason
    assert one.confidence is None or 0 <= one.confidence <= 1


@pytest.mark.parametrize(
    "trouble",
    [
        {"error_rate": 1.0},
        {"limit_rate": 1.0},
        {"reset_rate": 1.0},
        {"prose_rate": 1.0},
        {"api_key": "another"},
    ],
)
async def test_whatever_fails_is_one_of_the_errors_the_port_names(
    make_reviewer, tmp_path, ledger, trouble
):
    with scripted_provider(tmp_path, **trouble) as provider:
        reviewer = make_reviewer(provider, ledger)
        with pytest.raises(ERRORS) as raised:
            await reviewer.review(make_escalation("P-1"), encode_png(PIXELS), None)
        await reviewer.close()

    assert "\n" not in str(raised.value)


async def test_a_damaged_picture_or_map_is_one_of_those_errors_too(make_reviewer, tmp_path, ledger):
    with scripted_provider(tmp_path) as provider:
        reviewer = make_reviewer(provider, ledger)
        for picture, heat in ((b"", None), (encode_png(PIXELS), b"no map")):
            with pytest.raises(ERRORS):
                await reviewer.review(make_escalation("P-1"), picture, heat)
        await reviewer.close()


async def test_nobody_there_is_unavailable(make_reviewer, tmp_path, ledger):
    with scripted_provider(tmp_path) as provider:
        reviewer = make_reviewer(provider, ledger)
    # The server has gone; its address has not.
    with pytest.raises(ProviderUnavailableError):
        await reviewer.review(make_escalation("P-1"), encode_png(PIXELS), None)
    await reviewer.close()


async def test_it_can_be_asked_for_its_worst_case_and_closed_twice(make_reviewer, tmp_path, ledger):
    with scripted_provider(tmp_path) as provider:
        reviewer = make_reviewer(provider, ledger)
        worst = reviewer.worst()
        assert worst is None or worst.hold.pico > 0
        assert reviewer.reachable()
        await reviewer.close()
        await reviewer.close()
