"""A tenant's nodes and billing server in one hand, for tests about papers.

Nodes write real chains, the server takes real batches, and the clock of each is set by
the test. Prices are a small book in two currencies.
"""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qcbridge.billing.book_rates import BookRates
from qcbridge.billing.drafts import IssueTerms
from qcbridge.billing.invoices import month, to_us
from qcbridge.billing.issued import Invoices
from qcbridge.billing.keys import NodeKeys
from qcbridge.billing.offers import read_offer
from qcbridge.billing.resolutions import LedgerName, Resolutions
from qcbridge.billing.verify import verify_invoice
from qcbridge.prices import PriceBook, PriceClass, PriceRow
from qcnode.books import chain
from qcnode.books.batch import encode_batch
from qcnode.books.checkpoints import sign_checkpoint
from qcnode.books.seals import SigningKey
from qcnode.money import (
    Attempt,
    Cost,
    CostCentre,
    Indeterminate,
    Intent,
    NotBilled,
    Settled,
    TokenUsage,
)
from tests.bridge.books import Books

SEPTEMBER, OCTOBER, NOVEMBER, DECEMBER = (month(f"2026-{n:02}") for n in (9, 10, 11, 12))
USAGE = TokenUsage(text=800, image=700, cache_read=200, output=50, reasoning=10)
SOLDER = CostCentre(
    line="L1", product="P7", department="assembly", application="vision", function="solder"
)
PAINT = CostCentre(department="paint", application="vision", function="scratches")
MODELS = {"deepseek": ("deepseek-flash", "CNY"), "openai": ("gpt-5.5-instant", "USD")}
MICRO = {
    PriceClass.INPUT: 1_000_000,
    PriceClass.CACHE_READ: 20_000,
    PriceClass.IMAGE: 1_500_000,
    PriceClass.OUTPUT: 4_000_001,
}


def rows(provider, *, start=datetime(2026, 1, 1, tzinfo=UTC), end=None, times=1, micro=MICRO):
    model, currency = MODELS[provider]
    return [
        PriceRow(
            provider=provider,
            model=model,
            token_class=token_class,
            currency=currency,
            price_micro_per_mtok=price * times,
            valid_from=start,
            valid_to=end,
            source="a test",
            checked_at=date(2026, 11, 1),
            where="here",
        )
        for token_class, price in micro.items()
    ]


CUT = datetime(2026, 11, 20, tzinfo=UTC)
BOOK = PriceBook(
    [
        *rows("deepseek", end=CUT),
        *rows("deepseek", start=CUT, times=2),
        *rows("openai"),
    ]
)


def at(text):
    """2026-11-16T10 and the like, as microseconds."""
    return to_us(datetime.fromisoformat(text).replace(tzinfo=UTC))


