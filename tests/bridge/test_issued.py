"""Issued invoices: numbered, final, each entry on exactly one, provable from the ledgers."""

import json
import shutil
import threading
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcbridge.billing.bill import recorded_pico
from qcbridge.billing.book_rates import BookRates
from qcbridge.billing.contracts import Contract, Pack, Term, Tier, read_rate
from qcbridge.billing.invoices import from_us
from qcbridge.billing.issued_paper import decode_invoice, encode_invoice, invoice_sha256
from qcbridge.billing.papers import COLUMNS, invoice_json, invoice_text, invoices_text
from qcbridge.billing.resolutions import LedgerName
from qcbridge.billing.verify import verify_invoice
from qcbridge.prices import PriceBook, PriceClass
from qcbridge.pricing import rows as price_rows
from qcnode.errors import BillingError
from qcnode.money import Adjusted, Cost, Reconciled, TokenUsage, WrittenOff
from tests.bridge.paper_world import (
    DECEMBER,
    NOVEMBER,
    OCTOBER,
    PAINT,
    SEPTEMBER,
    USAGE,
    PaperWorld,
    at,
    rows,
)

USD = read_rate("USD=7.123456,2026-11-30,PBOC central parity")
CHEAPER = Cost(currency="CNY", pico=1_000_000_000, rows=())


@pytest.fixture
def world(database_url):
    """A tenant and its server, on each kind of database."""
    opened = PaperWorld(database_url)
    yield opened
    opened.close()


@pytest.fixture
def lite(tmp_path):
    """The same where the kind of database makes no difference."""
    opened = PaperWorld(f"sqlite:///{tmp_path}/billing.db")
    yield opened
    opened.close()


def kept(world):
    """Every issued invoice, as it is kept."""
    with world.books.database.reading() as db:
        rows = db.execute(sa.text("SELECT tenant, number, sha256, body FROM invoice"))
        return [
            tuple(bytes(one) if isinstance(one, memoryview) else one for one in row) for row in rows
        ]


def shown(invoice):
    """The lines of an invoice in the words that matter."""
    return [
        (line.why, line.month, line.of_invoice, line.provider, line.token_class, line.tokens)
        for line in invoice.lines
    ]


def test_an_invoice_says_what_it_covers_and_by_what_it_was_worked_out(world, tmp_path):
    one, two = world.node("node-1"), world.node("node-2")
    costs = [one.use(at_us=at("2026-11-16T01")), one.use(at_us=at("2026-11-21T01"), centre=PAINT)]
    costs.append(two.use(at_us=at("2026-11-17T01"), provider="openai"))
    two.lose(at_us=at("2026-11-17T02"))
    world.send()
    world.clock("2026-12-01T00")

    invoice = world.issue(exchange=(USD,))

    assert (invoice.id, invoice.period, invoice.currency) == ("acme-000001", "2026-11", "CNY")
    assert invoice.prices_sha256 == world.rates.digest
    assert [(one.node, one.first_seq, one.last_seq) for one in invoice.ledgers] == [
        ("node-1", 1, 4),
        ("node-2", 1, 4),
    ]
    assert all(len(ledger.root) == 64 for ledger in invoice.ledgers)
    assert (
        recorded_pico(invoice.lines)
        == world.recorded()
        == {
            "CNY": costs[0].pico + costs[1].pico,
            "USD": costs[2].pico,
        }
    )
    assert {line.department for line in invoice.lines} == {"assembly", "paint"}
    assert {line.token_class for line in invoice.lines} == {
        *("text", "image", "cache_read", "output", "reasoning"),
    }
    assert invoice.exchange == (USD,)
    assert invoice.total_micro == sum(line.amount_micro for line in invoice.lines)
    found = world.verify(invoice, tmp_path / "exports")
    assert (found.verified, found.problems, found.entries) == (True, [], 8)
    assert world.invoices.invoice("acme", 1) == invoice


def test_d5_late_usage_is_billed_in_the_next_open_period_as_a_correction(world, tmp_path):
    node, late = world.node("node-1"), world.node("node-2")
    node.use(at_us=at("2026-11-16T01"))
    cost = late.use(at_us=at("2026-11-16T02"))
    node.send()
    world.clock("2026-12-01T00")
    november = world.issue()
    before = kept(world)

    late.send()  # It was away, and comes back in December.
    late.use(at_us=at("2026-12-05T01"))
    late.send()
    world.clock("2027-01-01T00")
    december = world.issue(DECEMBER)

    assert kept(world)[:1] == before
    assert recorded_pico(november.lines) == {"CNY": cost.pico}  # The same use, of node-1.
    assert {(line.why, line.month) for line in december.lines} == {
        ("late", "2026-11"),
        ("usage", "2026-12"),
    }
    corrected = [line for line in december.lines if line.why == "late"]
    assert recorded_pico(corrected) == {"CNY": cost.pico}
    assert world.verify(november, tmp_path / "exports").problems == []
    assert world.verify(december, tmp_path / "exports").problems == []


