"""Ways to show recorded escalations, side by side: the work of `qcnode replay --packings`."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import statistics
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from qcbridge.agent import Agent, Means
from qcbridge.comparison import Asking, Case, Returned, Way, check, compare
from qcbridge.evidence import FORMULAS
from qcbridge.redact import Redaction
from qcnode.books import chain
from qcnode.books.ledger import SqliteLedger
from qcnode.books.ledger_file import LedgerReader
from qcnode.books.records import decode
from qcnode.domain import Decider, Escalation, Finding, Ruling
from qcnode.errors import (
    BudgetExceededError,
    PictureError,
    ProviderRefusedError,
    ProviderUnavailableError,
    QcError,
    SettingsError,
    UnpricedError,
)
from qcnode.health import HealthBoard
from qcnode.lines.world import GOOD, UNKNOWN, read_fates
from qcnode.logs import configure_logs
from qcnode.manifest import load_manifest
from qcnode.money import Intent, Settled, TokenUsage
from qcnode.wiring.agents import (
    REVIEW_SPARE_S,
    SCRIPTED,
    build_meter,
    build_provider,
    check_provider,
    prices_of,
)
from qcnode.wiring.eyes import WORLD, reference_of
from qcnode.wiring.machine import new_epoch, now_us

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from qcbridge.comparison import Estimate, Row
    from qcbridge.prices import PriceBook
    from qcnode.money import Cost, LedgerEntry
    from qcnode.settings import Settings

USUAL = (
    "openai-tiles-4o",
    "openai-patches-mini",
    "openai-56",
    "anthropic",
    "anthropic-hires",
    "gemini3-high",
    "gemini3-low",
    "qwen25vl",
)
"""What is compared where no formula is named, beside that of the settings."""
ASKED_AT_ONCE = 4
_PAGE = 1_000
_BAR_WIDTH = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A formula, and whose price its tokens have, if anybody's."""

    formula: str
    provider: str | None = None
    model: str | None = None


def counted(text: str) -> Counted:
    """Read FORMULA or FORMULA=PROVIDER/MODEL; raises `SettingsError`."""
    formula, _, whose = text.partition("=")
    provider, slash, model = whose.partition("/")
    if formula not in FORMULAS or (whose and not (provider and slash and model)):
        raise SettingsError(
            f"--formula {text}: give FORMULA or FORMULA=PROVIDER/MODEL; there are:"
            f" {', '.join(FORMULAS)}"
        )
    return Counted(formula=formula, provider=provider or None, model=model or None)


def replay_packings(
    home: Path,
    settings: Settings,
    *,
    wanted: Sequence[Counted],
    book: PriceBook | None,
    golden: Path | None,
    limit: int,
    ask: bool,
) -> dict[str, Any]:
    """Compare ways to show the escalations of a home; with `ask` also what is answered."""
    one = settings.provider[0]
    own = Counted(formula=one.image_tokens, provider=one.name, model=one.model)
    wanted = wanted or [own, *(Counted(formula=formula) for formula in USUAL)]
    asking = _asking(settings, golden)
    cases = list(itertools.islice(read_cases(home), limit))
    if not cases:
        raise SettingsError(f"{home}: no escalation in it has its picture any more")
    returned = list(_returned(home / "ledger.db"))
    answers = [found.usage.output_tokens for found in returned]
    if answers:
        asking = replace(asking, output_tokens=round(statistics.mean(answers)))
    book = book or prices_of(one)
    rows = compare(cases, asking, list(dict.fromkeys(each.formula for each in wanted)))
    formulas = {(each.name, each.model): each.image_tokens for each in settings.provider}
    return {
        "home": str(home),
        "parts": len(cases),
        "golden": asking.golden is not None,
        "side_max_px": asking.side_max_px,
        "output_tokens": asking.output_tokens,
        "rows": [_row(row, each, book) for each in wanted for row in _of(rows, each.formula)],
        "estimates": [_estimate(found) for found in check(cases, returned, asking, formulas)],
        "asked": asyncio.run(_ask(home, settings, asking, cases)) if ask else None,
        "scripted": ask and one.name == SCRIPTED,
    }


