"""The scripted provider: a stand-in for a model's endpoint, and no model at all.

A real HTTP server on loopback that speaks the chat-completions protocol and reads its
answers from the virtual line's own record of what each part is. It takes its time and
fails as providers do, each way at its own rate, and calls itself by its name wherever
it is seen. It can look at no picture. Its request log is the provider's own books: a
line is on disk before anything is answered, so what it holds and the node's ledger
does not is a request that nobody put on record.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import math
import os
import random
import signal
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from qcbridge.evidence import image_tokens
from qcnode.domain import Finding
from qcnode.errors import SettingsError
from qcnode.lines.world import GOOD, UNKNOWN
from qcnode.listen import listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

log = structlog.get_logger()

MODEL: Final = "scripted-provider"
NAME: Final = "scripted provider"
PROSE: Final = "I had a good look at this part, and all in all it seems fine to me!"
BODY_BYTES_MAX: Final = 8_000_000
CACHE_BLOCK_TOKENS: Final = 64
_LINGER_NONE: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedSettings:
    """How the scripted provider behaves; the rates are shares of all requests.

    `latency_ms` is the median of a log-normal and `latency_spread` its sigma.
    `accuracy` is how often a finding agrees with the truth in `world`.
    """

    world: Path
    log: Path
    api_key: str = field(repr=False)
    port: int = 0
    accuracy: float = 0.95
    latency_ms: float = 300.0
    latency_spread: float = 0.3
    error_rate: float = 0.0
    limit_rate: float = 0.0
    timeout_rate: float = 0.0
    reset_rate: float = 0.0
    prose_rate: float = 0.0
    hang_s: float = 600.0
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("accuracy", *_FATES):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingsError(
                    f"{NAME}: {name} = {getattr(self, name)}: a share is from 0 to 1"
                )
        if sum(getattr(self, name) for name in _FATES) > 1.0:
            raise SettingsError(f"{NAME}: the rates of {', '.join(_FATES)} sum to more than 1")
        if not (self.latency_ms > 0 and self.latency_spread >= 0 and self.hang_s > 0):
            raise SettingsError(
                f"{NAME}: latency-ms and hang-s are more than 0, latency-spread is >= 0"
            )
        if not self.api_key:
            raise SettingsError(f"{NAME}: no API key; set QCNODE_PROVIDER_API_KEY")


# What happens to a request, by the setting that says how often, and whether a real
# provider would bill it: hanging and cut-off requests were worked on before they were lost.
_FATES: Final[Mapping[str, tuple[str, bool]]] = {
    "error_rate": ("error_500", False),
    "limit_rate": ("limited_429", False),
    "timeout_rate": ("hung", True),
    "reset_rate": ("reset", True),
    "prose_rate": ("prose", True),
}


class World:
    """The truth about each part, as the virtual line writes it while it runs.

    Lines are `trigger <seq> <part_id> <truth>`, where the truth is `good`, `unknown` or a
    kind of defect; other lines are about other things. The file may appear later.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_to = 0
        self._truth: dict[str, str] = {}

    def truth(self, part_id: str) -> str | None:
        """Return `good`, `unknown`, a kind of defect, or None for a part nobody has triggered."""
        if part_id not in self._truth:
            self._read_on()
        return self._truth.get(part_id)

    def _read_on(self) -> None:
        try:
            with self._path.open("rb") as world:
                world.seek(self._read_to)
                added = world.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]  # The last line may still be under way.
        self._read_to += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            words = line.split()
            if len(words) >= 4 and words[0] == "trigger":  # noqa: PLR2004  # as the docstring has it
                self._truth[words[2]] = words[3]


class RequestLog:
    """The provider's own books: one JSON line per request, appended and never changed."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line in one call, so that lines of a killed process are whole."""
        os.write(self._file, (json.dumps(row, ensure_ascii=True) + "\n").encode())

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


