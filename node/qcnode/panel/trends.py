"""The Trends page: yield against its own past, what was rejected, and who was asked.

The yield of a stretch is the share of its parts that the gate was told to accept, and its
limits are those of a p-chart: three standard deviations around a baseline that a person
froze, so that a slow decay cannot become the new normal unseen. Places are computed here
and only drawn in the browser. What is not known is None.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import math
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, HTTPException, Request, Response, status
from pydantic import BaseModel, ConfigDict

from qcnode.books.trends import Bucket, TrendReader
from qcnode.panel.access import Right, needs, who_asks
from qcnode.panel.audit import AuditTrail, Deed
from qcnode.panel.screen import words_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from qcnode.books.trends import Trends
    from qcnode.panel.file import PanelFile
    from qcnode.panel.words import Words

ANSWER_MAX_S = 4.0
CLASSES_MAX = 8
PARTS_MIN = 20
"""Fewer parts than this say nothing of a share: the stretch has no point."""
SIGMAS = 3.0
_BASELINE = "trends.baseline"
_COLUMNS = ("from", "parts", "accepted", "rejected", "asked", "blind", "faults", "agreed", "of")


class Span(StrEnum):
    """How much is shown."""

    SHIFT = "shift"
    DAY = "day"
    WEEK = "week"


_SPANS = {
    Span.SHIFT: (timedelta(hours=8), timedelta(minutes=15)),
    Span.DAY: (timedelta(hours=24), timedelta(hours=1)),
    Span.WEEK: (timedelta(days=7), timedelta(hours=6)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The yield that a person took for normal: `accepted` of `parts`, counted until `until`."""

    parts: int
    accepted: int
    until: str
    who: str

    @property
    def share(self) -> float:
        """The yield."""
        return self.accepted / self.parts


class BaselineIn(BaseModel):
    """The stretch, as it is shown now, that shall be the baseline."""

    model_config = ConfigDict(extra="forbid")

    span: Span


def stretches(trends: Trends, span: Span, now: datetime) -> list[tuple[datetime, Bucket]]:
    """Return the sums of each stretch of `span` up to now, the oldest first."""
    whole, step = _SPANS[span]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    last = epoch + (now - epoch) // step * step
    count = whole // step
    sums = {last - step * back: Bucket() for back in range(count)}
    for at, bucket in trends.buckets.items():
        start = epoch + (at - epoch) // step * step
        if start in sums:
            _add(sums[start], bucket)
    return sorted(sums.items())


def p_limits(share: float, parts: int) -> tuple[float, float]:
    """Return between which yields a stretch of so many parts lies, if nothing has changed."""
    reach = SIGMAS * math.sqrt(share * (1 - share) / parts)
    return max(0.0, share - reach), min(1.0, share + reach)


