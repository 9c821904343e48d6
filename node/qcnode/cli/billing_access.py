"""`qcnode billing`: who may send, who may ask, what may be spent, and what waits for a person.

Whatever changes something here stands in the audit trail with the name given by `--by`.
"""

from __future__ import annotations

import json
import re
import secrets
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcnode.cli import billing_papers
from qcnode.errors import BillingError
from qcnode.money import PICO, format_pico

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from qcbridge.billing.engine import Database
    from qcbridge.billing.lending import BudgetState
    from qcbridge.billing.tokens import Tokens

UrlOpt = billing_papers.UrlOpt
JsonOpt = billing_papers.JsonOpt
ByOpt = billing_papers.ByOpt
TenantArg = Annotated[str, typer.Option("--tenant", help="Whose.")]
MaybeTenantOpt = Annotated[str | None, typer.Option("--tenant", help="Of this tenant only.")]
NodeArg = Annotated[str, typer.Option("--node", help="Which of the tenant's nodes.")]
LimitOpt = Annotated[int, typer.Option(min=1, max=100_000, help="How many to show at the most.")]
KeyFileOpt = Annotated[
    Path | None,
    typer.Option(
        envvar="QCNODE_BILLING_KEY_FILE",
        help="This server's private key; else billing.key beside an SQLite database.",
    ),
]

_DEFAULT_URL = "sqlite:///billing.db"
_OPERATOR = "operator"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def add_to(billing: typer.Typer) -> None:
    """Add these commands to the group."""
    billing.command("key")(key)
    billing.command("notes")(notes)
    billing.command("audit")(audit)
    nodes = typer.Typer(name="node", no_args_is_help=True, help="The nodes and their keys.")
    nodes.command("add")(node_add)
    nodes.command("list")(node_list)
    nodes.command("revoke")(node_revoke)
    tokens = typer.Typer(name="token", no_args_is_help=True, help="Who may ask over HTTP.")
    tokens.command("add")(token_add)
    tokens.command("list")(token_list)
    tokens.command("revoke")(token_revoke)
    held = typer.Typer(
        name="quarantine", no_args_is_help=True, help="Entries that wait for a person."
    )
    held.command("list")(quarantine_list)
    held.command("release")(quarantine_release)
    budgets = typer.Typer(name="budget", no_args_is_help=True, help="Limits that nodes share.")
    budgets.command("add")(budget_add)
    budgets.command("list")(budget_list)
    for group in (nodes, tokens, held, budgets):
        billing.add_typer(group)


def key(*, url: UrlOpt = _DEFAULT_URL, key_file: KeyFileOpt = None) -> None:
    """Print this server's public key, which nodes check its receipts with."""
    from qcbridge.billing.engine import Database
    from qcbridge.billing.witness import key_path, open_key

    database = Database(url)
    database.close()
    path = key_path(database, key_file)
    if not path.is_file():
        raise BillingError(f"no key at {path}: `qcnode billing serve` makes it when it starts")
    typer.echo(str(open_key(path).public))


def notes(
    *,
    tenant: TenantArg,
    node: Annotated[str | None, typer.Option("--node", help="Of this node only.")] = None,
    url: UrlOpt = _DEFAULT_URL,
) -> None:
    """Print the last signed note about each ledger, to be kept where nobody here reaches.

    `qcnode ledger verify --witness` finds by them that a ledger lost its end.
    """
    from qcbridge.billing.witness import latest_notes

    with _open(url) as database:
        found = latest_notes(database, tenant, node)
    if not found:
        raise BillingError(f"there is no ledger of {tenant}{'' if node is None else f'/{node}'}")
    typer.echo("\n".join(found), nl=False)


def audit(*, url: UrlOpt = _DEFAULT_URL, limit: LimitOpt = 50, as_json: JsonOpt = False) -> None:
    """Print who changed what, the latest first."""
    from qcbridge.billing.audit import changes

    with _open(url) as database:
        found = changes(database, limit=limit)
    _print(
        ({**asdict(one), "at": _instant(one.at_us)} for one in found),
        as_json=as_json,
        columns=("at", "who", "action", "tenant", "what"),
    )


