"""What finance looks at: usage by account, invoices, capture rate, value per token.

It translates HTTP and nothing else. What is measured, on the way, indeterminate and
unpriced always stands side by side, with the capture rate, because a sum of what is
known is a floor and no total. Everything here asks for the scope `finance`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response, status
from fastapi.responses import HTMLResponse

from qcbridge.billing.access import Finance, check_tenant
from qcbridge.billing.bill import SCRIPTED
from qcbridge.billing.drafts import IssueTerms
from qcbridge.billing.invoices import from_us, month, month_of, next_month
from qcbridge.billing.issued import Invoices
from qcbridge.billing.issued_paper import encode_invoice
from qcbridge.billing.papers import money, rate_words
from qcbridge.billing.reports import Reports
from qcbridge.billing.usage import Usage
from qcbridge.billing.value import value_of
from qcnode.books.attempts import State
from qcnode.errors import BillingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from jinja2 import Environment

    from qcbridge.billing.bill import InvoiceLine, Rates
    from qcbridge.billing.engine import Database
    from qcbridge.billing.invoices import Period
    from qcbridge.billing.issued_paper import IssuedInvoice
    from qcbridge.billing.reports import CaptureDay, Totals
    from qcbridge.billing.value import Value

VALUES_KEPT_MAX = 16
TenantQuery = Annotated[str, Query(min_length=1, max_length=64)]
PeriodQuery = Annotated[str | None, Query(max_length=7)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What one account used at one provider in a month, in the currency it was priced in."""

    department: str
    application: str
    function: str
    provider: str
    currency: str
    attempts: int
    tokens: int
    cost_pico: int

    @property
    def scripted(self) -> bool:
        """Whether this is use of the provider that charges nobody."""
        return self.provider == SCRIPTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known and what is not, side by side; each is amounts by currency."""

    measured: dict[str, int]
    on_the_way: dict[str, int]
    indeterminate: dict[str, int]
    unpriced: int
    quarantined: int


class FinanceDesk:
    """Reads what finance asks for; any thread may use it."""

    def __init__(
        self, database: Database, *, now: Callable[[], datetime], prices: Rates | None
    ) -> None:
        self.reports = Reports(database)
        self.invoices = Invoices(database, now=now)
        self.now = now
        self._usage = Usage(database)
        self._prices = prices
        self._values: OrderedDict[tuple[str, str, int], tuple[Value, ...]] = OrderedDict()

    def month(self, tenant: str, period: Period) -> tuple[IssuedInvoice, bool]:
        """Return the invoice of a month as it was issued, or as it stands now, and which it is.

        Raises `BillingError` of a month that was closed without one.
        """
        issued = self.invoices.of_period(tenant, period.name)
        if issued is not None:
            return issued, True
        return self.invoices.draft(tenant, period, IssueTerms(rates=self._prices)), False

    def value(self, tenant: str, period: Period, entries: int) -> tuple[Value, ...]:
        """Return what a month's tokens were worth; worked out anew when entries have come."""
        key = (tenant, period.name, entries)
        found = self._values.get(key)
        if found is None:
            found = value_of(self._usage.judged(tenant, period))
            self._values[key] = found
            while len(self._values) > VALUES_KEPT_MAX:
                self._values.popitem(last=False)
        return found


def spent_by_account(lines: Iterable[InvoiceLine]) -> tuple[Spent, ...]:
    """Add lines up by account, provider and currency; currencies stay apart."""
    sums: dict[tuple[str, str, str, str, str], list[int]] = {}
    requests: dict[tuple[str, str, str, str, str], dict[tuple[object, ...], int]] = {}
    for line in lines:
        key = (line.department, line.application, line.function, line.provider, line.currency)
        both = sums.setdefault(key, [0, 0])
        both[0] += line.tokens
        both[1] += line.list_pico
        # A request is on a line for each class of its tokens: the longest of them counts.
        group = (line.why, line.node, line.model, line.month)
        seen = requests.setdefault(key, {})
        by_class = (*group, line.token_class)
        seen[by_class] = seen.get(by_class, 0) + (line.attempts if line.pack is None else 0)
    return tuple(
        Spent(
            department=key[0],
            application=key[1],
            function=key[2],
            provider=key[3],
            currency=key[4],
            attempts=_attempts(requests[key]),
            tokens=tokens,
            cost_pico=pico,
        )
        for key, (tokens, pico) in sorted(sums.items())
    )


def _attempts(seen: dict[tuple[object, ...], int]) -> int:
    most: dict[tuple[object, ...], int] = {}
    for key, count in seen.items():
        most[key[:-1]] = max(most.get(key[:-1], 0), count)
    return sum(most.values())


def standing_of(invoice: IssuedInvoice, totals: Totals) -> Standing:
    """Return what is measured in a month, and what is not known at its end."""
    held: dict[str, dict[str, int]] = {}
    for one in invoice.beside:
        state = State.INTENT if one.state == State.RESERVED else one.state
        sums = held.setdefault(state, {})
        sums[one.currency] = sums.get(one.currency, 0) + one.hold_pico
    measured: dict[str, int] = {}
    for line in invoice.lines:
        measured[line.currency] = measured.get(line.currency, 0) + line.list_pico
    return Standing(
        measured=dict(sorted(measured.items())),
        on_the_way=held.get(State.INTENT, {}),
        indeterminate=held.get(State.INDETERMINATE, {}),
        unpriced=sum(one.attempts for one in invoice.beside if one.state == State.UNPRICED),
        quarantined=totals.quarantined,
    )


