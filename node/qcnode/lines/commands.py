"""The one way by which anybody outside changes something: weighed, recorded, done, answered.

Whether it came over MQTT or Sparkplug, a command is refused when it was retained (an old
one), cannot be read, is out of its time, or its role may not; each is on record either way.
The broker's access rules say who may write to which command's topic; the role in the
command is what that person acts as, and is held against `actors` where there are any. The
same id again gets the same answer and does nothing. A command that stops something waits
for no other and for no disk: it is done first and put on record then.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import structlog

from qcnode.errors import JournalUnavailableError, QcError
from qcnode.lines.messages import (
    COMMAND_BYTES_MAX,
    COMMAND_LIFE_MAX_S,
    COMMANDS,
    Command,
    Reply,
    Status,
    stamp,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import datetime

log = structlog.get_logger()

SKEW_S: Final = 5
"""By how much the sender's clock may be ahead of ours."""
CARRY_OUT_S: Final = 10.0
SHOWN_MAX: Final = 500
AT_ONCE: Final = ("kill",)
"""Commands that are done before they are on record; doing them twice changes nothing."""


class Row(Protocol):
    """A command on record, as far as its answer goes."""

    @property
    def body(self) -> str:
        """What was sent."""

    @property
    def status(self) -> str | None:
        """The answer; None is not finished."""

    @property
    def reason(self) -> str | None:
        """Why."""


class CommandBook(Protocol):
    """Where commands are on record."""

    def begin(
        self,
        *,
        command_id: str | None,
        at: str,
        name: str,
        actor: str | None,
        role: str | None,
        way: str,
        body: str,
    ) -> Row | None:
        """Put a command on record, or return the one that has its id already."""

    def end(self, command_id: str, *, status: str, reason: str) -> None:
        """Put the answer to a command on record."""

    def refuse(self, *, at: str, name: str, way: str, body: str, status: str, reason: str) -> None:
        """Put something on record that was no command that could be taken."""