def test_d5_a_node_that_was_away_for_months_is_billed_once_and_completely(lite):
    node, away = lite.node("node-1"), lite.node("node-2")
    for hour in range(3):
        away.use(at_us=at(f"2026-09-1{hour}T00"))
    node.use(at_us=at("2026-09-16T00"))
    node.send()
    for period, then in ((SEPTEMBER, "2026-10-01T00"), (OCTOBER, "2026-11-01T00")):
        lite.clock(then)
        lite.issue(period)
    away.use(at_us=at("2026-11-10T00"))
    away.send()
    lite.clock("2026-12-01T00")
    november = lite.issue()

    late = [line for line in november.lines if line.why == "late"]
    assert {line.month for line in late} == {"2026-09"}
    assert {line.attempts for line in late} == {3}
    total = sum(
        sum(line.list_pico for line in lite.invoices.invoice("acme", number).lines)
        for number in (1, 2, 3)
    )
    assert {"CNY": total} == lite.recorded()


def test_d5_what_was_used_after_the_month_waits_for_its_own(lite):
    node = lite.node()
    node.use(at_us=at("2026-11-30T23"))
    node.use(at_us=at("2026-12-01T00"))
    lite.clock("2026-12-01T01")
    node.send()
    november = lite.issue()
    assert [(one.first_seq, one.last_seq) for one in november.ledgers] == [(1, 2)]
    lite.clock("2027-01-01T00")
    december = lite.issue(DECEMBER)
    assert [(one.first_seq, one.last_seq) for one in december.ledgers] == [(3, 4)]
    assert {line.why for line in december.lines} == {"usage"}


def test_a_clock_that_runs_ahead_keeps_nothing_off_the_bill(lite, tmp_path):
    node = lite.node()
    node.use(at_us=at("2031-01-01T00"))  # Somebody set the year wrong.
    node.use(at_us=at("2026-11-16T00"))
    node.send()
    lite.clock("2026-12-01T00")
    invoice = lite.issue()
    assert recorded_pico(invoice.lines) == lite.recorded()
    assert {(line.why, line.month) for line in invoice.lines} == {("usage", "2026-11")}
    assert lite.verify(invoice, tmp_path / "x").problems == []


def test_a7_an_issued_invoice_never_changes_when_prices_do(world, tmp_path):
    node = world.node()
    attempt = node.intent(at_us=at("2026-11-16T01"))
    cost = node.settle(attempt, at_us=at("2026-11-16T01"))
    node.send()
    world.clock("2026-12-01T00")
    november = world.issue()
    before = kept(world)
    node.write(
        Adjusted(attempt_id=attempt.id, before=cost, after=CHEAPER, reason="a cut came late"),
        at_us=at("2026-12-03T00"),
    )
    node.send()
    world.clock("2027-01-01T00")
    december = world.issue(DECEMBER)

    assert kept(world)[:1] == before
    assert {(line.why, line.month, line.of_invoice) for line in december.lines} == {
        ("credit", "2026-11", 1),
        ("debit", "2026-11", 1),
    }
    taken_back = [line for line in december.lines if line.why == "credit"]
    assert recorded_pico(taken_back) == {"CNY": -cost.pico}
    # Class by class it takes back exactly what was billed.
    billed = {line.token_class: line.amount_micro for line in november.lines}
    assert {line.token_class: -line.amount_micro for line in taken_back} == billed
    assert world.recorded() == {"CNY": CHEAPER.pico}
    assert december.ledgers[0].corrects == ((3, 1),)
    for invoice in (november, december):
        assert world.verify(invoice, tmp_path / "x").problems == []


def test_a_cost_put_right_within_its_month_is_billed_as_it_is_right(lite, tmp_path):
    node = lite.node()
    attempt = node.intent(at_us=at("2026-11-16T01"))
    cost = node.settle(attempt, at_us=at("2026-11-16T01"))
    node.write(
        Adjusted(attempt_id=attempt.id, before=cost, after=CHEAPER, reason="a cut"),
        at_us=at("2026-11-18T00"),
    )
    node.send()
    lite.clock("2026-12-01T00")
    invoice = lite.issue()
    assert [(line.why, line.list_pico) for line in invoice.lines] == [("usage", CHEAPER.pico)]
    assert lite.verify(invoice, tmp_path / "x").problems == []


def test_a_cost_put_right_twice_is_taken_back_from_where_it_was_billed(lite, tmp_path):
    node = lite.node()
    attempt = node.intent(at_us=at("2026-10-16T01"))
    cost = node.settle(attempt, at_us=at("2026-10-16T01"))
    first, second = CHEAPER, replace(CHEAPER, pico=7)
    node.send()
    for period, then, change in (
        (OCTOBER, "2026-11-01T00", (cost, first)),
        (NOVEMBER, "2026-12-01T00", (first, second)),
        (DECEMBER, "2027-01-01T00", None),
    ):
        lite.clock(then)
        invoice = lite.issue(period)
        assert lite.verify(invoice, tmp_path / "x").problems == []
        if change:
            fact = Adjusted(attempt_id=attempt.id, before=change[0], after=change[1], reason="r")
            node.write(fact, at_us=at(then))
            node.send()
    november, december = (lite.invoices.invoice("acme", number) for number in (2, 3))
    assert {line.of_invoice for line in november.lines} == {1}
    assert {line.of_invoice for line in december.lines} == {2}
    assert lite.recorded() == {"CNY": 7}


