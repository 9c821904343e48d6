"""The operator panel: one FastAPI application for people, probes and metrics.

It reads what the node knows, and puts on record what people decide. What it keeps itself,
accounts, alarms and the audit trail, is in one file of its own; nothing it does can hold up
the line. No asset comes from another host, and no script or style stands inline.
"""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request, Response, status
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from qcnode.errors import (
    AccessError,
    CertificateError,
    KillSwitchError,
    QcError,
    RulingError,
    SignInError,
)
from qcnode.panel import (
    alarmroutes,
    certificate,
    live,
    models,
    pages,
    people,
    review,
    service,
    signin,
    spend,
    state,
    stops,
    trends,
)
from qcnode.panel.access import NOBODY, Right, needs, who_asks
from qcnode.panel.alarmdesk import AlarmDesk
from qcnode.panel.audit import AuditTrail
from qcnode.panel.books import Books
from qcnode.panel.decisions import Decisions
from qcnode.panel.guard import Guard
from qcnode.panel.screen import words_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from datetime import datetime

    from qcnode.books.forecast import Outlook
    from qcnode.health import HealthBoard
    from qcnode.panel.accounts import Accounts
    from qcnode.panel.file import PanelFile
    from qcnode.panel.sources import About, DeskView, JournalView, LiveView
    from qcnode.ports import Ledger

