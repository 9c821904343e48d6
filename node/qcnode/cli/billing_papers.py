"""`qcnode billing`: invoices, what they are checked against, and what is handed on.

Exit code 1 means that the answer is no: an invoice does not verify, a file breaks a rule,
too little of a provider's bill is on record.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcnode.errors import BillingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qcbridge.billing.book_rates import BookRates
    from qcbridge.billing.engine import Database
    from qcbridge.billing.issued_paper import IssuedInvoice

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
PeriodOpt = Annotated[
    str | None, typer.Option(help="A calendar month in UTC, as in 2026-11; else this one.")
]
PricesOpt = Annotated[
    Path | None, typer.Option(help="The price book: a file, a folder, or one that ships.")
]
ByOpt = Annotated[
    str,
    typer.Option(envvar="QCNODE_BILLING_BY", help="Who does this, for the audit trail."),
]
RateOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--rate",
        help="What one unit of a currency is in the invoice's:"
        " CNY=0.139512,2026-11-30,SOURCE; may be given again.",
    ),
]
ContractOpt = Annotated[
    Path | None, typer.Option(help="A file of discounts, free quotas and volume rebates.")
]

_DEFAULT_URL = "sqlite:///billing.db"
_OPERATOR = "operator"


def add_to(billing: typer.Typer) -> None:
    """Add the papers to the group of commands."""
    billing.command("invoice")(invoice)
    billing.command("invoices")(invoices)
    billing.command("verify-invoice")(verify_invoice)
    billing.command("totals")(totals)
    billing.command("reconcile")(reconcile)
    billing.command("export")(export)
    billing.command("check-focus")(check_focus)
    billing.command("value")(value)
    billing.command("prove")(prove)
    packs = typer.Typer(name="pack", no_args_is_help=True, help="Tokens bought in advance.")
    packs.command("buy")(pack_buy)
    packs.command("list")(pack_list)
    billing.add_typer(packs)


def invoice(
    *,
    url: UrlOpt = _DEFAULT_URL,
    tenant: TenantOpt = None,
    period: PeriodOpt = None,
    issue: Annotated[
        bool,
        typer.Option("--issue", help="Issue it: numbered and final, and its month is closed."),
    ] = False,
    currency: Annotated[
        str | None, typer.Option(help="The invoice's currency, where there are several.")
    ] = None,
    rate: RateOpt = None,
    contract: ContractOpt = None,
    prices: PricesOpt = None,
    opening: Annotated[
        bool,
        typer.Option(
            "--opening", help="The books open with this month; what is older is late use."
        ),
    ] = False,
    issuer: Annotated[str, typer.Option(help="Who sends the bill.")] = "qcnode billing",
    by: ByOpt = _OPERATOR,
    as_json: JsonOpt = False,
) -> None:
    """Print a month's invoice: as it was issued, or else as it would be now."""
    from qcbridge.billing import papers
    from qcbridge.billing.contracts import Contract, check_currency, read_contract, read_rate
    from qcbridge.billing.drafts import IssueTerms
    from qcbridge.billing.invoices import month, month_of
    from qcbridge.billing.issued import Invoices
    from qcbridge.billing.reports import Reports

    span = month_of(_now()) if period is None else month(period)
    rates = _rates(prices)
    terms = IssueTerms(
        rates=rates,
        currency=None if currency is None else check_currency(currency),
        exchange=tuple(read_rate(one) for one in rate or ()),
        contract=Contract() if contract is None else read_contract(contract),
        issuer=issuer,
        opening=opening,
    )
    with _open(url) as database:
        whose = _tenant(database, tenant)
        kept = Invoices(database, now=_now)
        if issue:
            done = kept.issue(whose, span, terms, by=by)
            paper, issued = done.invoice, True
            if not done.fresh:
                typer.echo(f"{span.name} was issued before as {paper.id}", err=True)
        else:
            before = kept.of_period(whose, span.name)
            issued = before is not None
            paper = kept.draft(whose, span, terms) if before is None else before
        differences = None if rates is None else Reports(database).repriced(whose, span, rates)
    if as_json:
        _print_json(papers.invoice_json(paper, issued=issued, differences=differences))
    else:
        typer.echo(papers.invoice_text(paper, issued=issued, differences=differences))