def read_cases(home: Path) -> Iterator[Case]:
    """Yield the escalations of a home whose pictures are still there, the newest first.

    What a part is, the virtual line's own record says, else the person who ruled on it.
    """
    path = home / "journal.db"
    if not path.is_file():
        raise SettingsError(f"{path}: there is no journal: give the --home of a node")
    world = {fate.part_id: fate.truth for fate in read_fates(home / WORLD)}
    uri = f"{path.resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as db:
            bodies = db.execute(
                "SELECT body FROM record WHERE kind = 'escalation' ORDER BY seq DESC"
            )
            for (body,) in bodies:
                case = _case(home, db, decode("escalation", body), world)
                if case is not None:
                    yield case
    except sqlite3.Error as error:
        raise SettingsError(f"{path}: the journal cannot be read: {error}") from error


def _case(
    home: Path, db: sqlite3.Connection, escalation: object, world: dict[str, str]
) -> Case | None:
    assert isinstance(escalation, Escalation)  # noqa: S101  # the kind column says so
    name = escalation.inspection_id
    with suppress(OSError):
        picture = (home / "pictures" / f"{name}.jpg").read_bytes()
        heat = None
        with suppress(FileNotFoundError):
            heat = (home / "pictures" / f"{name}.png").read_bytes()
        truth = _truth(db, escalation, world.get(escalation.part_id))
        if not escalation.audit and escalation.score is not None:
            return Case(escalation=escalation, picture=picture, heat=heat, truth=truth)
    return None


def _truth(db: sqlite3.Connection, escalation: Escalation, known: str | None) -> Finding | None:
    if known is not None and known != UNKNOWN:
        return Finding.GOOD if known == GOOD else Finding.DEFECTIVE
    query = "SELECT body FROM record WHERE kind = 'ruling' AND ref = ? AND final = 1"
    for (body,) in db.execute(query, (escalation.id,)):
        ruling = decode("ruling", body)
        if isinstance(ruling, Ruling) and ruling.by is Decider.OPERATOR:
            return None if ruling.finding is Finding.UNSURE else ruling.finding
    return None


def _asking(settings: Settings, golden: Path | None) -> Asking:
    agent = settings.agent
    reference = None
    if golden is not None:
        try:
            reference = golden.read_bytes()
        except OSError as error:
            raise SettingsError(f"--golden {golden}: {error.strerror}") from error
    elif agent.golden:
        with suppress(QcError):  # Without its release there is no reference.
            reference = reference_of(settings, load_manifest(settings.model.dir))
    return Asking(
        product=agent.product,
        defect_classes=agent.defect_classes,
        golden=reference,
        redaction=Redaction(areas=agent.mask, codes=agent.mask_codes),
        side_max_px=settings.provider[0].image_side_max_px,
    )


def _returned(path: Path) -> Iterator[Returned]:
    """Yield the requests of a ledger that were answered with their tokens."""
    if not path.is_file():
        return
    reader = LedgerReader(path)
    try:
        yield from _answered(_facts(reader))
    finally:
        reader.close()


def _facts(reader: LedgerReader) -> Iterator[LedgerEntry]:
    seq = 0
    while page := reader.read(seq, _PAGE):
        yield from page
        seq = page[-1].seq


def _answered(entries: Iterator[LedgerEntry]) -> Iterator[Returned]:
    begun: dict[str, Intent] = {}
    for entry in entries:
        fact = chain.fact_of(entry)
        if isinstance(fact, Intent):
            begun[fact.attempt.id] = fact
        elif isinstance(fact, Settled) and fact.attempt_id in begun:
            intent = begun.pop(fact.attempt_id)
            yield Returned(
                escalation_id=intent.attempt.escalation_id,
                provider=intent.attempt.provider,
                model=intent.attempt.model,
                image_sha256=intent.image_sha256,
                usage=fact.usage,
            )


