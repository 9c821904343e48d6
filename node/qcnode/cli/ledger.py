"""`qcnode ledger`: look into the books, prove them, and carry them out.

Reads only, also while a node writes. Exit code 1 means that the chain does not verify.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from qcnode.books import chain
from qcnode.books.attempts import subject_of
from qcnode.books.ledger_file import LedgerReader
from qcnode.errors import LedgerCorruptError, QcError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qcnode.money import LedgerEntry, LedgerTotals

EXPORT_FORMAT = "qcnode.ledger.export.v1"
_PAGE = 1_000
_PICO = 10**12

HomeOption = Annotated[
    Path | None,
    typer.Option(help="The node's home; without it QCNODE_HOME, or ./qcnode-home."),
]
FileOption = Annotated[Path | None, typer.Option("--db", help="The ledger file itself.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add this group of commands to the program."""
    group = typer.Typer(help="The books: what was spent, entry by entry.", no_args_is_help=True)
    group.command("show")(show)
    group.command("verify")(verify)
    group.command("export")(export)
    app.add_typer(group, name="ledger")


def show(
    *,
    home: HomeOption = None,
    db: FileOption = None,
    as_json: JsonOption = False,
    last: Annotated[int, typer.Option(min=0, max=10_000, help="How many entries to list.")] = 10,
) -> None:
    """Print what was spent and the last entries."""
    path = _path(home, db)
    try:
        reader = LedgerReader(path)
        try:
            totals = reader.verify()
            confirmed = reader.receipt_seq()
            entries = reader.read(max(0, totals.entries - last), last) if last else []
        finally:
            reader.close()
        rows = [_row(entry) for entry in entries]
    except QcError as error:
        _give_up("show", error)
    if as_json:
        _print_json(
            {
                "epoch": reader.epoch,
                "confirmed": confirmed,
                "totals": asdict(totals),
                "entries": rows,
            }
        )
        return
    for line in _lines(path, reader.epoch, confirmed, totals):
        typer.echo(line)
    for row in rows:
        typer.echo(f"{row['seq']:>8}  {row['at']}  {row['kind']:<14}{row['subject']}")


def verify(*, home: HomeOption = None, db: FileOption = None, as_json: JsonOption = False) -> None:
    """Check every entry and every link; exit with 1 and name the first bad one."""
    path = _path(home, db)
    try:
        reader = LedgerReader(path)
        try:
            totals = reader.verify()
            confirmed = reader.receipt_seq()
        finally:
            reader.close()
    except LedgerCorruptError as error:
        if as_json:
            _print_json({"verified": False, "problem": str(error)})
            raise typer.Exit(1) from error
        _give_up("verify", error)
    except QcError as error:
        _give_up("verify", error)
    if as_json:
        _print_json(
            {
                "verified": True,
                "epoch": reader.epoch,
                "entries": totals.entries,
                "confirmed": confirmed,
            }
        )
        return
    typer.echo(
        f"{path}: {totals.entries} entries verified, {confirmed} confirmed by the billing server"
    )


def export(
    *,
    out: Annotated[Path, typer.Option(help="The file to write, one JSON object a line.")],
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    home: HomeOption = None,
    db: FileOption = None,
) -> None:
    """Write all entries as they are hashed, for an auditor or a billing platform."""
    path = _path(home, db)
    if out.exists() and not force:
        typer.echo(f"qcnode ledger export: {out}: exists already; --force writes over it", err=True)
        raise typer.Exit(2)
    unfinished = out.with_name(out.name + ".part")
    try:
        reader = LedgerReader(path)
        try:
            with unfinished.open("w", encoding="utf-8", newline="\n") as file:
                count = 0
                for line in _export_lines(reader):
                    file.write(line + "\n")
                    count += 1
            unfinished.replace(out)
            # An auditor wants the entries as they are, and must not take them for proven.
            reader.verify()
        finally:
            reader.close()
    except OSError as error:
        typer.echo(f"qcnode ledger export: {out}: cannot be written ({error.strerror})", err=True)
        raise typer.Exit(2) from error
    except QcError as error:
        _give_up("export", error)
    typer.echo(f"{out}: {count - 1} entries of epoch {reader.epoch}, verified")


def _path(home: Path | None, db: Path | None) -> Path:
    if home is not None and db is not None:
        raise typer.BadParameter("give --home or --db, not both")
    if db is not None:
        return db
    return (home or Path(os.environ.get("QCNODE_HOME") or "qcnode-home")) / "ledger.db"


def _row(entry: LedgerEntry) -> dict[str, Any]:
    return {
        "seq": entry.seq,
        "at": datetime.fromtimestamp(entry.at_us / 1e6, UTC).isoformat(timespec="milliseconds"),
        "kind": entry.kind,
        "subject": subject_of(chain.fact_of(entry)),
    }


def _lines(path: Path, epoch: str, confirmed: int, totals: LedgerTotals) -> Iterator[str]:
    yield f"{path}, epoch {epoch}"
    yield f"{totals.entries} entries, {confirmed} confirmed by the billing server"
    yield (
        f"{totals.attempts} attempts: {totals.settled} settled, {totals.not_billed} not billed,"
        f" {totals.indeterminate} indeterminate, {totals.open} open; {totals.unpriced} unpriced"
    )
    yield f"{totals.input_tokens} input and {totals.output_tokens} output tokens"
    for name, sums in (("measured", totals.cost_pico), ("held", totals.held_pico)):
        for currency, pico in sorted(sums.items()):
            yield f"{name} {_exact(pico)} {currency}"


def _exact(pico: int) -> str:
    whole, part = divmod(pico, _PICO)
    return f"{whole}.{f'{part:012d}'.rstrip('0'):0<2}"


def _export_lines(reader: LedgerReader) -> Iterator[str]:
    yield json.dumps(
        {
            "format": EXPORT_FORMAT,
            "epoch": reader.epoch,
            "genesis": chain.genesis(reader.epoch).hex(),
            "confirmed": reader.receipt_seq(),
        }
    )
    seq = 0
    while page := reader.read(seq, _PAGE):
        for entry in page:
            yield json.dumps(
                {
                    "epoch": entry.epoch,
                    "seq": entry.seq,
                    "body": entry.body.decode(errors="backslashreplace"),
                    "hash": entry.hash.hex(),
                },
                ensure_ascii=False,
            )
        seq = page[-1].seq


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, sort_keys=True))


def _give_up(command: str, error: QcError) -> NoReturn:
    typer.echo(f"qcnode ledger {command}: {error}", err=True)
    raise typer.Exit(1 if isinstance(error, LedgerCorruptError) else 2) from error