def invoices(
    *, url: UrlOpt = _DEFAULT_URL, tenant: TenantOpt = None, as_json: JsonOpt = False
) -> None:
    """List what was issued."""
    from qcbridge.billing import papers
    from qcbridge.billing.issued import Invoices

    with _open(url) as database:
        heads = Invoices(database, now=_now).listed(_tenant(database, tenant))
    if as_json:
        _print_json({"invoices": [{"id": head.id, **asdict(head)} for head in heads]})
    else:
        typer.echo(papers.invoices_text(heads))


def verify_invoice(
    number: Annotated[str, typer.Argument(help="Its number, or its id as in acme-000001.")],
    more: Annotated[list[Path] | None, typer.Argument(help="Further exports.", hidden=True)] = None,
    *,
    prices: Annotated[Path, typer.Option(help="The price book it was issued by.")],
    entries: Annotated[
        list[Path] | None,
        typer.Option(
            help="Exports of the nodes' ledgers (`qcnode ledger export`), or folders of them."
        ),
    ] = None,
    paper: Annotated[
        Path | None,
        typer.Option("--invoice", help="The issued document itself, instead of the database."),
    ] = None,
    url: UrlOpt = _DEFAULT_URL,
    tenant: TenantOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Work an issued invoice out again from the nodes' ledgers; exit with 1 if it differs."""
    from qcbridge.billing.verify import verify_invoice as work_out

    document = _document(number, paper, url, tenant)
    rates = _rates(prices)
    if rates is None:
        raise BillingError("name the price book with --prices")
    found = work_out(
        document, _exports([*(entries or ()), *(more or ())]), rates, tell=_tell("entries read")
    )
    if as_json:
        _print_json(
            {
                "invoice": found.invoice,
                "verified": found.verified,
                "entries": found.entries,
                "lines": found.lines,
                "problems": found.problems,
                "problem_count": found.problem_count,
            }
        )
    else:
        for words in found.problems:
            typer.echo(words)
        said = "verified" if found.verified else f"NOT verified: {found.problem_count} differences"
        typer.echo(f"{found.invoice}: {found.entries} entries, {found.lines} lines, {said}")
    if not found.verified:
        raise typer.Exit(1)


def totals(
    *, url: UrlOpt = _DEFAULT_URL, tenant: TenantOpt = None, as_json: JsonOpt = False
) -> None:
    """Print the sums over all entries of a tenant."""
    from qcbridge.billing import papers
    from qcbridge.billing.invoices import month_of
    from qcbridge.billing.reports import Reports

    with _open(url) as database:
        reports, whose = Reports(database), _tenant(database, tenant)
        sums = reports.totals(whose)
        capture = reports.capture(whose, month_of(_now()))
    if as_json:
        _print_json(asdict(sums) | {"capture": [asdict(one) for one in capture]})
    else:
        typer.echo(papers.totals_text(sums, capture))


def reconcile(
    file: Annotated[Path, typer.Argument(help="What the provider handed out: CSV, JSON or ZIP.")],
    *,
    provider: Annotated[str, typer.Option(help="Whose it is: openai, deepseek or openrouter.")],
    known_as: Annotated[
        str | None, typer.Option("--as", help="What the nodes call this provider, if otherwise.")
    ] = None,
    currency: Annotated[
        str | None, typer.Option(help="What its amounts are in, where it does not say.")
    ] = None,
    prices: PricesOpt = None,
    write_off_after: Annotated[
        int | None,
        typer.Option(min=1, help="Write off what is older than so many days and not in the file."),
    ] = None,
    url: UrlOpt = _DEFAULT_URL,
    tenant: TenantOpt = None,
    by: ByOpt = _OPERATOR,
    as_json: JsonOpt = False,
) -> None:
    """Compare a provider's own record with ours, and settle what it settles.

    The same file again changes nothing. Exits with 1 when less than 99.5 % of a day's
    bill is on our record.
    """
    from qcbridge.billing.papers import reconciliation_text
    from qcbridge.billing.provider_bills import read_bill
    from qcbridge.billing.reconciled import Reconciler
    from qcbridge.billing.resolutions import Resolutions

    bill = read_bill(file, provider, currency=currency)
    with _open(url) as database:
        done = Reconciler(database, Resolutions(database, now=_now), now=_now).take(
            _tenant(database, tenant),
            bill,
            by=by,
            provider=known_as,
            rates=_rates(prices),
            write_off_after_days=write_off_after,
        )
    if as_json:
        _print_json(done.report | {"fresh": done.fresh, "alarm": done.alarm})
    else:
        typer.echo(reconciliation_text(done.report, fresh=done.fresh))
    if done.alarm:
        raise typer.Exit(1)


def export(
    *,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="focus-csv, focus-parquet, cloudevents, openmeter, lago, entries or invoice.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write; for entries a folder.")],
    period: PeriodOpt = None,
    bucket: Annotated[str, typer.Option(help="FOCUS rows by hour or by day.")] = "hour",
    url: UrlOpt = _DEFAULT_URL,
    tenant: TenantOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Hand a month on: as FOCUS 1.2, as events, as ledgers, or as the issued document."""
    from qcbridge.billing.invoices import month, month_of

    span = month_of(_now()) if period is None else month(period)
    with _open(url) as database:
        count = _export(
            database, _tenant(database, tenant), span.name, out, form=form, bucket=bucket
        )
    if as_json:
        _print_json({"format": form, "out": str(out), "count": count})
    else:
        typer.echo(f"{out}: {count} {'files' if form == 'entries' else 'rows'} of {form}")


def check_focus(
    file: Annotated[Path, typer.Argument(help="A FOCUS file, CSV or Parquet.")],
    *,
    as_json: JsonOpt = False,
) -> None:
    """Check a file against the rules of FOCUS 1.2; exit with 1 if it breaks one."""
    from qcbridge.billing.focus_files import check_file
    from qcbridge.billing.focus_rules import VERSION

    check = check_file(file, tell=_tell("rows read"))
    findings = check.findings()
    if as_json:
        _print_json(
            {
                "focus": VERSION,
                "rows": check.rows,
                "conforms": not findings,
                "billed": {name: f"{cost:f}" for name, cost in check.billed.items()},
                "findings": [asdict(finding) for finding in findings],
            }
        )
    else:
        for finding in findings:
            rows = f", rows {', '.join(map(str, finding.rows))}" if finding.rows else ""
            typer.echo(
                f"{finding.rule} {finding.column}: {finding.words} ({finding.times} times{rows})"
            )
        said = "conforms to" if not findings else "does NOT conform to"
        typer.echo(f"{file}: {check.rows} rows, {said} FOCUS {VERSION}")
    if findings:
        raise typer.Exit(1)


def value(
    *,
    url: UrlOpt = _DEFAULT_URL,
    tenant: TenantOpt = None,
    period: PeriodOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Print what a month's tokens were worth: cost per correct decision, defect, part saved."""
    from qcbridge.billing.invoices import month, month_of
    from qcbridge.billing.papers import value_text
    from qcbridge.billing.usage import Usage
    from qcbridge.billing.value import value_of

    span = month_of(_now()) if period is None else month(period)
    with _open(url) as database:
        rows = value_of(Usage(database).judged(_tenant(database, tenant), span))
    if as_json:
        _print_json(
            {
                "period": span.name,
                "value": [
                    asdict(row)
                    | {
                        "account": row.account._asdict(),
                        "per_correct_pico": row.per_correct,
                        "per_defect_pico": row.per_defect,
                        "per_saved_pico": row.per_saved,
                    }
                    for row in rows
                ],
            }
        )
    else:
        typer.echo(value_text(span.name, rows))


