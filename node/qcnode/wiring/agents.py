"""Builds whoever is asked about undecided parts, from the settings, with prices and budgets."""

from __future__ import annotations

import ssl
import time
from datetime import timedelta
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import httpx2
import structlog

from qcbridge.agent import Agent
from qcbridge.egress import EgressRule, Permit, refusal, same_origin
from qcbridge.evidence import FORMULAS
from qcbridge.meter import Meter
from qcbridge.prices import STANDARD, PriceBook, Terms, open_book
from qcbridge.pricing.cheap_hours import cheapest_window
from qcbridge.providers.http import endpoint
from qcbridge.providers.protocols import provider_class
from qcbridge.rechecks import Rechecks
from qcbridge.router import Known, Route, Router
from qcbridge.routing import RoutingRule
from qcbridge.transport import MeteringTransport
from qcnode.books.purse import PriceAge
from qcnode.errors import (
    BudgetExceededError,
    SettingsError,
    UnpricedError,
)
from qcnode.health import HealthBoard
from qcnode.wiring.machine import LOOPBACK, jitter, new_epoch, now

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future
    from datetime import date, datetime

    from qcbridge.agent import Means
    from qcbridge.pricing.cheap_hours import CheapHours
    from qcbridge.providers.http import HttpProvider
    from qcnode.books.budgets import Budget
    from qcnode.books.journal import Journal
    from qcnode.books.ledger import SqliteLedger
    from qcnode.domain import Choice
    from qcnode.money import CostCentre, WorstCase
    from qcnode.ports import Ledger, Stops
    from qcnode.settings import ProviderSettings, Settings
    from qcnode.warrant import Record


log = structlog.get_logger()

SCRIPTED = "scripted"
"""What the scripted provider is called in settings and price book."""
UNLISTED = frozenset({SCRIPTED, "local"})
"""Whose prices are of no vendor's list, so that nobody can look whether they still hold."""
REVIEW_SPARE_S = 5.0


def build_agent(
    settings: Settings,
    *,
    ledger: SqliteLedger,
    health: HealthBoard,
    new_id: Callable[[], str],
    means: Means | None = None,
    stops: Stops | None = None,
    record: Callable[[Choice], Future[bool]] | None = None,
    records: Callable[[], Mapping[str, Record]] = dict,
) -> Router | None:
    """Build whoever is asked: a router over an agent for each provider; None where none is wanted.

    `record` puts on record who was chosen for a part, and why. `records` is what agents have
    earned here, by the name of their rulings.
    """
    if not settings.agent.enabled:
        return None
    routes = [
        _route(settings, one, ledger=ledger, health=health, new_id=new_id, means=means, stops=stops)
        for one in settings.provider
    ]
    centre = settings.centre()

    def known() -> dict[str, Known]:
        return {
            who: Known(right=one.merit.right, wrong=one.merit.wrong, worth=one.worth)
            for who, one in records().items()
        }

    return Router(
        routes,
        rule=RoutingRule(
            floor=settings.routing.accuracy_floor,
            trial_share=settings.routing.trial_share,
            error_cost_micro=settings.routing.error_cost_micro,
        ),
        health=health,
        now=now,
        new_id=new_id,
        coin=jitter,
        record=record,
        fits=lambda worst: _fits(ledger, centre, worst),
        known=known,
    )


def _route(
    settings: Settings,
    one: ProviderSettings,
    *,
    ledger: SqliteLedger,
    health: HealthBoard,
    new_id: Callable[[], str],
    means: Means | None,
    stops: Stops | None,
) -> Route:
    check_provider(settings, one)
    meter = build_meter(one, ledger=ledger, health=health)
    own = HealthBoard(now)
    agent = Agent(
        provider=build_provider(settings, one, meter=meter, stops=stops),
        meter=meter,
        product=settings.agent.product,
        defect_classes=settings.agent.defect_classes,
        image_side_max_px=one.image_side_max_px,
        attempts_max=settings.agent.attempts_max,
        review_timeout_s=(one.timeout_s + REVIEW_SPARE_S) * settings.agent.attempts_max,
        health=own,
        new_id=new_id,
        monotonic_s=time.monotonic,
        centre=settings.centre(),
        level=settings.agent.level.value,
        region=one.region,
        means=means,
        stops=stops,
    )
    permit, rule = Permit.of(one), EgressRule.of(settings.egress)
    prices = prices_of(one)
    return Route(
        provider=one.name,
        model=one.model,
        agent=agent,
        permit=permit.words(),
        health=own,
        against=lambda: refusal(permit, rule, today=now().date()),
        cheapest=lambda earliest, latest: _cheapest(one, prices, agent, earliest, latest),
    )


def _cheapest(
    one: ProviderSettings, prices: PriceBook, agent: Agent, earliest: datetime, latest: datetime
) -> CheapHours | None:
    """Return when one request costs least; None where it has no price, or no longer fits."""
    worst = agent.worst()
    if worst is None:
        return None
    try:
        return cheapest_window(
            prices,
            worst.usage,
            one.name,
            one.model,
            earliest=earliest,
            latest=latest,
            duration=timedelta(seconds=one.timeout_s),
            terms=Terms(region=one.region) if one.region else STANDARD,
        )
    except (UnpricedError, ValueError):
        return None