def test_a_credit_note_gives_back_no_more_than_was_charged(lite, tmp_path):
    contract = Contract(
        terms=(
            Term(
                id="t",
                provider="deepseek",
                model="*",
                from_period="2026-11",
                to_period="2026-11",
                discount_bp=1_000,
                tiers=(Tier(above_tokens=100, rebate_bp=2_000),),
            ),
        ),
        sha256="ab" * 32,
    )
    node = lite.node()
    attempt = node.intent(at_us=at("2026-11-16T01"))
    cost = node.settle(attempt, at_us=at("2026-11-16T01"))
    node.send()
    lite.clock("2026-12-01T00")
    november = lite.issue(
        contract=contract, currency="USD", exchange=(read_rate("CNY=0.14,2026-11-30,x"),)
    )
    node.write(
        Adjusted(attempt_id=attempt.id, before=cost, after=replace(CHEAPER, pico=0), reason="r"),
        at_us=at("2026-12-02T00"),
    )
    node.send()
    lite.clock("2027-01-01T00")
    december = lite.issue(DECEMBER, currency="USD", exchange=(read_rate("CNY=0.99,2026-12-31,x"),))
    assert december.total_micro == -november.total_micro < 0
    assert lite.verify(december, tmp_path / "x").problems == []


def test_a_price_that_falls_with_the_month_needs_a_contract_that_says_how_far(tmp_path):
    def row(price, tier):
        [made] = rows("deepseek", micro={PriceClass.INPUT: price})
        return replace(made, tier=tier, id="")

    def tier(low, high):
        return price_rows.Tier(
            basis=price_rows.TierBasis.MONTH_CLASS,
            mode=price_rows.TierMode.GRADUATED,
            low=low,
            high=high,
        )

    book = PriceBook(
        [
            row(2_000_000, tier(0, 1000)),
            row(1_000_000, tier(1000, None)),
            *rows("deepseek", micro={PriceClass.OUTPUT: 4_000_000}),
        ]
    )
    world = PaperWorld(f"sqlite:///{tmp_path}/b.db", book=book, now="2026-12-01T00")
    node = world.node()
    for hour in range(3):
        node.use(at_us=at(f"2026-11-16T0{hour}"), usage=TokenUsage(text=1_000))
    node.send()
    assert world.draft().lines[0].list_pico == 6_000_000_000
    with pytest.raises(BillingError, match="falls with the volume of a month"):
        world.issue()
    half = Term(
        id="volume",
        provider="deepseek",
        model="*",
        from_period="2026-11",
        to_period=None,
        tiers=(Tier(above_tokens=1000, rebate_bp=5_000),),
    )
    invoice = world.issue(contract=Contract(terms=(half,), sha256="ab" * 32))
    assert invoice.total_micro == 4_000
    assert world.verify(invoice, tmp_path / "x").problems == []
    world.close()


def test_what_the_server_decided_is_billed_once_though_the_node_repeats_it(world, tmp_path):
    node = world.node()
    lost = node.lose(at_us=at("2026-11-16T01"))
    node.send()
    decided = Reconciled(
        attempt_id=lost.id,
        usage=USAGE,
        cost=Cost(currency="CNY", pico=5_000_000_000, rows=()),
        source="deepseek usage",
        source_sha256="ab" * 32,
    )
    world.resolutions.resolve(node.ledger, [decided], by="test")
    world.clock("2026-12-01T00")
    november = world.issue()
    assert recorded_pico(november.lines) == {"CNY": 5_000_000_000}
    assert [decision.attempt_id for decision in november.decisions] == [lost.id]
    assert world.verify(november, tmp_path / "x").problems == []

    node.write(decided, at_us=at("2026-12-02T00"))  # It came with a receipt.
    node.send()
    world.clock("2027-01-01T00")
    december = world.issue(DECEMBER)
    assert (december.lines, december.total_micro) == ((), 0)
    assert december.ledgers[0].repeats == (3,)
    assert world.verify(december, tmp_path / "x").problems == []
    assert world.recorded() == {"CNY": 5_000_000_000}


def test_a_decision_after_the_month_was_closed_is_late_use(lite, tmp_path):
    node = lite.node()
    lost = node.lose(at_us=at("2026-11-16T01"))
    node.send()
    lite.clock("2026-12-01T00")
    assert lite.issue().lines == ()
    lite.resolutions.resolve(
        node.ledger,
        [
            Reconciled(
                attempt_id=lost.id,
                usage=None,
                cost=CHEAPER,
                source="deepseek usage",
                source_sha256="ab" * 32,
            )
        ],
        by="test",
    )
    lite.clock("2027-01-01T00")
    december = lite.issue(DECEMBER)
    assert [(line.why, line.month, line.list_pico) for line in december.lines] == [
        ("late", "2026-11", CHEAPER.pico)
    ]
    assert lite.verify(december, tmp_path / "x").problems == []