def node_add(
    *,
    tenant: TenantArg,
    node: NodeArg,
    key_text: Annotated[
        str, typer.Option("--key", help="The node's public key, or a file that holds it.")
    ],
    valid_from: Annotated[
        str | None, typer.Option(help="From when it counts, as in 2026-12-01T00:00Z; else now.")
    ] = None,
    by: ByOpt = _OPERATOR,
    url: UrlOpt = _DEFAULT_URL,
) -> None:
    """Make a node known by its public key, or give it a further one.

    Keys count side by side until they are revoked, so a node can change its key in peace.
    """
    from qcbridge.billing.keys import NodeKeys
    from qcnode.books.seals import PublicKey

    public = PublicKey.parse(_text_or_file(key_text))
    from_us = None if valid_from is None else _to_us(valid_from)
    with _open(url, make=True) as database:
        NodeKeys(database, now=_now).add(tenant, node, public, by=by, from_us=from_us)
    typer.echo(f"{tenant}/{node} signs with key {public.id.hex()}")


def node_list(
    *, tenant: MaybeTenantOpt = None, url: UrlOpt = _DEFAULT_URL, as_json: JsonOpt = False
) -> None:
    """Print the nodes and their keys."""
    from qcbridge.billing.keys import NodeKeys

    with _open(url) as database:
        known = NodeKeys(database, now=_now).listed(tenant)
    _print(
        (
            {
                "tenant": one.tenant,
                "node": one.node,
                "id": one.key.id.hex(),
                "valid_from": _instant(one.valid_from_us),
                "revoked": _instant(one.revoked_us),
                "added_by": one.added_by,
                "key": str(one.key),
            }
            for one in known
        ),
        as_json=as_json,
        columns=("tenant", "node", "id", "valid_from", "revoked", "added_by"),
    )


def node_revoke(
    *,
    tenant: TenantArg,
    node: NodeArg,
    key_id: Annotated[
        str | None, typer.Option("--key-id", help="Only this key, by its id; else all.")
    ] = None,
    by: ByOpt = _OPERATOR,
    url: UrlOpt = _DEFAULT_URL,
) -> None:
    """Stop believing a node's signature, from now on."""
    from qcbridge.billing.keys import NodeKeys

    with _open(url) as database:
        count = NodeKeys(database, now=_now).revoke(tenant, node, by=by, key_id=key_id)
    typer.echo(f"{count} of the keys of {tenant}/{node} no longer count")


def token_add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    *,
    scope: Annotated[
        list[str], typer.Option(help="ingest, read, finance or admin; may be given again.")
    ],
    tenant: Annotated[str | None, typer.Option(help="Of whose books; needed for ingest.")] = None,
    node: Annotated[str | None, typer.Option(help="Only for this node.")] = None,
    given: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Take the token in this file, qcb_ and 64 hex digits, and print none."
        ),
    ] = None,
    by: ByOpt = _OPERATOR,
    url: UrlOpt = _DEFAULT_URL,
) -> None:
    """Make a token and print it; it is shown this once."""
    from qcbridge.billing.tokens import Scope

    scopes = set()
    for word in scope:
        if word not in list(Scope):
            raise BillingError(f"no scope is called {word[:40]!r}: choose of {', '.join(Scope)}")
        scopes.add(Scope(word))
    bits = None if given is None else _token_in(given)
    with _tokens(url, make=True, bits=bits) as tokens:
        token = tokens.add(name, scopes, by=by, tenant=tenant, node=node)
    typer.echo(token if given is None else f"token {name} is the one in {given}")


def token_list(*, url: UrlOpt = _DEFAULT_URL, as_json: JsonOpt = False) -> None:
    """Print the tokens by name; what they are nobody knows."""
    with _tokens(url) as tokens:
        known = tokens.listed()
    _print(
        (
            {
                "name": one.name,
                "scopes": " ".join(sorted(one.grant.scopes)),
                "tenant": one.grant.tenant,
                "node": one.grant.node,
                "created": _instant(one.created_us),
                "used": _instant(one.used_us),
                "revoked": _instant(one.revoked_us),
            }
            for one in known
        ),
        as_json=as_json,
        columns=("name", "scopes", "tenant", "node", "created", "used", "revoked"),
    )


def token_revoke(
    name: Annotated[str, typer.Argument(help="Which.")],
    *,
    by: ByOpt = _OPERATOR,
    url: UrlOpt = _DEFAULT_URL,
) -> None:
    """End a token, from now on."""
    with _tokens(url) as tokens:
        tokens.revoke(name, by=by)
    typer.echo(f"token {name} opens nothing any more")