def pack_buy(
    name: Annotated[str, typer.Argument(help="What this purchase is called, once and for all.")],
    *,
    provider: Annotated[str, typer.Option(help="Whose tokens.")],
    tokens: Annotated[int, typer.Option(min=1, help="How many.")],
    price: Annotated[str, typer.Option(help="What they cost in all, as in 5000.00.")],
    currency: Annotated[str, typer.Option(help="Three capital letters, as USD.")],
    until: Annotated[str, typer.Option(help="The day (UTC) from which what is left is lost.")],
    model: Annotated[str, typer.Option(help="A model, or the beginning of names and *.")] = "*",
    kind: Annotated[
        str, typer.Option("--token-class", help="One class of tokens, or * for any.")
    ] = "*",
    bought: Annotated[str | None, typer.Option(help="The day (UTC) it was bought.")] = None,
    url: UrlOpt = _DEFAULT_URL,
    tenant: TenantOpt = None,
    by: ByOpt = _OPERATOR,
) -> None:
    """Put a pack of tokens on record; the same again changes nothing."""
    from qcbridge.billing.contracts import Pack, check_currency, read_amount
    from qcbridge.billing.issued import Invoices

    pack = Pack(
        id=name,
        provider=provider,
        model=model,
        token_class=kind,
        tokens=tokens,
        price_micro=read_amount(price),
        currency=check_currency(currency),
        bought_us=_day(bought or _now().date().isoformat()),
        until_us=_day(until),
    )
    with _open(url) as database:
        kept, whose = Invoices(database, now=_now), _tenant(database, tenant)
        if bought is None:  # The same words on another day are the same purchase.
            had = (one.bought_us for one, _ in kept.packs(whose) if one.id == name)
            pack = replace(pack, bought_us=next(had, pack.bought_us))
        fresh = kept.buy(whose, pack, by=by)
    typer.echo(f"{name}: {'on record' if fresh else 'was on record before'}")


