"""Where undecided parts are ruled on, by agent or operator, or by the clock.

The desk reads the journal like anybody else: each part in the divert lane becomes one
escalation, each escalation ends in one binding ruling, and each ruling is
told to the line. All three are records first, so a restart goes on where the disk
says. Runs in one event loop; the line never waits for it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import structlog

from qcnode.domain import (
    Action,
    AgentLevel,
    Box,
    Decider,
    Disposition,
    Escalation,
    Fault,
    Finding,
    Inspection,
    ReviewBounds,
    Ruling,
    Verdict,
)
from qcnode.errors import (
    BudgetExceededError,
    JournalUnavailableError,
    LedgerUnavailableError,
    LineUnavailableError,
    ProviderRefusedError,
    ProviderUnavailableError,
    RulingError,
    UnpricedError,
)
from qcnode.evidence import find_box
from qcnode.policy import authorize, choose_decider, disposition_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from numpy.typing import NDArray

    from qcnode.books.journal import Journal
    from qcnode.domain import Opinion
    from qcnode.health import HealthBoard
    from qcnode.ports import Ledger, Line, Reviewer

log = structlog.get_logger()

BETWEEN_LIMITS = "the score lies between the limits"
READ_MAX = 200
TICK_S = 0.5
OFFERS_MAX = 3
"""How often one part is put to the agent before it waits for a person alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskRules:
    """What the line chose beforehand about asking."""

    level: AgentLevel
    workers: int
    waiting_max: int
    ruling_timeout: timedelta
    on_timeout: Disposition


@dataclass(slots=True, kw_only=True)
class WaitingEscalation:
    """An escalation on the desk: whose turn it is, and what was proposed."""

    escalation: Escalation
    proposal: Ruling | None = None
    with_agent: bool = False
    settling: bool = False
    offers: int = 0


