"""The word of a person that puts a revoked certificate in force again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from fastapi import APIRouter, Request, status
from pydantic import BaseModel, ConfigDict, Field

from qcnode.panel.access import Right, needs, who_asks

if TYPE_CHECKING:
    from collections.abc import Callable


class Recertify(Protocol):
    """Puts the certificate in force again.

    Raises `CertificateError` where none is revoked, and `JournalUnavailableError` when that
    cannot be put on record; then it stays revoked.
    """

    def __call__(self, *, who: str, reason: str) -> None:
        """Put it on record and in force."""


class RenewalIn(BaseModel):
    """What was found and mended. Who says so is not theirs to say."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=3, max_length=500)


def router(*, recertify: Recertify, decided: Callable[[], None]) -> APIRouter:
    """Return the route; `decided` is called when the certificate is in force again."""
    routes = APIRouter(dependencies=[needs(Right.MAINTAIN)])

    @routes.post("/api/v1/certificate", status_code=status.HTTP_204_NO_CONTENT)
    async def renew(request: Request, said: RenewalIn) -> None:
        """Put the revoked certificate in force again."""
        where = request.client.host if request.client else "panel"
        who = f"{who_asks(request).name}@{where}"
        await asyncio.to_thread(recertify, who=who, reason=said.reason)
        decided()

    return routes
