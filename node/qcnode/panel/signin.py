"""Coming and going: the first account, signing in and out, and what a screen is like.

Every failure is one plain sentence on the same page, and says nothing of who exists.
Checking a secret takes its time, so it has one thread to itself: a crowd at the door
waits in a short line, and beyond it is sent away.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response, status
from fastapi.responses import RedirectResponse

from qcnode.errors import SignInError
from qcnode.panel.access import Right, Role, needs, who_asks
from qcnode.panel.guard import COOKIE, cookie_of
from qcnode.panel.pages import PAGES
from qcnode.panel.screen import COOKIE as SCREEN_COOKIE
from qcnode.panel.screen import read_screen

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from qcnode.panel.accounts import Accounts
    from qcnode.panel.pages import Shells

WAITING_MAX = 8
"""How many may wait at the door; each takes some 30 ms."""
YEAR_S = 366 * 24 * 3600


class Door:
    """The one thread that checks secrets, and the line before it."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._waiting = 0

    async def through(self, check: Callable[[], str]) -> str:
        """Return what `check` returns, or raise `SignInError` when too many wait."""
        if self._waiting >= WAITING_MAX:
            raise SignInError("too many sign in at once: try again in a moment")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, check)
        finally:
            self._waiting -= 1


def router(shells: Shells, accounts: Accounts, *, threads: Executor) -> APIRouter:
    """Return the routes by which people come and go."""
    routes = APIRouter(dependencies=[needs(Right.VIEW)], include_in_schema=False)
    door = Door(threads)

    def form(request: Request, template: str, *, wrong: str = "", **more: str) -> Response:
        operators = [one.name for one in accounts.all() if one.pin and one.role is Role.OPERATOR]
        return shells.page(
            request,
            template,
            code=403 if wrong else 200,
            wrong=wrong,
            operators=operators,
            **more,
        )

    @routes.get("/login")
    async def login_page(request: Request, to: str = "/") -> Response:
        """Ask who is there; a node without an administrator asks for its first one."""
        if accounts.first_token is not None:
            return form(request, "setup")
        return form(request, "login", to=_own(to), name="")

    @routes.post("/login")
    async def login(request: Request) -> Response:
        """Take name and secret and let this person in."""
        said = await _said(request)
        name, to = said.get("name", "").strip(), _own(said.get("to", "/"))
        try:
            cookie = await door.through(
                lambda: accounts.sign_in(name, said.get("secret", ""), where=_where(request))
            )
        except SignInError as error:
            return form(request, "login", wrong=str(error), to=to, name=name)
        return _let_in(request, cookie, to)

    @routes.post("/setup")
    async def setup(request: Request) -> Response:
        """Take the first token and make the first administrator."""
        said = await _said(request)
        try:
            cookie = await door.through(
                lambda: accounts.set_up(
                    said.get("token", "").strip(),
                    said.get("name", "").strip(),
                    said.get("secret", ""),
                    where=_where(request),
                )
            )
        except SignInError as error:
            return form(request, "setup", wrong=str(error))
        return _let_in(request, cookie, "/station")

    return routes


def out_router(shells: Shells, accounts: Accounts, *, threads: Executor) -> APIRouter:
    """Return the way out, and the way in of a demonstration."""
    routes = APIRouter(dependencies=[needs(Right.VIEW)], include_in_schema=False)
    door = Door(threads)

    @routes.get("/enter")
    async def enter(request: Request, key: str = "") -> Response:
        """Sign a visitor in by the address a demonstration printed."""
        try:
            cookie = await door.through(lambda: accounts.enter(key, where=_where(request)))
        except SignInError as error:
            return shells.page(
                request, "login", code=403, wrong=str(error), to="/", name="", operators=[]
            )
        return _let_in(request, cookie, "/")

    @routes.post("/logout")
    async def logout(request: Request) -> Response:
        """End this session."""
        cookie = cookie_of(request.headers)
        await asyncio.get_running_loop().run_in_executor(
            threads, lambda: accounts.sign_out(cookie, where=_where(request))
        )
        answer = RedirectResponse("/", status.HTTP_303_SEE_OTHER)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return routes


def station_router(shells: Shells, accounts: Accounts) -> APIRouter:
    """Return the page of this screen and, for administrators, of accounts and tokens."""
    routes = APIRouter(dependencies=[needs(Right.VIEW)], include_in_schema=False)

    @routes.get("/station")
    async def station(request: Request) -> Response:
        """Show what this screen is like; administrators see accounts and tokens below."""
        people = Right.USERS in who_asks(request).rights
        return shells.page(
            request,
            "station",
            accounts=accounts.all() if people else [],
            tokens=accounts.tokens() if people else [],
            roles=[role for role in Role if role is not Role.VIEWER],
            rights=list(Right),
        )

    @routes.post("/station")
    async def keep_screen(request: Request) -> Response:
        """Keep what this screen is like, in the browser itself."""
        screen = read_screen(await _said(request))
        answer = RedirectResponse("/station", status.HTTP_303_SEE_OTHER)
        answer.set_cookie(
            SCREEN_COOKIE,
            screen.cookie(),
            max_age=YEAR_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    return routes


def _let_in(request: Request, cookie: str, to: str) -> Response:
    answer = RedirectResponse(to, status.HTTP_303_SEE_OTHER)
    answer.set_cookie(
        COOKIE,
        cookie,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


async def _said(request: Request) -> dict[str, str]:
    try:
        return dict(parse_qsl((await request.body()).decode("utf-8", "replace"), max_num_fields=20))
    except ValueError:  # More fields than any form of ours has.
        return {}


def _own(to: str) -> str:
    """Return where to go after signing in: a page of ours and nothing else."""
    return to if to in {page.path for page in PAGES} else "/"


def _where(request: Request) -> str:
    return request.client.host if request.client else "panel"
