"""`qcnode ledger`: look into the books, prove them, copy them, and carry them out.

Nothing here writes to a ledger, so all of it works while a node does. Exit code 1 means
that the answer is no: the books do not verify. What is no ledger at all ends with 2.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import structlog
import typer

from qcnode.books import chain
from qcnode.books.accounts import Book
from qcnode.books.attempts import subject_of
from qcnode.books.export import export_lines
from qcnode.books.ledger_file import LedgerReader
from qcnode.books.proof import prove_file, signer_of
from qcnode.books.seals import PublicKey, SigningKey
from qcnode.errors import LedgerCorruptError, LedgerUnavailableError, QcError, SealError
from qcnode.money import TokenClass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qcnode.books.accounts import Account
    from qcnode.books.checkpoints import Signer
    from qcnode.books.proof import Proof
    from qcnode.books.tally import Tally
    from qcnode.money import LedgerEntry, LedgerTotals

_PICO = 10**12
_MAGIC = b"SQLite format 3\0"
_WITNESS_BYTES_MAX = 16 * 1024 * 1024
_WITNESS_TIMEOUT_S = 30.0
_TOKEN = "QCNODE_BILLING_TOKEN"  # noqa: S105  # the name of the variable
_NODE_KEY = "QCNODE_NODE_KEY (or its _FILE)"

HomeOption = Annotated[
    Path | None,
    typer.Option(help="The node's home; without it QCNODE_HOME, or ./qcnode-home."),
]
FileOption = Annotated[Path | None, typer.Option("--db", help="The ledger file itself.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
KeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        help="A public key of the node, NAME+ID+KEY or a file with it; several when it was"
        " replaced. Without it that of node.key beside the ledger.",
    ),
]
ServerKeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--server-key",
        help="A public key of the billing server, likewise; without it billing.pub there.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this group of commands to the program."""
    group = typer.Typer(help="The books: what was spent, entry by entry.", no_args_is_help=True)
    group.command("show")(show)
    group.command("accounts")(accounts)
    group.command("verify")(verify)
    group.command("export")(export)
    group.command("key")(key)
    group.command("backup")(backup)
    group.command("restore")(restore)
    app.add_typer(group, name="ledger")


def show(
    *,
    home: HomeOption = None,
    db: FileOption = None,
    as_json: JsonOption = False,
    last: Annotated[int, typer.Option(min=0, max=10_000, help="How many entries to list.")] = 10,
) -> None:
    """Print what was spent, by state, kind of token and account, and the last entries."""
    path = _path(home, db)
    try:
        tally, confirmed, epoch, entries = _look(path, last)
        rows = [_row(entry) for entry in entries]
    except QcError as error:
        _give_up("show", error)
    totals = tally.totals()
    if as_json:
        _print_json(
            {
                "epoch": epoch,
                "confirmed": confirmed,
                "totals": asdict(totals),
                "balances": _balances(tally),
                "entries": rows,
            }
        )
        return
    for line in _lines(path, epoch, confirmed, totals):
        typer.echo(line)
    for line in _account_lines(tally):
        typer.echo(line)
    for row in rows:
        typer.echo(f"{row['seq']:>8}  {row['at']}  {row['kind']:<14}{row['subject']}")


def accounts(
    *, home: HomeOption = None, db: FileOption = None, as_json: JsonOption = False
) -> None:
    """Print what stands in each account; exit with 1 when they do not sum to zero."""
    path = _path(home, db)
    try:
        tally, _confirmed, epoch, _entries = _look(path, 0)
    except QcError as error:
        _give_up("accounts", error)
    sums: dict[str, int] = {}
    for (_account, currency), pico in tally.balances().items():
        sums[currency] = sums.get(currency, 0) + pico
    if as_json:
        _print_json(
            {
                "epoch": epoch,
                "entries": tally.seq,
                "balances": _balances(tally),
                "sum_pico": sums,
                "balanced": not any(sums.values()),
            }
        )
    else:
        for line in _account_lines(tally):
            typer.echo(line)
        for currency, pico in sorted(sums.items()):
            typer.echo(f"{'all accounts together':<44}{_exact(pico):>24} {currency}")
    if any(sums.values()):
        raise typer.Exit(1)