class _RefusedError(Exception):
    """A command that is not carried out, and why."""

    def __init__(self, status: Status, reason: str, command_id: str | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.command_id = command_id


class CommandPath:
    """Takes commands one at a time. `handlers` do what is wanted and say what they did.

    A handler raises a `QcError` when it cannot. `actors` says which roles a name may act in;
    None leaves that to the broker's access rules.
    """

    def __init__(
        self,
        *,
        book: CommandBook,
        handlers: Mapping[str, Callable[[Command], Awaitable[str]]],
        actors: Mapping[str, tuple[str, ...]] | None,
        now: Callable[[], datetime],
    ) -> None:
        self._book = book
        self._handlers = handlers
        self._actors = actors
        self._now = now
        self._turn = asyncio.Lock()

    async def take(self, name: str, payload: bytes, *, retained: bool, way: str) -> Reply:
        """Weigh a command, carry it out when it may be, and return the answer."""
        if name in AT_ONCE:
            return await self._take_at_once(name, payload, retained=retained, way=way)
        async with self._turn:
            return await self._recorded(name, payload, retained=retained, way=way)

    async def _recorded(self, name: str, payload: bytes, *, retained: bool, way: str) -> Reply:
        try:
            return await self._take(name, payload, retained=retained, way=way)
        except JournalUnavailableError as error:
            # What cannot be put on record is not done.
            log.warning("command not recorded, so not done", command=name, why=str(error))
            return self._reply(None, name, "rejected", "it cannot be put on record")

    async def _take_at_once(self, name: str, payload: bytes, *, retained: bool, way: str) -> Reply:
        try:
            command = self._weigh(name, payload, retained=retained)
        except _RefusedError:
            async with self._turn:
                return await self._recorded(name, payload, retained=retained, way=way)
        status, reason = await self._carry_out(name, command)
        log.warning("command", command=name, actor=command.actor, status=status, reason=reason)
        body = payload.decode("utf-8", "backslashreplace")
        try:
            known = await asyncio.to_thread(self._begin, name, command, way=way, body=body)
            if known is None:
                await asyncio.to_thread(self._book.end, command.id, status=status, reason=reason)
        except JournalUnavailableError as error:
            log.warning("command done and not recorded", command=name, why=str(error))
        return self._reply(command.id, name, status, reason)

    def _begin(self, name: str, command: Command, *, way: str, body: str) -> Row | None:
        return self._book.begin(
            command_id=command.id,
            at=stamp(self._now()),
            name=name,
            actor=command.actor,
            role=command.role,
            way=way,
            body=body,
        )

    async def _take(self, name: str, payload: bytes, *, retained: bool, way: str) -> Reply:
        shown = payload[:SHOWN_MAX].decode("utf-8", "backslashreplace")
        whole = payload[:COMMAND_BYTES_MAX].decode("utf-8", "backslashreplace")
        try:
            command = self._weigh(name, payload, retained=retained)
            known = await asyncio.to_thread(self._begin, name, command, way=way, body=whole)
            if known is not None:
                return self._again(name, command.id, known, whole)
        except _RefusedError as refusal:
            await asyncio.to_thread(
                self._book.refuse,
                at=stamp(self._now()),
                name=name[:SHOWN_MAX],
                way=way,
                body=shown,
                status=refusal.status,
                reason=refusal.reason,
            )
            log.warning("command refused", command=name[:40], why=refusal.reason)
            return self._reply(refusal.command_id, name, refusal.status, refusal.reason)
        status, reason = await self._carry_out(name, command)
        await asyncio.to_thread(self._book.end, command.id, status=status, reason=reason)
        log.info("command", command=name, actor=command.actor, status=status, reason=reason)
        return self._reply(command.id, name, status, reason)

    def _weigh(self, name: str, payload: bytes, *, retained: bool) -> Command:
        """Return the command, or raise why it is not carried out."""
        if retained:
            raise _RefusedError("rejected", "it was retained, and a retained command is an old one")
        if name not in COMMANDS or name not in self._handlers:
            raise _RefusedError("rejected", "there is no such command")
        if len(payload) > COMMAND_BYTES_MAX:
            raise _RefusedError("rejected", f"it is longer than {COMMAND_BYTES_MAX} bytes")
        kind, roles = COMMANDS[name]
        try:
            command = msgspec.json.decode(payload, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _RefusedError("rejected", f"it cannot be read: {error}"[:SHOWN_MAX]) from None
        now_s = self._now().timestamp()
        if not 0 < command.exp - command.iat <= COMMAND_LIFE_MAX_S:
            words = f"exp must be at most {COMMAND_LIFE_MAX_S} s after iat"
            raise _RefusedError("rejected", words, command.id)
        if not command.iat - SKEW_S <= now_s <= command.exp:
            words = "it is out of its time: compare the clocks"
            raise _RefusedError("expired", words, command.id)
        if command.role not in roles:
            words = f"the role {command.role} may not; {' or '.join(roles)} may"
            raise _RefusedError("rejected", words, command.id)
        if self._actors is not None and command.role not in self._actors.get(command.actor, ()):
            words = f"{command.actor} does not have the role {command.role} here"
            raise _RefusedError("rejected", words, command.id)
        return command

    async def _carry_out(self, name: str, command: Command) -> tuple[Status, str]:
        try:
            async with asyncio.timeout(CARRY_OUT_S):
                return "applied", await self._handlers[name](command)
        except QcError as error:
            return "rejected", str(error)[:SHOWN_MAX]
        except TimeoutError:
            return "rejected", f"it was not done within {CARRY_OUT_S:g} s; look before repeating it"

    def _again(self, name: str, command_id: str, known: Row, body: str) -> Reply:
        if known.body != body:
            return self._reply(
                command_id, name, "rejected", "another command had this id; take a new one"
            )
        if known.status is None:
            words = "it was begun and the node stopped; look before repeating it"
            return self._reply(command_id, name, "rejected", words)
        status = msgspec.convert(known.status, Status)
        return self._reply(command_id, name, status, known.reason or "")

    def _reply(self, command_id: str | None, name: str, status: Status, reason: str) -> Reply:
        return Reply(
            id=command_id,
            command=name[:40],
            status=status,
            reason=reason,
            ts=stamp(self._now()),
        )
