"""What people decide at the screen, between the press and the line hearing of it.

A decision is durable when its press is answered, and the desk is told a little later, so
that Undo means something: until then nothing has moved. Taking it back is a record of its
own. A part on somebody's screen is leased to them for a minute; while it is, or a
decision on it is pending, nobody else may decide it. After a restart what was pending is
released at once. Runs on the panel's loop; the file is written from a thread.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import structlog

from qcnode.domain import Finding
from qcnode.errors import QcError, RulingError
from qcnode.panel.access import Right
from qcnode.panel.audit import AuditTrail, Deed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from qcnode.domain import Ruling
    from qcnode.panel.access import Who
    from qcnode.panel.file import PanelFile
    from qcnode.panel.sources import DeskView

log = structlog.get_logger()

LEASE = timedelta(seconds=60)
RETRY = timedelta(seconds=1)
TICK_S = 0.1
SPARE = timedelta(seconds=30)
"""How much longer than its delay a decision keeps others off the part."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A part on somebody's screen. `tag` names the session and lets nobody in."""

    who: str
    tag: str
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a person chose for a part, and whether the agent's opinion came after it."""

    finding: Finding
    defect_class: str | None
    reason: str
    looked_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A decision that can still be taken back."""

    id: str
    escalation_id: str
    part_id: str
    choice: Choice
    who: str
    role: str
    where: str
    tag: str
    release_at: datetime

    @property
    def finding(self) -> str:
        """What was chosen, in a word."""
        return self.choice.finding.value


class Decisions:
    """Leases, and decisions on their way to the desk."""

    def __init__(
        self,
        *,
        desk: DeskView,
        file: PanelFile,
        threads: Executor,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        release_delay: timedelta,
        changed: Callable[[], None],
    ) -> None:
        self._desk = desk
        self._file = file
        self._audit = AuditTrail(file, now=now)
        self._threads = threads
        self._now = now
        self._new_id = new_id
        self._delay = release_delay
        self._changed = changed
        self._leases: dict[str, Lease] = {}
        self._pending: dict[str, Pending] = {}
        self._news = asyncio.Event()

    @property
    def release_delay(self) -> timedelta:
        """How long a decision can be taken back."""
        return self._delay

    def leases(self) -> Mapping[str, Lease]:
        """Return the leases that still hold, by escalation."""
        now = self._now()
        for escalation_id in [key for key, one in self._leases.items() if one.until <= now]:
            del self._leases[escalation_id]
        return self._leases

    def pending(self) -> Mapping[str, Pending]:
        """Return the decisions that can still be taken back, by escalation."""
        return self._pending

    async def run(self) -> None:
        """Release what is due until cancelled, first of all what a restart left pending."""
        for one in await self._in_thread(self._left):
            self._pending.setdefault(one.escalation_id, one)
        while True:
            for one in [one for one in self._pending.values() if one.release_at <= self._now()]:
                await self._release(one)
            self._news.clear()
            if self._pending:
                await asyncio.sleep(TICK_S)
            else:
                await self._news.wait()

    def lease(self, escalation_id: str, who: Who) -> None:
        """Take or renew the lease of a part for this person, who holds one part at a time."""
        self._waiting(escalation_id)
        self._refuse_others(escalation_id, who)
        for old in [key for key, one in self.leases().items() if one.who == who.name]:
            del self._leases[old]
        self._leases[escalation_id] = Lease(
            who=who.name, tag=tag_of(who), until=self._now() + LEASE
        )
        self._changed()

    async def decide(
        self, escalation_id: str, choice: Choice, who: Who, *, where: str
    ) -> Ruling | Pending:
        """Put a decision on record; raises `RulingError` when somebody else has the part.

        `unsure` is noted at the desk at once, as it moves nothing. So is everything else
        where there is no delay.
        """
        part_id = self._waiting(escalation_id)
        self._refuse_others(escalation_id, who)
        self._leases.pop(escalation_id, None)
        pending = Pending(
            id=self._new_id(),
            escalation_id=escalation_id,
            part_id=part_id,
            choice=choice,
            who=who.name,
            role=who.role,
            where=where,
            tag=tag_of(who),
            release_at=self._now() + self._delay,
        )
        if choice.finding is Finding.UNSURE or not self._delay:
            ruling = await self._settle(pending)
            await self._in_thread(self._note, pending, "decision.make", "released")
            return ruling
        # Taken before the first wait, so that of two presses only one gets here.
        self._pending[escalation_id] = pending
        try:
            await self._in_thread(self._note, pending, "decision.make", "pending")
        except QcError:
            self._pending.pop(escalation_id, None)
            raise
        self._desk.hold(escalation_id, pending.release_at + SPARE)
        self._news.set()
        self._changed()
        return pending

    async def undo(self, escalation_id: str, who: Who, *, where: str) -> Pending:
        """Take a pending decision back; raises `RulingError` when it has gone out."""
        pending = self._pending.get(escalation_id)
        if pending is None:
            raise RulingError(f"{escalation_id}: this decision has gone out and stays")
        if pending.who != who.name and Right.SHELVE not in who.rights:
            raise RulingError(
                f"{pending.part_id}: only {pending.who} or a supervisor takes it back"
            )
        del self._pending[escalation_id]
        taken = replace(pending, who=who.name, role=who.role, where=where)
        try:
            await self._in_thread(self._note, taken, "decision.undo", "undone")
        except QcError:
            self._pending[escalation_id] = pending
            raise
        self._desk.hold(escalation_id, self._now())
        self._changed()
        return pending

    # -- within --------------------------------------------------------------------

    async def _release(self, pending: Pending) -> None:
        try:
            await self._settle(pending)
            what, state = "decision.release", "released"
        except RulingError as error:
            log.info("decision came to nothing", part=pending.part_id, reason=str(error))
            what, state = "decision.refused", "refused"
        except QcError as error:
            log.warning("decision waits", part=pending.part_id, reason=str(error))
            if pending.escalation_id in self._pending:
                self._pending[pending.escalation_id] = replace(
                    pending, release_at=self._now() + RETRY
                )
            return
        # What the desk has taken cannot be taken back, whatever the file says.
        self._pending.pop(pending.escalation_id, None)
        self._changed()
        try:
            await self._in_thread(self._note, pending, what, state)
        except QcError as error:
            log.warning("release not noted", part=pending.part_id, reason=str(error))

    async def _settle(self, pending: Pending) -> Ruling:
        choice = pending.choice
        return await self._desk.settle(
            pending.escalation_id,
            choice.finding,
            who=f"{pending.who}@{pending.where}",
            defect_class=choice.defect_class,
            reason=choice.reason,
        )

    def _waiting(self, escalation_id: str) -> str:
        for one in self._desk.waiting():
            if one.escalation.id == escalation_id:
                return one.escalation.part_id
        raise RulingError(f"{escalation_id}: this part is not waiting, or has been ruled on")

    def _refuse_others(self, escalation_id: str, who: Who) -> None:
        pending = self._pending.get(escalation_id)
        if pending is not None:
            raise RulingError(f"{pending.part_id}: {pending.who} has just decided this part")
        lease = self.leases().get(escalation_id)
        if lease is not None and lease.who != who.name:
            raise RulingError(f"{escalation_id}: this part is with {lease.who} just now")

    async def _in_thread(self, do: Callable[..., T], *values: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, do, *values)

    def _note(self, pending: Pending, what: str, state: str) -> None:
        choice = pending.choice
        said = {
            "escalation_id": pending.escalation_id,
            "part_id": pending.part_id,
            "finding": choice.finding.value,
            "defect_class": choice.defect_class,
            "reason": choice.reason,
            "looked_first": choice.looked_first,
            "who": pending.who,
            "role": pending.role,
            "where": pending.where,
            "tag": pending.tag,
            "release_at": pending.release_at.isoformat(),
        }
        deed = Deed(
            what=what,
            who=pending.who,
            role=pending.role,
            where=pending.where,
            subject=pending.part_id,
            after=choice.finding.value
            if choice.defect_class is None
            else f"{choice.finding.value}: {choice.defect_class}",
            reason=choice.reason,
        )
        with self._file.transaction() as db:
            db.execute(
                "INSERT INTO decision (id, escalation_id, body, state) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET state = excluded.state",
                (pending.id, pending.escalation_id, json.dumps(said, ensure_ascii=False), state),
            )
            self._audit.add(db, deed)

    def _left(self) -> list[Pending]:
        with self._file.transaction() as db:
            rows = db.execute("SELECT id, body FROM decision WHERE state = 'pending'").fetchall()
        return [_pending(decision_id, json.loads(body)) for decision_id, body in rows]


def tag_of(who: Who) -> str:
    """Return a name for a session that everybody may see."""
    return "" if who.key is None else who.key[:12]


def _pending(decision_id: str, said: dict[str, str]) -> Pending:
    return Pending(
        id=decision_id,
        escalation_id=said["escalation_id"],
        part_id=said["part_id"],
        choice=Choice(
            finding=Finding(said["finding"]),
            defect_class=said["defect_class"],
            reason=said["reason"],
            looked_first=bool(said["looked_first"]),
        ),
        who=said["who"],
        role=said["role"],
        where=said["where"],
        tag=said["tag"],
        release_at=datetime.fromisoformat(said["release_at"]),
    )