class Node:
    """One node's ledger: facts go in, entries and batches come out."""

    def __init__(self, world, name, epoch=None):
        self.world, self.name = world, name
        self.epoch = epoch or f"epoch-of-{name}"[:64]
        self.entries = []
        self.sent = 0
        self.attempts = 0
        self.key = SigningKey(f"acme/{name}", Ed25519PrivateKey.generate())
        NodeKeys(world.books.database, now=lambda: world.now).add(
            "acme", name, self.key.public, by="test", from_us=0
        )

    def write(self, *facts, at_us):
        for fact in facts:
            prev_hash = self.entries[-1].hash if self.entries else chain.genesis(self.epoch)
            self.entries.append(
                chain.make_entry(
                    fact,
                    epoch=self.epoch,
                    seq=len(self.entries) + 1,
                    at_us=at_us,
                    prev_hash=prev_hash,
                )
            )
        return self.entries[-1]

    def intent(self, *, at_us, provider="deepseek", centre=SOLDER, escalation=None, region=""):
        self.attempts += 1
        name = f"{self.name}-a{self.attempts}"
        attempt = Attempt(
            id=name,
            escalation_id=escalation or f"esc-{name}",
            number=1,
            provider=provider,
            model=MODELS.get(provider, ("vlm-1",))[0],
            centre=centre,
            level="L3",
            region=region,
        )
        worst = TokenUsage(text=2_000, output=400)
        hold = Cost(currency=MODELS.get(provider, ("", "USD"))[1], pico=9_000_000_000, rows=())
        self.write(
            Intent(
                attempt=attempt,
                worst=worst,
                hold=hold,
                request_sha256="00" * 32,
                request_bytes=40_000,
                image_sha256=None,
            ),
            at_us=at_us,
        )
        return attempt

    def settle(self, attempt, *, at_us, usage=USAGE, cost="book", response_id=None):
        if cost == "book":
            cost = self.world.price(attempt, usage, at_us)
        self.write(
            Settled(
                attempt_id=attempt.id,
                usage=usage,
                cost=cost,
                started_at_us=at_us,
                rated_at_us=at_us,
                raw_usage="{}",
                response_id=response_id or f"resp-{attempt.id}",
                model_served=attempt.model,
                http_status=200,
                duration_ms=900,
            ),
            at_us=at_us,
        )
        return cost

    def use(self, *, at_us, usage=USAGE, **about):
        """One attempt that is answered at once, at the price of the book."""
        return self.settle(self.intent(at_us=at_us, **about), at_us=at_us, usage=usage)

    def lose(self, *, at_us, **about):
        """One attempt that times out."""
        attempt = self.intent(at_us=at_us, **about)
        hold = Cost(currency=MODELS[attempt.provider][1], pico=9_000_000_000, rows=())
        self.write(
            Indeterminate(attempt_id=attempt.id, reason="timed out", hold=hold),
            at_us=at_us + 30_000_000,
        )
        return attempt

    def refuse(self, *, at_us, **about):
        attempt = self.intent(at_us=at_us, **about)
        self.write(NotBilled(attempt_id=attempt.id, reason="refused", http_status=429), at_us=at_us)
        return attempt

    def send(self, count=None):
        """Hand in what was not sent yet, or the first so many of it."""
        last = len(self.entries) if count is None else min(self.sent + count, len(self.entries))
        if last > self.sent:
            entries = self.entries[self.sent : last]
            note = sign_checkpoint(self.key, self.epoch, last, entries[-1].hash)
            raw = encode_batch("acme", self.name, entries, at=self.world.now, checkpoint=note)
            receipt = self.world.books.ingest(read_offer(raw))
            assert receipt.acked_seq == last, receipt
            self.sent = last
            return receipt
        return None

    @property
    def ledger(self):
        return LedgerName(tenant="acme", node=self.name, epoch=self.epoch)

    def export(self, folder):
        """As `qcnode ledger export` writes it."""
        path = folder / f"{self.epoch}.jsonl"
        lines = [{"format": "qcnode.ledger.export.v1", "epoch": self.epoch, "confirmed": self.sent}]
        lines += [
            {
                "epoch": entry.epoch,
                "seq": entry.seq,
                "body": entry.body.decode(),
                "hash": entry.hash.hex(),
            }
            for entry in self.entries
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path


class PaperWorld:
    """The tenant acme, its nodes, and the server at an hour of the test's choice."""

    def __init__(self, url, *, book=BOOK, now="2026-11-16T12"):
        self.now = datetime.fromisoformat(now).replace(tzinfo=UTC)
        self.book = book
        self.rates = BookRates(book)
        self.books = Books(url, now=lambda: self.now).open()
        self.invoices = Invoices(self.books.database, now=lambda: self.now)
        self.resolutions = Resolutions(self.books.database, now=lambda: self.now)
        self.nodes = {}

    def close(self):
        self.books.close()

    def node(self, name="node-1"):
        if name not in self.nodes:
            self.nodes[name] = Node(self, name)
        return self.nodes[name]

    def price(self, attempt, usage, at_us):
        when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)
        return self.book.price(usage, attempt.provider, attempt.model, when)

    def clock(self, text):
        self.now = datetime.fromisoformat(text).replace(tzinfo=UTC)

    def send(self):
        for node in self.nodes.values():
            node.send()

    def terms(self, **changes):
        return replace(IssueTerms(rates=self.rates, currency="CNY"), **changes)

    def issue(self, period=NOVEMBER, **terms):
        return self.invoices.issue("acme", period, self.terms(**terms), by="test").invoice

    def draft(self, period=NOVEMBER, **terms):
        return self.invoices.draft("acme", period, self.terms(**terms))

    def verify(self, invoice, folder):
        folder.mkdir(exist_ok=True)
        exports = [node.export(folder) for node in self.nodes.values()]
        return verify_invoice(invoice, exports, self.rates)

    def recorded(self):
        """What all nodes recorded, by currency."""
        return self.books.reports.totals("acme").cost_pico
