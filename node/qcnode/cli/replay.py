"""`qcnode replay`: what would have been, over what is on record.

It replays escalations at other prices, and shown in other ways. Nothing is asked again
unless somebody says so.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from contextlib import suppress
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcnode.cli.ledger import FileOption, HomeOption  # noqa: TC001  # typer reads them
from qcnode.errors import SettingsError, UnpricedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from zoneinfo import ZoneInfo

    from qcbridge.prices import PriceBook
    from qcnode.books.budgets import Budget
    from qcnode.books.repricing import Asked, Line, Overrun, Recorded
    from qcnode.money import Cost
    from qcnode.settings import Settings

_PAGE = 1_000
_BAR_WIDTH = 36
_PICO = 10**12
_UNTIL_NOW = "9999-12-31"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(replay)


def replay(
    *,
    escalations: Annotated[
        bool, typer.Option("--escalations", help="Price the recorded questions again.")
    ] = False,
    prices: Annotated[
        list[Path] | None,
        typer.Option(help="A price file or a shipped book's name; give several to compare them."),
    ] = None,
    home: HomeOption = None,
    db: FileOption = None,
    config: Annotated[
        Path | None, typer.Option(help="The node's TOML file: its budgets and its time zone.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="From this day on, as 2026-11-01, in the time zone.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Up to and without this day.")] = None,
    zone: Annotated[
        str | None, typer.Option(help="The time zone of days. [default: the node's, or UTC]")
    ] = None,
    defer: Annotated[
        int,
        typer.Option(
            min=0, max=24 * 7, help="As if each question had waited for the cheapest of N hours."
        ),
    ] = 0,
    elsewhere: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="As if PROVIDER/MODEL had been asked with as many tokens; it may count others.",
        ),
    ] = None,
    packings: Annotated[
        bool,
        typer.Option("--packings", help="Compare ways to show the parts, by what they cost."),
    ] = False,
    formula: Annotated[
        list[str] | None,
        typer.Option(help="With --packings: a formula of tokens, or FORMULA=PROVIDER/MODEL."),
    ] = None,
    golden: Annotated[
        Path | None, typer.Option(help="With --packings: a good part. [default: the release's]")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="With --packings: no more than the newest N parts.")
    ] = 200,
    ask: Annotated[
        bool,
        typer.Option("--ask", help="With --packings: ask the provider of the settings, and pay."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what recorded escalations would have cost at other prices, hours, or shown otherwise.

    Reads the books and changes nothing. Answers without a price in the other book are
    counted and never taken as free; budgets come from the node's configuration. With
    --packings --ask every part is put to the provider in each way, metered in a ledger of
    its own beside that of the node, and what it answers is held against what is known.
    """
    from qcbridge.prices import open_book
    from qcnode.settings import load_settings

    if not escalations:
        raise typer.BadParameter("say what to replay: --escalations")
    settings = None if config is None else load_settings(config)
    if packings:
        _packings(
            home,
            settings,
            prices,
            formula=formula,
            golden=golden,
            limit=limit,
            ask=ask,
            as_json=as_json,
        )
        return
    if not prices:
        raise typer.BadParameter("say by which prices: --prices FILE")
    zone = zone or (settings.node.timezone if settings is not None else "UTC")
    place, instead = _zone(zone), _elsewhere(elsewhere)
    if home is not None and db is not None:
        raise typer.BadParameter("give --home or --db, not both")
    path = db or (home or Path(os.environ.get("QCNODE_HOME") or "qcnode-home")) / "ledger.db"
    books = {str(name): open_book(name) for name in prices}
    found = _read(path, _day(since, "0001-01-02"), _day(until, _UNTIL_NOW), place)
    budgets = settings.budgets() if settings is not None else ()
    results = [
        _result(
            name,
            found,
            _pricing(book, timedelta(hours=defer), instead),
            budgets=budgets,
            place=place,
        )
        for name, book in books.items()
    ]
    said = {
        "ledger": str(path),
        "zone": zone,
        "defer_hours": defer,
        "as": elsewhere,
        "requests": len(found.asked),
        "unknown": found.unknown,
        "books": results,
    }
    if as_json:
        typer.echo(json.dumps(said))
        return
    for line in _lines(said):
        typer.echo(line)