def pack_list(
    *, url: UrlOpt = _DEFAULT_URL, tenant: TenantOpt = None, as_json: JsonOpt = False
) -> None:
    """List packs and what is left in each."""
    from qcbridge.billing.issued import Invoices
    from qcbridge.billing.papers import packs_text

    with _open(url) as database:
        packs = Invoices(database, now=_now).packs(_tenant(database, tenant))
    if as_json:
        _print_json({"packs": [asdict(pack) | {"left": left} for pack, left in packs]})
    else:
        typer.echo(packs_text(packs))


def prove(
    *,
    entries: Annotated[int, typer.Option(min=100, help="How many entries in all.")] = 1_000_000,
    nodes: Annotated[int, typer.Option(min=1, max=100)] = 10,
    out: Annotated[
        Path | None,
        typer.Option(help="An empty folder for all that is made; else one that is removed."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(envvar="QCNODE_BILLING_URL", help="An empty database; else SQLite in --out."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed makes the same bill.")] = 1,
    as_json: JsonOpt = False,
) -> None:
    """Make ledgers, bill them, and prove the bill: issue, export, check, verify, tie.

    Exits with 1 if anything differs anywhere.
    """
    from qcbridge.billing.prove import prove_bill
    from qcnode.logs import configure_logs

    configure_logs(level=logging.WARNING)  # The nodes' own words would stand in the report.
    with TemporaryDirectory(prefix="qcnode-prove-") as folder:
        report = prove_bill(
            out or Path(folder), entries=entries, nodes=nodes, url=url, seed=seed, say=_say
        )
    if as_json:
        _print_json(report)
    else:
        for name, words in report["steps"].items():
            typer.echo(f"{name:<10}{words['seconds']:>9.2f} s  {words['words']}")
        typer.echo("proven" if report["proven"] else "NOT proven")
    if not report["proven"]:
        raise typer.Exit(1)


def _export(
    database: Database, tenant: str, period: str, out: Path, *, form: str, bucket: str
) -> int:
    from qcbridge.billing import focus, focus_files
    from qcbridge.billing.events import FORMATS, write_events
    from qcbridge.billing.invoices import month
    from qcbridge.billing.issued import Invoices
    from qcbridge.billing.issued_paper import encode_invoice
    from qcbridge.billing.usage import Usage

    if form in FORMATS:
        return write_events(out, Usage(database).events(tenant, month(period)), form)
    if form == "entries":
        return len(Usage(database).export(tenant, out))
    writers: dict[str, Callable[[Path, Iterator[tuple[Any, ...]]], int]] = {
        "focus-csv": focus_files.write_csv,
        "focus-parquet": focus_files.write_parquet,
    }
    if form not in writers and form != "invoice":
        raise BillingError(
            f"format {form!r}: write {', '.join([*writers, *FORMATS, 'entries', 'invoice'])}"
        )
    if bucket not in focus.BUCKETS:
        raise BillingError(f"bucket {bucket!r}: write hour or day")
    kept = Invoices(database, now=_now)
    paper = kept.of_period(tenant, period)
    if paper is None:
        raise BillingError(
            f"{period} was not issued yet: `qcnode billing invoice --period {period} --issue`"
        )
    if form == "invoice":
        _write(out, encode_invoice(paper))
        return 1
    rows = focus.FocusRows(paper, focus.BUCKETS[bucket]).rows(kept.nodes(paper))
    return writers[form](out, rows)


def _document(number: str, paper: Path | None, url: str, tenant: str | None) -> IssuedInvoice:
    from qcbridge.billing.issued import Invoices
    from qcbridge.billing.issued_paper import decode_invoice

    wanted = number.rpartition("-")[2]
    if not wanted.isdecimal() or len(wanted) > 18:  # noqa: PLR2004  # what fits 64 bits
        raise BillingError(f"{number!r:.60} is no number of an invoice: as in 1 or acme-000001")
    if paper is not None:
        try:
            document = decode_invoice(paper.read_bytes())
        except OSError as error:
            raise BillingError(f"{paper}: cannot be read ({error.strerror})") from error
        if document.number != int(wanted):
            raise BillingError(f"{paper}: this is invoice {document.id}, not {number}")
        return document
    with _open(url) as database:
        whose = tenant or number.rpartition("-")[0] or None
        return Invoices(database, now=_now).invoice(_tenant(database, whose), int(wanted))


def _exports(named: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in named:
        files += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise BillingError("name the exports of the nodes' ledgers with --entries")
    return files


def _rates(prices: Path | None) -> BookRates | None:
    from qcbridge.billing.book_rates import BookRates
    from qcbridge.prices import PriceBook

    return None if prices is None else BookRates(PriceBook.load(prices))


@contextmanager
def _open(url: str) -> Iterator[Database]:
    """Open the books."""
    from qcbridge.billing.engine import Database

    database = Database(url)
    try:
        database.check_schema()
        yield database
    finally:
        database.close()


def _tenant(database: Database, tenant: str | None) -> str:
    from qcbridge.billing.reports import Reports

    known = Reports(database).tenants()
    if tenant is None and len(known) == 1:
        return known[0]
    names = ", ".join(known) or "none yet"
    if tenant is None:
        raise BillingError(f"name one of the tenants with --tenant: {names}")
    if tenant not in known:
        raise BillingError(f"no entries of tenant {tenant!r} here; tenants: {names}")
    return tenant


def _day(text: str) -> int:
    from qcbridge.billing.invoices import to_us

    try:
        return to_us(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC))
    except ValueError as error:
        raise BillingError(f"{text!r:.40} is no day: write it as 2026-11-30") from error


def _write(path: Path, raw: bytes) -> None:
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_bytes(raw)
        unfinished.replace(path)
    except OSError as error:
        raise BillingError(f"{path}: cannot be written ({error.strerror})") from error


def _tell(what: str) -> Callable[[int], None]:
    """Say on a terminal how far a long run has come."""
    return lambda count: _say(f"{count} {what}")


def _say(words: str) -> None:
    if sys.stderr.isatty():
        typer.echo(words, err=True)


def _print_json(shown: dict[str, Any]) -> None:
    typer.echo(json.dumps(shown, default=str))


def _now() -> datetime:
    return datetime.now(UTC)
