"""Alarms and calls for help over HTTP."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request, status
from pydantic import BaseModel, ConfigDict, Field

from qcnode.panel.access import Right, needs, who_asks
from qcnode.panel.screen import words_for

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from qcnode.panel.alarmdesk import AlarmDesk

_Reason = Annotated[str, Field(min_length=3, max_length=300)]


class ShelfIn(BaseModel):
    """For how long, and why."""

    model_config = ConfigDict(extra="forbid")

    minutes: Annotated[int, Field(ge=1, le=480)]
    reason: _Reason


class ReasonIn(BaseModel):
    """Why."""

    model_config = ConfigDict(extra="forbid")

    reason: _Reason


def router(desk: AlarmDesk, *, threads: Executor) -> APIRouter:
    """Return the routes of the alarms."""
    routes = APIRouter(prefix="/api/v1")
    done = status.HTTP_204_NO_CONTENT

    @routes.get("/alarms", dependencies=[needs(Right.VIEW)])
    async def alarms(request: Request) -> dict[str, Any]:
        """Return the alarms as they stand, their journal and their rate."""
        say = words_for(request)
        history = await asyncio.get_running_loop().run_in_executor(threads, desk.history, say)
        return desk.strip(say) | history

    @routes.post("/alarms/{key}/ack", status_code=done, dependencies=[needs(Right.ACKNOWLEDGE)])
    async def acknowledge(request: Request, key: str) -> None:
        """Note that you have seen this alarm."""
        desk.acknowledge(key, who_asks(request), where=_where(request))

    @routes.post("/alarms/{key}/shelve", status_code=done, dependencies=[needs(Right.SHELVE)])
    async def shelve(request: Request, key: str, said: ShelfIn) -> None:
        """Put this alarm away; it comes back by itself."""
        desk.shelve(
            key,
            who_asks(request),
            where=_where(request),
            reason=said.reason,
            span=timedelta(minutes=said.minutes),
        )

    @routes.post("/alarms/{key}/withdraw", status_code=done, dependencies=[needs(Right.MAINTAIN)])
    async def withdraw(request: Request, key: str, said: ReasonIn) -> None:
        """Take this alarm out of service."""
        desk.withdraw(key, who_asks(request), where=_where(request), reason=said.reason)

    @routes.post("/alarms/{key}/restore", status_code=done, dependencies=[needs(Right.SHELVE)])
    async def restore(request: Request, key: str) -> None:
        """Bring this alarm back from the shelf or into service."""
        desk.restore(key, who_asks(request), where=_where(request))

    @routes.post("/help", status_code=done, dependencies=[needs(Right.HELP)])
    async def call_help(request: Request) -> None:
        """Call a person to this screen; nobody has to sign in for it."""
        desk.call_help(who_asks(request), where=_where(request))

    @routes.post("/help/answer", status_code=done, dependencies=[needs(Right.ACKNOWLEDGE)])
    async def answer_help(request: Request) -> None:
        """Note that you have come."""
        desk.answer_help(who_asks(request), where=_where(request))

    return routes


def _where(request: Request) -> str:
    return request.client.host if request.client else "panel"
