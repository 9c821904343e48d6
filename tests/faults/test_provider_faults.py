"""A provider that is down, slow or talks nonsense: the line goes on, and no part is lost for it."""

import asyncio
import gc
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from pydantic import SecretStr

from qcnode.domain import AgentLevel, Finding
from qcnode.main import build_node
from qcnode.settings import (
    PICO_PER_MICRO,
    AgentSettings,
    BudgetSettings,
    CameraSettings,
    LineSettings,
    ModelSettings,
    NodeSettings,
    PanelSettings,
    ProviderSettings,
    Secrets,
    Settings,
)
from tests.faults.corner import check_money, check_parts, check_requests
from tests.scripted import KEY, scripted_provider

PARTS = 40
PATIENCE_S = 60


@pytest.fixture
def settings_for(tmp_path, doubtful_model):
    """Make the settings of a node that asks a provider at this address."""

    def settings_for(base_url, *, per_day_micro=None):
        of_the_day = {"name": "day", "currency": "USD", "limit_micro": per_day_micro}
        return Settings(
            node=NodeSettings(home=tmp_path),
            panel=PanelSettings(port=0),
            line=LineSettings(parts=PARTS, period_ms=25.0, gate_mm=1_500.0),
            camera=CameraSettings(defect_rate=0.4),
            model=ModelSettings(dir=doubtful_model),
            agent=AgentSettings(enabled=True, level=AgentLevel.L3, waiting_max=500),
            provider=ProviderSettings(base_url=base_url, timeout_s=0.5),
            budget=() if per_day_micro is None else (BudgetSettings(**of_the_day),),
            secrets=Secrets(provider_api_key=SecretStr(KEY)),
        )

    return settings_for


@asynccontextmanager
async def run_through(settings):
    """Run a node until all parts are through and the agent has nothing left to do."""
    node = build_node(settings)
    stop = asyncio.Event()
    running = asyncio.create_task(node.run(stop))
    try:
        async with asyncio.timeout(PATIENCE_S):
            await node.started.wait()
            await asyncio.to_thread(node.station.join, PATIENCE_S)
            await node.desk.settled()
        yield node
    finally:
        stop.set()
        await running
        await node.close()
        gc.unfreeze()  # The node froze what lives; the other tests live on.


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How the provider fails, and what its requests end as."""

    ends_as: str
    rates: dict[str, float]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(ends_as="indeterminate", rates={"timeout_rate": 1.0}),
        Fault(ends_as="indeterminate", rates={"error_rate": 1.0}),
        Fault(ends_as="indeterminate", rates={"reset_rate": 1.0}),
        Fault(ends_as="settled", rates={"prose_rate": 1.0}),
        Fault(ends_as="not_billed", rates={"limit_rate": 1.0}),
    ],
    ids=lambda fault: next(iter(fault.rates)),
)
async def test_a_provider_that_fails_leaves_every_part_to_a_person(tmp_path, settings_for, fault):
    with scripted_provider(tmp_path, **fault.rates) as provider:
        async with run_through(settings_for(provider.base_url)) as node:
            check_all_wait(node)
            check_books(node, ends_as=fault.ends_as)
            check_alarm(node)
            await check_a_person_can_rule(node)
        assert provider.requests()

    check_parts(tmp_path)
    check_requests(tmp_path)
    check_money(tmp_path)


async def test_a_provider_that_is_down_leaves_every_part_to_a_person(
    tmp_path, settings_for, free_port
):
    async with run_through(settings_for(f"http://127.0.0.1:{free_port()}")) as node:
        check_all_wait(node)
        check_books(node, ends_as="not_billed")
        check_alarm(node)
        await check_a_person_can_rule(node)

    check_parts(tmp_path)


async def test_without_a_budget_nothing_leaves(tmp_path, settings_for):
    with scripted_provider(tmp_path) as provider:
        async with run_through(settings_for(provider.base_url, per_day_micro=0)) as node:
            check_all_wait(node)
            assert node.ledger.totals().entries == 0
            await check_a_person_can_rule(node)
        assert not provider.log.exists() or provider.requests() == []

    check_parts(tmp_path)


async def test_a_budget_is_never_overdrawn_and_the_rest_waits_for_people(tmp_path, settings_for):
    with scripted_provider(tmp_path) as provider:
        unlimited = build_node(settings_for(provider.base_url))
        review_pico_max = unlimited.agent.worst().hold.pico
        await unlimited.close()
        # Enough to ask, and too little to go on when something is spent.
        per_day_micro = review_pico_max // PICO_PER_MICRO + 1

        async with run_through(
            settings_for(provider.base_url, per_day_micro=per_day_micro)
        ) as node:
            counts, totals = node.journal.counts(), node.ledger.totals()
            assert totals.settled > 0
            assert counts.waiting > 0
            assert counts.escalated == counts.ruled + counts.waiting
            spent = totals.cost_pico.get("USD", 0) + totals.held_pico.get("USD", 0)
            assert 0 < spent <= per_day_micro * PICO_PER_MICRO
            assert node.ledger.budget_left_pico() < review_pico_max

    check_parts(tmp_path)
    check_requests(tmp_path)
    check_money(tmp_path)


def check_all_wait(node):
    """Every part is through, and everything undecided is on the desk for a person."""
    counts = node.journal.counts()
    assert counts.parts == PARTS
    assert counts.escalated > 5
    assert (counts.waiting, counts.ruled) == (counts.escalated, 0)
    waiting = node.desk.waiting()
    assert len(waiting) == counts.escalated
    assert not any(one.with_agent for one in waiting)


def check_books(node, *, ends_as):
    """Every request has its end in the books, and the chain holds."""
    totals = node.ledger.totals()
    ends = dict.fromkeys(("settled", "not_billed", "indeterminate"), 0)
    assert totals.attempts > 0
    assert totals.open == 0
    assert {end: getattr(totals, end) for end in ends} == ends | {ends_as: totals.attempts}
    assert totals.reserved == 0
    # Reserved, announced, ended.
    assert node.ledger.verify() == totals.entries == 3 * totals.attempts


def check_alarm(node):
    """The board says that the provider fails, and that parts can be judged all the same."""
    board = {health.component: health for health in node.health.all()}
    assert not board["provider"].ok
    assert not board["provider"].needed
    assert board["journal"].ok
    assert board["ledger"].ok


async def check_a_person_can_rule(node):
    first = node.desk.waiting()[0].escalation
    ruling = await node.desk.settle(first.id, Finding.DEFECTIVE, who="a person")
    assert ruling.binding
    assert first.id not in {waiting.escalation.id for waiting in node.desk.waiting()}
