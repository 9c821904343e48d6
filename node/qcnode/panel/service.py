"""Routes for whoever looks after the node: probes and metrics.

`/livez` says the process runs. `/readyz` says whether parts can be judged, which
needs neither cloud nor broker. `/metrics` is Prometheus text, read when scraped:

- `qcnode_parts_total{verdict}`, `qcnode_faults_total`: how triggers ended
- `qcnode_escalations_total`, `qcnode_rulings_total`, `qcnode_escalations_waiting`
- `qcnode_attempts{state}`: open, settled, not_billed, indeterminate; `qcnode_unpriced_attempts`
- `qcnode_tokens_total{direction}`: input, output
- `qcnode_cost_pico_total{currency}` (measured), `qcnode_held_pico{currency}` (open and
  indeterminate, at their worst case)
- `qcnode_budget_limit{budget,unit,window}`, `_used`, `_held`, `_left`, `_forecast` (with
  `_forecast_low` and `_forecast_high`; absent while nothing is counted in the window) and
  `qcnode_budget_alarm{budget,alarm}`; money in pico-units, the unit being its currency
- `qcnode_ledger_entries_total`, `qcnode_ledger_unconfirmed_entries` (no receipt yet)
- `qcnode_component_ok{component,needed}`, `qcnode_ready`
- `qcnode_source_up{source}`: 0 when journal or ledger cannot be read; its metrics are absent then
- `qcnode_panel_viewers`, `qcnode_start_time_seconds`, `qcnode_build_info{...}`

Prometheus counts in floating point: these are for watching, the ledger is for money.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response, status
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from qcnode.books.forecast import Alarm
from qcnode.panel.access import Right, needs, who_asks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from prometheus_client.core import Metric

    from qcnode.books.forecast import Outlook
    from qcnode.domain import Counts
    from qcnode.health import HealthBoard
    from qcnode.money import LedgerTotals
    from qcnode.panel.books import Reading
    from qcnode.panel.sources import About


def router(
    *,
    read: Callable[[], Awaitable[Reading]],
    health: HealthBoard,
    about: About,
    viewers: Callable[[], int],
) -> APIRouter:
    """Return the service routes."""
    routes = APIRouter()

    @routes.get("/livez", dependencies=[needs(Right.VIEW)])
    async def livez() -> dict[str, str]:
        """Say that the process runs."""
        return {"status": "alive", "version": about.version}

    @routes.get("/readyz", dependencies=[needs(Right.VIEW)])
    async def readyz(request: Request) -> JSONResponse:
        """Say whether parts can be judged; the reasons are for whoever may see everything."""
        ready = health.ready()
        body: dict[str, Any] = {"ready": ready}
        if Right.METRICS in who_asks(request).rights:
            body["components"] = [
                {
                    "component": one.component,
                    "ok": one.ok,
                    "needed": one.needed,
                    "words": one.words,
                    "since": one.since.isoformat(),
                }
                for one in health.all()
            ]
        code = status.HTTP_200_OK if ready else status.HTTP_503_SERVICE_UNAVAILABLE
        return JSONResponse(body, status_code=code)

    @routes.get("/metrics", dependencies=[needs(Right.METRICS)])
    async def metrics() -> Response:
        """Return the metrics as they are now."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Scrape(await read(), health, about, viewers()))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return routes


class _Scrape:
    """One look at the node, as metrics."""

    def __init__(self, reading: Reading, health: HealthBoard, about: About, viewers: int) -> None:
        self._reading = reading
        self._health = health
        self._about = about
        self._viewers = viewers

    def collect(self) -> Iterable[Metric]:
        about, reading = self._about, self._reading
        info = GaugeMetricFamily(
            "qcnode_build_info",
            "What runs here",
            labels=["version", "model", "provider", "scripted"],
        )
        info.add_metric(
            [about.version, about.model, about.provider or "", str(about.scripted).lower()], 1
        )
        yield info
        yield _gauge(
            "qcnode_start_time_seconds", "When the node started", about.started_at.timestamp()
        )
        yield _gauge("qcnode_panel_viewers", "Open panel tabs", self._viewers)
        yield from self._health_metrics()
        up = GaugeMetricFamily("qcnode_source_up", "Whether it can be read", labels=["source"])
        up.add_metric(["journal"], int(reading.counts is not None))
        up.add_metric(["ledger"], int(reading.totals is not None))
        yield up
        if reading.counts is not None:
            yield from _part_metrics(reading.counts)
        if reading.totals is not None:
            yield from _ledger_metrics(reading.totals, reading.confirmed)
        if reading.outlooks:
            yield from _budget_metrics(reading.outlooks)

    def _health_metrics(self) -> Iterable[Metric]:
        components = GaugeMetricFamily(
            "qcnode_component_ok",
            "Whether a component is well",
            labels=["component", "needed"],
        )
        for one in self._health.all():
            components.add_metric([one.component, str(one.needed).lower()], int(one.ok))
        yield components
        yield _gauge("qcnode_ready", "Whether parts can be judged", int(self._health.ready()))