def _of(rows: Sequence[Row], formula: str) -> Iterator[Row]:
    return (row for row in rows if row.formula == formula)


def _row(row: Row, each: Counted, book: PriceBook) -> dict[str, Any]:
    cost = _cost(row, each, book)
    least, middle, most = row.spread()
    return {
        "formula": row.formula,
        "provider": each.provider,
        "model": each.model,
        "packing": row.way.value,
        "image_tokens_per_part": {"min": least, "median": middle, "max": most},
        "text_tokens_per_part": row.text / row.parts,
        "tokens": row.total,
        "currency": None if cost is None else cost.currency,
        "cost_pico": None if cost is None else str(cost.pico),
    }


def _cost(row: Row, each: Counted, book: PriceBook) -> Cost | None:
    if each.provider is None or each.model is None:
        return None
    image = round(sum(row.image))
    usage = TokenUsage(text=row.text, image=image, output=row.output)
    try:
        return book.price(usage, each.provider, each.model, datetime.now(UTC))
    except UnpricedError:
        return None


def _estimate(found: Estimate) -> dict[str, Any]:
    return {
        "provider": found.provider,
        "model": found.model,
        "formula": found.formula,
        "requests": len(found.whole),
        "other_pictures": found.other,
        "image_error": _spread(found.image),
        "input_error": _spread(found.whole),
    }


def _spread(errors: Sequence[float]) -> dict[str, float] | None:
    if not errors:
        return None
    return {"min": min(errors), "median": statistics.median(errors), "max": max(errors)}


# -- with --ask ----------------------------------------------------------------------------


async def _ask(
    home: Path, settings: Settings, asking: Asking, cases: Sequence[Case]
) -> list[dict[str, Any]]:
    """Ask about every part in each way; each request is metered in a ledger of its own."""
    configure_logs()
    one = settings.provider[0]
    check_provider(settings, one)
    known = [case for case in cases if case.truth is not None]
    if not known:
        raise SettingsError(f"{home}: of no part is it known what it really is")
    path = home / "replay-ledger.db"
    ledger = SqliteLedger(path, now_us=now_us, new_epoch=new_epoch, budgets=settings.budgets())
    try:
        return [
            await _ask_in(way, settings, asking, known, ledger)
            for way in (Way.FRAME, Way.CROP, Way.CROP_GOLDEN)
            if way is not Way.CROP_GOLDEN or asking.golden is not None
        ]
    finally:
        await asyncio.to_thread(ledger.close)


async def _ask_in(
    way: Way, settings: Settings, asking: Asking, cases: Sequence[Case], ledger: SqliteLedger
) -> dict[str, Any]:
    one = settings.provider[0]
    health = HealthBoard(lambda: datetime.now(UTC))
    meter = build_meter(one, ledger=ledger, health=health)
    agent = Agent(
        provider=build_provider(settings, one, meter=meter),
        meter=meter,
        product=asking.product,
        defect_classes=asking.defect_classes,
        image_side_max_px=asking.side_max_px,
        attempts_max=settings.agent.attempts_max,
        review_timeout_s=(one.timeout_s + REVIEW_SPARE_S) * settings.agent.attempts_max,
        health=health,
        new_id=new_epoch,
        monotonic_s=time.monotonic,
        centre=settings.centre(),
        level=settings.agent.level.value,
        region=one.region,
        means=Means(
            golden=(lambda: asking.golden) if way is Way.CROP_GOLDEN else None,
            whole=way is Way.FRAME,
            redaction=asking.redaction,
        ),
    )
    before = ledger.totals().entries
    turns = asyncio.Semaphore(ASKED_AT_ONCE)
    try:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(_found(agent, case, turns)) for case in cases]
    finally:
        await agent.close()
    found = [task.result() for task in asked]
    used = [answer.usage for answer in _answered(iter(ledger.read(before, _PAGE * len(cases))))]
    return {
        "packing": way.value,
        "parts": len(cases),
        "right": sum(one is case.truth for one, case in zip(found, cases, strict=True)),
        "unsure": sum(one is Finding.UNSURE for one in found),
        "unanswered": sum(one is None for one in found),
        "image_tokens": sum(usage.image for usage in used),
        "input_tokens": sum(usage.input_tokens for usage in used),
        "output_tokens": sum(usage.output_tokens for usage in used),
    }


