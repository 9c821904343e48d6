"""The pages themselves: empty shells that the live stream fills, and the login.

A shell holds no figure, so a page that lost the node has nothing old to show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response, status
from fastapi.responses import RedirectResponse

from qcnode.panel.guard import COOKIE, same, session_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.templating import Jinja2Templates

    from qcnode.panel.sources import About


def router(
    *,
    templates: Jinja2Templates,
    about: About,
    build: str,
    token: str | None,
    state: Callable[[], Awaitable[dict[str, Any]]],
) -> APIRouter:
    """Return the pages and the state behind them."""
    routes = APIRouter()
    names = {"about": about, "build": build}

    @routes.get("/")
    async def live(request: Request) -> Response:
        """Return the live screen."""
        return templates.TemplateResponse(request, "live.html", names)

    @routes.get("/api/state")
    async def snapshot() -> dict[str, Any]:
        """Return everything the live screen shows, but for the picture."""
        return await state()

    @routes.get("/login")
    async def login_page(request: Request) -> Response:
        """Ask for the panel's token."""
        return templates.TemplateResponse(request, "login.html", names | {"wrong": False})

    @routes.post("/login")
    async def login(request: Request) -> Response:
        """Take the token and let this browser in."""
        if token is None:
            return RedirectResponse("/", status.HTTP_303_SEE_OTHER)
        given = parse_qs((await request.body()).decode("utf-8", "replace")).get("token", [""])[0]
        if not same(given, token):
            return templates.TemplateResponse(
                request,
                "login.html",
                names | {"wrong": True},
                status_code=status.HTTP_403_FORBIDDEN,
            )
        answer = RedirectResponse("/", status.HTTP_303_SEE_OTHER)
        answer.set_cookie(
            COOKIE,
            session_of(token),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    return routes