def seen(
    say: Words, trends: Trends, span: Span, *, baseline: Baseline | None, now: datetime
) -> dict[str, Any]:
    """Return everything the page draws."""
    shown = stretches(trends, span, now)
    start = shown[0][0]
    whole = Bucket()
    for _, bucket in shown:
        _add(whole, bucket)
    took = [seconds for at, seconds in trends.decisions_s if at >= start]
    return {
        "span": span.value,
        "from": start.isoformat(),
        "step_minutes": int(_SPANS[span][1].total_seconds() // 60),
        "yield": _chart(shown, baseline),
        "baseline": None
        if baseline is None
        else say(
            "trends.baseline",
            share=f"{100 * baseline.share:.1f}",
            parts=baseline.parts,
            who=baseline.who,
            until=baseline.until[:16].replace("T", " "),
        ),
        "pareto": _pareto(whole.classes),
        "asked": [_share(one.asked, one.parts) for _, one in shown],
        "figures": {
            "parts": whole.parts,
            "yield": _percent(whole.accepted, whole.parts),
            "rejected": _percent(whole.rejected, whole.parts),
            "asked": _percent(whole.asked, whole.parts),
            "agreed": _percent(whole.agreed, whole.compared),
            "compared": whole.compared,
            "decision": None if not took else f"{median(took):.0f} s",
            "decisions": len(took),
        },
        "marks": [
            {
                "x": _place(mark.at, shown),
                "words": say(f"trends.mark.{mark.what}", name=mark.name, at=_minute(mark.at)),
            }
            for mark in trends.marks
            if mark.at >= start
        ],
        "rows": [_row(at, one) for at, one in shown],
    }


def router(
    *,
    journal: Path,
    file: PanelFile,
    now: Callable[[], datetime],
    threads: Executor,
) -> APIRouter:
    """Return the routes of the page; `journal` is the journal's file."""
    reader, trail, turn = TrendReader(journal), AuditTrail(file, now=now), asyncio.Lock()
    routes = APIRouter()

    async def summed(make: Callable[[Trends, Baseline | None], Any]) -> Any:
        """Have something made of the sums, off the loop, and not for long."""

        def work() -> Any:
            return make(reader.read(now()), _read_baseline(file))

        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                async with turn:
                    running = asyncio.get_running_loop().run_in_executor(threads, work)
                    return await asyncio.shield(running)
        except TimeoutError:
            raise HTTPException(
                status.HTTP_503_SERVICE_UNAVAILABLE, "the journal is being summed: ask again"
            ) from None

    @routes.get("/api/v1/trends/{span}", dependencies=[needs(Right.VIEW)])
    async def trends(request: Request, span: Span) -> dict[str, Any]:
        """Return how parts came out over a shift, a day or a week."""
        say = words_for(request)
        told: dict[str, Any] = await summed(
            lambda sums, baseline: seen(say, sums, span, baseline=baseline, now=now())
        )
        return told

    @routes.get("/api/v1/trends/{span}/csv", dependencies=[needs(Right.VIEW)])
    async def rows(span: Span) -> Response:
        """Return the same as one row for each stretch."""
        found = await summed(
            lambda sums, _: [_row(at, one) for at, one in stretches(sums, span, now())]
        )
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(_COLUMNS)
        writer.writerows(found)
        return Response(text.getvalue(), media_type="text/csv")

    @routes.post(
        "/api/v1/trends/baseline",
        status_code=status.HTTP_204_NO_CONTENT,
        dependencies=[needs(Right.LEARN)],
    )
    async def freeze(request: Request, said: BaselineIn) -> None:
        """Take the yield of a stretch, as it is now, for normal."""
        who = who_asks(request)
        where = request.client.host if request.client else "panel"

        def keep(sums: Trends, before: Baseline | None) -> None:
            shown = [one for _, one in stretches(sums, said.span, now())]
            parts = sum(one.parts for one in shown)
            if parts < PARTS_MIN:
                raise HTTPException(
                    status.HTTP_409_CONFLICT, f"{parts} parts are too few for a baseline"
                )
            accepted = sum(one.accepted for one in shown)
            after = Baseline(parts=parts, accepted=accepted, until=now().isoformat(), who=who.name)
            deed = Deed(
                what="trends.baseline",
                who=who.name,
                role=who.role.value,
                where=where,
                before="" if before is None else f"{before.share:.4f} of {before.parts}",
                after=f"{after.share:.4f} of {after.parts}",
            )
            with file.transaction() as db:
                db.execute(
                    "INSERT INTO kept (name, body) VALUES (?, ?)"
                    " ON CONFLICT (name) DO UPDATE SET body = excluded.body",
                    (
                        _BASELINE,
                        json.dumps(
                            {
                                "parts": after.parts,
                                "accepted": after.accepted,
                                "until": after.until,
                                "who": after.who,
                            }
                        ),
                    ),
                )
                trail.add(db, deed)

        await summed(keep)

    return routes


def _read_baseline(file: PanelFile) -> Baseline | None:
    with file.transaction() as db:
        row = db.execute("SELECT body FROM kept WHERE name = ?", (_BASELINE,)).fetchone()
    return None if row is None else Baseline(**json.loads(row[0]))


def _chart(shown: Sequence[tuple[datetime, Bucket]], baseline: Baseline | None) -> dict[str, Any]:
    """Return points, limits and centre with their places: 0 is the lower left corner."""
    points = []
    for at, one in shown:
        share = _share(one.accepted, one.parts)
        low, high = (None, None)
        if baseline is not None and share is not None:
            low, high = p_limits(baseline.share, one.parts)
        points.append((at, one.parts, share, low, high))
    known = [value for point in points for value in (point[2], point[3]) if value is not None] + (
        [] if baseline is None else [baseline.share]
    )
    floor = math.floor(20 * min(known, default=0.0)) / 20
    floor = min(floor, 0.95)

    def place(value: float | None) -> float | None:
        return None if value is None else round((value - floor) / (1 - floor), 4)

    return {
        "floor": f"{100 * floor:.0f} %",
        "centre": None if baseline is None else place(baseline.share),
        "points": [
            {
                "at": _minute(at),
                "x": round((number + 0.5) / len(points), 4),
                "y": place(share),
                "low": place(low),
                "high": place(high),
                "out": share is not None
                and low is not None
                and high is not None
                and not low <= share <= high,
                "parts": parts,
                "yield": None if share is None else f"{100 * share:.1f} %",
            }
            for number, (at, parts, share, low, high) in enumerate(points)
        ],
    }


def _pareto(classes: dict[str, int]) -> list[dict[str, Any]]:
    """Return the commonest defects, each with its share and that of all up to it."""
    whole, so_far = sum(classes.values()), 0
    bars = []
    for name, count in Counter(classes).most_common(CLASSES_MAX):
        so_far += count
        bars.append(
            {
                "name": name,
                "count": count,
                "share": round(count / whole, 4),
                "sum": round(so_far / whole, 4),
            }
        )
    return bars


def _add(into: Bucket, one: Bucket) -> None:
    for name in ("parts", "accepted", "rejected", "asked", "blind", "faults", "compared", "agreed"):
        setattr(into, name, getattr(into, name) + getattr(one, name))
    for name, count in one.classes.items():
        into.classes[name] = into.classes.get(name, 0) + count


def _row(at: datetime, one: Bucket) -> list[Any]:
    return [
        at.isoformat(),
        one.parts,
        one.accepted,
        one.rejected,
        one.asked,
        one.blind,
        one.faults,
        one.agreed,
        one.compared,
    ]


def _place(at: datetime, shown: Sequence[tuple[datetime, Bucket]]) -> float:
    start, step = shown[0][0], shown[1][0] - shown[0][0]
    return round(min(1.0, (at - start) / (step * len(shown))), 4)


def _share(count: int, of: int) -> float | None:
    return None if of < PARTS_MIN else round(count / of, 4)


def _percent(count: int, of: int) -> str | None:
    return None if of == 0 else f"{100 * count / of:.1f} %"


def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"