def test_a_decision_about_use_of_a_later_month_waits_for_that_month(lite):
    node = lite.node()
    node.use(at_us=at("2026-11-16T01"))
    lost = node.lose(at_us=at("2026-12-02T01"))
    lite.clock("2026-12-03T00")
    node.send()
    lite.resolutions.resolve(
        node.ledger,
        [
            Reconciled(
                attempt_id=lost.id, usage=None, cost=CHEAPER, source="s", source_sha256="ab" * 32
            )
        ],
        by="test",
    )
    assert lite.issue().decisions == ()
    lite.clock("2027-01-01T00")
    assert recorded_pico(lite.issue(DECEMBER).lines) == {"CNY": CHEAPER.pico}


def test_an_entry_let_out_of_quarantine_is_billed_then_and_once(lite, tmp_path):
    node = lite.node()
    node.use(at_us=at("2026-11-16T01"))
    attempt = node.intent(at_us=at("2026-11-17T01"))
    stray = replace(attempt, id="stray")
    node.settle(stray, at_us=at("2026-11-17T01"), cost=CHEAPER)  # Nobody announced it.
    node.send()
    lite.clock("2026-12-01T00")
    november = lite.issue()
    assert november.ledgers[0].quarantined == (4,)
    assert "Quarantined, not billed: 1 entry of node-1" in invoice_text(november, issued=True)
    assert lite.verify(november, tmp_path / "x").problems == []
    with pytest.raises(BillingError, match="makes no sense"):
        lite.resolutions.release(node.ledger, 4, by="test")


def test_a_written_off_attempt_is_on_no_line(lite, tmp_path):
    node = lite.node()
    lost = node.lose(at_us=at("2026-11-16T01"))
    node.send()
    lite.resolutions.resolve(
        node.ledger, [WrittenOff(attempt_id=lost.id, reason="45 days")], by="test"
    )
    lite.clock("2026-12-01T00")
    invoice = lite.issue()
    assert (invoice.lines, invoice.beside) == ((), ())
    assert lite.verify(invoice, tmp_path / "x").problems == []


def test_d7_issuing_again_changes_nothing_and_gives_the_same_invoice(world):
    world.node().use(at_us=at("2026-11-16T01"))
    world.send()
    world.clock("2026-12-01T00")
    first = world.invoices.issue("acme", NOVEMBER, world.terms(), by="test")
    before = kept(world)
    world.node().use(at_us=at("2026-11-17T01"))
    world.send()
    again = world.invoices.issue("acme", NOVEMBER, world.terms(), by="test")
    assert (first.fresh, again.fresh) == (True, False)
    assert again.invoice == first.invoice
    assert kept(world) == before
    for changed in ({"currency": "USD"}, {"exchange": (USD,)}, {"contract": Contract(sha256="x")}):
        with pytest.raises(BillingError, match="never changes"):
            world.issue(**changed)


def test_d7_buying_a_pack_again_changes_nothing(world, tmp_path):
    pack = Pack(
        id="pack-1",
        provider="deepseek",
        model="*",
        token_class="*",
        tokens=10**6,
        price_micro=5_000_000,
        currency="CNY",
        bought_us=at("2026-11-02T00"),
        until_us=at("2027-11-02T00"),
    )
    assert [world.invoices.buy("acme", pack, by="test") for _ in range(3)] == [True, False, False]
    with pytest.raises(BillingError, match="is another one"):
        world.invoices.buy("acme", replace(pack, tokens=2 * 10**6), by="test")
    world.node().use(at_us=at("2026-11-16T01"))
    world.send()
    world.clock("2026-12-01T00")
    november = world.issue()
    [purchase] = november.purchases
    assert purchase.pack.id == "pack-1"
    forged = replace(november, purchases=(replace(purchase, amount_micro=1),))
    assert "pack pack-1: amount" in world.verify(forged, tmp_path / "forged").problems[0]
    assert november.total_micro == 5_000_000
    assert world.invoices.packs("acme")[0][1] == 10**6 - 1_760

    world.node().use(at_us=at("2026-12-16T01"))
    world.send()
    world.clock("2027-01-01T00")
    december = world.issue(DECEMBER)
    assert (december.purchases, december.total_micro) == ((), 0)
    assert [(draw.before, draw.tokens) for draw in december.draws] == [(10**6 - 1_760, 1_760)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE invoice SET total_micro = 0",
        "DELETE FROM invoice",
        "UPDATE invoice_ledger SET last_seq = 1",
        "DELETE FROM invoice_ledger",
        "DELETE FROM pack",
        "DELETE FROM invoice_decision",
        "DELETE FROM capture",
        "DELETE FROM provider_file",
    ],
)
def test_a7_the_database_itself_lets_nothing_issued_be_changed(world, statement):
    world.node().use(at_us=at("2026-11-16T01"))
    lost = world.node().lose(at_us=at("2026-11-16T02"))
    world.send()
    world.resolutions.resolve(
        world.node().ledger, [WrittenOff(attempt_id=lost.id, reason="r")], by="test"
    )
    world.invoices.buy(
        "acme",
        Pack(
            id="p",
            provider="deepseek",
            model="*",
            token_class="*",
            tokens=1,
            price_micro=1,
            currency="CNY",
            bought_us=at("2026-11-02T00"),
            until_us=at("2027-11-02T00"),
        ),
        by="test",
    )
    world.clock("2026-12-01T00")
    world.issue()
    with world.books.database.writing() as db:
        db.execute(
            sa.text(
                "INSERT INTO provider_file (tenant, sha256, provider, name, from_us, to_us,"
                " records, taken_us, taken_by, report)"
                " VALUES ('acme', :d, 'p', 'n', 0, 1, 1, 1, 'x', '{}')"
            ),
            {"d": b"d" * 32},
        )
        db.execute(
            sa.text(
                "INSERT INTO capture (tenant, provider, day, unit, sha256, ours, billed, taken_us)"
                " VALUES ('acme', 'p', '2026-11-16', 'CNY', :d, 1, 1, 1)"
            ),
            {"d": b"d" * 32},
        )
        db.commit()
    before = kept(world)
    with pytest.raises(BillingError, match="never changed"), world.books.database.writing() as db:
        db.execute(sa.text(statement))
    assert kept(world) == before


