"""What stands before every request: who may ask, from which page, and how much at once.

A panel on loopback is reachable by every page the operator's browser opens, so the
Host header is checked (a foreign name that resolves to this machine is refused) and
whatever changes something, or opens the live stream, must come from our own page.
Where a token is set, nothing but the probes and the login page opens without it.
"""

from __future__ import annotations

import hashlib
import hmac
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse
from starlette.websockets import WebSocketClose

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "qcnode_session"
TOKEN_LENGTH_MIN = 16
BODY_BYTES_MAX = 16_384
KNOWN = "qcnode.known"
"""Key in the scope: whether whoever asks may see everything."""

_OPEN = ("/livez", "/readyz", "/login")
_Refusal: TypeAlias = tuple[int, str]
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self';"
        " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def session_of(token: str) -> str:
    """Return what the browser keeps: proof of the token, and not the token."""
    return hmac.new(token.encode(), b"qcnode panel session", hashlib.sha256).hexdigest()


def same(given: str, right: str) -> bool:
    """Compare secrets in the same time whatever they hold."""
    return hmac.compare_digest(given.encode(), right.encode())


class Guard:
    """ASGI middleware around the whole panel."""

    def __init__(self, app: ASGIApp, *, hosts: tuple[str, ...], token: str | None) -> None:
        if token is not None and len(token) < TOKEN_LENGTH_MIN:
            raise ValueError(f"the panel's token needs at least {TOKEN_LENGTH_MIN} characters")
        self._app = app
        self._hosts = frozenset(host.lower().strip("[]") for host in hosts)
        self._token = token
        self._session = None if token is None else session_of(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope[KNOWN] = self._knows(headers)
        refusal = self._refusal(scope, headers)
        if scope["type"] == "websocket":
            if refusal is None:
                await self._app(scope, receive, send)
            else:
                await WebSocketClose(code=1008, reason=refusal[1])(scope, receive, send)
            return
        send = _with_headers(send, secret=not scope["path"].startswith("/static/"))
        if refusal is None:
            await self._app(scope, _bounded(receive), send)
        elif refusal[0] == HTTPStatus.SEE_OTHER:
            await RedirectResponse("/login", status_code=refusal[0])(scope, receive, send)
        else:
            answer = JSONResponse({"detail": refusal[1]}, status_code=refusal[0])
            await answer(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> _Refusal | None:
        """Return status and words when this request goes no further."""
        return self._foreign(scope, headers) or _unfit(scope, headers) or _unknown(scope)

    def _foreign(self, scope: Scope, headers: Headers) -> _Refusal | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _name_of(f"//{hosts[0]}") not in self._hosts:
            return 400, "this panel is not known by that host name; see [panel] public_hosts"
        if _changes(scope) or scope["type"] == "websocket":
            origins = headers.getlist("origin")
            if len(origins) != 1 or _place_of(origins[0]) != hosts[0].lower():
                return 403, "this must come from a page of the panel itself"
        return None

    def _knows(self, headers: Headers) -> bool:
        if self._token is None or self._session is None:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and same(bearer.strip(), self._token):
            return True
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and same(morsel.value, self._session)


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


def _unknown(scope: Scope) -> _Refusal | None:
    path = scope["path"]
    if scope[KNOWN] or path in _OPEN or path.startswith("/static/"):
        return None
    if path == "/" and scope["type"] == "http":
        return HTTPStatus.SEE_OTHER, "log in first"
    return 401, "log in first"


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