def verify(
    *,
    home: HomeOption = None,
    db: FileOption = None,
    keys: KeyOption = None,
    server_keys: ServerKeyOption = None,
    witness: Annotated[
        list[str] | None,
        typer.Option(
            "--witness",
            "--notes",
            help="Signed notes of the billing server, kept elsewhere: a file, or its URL"
            f" ({_TOKEN} is presented there).",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every entry, link and signature; exit with 1 and name the first bad entry.

    A tail that was cut off, head and all, is found by a note from beyond it: give the
    billing server's with --witness.
    """
    path = _path(home, db)
    try:
        known = _known_keys(path, keys, server_keys)
        notes = [note for source in witness or () for note in _notes_from(source)]
        with _progress("entries") as checked:
            proof = prove_file(path, keys=known, witness=notes, checked=checked)
        if notes and not proof.witness.notes:
            raise SealError(
                f"none of the {len(notes)} notes given is about epoch {proof.epoch} of {path}"
            )
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
                "epoch": proof.epoch,
                "entries": proof.tally.seq,
                "confirmed": proof.confirmed,
                "signed_by_node": proof.kept.node_seq,
                "signed_by_server": max(proof.kept.server_seq, proof.witness.server_seq),
                "notes": proof.kept.notes + proof.witness.notes,
                "notes_without_known_key": proof.kept.unsigned + proof.witness.unsigned,
            }
        )
        return
    for line in _proof_lines(path, proof):
        typer.echo(line)


def export(
    *,
    out: Annotated[Path, typer.Option(help="The file to write, one JSON object a line.")],
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    home: HomeOption = None,
    db: FileOption = None,
    keys: KeyOption = None,
    server_keys: ServerKeyOption = None,
) -> None:
    """Write all entries as they are hashed, for an auditor or a billing platform.

    `deploy/verify_ledger.py` checks the file without this program.
    """
    path = _path(home, db)
    if out.exists() and not force:
        typer.echo(f"qcnode ledger export: {out}: exists already; --force writes over it", err=True)
        raise typer.Exit(2)
    unfinished = out.with_name(out.name + ".part")
    try:
        known = _known_keys(path, keys, server_keys)
        reader = LedgerReader(path)
        try:
            with reader.moment() as opened:
                with unfinished.open("w", encoding="utf-8", newline="\n") as file:
                    for line in export_lines(opened, reader.epoch, keys=known):
                        file.write(line + "\n")
                unfinished.replace(out)
            # An auditor wants the entries as they are, and must not take them for proven.
            with _progress("entries") as checked:
                tally = reader.tally(rest=checked)
        finally:
            reader.close()
    except OSError as error:
        typer.echo(f"qcnode ledger export: {out}: cannot be written ({error.strerror})", err=True)
        raise typer.Exit(2) from error
    except QcError as error:
        _give_up("export", error)
    typer.echo(f"{out}: {tally.seq} entries of epoch {reader.epoch}, verified")


def key(
    *,
    home: HomeOption = None,
    name: Annotated[
        str | None,
        typer.Option(help="TENANT/NODE, as the node is called; without it as it last signed."),
    ] = None,
    make: Annotated[bool, typer.Option("--make", help="Make the key when there is none.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the node's public key, which checks what it signed; the billing server wants it."""
    path = _path(home, None)
    file = path.with_name("node.key")
    try:
        given = _given_key()
        if given is None and not file.exists() and not make:
            raise SealError(f"{file}: there is no key yet: start the node once, or add --make")
        if name is None:
            name = signer_of(path) if path.exists() else None
        if name is None:
            raise SealError(f"{path}: nothing is signed yet, so say --name TENANT/NODE")
        if given is None:
            public = SigningKey.open(file, name=name).public
        else:
            public = SigningKey.read(given, name=name, source=_NODE_KEY).public
    except QcError as error:
        _give_up("key", error)
    if as_json:
        _print_json({"name": public.name, "id": public.id.hex(), "key": str(public)})
        return
    typer.echo(str(public))


def backup(
    *,
    out: Annotated[Path, typer.Option(help="The new file; it must not be there yet.")],
    home: HomeOption = None,
    db: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the ledger, also while a node writes it, and check every entry of the copy."""
    from qcnode.books.backup import back_up

    path = _path(home, db)
    try:
        with _progress("pages") as copied, _progress("entries") as checked:
            found = back_up(path, out, copied=_done_of(copied), checked=checked)
    except QcError as error:
        _give_up("backup", error)
    if as_json:
        _print_json({"file": str(out), "epoch": found.epoch, "entries": found.tally.seq})
        return
    typer.echo(f"{out}: {found.tally.seq} entries of epoch {found.epoch}, verified")


def restore(
    file: Annotated[Path, typer.Argument(help="A backup, as `qcnode ledger backup` makes it.")],
    *,
    home: Annotated[
        Path | None, typer.Option(help="The node's home, in which there must be no ledger.")
    ] = None,
    drill: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="First restore it in a folder of its own and open it as a node would;"
            " without --home do nothing else.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a backup in place; the node goes on from it in a new epoch and says so."""
    from qcnode.books.backup import restore as put_in_place
    from qcnode.books.mark import FileId

    if home is None and not drill:
        raise typer.BadParameter("say where: --home DIR, or --verify to try it and no more")
    _want_database(file)
    told: dict[str, Any] = {"file": str(file)}
    try:
        if drill:
            started = time.monotonic()
            told["opened_as"] = _drill(file)
            told["drill_s"] = round(time.monotonic() - started, 3)
        if home is not None:
            with _progress("pages") as copied, _progress("entries") as checked:
                found = put_in_place(
                    file, home, identify=FileId.of, copied=_done_of(copied), checked=checked
                )
            told |= {"home": str(home), "epoch": found.epoch, "entries": found.tally.seq}
    except QcError as error:
        _give_up("restore", error)
    if as_json:
        _print_json(told)
        return
    if drill:
        typer.echo(f"{file}: restored and opened on trial in {told['drill_s']:g} s")
    if home is not None:
        typer.echo(
            f"{home}: {told['entries']} entries of epoch {told['epoch']}, verified; the node goes"
            " on from them in a new epoch"
        )


# -- where things are --------------------------------------------------------------------


def _path(home: Path | None, db: Path | None) -> Path:
    if home is not None and db is not None:
        raise typer.BadParameter("give --home or --db, not both")
    path = db or (home or Path(os.environ.get("QCNODE_HOME") or "qcnode-home")) / "ledger.db"
    _want_database(path)
    return path


def _want_database(path: Path) -> None:
    """Tell what is no database at all from a ledger that was damaged: it ends with 2."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(_MAGIC))
    except OSError:
        return  # Whoever opens it as a ledger says what is wrong.
    if begins not in (b"", _MAGIC):
        typer.echo(f"qcnode ledger: {path}: this is no ledger: name the node's ledger.db", err=True)
        raise typer.Exit(2)


def _look(path: Path, last: int) -> tuple[Tally, int, str, list[LedgerEntry]]:
    reader = LedgerReader(path)
    try:
        with _progress("entries") as checked:
            tally = reader.tally(rest=checked)
        entries = reader.read(max(0, tally.seq - last), last) if last else []
        return tally, reader.receipt_seq(), reader.epoch, entries
    finally:
        reader.close()


def _known_keys(
    path: Path, keys: list[str] | None, server_keys: list[str] | None
) -> dict[Signer, list[PublicKey]]:
    known: dict[Signer, list[PublicKey]] = {
        "node": [_read_key(one) for one in keys or ()],
        "server": [_read_key(one) for one in server_keys or ()],
    }
    own, given = path.with_name("node.key"), _given_key()
    name = None if known["node"] else signer_of(path)
    if name is not None and given is not None:
        known["node"].append(SigningKey.read(given, name=name, source=_NODE_KEY).public)
    elif name is not None and own.exists() and os.access(own, os.R_OK):
        known["node"].append(SigningKey.open(own, name=name).public)
    pinned = path.with_name("billing.pub")
    if not known["server"] and pinned.is_file() and os.access(pinned, os.R_OK):
        known["server"].append(_read_key(str(pinned)))
    return known


def _given_key() -> bytes | None:
    """Return the private key that the node is given from outside, as it finds it itself."""
    from qcnode.settings import read_secrets

    found = read_secrets().node_key
    return None if found is None else found.get_secret_value().encode()


def _read_key(given: str) -> PublicKey:
    file = Path(given)
    try:
        return PublicKey.parse(file.read_text("utf-8") if file.is_file() else given)
    except (OSError, UnicodeError) as error:
        raise SealError(f"{given}: cannot be read as a public key ({error})") from error


def _notes_from(source: str) -> list[str]:
    from qcnode.books.checkpoints import split_notes

    try:
        if source.startswith(("http://", "https://")):
            text = _fetch(source)
        else:
            with Path(source).open("rb") as file:
                text = file.read(_WITNESS_BYTES_MAX).decode()
        return split_notes(text)
    except (OSError, UnicodeError) as error:
        raise SealError(f"{source}: cannot be read as signed notes ({error})") from error
    except SealError as error:
        raise SealError(f"{source}: {error}") from error


def _fetch(url: str) -> str:
    import httpx2

    token = os.environ.get(_TOKEN)
    try:
        with httpx2.Client(timeout=_WITNESS_TIMEOUT_S, trust_env=False) as client:
            answer = client.get(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    except httpx2.HTTPError as error:
        raise SealError(f"{url}: does not answer ({error})") from error
    if answer.status_code != httpx2.codes.OK:
        raise SealError(f"{url}: answers {answer.status_code}: look at the address and {_TOKEN}")
    return answer.text


def _drill(file: Path) -> str:
    """Restore `file` in a folder that is thrown away, and open it as a node would."""
    from qcnode.books.backup import restore as put_in_place
    from qcnode.books.ledger import SqliteLedger
    from qcnode.books.mark import FileId

    with tempfile.TemporaryDirectory(prefix="qcnode-drill-") as folder:
        home = Path(folder) / "home"
        found = put_in_place(file, home, identify=FileId.of)
        with _quiet():  # Its alarms are for a home that somebody works in.
            ledger = SqliteLedger(
                home / "ledger.db",
                now_us=lambda: time.time_ns() // 1_000,
                new_epoch=lambda: "drill",
                identify=FileId.of,
            )
            try:
                first = chain.fact_of(ledger.read(0, 1)[0])
            finally:
                ledger.close()
        words = getattr(first, "reason", "")
        if not words.startswith("restored from a backup"):
            raise LedgerUnavailableError(f"{file}: {found.epoch} did not go on in a new epoch")
        return str(words)


@contextmanager
def _quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


# -- how it is said ----------------------------------------------------------------------


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
    states = (
        f"{totals.settled} settled",
        f"{totals.not_billed} not billed",
        f"{totals.indeterminate} indeterminate",
        f"{totals.reconciled} reconciled",
        f"{totals.written_off} written off",
        f"{totals.reserved} reserved",
        f"{totals.open} open",
    )
    yield f"{totals.attempts} attempts: {', '.join(states)}; {totals.unpriced} unpriced"
    yield f"{totals.input_tokens} input and {totals.output_tokens} output tokens"
    kinds = [(kind, getattr(totals.usage, kind)) for kind in TokenClass]
    told = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in kinds if count)
    if told:
        yield f"by class: {told}"
    for name, sums in (
        ("measured", totals.cost_pico),
        ("held", totals.held_pico),
        ("written off", totals.written_off_pico),
    ):
        for currency, pico in sorted(sums.items()):
            yield f"{name} {_exact(pico)} {currency}"


def _balances(tally: Tally) -> list[dict[str, Any]]:
    return [
        {
            "account": account.book.value,
            "of": account.of if isinstance(account.of, str) else asdict(account.of),
            "currency": currency,
            "pico": pico,
        }
        for account, currency, pico in _sorted_balances(tally)
    ]


def _account_lines(tally: Tally) -> Iterator[str]:
    for account, currency, pico in _sorted_balances(tally):
        yield f"{account.book:<8}{_whose(account):<36}{_exact(pico):>24} {currency}"


def _sorted_balances(tally: Tally) -> list[tuple[Account, str, int]]:
    books = list(Book)
    return sorted(
        ((account, currency, pico) for (account, currency), pico in tally.balances().items()),
        key=lambda one: (books.index(one[0].book), _whose(one[0]), one[1]),
    )


def _whose(account: Account) -> str:
    if isinstance(account.of, str):
        return account.of
    parts = [f"{name} {value}" for name, value in asdict(account.of).items() if value]
    return ", ".join(parts) or "everything else"


def _proof_lines(path: Path, proof: Proof) -> Iterator[str]:
    entries = proof.tally.seq
    yield f"{path}: {entries} entries verified, {proof.confirmed} confirmed by the billing server"
    for who, seq in (
        ("the node", proof.kept.node_seq),
        ("the billing server", max(proof.kept.server_seq, proof.witness.server_seq)),
    ):
        if seq:
            yield f"signed by {who} up to entry {seq}"
    unknown = proof.kept.unsigned + proof.witness.unsigned
    if unknown:
        yield f"signed notes that agree, and whose signer's key is not known here: {unknown}"
    left = entries - proof.vouched_seq
    if left:
        yield f"{left} entries at the end are signed by nobody yet"


def _exact(pico: int) -> str:
    whole, part = divmod(abs(pico), _PICO)
    return f"{'-' if pico < 0 else ''}{whole}.{f'{part:012d}'.rstrip('0'):0<2}"


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int], None] | None]:
    """Count what is done on standard error, for a person who waits there; others see nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(f"{{task.completed:>12,}} {what}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done: bars.update(task, completed=done)


def _done_of(copied: Callable[[int], None] | None) -> Callable[[int, int], None] | None:
    return None if copied is None else lambda left, pages: copied(pages - left)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, sort_keys=True))


def _give_up(command: str, error: QcError) -> NoReturn:
    typer.echo(f"qcnode ledger {command}: {error}", err=True)
    raise typer.Exit(1 if isinstance(error, LedgerCorruptError) else 2) from error
