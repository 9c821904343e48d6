"""Work that can wait for a price: audited parts are put to the agent in the cheap hours.

People have ruled on these parts already, so nothing waits for an answer and none changes
anything: it is put beside their ruling, and the ledger then says what the agent is worth
also on parts that the node passes. Each part is asked about once, within a time after its
ruling, begun when the price book has it cheapest. A part on the line never waits for this.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from qcnode.domain import Decider, Ruling
from qcnode.errors import (
    BudgetExceededError,
    JournalUnavailableError,
    LedgerUnavailableError,
    ProviderRefusedError,
    ProviderUnavailableError,
    UnpricedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from qcnode.books.journal import Journal
    from qcnode.domain import Escalation, Opinion

log = structlog.get_logger()

READER: Final = "rechecks"
LOOK_S: Final = 60.0
READ_MAX: Final = 200
WAITING_MAX: Final = 1_000
"""Beyond so many that wait, the oldest is let go: nothing hangs on it."""

_NOT_NOW: Final = (
    ProviderUnavailableError,
    ProviderRefusedError,
    BudgetExceededError,
    UnpricedError,
    LedgerUnavailableError,
)


class Patient(Protocol):
    """A reviewer that knows when it is cheapest."""

    async def review(self, escalation: Escalation, picture: bytes, heat: bytes | None) -> Opinion:
        """As any reviewer's."""

    def reachable(self) -> bool:
        """As any reviewer's."""

    def cheapest(self, earliest: datetime, latest: datetime) -> datetime | None:
        """Return when to begin a question between these so that it costs least.

        None where no time between them has a price.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Due:
    escalation: Escalation
    latest: datetime


class Rechecks:
    """Follows the journal for audits that people have ruled on, and asks about them in time.

    `within` is how long after a ruling its part may still be asked about.
    """

    def __init__(
        self,
        journal: Journal,
        reviewer: Patient,
        *,
        within: timedelta,
        now: Callable[[], datetime],
    ) -> None:
        self._journal = journal
        self._reviewer = reviewer
        self._within = within
        self._now = now
        self._due: deque[_Due] = deque(maxlen=WAITING_MAX)
        self._read_to: int | None = None

    async def run(self) -> None:
        """Work until cancelled; what is unfinished then is found again in the journal."""
        while True:
            try:
                await self.step()
            except JournalUnavailableError as error:
                log.warning("rechecks wait", reason=str(error))
            await asyncio.sleep(LOOK_S)

    async def step(self) -> int:
        """Take in what was ruled on, ask what is cheapest now, and return what still waits."""
        await asyncio.to_thread(self._read_on)
        while self._due and self._reviewer.reachable():
            due, now = self._due[0], self._now()
            if now < due.latest:
                start = self._reviewer.cheapest(now, due.latest)
                if start is None or start > now:
                    break  # The rest was ruled on later, and is due no sooner.
                await self._ask(due.escalation)
            self._due.popleft()
        if not self._due and self._read_to is not None:
            await asyncio.wrap_future(self._journal.advance(READER, self._read_to))
        return len(self._due)

    def _read_on(self) -> None:
        after = self._journal.cursor(READER) if self._read_to is None else self._read_to
        while rows := self._journal.rulings(after, READ_MAX):
            for seq, escalation, ruling in rows:
                after = seq
                if escalation.audit and ruling.binding and ruling.by is Decider.OPERATOR:
                    self._due.append(_Due(escalation=escalation, latest=ruling.at + self._within))
        self._read_to = after

    async def _ask(self, escalation: Escalation) -> None:
        story = await asyncio.to_thread(self._journal.story, escalation.id)
        picture = await asyncio.to_thread(self._journal.picture, escalation.inspection_id)
        asked = story is not None and any(one.by is Decider.AGENT for one in story[1])
        if asked or picture is None:
            return
        heat = await asyncio.to_thread(self._journal.heat, escalation.inspection_id)
        try:
            opinion = await self._reviewer.review(escalation, picture, heat)
        except _NOT_NOW as error:
            log.info("no recheck", escalation=escalation.id, reason=str(error))
            return
        await asyncio.wrap_future(self._journal.submit(self._ruling(escalation, opinion)))

    def _ruling(self, escalation: Escalation, opinion: Opinion) -> Ruling:
        return Ruling(
            # Made from the escalation's own id, so that asking twice leaves one.
            id=f"recheck-{escalation.id}",
            escalation_id=escalation.id,
            part_id=escalation.part_id,
            by=Decider.AGENT,
            who=opinion.who,
            finding=opinion.finding,
            disposition=None,
            binding=False,
            reason=opinion.reason,
            defect_class=opinion.defect_class,
            confidence=opinion.confidence,
            at=self._now(),
            provider=opinion.provider,
            code="recheck",
        )