def _packings(
    home: Path | None,
    settings: Settings | None,
    prices: list[Path] | None,
    *,
    formula: list[str] | None,
    golden: Path | None,
    limit: int,
    ask: bool,
    as_json: bool,
) -> None:
    from qcbridge.prices import open_book
    from qcnode.cli.packings import counted, lines, replay_packings
    from qcnode.settings import Settings

    if prices is not None and len(prices) > 1:
        raise typer.BadParameter("one price book at a time: give --prices once with --packings")
    if ask and settings is None:
        raise typer.BadParameter("say whom to ask: --config FILE")
    if settings is not None and home is None:
        home = settings.node.home
    said = replay_packings(
        home or Path(os.environ.get("QCNODE_HOME") or "qcnode-home"),
        Settings() if settings is None else settings,
        wanted=[counted(text) for text in formula or ()],
        book=open_book(prices[0]) if prices else None,
        golden=golden,
        limit=limit,
        ask=ask,
    )
    if as_json:
        typer.echo(json.dumps(said))
        return
    for line in lines(said):
        typer.echo(line)


def _read(path: Path, since: date, until: date, place: ZoneInfo) -> Recorded:
    from qcnode.books import chain
    from qcnode.books.ledger_file import LedgerReader
    from qcnode.books.repricing import Recorded, recorded

    reader = LedgerReader(path)
    try:
        everything = recorded(
            (entry.at_us, chain.fact_of(entry)) for page in _pages(reader.read) for entry in page
        )
    finally:
        reader.close()
    asked = tuple(
        one for one in everything.asked if since <= one.began.astimezone(place).date() < until
    )
    return Recorded(asked=asked, unknown=everything.unknown)


def _pages(read: Callable[[int, int], list[Any]]) -> Iterator[list[Any]]:
    seq = 0
    while page := read(seq, _PAGE):
        yield page
        seq = page[-1].seq


def _result(
    name: str,
    found: Recorded,
    price: Callable[[Asked], Cost],
    *,
    budgets: Sequence[Budget],
    place: ZoneInfo,
) -> dict[str, Any]:
    from qcnode.books.repricing import overruns, priced, reprice

    lines = reprice(found.asked, price, place)
    before = overruns(found.asked, lambda one: one.cost, budgets)
    after = overruns(found.asked, lambda one: priced(one, price), budgets)
    return {
        "book": name,
        "lines": [_line(line) for line in lines],
        "totals": _totals(lines),
        "unpriced": sum(line.unpriced for line in lines),
        "budgets": [
            {
                "name": budget.name,
                "before": _overrun(before, budget, place),
                "after": _overrun(after, budget, place),
            }
            for budget in budgets
            if budget.unit == "money"
        ],
    }


def _pricing(
    book: PriceBook, patience: timedelta, instead: tuple[str, str] | None
) -> Callable[[Asked], Cost]:
    from qcbridge.prices import STANDARD, Terms
    from qcnode.books.repricing import to_time

    def price(one: Asked) -> Cost:
        provider, model = instead or (one.attempt.provider, one.attempt.model)
        region = one.attempt.region
        terms = Terms(region=region) if region and instead is None else STANDARD
        rated_at = book.rated_at(
            provider,
            model,
            started=to_time(one.started_us),
            completed=to_time(one.ended_us),
            terms=terms,
        )
        cheapest = book.price(one.usage, provider, model, rated_at, terms=terms)
        if patience:
            for stretch in book.stretches(
                provider, model, rated_at, rated_at + patience, terms=terms
            ):
                later = max(stretch.start, rated_at)
                with suppress(UnpricedError):  # To wait for no price is no saving.
                    cost = book.price(one.usage, provider, model, later, terms=terms)
                    cheapest = min(cheapest, cost, key=lambda found: found.pico)
        return cheapest

    return price


def _line(line: Line) -> dict[str, Any]:
    return {
        "day": line.day,
        "provider": line.provider,
        "model": line.model,
        "currency": line.currency or None,
        "requests": line.requests,
        "tokens": line.tokens,
        "before_pico": _text(line.before_pico),
        "after_pico": _text(line.after_pico),
        "unpriced": line.unpriced,
    }


