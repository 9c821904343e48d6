"""The commands for device configurations."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qcnode.errors import SettingsError

firmware = typer.Typer(help="Device configurations.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(firmware, name="firmware")


@firmware.callback()
def _group() -> None:
    """Device configurations."""


@firmware.command()
def validate(
    folder: Annotated[Path, typer.Argument(help="The folder with manifest.yaml.")] = Path(
        "firmware_configs"
    ),
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One object.")] = False,
) -> None:
    """Check every file as whatever loads it would. Exit code 1 when one is wrong."""
    try:
        from qcnode.firmware import validate as check
    except ImportError as error:
        raise SettingsError(f"firmware needs {error.name}: pip install 'qcnode[modbus]'") from error

    checked = check(folder)
    wrong = [one for one in checked if one.problem is not None]
    if as_json:
        typer.echo(json.dumps({"files": [asdict(one) for one in checked], "ok": not wrong}))
    else:
        for one in checked:
            typer.echo(f"{'WRONG' if one.problem else 'ok':<7}{one.path}  {one.problem or ''}")
    if wrong:
        raise typer.Exit(1)