def quarantine_list(
    *,
    tenant: MaybeTenantOpt = None,
    limit: LimitOpt = 100,
    url: UrlOpt = _DEFAULT_URL,
    as_json: JsonOpt = False,
) -> None:
    """Print the entries that move no money until a person has looked at them."""
    from qcbridge.billing.resolutions import Resolutions

    with _open(url) as database:
        found = Resolutions(database, now=_now).quarantined(tenant, limit=limit)
    _print(
        (
            {
                **asdict(one.ledger),
                "seq": one.seq,
                "kind": one.kind,
                "at": _instant(one.at_us),
                "why": one.why,
                "hash": one.hash.hex(),
                "body": one.body,
            }
            for one in found
        ),
        as_json=as_json,
        columns=("tenant", "node", "epoch", "seq", "kind", "at", "why"),
    )


def quarantine_release(
    *,
    tenant: TenantArg,
    node: NodeArg,
    epoch: Annotated[str, typer.Option(help="Of which of the node's ledgers.")],
    seq: Annotated[int, typer.Option(min=1, help="Which entry.")],
    by: ByOpt = _OPERATOR,
    url: UrlOpt = _DEFAULT_URL,
) -> None:
    """Let an entry move what it says, now that it can be understood."""
    from qcbridge.billing.resolutions import LedgerName, Resolutions

    ledger = LedgerName(tenant=tenant, node=node, epoch=epoch)
    with _open(url) as database:
        Resolutions(database, now=_now).release(ledger, seq, by=by)
    typer.echo(f"entry {seq} of {ledger} counts")


