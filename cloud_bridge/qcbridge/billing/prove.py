"""The whole way of a bill, made and proven in one run.

Nodes write ledgers with the node's own code, of use that a seed decides; their batches go
through the server's own intake; the month is invoiced, exported as FOCUS, checked, and
worked out again from exports of the very ledgers; and what the ledgers say they spent is
compared with the invoice, node by node and currency by currency. Nothing is held in
memory that grows with the number of entries but the months' sums of one node.
"""

from __future__ import annotations

import resource
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from qcbridge.billing.bill import recorded_pico
from qcbridge.billing.book_rates import BookRates
from qcbridge.billing.contracts import read_contract, read_rate
from qcbridge.billing.drafts import IssueTerms
from qcbridge.billing.engine import Database
from qcbridge.billing.focus import FocusRows
from qcbridge.billing.focus_files import check_file, has_parquet, write_csv, write_parquet
from qcbridge.billing.intake import Intake
from qcbridge.billing.invoices import format_micro, from_us, month
from qcbridge.billing.issued import Invoices
from qcbridge.billing.issued_paper import encode_invoice
from qcbridge.billing.keys import NodeKeys
from qcbridge.billing.reports import Reports
from qcbridge.billing.store import BillingStore
from qcbridge.billing.verify import verify_invoice
from qcbridge.prices import PriceBook
from qcnode.books.batch import encode_batch
from qcnode.books.checkpoints import sign_checkpoint
from qcnode.books.export import export_lines
from qcnode.books.ledger import SqliteLedger
from qcnode.books.ledger_file import LedgerReader
from qcnode.books.seals import SigningKey
from qcnode.errors import BillingError
from qcnode.money import (
    Adjusted,
    Attempt,
    Cost,
    CostCentre,
    Indeterminate,
    Intent,
    NotBilled,
    Outcome,
    Reconciled,
    Reserved,
    Settled,
    TokenUsage,
    format_pico,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from qcbridge.billing.issued_paper import IssuedInvoice
    from qcnode.money import LedgerFact

TENANT: Final = "proof"
PERIOD: Final = month("2026-11")
CURRENCY: Final = "USD"
RATE: Final = "CNY=0.139512,2026-11-30,a rate made up for this proof"
GROUP: Final = 400
"""Facts that a node commits at once."""
BATCH: Final = 800
"""Entries in one batch."""
_NODE_NAMES: Final = "node-{:02}"

BOOK: Final = """\
# Made up for the proof: two vendors, two currencies, a price cut and a dearer week.
[defaults]
source = "made up for this proof"
checked_at = 2026-11-01
"""
_MODELS: Final = (
    ("deepseek", "proof-flash", "CNY", 1_000_000),
    ("deepseek", "proof-pro", "CNY", 4_000_001),
    ("openai", "proof-instant", "USD", 500_003),
)
_SPANS: Final = (
    ("2026-01-01T00:00:00Z", "2026-11-10T16:00:00Z", 100),
    ("2026-11-10T16:00:00Z", "2026-11-17T16:00:00Z", 133),
    ("2026-11-17T16:00:00Z", None, 71),
)
_CLASSES: Final = (
    ("input", 100),
    ("image", 120),
    ("cache_read", 11),
    ("output", 400),
    ("reasoning", 405),
)
CONTRACT: Final = """\
[[term]]
id = "proof-2026"
provider = "deepseek"
model = "*"
from_period = "2026-01"
discount_bp = 750
free_tokens = 100_000
[[term.tier]]
above_tokens = 1_000_000
rebate_bp = 500
[[term.tier]]
above_tokens = 10_000_000
rebate_bp = 1_250
"""
_CENTRES: Final = tuple(
    CostCentre(
        line=f"L{number}",
        product=f"P{number}",
        department=department,
        application=application,
        function=function,
        agent="inspector",
    )
    for number, (department, application, function) in enumerate(
        (
            ("assembly", "vision", "image"),
            ("assembly", "vision", "analysis"),
            ("assembly", "control", "adjustment"),
            ("paint", "vision", "image"),
            ("paint", "vision", "analysis"),
            ("packing", "vision", "image"),
        )
    )
)


@dataclass(slots=True)
class _Clock:
    """A clock that only moves when it is told to, and a little whenever it is read."""

    at_us: int

    def __call__(self) -> int:
        self.at_us += 37
        return self.at_us

    def now(self) -> datetime:
        """Return the instant as the server wants it."""
        return from_us(self.at_us)


@dataclass(slots=True)
class _Run:
    """What a run has shown so far."""

    say: Callable[[str], None]
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def step(self, name: str, seconds: float, words: str, **figures: Any) -> None:
        """Note what a step took."""
        figures |= {"seconds": round(seconds, 3), "peak_mib": _peak_mib()}
        self.steps[name] = {"words": words, **figures}
        self.say(f"{name}: {words}, {seconds:.1f} s")


def prove_bill(
    out: Path,
    *,
    entries: int,
    nodes: int,
    url: str | None,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Make and prove a bill in `out`; the report says what each step took and what differs."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise BillingError(f"{out}: not empty: name a new folder")
    run = _Run(say)
    (out / "prices.toml").write_text(_book(), encoding="utf-8")
    (out / "contract.toml").write_text(CONTRACT, encoding="utf-8")
    book = PriceBook.load(out / "prices.toml")
    rates = BookRates(book)
    clock = _Clock(PERIOD.from_us)
    names = [_NODE_NAMES.format(number) for number in range(1, nodes + 1)]
    spent = _write_ledgers(run, out, names, book, clock, entries=entries, seed=seed)
    with ExitStack() as stack:
        database = Database(url or f"sqlite:///{out}/billing.db")
        stack.callback(database.close)
        database.migrate()
        if Reports(database).tenants():
            raise BillingError(f"{database.name}: not empty: name a new database")
        clock.at_us = PERIOD.to_us - 60_000_000
        _send(run, out, names, database, clock)
        clock.at_us = PERIOD.to_us + 3_600_000_000
        kept = Invoices(database, now=clock.now)
        invoice = _issue(run, out, kept, rates)
        _export(run, out, kept, invoice)
        _tie(run, invoice, spent, Reports(database))
    _verify(run, out, names, invoice, rates)
    return {
        "proven": not run.problems,
        "problems": run.problems,
        "entries": sum(one.entries for one in spent.values()),
        "nodes": nodes,
        "invoice": invoice.id,
        "total": f"{format_micro(invoice.total_micro)} {invoice.currency}",
        "lines": len(invoice.lines),
        "database": database.name,
        "peak_mib": _peak_mib(),
        "steps": run.steps,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spent:
    """What one node's own ledger says."""

    entries: int
    cost_pico: dict[str, int]


def _write_ledgers(
    run: _Run,
    out: Path,
    names: list[str],
    book: PriceBook,
    clock: _Clock,
    *,
    entries: int,
    seed: int,
) -> dict[str, _Spent]:
    """Let every node write its ledger, and export it; return what each has spent."""
    started = time.monotonic()
    spent: dict[str, _Spent] = {}
    size = 0
    for number, name in enumerate(names):
        share = entries // len(names) + (number < entries % len(names))
        home = out / name
        home.mkdir()
        key = SigningKey.open(home / "node.key", name=f"{TENANT}/{name}")
        clock.at_us = PERIOD.from_us
        ledger = SqliteLedger(
            home / "ledger.db",
            now_us=clock,
            new_epoch=lambda name=name: f"proof-{seed}-{name}",  # type: ignore[misc]
            key=key,
        )
        try:
            use = _Use(Random(f"{seed}/{name}"), name, book, clock)  # noqa: S311  # the same use again
            written = 0
            while written < share:
                facts = use.group(min(GROUP, share - written))
                written += len(facts)
                ledger.record(*facts)
                clock.at_us = PERIOD.from_us + (PERIOD.to_us - PERIOD.from_us) * written // (
                    share + 1
                )
            totals = ledger.totals()
        finally:
            ledger.close()
        spent[name] = _Spent(entries=totals.entries, cost_pico=dict(totals.cost_pico))
        size += (home / "ledger.db").stat().st_size
        run.say(f"{name}: {totals.entries} entries written")
    seconds = time.monotonic() - started
    count = sum(one.entries for one in spent.values())
    run.step(
        "write",
        seconds,
        f"{count} entries in {len(names)} ledgers, {_rate(count, seconds)} entries/s",
        entries=count,
        bytes_per_entry=size // count,
        rate=_rate(count, seconds),
    )
    started = time.monotonic()
    for name in names:
        _export_ledger(out / name / "ledger.db", out / f"{name}.jsonl")
    run.step("carry out", time.monotonic() - started, f"{len(names)} ledgers exported")
    return spent


def _send(run: _Run, out: Path, names: list[str], database: Database, clock: _Clock) -> None:
    """Hand every ledger in, batch by batch, as its node's outbox does."""
    started = time.monotonic()
    store = BillingStore(database, now=clock.now)
    intake, keys = Intake(store), NodeKeys(database, now=clock.now)
    count = 0
    for name in names:
        key = SigningKey.open(out / name / "node.key", name=f"{TENANT}/{name}")
        keys.add(TENANT, name, key.public, by="proof")
        reader = LedgerReader(out / name / "ledger.db")
        try:
            seq = 0
            while batch := reader.read(seq, BATCH):
                last = batch[-1]
                note = sign_checkpoint(key, reader.epoch, last.seq, last.hash)
                raw = encode_batch(TENANT, name, batch, at=clock.now(), checkpoint=note)
                receipt = intake.take(raw, via="proof")
                if receipt.acked_seq != last.seq or receipt.problem is not None:
                    raise BillingError(f"{name}: the server says {receipt.problem}")
                seq = last.seq
        finally:
            reader.close()
        count += seq
        run.say(f"{name}: {seq} entries taken")
    seconds = time.monotonic() - started
    size = _stored_bytes(database) // count
    run.step(
        "take in",
        seconds,
        f"{count} entries, {_rate(count, seconds)} entries/s, {size} bytes each",
        rate=_rate(count, seconds),
        bytes_per_entry=size,
    )


def _stored_bytes(database: Database) -> int:
    """Return how large the database is, indexes and all."""
    with database.reading() as db:
        if db.dialect.name == "postgresql":
            query = "SELECT pg_database_size(current_database())"
        else:
            query = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        return int(db.execute(sa.text(query)).scalar_one())


def _issue(run: _Run, out: Path, kept: Invoices, rates: BookRates) -> IssuedInvoice:
    started = time.monotonic()
    terms = IssueTerms(
        rates=rates,
        currency=CURRENCY,
        exchange=(read_rate(RATE),),
        contract=read_contract(out / "contract.toml"),
    )
    invoice = kept.issue(TENANT, PERIOD, terms, by="proof").invoice
    (out / "invoice.json").write_bytes(encode_invoice(invoice))
    run.step(
        "issue",
        time.monotonic() - started,
        f"{invoice.id}, {len(invoice.lines)} lines,"
        f" {format_micro(invoice.total_micro)} {invoice.currency}",
    )
    if kept.issue(TENANT, PERIOD, terms, by="proof").fresh:
        run.problems.append("issuing it again made another invoice")
    return invoice


def _export(run: _Run, out: Path, kept: Invoices, invoice: IssuedInvoice) -> None:
    writers = {"csv": write_csv, "parquet": write_parquet}
    if not has_parquet():
        del writers["parquet"]
        run.say("focus parquet: left out, it needs pyarrow: install the extra 'parquet'")
    for form, write in writers.items():
        path = out / f"focus.{form}"
        started = time.monotonic()
        count = write(path, FocusRows(invoice).rows(kept.nodes(invoice)))
        run.step(
            f"focus {form}",
            time.monotonic() - started,
            f"{count} rows, {path.stat().st_size // 1024} KiB",
            rows=count,
        )
        started = time.monotonic()
        check = check_file(path, tell=lambda rows: run.say(f"{rows} rows checked"))
        findings = check.findings()
        for finding in findings:
            run.problems.append(f"FOCUS {form}: {finding.rule} {finding.column} {finding.words}")
        if check.rows != count:
            run.problems.append(f"FOCUS {form}: {count} rows written, {check.rows} read")
        billed = check.billed.get(invoice.id)
        if billed is None or billed.scaleb(6) != invoice.total_micro:
            run.problems.append(f"FOCUS {form}: billed {billed}, not the invoice's total")
        run.step(
            f"check {form}",
            time.monotonic() - started,
            f"{check.rows} rows, {len(findings)} findings",
        )


def _verify(
    run: _Run, out: Path, names: list[str], invoice: IssuedInvoice, rates: BookRates
) -> None:
    started = time.monotonic()
    found = verify_invoice(
        invoice,
        [out / f"{name}.jsonl" for name in names],
        rates,
        tell=lambda count: run.say(f"{count} entries verified"),
    )
    run.problems += found.problems
    seconds = time.monotonic() - started
    run.step(
        "verify",
        seconds,
        f"{found.entries} entries, {found.lines} lines, {found.problem_count} differences,"
        f" {_rate(found.entries, seconds)} entries/s",
        rate=_rate(found.entries, seconds),
    )


def _tie(run: _Run, invoice: IssuedInvoice, spent: dict[str, _Spent], reports: Reports) -> None:
    """Compare what each ledger says was spent with the lines of its node, and with the server."""
    started = time.monotonic()
    whole: dict[str, int] = {}
    for name, own in spent.items():
        billed = recorded_pico([line for line in invoice.lines if line.node == name])
        if billed != own.cost_pico:
            run.problems.append(f"{name}: the ledger says {own.cost_pico}, the invoice {billed}")
        for currency, pico in own.cost_pico.items():
            whole[currency] = whole.get(currency, 0) + pico
    server = reports.totals(TENANT)
    if server.cost_pico != whole:
        run.problems.append(f"the ledgers say {whole}, the server {server.cost_pico}")
    if server.entries != sum(one.entries for one in spent.values()):
        run.problems.append(f"{server.entries} entries are at the server")
    words = ", ".join(f"{format_pico(pico)} {name}" for name, pico in sorted(whole.items()))
    run.step("tie", time.monotonic() - started, f"{len(spent)} ledgers, {words}")


class _Use:
    """Use of one node, as a seed decides it."""

    def __init__(self, random: Random, node: str, book: PriceBook, clock: _Clock) -> None:
        self._random = random
        self._node = node
        self._book = book
        self._clock = clock
        self._number = 0
        self._next: list[LedgerFact] = []
        self._waiting: list[tuple[Attempt, Cost]] = []
        self._settled: list[tuple[Attempt, Cost]] = []

    def group(self, count: int) -> list[LedgerFact]:
        """Return the next facts, `count` of them."""
        facts = self._next
        while len(facts) < count:
            facts += self._one()
        # What does not fit any more comes with the next: an attempt may well be cut in two.
        self._next = facts[count:]
        return facts[:count]

    def _one(self) -> Iterator[LedgerFact]:
        random = self._random
        self._number += 1
        provider, model, currency, _ = random.choice(_MODELS)
        name = f"{self._node}-{self._number:07}"
        attempt = Attempt(
            id=name,
            escalation_id=f"esc-{name}",
            number=1,
            provider=provider,
            model=model,
            centre=random.choice(_CENTRES),
            level=random.choice(("L1", "L2", "L3")),
            region="cn-north" if currency == "CNY" else "us-east",
        )
        usage = TokenUsage(
            text=random.randrange(200, 1_200),
            image=random.randrange(300, 1_600),
            cache_read=random.randrange(0, 900),
            output=random.randrange(20, 200),
            reasoning=random.choice((0, 0, random.randrange(1, 90))),
        )
        worst = TokenUsage(text=4_000, output=400)
        hold = Cost(currency=currency, pico=40_000_000_000, rows=())
        yield Reserved(attempt=attempt, worst=worst, hold=hold)
        yield Intent(
            attempt=attempt,
            worst=worst,
            hold=hold,
            request_sha256=f"{self._number:064x}",
            request_bytes=random.randrange(20_000, 60_000),
            image_sha256=None,
        )
        ending = random.random()
        if ending < 0.94:  # noqa: PLR2004  # most are answered
            yield from self._answer(attempt, usage)
        elif ending < 0.97:  # noqa: PLR2004
            yield NotBilled(attempt_id=name, reason="429", http_status=429)
        else:
            yield Indeterminate(attempt_id=name, reason="timed out", hold=hold)
            self._waiting.append((attempt, hold))
        yield from self._later(usage)

    def _answer(self, attempt: Attempt, usage: TokenUsage) -> Iterator[LedgerFact]:
        random, at_us = self._random, self._clock.at_us
        cost: Cost | None = self._book.price(usage, attempt.provider, attempt.model, from_us(at_us))
        if random.random() < 0.005:  # noqa: PLR2004  # nobody knew a price
            cost = None
        yield Settled(
            attempt_id=attempt.id,
            usage=usage,
            cost=cost,
            started_at_us=at_us - 900_000,
            rated_at_us=at_us,
            raw_usage=f'{{"prompt_tokens": {usage.input_tokens},'
            f' "completion_tokens": {usage.output_tokens}}}',
            response_id=f"resp-{attempt.id}",
            model_served=attempt.model,
            http_status=200,
            duration_ms=900,
        )
        if cost is not None:
            self._settled = [*self._settled[-8:], (attempt, cost)]
        if random.random() < 0.1:  # noqa: PLR2004  # some parts are looked at again
            good = random.random() < 0.5  # noqa: PLR2004
            yield Outcome(
                escalation_id=attempt.escalation_id,
                centre=attempt.centre,
                ruled="GOOD" if good or random.random() < 0.05 else "DEFECTIVE",  # noqa: PLR2004
                truth="GOOD" if good else "DEFECTIVE",
                node_alone=random.choice(("ACCEPT", "REJECT")),
                source="audit",
            )

    def _later(self, usage: TokenUsage) -> Iterator[LedgerFact]:
        """Learn what an attempt cost after all, or put a cost right."""
        random = self._random
        if self._waiting and random.random() < 0.01:  # noqa: PLR2004
            attempt, hold = self._waiting.pop(random.randrange(len(self._waiting)))
            yield Reconciled(
                attempt_id=attempt.id,
                usage=usage,
                cost=Cost(currency=hold.currency, pico=random.randrange(10**9), rows=()),
                source="a provider's export",
                source_sha256="00" * 32,
            )
        if self._settled and random.random() < 0.005:  # noqa: PLR2004
            attempt, cost = self._settled.pop()
            after = Cost(currency=cost.currency, pico=cost.pico * 3 // 4, rows=cost.rows)
            yield Adjusted(attempt_id=attempt.id, before=cost, after=after, reason="a price cut")


def _book() -> str:
    """Write the price book of the proof."""
    rows = [BOOK]
    for provider, model, currency, base in _MODELS:
        for start, end, percent in _SPANS:
            prices = ", ".join(
                f"{token_class} = {base * percent // 100 * share // 100}"
                for token_class, share in _CLASSES
            )
            rows.append(
                f'[[price]]\nprovider = "{provider}"\nmodel = "{model}"\ncurrency = "{currency}"\n'
                f"valid_from = {start}\n"
                + (f"valid_to = {end}\n" if end else "")
                + f"micro_per_mtok = {{ {prices} }}\n"
            )
    return "\n".join(rows)


def _export_ledger(ledger: Path, path: Path) -> None:
    """Write a ledger as `qcnode ledger export` does."""
    reader = LedgerReader(ledger)
    try:
        with reader.moment() as db, path.open("w", encoding="utf-8", newline="\n") as file:
            for line in export_lines(db, reader.epoch, keys={}):
                file.write(line + "\n")
    finally:
        reader.close()


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _rate(count: int, seconds: float) -> int:
    return int(count / seconds) if seconds else 0
