"""Watches what the alarms hang on, whether or not anybody looks, and keeps their history.

Looks once a second. How each alarm stands and everything that happened to one is in the
panel's file, so a restart raises nothing twice and forgets no shelf. While that file cannot
be written alarms go on in memory. Calling help needs no login and is an alarm like others.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog

from qcnode.books.forecast import Alarm as BudgetAlarm
from qcnode.domain import Fault, Verdict
from qcnode.errors import AccessError, PanelUnavailableError, RulingError
from qcnode.panel import alarms, view
from qcnode.panel.access import Right, least_role
from qcnode.panel.alarms import KINDS, SHOWN, Alarm, Event, State
from qcnode.panel.audit import AuditTrail, Deed

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from qcnode.health import HealthBoard
    from qcnode.panel.access import Who
    from qcnode.panel.books import Books, Reading
    from qcnode.panel.file import PanelFile
    from qcnode.panel.sources import About
    from qcnode.panel.words import Words

log = structlog.get_logger()

LOOK_S = 1.0
IN_A_ROW = 5
BLIND_OF, BLIND_MAX = 10, 3
QUEUE_MAX = 10
RATE_WINDOW = timedelta(minutes=10)
EVENTS_MAX = 10_000
JOURNAL_SHOWN_MAX = 200
ON_THE_BOARD = ("line", "camera", "model", "journal", "kill", "ledger", "provider", "billing")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KIND_OF = {kind.key: kind for kind in KINDS}


class AlarmDesk:
    """The alarms of one node."""

    def __init__(
        self,
        *,
        file: PanelFile,
        books: Books,
        health: HealthBoard,
        about: About,
        threads: Executor,
        now: Callable[[], datetime],
        changed: Callable[[], None],
    ) -> None:
        self._file = file
        self._books = books
        self._health = health
        self._about = about
        self._threads = threads
        self._now = now
        self._changed = changed
        self._audit = AuditTrail(file, now=now)
        self._alarms = {kind.key: Alarm(key=kind.key) for kind in KINDS} | self._load()
        self._help: tuple[datetime, str] | None = None
        called = self._alarms["help"]
        if called.on and called.since is not None:
            self._help = called.since, called.words

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look(await self._books.read())
            await asyncio.sleep(LOOK_S)

    def look(self, reading: Reading) -> None:
        """Look once."""
        now, conditions = self._now(), self._conditions(reading)
        before, events = dict(self._alarms), []
        for kind in KINDS:
            alarm, happened = alarms.step(
                self._alarms[kind.key],
                kind,
                words=conditions.get(kind.key),
                suppressed=any(self._alarms[key].on for key in kind.suppressed_by),
                now=now,
            )
            self._alarms[kind.key] = alarm
            events += happened
        self._keep(before, events)

    # -- what people do ------------------------------------------------------------

    def acknowledge(self, key: str, who: Who, *, where: str) -> None:
        """Note that somebody has seen one alarm."""
        self._change(
            key, who, where, lambda one, now: alarms.acknowledge(one, who=who.name, now=now)
        )

    def shelve(self, key: str, who: Who, *, where: str, reason: str, span: timedelta) -> None:
        """Put one alarm away for a while."""
        self._change(
            key,
            who,
            where,
            lambda one, now: alarms.shelve(
                one, who=who.name, reason=reason, until=now + span, now=now
            ),
        )

    def withdraw(self, key: str, who: Who, *, where: str, reason: str) -> None:
        """Take one alarm out of service."""
        self._change(
            key,
            who,
            where,
            lambda one, now: alarms.withdraw(one, who=who.name, reason=reason, now=now),
        )

    def restore(self, key: str, who: Who, *, where: str) -> None:
        """Bring one alarm back; into service only whoever may take one out of it."""
        alarm = self._alarms.get(key)
        out = alarm is not None and alarm.state is State.OUT_OF_SERVICE
        if out and Right.MAINTAIN not in who.rights:
            raise AccessError(f"needs {least_role(Right.MAINTAIN)}")
        self._change(key, who, where, lambda one, now: alarms.restore(one, who=who.name, now=now))

    def call_help(self, who: Who, *, where: str) -> None:
        """Call for a person; calling twice is one call."""
        if self._help is None:
            self._help = self._now(), where
            self._tell("help.call", who, where)
            self._look_at_help()

    def answer_help(self, who: Who, *, where: str) -> None:
        """Note that somebody has come."""
        if self._help is not None:
            called, _ = self._help
            self._help = None
            waited = int((self._now() - called).total_seconds())
            self._tell("help.answer", who, where, after=f"after {waited} s")
            self._look_at_help()
            self.acknowledge("help", who, where=where)

    def _look_at_help(self) -> None:
        kind, now = _KIND_OF["help"], self._now()
        before = dict(self._alarms)
        words = None if self._help is None else self._help[1]
        alarm, events = alarms.step(before["help"], kind, words=words, suppressed=False, now=now)
        self._alarms["help"] = alarm
        self._keep(before, events)

    # -- what is shown ---------------------------------------------------------------

    def strip(self, say: Words) -> view.Json:
        """Return what the strip on every page shows: the worst alarm, and how many there are."""
        shown = self._shown()
        unacked = [one for one in shown if one.state is not State.ACKED]
        worst = next(iter(unacked), None)
        now = self._now()
        return {
            "counts": {
                str(priority): sum(_KIND_OF[one.key].priority == priority for one in shown)
                for priority in (1, 2, 3)
            },
            "worst": None if worst is None else self._row(say, worst, now),
            "help": None
            if self._help is None
            else {"since": view.age(say, now - self._help[0]), "where": self._help[1]},
            "rows": [self._row(say, one, now) for one in shown],
            "away": [
                self._row(say, one, now)
                for one in self._alarms.values()
                if one.state in (State.SHELVED, State.OUT_OF_SERVICE, State.SUPPRESSED)
                and (one.state is not State.SUPPRESSED or one.on)
            ],
        }

    def called_for(self) -> timedelta | None:
        """Return how long somebody has been waiting for help."""
        return None if self._help is None else self._now() - self._help[0]

    def history(self, say: Words) -> view.Json:
        """Return the journal of the alarms, their rate, and which come most often."""
        now = self._now()
        day_us = _us(now - timedelta(days=1))
        with self._file.transaction() as db:
            events = db.execute(
                "SELECT at_us, key, what, who, reason FROM alarm_event ORDER BY seq DESC LIMIT ?",
                (JOURNAL_SHOWN_MAX,),
            ).fetchall()
            raised = db.execute(
                "SELECT at_us, key FROM alarm_event WHERE what = 'raised' AND at_us >= ?",
                (day_us,),
            ).fetchall()
        recent = sum(at_us >= _us(now - RATE_WINDOW) for at_us, _ in raised)
        frequent = Counter(key for _, key in raised).most_common(10)
        return {
            "rate": recent,
            "day": len(raised),
            "frequent": [{"name": _name(say, key), "count": count} for key, count in frequent],
            "events": [
                {
                    "at": view.clock(_time(at_us), self._about.zone, near=now),
                    "name": _name(say, key),
                    "what": say(f"alarm.did.{what}"),
                    "who": who,
                    "reason": reason,
                }
                for at_us, key, what, who, reason in events
            ],
        }

    def _row(self, say: Words, alarm: Alarm, now: datetime) -> view.Json:
        kind = _KIND_OF[alarm.key]
        return {
            "key": alarm.key,
            "priority": kind.priority,
            "state": alarm.state.value,
            "state_word": say(f"alarm.state.{alarm.state}"),
            "name": _name(say, alarm.key),
            "words": alarm.words,
            "consequence": say(f"alarm.{alarm.key}.consequence"),
            "action": say(f"alarm.{alarm.key}.action"),
            "since": None
            if alarm.since is None
            else view.clock(alarm.since, self._about.zone, near=now),
            "acked_by": alarm.acked_by,
            "until": None
            if alarm.until is None
            else view.clock(alarm.until, self._about.zone, near=now, seconds=False),
            "reason": alarm.reason,
            "put_by": alarm.put_by,
        }

    def _shown(self) -> list[Alarm]:
        order = list(SHOWN)
        return sorted(
            (one for one in self._alarms.values() if one.state in SHOWN),
            key=lambda one: (
                _KIND_OF[one.key].priority,
                order.index(one.state),
                one.since or _EPOCH,
            ),
        )

    # -- what alarms hang on ------------------------------------------------------------

    def _conditions(self, reading: Reading) -> dict[str, str]:
        board = {one.component: one for one in self._health.all()}
        found = {
            name: board[name].words for name in ON_THE_BOARD if name in board and not board[name].ok
        }
        found |= _about_parts(reading) | _about_budgets(reading)
        if reading.waiting and (words := self._about_queue(reading)):
            found["queue"] = words
        if self._help is not None:
            found["help"] = self._help[1]
        return found

    def _about_queue(self, reading: Reading) -> str | None:
        now = self._now()
        late = any(
            (now - one.escalation.opened_at) * 2
            >= one.escalation.expires_at - one.escalation.opened_at
            for one in reading.waiting
        )
        if len(reading.waiting) < QUEUE_MAX and not late:
            return None
        return str(len(reading.waiting))

    # -- keeping -------------------------------------------------------------------------

    def _change(self, key: str, who: Who, where: str, do: Callable[..., Any]) -> None:
        if key not in self._alarms:
            raise RulingError(f"{key}: there is no such alarm")
        before = dict(self._alarms)
        try:
            self._alarms[key], events = do(before[key], self._now())
        except ValueError as error:
            raise RulingError(str(error)) from error
        if not events:
            raise RulingError(f"{key}: this alarm is {before[key].state}")
        for event in events:
            if event.who:
                self._tell(
                    f"alarm.{event.what}",
                    who,
                    where,
                    subject=key,
                    before=before[key].state,
                    after=self._alarms[key].state,
                    reason=event.reason,
                )
        self._keep(before, events)

    def _tell(self, what: str, who: Who, where: str, **more: str) -> None:
        deed = Deed(what=what, who=who.name, role=who.role, where=where, **more)
        self._in_background(lambda: self._audit.put(deed))

    def _keep(self, before: dict[str, Alarm], events: list[Event]) -> None:
        changed = [
            one
            for key, one in self._alarms.items()
            if _durable(one) != _durable(before[key]) or any(event.key == key for event in events)
        ]
        if not changed:
            return
        self._changed()
        rows = [(one.key, _write(one)) for one in changed]
        self._in_background(lambda: self._store(rows, events))

    def _in_background(self, do: Callable[[], None]) -> None:
        def done() -> None:
            try:
                do()
            except PanelUnavailableError as error:
                log.warning("alarm not kept", reason=str(error))

        self._threads.submit(done)

    def _store(self, rows: list[tuple[str, str]], events: list[Event]) -> None:
        with self._file.transaction() as db:
            db.executemany(
                "INSERT INTO alarm (key, body) VALUES (?, ?)"
                " ON CONFLICT (key) DO UPDATE SET body = excluded.body",
                rows,
            )
            db.executemany(
                "INSERT INTO alarm_event (at_us, key, what, who, reason) VALUES (?, ?, ?, ?, ?)",
                [(_us(one.at), one.key, one.what, one.who, one.reason) for one in events],
            )
            db.execute(
                "DELETE FROM alarm_event WHERE seq <= (SELECT max(seq) FROM alarm_event) - ?",
                (EVENTS_MAX,),
            )

    def _load(self) -> dict[str, Alarm]:
        with self._file.transaction() as db:
            rows = db.execute("SELECT key, body FROM alarm").fetchall()
        return {key: _read(json.loads(body)) for key, body in rows if key in _KIND_OF}


def _about_parts(reading: Reading) -> dict[str, str]:
    recent = reading.recent or ()
    found = {}
    last = recent[-IN_A_ROW:]
    if len(last) == IN_A_ROW and all(
        not isinstance(one, Fault) and one.verdict is Verdict.NOT_OK for one in last
    ):
        found["rejects"] = last[-1].part_id
    blind = sum(
        isinstance(one, Fault) or one.verdict is Verdict.UNDEFINED for one in recent[-BLIND_OF:]
    )
    if blind >= BLIND_MAX:
        found["blind"] = f"{blind} / {BLIND_OF}"
    return found


def _about_budgets(reading: Reading) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in reading.outlooks or ():
        if one.alarm in (BudgetAlarm.EXHAUSTED, BudgetAlarm.NOT_LENT):
            found.setdefault("budget-gone", one.state.budget.name)
        elif one.alarm is not None:
            found.setdefault("budget-low", one.state.budget.name)
    return found


def _name(say: Words, key: str) -> str:
    return say(f"alarm.{key}") if key in _KIND_OF else key


def _us(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _time(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)


def _durable(alarm: Alarm) -> tuple[object, ...]:
    return alarm.state, alarm.on, alarm.until, alarm.acked_by


def _write(alarm: Alarm) -> str:
    return json.dumps(
        {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in asdict(alarm).items()
        },
        ensure_ascii=False,
    )


def _read(said: dict[str, Any]) -> Alarm:
    for name in ("since", "changing_since", "until"):
        if said[name] is not None:
            said[name] = datetime.fromisoformat(said[name])
    return Alarm(**said | {"state": State(said["state"])})
