"""The commands people type, put together.

Each group of commands is a module with a `register`. Whatever goes wrong on purpose
ends here as one line on standard error and exit code 2; `--json` output is one object.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from qcnode.cli import (
    bench,
    billing,
    demo,
    firmware,
    import_model,
    kill,
    labels,
    ledger,
    model,
    models,
    policy,
    prices,
    provider,
    replay,
    report,
    scripted,
    service,
)
from qcnode.errors import QcError

app = typer.Typer(
    name="qcnode",
    help="Judge parts at the line, ask only about the doubtful ones, and prove the bill.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (
    demo,
    service,
    models,
    import_model,
    model,
    ledger,
    replay,
    report,
    labels,
    billing,
    prices,
    provider,
    scripted,
    kill,
    policy,
    firmware,
    bench,
):
    group.register(app)


def _print_version(value: bool) -> None:  # noqa: FBT001  # typer hands an option's value so
    if value:
        typer.echo(f"qcnode {version('qcnode')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Judge parts at the line, ask only about the doubtful ones, and prove the bill."""


def main() -> None:
    """Run the command line; the entry point of the package."""
    try:
        app()
    except QcError as error:
        typer.echo(f"qcnode: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