def test_a_number_cannot_be_skipped_or_a_stretch_be_left_out(world):
    world.node().use(at_us=at("2026-11-16T01"))
    world.send()
    world.clock("2026-12-01T00")
    world.issue()
    for number in (1, 3):
        with (
            pytest.raises(BillingError, match="one after the other"),
            world.books.database.writing() as db,
        ):
            db.execute(
                sa.text(
                    "INSERT INTO invoice (tenant, number, period, currency, total_micro, issued_us,"
                    " issued_by, sha256, body) VALUES ('acme', :n, 'p', 'CNY', 0, 0, 'x', :d, '')"
                ),
                {"n": number, "d": b"d" * 32},
            )
    for first in (1, 2, 4):
        with (
            pytest.raises(BillingError, match="begins where the one before ended"),
            world.books.database.writing() as db,
        ):
            db.execute(
                sa.text(
                    "INSERT INTO invoice_ledger (ledger_id, number, first_seq, last_seq)"
                    " VALUES (1, 2, :f, 9)"
                ),
                {"f": first},
            )


def test_months_are_issued_one_after_the_other(lite):
    node = lite.node()
    node.use(at_us=at("2026-09-16T01"))
    node.send()
    lite.clock("2026-12-05T00")
    with pytest.raises(BillingError, match=r"begin in 2026-09: issue that month first.*--opening"):
        lite.issue(OCTOBER)
    lite.issue(SEPTEMBER)
    with pytest.raises(BillingError, match="2026-10 comes before 2026-11"):
        lite.issue(NOVEMBER)
    lite.issue(OCTOBER)
    assert [head.id for head in lite.invoices.listed("acme")] == ["acme-000001", "acme-000002"]
    lite.issue(NOVEMBER)
    with pytest.raises(BillingError, match="2026-12 is not over"):
        lite.issue(DECEMBER)
    with pytest.raises(BillingError, match="is closed"):
        lite.draft(NOVEMBER)


def test_books_may_open_with_a_month_and_bill_all_before_it_as_late_use(lite):
    node = lite.node()
    dawn = at("1970-01-01T00")  # A board without a battery.
    node.settle(node.intent(at_us=dawn), at_us=dawn, cost=CHEAPER)
    node.use(at_us=at("2026-11-16T01"))
    node.send()
    lite.clock("2026-12-01T00")
    invoice = lite.issue(opening=True)
    assert {(line.why, line.month) for line in invoice.lines} == {
        ("late", "1970-01"),
        ("usage", "2026-11"),
    }


def test_a_preview_leaves_open_months_to_their_own_invoices(lite):
    node = lite.node()
    node.use(at_us=at("2026-10-16T01"))
    node.lose(at_us=at("2026-10-16T02"))
    cost = node.use(at_us=at("2026-11-16T01"))
    node.send()
    preview = lite.draft(currency=None)
    assert {(line.why, line.month) for line in preview.lines} == {("usage", "2026-11")}
    assert recorded_pico(preview.lines) == {"CNY": cost.pico}
    assert [one.state for one in preview.beside] == ["indeterminate"]  # It is held still.
    assert lite.draft(DECEMBER, currency=None).lines == ()
    assert recorded_pico(lite.draft(OCTOBER, currency=None).lines) == {"CNY": cost.pico}


def test_each_invoice_holds_the_hash_of_the_one_before(lite):
    for number, period in enumerate((OCTOBER, NOVEMBER), start=10):
        lite.node().use(at_us=period.from_us)
        lite.send()
        lite.clock(f"2026-{number + 1}-01T00")
        lite.issue(period)
    first, second = (lite.invoices.invoice("acme", number) for number in (1, 2))
    assert first.previous_sha256 == ""
    assert second.previous_sha256 == invoice_sha256(encode_invoice(first))


def test_a_currency_without_a_rate_stops_the_invoice_and_not_the_books(lite):
    lite.node().use(at_us=at("2026-11-16T01"))
    lite.node().use(at_us=at("2026-11-16T02"), provider="openai")
    lite.send()
    lite.clock("2026-12-01T00")
    with pytest.raises(BillingError, match="state what one USD is"):
        lite.issue()
    with pytest.raises(BillingError, match="name the invoice's with --currency"):
        lite.issue(currency=None)
    assert kept(lite) == []
    assert lite.issue(exchange=(USD,)).number == 1


