"""The Models page: what judges, what it promises, what is coming, and what other limits would do.

What-if is counted on the calibration parts of the model in service, at the prevalence its
manifest states. Every figure is a whole number of parts in a million, made here and only
subtracted in the browser, so the screen and `what_if` cannot differ. Limits are earned and
not typed: what-if shows what to ask of teaching, and changes nothing.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import APIRouter, Request, status
from pydantic import BaseModel, ConfigDict, Field

from qcnode.panel.access import Right, needs, who_asks
from qcnode.panel.audit import AuditTrail, Deed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from qcnode.manifest import LimitPromise, ModelManifest
    from qcnode.panel.file import PanelFile

STEPS = 100
BINS = 40
MILLION = 1_000_000
CHECKED_MIN = 30
"""With fewer defects than this nothing is said of escapes."""


class ModelsView(Protocol):
    """The models of the node, as far as the panel sees them."""

    @property
    def manifest(self) -> ModelManifest:
        """What the model in service promises."""

    def status(self) -> dict[str, Any]:
        """Return what is in service, how a change goes, and what happened before."""

    def roll_back(self, who: str) -> None:
        """Call a change off, or put the model before in service; raises `ModelError`."""


class RollbackIn(BaseModel):
    """Why. Who asks is not theirs to say."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=3, max_length=500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Parts in a million by score limit: of `thresholds[i]`, how many lie below or from there on.

    `below` counts all parts, `rejected` good ones at or above, `escaped` defective ones
    below; None where too few defects are known.
    """

    thresholds: tuple[float, ...]
    below: tuple[int, ...]
    rejected: tuple[int, ...]
    escaped: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """What two limits would do to a million parts, and the tokens asked for them."""

    false_rejects: int
    escapes: int | None
    asked: int
    tokens: int


def table_of(
    good: Sequence[float], bad: Sequence[float], also: Sequence[float], *, prevalence: float
) -> Table:
    """Count at evenly spaced limits over all scores, and at those in `also`."""
    good, bad = sorted(good), sorted(bad)
    low = min([*good, *bad, *also])
    high = max([*good, *bad, *also])
    width = (high - low) / STEPS
    # Beyond the last score everything lies below: no part would be rejected.
    grid = {low + width * step for step in range(STEPS + 2)} if width else {low, low + 1.0}
    thresholds = sorted(grid | set(also))
    shares = [
        (bisect_left(good, at) / len(good), bisect_left(bad, at) / len(bad) if bad else 0.0)
        for at in thresholds
    ]
    return Table(
        thresholds=tuple(thresholds),
        below=tuple(
            round(MILLION * ((1 - prevalence) * below + prevalence * missed))
            for below, missed in shares
        ),
        rejected=tuple(round(MILLION * (1 - prevalence) * (1 - below)) for below, _ in shares),
        escaped=tuple(round(MILLION * prevalence * missed) for _, missed in shares)
        if len(bad) >= CHECKED_MIN
        else None,
    )


def what_if(table: Table, accept: int | None, reject: int | None, *, tokens: int) -> WhatIf:
    """Return what the limits at these places would do; None is a limit that is not set."""
    from_below = 0 if accept is None else table.below[accept]
    to_above = MILLION if reject is None else table.below[reject]
    asked = max(0, to_above - from_below)
    escapes = None
    if table.escaped is not None:
        escapes = 0 if accept is None else table.escaped[accept]
    return WhatIf(
        false_rejects=0 if reject is None else table.rejected[reject],
        escapes=escapes,
        asked=asked,
        tokens=asked * tokens,
    )


def seen(view: ModelsView) -> dict[str, Any]:
    """Return everything the page draws."""
    manifest = view.manifest
    limits = manifest.limits
    known = [one for one in (limits.accept_below, limits.reject_from) if one is not None]
    table = table_of(
        manifest.good_scores, manifest.defect_scores, known, prevalence=manifest.prevalence
    )
    now = {
        name: None if limit is None else table.thresholds.index(limit)
        for name, limit in (("accept", limits.accept_below), ("reject", limits.reject_from))
    }
    return {
        "model": {
            "version": manifest.version,
            "family": manifest.family,
            "created": manifest.created_at.isoformat(timespec="minutes"),
            "taught": manifest.taught_from.taught,
            "good": len(manifest.good_scores),
            "defects": len(manifest.defect_scores),
            "promises": [_promise(one) for one in (manifest.reject_from, manifest.accept_below)],
            "trials": [[one.family, one.features, f"{one.auroc:.4f}"] for one in manifest.trials],
            "licence": None if manifest.imported is None else manifest.imported.licence,
        },
        "changes": view.status(),
        "what_if": {
            "thresholds": [f"{one:.4g}" for one in table.thresholds],
            "places": _places(table.thresholds),
            "below": table.below,
            "rejected": table.rejected,
            "escaped": table.escaped,
            "tokens": manifest.tokens_per_escalation,
            "prevalence": f"{100 * manifest.prevalence:g} %",
            "now": now,
            "bins": _bins(table, manifest),
        },
    }


def router(
    view: ModelsView,
    *,
    file: PanelFile,
    now: Callable[[], Any],
    threads: Executor,
) -> APIRouter:
    """Return the routes of the page."""
    trail = AuditTrail(file, now=now)
    routes = APIRouter()

    @routes.get("/api/v1/models", dependencies=[needs(Right.MODELS)])
    async def models() -> dict[str, Any]:
        """Return what judges, what is coming, and the table of what-if."""
        return await asyncio.get_running_loop().run_in_executor(threads, seen, view)

    @routes.post(
        "/api/v1/models/rollback",
        status_code=status.HTTP_202_ACCEPTED,
        dependencies=[needs(Right.MAINTAIN)],
    )
    async def roll_back(request: Request, said: RollbackIn) -> dict[str, str]:
        """Ask for the model before; how it goes is on the page."""
        who = who_asks(request)
        where = request.client.host if request.client else "panel"
        deed = Deed(
            what="model.rollback",
            who=who.name,
            role=who.role.value,
            where=where,
            before=view.manifest.version,
            reason=said.reason,
        )

        def ask() -> None:
            trail.put(deed)
            view.roll_back(f"{who.name}@{where}")

        await asyncio.get_running_loop().run_in_executor(threads, ask)
        return {"status": "asked for"}

    return routes


def _promise(one: LimitPromise) -> str:
    return one.reason if one.guarantee is None else f"{one.guarantee} (n = {one.n})"


def _places(thresholds: Sequence[float]) -> list[float]:
    low, high = thresholds[0], thresholds[-1]
    return [round((one - low) / (high - low), 4) for one in thresholds]


def _bins(table: Table, manifest: ModelManifest) -> list[list[float]]:
    """Return the shares of good and defective parts by score, each to its own highest bar."""
    low, high = table.thresholds[0], table.thresholds[-1]
    counts = [[0.0, 0.0] for _ in range(BINS)]
    for kind, scores in enumerate((manifest.good_scores, manifest.defect_scores)):
        for score in scores:
            place = int((score - low) / (high - low) * BINS)
            counts[min(max(place, 0), BINS - 1)][kind] += 1
        most = max(one[kind] for one in counts) or 1.0
        for one in counts:
            one[kind] = round(one[kind] / most, 4)
    return counts
