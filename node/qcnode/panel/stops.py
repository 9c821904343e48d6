"""The kill switch at the panel: one press stops, two people clear.

Stopping touches no database, so it works when the panel's own file does not; it goes into
the audit trail as soon as that takes it. Clearing is refused to programs: a token is nobody.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import structlog
from fastapi import APIRouter, Request, status
from pydantic import BaseModel, ConfigDict, Field

from qcnode.errors import AccessError, QcError
from qcnode.panel.access import Right, needs, who_asks
from qcnode.panel.audit import AuditTrail, Deed
from qcnode.panel.screen import words_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor
    from datetime import datetime

    from qcnode.kill import Stop
    from qcnode.panel.access import Who
    from qcnode.panel.file import PanelFile
    from qcnode.panel.words import Words

log = structlog.get_logger()

_Scope = Annotated[str, Field(min_length=1, max_length=80)]


class SwitchView(Protocol):
    """The node's kill switch."""

    def stops(self) -> Sequence[Stop]:
        """Return what is stopped."""

    def stop(self, scope: str, *, who: str, reason: str) -> None:
        """Stop something at once; raises `KillSwitchError` where there is no such scope."""

    def clear(self, scope: str, *, who: str, reason: str) -> bool:
        """Ask for something to run again, and say whether it does; raises `KillSwitchError`."""


class StopIn(BaseModel):
    """What is to be stopped, and why, if there is time to say it."""

    model_config = ConfigDict(extra="forbid")

    scope: _Scope
    reason: Annotated[str, Field(max_length=300)] = ""


class ClearIn(BaseModel):
    """What is to run again, and why."""

    model_config = ConfigDict(extra="forbid")

    scope: _Scope
    reason: Annotated[str, Field(min_length=3, max_length=300)]


def router(
    switch: SwitchView,
    *,
    file: PanelFile,
    now: Callable[[], datetime],
    threads: Executor,
    changed: Callable[[], None],
) -> APIRouter:
    """Return the routes; `changed` is called when something was stopped or cleared."""
    routes = APIRouter(prefix="/api/v1/stops")
    trail = AuditTrail(file, now=now)

    def note(deed: Deed) -> None:
        try:
            with file.transaction() as db:
                trail.add(db, deed)
        except QcError as error:
            log.warning("a stop is not in the audit trail", why=str(error))

    @routes.get("", dependencies=[needs(Right.VIEW)])
    async def stops(request: Request) -> list[dict[str, Any]]:
        """Return what is stopped, by whom, and who asks to clear it."""
        return stop_words(words_for(request), await asyncio.to_thread(switch.stops))

    @routes.post("", status_code=status.HTTP_204_NO_CONTENT, dependencies=[needs(Right.STOP)])
    async def stop(request: Request, said: StopIn) -> None:
        """Stop everything, the line, an agent or a provider, at once."""
        who = who_asks(request)
        await asyncio.to_thread(switch.stop, said.scope, who=who.name, reason=said.reason)
        changed()
        deed = _deed(request, who, "stop", said.scope, said.reason)
        # The answer does not wait for the file.
        asyncio.get_running_loop().run_in_executor(threads, note, deed)

    @routes.post("/clear", dependencies=[needs(Right.CLEAR)])
    async def clear(request: Request, said: ClearIn) -> dict[str, Any]:
        """Ask for it to run again; a second person who asks the same clears it."""
        who = who_asks(request)
        if who.key is None:
            raise AccessError("a person clears a stop, and this is a program's token")
        done = await asyncio.to_thread(switch.clear, said.scope, who=who.name, reason=said.reason)
        changed()
        what = "stop.clear" if done else "stop.ask"
        deed = _deed(request, who, what, said.scope, said.reason)
        await asyncio.get_running_loop().run_in_executor(threads, note, deed)
        say = words_for(request)
        told = say("stop.cleared", scope=said.scope) if done else say("stop.second")
        return {"cleared": done, "words": told}

    return routes


def stop_words(say: Words, stops: Sequence[Stop]) -> list[dict[str, Any]]:
    """Return what is stopped as screens show it."""
    return [
        {
            "scope": one.scope,
            "name": stop_name(say, one.scope),
            "who": one.who,
            "reason": one.reason,
            "at": one.at,
            "asked_by": one.asked_by,
        }
        for one in stops
    ]


def stop_name(say: Words, scope: str) -> str:
    """Return what a scope is called on a screen."""
    kind, _, name = scope.partition(":")
    return f"{say(f'stop.scope.{kind}')} {name}".rstrip()


def _deed(request: Request, who: Who, what: str, scope: str, reason: str) -> Deed:
    where = request.client.host if request.client else "panel"
    return Deed(what=what, who=who.name, role=who.role, where=where, subject=scope, reason=reason)
