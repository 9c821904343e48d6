"""Accounts, tokens and the audit trail over HTTP: for administrators and auditors."""

from __future__ import annotations

import asyncio
import csv
import io
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response, status
from pydantic import BaseModel, ConfigDict, Field

from qcnode.panel.access import Right, Role, needs, who_asks
from qcnode.panel.audit import AuditRow, AuditTrail, Deed

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from qcnode.panel.accounts import Accounts

ROWS_MAX = 500
EXPORT_MAX = 100_000
T = TypeVar("T")
_Name = Annotated[str, Field(min_length=1, max_length=40)]
_Secret = Annotated[str, Field(max_length=200)]


class AccountIn(BaseModel):
    """A new account. The secret is digits for a keypad, or a password."""

    model_config = ConfigDict(extra="forbid")

    name: _Name
    role: Role
    secret: _Secret


class ChangeIn(BaseModel):
    """Another role, another secret, or both; whoever is signed in has to sign in anew."""

    model_config = ConfigDict(extra="forbid")

    role: Role | None = None
    secret: _Secret | None = None


class TokenIn(BaseModel):
    """A token for a program, and what it may do."""

    model_config = ConfigDict(extra="forbid")

    name: _Name
    rights: Annotated[list[Right], Field(min_length=1, max_length=20)]


def router(accounts: Accounts, trail: AuditTrail, *, threads: Executor) -> APIRouter:
    """Return the routes about who there is and what they did."""
    routes = APIRouter(prefix="/api/v1")
    done = status.HTTP_204_NO_CONTENT
    users, audit = [needs(Right.USERS)], [needs(Right.AUDIT)]

    async def within(do: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, do)

    @routes.get("/accounts", dependencies=users)
    async def everybody() -> list[dict[str, Any]]:
        """Return every account; nobody's secret is known here."""
        return [
            {"name": one.name, "role": one.role, "pin": one.pin, "wrong": one.wrong}
            for one in accounts.all()
        ]

    @routes.post("/accounts", status_code=done, dependencies=users)
    async def add(request: Request, said: AccountIn) -> None:
        """Add an account."""
        deed = _deed(request, "account.add")
        await within(lambda: accounts.add(said.name, said.role, said.secret, by=deed))

    @routes.post("/accounts/{name}", status_code=done, dependencies=users)
    async def change(request: Request, name: str, said: ChangeIn) -> None:
        """Give an account another role or secret, which also unlocks it."""
        deed = _deed(request, "account.change")
        await within(lambda: accounts.change(name, role=said.role, secret=said.secret, by=deed))

    @routes.delete("/accounts/{name}", status_code=done, dependencies=users)
    async def remove(request: Request, name: str) -> None:
        """Take an account away."""
        deed = _deed(request, "account.remove")
        await within(lambda: accounts.remove(name, by=deed))

    @routes.post("/tokens", status_code=status.HTTP_201_CREATED, dependencies=users)
    async def issue(request: Request, said: TokenIn) -> dict[str, str]:
        """Let a program in. Its secret is in the answer and nowhere else."""
        deed = _deed(request, "token.issue")
        return {"secret": await within(lambda: accounts.issue(said.name, said.rights, by=deed))}

    @routes.delete("/tokens/{name}", status_code=done, dependencies=users)
    async def revoke(request: Request, name: str) -> None:
        """Let a program in no more."""
        deed = _deed(request, "token.revoke")
        await within(lambda: accounts.revoke(name, by=deed))

    @routes.get("/audit", dependencies=audit)
    async def rows(
        words: Annotated[str, Query(max_length=100)] = "",
        before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    ) -> dict[str, Any]:
        """Return the last rows of the trail that hold these words, and how far its chain holds."""
        check = await within(trail.check)
        found = await within(lambda: trail.rows(before=before, limit=ROWS_MAX, words=words))
        return {**asdict(check), "rows": [_flat(one) for one in found]}

    @routes.get("/audit.csv", dependencies=audit)
    async def table() -> Response:
        """Return the trail as a table, oldest first."""
        found = await within(lambda: trail.rows(limit=EXPORT_MAX))
        file = io.StringIO()
        names = ("seq", "at", *Deed.__dataclass_fields__, "hash")
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(
            {name: _plain(value) for name, value in _flat(one).items()} for one in reversed(found)
        )
        return Response(file.getvalue(), media_type="text/csv")

    return routes


def _deed(request: Request, what: str) -> Deed:
    who = who_asks(request)
    where = request.client.host if request.client else "panel"
    return Deed(what=what, who=who.name, role=who.role, where=where)


def _flat(row: AuditRow) -> dict[str, Any]:
    return {"seq": row.seq, "at": row.at, **asdict(row.deed), "hash": row.hash}


def _plain(value: Any) -> Any:
    """Keep a spreadsheet from taking what somebody typed for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" else value
