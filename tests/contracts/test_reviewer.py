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


def make_agent(provider, ledger):
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
        new_id=lambda: f"a-{next(ids)}",
        monotonic_s=lambda: 0.0,
        retry_pause_s=0.0,
    )


REVIEWERS = {"agent": make_agent}


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