router = APIRouter()


def _desk(request: Request) -> FinanceDesk:
    desk: FinanceDesk = request.app.state.finance
    return desk


DeskDep = Annotated[FinanceDesk, Depends(_desk)]


@router.get("/v1/usage")
def _get_usage(
    tenant: TenantQuery, desk: DeskDep, grant: Finance, period: PeriodQuery = None
) -> dict[str, Any]:
    """Return a month's use by account and provider, and what is not known of it."""
    check_tenant(grant, tenant)
    span = _span(desk, period)
    invoice, issued = desk.month(tenant, span)
    totals = desk.reports.totals(tenant)
    return {
        "period": span.name,
        "issued": issued,
        "usage": [asdict(one) for one in spent_by_account(invoice.lines)],
        "standing": asdict(standing_of(invoice, totals)),
        "capture": [asdict(one) for one in invoice.capture],
    }


@router.get("/v1/issued")
def _get_issued(tenant: TenantQuery, desk: DeskDep, grant: Finance) -> dict[str, Any]:
    """Return what was issued to a tenant."""
    check_tenant(grant, tenant)
    return {"invoices": [{"id": head.id, **asdict(head)} for head in desk.invoices.listed(tenant)]}


@router.get("/v1/issued/{number}")
def _get_document(number: int, tenant: TenantQuery, desk: DeskDep, grant: Finance) -> Response:
    """Return an issued invoice, byte for byte as it was issued."""
    check_tenant(grant, tenant)
    document = encode_invoice(desk.invoices.invoice(tenant, number))
    return Response(document, media_type="application/json")


@router.get("/v1/capture")
def _get_capture(
    tenant: TenantQuery, desk: DeskDep, grant: Finance, period: PeriodQuery = None
) -> dict[str, Any]:
    """Return how much of each provider's bill is on record, day by day."""
    check_tenant(grant, tenant)
    days = desk.reports.capture_days(tenant, _span(desk, period))
    return {"days": [asdict(day) | {"rate_bp": day.rate_bp, "alarm": day.alarm} for day in days]}


@router.get("/v1/value")
def _get_value(
    tenant: TenantQuery, desk: DeskDep, grant: Finance, period: PeriodQuery = None
) -> dict[str, Any]:
    """Return what a month's tokens were worth, by account."""
    check_tenant(grant, tenant)
    span = _span(desk, period)
    rows = desk.value(tenant, span, desk.reports.totals(tenant).entries)
    return {"period": span.name, "value": [_value_json(row) for row in rows]}


@router.get("/finance")
def _page(
    request: Request,
    desk: DeskDep,
    grant: Finance,
    tenant: Annotated[str | None, Query(max_length=64)] = None,
    period: PeriodQuery = None,
) -> HTMLResponse:
    """Show a tenant's month: what was used, billed, captured, and what it was worth."""
    tenants = [one for one in desk.reports.tenants() if grant.reaches(one)]
    if tenant is None and tenants:
        tenant = tenants[0]
    pages: Environment = request.app.state.pages
    template = pages.get_template("finance.html")
    if tenant is None:
        return HTMLResponse(template.render(sheet=None, tenants=tenants, at=desk.now()))
    check_tenant(grant, tenant)
    if tenant not in tenants:
        raise HTTPException(status.HTTP_404_NOT_FOUND, f"no entries of tenant {tenant} here")
    span = _span(desk, period)
    sheet = _sheet(desk, tenant, span)
    return HTMLResponse(
        template.render(
            sheet=sheet, tenants=tenants, at=desk.now(), money=money, rate_words=rate_words
        )
    )


def _sheet(desk: FinanceDesk, tenant: str, span: Period) -> _Sheet:
    totals = desk.reports.totals(tenant)
    days = desk.reports.capture_days(tenant, span)
    try:
        invoice, issued = desk.month(tenant, span)
    except BillingError as error:  # Closed before the first invoice: there is nothing to show.
        invoice, issued, notice = None, False, str(error)
    else:
        notice = ""
    return _Sheet(
        tenant=tenant,
        period=span.name,
        before=month_of(from_us(span.from_us - 1)).name,
        after=next_month(span.name),
        issued=issued,
        notice=notice,
        standing=None if invoice is None else standing_of(invoice, totals),
        spent=() if invoice is None else spent_by_account(invoice.lines),
        invoices=desk.invoices.listed(tenant),
        days=days,
        alarm=any(day.alarm for day in days),
        value=desk.value(tenant, span, totals.entries),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sheet:
    """What the page shows."""

    tenant: str
    period: str
    before: str
    after: str
    issued: bool
    notice: str
    standing: Standing | None
    spent: tuple[Spent, ...]
    invoices: tuple[Any, ...]
    days: tuple[CaptureDay, ...]
    alarm: bool
    value: tuple[Value, ...]


def _span(desk: FinanceDesk, period: str | None) -> Period:
    return month_of(desk.now()) if period is None else month(period)


def _value_json(row: Value) -> dict[str, Any]:
    return asdict(row) | {
        "account": row.account._asdict(),
        "per_correct_pico": row.per_correct,
        "per_defect_pico": row.per_defect,
        "per_saved_pico": row.per_saved,
    }