_HERE = Path(__file__).parent
RELEASE_DELAY = timedelta(seconds=3)
"""For how long a decision can be taken back."""
LOOK_FIRST = 0.5
"""Of which share of the parts the agent's opinion is shown only after the person's own."""
_SHIPPED = ("static/*", "templates/*", "languages/*")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def create_panel(
    *,
    station_live: Callable[[], LiveView | None],
    journal: JournalView,
    journal_file: Path,
    desk: DeskView,
    ledger: Ledger,
    outlooks: Callable[[], Sequence[Outlook]],
    health: HealthBoard,
    about: About,
    file: PanelFile,
    accounts: Accounts,
    hosts: tuple[str, ...],
    now: Callable[[], datetime],
    new_id: Callable[[], str],
    reference: bytes | None = None,
    release_delay: timedelta = RELEASE_DELAY,
    look_first: float = LOOK_FIRST,
    recertify: certificate.Recertify | None = None,
    changes: models.ModelsView | None = None,
    switch: stops.SwitchView | None = None,
) -> FastAPI:
    """Build the panel. `hosts` are the names browsers know it by, beside loopback.

    `station_live` must answer at once with what the line thread last put there;
    `journal_file` is where the journal lies, for sums over time; `outlooks` are the budgets as
    they stand; `reference` is the picture of a good part as
    PNG. Without signing in whoever reaches the panel sees the line and can call for help.
    """
    threads = ThreadPoolExecutor(max_workers=3, thread_name_prefix="panel")
    # The live picture has a thread to itself: a disk that hangs must not stop it.
    painter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="panel-live")
    # So has the panel's own file, and whoever waits at the door waits in line for it.
    keeper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="panel-file")
    books = Books(desk=desk, journal=journal, ledger=ledger, outlooks=outlooks, threads=threads)
    build = f"{about.version}-{_digest(_HERE, about)}"

    def changed() -> None:
        hub.poke()

    decisions = Decisions(
        desk=desk,
        file=file,
        threads=keeper,
        now=now,
        new_id=new_id,
        release_delay=release_delay,
        changed=changed,
    )
    alarms = AlarmDesk(
        file=file,
        books=books,
        health=health,
        about=about,
        threads=keeper,
        now=now,
        changed=changed,
    )
    sections = state.Sections(
        build=build,
        about=about,
        books=books,
        health=health,
        station_live=station_live,
        decisions=decisions,
        alarms=alarms,
        look_first=look_first,
        now=now,
        switch=switch,
    )
    hub = live.LiveHub(
        station_live=station_live,
        about=about,
        accounts=accounts,
        state=sections.all,
        threads=painter,
        slow=keeper,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = {
            asyncio.create_task(hub.run()): "the live stream",
            asyncio.create_task(decisions.run()): "the release of decisions",
            asyncio.create_task(alarms.run()): "the alarms",
        }
        for task, name in running.items():
            task.add_done_callback(partial(_tell_end, name=name, health=health))
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            for pool in (threads, painter):
                pool.shutdown(wait=False, cancel_futures=True)
            keeper.shutdown(wait=False)

    app = FastAPI(
        title="qcnode panel",
        version=about.version,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, hosts=(*_LOOPBACK, *hosts), accounts=accounts)
    shells = pages.Shells(
        templates=Jinja2Templates(directory=_HERE / "templates"),
        about=about,
        build=build,
        reference=reference is not None,
    )

    async def answer(request: Request, error: Exception) -> Response:
        return _answer(request, error, shells)

    app.add_exception_handler(QcError, answer)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    routers = [
        pages.router(shells),
        signin.router(shells, accounts, threads=keeper),
        signin.out_router(shells, accounts, threads=keeper),
        signin.station_router(shells, accounts),
        people.router(accounts, AuditTrail(file, now=now), threads=keeper),
        alarmroutes.router(alarms, threads=keeper),
        live.router(hub),
        review.router(
            desk=desk,
            about=about,
            decisions=decisions,
            waiting=sections.waiting,
            look_first=look_first,
            decided=hub.poke,
        ),
        review.picture_router(desk=desk, journal=journal, reference=reference, threads=threads),
        trends.router(journal=journal_file, file=file, now=now, threads=threads),
        spend.router(read=books.read, desk=desk),
        service.router(read=books.read, health=health, about=about, viewers=hub.viewers),
        *([] if recertify is None else [certificate.router(recertify=recertify, decided=hub.poke)]),
        *([] if changes is None else [models.router(changes, file=file, now=now, threads=threads)]),
        *(
            []
            if switch is None
            else [stops.router(switch, file=file, now=now, threads=keeper, changed=hub.poke)]
        ),
    ]
    for one in routers:
        app.include_router(one)

    @app.get("/api/v1/state", dependencies=[needs(Right.VIEW)])
    async def snapshot(request: Request) -> dict[str, Any]:
        """Return everything the screens show but the picture, as far as you may see it."""
        say, who = words_for(request), who_asks(request)
        every = await sections.all([say])
        return {"who": state.self_words(say, who, None)} | state.seen_by(who, every[say.language])

    @app.get("/api/v1/openapi.json", dependencies=[needs(Right.VIEW)], include_in_schema=False)
    async def description() -> dict[str, Any]:
        """Describe this interface."""
        return app.openapi()

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


def _answer(request: Request, error: Exception, shells: pages.Shells) -> Response:
    """Say what went wrong; a page that is for others asks whoever is not signed in who they are."""
    path = request.url.path
    if isinstance(error, AccessError) and path in {page.path for page in pages.PAGES}:
        if who_asks(request).role is NOBODY.role:
            return RedirectResponse(f"/login?to={path}", status.HTTP_303_SEE_OTHER)
        return shells.page(request, "denied", code=status.HTTP_403_FORBIDDEN, words=str(error))
    code = next(
        (code for kind, code in _CODES.items() if isinstance(error, kind)),
        status.HTTP_503_SERVICE_UNAVAILABLE,
    )
    return JSONResponse({"detail": str(error)}, status_code=code)


_CODES = {
    AccessError: status.HTTP_403_FORBIDDEN,
    # Somebody was first, or it is not so any more.
    RulingError: status.HTTP_409_CONFLICT,
    CertificateError: status.HTTP_409_CONFLICT,
    KillSwitchError: status.HTTP_409_CONFLICT,
    SignInError: status.HTTP_422_UNPROCESSABLE_CONTENT,
}


def _tell_end(task: asyncio.Task[Any], *, name: str, health: HealthBoard) -> None:
    """Put it on the board when something ends by anything but a shutdown."""
    if not task.cancelled() and (error := task.exception()) is not None:
        health.report("panel", ok=False, words=f"{name} stopped: {error!r}")


def _digest(folder: Path, about: About) -> str:
    """Return a name for these very pages; a browser that holds others reloads."""
    digest = hashlib.sha256(repr((about.site, about.line, about.node)).encode())
    for path in sorted(one for kind in _SHIPPED for one in folder.glob(kind)):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]
