"""The router: a reviewer over several agents, each of which asks one provider.

Who is asked is decided by `routing`, from what each may be sent, whether it answers, what
is left to pay it with, and how right it was on this line. Who was chosen, why, why not the
others, and under which leave the picture goes, is on record before anything is prepared.
With one provider it is that one, and everything else is as that agent says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from qcbridge.agent import COMPONENT
from qcbridge.routing import Candidate, Pick, RoutingRule, pick, second
from qcnode.domain import Choice, Finding
from qcnode.errors import (
    BudgetExceededError,
    EgressDeniedError,
    LedgerUnavailableError,
    ProviderRefusedError,
    ProviderUnavailableError,
    QcError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future
    from datetime import datetime

    from qcbridge.pricing.cheap_hours import CheapHours
    from qcnode.domain import Escalation, Opinion
    from qcnode.health import HealthBoard
    from qcnode.money import WorstCase
    from qcnode.ports import Reviewer
    from qcnode.trust import Calibration

log = structlog.get_logger()

RECORD_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """How right somebody was on this line; `worth` is what its stated confidence means."""

    right: int = 0
    wrong: int = 0
    worth: Calibration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One provider: its agent, and what is to be known of it before it is asked.

    `against` says why it may not be asked just now, and `permit` under which leave it is.
    `health` is its agent's own board, so that of several each has its say.
    """

    provider: str
    model: str
    agent: Reviewer
    permit: str
    health: HealthBoard
    against: Callable[[], str | None] = lambda: None
    cheapest: Callable[[datetime, datetime], CheapHours | None] = lambda _from, _to: None
    """When a question begun between two instants costs least."""

    @property
    def name(self) -> str:
        """Provider and model, which no two have in common."""
        return f"{self.provider}/{self.model}"

    @property
    def who(self) -> str:
        """What its rulings are signed with."""
        return f"agent:{self.model}"


