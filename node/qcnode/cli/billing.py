"""`qcnode billing`: the billing server, and its papers on the terminal."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcnode.errors import BillingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qcbridge.billing.store import BillingStore

UrlOpt = Annotated[
    str,
    typer.Option(
        envvar="QCNODE_BILLING_URL",
        help="The database: sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE."
        " An address with a password belongs in the variable, not on the command line.",
    ),
]
TenantOpt = Annotated[
    str | None, typer.Option(help="Whose books; not needed where there is only one tenant.")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

billing = typer.Typer(
    name="billing", no_args_is_help=True, help="The billing server, and its papers."
)


def register(app: typer.Typer) -> None:
    """Add `billing` to the commands people type."""
    app.add_typer(billing)


@billing.command()
def serve(
    *,
    url: UrlOpt = "sqlite:///billing.db",
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
        url=url, host=host, port=port, token=_token(token_file), broker=broker or None
    )
    if not run_server(options, now=_now, tell=typer.echo):
        raise typer.Exit(1)


@billing.command()
def invoice(
    *,
    url: UrlOpt = "sqlite:///billing.db",
    tenant: TenantOpt = None,
    period: Annotated[
        str | None, typer.Option(help="A calendar month in UTC, as in 2026-11; else this one.")
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(help="A price file or folder to recompute every cost with."),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Work out a month's invoice from the entries, and print it."""
    from qcbridge.billing import invoices, papers  # as in serve
    from qcbridge.prices import PriceBook

    span = invoices.month_of(_now()) if period is None else invoices.month(period)
    book = None if prices is None else PriceBook.load(prices)
    with _open(url) as store:
        whose = _tenant(store, tenant)
        paper = invoices.make_invoice(whose, span, store.entries(whose, span), prices=book)
    typer.echo(json.dumps(invoices.to_json(paper)) if as_json else papers.invoice_text(paper))


@billing.command()
def totals(
    *, url: UrlOpt = "sqlite:///billing.db", tenant: TenantOpt = None, as_json: JsonOpt = False
) -> None:
    """Print the sums over all entries of a tenant."""
    from qcbridge.billing import papers  # as in serve

    with _open(url) as store:
        sums = store.totals(_tenant(store, tenant))
    typer.echo(json.dumps(asdict(sums)) if as_json else papers.totals_text(sums))


@contextmanager
def _open(url: str) -> Iterator[BillingStore]:
    """Open the books for reading."""
    from qcbridge.billing.store import BillingStore  # as in serve

    store = BillingStore(url, now=_now)
    try:
        store.check_schema()
        yield store
    finally:
        store.close()


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


def _tenant(store: BillingStore, tenant: str | None) -> str:
    known = store.tenants()
    if tenant is None and len(known) == 1:
        return known[0]
    names = ", ".join(known) or "none yet"
    if tenant is None:
        raise BillingError(f"name one of the tenants with --tenant: {names}")
    if tenant not in known:
        raise BillingError(f"no entries of tenant {tenant!r} here; tenants: {names}")
    return tenant


def _now() -> datetime:
    return datetime.now(UTC)