def _part_metrics(counts: Counts) -> Iterable[Metric]:
    parts = CounterMetricFamily("qcnode_parts", "Parts judged, by verdict", labels=["verdict"])
    for verdict in ("ok", "not_ok", "not_decidable", "undefined"):
        parts.add_metric([verdict.upper()], getattr(counts, verdict))
    yield parts
    yield CounterMetricFamily("qcnode_faults", "Triggers without a verdict", counts.faults)
    yield CounterMetricFamily("qcnode_escalations", "Questions opened", counts.escalated)
    yield CounterMetricFamily("qcnode_rulings", "Questions settled", counts.ruled)
    yield _gauge("qcnode_escalations_waiting", "Questions that wait", counts.waiting)


def _budget_metrics(outlooks: Sequence[Outlook]) -> Iterable[Metric]:
    kinds: dict[str, tuple[str, Callable[[Outlook], int | None]]] = {
        "limit": ("What may be used in the window", lambda one: one.state.limit),
        "used": ("Spent and held in the window", lambda one: one.state.used),
        "held": ("Held at the worst case", lambda one: one.state.held),
        "left": ("What may still be reserved", lambda one: one.state.left),
        "forecast": ("What the window comes to", _forecast("expected")),
        "forecast_low": ("What it comes to at least, likely", _forecast("low")),
        "forecast_high": ("What it comes to at most, likely", _forecast("high")),
    }
    for name, (words, value_of) in kinds.items():
        family = GaugeMetricFamily(
            f"qcnode_budget_{name}", words, labels=["budget", "unit", "window"]
        )
        for one in outlooks:
            budget, value = one.state.budget, value_of(one)
            if value is not None:
                family.add_metric(
                    [budget.name, budget.currency or budget.unit, budget.window], value
                )
        yield family
    alarms = GaugeMetricFamily(
        "qcnode_budget_alarm", "What is wrong with a budget", labels=["budget", "alarm"]
    )
    for one in outlooks:
        for alarm in Alarm:
            alarms.add_metric([one.state.budget.name, alarm.value], int(one.alarm is alarm))
    yield alarms


def _forecast(name: str) -> Callable[[Outlook], int | None]:
    return lambda one: None if one.forecast is None else getattr(one.forecast, name)


def _ledger_metrics(totals: LedgerTotals, confirmed: int | None) -> Iterable[Metric]:
    attempts = GaugeMetricFamily("qcnode_attempts", "Attempts by state", labels=["state"])
    for state in ("open", "settled", "not_billed", "indeterminate"):
        attempts.add_metric([state], getattr(totals, state))
    yield attempts
    yield _gauge("qcnode_unpriced_attempts", "Answered attempts without a price", totals.unpriced)
    tokens = CounterMetricFamily("qcnode_tokens", "Tokens measured", labels=["direction"])
    tokens.add_metric(["input"], totals.input_tokens)
    tokens.add_metric(["output"], totals.output_tokens)
    yield tokens
    cost = CounterMetricFamily("qcnode_cost_pico", "Measured cost", labels=["currency"])
    for currency, pico in sorted(totals.cost_pico.items()):
        cost.add_metric([currency], pico)
    yield cost
    held = GaugeMetricFamily("qcnode_held_pico", "Held at the worst case", labels=["currency"])
    for currency, pico in sorted(totals.held_pico.items()):
        held.add_metric([currency], pico)
    yield held
    yield CounterMetricFamily("qcnode_ledger_entries", "Entries in the ledger", totals.entries)
    if confirmed is not None:
        yield _gauge(
            "qcnode_ledger_unconfirmed_entries",
            "Entries without the billing server's receipt",
            max(0, totals.entries - confirmed),
        )


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value)
