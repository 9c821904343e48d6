"""`qcnode kill`: stop what agents do, or the whole line, by a file; works beside a dead node.

Stopping takes nobody's leave. Clearing takes two named people and a reason. Exit code 1
means that the answer is no: it is not cleared yet, or something is stopped.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from qcnode.errors import KillSwitchError
from qcnode.kill import FOLDER, clear, record_of, stop, stops_in

_NO = 1


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(kill)


def kill(
    scope: Annotated[str, typer.Argument(help="all, line, agent:NAME or provider:NAME.")] = "all",
    *,
    by: Annotated[str, typer.Option("--by", help="Who you are; goes on record.")] = "",
    reason: Annotated[str, typer.Option("--reason", help="Why; goes on record.")] = "",
    clearing: Annotated[
        bool, typer.Option("--clear", help="Let it run again; takes two people and a reason.")
    ] = False,
    second: Annotated[
        str | None,
        typer.Option(help="With --clear, the second person, if both are here; else they type it."),
    ] = None,
    showing: Annotated[
        bool, typer.Option("--show", help="Stop nothing; say what is stopped, and since when.")
    ] = False,
    home: Annotated[
        Path | None, typer.Option(help="The node's home; without it that of --config.")
    ] = None,
    config: Annotated[Path, typer.Option("--config", help="The node's TOML file.")] = Path(
        "node.toml"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Stop everything, or what is named, at once. `touch HOME/kill/all` does the same.

    Clearing: the first person asks, and a second one clears it within 15 minutes.
    """
    folder, now = _folder(home, config), datetime.now(UTC)
    if clearing and showing:
        raise KillSwitchError("--clear and --show do not go together")
    if clearing:
        done = clear(folder, scope, who=by, reason=reason, now=now)
        if not done and second is not None:
            done = clear(folder, scope, who=second, reason=reason, now=now)
        words = "runs again" if done else "waits for a second person to clear it, for 15 minutes"
        typer.echo(json.dumps({"cleared": done}) if as_json else f"{scope}: {words}")
        raise typer.Exit(0 if done else _NO)
    if showing:
        _show(folder, as_json=as_json)
        return
    stop(folder, scope, who=by, reason=reason, now=now)
    typer.echo(json.dumps({"stopped": scope}) if as_json else f"{scope}: stopped")


def _show(folder: Path, *, as_json: bool) -> None:
    stops = stops_in(folder, datetime.now(UTC)) if folder.exists() else ()
    rows = record_of(folder)
    if as_json:
        typer.echo(json.dumps({"stops": [asdict(one) for one in stops], "record": rows}))
    else:
        for row in rows:
            said = [str(row.get(key, "")) for key in ("at", "what", "scope", "who", "reason")]
            typer.echo("  ".join(one for one in said if one))
        for one in stops:
            asked = "" if one.asked_by is None else f"; {one.asked_by} asks to clear it"
            typer.echo(f"{one.scope}: stopped{asked}")
        if not stops:
            typer.echo("nothing is stopped")
    if stops:
        raise typer.Exit(_NO)


def _folder(home: Path | None, config: Path) -> Path:
    if home is None:
        # The way that must work with anything broken needs no settings.
        from qcnode.settings import load_settings

        home = load_settings(config).node.home
    elif not home.is_dir():
        raise KillSwitchError(f"{home}: no such home of a node; see node.home in its settings")
    return home / FOLDER