def _fits(ledger: SqliteLedger, centre: CostCentre, worst: WorstCase) -> bool:
    """Say whether every budget has room for a worst case; the ledger has the last word."""
    try:
        return all(
            state.budget.amount(worst.hold, worst.usage) <= state.left
            for state in ledger.budgets()
            if state.budget.covers(centre)
        )
    except BudgetExceededError:  # Of another currency.
        return False


def build_meter(one: ProviderSettings, *, ledger: Ledger, health: HealthBoard) -> Meter:
    """Build what puts the requests to a provider on record, at its prices."""
    return Meter(
        ledger=ledger,
        prices=prices_of(one),
        health=health,
        now=now,
        answer_timeout_s=one.timeout_s,
    )


def build_provider(
    settings: Settings, one: ProviderSettings, *, meter: Meter, stops: Stops | None = None
) -> HttpProvider:
    """Build the client of a provider, over a transport that knows what may leave for it."""
    permit, rule = Permit.of(one), EgressRule.of(settings.egress)
    scopes = (f"provider:{one.name}", f"agent:{one.model}")

    def forbids(url: httpx2.URL) -> str | None:
        if not same_origin(one.base_url, url):
            return f"nothing is sent to {url.host}: {one.name} is at {one.base_url}"
        if stops is not None and stops.stopped(*scopes):
            return f"nothing is sent to {one.name}: people have stopped it"
        return refusal(permit, rule, today=now().date())

    transport = MeteringTransport(
        httpx2.AsyncHTTPTransport(retries=0, verify=_trusted(one)),
        meter=meter,
        monotonic_s=time.monotonic,
        forbids=forbids,
    )
    return provider_class(one.protocol, one.module)(
        name=one.name,
        model=one.model,
        base_url=one.base_url,
        api_key=settings.key_of(one),
        transport=transport,
        timeout_s=one.timeout_s,
        output_tokens_max=one.output_tokens_max,
        image_formula=one.image_tokens,
        answer_format=one.answer_format,
        max_tokens_key=one.max_tokens_key,
    )


def _trusted(one: ProviderSettings) -> ssl.SSLContext | bool:
    if one.ca_file is None:
        return True  # The authorities that are known everywhere.
    try:
        return ssl.create_default_context(cafile=one.ca_file)
    except OSError as error:
        raise SettingsError(
            f"provider.ca_file = {str(one.ca_file)!r}: no certificates in it ({error})"
        ) from error


def build_rechecks(
    settings: Settings, agent: Router | None, *, journal: Journal
) -> Rechecks | None:
    """Build what puts audited parts to the agent in the cheap hours, where that is wanted."""
    if agent is None or not settings.routing.recheck_audits:
        return None
    within = timedelta(hours=settings.routing.recheck_within_h)
    return Rechecks(journal, agent, within=within, now=now)


def worst_request(settings: Settings) -> WorstCase | None:
    """Return the most that one request may need; None when none is made, or it has no price."""
    agent = build_agent(
        settings,
        # Nothing is asked, so there is nothing to put on record.
        ledger=cast("SqliteLedger", None),
        health=_Unheard(now),
        new_id=new_epoch,
    )
    return None if agent is None else agent.worst()


class _Unheard(HealthBoard):
    """A board nobody reads: who only wants a figure is told nothing in the log."""

    def report(self, component: str, *, ok: bool, words: str, needed: bool = False) -> None:
        """Let it pass."""


def check_provider(settings: Settings, one: ProviderSettings) -> None:
    """Raise `SettingsError` for an address, a name or a formula that is none, or no key."""
    if one.image_tokens not in FORMULAS:
        raise SettingsError(
            f"provider.image_tokens = {one.image_tokens!r}: no such formula; there are:"
            f" {', '.join(FORMULAS)}"
        )
    endpoint(one.base_url, version="", path="")
    host = urlsplit(one.base_url).hostname
    if one.name == SCRIPTED and host not in LOOPBACK:
        raise SettingsError(
            f"provider.name = {SCRIPTED!r} for {one.base_url!r}: everything would say"
            " that nobody is charged; give it the name its price file has"
        )
    if settings.key_of(one) is None and host not in LOOPBACK:
        raise SettingsError(
            f"provider.base_url = {one.base_url!r}: there is no key for it; name a file with it in"
            " provider.api_key_file, or set QCNODE_PROVIDER_API_KEY or QCNODE_PROVIDER_API_KEY_FILE"
        )


def price_age(settings: Settings) -> PriceAge | None:
    """Return how old the prices in force may be; those of no vendor never grow old."""
    metering = settings.metering
    listed = [one for one in settings.provider if one.name not in UNLISTED]
    if not settings.agent.enabled or not listed:
        return None
    books = [(one, prices_of(one)) for one in listed]

    def oldest() -> date | None:
        checked = [checked_on(book, one.name, one.model, now()) for one, book in books]
        return min((day for day in checked if day is not None), default=None)

    return PriceAge(
        checked_on=oldest,
        days_max=metering.prices_age_max_days,
        capped=metering.stale_prices == "calls",
    )


def checked_on(prices: PriceBook, provider: str, model: str, at: datetime) -> date | None:
    """Return when the oldest of the prices in force was last checked; None without a price."""
    try:
        return min(row.checked_at for row in prices.rows_in_force(provider, model, at))
    except UnpricedError:
        return None


def prices_of(one: ProviderSettings) -> PriceBook:
    """Open the price book of a provider."""
    return open_book(one.prices, one.prices_key)


def warn_of_budgets(settings: Settings, agent: Router | None) -> None:
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
