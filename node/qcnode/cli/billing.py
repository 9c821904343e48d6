"""`qcnode billing`: the billing server, and its papers on the terminal."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from qcnode.cli import billing_access, billing_papers
from qcnode.errors import BillingError
from qcnode.logs import configure_logs

billing = typer.Typer(
    name="billing", no_args_is_help=True, help="The billing server, and its papers."
)


def register(app: typer.Typer) -> None:
    """Add `billing` to the commands people type."""
    billing_papers.add_to(billing)
    billing_access.add_to(billing)
    app.add_typer(billing)


@billing.command()
def serve(
    *,
    url: billing_papers.UrlOpt = "sqlite:///billing.db",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8081,
    mqtt: Annotated[
        str | None,
        typer.Option(help="Also take batches from this broker, mqtt:// or mqtts://HOST:PORT."),
    ] = None,
    mqtt_prefix: Annotated[str, typer.Option(help="First levels of all topics.")] = "qc/v1",
    mqtt_user: Annotated[
        str | None, typer.Option(help="Its password is in QCNODE_BILLING_MQTT_PASSWORD[_FILE].")
    ] = None,
    mqtt_ca: Annotated[
        Path | None, typer.Option(help="The CA that signed the broker's certificate.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="A file with the token to ask for; or set QCNODE_BILLING_TOKEN[_FILE]."),
    ] = None,
    key_file: billing_access.KeyFileOpt = None,
    enrol_first: Annotated[
        bool,
        typer.Option(
            "--enrol-first",
            help="Believe a node nobody registered by the first key it names; for a demo only.",
        ),
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Processes that take batches, with PostgreSQL.")
    ] = 1,
) -> None:
    """Take ledger entries from nodes, and show totals and invoices, until told to stop."""
    # Loading SQLAlchemy and FastAPI takes a second that no other command should pay.
    from qcbridge.billing.consumer import broker_at
    from qcbridge.billing.server import ServerOptions, run_server

    broker = mqtt and broker_at(
        mqtt,
        prefix=mqtt_prefix,
        ca_file=mqtt_ca,
        username=mqtt_user,
        password=_secret("QCNODE_BILLING_MQTT_PASSWORD"),
    )
    options = ServerOptions(
        url=url,
        host=host,
        port=port,
        token=_token(token_file),
        broker=broker or None,
        key_file=key_file,
        enrol_first=enrol_first,
        workers=workers,
    )
    configure_logs(level=logging.WARNING)
    if not run_server(options, now=_now, tell=typer.echo):
        raise typer.Exit(1)


def _token(token_file: Path | None) -> str | None:
    if token_file is None:
        return _secret("QCNODE_BILLING_TOKEN")
    try:
        return token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BillingError(f"token file {token_file} cannot be read: {error}") from error


def _secret(variable: str) -> str | None:
    """Take a secret from its variable, or from the file named by the same with _FILE."""
    value, file = os.environ.get(variable), os.environ.get(f"{variable}_FILE")
    if value is None and file:
        try:
            value = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BillingError(f"{variable}_FILE={file}: cannot be read: {error}") from error
    return value or None


def _now() -> datetime:
    return datetime.now(UTC)
