"""`qcnode bench`: what it costs here, next to the least it could cost.

Every figure is a ratio to a reference measured in the same run, or stands beside one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qcnode.errors import SettingsError

_TAUGHT_ON = 20

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qcnode.bench.measure import Result


def register(app: typer.Typer) -> None:
    """Add `bench` to the commands people type."""
    app.command()(bench)


def bench(
    *,
    books: Annotated[
        bool, typer.Option("--books", help="Measure ledger, prices and sync, and not the frames.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Measure frames with this release; else with one taught for the purpose."
        ),
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="Where to write: a folder on the disk that counts.")
    ] = Path(),
    rounds: Annotated[int, typer.Option(min=3, max=101, help="How often to measure each.")] = 7,
    size: Annotated[
        Literal["small", "full"], typer.Option(help="How much to do in each round.")
    ] = "full",
    broker: Annotated[
        str | None, typer.Option(help="Also measure MQTT, at this broker (HOST:PORT, no login).")
    ] = None,
    billing_url: Annotated[
        str | None,
        typer.Option(
            envvar="QCNODE_BENCH_URL",
            help="Also measure the server's import, in this EMPTY PostgreSQL database.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure this machine, each figure as a ratio to a reference in the same run.

    An aim that is not met is said to be missed; only a figure that cannot be taken is an
    error.
    """
    import logging

    import structlog

    from qcnode.bench.books import Size, books_results
    from qcnode.bench.measure import machine

    if not folder.is_dir():
        raise SettingsError(f"{folder}: no such folder: name one on the disk that counts")
    # What is opened and closed a hundred times is not worth a line each time.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    found: list[Result] = []
    about = machine()
    if not as_json:
        typer.echo(f"{about['cpu']}, {about['cores']} cores, load {about['load_1m']:.2f}")
    if books:
        work = Size.small(rounds) if size == "small" else Size(rounds=rounds)
        results = books_results(folder, work, broker=broker, billing_url=billing_url)
    else:
        results = _frames(folder, model, rounds=rounds, small=size == "small")
    for result in results:
        found.append(result)
        if not as_json:
            for line in _lines(result):
                typer.echo(line)
    if as_json:
        typer.echo(
            json.dumps({"results": [result.to_json() for result in found], "machine": about})
        )


def _frames(folder: Path, model: Path | None, *, rounds: int, small: bool) -> Iterator[Result]:
    from datetime import UTC, datetime
    from tempfile import TemporaryDirectory

    from qcmodels.train import TeachConfig, teach
    from qcnode.bench.frames import FramesSize, frames_results, write_parts

    size = FramesSize.small(rounds) if small else FramesSize(rounds=rounds)
    with TemporaryDirectory() as home:
        if model is None:
            model = Path(home) / "model"
            write_parts(Path(home) / "data", good=_TAUGHT_ON)
            teach(
                Path(home) / "data",
                model,
                config=TeachConfig(),
                now=datetime.now(UTC),
                progress=lambda *_: None,
            )
        yield from frames_results(folder, model, size)


def _lines(result: Result) -> Iterator[str]:
    sign = ">=" if result.at_least else "<="
    said = "met" if result.met else "MISSED"
    yield result.name
    yield (
        f"    {min(result.values):,.3g} / {result.median:,.3g} / {max(result.values):,.3g}"
        f"   aim {sign} {result.aim:,.3g}: {said}{'; ' + result.note if result.note else ''}"
    )
