"""What was spent and what the budgets say, for other programs; and what parts proved to be.

Amounts of money are whole pico-units, as text, because JSON's readers take numbers for
floating point. What cannot be read just now is an error and never an empty answer.
"""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Response, status
from pydantic import BaseModel, ConfigDict, Field

from qcnode.domain import Finding
from qcnode.money import CostCentre
from qcnode.panel.access import Right, needs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qcnode.books.forecast import Outlook
    from qcnode.panel.books import Reading
    from qcnode.panel.sources import DeskView

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS = (
    "name",
    "unit",
    "currency",
    "window",
    "from",
    "until",
    "limit",
    "used",
    "held",
    "left",
    "calls",
    "forecast",
    "forecast_low",
    "forecast_high",
    "alarm",
)


class TruthIn(BaseModel):
    """What a part proved to be, and who or what says so."""

    model_config = ConfigDict(extra="forbid")

    truth: Literal["good", "defective"]
    source: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]


def router(*, read: Callable[[], Awaitable[Reading]], desk: DeskView) -> APIRouter:
    """Return the routes about spending and what it was good for."""
    routes = APIRouter()

    @routes.get("/api/v1/spend", dependencies=[needs(Right.SPEND)])
    async def spend() -> dict[str, Any]:
        """Return the sums of the ledger and every budget."""
        reading = await read()
        totals, outlooks = reading.totals, reading.outlooks
        if totals is None or outlooks is None:
            raise _unread()
        return {
            "entries": totals.entries,
            "attempts": totals.attempts,
            "unpriced": totals.unpriced,
            "indeterminate": totals.indeterminate,
            "tokens": {"input": totals.input_tokens, "output": totals.output_tokens},
            "cost_pico": _texts(totals.cost_pico),
            "held_pico": _texts(totals.held_pico),
            "written_off_pico": _texts(totals.written_off_pico),
            "budgets": [_budget(one) for one in outlooks],
        }

    @routes.get("/api/v1/spend.csv", dependencies=[needs(Right.SPEND)])
    async def budgets() -> Response:
        """Return every budget as a row."""
        reading = await read()
        if reading.outlooks is None:
            raise _unread()
        file = io.StringIO()
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for one in reading.outlooks:
            row = _budget(one)
            writer.writerow(row | (row["forecast"] or {"forecast": None}))
        return Response(file.getvalue(), media_type="text/csv")

    @routes.post(
        "/api/v1/escalations/{escalation_id}/truth",
        status_code=status.HTTP_201_CREATED,
        dependencies=[needs(Right.LEARN)],
    )
    async def learn(escalation_id: str, said: TruthIn) -> dict[str, Any]:
        """Put on record what a part that was ruled on proved to be, in rework or elsewhere."""
        outcome = await desk.learn(escalation_id, Finding(said.truth), source=said.source)
        return {
            "escalation_id": outcome.escalation_id,
            "ruled": outcome.ruled,
            "truth": outcome.truth,
            "node_alone": outcome.node_alone,
        }

    return routes


def _budget(one: Outlook) -> dict[str, Any]:
    state, coming = one.state, one.forecast
    budget = state.budget
    return {
        "name": budget.name,
        "unit": budget.unit,
        "currency": budget.currency,
        "window": budget.window,
        "scope": {
            name: value for name in CostCentre.__slots__ if (value := getattr(budget.scope, name))
        },
        "shared": budget.shared,
        "lent": state.lent,
        "from": _instant(state.span.from_us),
        "until": _instant(state.span.until_us),
        "limit": str(state.limit),
        "used": str(state.used),
        "held": str(state.held),
        "left": str(state.left),
        "calls": state.calls,
        "forecast": None
        if coming is None
        else {
            "forecast": str(coming.expected),
            "forecast_low": str(coming.low),
            "forecast_high": str(coming.high),
            "used_up": None if coming.used_up_us is None else _instant(coming.used_up_us),
        },
        "alarm": None if one.alarm is None else one.alarm.value,
    }


def _texts(sums: dict[str, int]) -> dict[str, str]:
    return {currency: str(pico) for currency, pico in sorted(sums.items())}


def _instant(at_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat()


def _unread() -> HTTPException:
    return HTTPException(
        status.HTTP_503_SERVICE_UNAVAILABLE, "the ledger cannot be read just now: try again"
    )
