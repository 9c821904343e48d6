"""The factory-floor commands: write a configuration, run it, and find what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qcnode.errors import SettingsError

ConfigOpt = Annotated[
    Path, typer.Option("--config", help="The node's TOML file; `qcnode init` writes one.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(run)
    app.command()(init)
    app.command()(doctor)


def run(config: ConfigOpt = Path("node.toml")) -> None:
    """Run the node until SIGTERM or Ctrl-C; it then finishes what is in flight within 5 s."""
    from qcnode.main import run_node
    from qcnode.settings import load_settings

    run_node(load_settings(config))


def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("node.toml"),
    *,
    force: Annotated[bool, typer.Option(help="Write over an existing file.")] = False,
) -> None:
    """Write a commented example configuration."""
    if path.exists() and not force:
        raise SettingsError(f"{path}: exists already; --force writes over it")
    text = (Path(__file__).parent / "node.example.toml").read_text(encoding="utf-8")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {path}; next: qcnode doctor --config {path}")


def doctor(
    config: ConfigOpt = Path("node.toml"),
    *,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure the model on each engine and keep the best.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object.")] = False,
) -> None:
    """Say what is wrong with this installation, and the fix. Exit code 1 when something is."""
    from qcnode.doctor import examine

    if tune:
        _tune(config, as_json=as_json)
        return
    findings = examine(config)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "ok": all(finding.ok for finding in findings),
                    "findings": [
                        {
                            "check": finding.check,
                            "ok": finding.ok,
                            "words": finding.words,
                            "fix": finding.fix,
                        }
                        for finding in findings
                    ],
                }
            )
        )
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.ok else 'FIX '} {finding.check:<12} {finding.words}")
            if finding.fix:
                typer.echo(f"     {'':<12} -> {finding.fix}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _tune(config: Path, *, as_json: bool) -> None:
    from dataclasses import asdict

    from qcnode.doctor import tune_engines

    tuning, path = tune_engines(config)
    if as_json:
        typer.echo(json.dumps(asdict(tuning)))
        return
    typer.echo(f"{tuning.model} on {tuning.machine}, {tuning.threads} thread(s)")
    for trial in tuning.trials:
        if trial.why_not is not None:
            typer.echo(f"{trial.engine:<16} may not decide: {trial.why_not}")
        else:
            typer.echo(
                f"{trial.engine:<16} {trial.ms:8.2f} ms, {trial.low:.2f} / {trial.median:.2f} /"
                f" {trial.high:.2f} times the CPU"
            )
    typer.echo(f"{tuning.engine} it is, from the next start of the node: {path}")
