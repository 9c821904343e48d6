"""What the line feels of a network that swallows everything, next to a line that asks nobody.

A whole node runs twice on the same pictures, one after the other: once without agent and
billing server, once with both behind sockets that take every byte and never answer, so
that a fifth of the parts is asked about in vain. Compared is the time from trigger to
action that ninety-nine in a hundred parts stay within.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from qcnode.bench.measure import Result, in_turn
from qcnode.errors import ModelError
from qcnode.listen import listen
from qcnode.main import build_node
from qcnode.settings import (
    AgentSettings,
    BudgetSettings,
    CameraSettings,
    LineSettings,
    MeteringSettings,
    ModelSettings,
    NodeSettings,
    PanelSettings,
    ProviderSettings,
    Secrets,
    Settings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PERIOD_MS = 50.0
_PATIENCE_S = 5.0
_BUDGET_MICRO = 10**9


def outage_result(
    folder: Path, release: Path, pictures: Sequence[bytes], *, rounds: int, parts: int
) -> Result:
    """Measure with a release that leaves some of `pictures` undecided, homes in `folder`."""
    asked: list[int] = []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        seen = Path(place) / "pictures"
        seen.mkdir()
        for number, picture in enumerate(pictures):
            (seen / f"{number}.jpg").write_bytes(picture)
        parade = Path(place) / "parade"
        parade.mkdir()
        for number in range(parts):
            os.link(seen / f"{number % len(pictures)}.jpg", parade / f"{number:06d}.jpg")

        def alone(_round: int) -> float:
            return _p99_us(_settings(Path(place), release, parade, None))[0]

        def swallowed(_round: int) -> float:
            with _black_hole() as address:
                p99, waiting = _p99_us(_settings(Path(place), release, parade, address))
            asked.append(waiting)
            return p99

        ratios = [mine / theirs for mine, theirs in in_turn(rounds, swallowed, alone)]
    if not min(asked):
        raise ModelError(f"{release}: every part was decided, so nothing was asked in vain")
    return Result(
        name="p99 from trigger to action, network black-holed, over a line that asks nobody",
        values=tuple(ratios),
        aim=1.02,
        at_least=False,
        note=f"{parts} parts a round, one each {PERIOD_MS:.0f} ms, {min(asked)} asked about",
    )


def _p99_us(settings: Settings) -> tuple[float, int]:
    """Return that time of all parts, and how many parts were waiting for a ruling."""
    with tempfile.TemporaryDirectory(dir=settings.node.home) as home:
        node = settings.node.model_copy(update={"home": Path(home)})
        return asyncio.run(_run(settings.model_copy(update={"node": node})))


async def _run(settings: Settings) -> tuple[float, int]:
    node = build_node(settings)
    stop = asyncio.Event()
    try:
        running = asyncio.create_task(node.run(stop))
        await node.started.wait()
        await asyncio.to_thread(node.station.join, 3_600.0)
        waiting = len(node.desk.waiting())
        stop.set()
        await running
    finally:
        await node.close()
    times = sorted(node.station.latencies_us())
    return float(times[int(0.99 * len(times))]), waiting


def _settings(home: Path, release: Path, pictures: Path, hole: str | None) -> Settings:
    return Settings(
        node=NodeSettings(name="bench", tenant="bench", home=home),
        panel=PanelSettings(port=0),
        line=LineSettings(period_ms=PERIOD_MS),
        camera=CameraSettings(kind="folder", source=str(pictures)),
        model=ModelSettings(dir=release),
        agent=AgentSettings(enabled=hole is not None, waiting_max=10_000),
        provider=(ProviderSettings(base_url=f"{hole}/v1", timeout_s=_PATIENCE_S),),
        budget=(BudgetSettings(name="day", currency="USD", limit_micro=_BUDGET_MICRO),),
        metering=MeteringSettings(channel="none" if hole is None else "http", url=str(hole)),
        secrets=Secrets(provider_api_key=SecretStr("bench"), billing_token=SecretStr("bench")),
    )


@contextmanager
def _black_hole() -> Iterator[str]:
    """Listen, let the system take connections and bytes, and never answer."""
    with listen("127.0.0.1", 0) as hole:
        yield f"http://127.0.0.1:{hole.getsockname()[1]}"
