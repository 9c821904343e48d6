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

from qcnode.domain import Box, Decider, Finding, Ruling
from qcnode.errors import QcError, RulingError
from qcnode.panel import pictures, view
from qcnode.panel.access import Right, needs, who_asks
from qcnode.panel.decisions import Choice, Pending
from qcnode.panel.screen import words_for
from qcnode.picture import JPEG_MAGIC

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor

    from qcnode.panel.decisions import Decisions
    from qcnode.panel.sources import About, DeskView, JournalView, WaitingView
    from qcnode.panel.words import Words

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
        self._made: OrderedDict[str, tuple[object, asyncio.Task[Any]]] = OrderedDict()

    async def once(self, key: str, what: object, make: Callable[[], Any]) -> Any:
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
    about: About,
    decisions: Decisions,
    waiting: Callable[[Words], Awaitable[view.Json]],
    look_first: float,
    decided: Callable[[], None],
) -> APIRouter:
    """Return the routes of the review; `decided` is called after each ruling."""
    routes = APIRouter(dependencies=[needs(Right.REVIEW)])
    presses = Presses()

    @routes.get("/api/v1/escalations")
    async def escalations(request: Request) -> dict[str, Any]:
        """Return the waiting parts in the order people are asked, as the panel shows them."""
        return await waiting(words_for(request))

    @routes.post("/api/v1/escalations/{escalation_id}/lease", status_code=204)
    async def lease(request: Request, escalation_id: str) -> None:
        """Have a part for a minute, so that nobody else decides it meanwhile."""
        decisions.lease(escalation_id, who_asks(request))

    @routes.post("/api/v1/escalations/{escalation_id}/ruling")
    async def settle(
        request: Request,
        escalation_id: str,
        said: RulingIn,
        idempotency_key: Annotated[str, Header(min_length=16, max_length=64)],
    ) -> dict[str, Any]:
        """Decide a part. It goes out after the delay; until then it can be taken back."""
        who, where, say = who_asks(request), _where(request), words_for(request)
        one = next((one for one in desk.waiting() if one.escalation.id == escalation_id), None)
        opinion = None if one is None else _agent_of(one)
        blind = opinion is not None and opinion.blind
        first = blind or view.looks_first(escalation_id, look_first)

        async def make() -> Ruling | Pending:
            return await decisions.decide(
                escalation_id,
                Choice(
                    finding=Finding(said.finding),
                    defect_class=said.defect_class,
                    reason=said.reason,
                    looked_first=first,
                ),
                who,
                where=where,
            )

        made = await presses.once(idempotency_key, (escalation_id, said, who.name), make)
        decided()
        answer = _told(say, made)
        if first and opinion is not None and said.finding != "unsure":
            answer["agent"] = view.proposal(say, opinion, about)
            answer["agrees"] = opinion.finding.value == said.finding
        return answer

    @routes.post("/api/v1/escalations/{escalation_id}/undo")
    async def undo(request: Request, escalation_id: str) -> dict[str, Any]:
        """Take a decision back that has not gone out; it stays on record that it was made."""
        taken = await decisions.undo(escalation_id, who_asks(request), where=_where(request))
        decided()
        return {"words": words_for(request)("undone", part=taken.part_id)}

    return routes


def picture_router(
    *, desk: DeskView, journal: JournalView, reference: bytes | None, threads: Executor
) -> APIRouter:
    """Return what there is to see of waiting parts, and the good part beside them."""
    routes = APIRouter(dependencies=[needs(Right.REVIEW)], include_in_schema=False)

    @routes.get("/img/reference.png")
    async def golden() -> Response:
        """Return the picture of a good part that the model was released with."""
        if reference is None:
            raise HTTPException(status.HTTP_404_NOT_FOUND, "the release holds no good part")
        kind = "image/jpeg" if reference.startswith(JPEG_MAGIC) else "image/png"
        return Response(
            reference, media_type=kind, headers={"Cache-Control": "private, max-age=3600"}
        )

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


def _told(say: Words, made: Ruling | Pending) -> dict[str, Any]:
    if isinstance(made, Pending):
        return {
            "finding": made.finding,
            "pending": True,
            "words": say(
                "ruled.pending", part=made.part_id, finding=say(f"finding.{made.finding}").lower()
            ),
        }
    return {
        "finding": made.finding.value,
        "pending": False,
        "ruling_id": made.id,
        "disposition": None if made.disposition is None else made.disposition.value,
        "binding": made.binding,
        "words": view.ruled(say, made),
    }


def _agent_of(one: WaitingView) -> Ruling | None:
    said = one.proposal
    return said if said is not None and said.by is Decider.AGENT else None


def _where(request: Request) -> str:
    return request.client.host if request.client else "panel"


def _waiting_for(desk: DeskView, escalation_id: str) -> tuple[str, Box | None]:
    for one in desk.waiting():
        if one.escalation.id == escalation_id:
            return one.escalation.inspection_id, one.escalation.box
    raise HTTPException(status.HTTP_404_NOT_FOUND, f"{escalation_id}: this part is not waiting")
