"""The scripted provider: a stand-in for a model's endpoint, and no model at all.

A real HTTP server on loopback that speaks the protocols vendors speak and reads its
answers from the virtual line's own record of what each part is. It takes its time and
fails as providers do, each way at its own rate, and calls itself by its name wherever
it is seen. It can look at no picture. Its request log is the provider's own books: a
line is on disk before anything is answered, so what it holds and the node's ledger
does not is a request that nobody put on record.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import signal
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from qcbridge.providers.scripted_books import RequestLog, World
from qcbridge.providers.scripted_script import MODEL, NAME, PROSE, Script, ScriptedSettings
from qcbridge.providers.scripted_wires import WIRES, described, question
from qcnode.listen import listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from qcbridge.providers.scripted_script import Question, Reply
    from qcbridge.providers.scripted_wires import Wire

__all__ = [
    "MODEL",
    "NAME",
    "PROSE",
    "RequestLog",
    "ScriptedSettings",
    "World",
    "build_server",
    "create_app",
    "serve",
]

log = structlog.get_logger()

BODY_BYTES_MAX: Final = 8_000_000
_LINGER_NONE: Final = struct.pack("ii", 1, 0)


class _Answers:
    """One protocol's route: a line in the books first, then what the dice said."""

    def __init__(
        self,
        wire: Wire,
        settings: ScriptedSettings,
        *,
        script: Script,
        books: RequestLog,
        reset: Callable[[Request], None],
        now: Callable[[], float],
    ) -> None:
        self._wire = wire
        self._settings = settings
        self._script = script
        self._books = books
        self._reset = reset
        self._now = now

    async def take(self, request: Request) -> Response:
        """Take a request the way its dice fall."""
        attempt = request.headers.get("x-qc-attempt")
        key = self._wire.key(request.headers)
        if not hmac.compare_digest(key.encode(), self._settings.api_key.encode()):
            self._record(attempt, "unauthorised")
            return self._error(401, "authentication_error", "this API key is not known here")
        try:
            asked = question(
                self._wire,
                await _body(request),
                model=request.path_params.get("model"),
                known=self._settings.model,
            )
        except ValueError as error:
            self._record(attempt, "bad_request")
            return self._error(400, "invalid_request_error", str(error))
        reply = self._script.reply(asked)
        self._record(attempt, reply.outcome, asked, reply)
        log.info(NAME, outcome=reply.outcome, attempt=attempt, part_id=asked.part_id)
        if reply.outcome == "hung":
            await _disconnected(request, self._settings.hang_s)
        else:
            await asyncio.sleep(reply.latency_s)
        return self._response(request, reply)

    def _record(
        self,
        attempt: str | None,
        outcome: str,
        asked: Question | None = None,
        reply: Reply | None = None,
    ) -> None:
        used = None if reply is None else reply.used
        self._books.append(
            {
                "at": self._now(),
                "provider": NAME,
                "attempt": attempt,
                "part_id": asked and asked.part_id,
                "outcome": outcome,
                "billed": reply is not None and reply.billed,
                "usage": used and self._wire.usage(used),
                "response_id": reply and reply.response_id,
            }
        )

    def _response(self, request: Request, reply: Reply) -> Response:
        if reply.outcome == "hung":
            return self._error(504, "timeout", "nobody waited for this")
        if reply.outcome == "reset":
            self._reset(request)
            return self._error(502, "reset", "nobody reads this")
        if reply.outcome == "error_500":
            return self._error(500, "server_error", "a scripted fault")
        if reply.outcome == "limited_429":
            return self._error(429, "rate_limit_error", "a scripted limit")
        return JSONResponse(
            self._wire.answer(reply, model=self._settings.model, at_s=int(self._now()))
        )

    def _error(self, status: int, kind: str, words: str) -> JSONResponse:
        headers = {"retry-after": "1"} if status == 429 else {}  # noqa: PLR2004  # HTTP's own
        return JSONResponse(self._wire.error(status, kind, described(words)), status, headers)


def create_app(
    settings: ScriptedSettings, *, reset: Callable[[Request], None], now: Callable[[], float]
) -> FastAPI:
    """Build the server's routes; `reset` cuts the connection of a request, without a word."""
    books = RequestLog(settings.log)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        books.close()

    app = FastAPI(title=NAME, lifespan=lifespan, openapi_url=None)
    app.add_middleware(_Named)

    @app.get("/")
    async def page() -> PlainTextResponse:
        """Say what this is, to people."""
        return PlainTextResponse(
            f"This is the {NAME} of qcnode: no model, no LLM. It answers from the virtual"
            f" line's own record and is right in {settings.accuracy:.0%} of its findings.\n"
        )

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """Say that requests are taken."""
        return {"status": "ok", "what": NAME}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the one thing that answers here."""
        return {
            "object": "list",
            "data": [{"id": settings.model, "object": "model", "owned_by": NAME}],
        }

    script = Script(settings)
    for wire in WIRES:
        answers = _Answers(wire, settings, script=script, books=books, reset=reset, now=now)
        app.add_api_route(wire.route, answers.take, methods=["POST"], name=wire.route)
    return app


class _Named:
    """Writes the provider's name on every response, whatever it is."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"server", MODEL.encode()),
                    (b"x-qc-provider", NAME.encode()),
                ]
            await send(message)

        await self._app(scope, receive, named)


async def _body(request: Request) -> Any:
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > BODY_BYTES_MAX:
        raise ValueError(f"a body of at most {BODY_BYTES_MAX} bytes is taken")
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ValueError("the body is no JSON") from error


async def _disconnected(request: Request, wait_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            while (await request.receive())["type"] != "http.disconnect":
                pass


def serve(settings: ScriptedSettings, *, now: Callable[[], float]) -> None:
    """Answer until SIGTERM or SIGINT, for a process that does nothing else."""
    taken = listen("127.0.0.1", settings.port, fix="choose another --port")
    server = build_server(settings, now=now)
    for number in (signal.SIGTERM, signal.SIGINT):
        # The server raises the signal once more when it is done; being asked to end is no fault.
        signal.signal(number, lambda *_: None)
    log.info("listening", what=NAME, port=taken.getsockname()[1], accuracy=settings.accuracy)
    server.run(sockets=[taken])


def build_server(settings: ScriptedSettings, *, now: Callable[[], float]) -> uvicorn.Server:
    """Build the server; it answers on the sockets its `run` is given."""
    open_now: dict[tuple[str, int] | None, asyncio.Transport] = {}

    class Protocol(H11Protocol):
        """Remembers each connection, so that one can be cut under a request."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
            super().connection_made(transport)
            open_now[self.client] = transport

        def connection_lost(self, exc: Exception | None) -> None:
            open_now.pop(self.client, None)
            super().connection_lost(exc)

    def reset(request: Request) -> None:
        transport = open_now[tuple(request.scope["client"])]
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE
        )
        transport.abort()

    return uvicorn.Server(
        uvicorn.Config(
            create_app(settings, reset=reset, now=now),
            http=Protocol,
            ws="none",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )
