"""The demo command: options in, progress and a summary out."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from qcnode.errors import DatasetError, SettingsError
from qcnode.logs import configure_logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from qcnode.demo import Show
    from qcnode.main import Node

DEMO_HOME = Path("qcnode-demo")
PLAIN_EVERY_S = 2.0
PICO = 1_000_000_000_000


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(demo)


def demo(
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="A data set in the MVTec AD layout; its test pictures come as parts."),
    ] = None,
    parts: Annotated[int, typer.Option(min=1, help="Parts to send, at most.")] = 240,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Stop the belt after so many seconds.")
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(help="Where books and model are kept, and found again. [default: a new one]"),
    ] = None,
    panel_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any.")] = 0,
    billing_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any.")] = 0,
    accuracy: Annotated[
        float, typer.Option(min=0, max=1, help="How often the scripted provider is right.")
    ] = 0.95,
    broker: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Mosquitto to send entries through.")
    ] = None,
    billing_url: Annotated[
        str | None, typer.Option(help="postgresql+psycopg://... in place of SQLite.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the panel up after the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Watch parts being judged, doubtful ones asked about, and the bill agree with the ledger.

    Needs no set-up: line, camera, provider and billing server come along. The provider
    is scripted (a real HTTP server that knows the answers), and no LLM. Exits with 1 when
    ledger and bill do not agree.
    """
    from qcnode.demo import DemoOptions, run_demo

    configure_logs(level=logging.ERROR)
    if data is not None and not data.is_dir():
        raise DatasetError(f"{data}: no such folder; give one with train/good and test/ in it")
    options = DemoOptions(
        home=home or _new_home(data),
        data=data,
        parts=parts,
        seconds=seconds,
        panel_port=panel_port,
        billing_port=billing_port,
        accuracy=accuracy,
        broker=None if broker is None else _host_and_port(broker),
        billing_url=billing_url,
        keep=keep,
    )
    with ExitStack() as stack:
        summary = asyncio.run(run_demo(options, _show(stack)))
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        _print(summary)
    if not (summary["ledger"]["verified"] and summary["billing"]["matches"]):
        raise typer.Exit(1)


def _new_home(data: Path | None) -> Path:
    name = "virtual" if data is None else data.resolve().name
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return DEMO_HOME / f"{name}-{stamp}"


def _host_and_port(broker: str) -> tuple[str, int]:
    host, _, port = broker.rpartition(":")
    if not host or not port.isdecimal():
        raise SettingsError(f"--broker {broker}: give it as HOST:PORT, such as 127.0.0.1:1883")
    return host, int(port)


def _show(stack: ExitStack) -> Show:
    """Show progress on standard error: bars to a person, lines now and then to a file."""
    from qcnode.demo import Show

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        return Show(say=console.print, teaching=_lines(console), running=_status_lines(console))
    bars = stack.enter_context(
        Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            console=console,
        )
    )
    known: dict[str, TaskID] = {}

    def move(stage: str, done: int, total: int, words: str = "") -> None:
        if stage not in known:
            known[stage] = bars.add_task(stage, total=total, words="")
        bars.update(known[stage], completed=done, total=total, words=words)

    def running(node: Node) -> None:
        total = node.settings.line.parts or 0
        move("parts", node.journal.counts().parts, total, _words(node))

    return Show(say=bars.console.print, teaching=move, running=running)


def _lines(console: Console) -> Callable[[str, int, int], None]:
    said = 0.0

    def teaching(stage: str, done: int, total: int) -> None:
        nonlocal said
        if done == total or time.monotonic() - said >= PLAIN_EVERY_S:
            said = time.monotonic()
            console.print(f"{stage}: {done}/{total}")

    return teaching


def _status_lines(console: Console) -> Callable[[Node], None]:
    said = 0.0

    def running(node: Node) -> None:
        nonlocal said
        if time.monotonic() - said >= PLAIN_EVERY_S:
            said = time.monotonic()
            console.print(f"parts: {node.journal.counts().parts}  {_words(node)}")

    return running


def _words(node: Node) -> str:
    counts, totals = node.journal.counts(), node.ledger.totals()
    return (
        f"OK {counts.ok}  NOT_OK {counts.not_ok}  asked {counts.escalated}"
        f"  ruled {counts.ruled}  tokens {totals.input_tokens + totals.output_tokens}"
    )


def _print(summary: dict[str, Any]) -> None:
    tokens, billing, ledger = summary["tokens"], summary["billing"], summary["ledger"]
    rows = [
        ("parts", f"{summary['parts']}, of which {summary['defective']} defective"),
        (
            "verdicts",
            (
                f"OK {summary['ok']}, NOT_OK {summary['not_ok']},"
                f" NOT_DECIDABLE {summary['not_decidable']}, UNDEFINED {summary['undefined']},"
                f" faults {summary['faults']}"
            ),
        ),
        (
            "desk",
            (
                f"{summary['escalated']} escalated, {summary['ruled']} ruled on,"
                f" {summary['waiting']} wait for a person"
            ),
        ),
        ("wrong", f"{summary['false_rejects']} false rejects, {summary['escapes']} escapes"),
        ("latency", f"p50 {summary['p50_ms']} ms, p99 {summary['p99_ms']} ms, trigger to action"),
        (
            "tokens",
            (
                f"{tokens['input']} in, {tokens['output']} out, in {summary['attempts']} attempts"
                f" ({summary['indeterminate']} indeterminate)"
            ),
        ),
        ("spared", _spared(summary)),
        ("cost", _money(summary["cost_pico"]) + _held(summary["held_pico"])),
        (
            "ledger",
            f"{ledger['entries']} entries, chain {'verified' if ledger['verified'] else 'BROKEN'}",
        ),
        (
            "bill",
            (
                f"{billing['entries']} entries, {_money(billing['cost_pico'])}:"
                f" {'equal to the ledger' if billing['matches'] else 'NOT EQUAL to the ledger'}"
            ),
        ),
        ("provider", summary["provider"]),
    ]
    for name, words in rows:
        typer.echo(f"{name:<10}{words}")
    home = summary["home"]
    typer.echo(f"\nlook into it: qcnode ledger verify --home {home}")
    typer.echo(f"              qcnode ledger show --home {home}")
    typer.echo(
        f"              qcnode billing invoice --tenant demo --url sqlite:///{home}/billing.db"
    )


def _spared(summary: dict[str, Any]) -> str:
    everything = summary["tokens_if_all_were_asked"]
    if everything is None:
        return "nothing was asked"
    used = sum(summary["tokens"].values())
    return f"about {everything} tokens had every part been asked about, {used} as it was"


def _money(pico: dict[str, int]) -> str:
    amounts = [f"{value // PICO}.{value % PICO:012d} {name}" for name, value in pico.items()]
    return ", ".join(amounts) or "nothing"


def _held(pico: dict[str, int]) -> str:
    return f"; held for indeterminate attempts: {_money(pico)}" if any(pico.values()) else ""