@dataclass(frozen=True, slots=True)
class _Question:
    part_id: str
    defect_classes: tuple[str, ...]
    system: str
    text_length: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """What one request gets, decided before anything of it is sent."""

    outcome: str
    billed: bool
    said: str
    usage: dict[str, Any] | None
    latency_s: float
    response_id: str


class _Script:
    """Decides, from the seed and the part, what a request gets; the order does not matter."""

    def __init__(self, settings: ScriptedSettings) -> None:
        self._settings = settings
        self._world = World(settings.world)
        self._asked: dict[str, int] = {}
        self._prefixes: set[str] = set()

    def reply(self, question: _Question) -> _Reply:
        """Throw the dice for this request: the n-th about its part."""
        settings, part_id = self._settings, question.part_id
        times = self._asked[part_id] = self._asked.get(part_id, 0) + 1
        dice = random.Random(f"{settings.seed}:{part_id}:{times}")  # noqa: S311  # a script
        outcome, billed = self._fate(dice.random())
        said = PROSE if outcome == "prose" else self._answer(question, dice)
        median = math.log(settings.latency_ms)
        return _Reply(
            outcome=outcome,
            billed=billed,
            said=said,
            usage=self._usage(question, said) if billed else None,
            latency_s=dice.lognormvariate(median, settings.latency_spread) / 1000,
            response_id=f"scripted-{dice.getrandbits(64):016x}",
        )

    def _fate(self, at: float) -> tuple[str, bool]:
        for name, fate in _FATES.items():
            at -= getattr(self._settings, name)
            if at < 0:
                return fate
        return "answered", True

    def _answer(self, question: _Question, dice: random.Random) -> str:
        truth = self._world.truth(question.part_id)
        right = dice.random() < self._settings.accuracy
        sure = round(dice.uniform(0.8, 0.99), 2)
        if truth in (None, UNKNOWN):
            return _ruling(question, Finding.UNSURE, confidence=0.0, reason="nothing of this part")
        if (truth == GOOD) == right:
            return _ruling(question, Finding.GOOD, confidence=sure, reason="no defect")
        # A finding that is wrong on purpose names any kind.
        kind = next(iter(question.defect_classes), None) if truth == GOOD else truth
        kind = kind if kind in question.defect_classes else None
        reason = f"a defect ({kind})" if kind else "a defect"
        return _ruling(question, Finding.DEFECTIVE, kind=kind, confidence=sure, reason=reason)

    def _usage(self, question: _Question, said: str) -> dict[str, Any]:
        # From its second use on, the same opening is cached, in whole blocks. It is text, and
        # as every kind of token is told apart here, nothing of a bill is left to guesses.
        image = image_tokens(question.width, question.height, formula="patch28")
        text, completion = _tokens(question.text_length), _tokens(len(said))
        cached = 0
        if question.system in self._prefixes:
            cached = _tokens(len(question.system)) // CACHE_BLOCK_TOKENS * CACHE_BLOCK_TOKENS
        self._prefixes.add(question.system)
        return {
            "prompt_tokens": text + image,
            "completion_tokens": completion,
            "total_tokens": text + image + completion,
            "prompt_tokens_details": {
                "text_tokens": text,
                "image_tokens": image,
                "cached_tokens": cached,
                "cached_tokens_details": {"text_tokens": cached, "image_tokens": 0},
            },
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


def _ruling(
    question: _Question,
    finding: Finding,
    *,
    confidence: float,
    reason: str,
    kind: str | None = None,
) -> str:
    return json.dumps(
        {
            "part_id": question.part_id,
            "finding": finding.value,
            "defect_class": kind,
            "location": "within the crop" if finding is Finding.DEFECTIVE else None,
            "confidence": confidence,
            "reason": f"The {NAME} was told of {reason}.",
        }
    )


def _tokens(characters: int) -> int:
    return math.ceil(characters / 4)


class _Completions:
    """The one route that counts: a line in the books first, then what the dice said."""

    def __init__(
        self,
        settings: ScriptedSettings,
        *,
        books: RequestLog,
        reset: Callable[[Request], None],
        now: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._script = _Script(settings)
        self._books = books
        self._reset = reset
        self._now = now

    async def take(self, request: Request) -> Response:
        """Take a request the way its dice fall."""
        attempt = request.headers.get("x-qc-attempt")
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(key.encode(), self._settings.api_key.encode()):
            self._record(attempt, "unauthorised")
            return _error(401, "authentication_error", "this API key is not known here")
        try:
            question = _question(await _body(request))
        except ValueError as error:
            self._record(attempt, "bad_request")
            return _error(400, "invalid_request_error", str(error))
        reply = self._script.reply(question)
        self._record(attempt, reply.outcome, question, reply)
        log.info(NAME, outcome=reply.outcome, attempt=attempt, part_id=question.part_id)
        if reply.outcome == "hung":
            await _disconnected(request, self._settings.hang_s)
        else:
            await asyncio.sleep(reply.latency_s)
        return self._response(request, reply)

    def _record(
        self,
        attempt: str | None,
        outcome: str,
        question: _Question | None = None,
        reply: _Reply | None = None,
    ) -> None:
        self._books.append(
            {
                "at": self._now(),
                "provider": NAME,
                "attempt": attempt,
                "part_id": question and question.part_id,
                "outcome": outcome,
                "billed": reply is not None and reply.billed,
                "usage": reply and reply.usage,
                "response_id": reply and reply.response_id,
            }
        )

    def _response(self, request: Request, reply: _Reply) -> Response:
        if reply.outcome == "hung":
            return _error(504, "timeout", "nobody waited for this")
        if reply.outcome == "reset":
            self._reset(request)
            return _error(502, "reset", "nobody reads this")
        if reply.outcome == "error_500":
            return _error(500, "server_error", "a scripted fault")
        if reply.outcome == "limited_429":
            return _error(429, "rate_limit_error", "a scripted limit")
        message = {"role": "assistant", "content": reply.said, "refusal": None}
        return JSONResponse(
            {
                "id": reply.response_id,
                "object": "chat.completion",
                "created": int(self._now()),
                "model": MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": reply.usage,
            }
        )


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
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": NAME}]}

    completions = _Completions(settings, books=books, reset=reset, now=now)
    app.add_api_route("/v1/chat/completions", completions.take, methods=["POST"])
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


def _question(body: Any) -> _Question:
    if not isinstance(body, dict) or body.get("model") != MODEL:
        raise ValueError(f"the one model here is {MODEL}")
    try:
        system, user = (message["content"] for message in body["messages"])
        text, url = user[0]["text"], user[1]["image_url"]["url"]
        schema = body["response_format"]["json_schema"]["schema"]
        classes = schema["properties"]["defect_class"].get("enum", [])
        part_id = json.loads(text)["part_id"]
        picture = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"), validate=True)
        pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_GRAYSCALE)
    except (LookupError, TypeError, AttributeError, ValueError, cv2.error) as error:
        raise ValueError(f"not a question as qcnode asks it ({type(error).__name__})") from error
    if pixels is None:
        raise ValueError("the picture cannot be decoded")
    return _Question(
        part_id=str(part_id),
        defect_classes=tuple(kind for kind in classes if kind),
        system=system,
        text_length=len(system) + len(text) + len(json.dumps(schema)),
        width=pixels.shape[1],
        height=pixels.shape[0],
    )


async def _disconnected(request: Request, wait_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            while (await request.receive())["type"] != "http.disconnect":
                pass


def _error(status: int, kind: str, words: str) -> JSONResponse:
    headers = {"retry-after": "1"} if status == 429 else {}  # noqa: PLR2004  # HTTP's own number
    message = f"{NAME}: {words}"
    return JSONResponse({"error": {"type": kind, "message": message}}, status, headers)


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