def test_without_a_currency_asked_for_the_only_one_there_is_is_taken(lite):
    lite.node().use(at_us=at("2026-11-16T01"), provider="openai")
    lite.send()
    lite.clock("2026-12-01T00")
    assert lite.issue(currency=None).currency == "USD"


def test_an_invoice_needs_its_price_book(lite):
    lite.clock("2026-12-01T00")
    with pytest.raises(BillingError, match="--prices"):
        lite.issue(rates=None)


def test_two_who_issue_at_once_make_one_invoice(world):
    for hour in range(4):
        world.node().use(at_us=at(f"2026-11-16T0{hour}"))
    world.send()
    world.clock("2026-12-01T00")
    start, made, refused = threading.Barrier(2), [], []

    def issue():
        start.wait(10)
        try:
            made.append(world.invoices.issue("acme", NOVEMBER, world.terms(), by="test").invoice)
        except BillingError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=issue) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) + len(refused) == 2
    assert all("issued meanwhile" in words for words in refused)
    assert len(kept(world)) == 1
    assert {invoice_sha256(encode_invoice(one)) for one in made} == {kept(world)[0][2].hex()}


def test_tenants_have_numbers_of_their_own(lite):
    lite.node().use(at_us=at("2026-11-16T01"))
    lite.send()
    lite.clock("2026-12-01T00")
    lite.issue()
    other = lite.invoices.issue("other", NOVEMBER, lite.terms(), by="test").invoice
    assert (other.id, other.lines) == ("other-000001", ())


def test_c5_a_batch_that_comes_twice_is_billed_once(lite):
    node = lite.node()
    cost = node.use(at_us=at("2026-11-16T01"))
    node.send()
    node.sent = 0
    node.send()
    lite.clock("2026-12-01T00")
    assert recorded_pico(lite.issue().lines) == {"CNY": cost.pico}


def test_d10_what_is_not_known_stands_beside_the_total_and_never_in_it(lite):
    node = lite.node()
    node.use(at_us=at("2026-11-16T01"))
    node.lose(at_us=at("2026-11-16T02"))
    node.intent(at_us=at("2026-11-16T03"))
    node.settle(node.intent(at_us=at("2026-11-16T04")), at_us=at("2026-11-16T04"), cost=None)
    node.refuse(at_us=at("2026-11-16T05"))
    node.send()
    lite.clock("2026-12-01T00")
    invoice = lite.issue()
    assert [(one.state, one.attempts, one.hold_pico) for one in invoice.beside] == [
        ("indeterminate", 1, 9_000_000_000),
        ("intent", 1, 9_000_000_000),
        ("unpriced", 1, 9_000_000_000),
    ]
    text = invoice_text(invoice, issued=True)
    for words in ("1 attempt indeterminate", "1 attempt on the way", "Unpriced, not billed: 1"):
        assert words in text
    assert recorded_pico(invoice.lines) == lite.recorded()

    node.settle(node.intent(at_us=at("2026-12-02T04")), at_us=at("2026-12-02T04"))
    node.send()
    lite.clock("2027-01-01T00")
    assert lite.issue(DECEMBER).beside == invoice.beside  # It is still so.


def test_the_papers_fit_a_terminal_and_a_program(lite):
    node = lite.node("Q" * 64)
    node.use(at_us=at("2026-11-16T01"))
    lite.send()
    lite.clock("2026-12-01T00")
    preview = invoice_text(lite.draft(currency=None))
    assert preview.startswith("Invoice of acme for 2026-11 (UTC), preview\n")
    invoice = lite.issue()
    text = invoice_text(invoice, issued=True)
    assert max(len(line) for line in text.splitlines()) <= COLUMNS
    assert text.startswith("Invoice acme-000001 to acme for 2026-11 (UTC), issued 2026-12-01")
    assert f"Total: 0.00{invoice.total_micro} CNY" in text
    value = json.loads(json.dumps(invoice_json(invoice, issued=True)))
    assert value["total_micro"] == {"CNY": invoice.total_micro}
    assert value["lines"][0]["cost_pico"] == invoice.lines[0].list_pico
    assert "acme-000001" in invoices_text(lite.invoices.listed("acme"))
    assert invoices_text(()) == "No invoice was issued yet."


def test_a_document_that_was_changed_in_the_database_is_not_shown(tmp_path):
    lite = PaperWorld(f"sqlite:///{tmp_path}/billing.db")
    lite.node().use(at_us=at("2026-11-16T01"))
    lite.send()
    lite.clock("2026-12-01T00")
    lite.issue()
    with lite.books.database.writing() as db:
        db.execute(sa.text("DROP TRIGGER invoice_no_update"))
        db.execute(sa.text("UPDATE invoice SET body = replace(body, 'acme', 'axme')"))
        db.commit()
    with pytest.raises(BillingError, match="was changed in the database"):
        lite.invoices.invoice("acme", 1)
    lite.close()


