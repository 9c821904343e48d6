"""`qcnode prices`: look into price books, prove them, explain a price, propose new rows.

Nothing here changes a book; `import` writes a file of proposals and `sign` a signature
beside the book. Exit code 1 means that the answer is no: something is wrong with the book,
or it has no price for what was asked.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcnode.errors import PriceError, UnpricedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qcbridge.prices import PriceBook, Terms
    from qcbridge.pricing.rates import CostLine
    from qcbridge.pricing.rows import PriceRow
    from qcbridge.pricing.timeline import Stretch
    from qcnode.books.seals import PublicKey

_PICO = 10**12
_MICRO = 10**6
_DAYS_MAX = 400
_NO = 1
_ANY_MODEL = "local"
"""The book that ships for whatever runs on machines of one's own."""

BookOption = Annotated[
    Path | None,
    typer.Option(
        "--book",
        envvar="QCNODE_PROVIDER_PRICES",
        help="A price file, a folder of them, or the name of a book that ships.",
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", help="The public key that must have signed the book, NAME+ID+KEY."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
ProviderOption = Annotated[
    str | None, typer.Option(help="Whose price; not needed where one provider has the model.")
]
RegionOption = Annotated[str | None, typer.Option(help="Where the provider works on the data.")]
BatchOption = Annotated[bool, typer.Option("--batch", help="At the price of batches.")]
TierOption = Annotated[str, typer.Option(help="Service tier: standard, flex or priority.")]


def register(app: typer.Typer) -> None:
    """Add this group of commands to the program."""
    group = typer.Typer(
        help="Price books: what tokens cost, since when, and where it stands.",
        no_args_is_help=True,
    )
    group.command("show")(show)
    group.command("check")(check)
    group.command("explain")(explain)
    group.command("next")(upcoming)
    group.command("import")(propose)
    group.command("sign")(sign)
    app.add_typer(group, name="prices")


def show(
    *,
    book: BookOption = None,
    key: KeyOption = None,
    model: Annotated[str | None, typer.Option(help="Only the rows of this model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the books that ship, or with --book all rows of one, withdrawn ones too."""
    from qcbridge.prices import PriceBook, shipped
    from qcbridge.pricing.news import withdrawn_at

    if book is None:
        books = [_summary(name, PriceBook.load(path)) for name, path in shipped().items()]
        if as_json:
            _print_json({"books": books})
            return
        for one in books:
            typer.echo(
                f"{one['book']:<14}{one['rows']:>5} rows {one['unconfirmed']:>5} unconfirmed  "
                f"{', '.join(one['currencies']):<5} {one['title']}"
            )
        return
    opened = PriceBook.load(book, key=_public(key))
    gone = withdrawn_at(opened.announced)
    prices = [row for row in opened.announced.prices if model is None or row.names(model)]
    aliases = [row for row in opened.announced.aliases if model in (None, row.model)]
    if as_json:
        _print_json(
            {
                "rows": [_row(row) | {"withdrawn_at": _iso(gone.get(row.id))} for row in prices],
                "aliases": [
                    {
                        "id": row.id,
                        "target": row.target,
                        "valid_from": _iso(row.valid_from),
                        "valid_to": _iso(row.valid_to),
                        "withdrawn_at": _iso(gone.get(row.id)),
                        "confirmed": row.confirmed,
                    }
                    for row in aliases
                ],
            }
        )
        return
    for row in prices:
        end = "" if row.valid_to is None else f" to {_iso(row.valid_to)}"
        marks = _marks(row.id in gone, row.confirmed, row.promotion)
        typer.echo(f"{_per_mtok(row):>14} {row.currency}  {row.id}{end}{marks}")
    for alias in aliases:
        marks = _marks(alias.id in gone, alias.confirmed, None)
        typer.echo(f"{'alias':>18}  {alias.id}{marks}")


def check(
    *,
    book: Annotated[
        Path | None,
        typer.Argument(
            envvar="QCNODE_PROVIDER_PRICES",
            help="A price file, a folder, or the name of a book that ships; without it, all those.",
        ),
    ] = None,
    key: KeyOption = None,
    age_days_max: Annotated[
        int, typer.Option(min=0, help="How long ago a row may have been looked up.")
    ] = 100,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with a book, and what to know of it; exit with 1 if something is wrong.

    Wrong is a hole, an overlap, a row looked up too long ago, or a calendar that has ended.
    Worth knowing is a row that was not read at the vendor, or a calendar that ends soon.
    """
    from qcbridge.prices import read_files, shipped
    from qcbridge.pricing.book_check import BookFinding, Grade, check_book

    paths = list(shipped().values()) if book is None else [book]
    public = _public(key)
    found: dict[str, tuple[BookFinding, ...]] = {}
    for path in paths:
        try:
            files = read_files(path, key=public)
        except PriceError as error:
            if not path.exists() and path.name not in shipped():
                raise
            wrong = BookFinding(grade=Grade.WRONG, about="file", words=str(error))
            found[path.name] = (wrong,)
        else:
            found[path.name] = check_book(files, now=_now(), age_days_max=age_days_max)
    bad = any(one.grade is Grade.WRONG for findings in found.values() for one in findings)
    if as_json:
        _print_json(
            {
                "ok": not bad,
                "books": {
                    name: [
                        {"grade": one.grade, "about": one.about, "words": one.words}
                        for one in findings
                    ]
                    for name, findings in found.items()
                },
            }
        )
    else:
        for name, findings in found.items():
            wrong_ones = sum(one.grade is Grade.WRONG for one in findings)
            typer.echo(f"{name}: {f'{wrong_ones} wrong' if wrong_ones else 'agrees with itself'}")
            for one in findings:
                typer.echo(f"  {one.grade}: {one.about}: {one.words}")
    if bad:
        raise typer.Exit(_NO)


def explain(
    model: Annotated[str, typer.Argument(help="The model, as it is asked for.")],
    instant: Annotated[str, typer.Argument(help="When: 2026-11-16T02:00Z, with its offset.")],
    *,
    input_tokens: Annotated[
        int,
        typer.Option("--input", min=0, max=10**9, help="Text tokens, neither cached nor image."),
    ] = 0,
    output: Annotated[
        int, typer.Option("--output", min=0, max=10**9, help="Answer tokens without reasoning.")
    ] = 0,
    image: Annotated[int, typer.Option(min=0, max=10**9, help="Tokens of a picture.")] = 0,
    unknown: Annotated[int, typer.Option(min=0, max=10**9, help="Text or picture, not told.")] = 0,
    cache_read: Annotated[int, typer.Option(min=0, max=10**9, help="Read from a cache.")] = 0,
    cache_write: Annotated[int, typer.Option(min=0, max=10**9, help="Written to a cache.")] = 0,
    cache_write_1h: Annotated[
        int, typer.Option("--cache-write-1h", min=0, max=10**9, help="To a cache of an hour.")
    ] = 0,
    reasoning: Annotated[int, typer.Option(min=0, max=10**9, help="Answer tokens of thought.")] = 0,
    provider: ProviderOption = None,
    book: BookOption = None,
    key: KeyOption = None,
    region: RegionOption = None,
    batch: BatchOption = False,
    tier: TierOption = "standard",
    known: Annotated[
        str | None, typer.Option("--known-at", help="With the news as of this instant.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a request costs, by which rows, and why these: local time, weekday, holiday.

    No token is counted twice: --input is text alone, and the other classes come beside it.
    """
    from qcnode.money import TokenUsage

    at = _instant(instant)
    usage = TokenUsage(
        text=input_tokens,
        image=image,
        unknown=unknown,
        cache_read=cache_read,
        cache_write=cache_write,
        cache_write_1h=cache_write_1h,
        output=output,
        reasoning=reasoning,
    )
    found = _find(model, provider, book, key)
    opened = found.book if known is None else found.book.as_known_at(_instant(known))
    terms = _terms(region, tier, batch=batch)
    why = _why(opened, found.provider, model, at, terms)
    head: dict[str, Any] = {
        "book": found.name,
        "also_in": found.also_in,
        "provider": found.provider,
        "model": model,
        "at": _iso(at),
    }
    try:
        lines = opened.lines(usage, found.provider, model, at, terms=terms)
    except UnpricedError as error:
        if not as_json:
            typer.echo(f"qcnode prices explain: {error}", err=True)
        else:
            nothing: dict[str, Any] = {
                "cost_pico": None,
                "currency": None,
                "rows": [],
                "reason": str(error),
            }
            _print_json(head | nothing | {"why": why})
        raise typer.Exit(_NO) from error
    currency, pico = lines[0].row.currency, sum(line.pico for line in lines)
    if as_json:
        parts = [_line(line) for line in lines]
        _print_json(head | {"cost_pico": pico, "currency": currency, "rows": parts} | {"why": why})
        return
    for text in _explained(head, why, lines):
        typer.echo(text)
    typer.echo(f"{_exact(pico):>20} {currency}")


def upcoming(
    model: Annotated[str, typer.Argument(help="The model, as it is asked for.")],
    *,
    provider: ProviderOption = None,
    book: BookOption = None,
    key: KeyOption = None,
    days: Annotated[int, typer.Option(min=1, max=_DAYS_MAX, help="How far to look.")] = 7,
    since: Annotated[
        str | None, typer.Option("--from", help="From this instant instead of now.")
    ] = None,
    hours: Annotated[int, typer.Option(min=0, max=24 * 31, help="How long the work takes.")] = 1,
    region: RegionOption = None,
    batch: BatchOption = False,
    tier: TierOption = "standard",
    as_json: JsonOption = False,
) -> None:
    """Show the changes of price to come, and when work that can wait is cheapest.

    Cheap is reckoned with as many input as output tokens.
    """
    from qcbridge.pricing.cheap_hours import cheapest_window
    from qcnode.money import TokenUsage

    found = _find(model, provider, book, key)
    start = _now() if since is None else _instant(since)
    end = start + timedelta(days=days)
    terms = _terms(region, tier, batch=batch)
    stretches = list(found.book.stretches(found.provider, model, start, end, terms=terms))
    try:
        cheap = cheapest_window(
            found.book,
            TokenUsage(text=_MICRO, output=_MICRO),
            found.provider,
            model,
            earliest=start,
            latest=end,
            duration=timedelta(hours=min(hours, days * 24)),
            terms=terms,
        )
    except UnpricedError as error:
        if as_json:
            _print_json({"changes": [_stretch(one) for one in stretches], "cheapest": None})
        else:
            typer.echo(f"qcnode prices next: {error}", err=True)
        raise typer.Exit(_NO) from error
    if as_json:
        _print_json(
            {
                "book": found.name,
                "provider": found.provider,
                "model": model,
                "changes": [_stretch(one) for one in stretches],
                "cheapest": {
                    "start": _iso(cheap.start),
                    "last_start": _iso(cheap.last_start),
                    "cost_pico": cheap.cost.pico,
                    "now_pico": None if cheap.now is None else cheap.now.pico,
                    "currency": cheap.cost.currency,
                },
            }
        )
        return
    typer.echo(f"{model} by {found.provider}, book {found.name}, per million tokens")
    for one in stretches:
        typer.echo(f"{_iso(one.start)} to {_iso(one.end)}  {_held(one)}")
    now = "has no price" if cheap.now is None else f"costs {_exact(cheap.now.pico)}"
    typer.echo(
        f"cheapest to begin {_iso(cheap.start)} to {_iso(cheap.last_start)}:"
        f" {_exact(cheap.cost.pico)} {cheap.cost.currency}; begun at once it {now}"
    )


def propose(
    *,
    provider: Annotated[str, typer.Option(help="What this node calls the provider.")],
    out: Annotated[Path, typer.Option(help="The file of proposals to write.")],
    source: Annotated[str, typer.Option("--from", help="Where to look.")] = "genai-prices",
    source_provider: Annotated[
        str | None, typer.Option("--as", help="What the source calls the provider.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only this model; may be given again.")
    ] = None,
    book: BookOption = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
) -> None:
    """Write rows for a person to look up and accept: none is confirmed, none is in force yet.

    With --book each row says what that book has instead.
    """
    from qcbridge.prices import PriceBook
    from qcbridge.pricing.proposals import SOURCE
    from qcbridge.pricing.proposals import propose as proposals

    if source != SOURCE:
        raise typer.BadParameter(f"{source!r} is not known as a source: use {SOURCE}")
    if out.exists() and not force:
        raise PriceError(f"{out}: exists already; --force writes over it")
    present = None if book is None else PriceBook.load(book)
    text = proposals(
        source_provider or provider,
        provider=provider,
        at=_now(),
        present=present,
        models=tuple(model or ()),
    )
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PriceError(f"{out}: cannot be written ({error.strerror})") from error
    rows = len(PriceBook.load(out).rows)
    typer.echo(f"{out}: {rows} rows proposed; look each up, then set confirmed = true")


def sign(
    *,
    book: Annotated[Path, typer.Argument(help="The price file to vouch for.")],
    key: Annotated[Path, typer.Option("--key", help="The private key; made when missing.")],
    name: Annotated[str, typer.Option(help="Who signs; part of the public key.")] = "prices",
) -> None:
    """Sign a book and the holidays it leans on, and print the public key that checks it.

    A book that does not agree with itself is not signed.
    """
    from qcbridge.prices import PriceBook
    from qcbridge.pricing.book_seal import write_seal
    from qcnode.books.seals import SigningKey

    opened = PriceBook.load(book)
    if len(opened.files) != 1:
        raise PriceError(f"{book}: sign one file at a time")
    signing = SigningKey.open(key, name=name)
    path = write_seal(opened.files[0], signing)
    typer.echo(f"{path}: signed; nodes check it with provider.prices_key =")
    typer.echo(str(signing.public))


class _Found:
    """A book that has the model, and under which name."""

    def __init__(self, book: PriceBook, name: str, provider: str, also_in: list[str]) -> None:
        self.book = book
        self.name = name
        self.provider = provider
        self.also_in = also_in


def _find(model: str, provider: str | None, book: Path | None, key: str | None) -> _Found:
    """Open the named book, or the one that ships and has the model.

    Where several that ship have it, the one that is called like the provider is taken,
    because it is the vendor's own list; `also_in` says which others there are.
    """
    from qcbridge.prices import PriceBook, shipped

    if book is not None:
        opened = PriceBook.load(book, key=_public(key))
        return _Found(opened, book.name, _provider(opened, model, provider, book.name), [])
    holding: dict[str, PriceBook] = {}
    for name, path in shipped().items():
        opened = PriceBook.load(path)
        # A book for any model at all is meant only where it is named.
        has = () if provider is None and name == _ANY_MODEL else opened.providers_of(model)
        if has and (provider is None or provider in has):
            holding[name] = opened
    own = [name for name, opened in holding.items() if name in opened.providers_of(model)]
    chosen = own[0] if len(own) == 1 else next(iter(holding)) if len(holding) == 1 else None
    if chosen is None:
        known = ", ".join(sorted(holding)) or "none of those that ship"
        raise PriceError(f"{model}: which book? It is in {known}: name one with --book")
    others = sorted(holding.keys() - {chosen})
    opened = holding[chosen]
    return _Found(opened, chosen, _provider(opened, model, provider, chosen), others)


def _provider(book: PriceBook, model: str, provider: str | None, name: str) -> str:
    known = book.providers_of(model)
    if provider is not None:
        return provider
    if len(known) == 1:
        return known[0]
    if known:
        raise PriceError(f"{model}: whose? {', '.join(known)} have it in {name}: give --provider")
    raise PriceError(f"{model}: nobody has a price for it in {name}: look with prices show --book")


def _terms(region: str | None, tier: str, *, batch: bool) -> Terms:
    from qcbridge.prices import ServiceTier, Terms

    try:
        service = ServiceTier(tier)
    except ValueError as error:
        raise typer.BadParameter(
            f"--tier {tier}: is none of {', '.join(ServiceTier)}; batches have --batch"
        ) from error
    return Terms(region=region, service=service, batch=batch)


def _why(book: PriceBook, provider: str, model: str, at: datetime, terms: Terms) -> dict[str, Any]:
    """Say what decides about the hour: the vendor's clock, the day, and its schedules."""
    from qcbridge.pricing.timeline import shape_of

    era = book.era(provider, model, at, terms=terms)
    if era is None:
        return {}
    found: dict[str, Any] = {"priced_as": era.model}
    zone, calendar = era.zone, era.calendar
    if zone is None:
        return found
    local = at.astimezone(zone)
    day = shape_of(local.date(), calendar)
    schedules = {one.id: one for row in era.rows for one in row.schedules}
    found |= {
        "zone": zone.key,
        "local_time": local.strftime("%Y-%m-%d %H:%M"),
        "weekday": local.strftime("%A"),
        "day": None if day is None else str(day.kind),
        "holiday": None if calendar is None else calendar.holiday(local.date()),
        "schedules": {
            name: None if day is None else one.holds(day, local.hour * 60 + local.minute)
            for name, one in sorted(schedules.items())
        },
    }
    return found


def _explained(head: dict[str, Any], why: dict[str, Any], lines: list[CostLine]) -> Iterator[str]:
    others = f" (also in {', '.join(head['also_in'])})" if head["also_in"] else ""
    yield f"{head['model']} by {head['provider']} at {head['at']}, book {head['book']}{others}"
    if why.get("priced_as") not in (None, head["model"]):
        yield f"the name means {why['priced_as']} at that time"
    if "zone" in why:
        holiday = f", {why['holiday']}" if why["holiday"] else ""
        yield f"there it is {why['weekday']} {why['local_time']} ({why['zone']}){holiday}"
        for name, holds in why["schedules"].items():
            yield f"schedule {name}: {'holds' if holds else 'does not hold'}"
    for line in lines:
        yield (
            f"{line.token_class:<15}{line.tokens:>12} x {_per_mtok(line.row):>12} / million ="
            f" {_exact(line.pico)} {line.row.currency}"
        )
        mark = "" if line.row.confirmed else "; not confirmed"
        looked = f"looked up {line.row.checked_at}{mark}"
        yield f"    {line.row.id}: {line.row.source}, {looked}"


def _line(line: CostLine) -> dict[str, Any]:
    return _row(line.row) | {"tokens": line.tokens, "cost_pico": line.pico}


def _row(row: PriceRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "class": row.token_class,
        "price_micro_per_mtok": row.price_micro_per_mtok,
        "currency": row.currency,
        "valid_from": _iso(row.valid_from),
        "valid_to": _iso(row.valid_to),
        "recorded_at": _iso(row.recorded_at),
        "rating_instant": row.rating_instant,
        "promotion": row.promotion,
        "source": row.source,
        "source_url": row.source_url,
        "checked_at": row.checked_at.isoformat(),
        "confirmed": row.confirmed,
        "where": row.where,
    }


def _stretch(one: Stretch) -> dict[str, Any]:
    from qcbridge.pricing.timeline import Gap

    span: dict[str, Any] = {"start": _iso(one.start), "end": _iso(one.end)}
    if isinstance(one.rates, Gap):
        return span | {"reason": one.rates.reason, "rows": []}
    return span | {"reason": None, "rows": [row.id for row in one.rates.rows]}


def _held(one: Stretch) -> str:
    from qcbridge.pricing.timeline import Gap

    if isinstance(one.rates, Gap):
        return f"no price: {one.rates.reason}"
    prices = [
        f"{row.token_class}{'' if row.tier is None else f' over {row.tier.low}'} {_per_mtok(row)}"
        for row in one.rates.rows
    ]
    return f"{', '.join(prices)} {one.rates.currency}"


def _summary(name: str, book: PriceBook) -> dict[str, Any]:
    return {
        "book": name,
        "title": book.files[0].title,
        "rows": len(book.rows),
        "unconfirmed": sum(not row.confirmed for row in book.rows),
        "providers": sorted({row.provider for row in book.rows}),
        "currencies": sorted({row.currency for row in book.rows}),
    }


def _marks(withdrawn: bool, confirmed: bool, promotion: str | None) -> str:  # noqa: FBT001
    marks = ["withdrawn"] * withdrawn + ["not confirmed"] * (not confirmed)
    return "".join(f"  [{mark}]" for mark in [*marks, *([promotion] if promotion else [])])


def _public(key: str | None) -> PublicKey | None:
    from qcnode.books.seals import PublicKey

    return None if key is None else PublicKey.parse(key)


def _instant(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise PriceError(f"{text!r:.60} is no instant: write it as 2026-11-16T02:00Z") from error
    if at.tzinfo is None:
        raise PriceError(f"{text!r:.60} has no offset: write it as 2026-11-16T02:00Z")
    return at.astimezone(UTC)


def _now() -> datetime:
    return datetime.now(UTC)


def _per_mtok(row: PriceRow) -> str:
    whole, part = divmod(row.price_micro_per_mtok, _MICRO)
    return f"{whole}.{f'{part:06d}'.rstrip('0'):0<2}"


def _exact(pico: int) -> str:
    whole, part = divmod(pico, _PICO)
    return f"{whole}.{f'{part:012d}'.rstrip('0'):0<2}"


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat().replace("+00:00", "Z")


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value))
