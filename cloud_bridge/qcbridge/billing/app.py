"""The billing server over HTTP: batches in, receipts, totals and invoices out.

It translates HTTP and nothing else: `Intake` takes, `Reports` reads, `invoices` works
out. Everything that shows or takes money asks who comes (`access`). Work on the
database runs in worker threads, so a slow one never stops the liveness answer.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from qcbridge.billing.access import Door, Ingest, Read, check_tenant
from qcbridge.billing.drafts import IssueTerms
from qcbridge.billing.engine import StoreUnavailableError
from qcbridge.billing.finance import FinanceDesk
from qcbridge.billing.finance import router as finance_routes
from qcbridge.billing.intake import Intake
from qcbridge.billing.invoices import (
    NOT_CHARGED,
    format_micro,
    from_us,
    month,
    month_of,
)
from qcbridge.billing.issued import Invoices
from qcbridge.billing.offers import BATCH_BYTES_MAX
from qcbridge.billing.papers import count, invoice_json, view_of
from qcbridge.billing.reports import Reports
from qcbridge.billing.tokens import Tokens
from qcbridge.billing.witness import latest_notes
from qcnode.books import batch as batches
from qcnode.errors import BillingError
from qcnode.money import format_pico

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from qcbridge.billing.bill import Rates
    from qcbridge.billing.papers import InvoiceView
    from qcbridge.billing.reports import Totals
    from qcbridge.billing.store import BillingStore

CLOUDEVENT = "application/cloudevents+json"
BODY_TIMEOUT_S = 15.0
READY_TIMEOUT_S = 5.0
REFUSALS_SHOWN_MAX = 20

_HERE = Path(__file__).parent
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

TenantQuery = Annotated[str, Query(min_length=1, max_length=64)]
MaybeNodeQuery = Annotated[str | None, Query(min_length=1, max_length=64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """What the routes work with."""

    store: BillingStore
    reports: Reports
    invoices: Invoices
    intake: Intake
    pages: Environment
    now: Callable[[], datetime]
    prices: Rates | None


@dataclass(frozen=True, slots=True)
class _Sheet:
    """What the page shows of one tenant."""

    totals: Totals
    invoice: InvoiceView


def create_app(
    store: BillingStore,
    *,
    token: str | None,
    now: Callable[[], datetime],
    intake: Intake | None = None,
    prices: Rates | None = None,
    hosts: Sequence[str] = ("*",),
) -> FastAPI:
    """Build the server on `store`, whose schema is up to date.

    `hosts` are the names it answers to: a server without a token names its own, so that
    no web page can reach it under another one.
    """
    pages = Environment(
        loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined
    )
    pages.filters.update(pico=format_pico, micro=format_micro, instant=_instant, count=count)
    pages.globals.update(not_charged=NOT_CHARGED)
    app = FastAPI(title="qcnode billing", openapi_url=None)
    app.state.door = Door(token, Tokens(store.database, now=now, random=secrets.token_bytes))
    app.state.pages = pages
    app.state.finance = FinanceDesk(store.database, now=now, prices=prices)
    app.state.server = _Server(
        store=store,
        reports=Reports(store.database),
        invoices=Invoices(store.database, now=now),
        intake=intake if intake is not None else Intake(store),
        pages=pages,
        now=now,
        prices=prices,
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.middleware("http")(_harden)
    app.exception_handler(RequestValidationError)(_say_what_is_wrong)
    app.exception_handler(BillingError)(_say_no)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    app.include_router(_open_routes)
    app.include_router(_guarded_routes)
    app.include_router(finance_routes)
    return app


def _server(request: Request) -> _Server:
    server: _Server = request.app.state.server
    return server


ServerDep = Annotated[_Server, Depends(_server)]


_open_routes = APIRouter()
_guarded_routes = APIRouter()


@_open_routes.get("/livez")
async def _livez() -> PlainTextResponse:
    """Say that the process runs."""
    return PlainTextResponse("alive\n")


@_open_routes.get("/readyz")
async def _readyz(server: ServerDep) -> PlainTextResponse:
    """Say whether batches can be stored."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await run_in_threadpool(server.store.database.ping)
    except TimeoutError:
        words = f"the billing database did not answer in {READY_TIMEOUT_S:g} s\n"
        return PlainTextResponse(words, status.HTTP_503_SERVICE_UNAVAILABLE)
    except StoreUnavailableError as error:
        return PlainTextResponse(f"{error}\n", status.HTTP_503_SERVICE_UNAVAILABLE)
    return PlainTextResponse("ready\n")