# Verification, offline, against ledgers and documents that were tampered with.


@pytest.fixture
def issued(lite, tmp_path):
    """An invoice of two nodes, and the exports of their ledgers."""
    for hour in range(3):
        lite.node("node-1").use(at_us=at(f"2026-11-16T0{hour}"))
        lite.node("node-2").use(at_us=at(f"2026-11-21T0{hour}"), centre=PAINT)
    lite.send()
    lite.clock("2026-12-01T00")
    invoice = lite.issue()
    (tmp_path / "x").mkdir()
    exports = [node.export(tmp_path / "x") for node in lite.nodes.values()]
    assert verify_invoice(invoice, exports, lite.rates).verified
    return lite, invoice, exports


def entry_lines(path):
    return path.read_text().splitlines(keepends=True)


def test_an_entry_that_was_changed_is_named(issued):
    lite, invoice, exports = issued
    lines = entry_lines(exports[0])
    lines[4] = lines[4].replace('\\"text\\":800', '\\"text\\":801')
    assert '\\"text\\":801' in lines[4]
    exports[0].write_text("".join(lines))
    found = verify_invoice(invoice, exports, lite.rates)
    assert "epoch epoch-of-node-1: entry 4 does not hang on the one before it" in found.problems[0]


def test_a_tail_that_was_cut_off_is_named(issued):
    lite, invoice, exports = issued
    exports[1].write_text("".join(entry_lines(exports[1])[:-1]))
    found = verify_invoice(invoice, exports, lite.rates)
    assert "the export ends at entry 5, the invoice covers up to 6" in found.problems[0]
    assert any(problem.startswith("total: ") for problem in found.problems)


def test_another_history_of_the_same_length_does_not_have_the_tree_hash(issued):
    lite, invoice, exports = issued
    other = PaperWorld(f"sqlite:///{exports[0].parent}/other.db")
    for hour in range(3):
        other.node("node-1").use(at_us=at(f"2026-11-16T0{hour}"), centre=PAINT)
    forged = other.node("node-1").export(exports[0].parent)
    other.close()
    found = verify_invoice(invoice, [forged, exports[1]], lite.rates)
    assert any("the tree hash over entries 1 to 6" in problem for problem in found.problems)
    assert any("nothing in the ledgers makes this line" in one for one in found.problems)
    assert any(one.startswith("missing line") for one in found.problems)


def test_an_export_that_was_not_given_is_named(issued):
    lite, invoice, exports = issued
    found = verify_invoice(invoice, exports[:1], lite.rates)
    assert "node-2, epoch epoch-of-node-2: no export of this ledger was given" in found.problems


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": 1}, "tokens 1, worked out"),
        ({"attempts": 9}, "attempts 9, worked out 3"),
        ({"list_pico": 5}, "list cost"),
        ({"amount_micro": 5}, "amount 0.000005, worked out"),
        ({"discount_bp": 5}, "terms"),
        ({"rate_micro": 5}, "rate 5, worked out 1000000"),
        ({"function": "other"}, "nothing in the ledgers makes this line"),
    ],
)
def test_a_line_that_was_changed_is_named(issued, change, says):
    lite, invoice, exports = issued
    lines = list(invoice.lines)
    lines[2] = replace(lines[2], **change)
    found = verify_invoice(replace(invoice, lines=tuple(lines)), exports, lite.rates)
    assert not found.verified
    assert any(problem.startswith("line 3 ") and says in problem for problem in found.problems)


def test_a_total_that_is_not_the_sum_is_named(issued):
    lite, invoice, exports = issued
    found = verify_invoice(replace(invoice, total_micro=1), exports, lite.rates)
    assert found.problems[0].startswith("total: 0.000001 CNY, worked out")


def test_another_price_book_is_named_and_so_is_each_entry_it_prices_otherwise(issued):
    _, invoice, exports = issued
    other = BookRates(PriceBook([*rows("deepseek", times=3)]))
    found = verify_invoice(invoice, exports, other)
    assert found.problems[0].startswith("price book: the invoice names ")
    assert any("entry 2 was recorded at" in problem for problem in found.problems)


def test_a_file_that_is_no_export_is_refused(issued, tmp_path):
    lite, invoice, _ = issued
    (tmp_path / "no.jsonl").write_text("{}\n")
    with pytest.raises(BillingError, match="no ledger export"):
        verify_invoice(invoice, [tmp_path / "no.jsonl"], lite.rates)
    with pytest.raises(BillingError, match="no issued invoice"):
        decode_invoice(b"{}")


# Every entry on exactly one invoice, whatever comes when.

MONTHS = [SEPTEMBER, OCTOBER, NOVEMBER, DECEMBER]
STEPS = st.one_of(
    st.tuples(st.just("use"), st.integers(0, 2), st.integers(0, 50)),
    st.tuples(st.just("dollars"), st.integers(0, 2), st.integers(0, 50)),
    st.tuples(st.just("lose"), st.integers(0, 2), st.integers(0, 50)),
    st.tuples(st.just("adjust"), st.integers(0, 2), st.integers(0, 9)),
    st.tuples(st.just("decide"), st.integers(0, 2), st.integers(0, 9)),
    st.tuples(st.just("send"), st.integers(0, 2), st.integers(1, 9)),
    st.tuples(st.just("wait"), st.integers(1, 20), st.just(0)),
    st.tuples(st.just("issue"), st.just(0), st.just(0)),
)


