"""Waiting parts: what a person is shown of them, and the ruling they give.

A ruling carries a key its browser made up. The same key with the same words is the
same press of the button, however often it arrives, and is answered the same.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Header, HTTPException, Request, Response, status
from pydantic import BaseModel, ConfigDict, Field

from qcnode.domain import Box, Finding, Ruling
from qcnode.errors import QcError, RulingError
from qcnode.panel import pictures, view

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor
    from datetime import datetime

    from qcnode.panel.books import Reading
    from qcnode.panel.sources import About, DeskView, JournalView

KEYS_MAX = 1024
"""How many presses are remembered; a browser repeats one within seconds."""


class RulingIn(BaseModel):
    """What a person saw. Who they are, and when it was, is not theirs to say."""

    model_config = ConfigDict(extra="forbid")

    finding: Literal["good", "defective", "unsure"]
    defect_class: str | None = Field(default=None, max_length=100)
    reason: str = Field(default="", max_length=500)


class Presses:
    """The rulings under way and lately made, by the key of the press that made them."""

    def __init__(self) -> None:
        self._made: OrderedDict[str, tuple[object, asyncio.Task[Ruling]]] = OrderedDict()

    async def once(self, key: str, what: object, make: Callable[[], Any]) -> Ruling:
        """Return what `make` returns, having called it once for this key.

        A browser that goes away does not take its ruling along. A failure that may
        pass is forgotten, so pressing again tries again; a `RulingError` stays.
        """
        known = self._made.get(key)
        if known is None:
            known = (what, asyncio.ensure_future(make()))
            self._made[key] = known
            while len(self._made) > KEYS_MAX:
                self._made.popitem(last=False)
        if known[0] != what:
            raise HTTPException(
                status.HTTP_422_UNPROCESSABLE_CONTENT, "this key was used for another ruling"
            )
        try:
            return await asyncio.shield(known[1])
        except RulingError:
            raise
        except QcError:
            self._made.pop(key, None)
            raise


def router(
    *,
    desk: DeskView,
    journal: JournalView,
    about: About,
    read: Callable[[], Awaitable[Reading]],
    threads: Executor,
    now: Callable[[], datetime],
    decided: Callable[[], None],
) -> APIRouter:
    """Return the routes of the review; `decided` is called after each ruling."""
    routes = APIRouter()
    presses = Presses()

    @routes.get("/api/escalations")
    async def escalations() -> dict[str, Any]:
        """Return the waiting parts in the order people are asked, as the panel shows them."""
        reading = await read()
        return view.waiting(reading.waiting, about, kept=reading.kept, now=now())

    @routes.post("/api/escalations/{escalation_id}/ruling")
    async def settle(
        request: Request,
        escalation_id: str,
        said: RulingIn,
        idempotency_key: Annotated[str, Header(min_length=16, max_length=64)],
    ) -> dict[str, Any]:
        """Settle an escalation by hand."""
        where = request.client.host if request.client else "panel"

        async def make() -> Ruling:
            return await desk.settle(
                escalation_id,
                Finding(said.finding),
                who=f"operator@{where}",
                defect_class=said.defect_class,
                reason=said.reason,
            )

        ruling = await presses.once(idempotency_key, (escalation_id, said), make)
        decided()
        return {
            "ruling_id": ruling.id,
            "finding": ruling.finding.value,
            "disposition": None if ruling.disposition is None else ruling.disposition.value,
            "binding": ruling.binding,
            "words": view.ruled(ruling),
        }

    @routes.get("/img/escalations/{escalation_id}.jpg")
    async def picture(escalation_id: str) -> Response:
        """Return the picture of a waiting part; `Qcnode-Box` says where the evidence is."""
        inspection_id, box = _waiting_for(desk, escalation_id)
        loop = asyncio.get_running_loop()

        def prepare() -> pictures.ReviewPicture | None:
            encoded = journal.picture(inspection_id)
            if encoded is None:
                return None
            return pictures.review_picture(encoded, journal.heat(inspection_id), box)

        found = await loop.run_in_executor(threads, prepare)
        if found is None:
            raise HTTPException(status.HTTP_404_NOT_FOUND, "no picture of this part is kept")
        where = found.box
        headers = (
            {}
            if where is None
            else {"Qcnode-Box": f"{where.left},{where.top},{where.width},{where.height}"}
        )
        return Response(found.jpeg, media_type="image/jpeg", headers=headers)

    @routes.get("/img/escalations/{escalation_id}/heat.png")
    async def heat(escalation_id: str) -> Response:
        """Return the heat map over the whole picture, in grey."""
        inspection_id, _ = _waiting_for(desk, escalation_id)
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(threads, journal.heat, inspection_id)
        if found is None:
            raise HTTPException(status.HTTP_404_NOT_FOUND, "no heat map of this part is kept")
        return Response(found, media_type="image/png")

    return routes


def _waiting_for(desk: DeskView, escalation_id: str) -> tuple[str, Box | None]:
    for one in desk.waiting():
        if one.escalation.id == escalation_id:
            return one.escalation.inspection_id, one.escalation.box
    raise HTTPException(status.HTTP_404_NOT_FOUND, f"{escalation_id}: this part is not waiting")
