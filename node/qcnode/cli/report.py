"""`qcnode report`: what asking came to, week by week, from the node's own books."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcnode.cli.ledger import HomeOption, JsonOption  # noqa: TC001  # typer reads them
from qcnode.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qcnode.money import LedgerFact, Outcome
    from qcnode.weekly import Week

_PAGE = 1_000
_BAR_WIDTH = 24


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(report)


def report(
    *,
    home: HomeOption = None,
    zone: Annotated[
        str, typer.Option(help="The time zone in which weeks begin on Monday.")
    ] = "UTC",
    as_json: JsonOption = False,
) -> None:
    """Show week by week how often the node asked, its tokens, their worth, and who agreed.

    Reads journal and ledger and changes nothing. An error counts as avoided where the node
    alone would have been wrong, the agent was right, and somebody found out.
    """
    from qcnode.books.budgets import zone_of
    from qcnode.books.journal_file import read_journal
    from qcnode.books.repricing import recorded
    from qcnode.money import Outcome
    from qcnode.weekly import by_week

    try:
        place = zone_of(zone)
    except ValueError as error:
        raise SettingsError(f"--zone {zone}: {error}") from error
    folder = home or Path(os.environ.get("QCNODE_HOME") or "qcnode-home")
    facts = list(_facts(folder / "ledger.db"))
    outcomes: list[Outcome] = [fact for _, fact in facts if isinstance(fact, Outcome)]
    weeks = by_week(read_journal(folder / "journal.db"), recorded(facts), outcomes, place)
    if as_json:
        typer.echo(json.dumps({"zone": zone, "weeks": [_row(week) for week in weeks]}))
        return
    for line in _lines(weeks):
        typer.echo(line)


def _facts(path: Path) -> Iterator[tuple[int, LedgerFact]]:
    from qcnode.books import chain
    from qcnode.books.ledger_file import LedgerReader

    reader = LedgerReader(path)
    try:
        after = 0
        while page := reader.read(after, _PAGE):
            for entry in page:
                yield entry.at_us, chain.fact_of(entry)
            after = page[-1].seq
    finally:
        reader.close()


def _row(week: Week) -> dict[str, Any]:
    return asdict(week) | {
        "begins": week.begins.isoformat(),
        "cost_pico": dict(week.cost_pico),
        "escalation_rate": week.escalation_rate,
        "tokens_per_1000_parts": week.tokens_per_1000,
        "cost_pico_per_error_avoided": week.cost_per_error,
        "agreement": week.agreement,
    }


def _lines(weeks: Sequence[Week]) -> Iterator[str]:
    if not weeks:
        yield "no part was judged here yet"
        return
    most = max(week.escalation_rate or 0.0 for week in weeks) or 1.0
    yield (
        f"{'week of':<11}{'parts':>8}{'asked':>7}  {'escalated':<{_BAR_WIDTH + 8}}"
        f"{'tokens/1000':>12}  {'errors -/+':>10}  {'agreed':>12}  cost of one error less"
    )
    for week in weeks:
        rate = week.escalation_rate or 0.0
        bar = "#" * round(_BAR_WIDTH * rate / most)
        agreed = f"{week.agreed} of {week.compared}" if week.compared else "-"
        yield (
            f"{week.begins.isoformat():<11}{week.parts:>8}{week.asked:>7}  {rate:>6.1%} "
            f"{bar:<{_BAR_WIDTH + 1}}{week.tokens_per_1000 or 0:>12}  "
            f"{f'{week.avoided} / {week.made}':>10}  {agreed:>12}  {_money(week)}"
        )
    unknown = sum(week.unknown for week in weeks)
    if unknown:
        yield f"{unknown} requests have no price and are in no cost"


def _money(week: Week) -> str:
    from qcnode.money import format_pico

    each = week.cost_per_error
    if not each:
        return "-"
    return ", ".join(f"{format_pico(pico)} {name}" for name, pico in each.items())
