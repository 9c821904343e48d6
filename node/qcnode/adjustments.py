"""What becomes of a proposed change of the process: weighed, held or done, on record, undone.

Rule or agent, every proposal comes through here and is treated alike. What holds:

- `authorize` is asked before each, and the kill switch once more when the change is on
  record and about to be done.
- A change is durable in the journal before a knob moves. One that was then not done after
  all says so in a second record.
- What waits for a person is done only on that person's word, only while the knob stands
  where it stood, and never after the kill switch. It does not outlive the process: a
  proposal is about the machine as it was.
- A person can take back the last change of a knob, and only a person starts the line again.

Runs in one event loop; the line never waits for it.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from qcnode.adviser import STOP, Advice
from qcnode.authority import Adjustment, AgentAction, Answer, authorize
from qcnode.domain import ChangeStage, Decider, ProcessChange
from qcnode.errors import AdjustmentError, JournalUnavailableError
from qcnode.kill import LINE, agent_scope, provider_scope
from qcnode.process import Knob

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from qcnode.authority import Context, Decision
    from qcnode.books.journal import Journal
    from qcnode.ports import Process, Stops
    from qcnode.process import Bounds

log = structlog.get_logger()

RESTART: Final = "restart"
RECORD_S: Final = 10.0
REASON_MAX: Final = 240
CONFIRMED, BUSY = "confirmed", "busy"


class Adjustments:
    """The way to the machine's knobs; `context` gives all that counts for `authorize`.

    It is asked with the advice and the turn that is wanted, None where none is.
    """

    def __init__(
        self,
        *,
        process: Process,
        bounds: Mapping[Knob, Bounds],
        journal: Journal,
        context: Callable[[Advice, Adjustment | None], Context],
        stops: Stops,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._process = process
        self._bounds = bounds
        self._journal = journal
        self._context = context
        self._stops = stops
        self._now = now
        self._new_id = new_id
        self._one_at_a_time = asyncio.Lock()
        self._held: dict[str, tuple[ProcessChange, Advice]] = {}
        self._last: dict[str, ProcessChange] = {}
        """The last change that was done at each knob, which can be undone."""

    def waiting(self) -> list[ProcessChange]:
        """Return what waits for a person, oldest first; one at most for each knob."""
        return [change for change, _ in self._held.values()]

    async def take(self, advice: Advice) -> ProcessChange:
        """Weigh a proposal, do it if it may be done, and return what became of it.

        Raises `AdjustmentError` for a knob that is not there, and `JournalUnavailableError`:
        what cannot be put on record is not done.
        """
        async with self._one_at_a_time:
            change, decision = self._weigh(advice)
            if decision.answer is Answer.ALLOW:
                return await self._do(change, advice)
            if decision.answer is Answer.HOLD and change.knob not in self._knobs_held():
                change = replace(change, stage=ChangeStage.HELD)
                await self._record(change)
                self._held[change.proposal_id] = change, advice
                return change
            busy = decision.answer is Answer.HOLD
            change = replace(
                change, stage=ChangeStage.DENIED, code=BUSY if busy else decision.code.value
            )
            await self._record(change)
            return change

    def offers(self) -> Mapping[str, tuple[float, float]]:
        """Return what may be proposed just now: for each knob the least and the most value."""
        room = {
            str(knob): (
                self._bounds[knob].toward(stands, -self._bounds[knob].step_max),
                self._bounds[knob].toward(stands, self._bounds[knob].step_max),
            )
            for knob, stands in self._process.settings().items()
        }
        return {**room, STOP: (1.0, 1.0)}

    def propose(self, *, who: str, knob: str, value: float, reason: str, escalation_id: str) -> str:
        """Put to a person what came to an agent's mind over a part; it is never done at once.

        Returns `held`, or `denied` for what may not be proposed, and never waits.
        """
        advice = Advice(
            knob=knob,
            value=value,
            reason=f"{escalation_id}: {reason}",
            by=Decider.AGENT,
            who=who,
            tokens=None,  # They are the review's.
        )
        low, high = self.offers().get(knob, (math.nan, math.nan))
        decision = authorize(who, AgentAction.PROPOSE, self._context(advice, None))
        held = decision.allowed and low <= value <= high and knob not in self._knobs_held()
        stage = ChangeStage.HELD if held else ChangeStage.DENIED
        before = None if knob not in self._process.settings() else self._stands(knob)
        change = replace(self._change(advice, before, decision.code.value), stage=stage)
        try:
            self._journal.append(change)
        except JournalUnavailableError:
            return ChangeStage.DENIED.value
        if held:
            self._held[change.proposal_id] = change, advice
        return stage.value

    async def confirm(self, proposal_id: str, *, who: str) -> ProcessChange:
        """Do what waits, on the word of a person. Raises `AdjustmentError` if it is too late."""
        async with self._one_at_a_time:
            change, advice = self._pick(proposal_id)
            if change.knob != STOP and self._stands(change.knob) != change.before:
                raise AdjustmentError(
                    f"{proposal_id}: {change.knob} is not at {change.before:g} any more: look again"
                )
            del self._held[proposal_id]
            return await self._do(
                replace(
                    change,
                    id=self._new_id(),
                    stage=ChangeStage.ORDERED,
                    code=CONFIRMED,
                    confirmed_by=who,
                    at=self._now(),
                ),
                advice,
            )

    async def decline(self, proposal_id: str, *, who: str) -> ProcessChange:
        """Let what waits go, on the word of a person."""
        async with self._one_at_a_time:
            change, _ = self._pick(proposal_id)
            del self._held[proposal_id]
            declined = replace(
                change,
                id=self._new_id(),
                stage=ChangeStage.DECLINED,
                confirmed_by=who,
                at=self._now(),
            )
            await self._record(declined)
            return declined

    async def undo(self, proposal_id: str, *, who: str, reason: str) -> ProcessChange:
        """Turn a knob back to where it stood before this, if nobody turned it since."""
        async with self._one_at_a_time:
            done = next(
                (one for one in self._last.values() if one.proposal_id == proposal_id), None
            )
            if done is None or self._stands(done.knob) != done.after:
                raise AdjustmentError(
                    f"{proposal_id}: not the last change of a knob: undo the later one first"
                )
            back = self._by_person(who, done.knob, done.before, reason)
            return await self._do(
                replace(back, before=done.after, undoes=proposal_id, confirmed_by=who), None
            )

    async def restart(self, *, who: str, reason: str) -> ProcessChange:
        """Start the line again; there is no other way to, and an agent has none."""
        async with self._one_at_a_time:
            change = self._by_person(who, RESTART, None, reason)
            await self._record(change)
            self._process.start()
            return change

    # -- inside ------------------------------------------------------------------

    def _weigh(self, advice: Advice) -> tuple[ProcessChange, Decision]:
        """Ask whether this may be done, and write down what it would be."""
        before = wanted = None
        if advice.knob != STOP:
            before = self._stands(advice.knob)
            wanted = Adjustment(knob=advice.knob, now=before, wanted=advice.value)
        action = AgentAction.STOP if wanted is None else AgentAction.ADJUST
        decision = authorize(advice.who, action, self._context(advice, wanted))
        return self._change(advice, before, decision.code.value), decision

    def _change(self, advice: Advice, before: float | None, code: str) -> ProcessChange:
        return ProcessChange(
            id=self._new_id(),
            proposal_id=self._new_id(),
            stage=ChangeStage.ORDERED,
            knob=advice.knob,
            before=before,
            after=None if before is None else advice.value,
            by=advice.by,
            who=advice.who,
            reason=advice.reason[:REASON_MAX],
            code=code,
            tokens=advice.tokens,
            at=self._now(),
        )

    async def _do(self, change: ProcessChange, advice: Advice | None) -> ProcessChange:
        """Put it on record, and then do it, unless something is against it by now."""
        await self._record(change)
        against = None
        if advice is not None and self._stopped(advice):
            against = "the kill switch was set"
        else:
            try:
                if change.knob == STOP:
                    self._process.halt()
                elif change.after is not None:
                    self._process.turn(Knob(change.knob), change.after)
            except AdjustmentError as error:
                against = str(error)
        if against is not None:
            dropped = replace(
                change, id=self._new_id(), stage=ChangeStage.DROPPED, code=against, at=self._now()
            )
            await self._record(dropped)
            return dropped
        if change.knob != STOP:
            self._last[change.knob] = change
        log.info("process changed", knob=change.knob, after=change.after, who=change.who)
        return change

    def _stopped(self, advice: Advice) -> bool:
        return self._stops.stopped(LINE, agent_scope(advice.who), provider_scope(advice.provider))

    def _stands(self, knob: str) -> float:
        settings = self._process.settings()
        if knob not in settings:
            raise AdjustmentError(f"{knob}: no such knob here; there are {', '.join(settings)}")
        return settings[Knob(knob)]

    def _knobs_held(self) -> set[str]:
        return {change.knob for change, _ in self._held.values()}

    def _pick(self, proposal_id: str) -> tuple[ProcessChange, Advice]:
        if proposal_id not in self._held:
            raise AdjustmentError(f"{proposal_id}: nothing waits under this name any more")
        return self._held[proposal_id]

    def _by_person(self, who: str, knob: str, after: float | None, reason: str) -> ProcessChange:
        return ProcessChange(
            id=self._new_id(),
            proposal_id=self._new_id(),
            stage=ChangeStage.ORDERED,
            knob=knob,
            before=None,
            after=after,
            by=Decider.OPERATOR,
            who=who,
            reason=reason[:REASON_MAX],
            code=CONFIRMED,
            tokens=0,
            at=self._now(),
        )

    async def _record(self, change: ProcessChange) -> None:
        try:
            async with asyncio.timeout(RECORD_S):
                await asyncio.wrap_future(self._journal.submit(change))
        except TimeoutError as error:
            raise JournalUnavailableError(
                f"the disk took no record in {RECORD_S:g} s, so {change.knob} stays as it is:"
                " check the disk"
            ) from error