def _totals(lines: Sequence[Line]) -> list[dict[str, Any]]:
    sums: dict[str, list[int | None]] = defaultdict(lambda: [None, None])
    for line in lines:
        for place, pico in enumerate((line.before_pico, line.after_pico)):
            if pico is not None:
                sums[line.currency][place] = (sums[line.currency][place] or 0) + pico
    return [
        {
            "currency": currency,
            "before_pico": _text(before),
            "after_pico": _text(after),
            "difference_pico": None if before is None or after is None else _text(after - before),
        }
        for currency, (before, after) in sorted(sums.items())
        if currency
    ]


def _overrun(found: Sequence[Overrun], budget: Budget, place: ZoneInfo) -> dict[str, Any] | None:
    from qcnode.books.repricing import to_time

    one = next((one for one in found if one.budget == budget), None)
    if one is None:
        return None
    return {
        "windows": one.windows,
        "first": to_time(one.first_us).astimezone(place).isoformat(timespec="seconds"),
        "most_pico": str(one.most),
    }


def _lines(said: dict[str, Any]) -> Iterator[str]:
    yield f"{said['ledger']}: {said['requests']} priced requests"
    if said["unknown"]:
        yield f"{said['unknown']} more of which nobody knows the tokens are left out"
    for book in said["books"]:
        deferred = f", each within {said['defer_hours']} h" if said["defer_hours"] else ""
        asked = f", asking {said['as']}" if said["as"] else ""
        yield f"\nat the prices of {book['book']}{asked}{deferred}"
        yield from _picture(book["lines"])
        for total in book["totals"]:
            yield (
                f"  total {total['currency']}  {_money(total['before_pico'])} ->"
                f" {_money(total['after_pico'])}{_change(total)}"
            )
        if book["unpriced"]:
            yield f"  {book['unpriced']} requests have no price there, and are in no total after"
        for budget in book["budgets"]:
            for when in ("before", "after"):
                yield f"  budget {budget['name']:<12} {when:<7}{_kept(budget[when])}"


def _picture(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Draw each day with each model as two bars, all on one scale for each currency."""
    longest: dict[str | None, int] = defaultdict(int)
    for line in lines:
        for name in ("before_pico", "after_pico"):
            longest[line["currency"]] = max(longest[line["currency"]], int(line[name] or 0))
    for line in lines:
        scale = longest[line["currency"]] or 1
        title = f"{line['day']} {line['provider']}/{line['model']}"
        yield f"  {title}, {line['requests']} requests, {line['tokens']} tokens"
        for name, words in (("before_pico", "before"), ("after_pico", "after")):
            pico = line[name]
            bar = "\N{FULL BLOCK}" * round(_BAR_WIDTH * int(pico or 0) / scale)
            yield f"    {words:<7}{bar:<{_BAR_WIDTH}} {_money(pico)} {line['currency'] or ''}"


def _change(total: dict[str, Any]) -> str:
    if total["difference_pico"] is None or not int(total["before_pico"]):
        return ""
    percent = 100 * int(total["difference_pico"]) / int(total["before_pico"])
    return f" ({percent:+.1f} %)"


def _kept(overrun: dict[str, Any] | None) -> str:
    if overrun is None:
        return "kept"
    windows = f"{overrun['windows']} window{'' if overrun['windows'] == 1 else 's'}"
    return (
        f"exceeded in {windows}, first at {overrun['first']},"
        f" by {_money(overrun['most_pico'])} at most"
    )


def _money(pico: str | None) -> str:
    if pico is None:
        return "unpriced"
    whole, part = divmod(int(pico), _PICO)
    return f"{whole}.{f'{part:012d}'.rstrip('0'):0<2}"


def _text(pico: int | None) -> str | None:
    return None if pico is None else str(pico)


def _elsewhere(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    provider, slash, model = text.partition("/")
    if not (provider and slash and model):
        raise typer.BadParameter(f"--as {text}: give it as PROVIDER/MODEL, both as in the book")
    return provider, model


def _day(text: str | None, otherwise: str) -> date:
    try:
        return date.fromisoformat(text or otherwise)
    except ValueError as error:
        raise typer.BadParameter(f"{text}: write a day as {datetime.now():%Y-%m-%d}") from error  # noqa: DTZ005  # an example


def _zone(name: str) -> ZoneInfo:
    from qcnode.books.budgets import zone_of

    try:
        return zone_of(name)
    except ValueError as error:
        raise SettingsError(f"--zone {name}: {error}") from error
