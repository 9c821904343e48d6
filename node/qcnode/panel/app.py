"""The operator panel: one FastAPI application for people, probes and metrics.

It reads what the node knows and can do one thing: put a person's ruling on record.
It keeps nothing, so it can be restarted at any time, and nothing it does can hold up
the line. No asset comes from another host, and no script or style stands inline.
"""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, status
from fastapi.responses import JSONResponse
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from qcnode.errors import QcError, RulingError
from qcnode.panel import live, pages, review, service, spend, view
from qcnode.panel.books import Books
from qcnode.panel.guard import Guard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from datetime import datetime

    from starlette.requests import Request

    from qcnode.books.forecast import Outlook
    from qcnode.health import HealthBoard
    from qcnode.panel.sources import About, DeskView, JournalView, LiveView
    from qcnode.ports import Ledger

_HERE = Path(__file__).parent
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def create_panel(
    *,
    station_live: Callable[[], LiveView | None],
    journal: JournalView,
    desk: DeskView,
    ledger: Ledger,
    outlooks: Callable[[], Sequence[Outlook]],
    health: HealthBoard,
    about: About,
    hosts: tuple[str, ...],
    token: str | None,
    now: Callable[[], datetime],
) -> FastAPI:
    """Build the panel. `hosts` are the names browsers know it by, beside loopback.

    `station_live` must answer at once with what the line thread last put there;
    `outlooks` are the budgets as they stand. A
    `token` (at least 16 characters) is needed wherever the panel is bound beyond
    loopback; without one everybody who can reach it may rule on parts.
    """
    threads = ThreadPoolExecutor(max_workers=3, thread_name_prefix="panel")
    # The live picture has a thread to itself: a disk that hangs must not stop it.
    painter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="panel-live")
    books = Books(desk=desk, journal=journal, ledger=ledger, outlooks=outlooks, threads=threads)
    build = f"{about.version}-{_digest(_HERE, about)}"

    async def state() -> view.Json:
        reading = await books.read()
        at = now()
        return {
            "build": build,
            "about": view.about_words(about),
            "pulse": view.pulse(at, about, station_live()),
            "counters": view.counters(reading.counts),
            "strip": view.strip(reading.recent),
            "waiting": view.waiting(reading.waiting, about, kept=reading.kept, now=at),
            "settled": view.settled(reading.settled, about),
            "money": view.money(
                reading.totals,
                about,
                outlooks=reading.outlooks,
                confirmed=reading.confirmed,
                now=at,
            ),
            "health": view.health(health.all(), about, now=at),
        }

    hub = live.LiveHub(station_live=station_live, about=about, state=state, threads=painter)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(hub.run())
        following.add_done_callback(lambda task: _tell_end(task, health))
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait({following})
            for pool in (threads, painter):
                pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="qcnode panel", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.add_middleware(Guard, hosts=(*_LOOPBACK, *hosts), token=token)
    app.add_exception_handler(QcError, _answer)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    app.include_router(
        pages.router(
            templates=Jinja2Templates(directory=_HERE / "templates"),
            about=about,
            build=build,
            token=token,
            state=state,
        )
    )
    app.include_router(live.router(hub))
    app.include_router(
        review.router(
            desk=desk,
            journal=journal,
            about=about,
            read=books.read,
            threads=threads,
            now=now,
            decided=hub.poke,
        )
    )
    app.include_router(spend.router(read=books.read, desk=desk))
    app.include_router(
        service.router(read=books.read, health=health, about=about, viewers=hub.viewers)
    )
    return app


def serve_config(app: FastAPI, host: str, port: int) -> uvicorn.Config:
    """Return how the panel is served: see each reason."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,  # The node's own log is the log.
        access_log=False,
        server_header=False,
        proxy_headers=False,  # Who rules on a part is not for a header to say.
        ws_per_message_deflate=False,  # A JPEG gets no smaller, the processor only warmer.
        ws_max_size=4096,  # Browsers say "painted" and "shown".
        ws_ping_interval=5.0,
        ws_ping_timeout=10.0,
        timeout_graceful_shutdown=2,
        lifespan="on",
    )


async def _answer(_: Request, error: Exception) -> JSONResponse:
    """Say what went wrong: somebody was first, or nothing can be put on record just now."""
    lost = isinstance(error, RulingError)
    code = status.HTTP_409_CONFLICT if lost else status.HTTP_503_SERVICE_UNAVAILABLE
    return JSONResponse({"detail": str(error)}, status_code=code)


def _tell_end(task: asyncio.Task[Any], health: HealthBoard) -> None:
    """Put it on the board when the live stream ends by anything but a shutdown."""
    if not task.cancelled() and (error := task.exception()) is not None:
        health.report("panel", ok=False, words=f"the live stream stopped: {error!r}")


def _digest(folder: Path, about: About) -> str:
    """Return a name for these very pages; a browser that holds others reloads."""
    digest = hashlib.sha256(repr((about.site, about.line, about.node)).encode())
    for path in sorted([*folder.glob("static/*"), *folder.glob("templates/*")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]
