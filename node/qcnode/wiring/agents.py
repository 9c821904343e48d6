"""Builds whoever is asked about undecided parts, from the settings, with prices and budgets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import httpx2
import structlog

from qcbridge.agent import Agent
from qcbridge.meter import Meter
from qcbridge.prices import PriceBook, open_book
from qcbridge.providers.openai_chat import OpenAIChatProvider
from qcbridge.transport import MeteringTransport
from qcnode.books.purse import PriceAge
from qcnode.errors import (
    BudgetExceededError,
    SettingsError,
    UnpricedError,
)
from qcnode.health import HealthBoard
from qcnode.wiring.machine import LOOPBACK, new_epoch, now

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date, datetime

    from qcnode.books.budgets import Budget
    from qcnode.money import CostCentre, WorstCase
    from qcnode.ports import Ledger
    from qcnode.settings import Settings


log = structlog.get_logger()

SCRIPTED = "scripted"
"""What the scripted provider is called in settings and price book."""
REVIEW_SPARE_S = 5.0


def build_agent(
    settings: Settings, *, ledger: Ledger, health: HealthBoard, new_id: Callable[[], str]
) -> Agent | None:
    """Build the agent with its provider, its meter and its prices; None where none is wanted."""
    if not settings.agent.enabled:
        return None
    provider = settings.provider
    check_provider(settings)
    prices = prices_of(settings)
    meter = Meter(
        ledger=ledger, prices=prices, health=health, now=now, answer_timeout_s=provider.timeout_s
    )
    transport = MeteringTransport(
        httpx2.AsyncHTTPTransport(retries=0), meter=meter, monotonic_s=time.monotonic
    )
    return Agent(
        provider=OpenAIChatProvider(
            name=provider.name,
            model=provider.model,
            base_url=provider.base_url,
            api_key=settings.secrets.provider_api_key,
            transport=transport,
            timeout_s=provider.timeout_s,
            output_tokens_max=provider.output_tokens_max,
        ),
        meter=meter,
        product=settings.agent.product,
        defect_classes=settings.agent.defect_classes,
        image_side_max_px=provider.image_side_max_px,
        attempts_max=settings.agent.attempts_max,
        review_timeout_s=(provider.timeout_s + REVIEW_SPARE_S) * settings.agent.attempts_max,
        health=health,
        new_id=new_id,
        monotonic_s=time.monotonic,
        centre=settings.centre(),
        level=settings.agent.level.value,
    )


def worst_request(settings: Settings) -> WorstCase | None:
    """Return the most that one request may need; None when none is made, or it has no price."""
    agent = build_agent(
        settings,
        # Nothing is asked, so there is nothing to put on record.
        ledger=cast("Ledger", None),
        health=HealthBoard(now),
        new_id=new_epoch,
    )
    return None if agent is None else agent.worst()


def check_provider(settings: Settings) -> None:
    """Raise `SettingsError` where a provider beyond this machine has no key, or no name."""
    host = urlsplit(settings.provider.base_url).hostname
    if settings.provider.name == SCRIPTED and host not in LOOPBACK:
        raise SettingsError(
            f"provider.name = {SCRIPTED!r} for {settings.provider.base_url!r}: everything would say"
            " that nobody is charged; give it the name its price file has"
        )
    if settings.secrets.provider_api_key is None and host not in LOOPBACK:
        raise SettingsError(
            f"provider.base_url = {settings.provider.base_url!r}: there is no key for it; set"
            " QCNODE_PROVIDER_API_KEY, or QCNODE_PROVIDER_API_KEY_FILE"
        )


def price_age(settings: Settings) -> PriceAge | None:
    """Return how old the prices in force may be; those of the script never grow old."""
    provider, metering = settings.provider, settings.metering
    if not settings.agent.enabled or provider.name == SCRIPTED:
        return None
    prices = prices_of(settings)
    return PriceAge(
        checked_on=lambda: checked_on(prices, provider.name, provider.model, now()),
        days_max=metering.prices_age_max_days,
        capped=metering.stale_prices == "calls",
    )


def checked_on(prices: PriceBook, provider: str, model: str, at: datetime) -> date | None:
    """Return when the oldest of the prices in force was last checked; None without a price."""
    try:
        return min(row.checked_at for row in prices.rows_in_force(provider, model, at))
    except UnpricedError:
        return None


def prices_of(settings: Settings) -> PriceBook:
    """Open the price book in the settings."""
    return open_book(settings.provider.prices, settings.provider.prices_key)


def warn_of_budgets(settings: Settings, agent: Agent | None) -> None:
    """Say in the log which budgets let not even one question pass."""
    worst = None if agent is None else agent.worst()
    if worst is None:
        return
    for budget in settings.budgets():
        if words := allows_nothing(budget, settings.centre(), worst):
            log.warning("this budget allows no question at all", budget=budget.name, why=words)


def allows_nothing(budget: Budget, centre: CostCentre, worst: WorstCase) -> str | None:
    """Say why a budget lets not even the first request of a window pass; None if it does."""
    if not budget.covers(centre):
        return None
    try:
        amount = budget.amount(worst.hold, worst.usage)
    except BudgetExceededError as error:
        return str(error)
    if amount <= budget.limit:
        return None
    return f"one request may need {budget.words(amount)}, and it has {budget.words(budget.limit)}"
