"""The Sparkplug edge node on its connection: the session of `EdgeNode`, carried out.

Every connection has the next bdSeq, which is on disk before the broker hears of it. Parts
come from the journal by a cursor, so what happened without a connection is told afterwards,
marked as historical; everything else is a value looked at now and then. Data is sent at
QoS 0 as Sparkplug has it, so tags are for looking at and never the bill.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from qcnode.domain import Fault, Inspection
from qcnode.errors import JournalUnavailableError, LineUnavailableError
from qcnode.lines import tags
from qcnode.lines.edge import NUMBERS, EdgeNode, Leave, Outcome, Publication, Refusal, Write
from qcnode.lines.mqtt import WITH_WILL, Link, Message, Will, Wish, tls_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from qcnode.books.journal import Journal
    from qcnode.health import HealthBoard
    from qcnode.lines.mqtt import Broker
    from qcnode.lines.sparkplug import Value

log = structlog.get_logger()

COMPONENT = "sparkplug"
READER = "sparkplug"
LOOK_S: Final = 0.25
READ_MAX: Final = 100
"""Parts told in one look: so many, four times a second, is how fast an outage is made up for."""
INBOX_MAX: Final = 1_000
TIMEOUT_S: Final = 10.0
GOODBYE_S: Final = 1.0
RETRY_S: Final = 1.0
RETRY_MAX_S: Final = 30.0
TOLD_AGE_MAX_MS: Final = 86_400_000
"""Parts older than a day are not told: a node that was just connected has a long journal."""


@dataclass(frozen=True, slots=True)
class BdSeqFile:
    """The number of the last session, kept through restarts."""

    path: Path

    def next(self) -> int:
        """Return the number of the session that begins now; it is on disk before this returns."""
        try:
            number = (int(self.path.read_text("ascii")) + 1) % NUMBERS
        except (FileNotFoundError, ValueError):
            number = 0  # The first one, or a file somebody damaged: a host then sees one jump.
        except OSError as error:
            raise LineUnavailableError(f"{self.path}: cannot be read ({error})") from error
        fresh = self.path.with_name(f"{self.path.name}.new")
        try:
            with fresh.open("w", encoding="ascii") as file:
                file.write(str(number))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        except OSError as error:
            raise LineUnavailableError(
                f"{self.path}: the number of this session cannot be kept ({error.strerror}):"
                " make room or fix its rights"
            ) from error
        return number


class SparkplugNode:
    """Runs one edge node until cancelled; a broker that is away costs nothing but a retry.

    `values` returns what the node (None) and its devices show now. `wrote` puts a host's
    write before the command path. `here` says which devices can be reached: one that cannot has
    died until it is back.
    """

    def __init__(
        self,
        broker: Broker,
        edge: EdgeNode,
        *,
        bd_seq: BdSeqFile,
        journal: Journal,
        values: Callable[[], Mapping[str | None, Mapping[str, Value]]],
        wrote: Callable[[Write], Awaitable[None]],
        health: HealthBoard,
        now_ms: Callable[[], int],
        jitter: Callable[[], float],
        here: Callable[[], Mapping[str, bool]] = dict,
    ) -> None:
        self._broker = broker
        self._tls = tls_of(broker)
        self._edge = edge
        self._bd_seq = bd_seq
        self._journal = journal
        self._values = values
        self._wrote = wrote
        self._health = health
        self._now_ms = now_ms
        self._jitter = jitter
        self._here = here
        self._inbox: asyncio.Queue[Message] = asyncio.Queue(INBOX_MAX)
        self._will: Publication | None = None
        self._born_ms = 0
        self._cursor = 0

    async def run(self) -> None:
        """Be an edge node until this task is cancelled."""
        failures = 0
        while True:
            try:
                await self._session()
                failures = 0  # The primary host went: wait for it on a new connection.
            except LineUnavailableError as error:
                self._health.report(COMPONENT, ok=False, words=str(error))
                failures += 1
            rest_s = min(RETRY_MAX_S, RETRY_S * 2 ** min(failures, 10))
            await asyncio.sleep(rest_s * (0.5 + self._jitter() / 2) if failures else 0)

    # -- as the passenger of its own connection ---------------------------------------------

    def will(self) -> Will:
        """Return the death that the broker publishes when we are gone."""
        assert self._will is not None  # noqa: S101  # a session begins with it
        return Will(
            topic=self._will.topic, payload=self._will.payload, qos=self._will.qos, retain=False
        )

    def topics(self) -> Sequence[Wish]:
        """Return what to listen to; a host's STATE is retained."""
        return [Wish(topic=topic, retained="/STATE/" in topic) for topic in self._edge.connected()]

    def took(self, message: Message) -> None:
        """Take a message in; beyond the bound the rest is lost, which hosts can repeat."""
        with contextlib.suppress(asyncio.QueueFull):
            self._inbox.put_nowait(message)

    def refused(self, words: str) -> None:
        """Say that hosts cannot reach us."""
        log.warning("sparkplug commands cannot be heard", why=words)

    # -- one session --------------------------------------------------------------------------

    async def _session(self) -> None:
        """Live from a connection to its end; returns when the primary host has gone."""
        self._inbox = asyncio.Queue(INBOX_MAX)
        number = await asyncio.to_thread(self._bd_seq.next)
        self._will = self._edge.connect(number, now_ms=self._now_ms())
        link = Link(self._broker, None, self._tls, TIMEOUT_S, passenger=self)
        try:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await link.open()
            except TimeoutError as error:
                raise LineUnavailableError(
                    f"broker {self._broker} did not answer in {TIMEOUT_S:g} s: is it reachable?"
                ) from error
            self._health.report(COMPONENT, ok=True, words=f"session {number}")
            await self._live(link)
        finally:
            await self._leave(link)

    async def _live(self, link: Link) -> None:
        self._cursor = await asyncio.to_thread(self._journal.cursor, READER)
        self._report_values()
        if await self._carry_out(link, self._edge.granted(now_ms=self._now_ms())):
            return
        while True:
            link.check()
            message = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    message = await self._inbox.get()
            outcomes = []
            if message is not None:
                outcomes = self._edge.took(
                    message.topic,
                    message.payload,
                    retained=message.retained,
                    now_ms=self._now_ms(),
                )
            outcomes += self._edge.tick(now_ms=self._now_ms())
            if await self._carry_out(link, outcomes):
                return
            await self._carry_out(link, self._report_values())
            await self._tell_parts(link)

    async def _carry_out(self, link: Link, outcomes: Sequence[Outcome]) -> bool:
        """Do what the session wants, and say whether it ends."""
        for outcome in outcomes:
            if isinstance(outcome, Publication):
                if "/NBIRTH/" in outcome.topic:
                    self._born_ms = self._now_ms()
                await self._say(link, outcome)
            elif isinstance(outcome, Write):
                await self._wrote(outcome)
            elif isinstance(outcome, Refusal):
                log.warning("sparkplug message refused", topic=outcome.topic, why=outcome.why)
            elif isinstance(outcome, Leave):
                log.info("the primary host is offline, so the node leaves until it is back")
                return True
        return False

    def _report_values(self) -> list[Outcome]:
        now_ms = self._now_ms()
        told: list[Outcome] = []
        for name, here in self._here().items():
            change = self._edge.device_back if here else self._edge.device_lost
            told += change(name, now_ms=now_ms)
        for device, values in self._values().items():
            told += self._edge.report(device, values, at_ms=now_ms, now_ms=now_ms)
        return told

    async def _tell_parts(self, link: Link) -> None:
        """Tell the next parts of the journal, those from before the birth as historical."""
        if not self._edge.ready:
            return
        try:
            records = await asyncio.to_thread(self._journal.read, self._cursor, READ_MAX)
        except JournalUnavailableError:
            return  # The journal says so itself, and will be read again.
        for seq, record in records:
            self._cursor = seq
            if not isinstance(record, Inspection | Fault):
                continue
            at = record.captured_at if isinstance(record, Inspection) else record.at
            at_ms, now_ms = int(at.timestamp() * 1000), self._now_ms()
            if at_ms < now_ms - TOLD_AGE_MAX_MS:
                continue
            for told in self._edge.report(
                tags.CAMERA,
                tags.verdict(record),
                at_ms=at_ms,
                now_ms=now_ms,
                historical=at_ms < self._born_ms,
            ):
                await self._say(link, told)
        if records:
            with contextlib.suppress(JournalUnavailableError):
                self._journal.advance(READER, self._cursor)

    async def _say(self, link: Link, publication: Publication) -> None:
        await link.say(publication.topic, publication.payload, qos=publication.qos)

    async def _leave(self, link: Link) -> None:
        """Say goodbye as far as the connection still carries it."""
        with contextlib.suppress(LineUnavailableError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                for publication in self._edge.leave(now_ms=self._now_ms()):
                    await self._say(link, publication)
        self._edge.lost()
        await link.close(reason=WITH_WILL)