@_open_routes.get("/metrics")
def _metrics(server: ServerDep) -> Response:
    """Give Prometheus its counters; no amounts are among them."""
    return Response(generate_latest(server.intake.registry), media_type=CONTENT_TYPE_LATEST)


@_guarded_routes.post("/v1/batches")
async def _post_batch(request: Request, server: ServerDep, grant: Ingest) -> Response:
    """Take a batch and answer with its receipt, also when the receipt names a problem."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != CLOUDEVENT:
        raise HTTPException(
            status.HTTP_415_UNSUPPORTED_MEDIA_TYPE, f"send the batch as {CLOUDEVENT}"
        )
    raw = await _read_body(request)
    receipt = await run_in_threadpool(
        server.intake.take, raw, via="http", tenant=grant.tenant, node=grant.node
    )
    return Response(batches.encode_receipt(receipt), media_type="application/json")


@_guarded_routes.get("/v1/totals")
def _get_totals(tenant: TenantQuery, server: ServerDep, grant: Read) -> dict[str, Any]:
    """Return a tenant's sums, to be compared with what its nodes say."""
    check_tenant(grant, tenant)
    return asdict(server.reports.totals(tenant))


@_guarded_routes.get("/v1/notes")
def _get_notes(
    tenant: TenantQuery, server: ServerDep, grant: Read, node: MaybeNodeQuery = None
) -> PlainTextResponse:
    """Return the last signed note about each ledger, to be kept where nobody here reaches."""
    check_tenant(grant, tenant)
    return PlainTextResponse("\n".join(latest_notes(server.store.database, tenant, node)))


@_guarded_routes.get("/v1/invoices/{period}")
def _get_invoice(
    period: str, tenant: TenantQuery, server: ServerDep, grant: Read
) -> dict[str, Any]:
    """Return the invoice of a month: as it was issued, or else as it stands now."""
    check_tenant(grant, tenant)
    span = month(period)
    issued = server.invoices.of_period(tenant, span.name)
    if issued is not None:
        return invoice_json(issued, issued=True)
    return invoice_json(server.invoices.draft(tenant, span, IssueTerms(rates=server.prices)))


@_guarded_routes.get("/")
def _page(server: ServerDep, grant: Read) -> HTMLResponse:
    """Show nodes, totals, this month's invoice and what was refused."""
    at = server.now()
    span = month_of(at)
    tenants = [tenant for tenant in server.reports.tenants() if grant.reaches(tenant)]
    sheets = [
        _Sheet(
            server.reports.totals(tenant),
            view_of(server.invoices.draft(tenant, span, IssueTerms(rates=server.prices))),
        )
        for tenant in tenants
    ]
    refusals = [
        refusal
        for tenant in ((None, *tenants) if grant.tenant is None else tenants)
        for refusal in server.reports.refusals(tenant, limit=REFUSALS_SHOWN_MAX)
    ]
    template = server.pages.get_template("billing.html")
    return HTMLResponse(template.render(at=at, sheets=sheets, refusals=refusals))


async def _harden(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    response = await call_next(request)
    response.headers.update(_HEADERS)
    return response


async def _say_what_is_wrong(_: Request, error: Exception) -> JSONResponse:
    words = "the request is not complete"
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        words = f"{first['loc'][-1]}: {first['msg']}"
    return JSONResponse({"detail": words}, status.HTTP_400_BAD_REQUEST)


async def _say_no(_: Request, error: Exception) -> JSONResponse:
    away = isinstance(error, StoreUnavailableError)
    code = status.HTTP_503_SERVICE_UNAVAILABLE if away else status.HTTP_400_BAD_REQUEST
    return JSONResponse({"detail": str(error)}, code)


async def _read_body(request: Request) -> bytes:
    """Read the body, and stop as soon as it is longer than a batch may be."""
    too_long = HTTPException(
        status.HTTP_413_CONTENT_TOO_LARGE, f"a batch has {BATCH_BYTES_MAX} bytes at most"
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > BATCH_BYTES_MAX:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > BATCH_BYTES_MAX:
                    raise too_long
    except TimeoutError:
        raise HTTPException(
            status.HTTP_408_REQUEST_TIMEOUT, f"the batch did not arrive in {BODY_TIMEOUT_S:g} s"
        ) from None
    except ClientDisconnect:  # A node that was killed; it will send this again.
        raise HTTPException(status.HTTP_400_BAD_REQUEST, "the batch ended too early") from None
    return bytes(body)


def _instant(at_us: int) -> str:
    return from_us(at_us).strftime("%Y-%m-%d %H:%M:%S UTC")