class Desk:
    """Open escalations, who rules on them, and what a ruling changes."""

    def __init__(
        self,
        *,
        journal: Journal,
        line: Line,
        reviewer: Reviewer | None,
        ledger: Ledger,
        rules: DeskRules,
        health: HealthBoard,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._journal = journal
        self._line = line
        self._reviewer = reviewer
        self._ledger = ledger
        self._rules = rules
        self._health = health
        self._now = now
        self._new_id = new_id
        self._open: dict[str, WaitingEscalation] = {}
        self._for_agent: asyncio.Queue[str] = asyncio.Queue(maxsize=rules.waiting_max)
        self._news = asyncio.Event()
        self._draining = False

    async def run(self) -> None:
        """Work until cancelled. What is unfinished then is found again in the journal."""
        loop = asyncio.get_running_loop()
        self._journal.add_listener(lambda: _call(loop, self._news.set))
        for escalation, proposal in await asyncio.to_thread(self._journal.open_escalations):
            self._open[escalation.id] = WaitingEscalation(escalation=escalation, proposal=proposal)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_journal())
            if self._reviewer is not None:
                for _ in range(self._rules.workers):
                    tasks.create_task(self._ask_agent(self._reviewer))

    def waiting(self) -> list[WaitingEscalation]:
        """Return what waits for a ruling, oldest first."""
        return sorted(self._open.values(), key=lambda waiting: waiting.escalation.opened_at)

    def stop_asking(self) -> None:
        """Put no more parts to the agent; those already asked about are waited for."""
        self._draining = True

    def asking(self) -> int:
        """Return how many parts are with the agent or in line for it."""
        return sum(waiting.with_agent for waiting in self._open.values())

    async def settled(self) -> None:
        """Wait until every inspection so far has been looked at and nothing waits for the agent.

        Parts that wait for a person do not count. Give this a timeout.
        """
        while True:
            behind = await asyncio.to_thread(self._unread)
            if not behind and not self._open_to_agent():
                return
            await asyncio.sleep(TICK_S / 5)

    async def settle(
        self,
        escalation_id: str,
        finding: Finding,
        *,
        who: str,
        defect_class: str | None = None,
        reason: str = "",
    ) -> Ruling:
        """Settle an escalation by hand; `unsure` is put on record and leaves it open.

        Raises `RulingError` when there is nothing to settle under this id any more.
        """
        waiting = self._open.get(escalation_id)
        if waiting is None or waiting.settling:
            raise RulingError(f"{escalation_id}: this part is not waiting, or has been ruled on")
        disposition = disposition_of(finding)
        ruling = Ruling(
            id=self._new_id(),
            escalation_id=escalation_id,
            part_id=waiting.escalation.part_id,
            by=Decider.OPERATOR,
            who=who,
            finding=finding,
            disposition=disposition,
            binding=disposition is not None,
            reason=reason,
            defect_class=defect_class,
            confidence=None,
            at=self._now(),
        )
        if not await self._record(waiting, ruling):
            raise RulingError(f"{escalation_id}: somebody else ruled on this part first")
        return ruling

    # -- one task each -----------------------------------------------------------

    async def _follow_journal(self) -> None:
        while True:
            self._news.clear()
            try:
                await self._open_new()
                await self._expire_and_offer()
                await self._tell_line()
            except (JournalUnavailableError, LineUnavailableError) as error:
                log.warning("desk waits", reason=str(error))
                await asyncio.sleep(TICK_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._news.wait()

    async def _open_new(self) -> None:
        """Open an escalation for each part that lies in the divert lane unruled."""
        after = await asyncio.to_thread(self._journal.cursor, "desk")
        while records := await asyncio.to_thread(self._journal.read, after, READ_MAX):
            for _, record in records:
                if isinstance(record, Inspection) and record.action is Action.DIVERT:
                    await self._escalate(record, record.reason or BETWEEN_LIMITS, record.score)
                elif isinstance(record, Fault):
                    # The gate took its default, so this part lies there too.
                    await self._escalate(record, record.reason, None)
            after = records[-1][0]
            await asyncio.wrap_future(self._journal.advance("desk", after))

    async def _escalate(
        self, outcome: Inspection | Fault, reason: str, score: float | None
    ) -> None:
        opened_at = self._now()
        escalation = Escalation(
            # Made from the outcome's own id, so that reading it twice opens one.
            id=f"e-{outcome.id}",
            inspection_id=outcome.id,
            part_id=outcome.part_id,
            reason=reason,
            score=score,
            opened_at=opened_at,
            expires_at=opened_at + self._rules.ruling_timeout,
            box=await asyncio.to_thread(self._box_of, outcome.id),
        )
        if await asyncio.wrap_future(self._journal.submit(escalation)):
            waiting = WaitingEscalation(escalation=escalation)
            self._open[escalation.id] = waiting
            self._offer(waiting)

    def _box_of(self, inspection_id: str) -> Box | None:
        picture, heat = self._journal.picture(inspection_id), self._journal.heat(inspection_id)
        if picture is None or heat is None:
            return None
        grey, map_ = _decode(picture), _decode(heat)
        if grey is None or map_ is None:
            return None
        height, width = grey.shape
        return find_box(map_, width=width, height=height)

    async def _expire_and_offer(self) -> None:
        self._tell_budget()
        now = self._now()
        for waiting in self.waiting():
            if waiting.escalation.expires_at <= now:
                await self._expire(waiting)
            else:
                self._offer(waiting)

    def _tell_budget(self) -> None:
        left_pico = self._ledger.budget_left_pico()
        if self._reviewer is None or left_pico is None:
            return
        cost_pico_max = self._reviewer.cost_pico_max()
        if cost_pico_max is None:
            words = "the provider's model has no price: undecided parts wait for people"
            self._health.report("budget", ok=False, words=words)
        elif left_pico < cost_pico_max:
            words = "used up for today: undecided parts wait for people"
            self._health.report("budget", ok=False, words=words)
        else:
            self._health.report("budget", ok=True, words="enough for the next review")

    def _offer(self, waiting: WaitingEscalation) -> None:
        """Put a part in line for the agent if it may be asked, else leave it to people."""
        if not waiting.with_agent and self._may_ask(waiting):
            waiting.with_agent = True
            waiting.offers += 1
            self._for_agent.put_nowait(waiting.escalation.id)

    def _may_ask(self, waiting: WaitingEscalation) -> bool:
        if self._reviewer is None or self._draining or waiting.settling:
            return False
        if waiting.proposal is not None or waiting.offers >= OFFERS_MAX:
            return False
        cost_pico_max = self._reviewer.cost_pico_max()
        if cost_pico_max is None:
            return False
        decider = choose_decider(
            # Without a score there is no evidence either.
            Verdict.UNDEFINED if waiting.escalation.score is None else Verdict.NOT_DECIDABLE,
            ReviewBounds(waiting_max=self._rules.waiting_max, cost_pico_max=cost_pico_max),
            cloud_reachable=self._reviewer.reachable(),
            budget_left_pico=self._ledger.budget_left_pico(),
            waiting=self._for_agent.qsize(),
        )
        return decider is Decider.AGENT

    async def _ask_agent(self, reviewer: Reviewer) -> None:
        while True:
            escalation_id = await self._for_agent.get()
            waiting = self._open.get(escalation_id)
            if waiting is None or waiting.settling:
                continue  # A person was faster.
            try:
                await self._review(reviewer, waiting)
            except ProviderUnavailableError as error:
                # The provider's own health line says when it is gone; this is for each part.
                log.debug("agent not reached", escalation=escalation_id, reason=str(error))
            except (ProviderRefusedError, BudgetExceededError, UnpricedError) as error:
                # Asking the same again would cost the same again.
                waiting.offers = OFFERS_MAX
                log.info("agent gave no ruling", escalation=escalation_id, reason=str(error))
            except (LedgerUnavailableError, JournalUnavailableError) as error:
                log.warning("agent not asked", escalation=escalation_id, reason=str(error))
                await asyncio.sleep(TICK_S)
            finally:
                waiting.with_agent = False

    async def _review(self, reviewer: Reviewer, waiting: WaitingEscalation) -> None:
        inspection_id = waiting.escalation.inspection_id
        picture = await asyncio.to_thread(self._journal.picture, inspection_id)
        if picture is None:
            waiting.offers = OFFERS_MAX
            log.info("no picture to show the agent", escalation=waiting.escalation.id)
            return
        heat = await asyncio.to_thread(self._journal.heat, inspection_id)
        opinion = await reviewer.review(waiting.escalation, picture, heat)
        await self._record(waiting, self._ruling_from(waiting.escalation, opinion))

    def _ruling_from(self, escalation: Escalation, opinion: Opinion) -> Ruling:
        disposition = disposition_of(opinion.finding)
        return Ruling(
            id=self._new_id(),
            escalation_id=escalation.id,
            part_id=escalation.part_id,
            by=Decider.AGENT,
            who=opinion.who,
            finding=opinion.finding,
            disposition=disposition,
            binding=disposition is not None and authorize(self._rules.level, disposition),
            reason=opinion.reason,
            defect_class=opinion.defect_class,
            confidence=opinion.confidence,
            at=self._now(),
        )

    async def _expire(self, waiting: WaitingEscalation) -> None:
        escalation = waiting.escalation
        await self._record(
            waiting,
            Ruling(
                id=self._new_id(),
                escalation_id=escalation.id,
                part_id=escalation.part_id,
                by=Decider.TIMEOUT,
                who="timeout",
                finding=Finding.UNSURE,
                disposition=self._rules.on_timeout,
                binding=True,
                reason="nobody ruled on this part in time",
                defect_class=None,
                confidence=None,
                at=self._now(),
            ),
        )

    async def _record(self, waiting: WaitingEscalation, ruling: Ruling) -> bool:
        """Make a ruling durable and say whether it was the one that counts."""
        if waiting.settling:
            ruling = replace(ruling, binding=False)  # Too late; kept as an opinion.
        waiting.settling = waiting.settling or ruling.binding
        try:
            recorded = await asyncio.wrap_future(self._journal.submit(ruling))
        except JournalUnavailableError:
            waiting.settling = False
            raise
        if ruling.binding:
            self._open.pop(ruling.escalation_id, None)
        else:
            waiting.proposal = ruling
        return recorded

    async def _tell_line(self) -> None:
        """Tell the line each binding ruling once it is on record."""
        after = await asyncio.to_thread(self._journal.cursor, "line")
        while records := await asyncio.to_thread(self._journal.read, after, READ_MAX):
            for _, record in records:
                if isinstance(record, Ruling) and record.binding and record.disposition is not None:
                    self._line.dispose(record.part_id, record.disposition)
            after = records[-1][0]
            await asyncio.wrap_future(self._journal.advance("line", after))

    def _unread(self) -> bool:
        return bool(self._journal.read(self._journal.cursor("desk"), 1))

    def _open_to_agent(self) -> bool:
        return any(waiting.with_agent or self._may_ask(waiting) for waiting in self._open.values())


def _decode(encoded: bytes) -> NDArray[Any] | None:
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)
