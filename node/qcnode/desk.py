"""Where undecided parts are ruled on, by agent or operator, or by the clock.

The desk reads the journal like anybody else: each part in the divert lane becomes one
escalation, each escalation ends in one binding ruling, and each ruling is
told to the line. All three are records first, so a restart goes on where the disk
says. What a person found of a part goes on record in the ledger too, beside what its
answer cost. Runs in one event loop; the line never waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import structlog

from qcnode.authority import ACTION_OF
from qcnode.domain import (
    Action,
    Allowance,
    Box,
    Decider,
    Disposition,
    Escalation,
    Fault,
    Finding,
    Inspection,
    Limits,
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
from qcnode.money import Outcome
from qcnode.policy import (
    Bucket,
    Leaning,
    alone,
    choose_decider,
    disposition_of,
    lean,
    rank_among,
    refilled,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from numpy.typing import NDArray

    from qcnode.books.journal import Journal
    from qcnode.domain import Opinion
    from qcnode.money import CostCentre, WorstCase
    from qcnode.ports import Ledger, Line, Purse, Reviewer
    from qcnode.warrant import Warrant

log = structlog.get_logger()

BETWEEN_LIMITS = "the score lies between the limits"
STOPPED_FIRST = "the agent was stopped before its ruling reached the line"
TOO_LATE = "too-late"
"""On a ruling of an agent that came after a person's."""
WITHHELD = "what the agent says of it is not shown"
READ_MAX = 200
TICK_S = 0.5
LEDGER_S = 10.0
OFFERS_MAX = 3
"""How often one part is put to the agent before it waits for a person alone."""
REFUSALS_MAX = 20
"""How often others may have been faster to take what the budget had left for it."""
RECENT_MAX = 500
"""How many of the last undecided parts, and of the last rulings, are learnt from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskRules:
    """What the line chose beforehand about asking, and the limits of the model in service.

    `centre` is on whose account the agent asks.
    """

    limits: Callable[[], Limits]
    centre: CostCentre
    workers: int
    waiting_max: int
    ruling_timeout: timedelta
    on_timeout: Disposition
    per_minute_max: float | None = None


@dataclass(slots=True, kw_only=True)
class WaitingEscalation:
    """An escalation on the desk: whose turn it is, and what was proposed."""

    escalation: Escalation
    proposal: Ruling | None = None
    with_agent: bool = False
    settling: bool = False
    offers: int = 0
    refusals: int = 0
    held_until: datetime | None = None
    """Until then agent and timeout leave this part alone: a person has decided it."""


class Desk:
    """Open escalations, who rules on them, and what a ruling changes."""

    def __init__(
        self,
        *,
        journal: Journal,
        line: Line,
        reviewer: Reviewer | None,
        ledger: Ledger,
        purse: Purse,
        rules: DeskRules,
        warrant: Warrant,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        audited: Callable[[], None] = lambda: None,
        suspect: Callable[[bytes], str | None] = lambda _: None,
    ) -> None:
        self._journal = journal
        self._line = line
        self._reviewer = reviewer
        self._ledger = ledger
        self._purse = purse
        self._rules = rules
        self._warrant = warrant
        self._now = now
        self._new_id = new_id
        self._audited = audited
        """Called, in a thread, when an audit's ruling is on record."""
        self._suspect = suspect
        """Says, in a thread, what on a picture may be there to persuade."""
        self._open: dict[str, WaitingEscalation] = {}
        self._for_agent: asyncio.Queue[str] = asyncio.Queue(maxsize=rules.waiting_max)
        self._news = asyncio.Event()
        self._draining = False
        self._allowance = Allowance(fits=0, share=0.0)
        self._bucket = Bucket(float(_burst(rules)), now().timestamp())
        self._undecided: deque[float] = deque(maxlen=RECENT_MAX)
        """Scores of the last parts that came undecided."""
        self._ruled: deque[tuple[float, bool]] = deque(maxlen=RECENT_MAX)
        """Scores of the last parts that people ruled on, and whether they were defective."""
        self._learnt: tuple[Leaning, list[float]] | None = None
        """What follows from the two: how doubtful a score is, and the last doubts in order."""
        self._questions: set[asyncio.Timeout] = set()
        """What is being asked just now; the kill switch ends each."""

    async def run(self) -> None:
        """Work until cancelled. What is unfinished then is found again in the journal."""
        loop = asyncio.get_running_loop()
        self._journal.add_listener(lambda: _call(loop, self._news.set))
        self._warrant.add_listener(lambda: _call(loop, self._cut_off))
        for escalation, proposal in await asyncio.to_thread(self._journal.open_escalations):
            self._open[escalation.id] = WaitingEscalation(escalation=escalation, proposal=proposal)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_journal())
            tasks.create_task(self._keep_outcomes())
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

    def hold(self, escalation_id: str, until: datetime) -> None:
        """Keep agent and timeout off a part until then: a person has decided it."""
        waiting = self._open.get(escalation_id)
        if waiting is not None:
            waiting.held_until = until

    async def learn(self, escalation_id: str, truth: Finding, *, source: str) -> Outcome:
        """Put on record what a part that was ruled on proved to be, as `source` says.

        Raises `RulingError` when there is no such part, it is not ruled on, or nothing is
        known of it still, and `LedgerUnavailableError`.
        """
        story = await asyncio.to_thread(self._journal.story, escalation_id)
        if story is None or truth is Finding.UNSURE:
            raise RulingError(f"{escalation_id}: there was no such part, or nothing is known of it")
        if not any(ruling.binding for ruling in story[1]):
            raise RulingError(f"{escalation_id}: this part still waits: rule on it instead")
        outcome = self._outcome(*story, truth=truth, source=source)
        await self._put_on_record(outcome)
        return outcome

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
                    await self._escalate(
                        record, record.reason or BETWEEN_LIMITS, record.score, audit=record.audit
                    )
                elif isinstance(record, Fault):
                    # The gate took its default, so this part lies there too.
                    await self._escalate(record, record.reason, None)
            after = records[-1][0]
            await asyncio.wrap_future(self._journal.advance("desk", after))

    async def _escalate(
        self,
        outcome: Inspection | Fault,
        reason: str,
        score: float | None,
        *,
        audit: bool = False,
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
            audit=audit,
        )
        if await asyncio.wrap_future(self._journal.submit(escalation)):
            waiting = WaitingEscalation(escalation=escalation)
            self._open[escalation.id] = waiting
            # A person answers audits, so they take nothing from what questions may cost.
            if score is not None and not audit:
                self._purse.arrived(opened_at)
                self._undecided.append(score)
                self._learnt = None
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
        self._look_at_budgets()
        now = self._now()
        for waiting in self.waiting():
            if self._held(waiting):
                continue
            if waiting.escalation.expires_at > now:
                self._offer(waiting)
            elif not self._warrant.stopped():
                await self._expire(waiting)  # While the line is stopped only people move parts.

    def _look_at_budgets(self) -> None:
        """Find out once for all parts that wait what may be asked."""
        if self._reviewer is not None:
            self._allowance = self._purse.look(self._reviewer.worst())

    def _offer(self, waiting: WaitingEscalation) -> None:
        """Put a part in line for the agent if it may be asked, else leave it to people."""
        if not waiting.with_agent and self._may_ask(waiting):
            self._bucket = replace(self._bucket, tokens=self._bucket.tokens - 1)
            waiting.with_agent = True
            waiting.offers += 1
            self._for_agent.put_nowait(waiting.escalation.id)

    def _may_ask(self, waiting: WaitingEscalation) -> bool:
        if self._reviewer is None or self._draining or waiting.settling:
            return False
        if self._warrant.stopped():
            return False
        if waiting.proposal is not None or waiting.offers >= OFFERS_MAX:
            return False
        if not self._within_rate():
            return False
        allowance, in_line = self._allowance, self._for_agent.qsize()
        # What is in line holds nothing yet.
        fits = self._rules.waiting_max if allowance.fits is None else allowance.fits
        score = waiting.escalation.score
        decider = choose_decider(
            # Without a score there is no evidence either; an audit asks people alone.
            Verdict.UNDEFINED
            if score is None or waiting.escalation.audit
            else Verdict.NOT_DECIDABLE,
            allowance,
            cloud_reachable=self._reviewer.reachable(),
            room=in_line < min(self._rules.waiting_max, fits),
            rank=self._rank(score),
        )
        return decider is Decider.AGENT

    def _within_rate(self) -> bool:
        """Say whether one more question keeps to the rate, whatever the limits ask."""
        per_minute = self._rules.per_minute_max
        if per_minute is None:
            return True
        now_s = self._now().timestamp()
        self._bucket = refilled(
            self._bucket, now_s, per_minute=per_minute, most=_burst(self._rules)
        )
        return self._bucket.tokens >= 1.0

    def _rank(self, score: float | None) -> float:
        """Return what share of the last undecided parts would be more worth asking about."""
        if score is None or self._allowance.share >= 1.0:
            return 0.0
        if self._learnt is None:
            leaning = lean(self._rules.limits(), self._undecided, self._ruled)
            self._learnt = leaning, sorted(leaning.doubt(one) for one in self._undecided)
        leaning, doubts = self._learnt
        return rank_among(leaning.doubt(score), doubts)

    async def _ask_agent(self, reviewer: Reviewer) -> None:
        while True:
            escalation_id = await self._for_agent.get()
            waiting = self._open.get(escalation_id)
            if waiting is None or waiting.settling or self._warrant.stopped():
                # A person was faster, or stopped it.
                if waiting is not None:
                    waiting.with_agent = False
                continue
            try:
                await self._review(reviewer, waiting)
            except ProviderUnavailableError as error:
                # The provider's own health line says when it is gone; this is for each part.
                log.debug("agent not reached", escalation=escalation_id, reason=str(error))
            except BudgetExceededError as error:
                # Others were faster to take what was left; the next look knows.
                waiting.refusals += 1
                if waiting.refusals < REFUSALS_MAX:
                    waiting.offers -= 1
                log.debug("agent not asked", escalation=escalation_id, reason=str(error))
            except (ProviderRefusedError, UnpricedError) as error:
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
        try:
            async with asyncio.timeout(None) as question:
                self._questions.add(question)
                opinion = await reviewer.review(waiting.escalation, picture, heat)
        except TimeoutError:
            if not question.expired():
                raise
            log.info("question cut off by the kill switch", escalation=waiting.escalation.id)
            return
        finally:
            self._questions.discard(question)
        suspicion = await asyncio.to_thread(self._suspect, picture)
        if suspicion is not None:
            # Whoever wrote on the part may have chosen the agent's words: no person sees them.
            opinion = replace(opinion, suspicion=suspicion, reason=f"{suspicion}; {WITHHELD}")
        await self._rule(waiting, opinion, reviewer.worst())

    def _cut_off(self) -> None:
        """End what is being asked when the line is stopped; the books hold each at its most."""
        self._news.set()
        if self._warrant.stopped():
            now_s = asyncio.get_running_loop().time()
            for question in self._questions:
                if not question.expired():
                    question.reschedule(now_s)

    async def _rule(
        self, waiting: WaitingEscalation, opinion: Opinion, worst: WorstCase | None
    ) -> None:
        """Record what the agent said, binding if it may be when that is recorded."""
        escalation = waiting.escalation
        disposition = disposition_of(opinion.finding)
        draft = Ruling(
            id=self._new_id(),
            escalation_id=escalation.id,
            part_id=escalation.part_id,
            by=Decider.AGENT,
            who=opinion.who,
            finding=opinion.finding,
            disposition=disposition,
            binding=False,
            reason=opinion.reason,
            defect_class=opinion.defect_class,
            confidence=opinion.confidence,
            at=self._now(),
            provider=opinion.provider,
            blind=self._warrant.drawn(opinion.who, escalation.part_id),
        )
        # What it cost at most, where nobody says what it did.
        spent = None if worst is None else (worst.hold.currency, worst.hold.pico)

        def weigh(taken: int) -> Ruling:
            if disposition is None:
                return draft
            if waiting.settling or self._held(waiting):
                return replace(draft, code=TOO_LATE, blind=False)
            decision = self._warrant.rule(
                opinion,
                escalation,
                ACTION_OF[disposition],
                node_leans=alone(escalation.score, self._rules.limits()),
                spent=spent,
                taken=taken,
            )
            return replace(draft, binding=decision.allowed, code=decision.code.value)

        recorded = await asyncio.wrap_future(self._journal.rule(draft, weigh))
        if recorded is not None and recorded.binding:
            self._open.pop(escalation.id, None)
        elif recorded is not None:
            waiting.proposal = recorded

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
            if recorded and waiting.escalation.audit:
                with suppress(JournalUnavailableError):  # The next one counts this one, too.
                    await asyncio.to_thread(self._audited)
        else:
            waiting.proposal = ruling
        return recorded

    def _held(self, waiting: WaitingEscalation) -> bool:
        return waiting.held_until is not None and self._now() < waiting.held_until

    async def _tell_line(self) -> None:
        """Tell the line each binding ruling once it is on record."""
        after = await asyncio.to_thread(self._journal.cursor, "line")
        while records := await asyncio.to_thread(self._journal.read, after, READ_MAX):
            for _, record in records:
                if isinstance(record, Ruling) and record.binding and record.disposition is not None:
                    if self._is_stopped(record):
                        await self._ask_anew(record)
                    else:
                        self._line.dispose(record.part_id, record.disposition)
            after = records[-1][0]
            await asyncio.wrap_future(self._journal.advance("line", after))

    def _is_stopped(self, ruling: Ruling) -> bool:
        return ruling.by is Decider.AGENT and self._warrant.stopped(
            ruling.who, f"provider:{ruling.provider or ''}"
        )

    async def _ask_anew(self, ruling: Ruling) -> None:
        """Put a part to people whose agent was stopped before the line heard of its ruling."""
        story = await asyncio.to_thread(self._journal.story, ruling.escalation_id)
        if story is None:
            return
        opened_at = self._now()
        again = replace(
            story[0],
            # Made from the ruling's own id, so that reading it twice asks once.
            id=f"k-{ruling.id}",
            reason=STOPPED_FIRST,
            opened_at=opened_at,
            expires_at=opened_at + self._rules.ruling_timeout,
        )
        if await asyncio.wrap_future(self._journal.submit(again)):
            self._open[again.id] = WaitingEscalation(escalation=again, offers=OFFERS_MAX)

    async def _keep_outcomes(self) -> None:
        """Follow the journal for the ledger, whose disk must hold up nobody who rules."""
        waits = False
        while True:
            try:
                await self._tell_ledger()
                await asyncio.to_thread(self._warrant.recount)
            except (JournalUnavailableError, LedgerUnavailableError) as error:
                if not waits:
                    log.warning("outcomes wait", reason=str(error))
                waits = True
            else:
                waits = False
            await asyncio.sleep(TICK_S)

    async def _tell_ledger(self) -> None:
        """Put on record what people found of parts, beside what their answers cost."""
        after = await asyncio.to_thread(self._journal.cursor, "ledger")
        while records := await asyncio.to_thread(self._journal.read, after, READ_MAX):
            for _, record in records:
                if isinstance(record, Ruling) and record.by in (Decider.OPERATOR, Decider.AGENT):
                    await self._tell_truth(record)
            after = records[-1][0]
            await asyncio.wrap_future(self._journal.advance("ledger", after))

    async def _tell_truth(self, ruling: Ruling) -> None:
        """Put on record what a part is, if a person has said so by now."""
        story = await asyncio.to_thread(self._journal.story, ruling.escalation_id)
        if story is None:
            return
        escalation, rulings = story
        found = next(
            (one.finding for one in rulings if one.binding and one.by is Decider.OPERATOR), None
        )
        if found is None or found is Finding.UNSURE or escalation.score is None:
            return  # Not known; or nobody could have had an opinion before.
        if ruling.binding:
            self._ruled.append((escalation.score, found is Finding.DEFECTIVE))
            self._learnt = None
        elif not _came_late(ruling, rulings):
            return  # Said before the person ruled, whose ruling tells it all.
        outcome = self._outcome(escalation, rulings, truth=found, source="operator")
        await self._put_on_record(outcome)

    async def _put_on_record(self, outcome: Outcome) -> None:
        try:
            async with asyncio.timeout(LEDGER_S):
                await asyncio.wrap_future(self._ledger.submit(outcome))
        except TimeoutError as error:
            raise LedgerUnavailableError(
                f"the disk took no entry in {LEDGER_S:g} s: check the disk"
            ) from error

    def _outcome(
        self, escalation: Escalation, rulings: list[Ruling], *, truth: Finding, source: str
    ) -> Outcome:
        """Set what the agent said of a part, or who ruled on it without one, beside the truth."""
        by_agent = [one.finding for one in rulings if one.by is Decider.AGENT]
        binding = [one.finding for one in rulings if one.binding]
        return Outcome(
            escalation_id=escalation.id,
            centre=self._rules.centre,
            ruled=(by_agent or binding)[-1].name,
            truth=truth.name,
            node_alone=alone(escalation.score, self._rules.limits()).value,
            source=source,
        )

    def _unread(self) -> bool:
        return bool(self._journal.read(self._journal.cursor("desk"), 1))

    def _open_to_agent(self) -> bool:
        self._look_at_budgets()
        return any(waiting.with_agent or self._may_ask(waiting) for waiting in self._open.values())


def _burst(rules: DeskRules) -> int:
    """Return how many questions may be asked at once: a minute's worth."""
    return max(1, int(rules.per_minute_max or 1))


def _came_late(ruling: Ruling, rulings: list[Ruling]) -> bool:
    """Say whether this is what an agent said after the part had been ruled on."""
    before = rulings[: [one.id for one in rulings].index(ruling.id)]
    return ruling.by is Decider.AGENT and any(one.binding for one in before)


def _decode(encoded: bytes) -> NDArray[Any] | None:
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)