class History:
    """Nodes that use, lose, adjust and send; a server that decides and issues; in any order."""

    def __init__(self, url):
        self.world = PaperWorld(url, now="2026-09-02T00")
        self.settled = [[] for _ in range(3)]
        self.lost = [[] for _ in range(3)]
        self.waiting = [[] for _ in range(3)]
        self.issued = []

    def node(self, number):
        return self.world.node(f"node-{number}")

    def now_us(self, days_ago=0):
        return int(self.world.now.timestamp() - days_ago * 86_400) * 10**6

    def do(self, step):
        verb, one, two = step
        getattr(self, verb)(one, two)

    def use(self, number, days_ago, provider="deepseek"):
        node = self.node(number)
        attempt = node.intent(at_us=self.now_us(days_ago), provider=provider)
        cost = node.settle(attempt, at_us=self.now_us(days_ago))
        self.settled[number].append([attempt.id, cost])

    def dollars(self, number, days_ago):
        self.use(number, days_ago, provider="openai")

    def lose(self, number, days_ago):
        self.lost[number].append(self.node(number).lose(at_us=self.now_us(days_ago)).id)

    def adjust(self, number, which):
        if self.settled[number]:
            one = self.settled[number][which % len(self.settled[number])]
            after = replace(one[1], pico=one[1].pico // 2)
            self.node(number).write(
                Adjusted(attempt_id=one[0], before=one[1], after=after, reason="r"),
                at_us=self.now_us(),
            )
            one[1] = after

    def decide(self, number, which):
        node = self.node(number)
        known = {row.subject for row in self._stored(node, "indeterminate")}
        open_ones = [one for one in self.lost[number] if one in known]
        if open_ones:
            attempt_id = open_ones[which % len(open_ones)]
            self.lost[number].remove(attempt_id)
            fact = Reconciled(
                attempt_id=attempt_id,
                usage=USAGE,
                cost=Cost(currency="CNY", pico=10**9 + which, rows=()),
                source="s",
                source_sha256="ab" * 32,
            )
            self.world.resolutions.resolve(node.ledger, [fact], by="test")
            self.waiting[number].append(fact)

    def _stored(self, node, kind):
        with self.world.books.database.reading() as db:
            return db.execute(
                sa.text(
                    "SELECT subject FROM entry JOIN ledger ON ledger.id = ledger_id"
                    " WHERE node = :n AND kind = :k"
                ),
                {"n": node.name, "k": kind},
            ).all()

    def send(self, number, count):
        node = self.node(number)
        if self.waiting[number]:  # The receipt brings a decision, and the node writes it down.
            node.write(self.waiting[number].pop(0), at_us=self.now_us())
        node.send(count)

    def wait(self, days, _):
        self.world.now = from_us(self.now_us(-days)).replace(tzinfo=self.world.now.tzinfo)

    def issue(self, *_):
        period = MONTHS[len(self.issued)] if len(self.issued) < len(MONTHS) else None
        if period is not None and self.now_us() >= period.to_us:
            self.issued.append(self.world.issue(period, exchange=(USD,), opening=True))

    def finish(self):
        # What was decided and not written down by a node yet is on an invoice all the same.
        for number in range(3):
            self.node(number).send()
        self.world.clock("2027-01-02T00")
        while len(self.issued) < len(MONTHS):
            self.issue()


@pytest.fixture(scope="module")
def empty_books(tmp_path_factory):
    """A database with its schema, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "billing.db"
    PaperWorld(f"sqlite:///{path}").close()
    return path


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(STEPS, min_size=5, max_size=60))
def test_d5_every_entry_is_billed_exactly_once_whatever_comes_when(
    steps, empty_books, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("history")
    shutil.copy(empty_books, folder / "billing.db")
    history = History(f"sqlite:///{folder}/billing.db")
    try:
        for step in steps:
            history.do(step)
        history.finish()

        billed = {}
        covered = {}
        for invoice in history.issued:
            for currency, pico in recorded_pico(invoice.lines).items():
                billed[currency] = billed.get(currency, 0) + pico
            for ledger in invoice.ledgers:
                assert ledger.first_seq == covered.get(ledger.epoch, 0) + 1
                covered[ledger.epoch] = ledger.last_seq
            assert invoice == history.world.invoices.invoice("acme", invoice.number)
            assert history.world.verify(invoice, folder / "x").problems == []
        assert {name: pico for name, pico in billed.items() if pico} == {
            name: pico for name, pico in history.world.recorded().items() if pico
        }
        assert covered == {
            node.epoch: len(node.entries) for node in history.world.nodes.values() if node.entries
        }
    finally:
        history.world.close()
        shutil.rmtree(folder)


def test_a_ledger_nobody_knows_has_no_decisions(lite):
    with pytest.raises(BillingError, match="no entries of"):
        lite.resolutions.resolve(LedgerName(tenant="a", node="b", epoch="c"), [], by="test")
