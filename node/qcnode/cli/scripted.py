"""The scripted provider as a process of its own, for the demo and for trying things out."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path  # noqa: TC003  # Typer reads annotations while the program runs
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command("scripted-provider")(scripted_provider)


def scripted_provider(
    *,
    world: Annotated[Path, typer.Option(help="What each part is: world.log in the node's home.")],
    log: Annotated[Path, typer.Option(help="The provider's own books, appended to.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes any.")] = 8090,
    model: Annotated[str, typer.Option(help="What the one model is called.")] = "scripted-provider",
    accuracy: Annotated[float, typer.Option(help="Share of findings that are right.")] = 0.95,
    latency_ms: Annotated[float, typer.Option(help="Median time to an answer.")] = 300.0,
    latency_spread: Annotated[float, typer.Option(help="Sigma of its log-normal.")] = 0.3,
    error_rate: Annotated[float, typer.Option(help="Share of HTTP 500.")] = 0.0,
    limit_rate: Annotated[float, typer.Option(help="Share of HTTP 429.")] = 0.0,
    timeout_rate: Annotated[float, typer.Option(help="Share never answered.")] = 0.0,
    reset_rate: Annotated[float, typer.Option(help="Share of connections cut.")] = 0.0,
    prose_rate: Annotated[float, typer.Option(help="Share of answers in prose.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives a part the same fate.")] = 1,
    obey: Annotated[
        Path | None,
        typer.Option(help="JSON lines of part_id and says: answer what is written on a part."),
    ] = None,
    until_stdin_closes: Annotated[bool, typer.Option("--until-stdin-closes", hidden=True)] = False,
) -> None:
    """Answer as an LLM provider would, from the virtual line's own truth: no model is behind it.

    The key it asks for comes from QCNODE_PROVIDER_API_KEY. It is ready when GET /livez
    answers, and ends on SIGTERM.
    """
    from qcbridge.providers.scripted import ScriptedSettings, serve
    from qcnode.settings import read_secrets

    key = read_secrets().provider_api_key
    settings = ScriptedSettings(
        world=world,
        log=log,
        api_key="" if key is None else key.get_secret_value(),
        port=port,
        model=model,
        accuracy=accuracy,
        latency_ms=latency_ms,
        latency_spread=latency_spread,
        error_rate=error_rate,
        limit_rate=limit_rate,
        timeout_rate=timeout_rate,
        reset_rate=reset_rate,
        prose_rate=prose_rate,
        seed=seed,
        obey=obey,
    )
    if until_stdin_closes:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    serve(settings, now=time.time)


def _end_with_parent() -> None:
    """Wait until whoever started this is gone, and end as on SIGTERM."""
    # Not by `sys.stdin`, whose lock a thread still waiting there would hold at the end.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
