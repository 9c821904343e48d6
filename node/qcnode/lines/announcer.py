"""What the node says to whoever watches the line, over the connection to the broker.

Events are read from the journal by a cursor each kind has of its own, so an outage, a
restart or a slow broker are just unread entries and the line never waits. An event counts
as said when the broker has acknowledged it to a subscriber, and is said once more when the
connection breaks within `RESEND_S` of that, because a broker that dies may forget what it
acknowledged; readers know events by their ids. State, alarms and totals are retained and
said anew on every connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import structlog

from qcnode.domain import Escalation, Fault, Inspection, Ruling
from qcnode.errors import JournalUnavailableError, LineUnavailableError
from qcnode.lines.commands import AT_ONCE
from qcnode.lines.messages import (
    Alarm,
    Alarms,
    Heartbeat,
    State,
    Totals,
    alarm_of,
    encode,
    event_of,
    stamp,
)
from qcnode.lines.mqtt import NO_SUBSCRIBERS, Message, Will, Wish

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from concurrent.futures import Future
    from datetime import datetime

    from qcnode.domain import JournalRecord
    from qcnode.health import HealthBoard
    from qcnode.lines.commands import CommandPath
    from qcnode.lines.mqtt import Link
    from qcnode.lines.topics import NodeTopics

log = structlog.get_logger()

COMPONENT = "line messages"
HEARTBEAT_S: Final = 0.5
LOOK_S: Final = 1.0
WINDOW: Final = 20
"""Events on their way to the broker at once."""
SEEK: Final = 200
RESEND_S: Final = 5.0
NOBODY_S: Final = 2.0
SAID_S: Final = 10.0
RETRY_S: Final = 1.0
RETRY_MAX_S: Final = 30.0
TAKEOVERS: Final = 3
TAKEOVER_WINDOW_S: Final = 60.0
COMMANDS_MAX: Final = 100
ALARM_EVENTS_MAX: Final = 1_000
FAILURE: Final = 0x80
DAY_S: Final = 86_400
HEARTBEAT_LIFE_S: Final = 3


class EventSource(Protocol):
    """A journal, as far as it is read here."""

    def read(self, after_seq: int, limit: int) -> list[tuple[int, JournalRecord]]:
        """Return up to `limit` records beyond `after_seq` with their seq, in order."""

    def cursor(self, reader: str) -> int:
        """Return how far `reader` has come; 0 at the beginning."""

    def advance(self, reader: str, seq: int) -> Future[bool]:
        """Note that `reader` has dealt with everything up to `seq`."""

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, from another thread, after each group is durable."""


class Connection(Protocol):
    """Where a connection comes from: `MqttChannel`."""

    async def linked(self) -> Link:
        """Return the connection as it stands, or make it; raises `LineUnavailableError`."""

    async def drop(self, link: Link) -> None:
        """Give a connection up, so that the next one is made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is told of the node itself, and does not change while it runs."""

    node: str
    boot_id: str
    sw_version: str
    model: str


@dataclass(slots=True, kw_only=True)
class _Reader:
    """One kind of event: where it goes, how long it counts, and how far it was said."""

    kind: str
    of: tuple[type[JournalRecord], ...]
    life_s: int
    seq: int | None = None
    done: int = 0
    fresh: deque[tuple[float, int]] = field(default_factory=deque)
    nobody_until: float = 0.0

    @property
    def name(self) -> str:
        return f"mqtt {self.kind}"


