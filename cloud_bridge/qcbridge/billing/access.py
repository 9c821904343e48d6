"""Who asks over HTTP, and what that opens.

A program sends its token as a bearer token, a person as the password (with any name) of a
browser. The token that the server was started with opens everything; without one whoever
reaches the server may do everything, which `server` allows on this machine only.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, HTTPException, Request, status
from starlette.concurrency import run_in_threadpool

from qcbridge.billing.tokens import ANYBODY, BOOTSTRAP, Grant, Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qcbridge.billing.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Door:
    """Tells who may come in."""

    token: str | None
    tokens: Tokens

    def grant(self, header: str) -> Grant | None:
        """Return what an Authorization header opens; None when that is nothing."""
        if self.token is None:
            return ANYBODY
        offered = _offered(header)
        if offered is None:
            return None
        if secrets.compare_digest(offered, self.token.encode()):
            return BOOTSTRAP
        return self.tokens.check(offered.decode(errors="replace"))


def needs(scope: Scope) -> Callable[[Request], Awaitable[Grant]]:
    """Return a dependency that lets nobody in without `scope`, and says who came in."""

    async def ask(request: Request) -> Grant:
        door: Door = request.app.state.door
        header = request.headers.get("authorization", "")
        grant = await run_in_threadpool(door.grant, header)
        if grant is None:
            asks = "Bearer" if request.url.path.startswith("/v1/") else 'Basic realm="billing"'
            raise HTTPException(
                status.HTTP_401_UNAUTHORIZED,
                "the token is missing or wrong: send it as 'Authorization: Bearer TOKEN'",
                headers={"WWW-Authenticate": asks},
            )
        if not grant.opens(scope):
            raise HTTPException(
                status.HTTP_403_FORBIDDEN,
                f"token {grant.name} does not open this: it needs {scope}",
            )
        return grant

    return ask


def check_tenant(grant: Grant, tenant: str) -> None:
    """Let nobody see the books of a tenant that is not theirs."""
    if not grant.reaches(tenant):
        raise HTTPException(
            status.HTTP_403_FORBIDDEN, f"token {grant.name} is not for tenant {tenant[:80]!r}"
        )


def _offered(header: str) -> bytes | None:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return None
    return None


Ingest = Annotated[Grant, Depends(needs(Scope.INGEST))]
Read = Annotated[Grant, Depends(needs(Scope.READ))]
Finance = Annotated[Grant, Depends(needs(Scope.FINANCE))]
Admin = Annotated[Grant, Depends(needs(Scope.ADMIN))]