async def _found(agent: Agent, case: Case, turns: asyncio.Semaphore) -> Finding | None:
    async with turns:
        try:
            opinion = await agent.review(case.escalation, case.picture, case.heat)
        except (ProviderRefusedError, ProviderUnavailableError, PictureError):
            return None
        except (BudgetExceededError, UnpricedError) as error:
            raise SettingsError(f"the questions cannot all be asked: {error}") from error
    return opinion.finding


# -- in words ------------------------------------------------------------------------------


def lines(said: dict[str, Any]) -> Iterator[str]:
    """Say a comparison in lines, each way as a bar of its tokens."""
    beside = "a good part and the heat" if said["golden"] else "no golden picture known"
    yield f"{said['home']}: {said['parts']} escalations with their pictures, {beside}"
    yield (
        f"pictures of at most {said['side_max_px']} px; words estimated at four characters a"
        f" token, answers at {said['output_tokens']} tokens"
    )
    for formula, rows in itertools.groupby(
        said["rows"], lambda row: (row["formula"], row["model"])
    ):
        yield from _formula_lines(formula, list(rows), said["parts"])
    for found in said["estimates"]:
        yield from _estimate_lines(found)
    if said["asked"] is not None:
        yield from _asked_lines(said)


def _formula_lines(
    formula: tuple[str, str | None], rows: Sequence[dict[str, Any]], parts: int
) -> Iterator[str]:
    name, model = formula
    yield ""
    yield f"{name}" + (f", at the prices of {model}" if model else "")
    naive = next(row["tokens"] for row in rows if row["packing"] == Way.FRAME.value)
    longest = max(row["tokens"] for row in rows)
    for row in rows:
        bar = "\N{FULL BLOCK}" * round(_BAR_WIDTH * row["tokens"] / longest)
        image = row["image_tokens_per_part"]["median"]
        cost = "" if row["cost_pico"] is None else f"  {_money(row)} {row['currency']}"
        yield (
            f"  {row['packing']:<12}{bar:<{_BAR_WIDTH}} {row['tokens'] / parts:>9.0f} a part,"
            f" {image:.0f} of it picture ({100 * (row['tokens'] / naive - 1):+.1f} %){cost}"
        )


def _estimate_lines(found: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield (
        f"{found['provider']}/{found['model']} by {found['formula']}: {found['requests']} requests"
        f" made again to the byte, {found['other_pictures']} whose picture would be another now"
    )
    for name, words in (("image_error", "picture"), ("input_error", "whole input")):
        error = found[name]
        if error is not None:
            yield (
                f"  {words:<12} estimate off by {100 * error['median']:+.1f} % of what was returned"
                f" ({100 * error['min']:+.1f} to {100 * error['max']:+.1f})"
            )


def _asked_lines(said: dict[str, Any]) -> Iterator[str]:
    yield ""
    if said["scripted"]:
        yield "answered by the scripted provider, which is no model and looks at no picture:"
        yield "its tokens are counted, its accuracy is what its script was told"
    for row in said["asked"]:
        yield (
            f"  {row['packing']:<12} right {row['right']} of {row['parts']}"
            f" ({row['unsure']} unsure, {row['unanswered']} unanswered),"
            f" {row['input_tokens'] / row['parts']:.0f} tokens in a part,"
            f" {row['image_tokens'] / row['parts']:.0f} told as picture"
        )


def _money(row: dict[str, Any]) -> str:
    return f"{int(row['cost_pico']) / 10**12:.6f}"