class Announcer:
    """Says what happens until cancelled; run it as one task beside its `MqttChannel`.

    `ready` says whether parts can be judged, `running` whether they are; `pending_ms` for
    how long the part in hand has been in hand. `totals` is what was spent.
    """

    def __init__(
        self,
        topics: NodeTopics,
        *,
        about: About,
        journal: EventSource,
        health: HealthBoard,
        ready: Callable[[], bool],
        running: Callable[[], bool],
        pending_ms: Callable[[], int],
        totals: Callable[[], Totals],
        commands: CommandPath | None,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        monotonic_s: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._topics = topics
        self._about = about
        self._journal = journal
        self._health = health
        self._ready = ready
        self._running = running
        self._pending_ms = pending_ms
        self._totals = totals
        self._commands = commands
        self._now = now
        self._new_id = new_id
        self._monotonic_s = monotonic_s
        self._jitter = jitter
        self._inbox: asyncio.Queue[Message] = asyncio.Queue(COMMANDS_MAX)
        self._urgent: asyncio.Queue[Message] = asyncio.Queue(COMMANDS_MAX)
        """What stops something waits behind nothing else."""
        self._readers = (
            _Reader(kind="verdict", of=(Inspection, Fault), life_s=DAY_S),
            _Reader(kind="escalation", of=(Escalation,), life_s=DAY_S),
            _Reader(kind="disposition", of=(Ruling,), life_s=7 * DAY_S),
        )
        self._alarms: dict[str, Alarm] = {}
        self._alarm_events: deque[Alarm] = deque(maxlen=ALARM_EVENTS_MAX)
        self._retained: dict[str, bytes] = {}
        self._losses: deque[float] = deque(maxlen=TAKEOVERS)
        self._beats = 0
        self._news = asyncio.Event()
        self._trouble: LineUnavailableError | None = None

    async def run(self, connection: Connection) -> None:
        """Say what happens until this task is cancelled, then say that we are leaving."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            # The journal's thread may outlive this loop.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._news.set)

        self._journal.add_listener(wake)
        failures = 0
        link: Link | None = None
        try:
            while True:
                try:
                    link = None
                    link = await connection.linked()
                    failures = 0
                    await self._speak(link)
                except LineUnavailableError as error:
                    failures += 1
                    if link is not None:
                        self._losses.append(self._monotonic_s())
                        await connection.drop(link)
                    self._health.report(COMPONENT, ok=False, words=self._why(str(error)))
                self._step_back()
                rest_s = min(RETRY_MAX_S, RETRY_S * 2 ** min(failures - 1, 10))
                if self._is_taken_over():
                    rest_s = RETRY_MAX_S
                await asyncio.sleep(rest_s * (0.5 + self._jitter() / 2))
        finally:
            if link is not None and not link.lost:
                await self._say_goodbye(link)

    # -- as the passenger of the connection ---------------------------------------------------

    def will(self) -> Will:
        """Return the state that the broker shows when we are gone."""
        gone = self._state(online=False, reason="the connection was lost")
        return Will(topic=self._topics.state, payload=encode(gone), qos=1, retain=True)

    def topics(self) -> Sequence[Wish]:
        """Return what to listen to: commands, never retained ones."""
        return () if self._commands is None else (Wish(topic=self._topics.commands),)

    def took(self, message: Message) -> None:
        """Take a command in line; beyond the bound the sender hears nothing and may repeat it."""
        urgent = self._topics.command_of(message.topic) in AT_ONCE
        with contextlib.suppress(asyncio.QueueFull):
            (self._urgent if urgent else self._inbox).put_nowait(message)

    def refused(self, words: str) -> None:
        """Say that commands cannot be heard."""
        log.warning("commands cannot be heard", why=words)

    # -- while there is a connection ------------------------------------------------------------

    async def _speak(self, link: Link) -> None:
        self._retained.clear()
        self._health.report(COMPONENT, ok=True, words=f"to {self._topics.root}")
        self._trouble = None
        async with asyncio.TaskGroup() as tasks:
            speaking = [
                tasks.create_task(self._until_lost(speak, link))
                for speak in (self._beat, self._tell_states, self._answer, self._stop_at_once)
            ]
            try:
                await self._until_lost(self._tell_events, link)
            finally:
                for task in speaking:
                    task.cancel()
        raise self._trouble or LineUnavailableError("the connection to the broker was lost")

    async def _until_lost(self, speak: Callable[[Link], Awaitable[None]], link: Link) -> None:
        """Go on until the connection is lost, for all who speak on it."""
        try:
            await speak(link)
        except LineUnavailableError as error:
            self._trouble = self._trouble or error
            self._news.set()

    async def _beat(self, link: Link) -> None:
        while True:
            self._beats += 1
            beat = Heartbeat(
                seq=self._beats,
                ready=self._ready(),
                mono_ms=int(self._monotonic_s() * 1000),
                oldest_pending_ms=self._pending_ms(),
            )
            await link.say(self._topics.heartbeat, encode(beat), expiry_s=HEARTBEAT_LIFE_S)
            await asyncio.sleep(HEARTBEAT_S)

    async def _tell_states(self, link: Link) -> None:
        """Say what is retained when it changes, and alarms as they come and go."""
        while True:
            self._look_for_alarms()
            while self._alarm_events:
                alarm = self._alarm_events[0]
                await self._acknowledged(link, "alarm", encode(alarm), 7 * DAY_S)
                self._alarm_events.popleft()
            active = tuple(self._alarms[code] for code in sorted(self._alarms))
            now = stamp(self._now())
            await self._retain(link, self._topics.state, self._state(online=True, reason=""))
            await self._retain(link, self._topics.alarms, Alarms(active=active, ts=now))
            await self._retain(link, self._topics.total, self._totals())
            await asyncio.sleep(HEARTBEAT_S)

    async def _answer(self, link: Link) -> None:
        await self._answer_from(self._inbox, link)

    async def _stop_at_once(self, link: Link) -> None:
        await self._answer_from(self._urgent, link)

    async def _answer_from(self, inbox: asyncio.Queue[Message], link: Link) -> None:
        while True:
            message = await inbox.get()
            name = self._topics.command_of(message.topic)
            if name is None or self._commands is None:
                continue
            reply = await self._commands.take(
                name, message.payload, retained=message.retained, way="mqtt"
            )
            if name == "refresh" and reply.status == "applied":
                self._retained.clear()
            await _say(
                link,
                self._reply_topic(name, message.response_topic),
                encode(reply),
                correlation=message.correlation,
            )

    def _reply_topic(self, name: str, wanted: str | None) -> str:
        # An answer goes nowhere but to answers: not into the books, and not to other nodes.
        own = f"{self._topics.root}/cmd/"
        if wanted is not None and wanted.startswith(own) and wanted.endswith("/reply"):
            return wanted
        return self._topics.reply(name if name.isidentifier() else "unknown")

    async def _tell_events(self, link: Link) -> None:
        while self._trouble is None:
            self._news.clear()
            link.check()
            told = False
            for reader in self._readers:
                if self._monotonic_s() >= reader.nobody_until:
                    told = await self._tell_some(link, reader) or told
                self._settle(reader)
            if not told:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._news.wait()

    async def _tell_some(self, link: Link, reader: _Reader) -> bool:
        """Say the next events of a kind, and whether there were any records at all."""
        try:
            if reader.seq is None:
                reader.seq = reader.done = await asyncio.to_thread(
                    self._journal.cursor, reader.name
                )
            records = await asyncio.to_thread(self._journal.read, reader.seq, SEEK)
        except JournalUnavailableError:
            return False  # The journal says so itself, and will be read again.
        oldest = self._now() - timedelta(seconds=reader.life_s)
        said: list[tuple[int, asyncio.Future[int] | None]] = []
        last = reader.seq
        for seq, record in records:
            if isinstance(record, reader.of) and _at(record) >= oldest:
                if len(said) == WINDOW:
                    break
                event = event_of(record)
                assert event is not None  # noqa: S101  # what is read here is told
                said.append((seq, asyncio.ensure_future(self._event(link, reader, encode(event)))))
            last = seq
        await self._take_answers(reader, said, last)
        return bool(records)

    async def _take_answers(
        self, reader: _Reader, said: list[tuple[int, asyncio.Future[int] | None]], last: int
    ) -> None:
        """Move the cursor as far as the broker had somebody to give the events to."""
        try:
            for seq, answer in said:
                reason = 0 if answer is None else await answer
                if reason == NO_SUBSCRIBERS:
                    reader.nobody_until = self._monotonic_s() + NOBODY_S
                    return
                if reason >= FAILURE:
                    reader.nobody_until = self._monotonic_s() + RETRY_MAX_S
                    self._health.report(
                        COMPONENT,
                        ok=False,
                        words=f"the broker does not take {self._topics.event(reader.kind)}"
                        f" (reason {reason}): allow it to this node",
                    )
                    return
                reader.seq = seq
                reader.fresh.append((self._monotonic_s(), seq))
            reader.seq = last
            if last > reader.done and not reader.fresh:
                reader.fresh.append((self._monotonic_s(), last))
        finally:
            for _seq, answer in said:
                if answer is not None and not answer.done():
                    answer.cancel()
            await asyncio.gather(
                *(answer for _seq, answer in said if answer is not None), return_exceptions=True
            )

    async def _event(self, link: Link, reader: _Reader, payload: bytes) -> int:
        return await self._acknowledged(link, reader.kind, payload, reader.life_s)

    async def _acknowledged(self, link: Link, kind: str, payload: bytes, life_s: int) -> int:
        return await _say(link, self._topics.event(kind), payload, expiry_s=life_s)

    def _settle(self, reader: _Reader) -> None:
        """Note on disk what was said long enough ago to be with its readers."""
        before, was = self._monotonic_s() - RESEND_S, reader.done
        while reader.fresh and reader.fresh[0][0] <= before:
            reader.done = reader.fresh.popleft()[1]
        if reader.done != was:
            if not reader.fresh and reader.seq is not None:
                reader.done = reader.seq
            with contextlib.suppress(JournalUnavailableError):
                self._journal.advance(reader.name, reader.done)

    def _step_back(self) -> None:
        """Say once more what was said just before the connection broke."""
        for reader in self._readers:
            if reader.seq is not None:
                reader.seq = reader.done
            reader.fresh.clear()

    # -- what is said ---------------------------------------------------------------------------

    def _state(self, *, online: bool, reason: str) -> State:
        ready, running = self._ready(), self._running()
        degraded = any(not health.ok for health in self._health.all())
        return State(
            online=online,
            node=self._about.node,
            boot_id=self._about.boot_id,
            sw_version=self._about.sw_version,
            model=self._about.model,
            packml_state=("Execute" if ready else "Held") if running else "Stopped",
            ready=ready and online,
            degraded=degraded,
            reason=reason,
            ts=stamp(self._now()),
        )

    def _look_for_alarms(self) -> None:
        for health in self._health.all():
            code = health.component.replace(" ", "-")
            known = self._alarms.get(code)
            if health.ok == (known is None):
                continue
            alarm = alarm_of(health, alarm_id=self._new_id(), now=self._now())
            self._alarm_events.append(alarm)
            if health.ok:
                del self._alarms[code]
            else:
                self._alarms[code] = alarm

    async def _retain(self, link: Link, topic: str, said: State | Alarms | Totals) -> None:
        """Say something that is retained, if it is not what was said last."""
        same = encode(msgspec.structs.replace(said, ts=""))
        if self._retained.get(topic) == same:
            return
        await _say(link, topic, encode(said), retain=True)
        self._retained[topic] = same

    async def _say_goodbye(self, link: Link) -> None:
        with contextlib.suppress(LineUnavailableError, TimeoutError):
            async with asyncio.timeout(1.0):
                gone = self._state(online=False, reason="the node was stopped")
                await link.say(self._topics.state, encode(gone), qos=1, retain=True)

    # -- two nodes of one name --------------------------------------------------------------------

    def _is_taken_over(self) -> bool:
        """Say whether losses come so fast that somebody else must have our name."""
        age_s = self._monotonic_s() - self._losses[0] if self._losses else 0.0
        return len(self._losses) == TAKEOVERS and age_s < TAKEOVER_WINDOW_S

    def _why(self, words: str) -> str:
        if self._is_taken_over():
            return f"{words} (again and again: is there another node called {self._about.node}?)"
        return words


async def _say(
    link: Link,
    topic: str,
    payload: bytes,
    *,
    retain: bool = False,
    expiry_s: int | None = None,
    correlation: bytes | None = None,
) -> int:
    """Publish at QoS 1; a broker that does not acknowledge is as good as lost."""
    try:
        async with asyncio.timeout(SAID_S):
            return await link.say(
                topic, payload, qos=1, retain=retain, expiry_s=expiry_s, correlation=correlation
            )
    except TimeoutError as error:
        raise LineUnavailableError(
            f"the broker did not acknowledge {topic} in {SAID_S:g} s: is it overloaded?"
        ) from error


def _at(record: JournalRecord) -> datetime:
    """Return when a record happened, of those that are told."""
    if isinstance(record, Inspection):
        return record.captured_at
    if isinstance(record, Escalation):
        return record.opened_at
    assert isinstance(record, Fault | Ruling)  # noqa: S101  # nothing else is told
    return record.at