def budget_add(
    name: Annotated[str, typer.Argument(help="As in the nodes' own settings.")],
    *,
    tenant: TenantArg,
    limit: Annotated[
        str, typer.Option(help="The most in one window: an amount like 250.00, or a count.")
    ],
    unit: Annotated[str, typer.Option(help="money, tokens or calls.")] = "money",
    currency: Annotated[str | None, typer.Option(help="Of money, as in CNY.")] = None,
    window: Annotated[str, typer.Option(help="hour, day, week or month.")] = "day",
    zone: Annotated[str, typer.Option(help="Whose clock, as in Asia/Shanghai.")] = "UTC",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it is for, as in department=press; may be given again."),
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option(help="Who shares it; else every node of the tenant.")
    ] = None,
    slice_min: Annotated[
        str | None, typer.Option(help="The smallest part to lend; else a fiftieth.")
    ] = None,
    lease_hours: Annotated[
        int, typer.Option(min=1, max=24 * 366, help="How long a part is lent at the most.")
    ] = 24,
    by: ByOpt = _OPERATOR,
    url: UrlOpt = _DEFAULT_URL,
) -> None:
    """Set a limit that a tenant's nodes share, or change how high it is."""
    from qcbridge.billing.lending import Budgets, SharedBudget
    from qcnode.books.budgets import Budget
    from qcnode.money import CostCentre

    most = _amount("--limit", limit, unit)
    try:
        budget = Budget(
            name=name,
            limit=most,
            unit=_one_of("--unit", unit, ("money", "tokens", "calls")),
            currency=currency,
            window=_one_of("--window", window, ("hour", "day", "week", "month")),
            zone=zone,
            scope=CostCentre(**_scope(scope or (), CostCentre.__slots__)),
            shared=True,
        )
    except ValueError as error:
        raise BillingError(str(error)) from error
    shared = SharedBudget(
        tenant=tenant,
        budget=budget,
        nodes=None if node is None else tuple(node),
        slice_min=max(1, most // 50) if slice_min is None else _amount(name, slice_min, unit),
        lease_us=lease_hours * 3_600_000_000,
    )
    with _open(url, make=True) as database:
        Budgets(database, now=_now).set(shared, by=by)
    typer.echo(f"budget {name} of {tenant}: {budget.words(most)} by the {window} in {zone}")


def budget_list(
    *, tenant: MaybeTenantOpt = None, url: UrlOpt = _DEFAULT_URL, as_json: JsonOpt = False
) -> None:
    """Print the shared budgets, and what of each is used, lent and left in its window."""
    from qcbridge.billing.lending import Budgets

    with _open(url) as database:
        states = Budgets(database, now=_now).listed(tenant)
    _print(
        (_budget_row(state, in_words=not as_json) for state in states),
        as_json=as_json,
        columns=("tenant", "budget", "unit", "window", "limit", "used", "committed", "left"),
    )


def _budget_row(state: BudgetState, *, in_words: bool) -> dict[str, Any]:
    shared = state.shared
    money = in_words and shared.budget.unit == "money"
    write: Callable[[int], object] = format_pico if money else int
    return {
        "tenant": shared.tenant,
        "budget": shared.budget.name,
        "unit": shared.budget.currency or shared.budget.unit,
        "window": _instant(state.span.from_us),
        "limit": write(shared.budget.limit),
        "used": write(sum(one.used for one in state.committed)),
        "committed": write(sum(one.most for one in state.committed)),
        "left": write(state.left),
        "ledgers": [asdict(one) for one in state.committed],
    }


@contextmanager
def _open(url: str, *, make: bool = False) -> Iterator[Database]:
    """Open the books; with `make`, what prepares them for a server makes them too."""
    from qcbridge.billing.engine import Database  # Loading SQLAlchemy takes a second.

    database = Database(url)
    try:
        if make:
            database.migrate()
        else:
            database.check_schema()
        yield database
    finally:
        database.close()


@contextmanager
def _tokens(url: str, *, make: bool = False, bits: bytes | None = None) -> Iterator[Tokens]:
    """Open the register; with `bits` a token is made of those, which somebody else drew."""
    from qcbridge.billing.tokens import Tokens

    with _open(url, make=make) as database:
        yield Tokens(
            database,
            now=_now,
            random=secrets.token_bytes if bits is None else lambda _count: bits,
        )


def _token_in(file: Path) -> bytes:
    from qcbridge.billing.tokens import PREFIX, TOKEN_BYTES

    token = _text_or_file(str(file))
    digits = token.removeprefix(PREFIX)
    if digits == token or not re.fullmatch(f"[0-9a-f]{{{2 * TOKEN_BYTES}}}", digits):
        raise BillingError(
            f"{file}: this is no token: write {PREFIX} and {2 * TOKEN_BYTES} hex digits, drawn at"
            " random"
        )
    return bytes.fromhex(digits)


def _print(rows: Iterable[dict[str, Any]], *, as_json: bool, columns: Sequence[str]) -> None:
    """Print one JSON array, or a table."""
    if as_json:
        typer.echo(json.dumps(list(rows)))
        return
    table = [columns, *([_cell(row[name]) for name in columns] for row in rows)]
    widths = [max(len(line[place]) for line in table) for place in range(len(columns))]
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def _text_or_file(value: str) -> str:
    if "+" in value and not Path(value).is_file():
        return value
    try:
        return Path(value).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BillingError(f"{value}: cannot be read: {error}") from error


def _to_us(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise BillingError(
            f"{text[:40]!r} is no instant: write it as in 2026-12-01T00:00Z"
        ) from error
    if at.tzinfo is None:
        raise BillingError(f"{text[:40]!r} names no zone: write it as in 2026-12-01T00:00Z")
    return round((at - _EPOCH).total_seconds() * 1_000_000)


def _instant(at_us: int | None) -> str | None:
    if at_us is None:
        return None
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _amount(what: str, text: str, unit: str) -> int:
    """Read an amount of money exactly, or a count."""
    try:
        value = Decimal(text)
        scaled = value * PICO if unit == "money" else value
        whole = int(scaled)
    except (InvalidOperation, ValueError, OverflowError):
        whole, scaled = -1, Decimal(0)
    if whole < 0 or whole != scaled or whole >= 2**62:
        raise BillingError(f"{what} {text[:40]!r}: write an amount like 250.00, or a whole count")
    return whole


def _one_of(what: str, word: str, words: Sequence[str]) -> Any:
    if word not in words:
        raise BillingError(f"{what} {word[:40]!r}: choose of {', '.join(words)}")
    return word


def _scope(parts: Iterable[str], fields: Sequence[str]) -> dict[str, str]:
    scope = {}
    for part in parts:
        name, gap, value = part.partition("=")
        if not gap or name not in fields or not value:
            raise BillingError(
                f"--scope {part[:60]!r}: write it as in department=press; fields are"
                f" {', '.join(fields)}"
            )
        scope[name] = value
    return scope


def _now() -> datetime:
    return datetime.now(UTC)
