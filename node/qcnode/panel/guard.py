"""What stands before every request: who asks, from which page, and how much at once.

A panel on loopback is reachable by every page the operator's browser opens, so the
Host header is checked (a foreign name that resolves to this machine is refused) and
whatever changes something, or opens the live stream, must come from our own page. A
program that shows a token has no page, and nothing a browser adds by itself counts for it.
What whoever asks may do is for each route to say.
"""

from __future__ import annotations

from dataclasses import replace
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.websockets import WebSocketClose

from qcnode.panel.access import NOBODY, WHO, Right, Who

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from qcnode.panel.accounts import Accounts

COOKIE = "qcnode_session"
TOKEN_LENGTH_MIN = 16
"""A token that is given for the first start must not be one that can be guessed."""
BODY_BYTES_MAX = 16_384
_Refusal: TypeAlias = tuple[int, str]
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self';"
        " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With none at all, browsers call the origin of our own forms "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def cookie_of(headers: Headers, name: str = COOKIE) -> str:
    """Return what the browser keeps for the panel, an empty text where it keeps nothing."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value


class Guard:
    """ASGI middleware around the whole panel."""

    def __init__(self, app: ASGIApp, *, hosts: tuple[str, ...], accounts: Accounts) -> None:
        self._app = app
        self._hosts = frozenset(host.lower().strip("[]") for host in hosts)
        self._accounts = accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        who, refusal = self._who(headers)
        scope[WHO] = who
        refusal = refusal or self._foreign(scope, headers) or _unfit(scope, headers)
        if scope["type"] == "websocket":
            if refusal is None:
                await self._app(scope, receive, send)
            else:
                await WebSocketClose(code=1008, reason=refusal[1])(scope, receive, send)
            return
        send = _with_headers(send, secret=not scope["path"].startswith("/static/"))
        if refusal is None:
            await self._app(scope, _bounded(receive), send)
        else:
            answer = JSONResponse({"detail": refusal[1]}, status_code=refusal[0])
            await answer(scope, receive, send)

    def _foreign(self, scope: Scope, headers: Headers) -> _Refusal | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _name_of(f"//{hosts[0]}") not in self._hosts:
            return 400, "this panel is not known by that host name; see [panel] public_hosts"
        by_program = "authorization" in headers
        if (_changes(scope) or scope["type"] == "websocket") and not by_program:
            origins = headers.getlist("origin")
            if len(origins) != 1 or _place_of(origins[0]) != hosts[0].lower():
                return 403, "this must come from a page of the panel itself"
        return None

    def _who(self, headers: Headers) -> tuple[Who, _Refusal | None]:
        """Return who asks; a token that is shown and not known is refused."""
        shown = headers.get("authorization")
        if shown is not None:
            scheme, _, secret = shown.partition(" ")
            who = self._accounts.program(secret.strip()) if scheme.lower() == "bearer" else None
            return (NOBODY, (401, "this token is not known")) if who is None else (who, None)
        who = self._accounts.who(cookie_of(headers)) or NOBODY
        if self._accounts.metrics_open:
            who = replace(who, rights=who.rights | {Right.METRICS})
        return who, None


def _changes(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] not in ("GET", "HEAD")


def _unfit(scope: Scope, headers: Headers) -> _Refusal | None:
    if not _changes(scope):
        return None
    if scope["path"].startswith("/api/") and not _is_json(headers):
        return 415, "send application/json"
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > BODY_BYTES_MAX:
        return 413, f"the most that is taken here is {BODY_BYTES_MAX} bytes"
    return None


def _place_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_json(headers: Headers) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def _bounded(receive: Receive) -> Receive:
    """Cut a body that is longer than it said, or never said how long it is."""
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > BODY_BYTES_MAX:
            return {"type": "http.disconnect"}
        return message

    return bounded


def _with_headers(send: Send, *, secret: bool) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store" if secret else "no-cache")
        await send(message)

    return with_headers