class Router:
    """Asks the cheapest provider that has proved good enough, and others where it pays.

    `fits` says whether the budgets have room for a worst case, `known` how right each was,
    by the name of its rulings, and `coin` draws a number from 0 to 1. `record` puts a choice
    on record; without it none is kept.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        rule: RoutingRule,
        health: HealthBoard,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        coin: Callable[[], float],
        record: Callable[[Choice], Future[bool]] | None,
        fits: Callable[[WorstCase], bool] = lambda _: True,
        known: Callable[[], Mapping[str, Known]] = dict,
    ) -> None:
        self._routes = {route.name: route for route in routes}
        self._rule = rule
        self._health = health
        self._now = now
        self._new_id = new_id
        self._coin = coin
        self._record = record
        self._fits = fits
        self._known = known
        self._report()

    async def review(self, escalation: Escalation, picture: bytes, heat: bytes | None) -> Opinion:
        """Ask whoever is best asked, the next where that one is away, and another if it pays."""
        asked: list[str] = []
        coin = self._coin()
        while True:
            found = pick(self._candidates(asked), self._rule, coin=coin)
            if found.candidate is None:
                raise self._nobody(found)
            asked.append(found.candidate.name)
            try:
                opinion = await self._ask(found, escalation, picture, heat)
            except (ProviderUnavailableError, BudgetExceededError) as error:
                if len(asked) == len(self._routes):
                    raise
                log.info("asking another provider", escalation=escalation.id, reason=str(error))
                coin = 1.0  # Whoever stands in for another is no trial.
                continue
            return await self._second(opinion, asked, escalation, picture, heat)

    def reachable(self) -> bool:
        """Say whether anybody may be asked and answers just now."""
        free = [route for route in self._routes.values() if route.against() is None]
        if not free:
            self._report()  # A leave may have ended since somebody was last asked.
        return any(route.agent.reachable() for route in free)

    def worst(self) -> WorstCase | None:
        """Return the least worst case of those that may be asked; None where none has a price."""
        routes = list(self._routes.values())
        open_now = [route for route in routes if route.against() is None] or routes
        found = [one for route in open_now if (one := route.agent.worst()) is not None]
        if len({one.hold.currency for one in found}) > 1:
            return found[0]  # As declared, where prices cannot be compared.
        return min(found, key=lambda one: one.hold.pico, default=None)

    def cheapest(self, earliest: datetime, latest: datetime) -> datetime | None:
        """Return when to begin a question that can wait, so that it costs least.

        None where no time between the two has a price with anybody who may be asked.
        """
        hours = [
            found
            for route in self._routes.values()
            if route.against() is None and (found := route.cheapest(earliest, latest)) is not None
        ]
        if len({found.cost.currency for found in hours}) > 1:
            return hours[0].start  # As declared, where prices cannot be compared.
        best = min(hours, key=lambda found: (found.cost.pico, found.start), default=None)
        return None if best is None else best.start

    async def close(self) -> None:
        """Let go of connections; closing twice is harmless."""
        for route in self._routes.values():
            await route.agent.close()

    def _candidates(self, asked: Sequence[str] = ()) -> list[Candidate]:
        known = self._known()
        return [
            self._candidate(route, known.get(route.who, Known()), asked)
            for route in self._routes.values()
        ]

    def _candidate(self, route: Route, known: Known, asked: Sequence[str]) -> Candidate:
        worst = route.agent.worst()
        against = route.against()
        if route.name in asked:
            against = "it was asked already"
        elif against is None and not route.agent.reachable():
            against = "it does not answer just now, or is stopped"
        elif against is None and worst is not None and not self._fits(worst):
            against = "the budgets have no room for its worst case"
        return Candidate(
            name=route.name,
            price=None if worst is None else worst.hold,
            against=against,
            right=known.right,
            wrong=known.wrong,
        )

    async def _ask(
        self, found: Pick, escalation: Escalation, picture: bytes, heat: bytes | None
    ) -> Opinion:
        assert found.candidate is not None  # noqa: S101  # checked by whoever calls
        route = self._routes[found.candidate.name]
        await self._put_on_record(found, route, escalation)
        try:
            return await route.agent.review(escalation, picture, heat)
        finally:
            self._report()

    async def _second(
        self,
        first: Opinion,
        asked: list[str],
        escalation: Escalation,
        picture: bytes,
        heat: bytes | None,
    ) -> Opinion:
        """Return the opinion that counts: a second one, where it was worth asking for."""
        if self._rule.error_cost_micro is None:
            return first
        right = self._chance(first, self._routes[asked[-1]])
        found = second(self._candidates(asked), asked, self._rule, right=right)
        if found.candidate is None:
            return first
        try:
            return await self._ask(found, escalation, picture, heat)
        except QcError as error:
            log.info("no second opinion", escalation=escalation.id, reason=str(error))
            return first

    def _chance(self, opinion: Opinion, route: Route) -> float:
        """Return the chance that an opinion is right; one that takes no side helps nobody."""
        if opinion.finding is Finding.UNSURE:
            return 0.0
        known = self._known().get(route.who, Known())
        worth = None if known.worth is None else known.worth(opinion.confidence)
        settled = known.right + known.wrong
        return (known.right + 1) / (settled + 2) if worth is None else worth

    async def _put_on_record(self, found: Pick, route: Route, escalation: Escalation) -> None:
        if self._record is None:
            return
        choice = Choice(
            id=self._new_id(),
            escalation_id=escalation.id,
            provider=route.provider,
            model=route.model,
            reason=found.reason,
            passed_over=found.passed_over,
            permit=route.permit,
            at=self._now(),
        )
        try:
            async with asyncio.timeout(RECORD_TIMEOUT_S):
                await asyncio.shield(asyncio.wrap_future(self._record(choice)))
        except TimeoutError as error:
            raise LedgerUnavailableError(
                f"the disk took no record in {RECORD_TIMEOUT_S:g} s, so nobody is asked:"
                " check the disk"
            ) from error

    def _nobody(self, found: Pick) -> QcError:
        words = f"{found.reason}: {'; '.join(found.passed_over)}"
        refused = [route.against() for route in self._routes.values()]
        if all(refused):
            return EgressDeniedError(words if len(refused) > 1 else str(refused[0]))
        if all(one.against is None for one in self._candidates()):
            return ProviderRefusedError(words)
        return ProviderUnavailableError(words)

    def _report(self) -> None:
        """Say on the node's board how the providers are, taken together."""
        said = [(route, _word(route)) for route in self._routes.values()]
        wrong = [f"{route.name}: {words}" for route, (ok, words) in said if not ok]
        ok = len(wrong) < len(said)
        if len(said) == 1:
            self._health.report(COMPONENT, ok=ok, words=said[0][1][1])
        elif wrong:
            self._health.report(COMPONENT, ok=ok, words="; ".join(wrong))
        else:
            self._health.report(COMPONENT, ok=True, words=f"{len(said)} providers answer")


def _word(route: Route) -> tuple[bool, str]:
    against = route.against()
    if against is not None:
        return False, against
    found = next((one for one in route.health.all() if one.component == COMPONENT), None)
    return (True, "not asked yet") if found is None else (found.ok, found.words)
