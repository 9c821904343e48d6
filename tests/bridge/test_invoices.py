import json
import random
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcbridge.billing.invoices import (
    BillEntry,
    format_micro,
    format_pico,
    from_us,
    make_invoice,
    month,
    month_of,
    round_to_micro,
    to_json,
    to_us,
)
from qcbridge.billing.papers import COLUMNS, invoice_text
from qcnode.errors import BillingError, UnpricedError
from qcnode.money import Cost, TokenUsage
from tests.bridge.ledgers import AT_US, COST, HOLD, USAGE

NOVEMBER = month("2026-11")


def entry(seq=2, **changes):
    made = BillEntry(
        node="node-1",
        epoch="epoch-1",
        seq=seq,
        kind="settled",
        at_us=AT_US,
        attempt_id=f"a{seq}",
        provider="scripted",
        model="vlm-1",
        usage=USAGE,
        cost=COST,
        rated_us=AT_US,
        hold=None,
        closed=False,
        dispute=None,
    )
    return replace(made, **changes)


def held(seq, **changes):
    return entry(seq, kind="indeterminate", usage=None, cost=None, hold=HOLD, **changes)


def invoice_of(*entries, prices=None):
    return make_invoice("acme", NOVEMBER, entries, prices=prices)


def test_a_line_gathers_what_one_node_used_at_one_price():
    invoice = invoice_of(entry(2), entry(4), entry(6, node="node-2"), entry(8, model="vlm-2"))

    assert [(line.node, line.model, line.attempts) for line in invoice.lines] == [
        ("node-1", "vlm-1", 2),
        ("node-1", "vlm-2", 1),
        ("node-2", "vlm-1", 1),
    ]
    first = invoice.lines[0]
    assert first.cost_pico == 2 * COST.pico
    assert first.usage == TokenUsage.divide(
        input_tokens=2_000, output_tokens=100, cache_read=400, image=1_400
    )


def test_use_at_another_price_row_is_another_line():
    night = replace(COST, rows=("in-night", "out"))
    assert len(invoice_of(entry(2), entry(4, cost=night)).lines) == 2


@pytest.mark.parametrize(
    ("pico", "micro"),
    [
        (0, 0),
        (499_999, 0),
        (500_000, 0),  # a half goes to the even neighbour
        (500_001, 1),
        (1_500_000, 2),
        (2_500_000, 2),
        (2_500_001, 3),
    ],
)
def test_a_half_micro_unit_goes_to_the_even_neighbour(pico, micro):
    assert round_to_micro(pico) == micro


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_a_line_is_rounded_once_whatever_the_order_of_its_entries(amounts, order):
    entries = [entry(n, cost=replace(COST, pico=pico)) for n, pico in enumerate(amounts)]
    shuffled = random.Random(order.random()).sample(entries, len(entries))

    [line] = invoice_of(*shuffled).lines

    assert line.cost_pico == sum(amounts)
    assert line.amount_micro == round(Fraction(sum(amounts), 1_000_000))  # half to even, too
    assert invoice_of(*entries).lines == (line,)


def test_the_total_is_the_sum_of_the_lines_as_they_stand():
    half = replace(COST, pico=500_001)
    invoice = invoice_of(entry(2, cost=half), entry(4, cost=half, node="node-2"))
    assert [line.amount_micro for line in invoice.lines] == [1, 1]
    assert invoice.total_micro == {"CNY": 2}


def test_currencies_have_totals_of_their_own():
    dollars = Cost(currency="USD", pico=3_000_000, rows=("in", "out"))
    invoice = invoice_of(entry(2), entry(4, cost=dollars))
    assert invoice.total_micro == {"CNY": 1, "USD": 3}


def test_what_is_not_measured_is_shown_and_not_billed():
    invoice = invoice_of(
        entry(2),
        held(4),
        held(6, closed=True),
        entry(8, cost=None),
        entry(10, usage=None, cost=None, dispute="entry 10: a second outcome"),
    )

    assert invoice.total_micro == {"CNY": 1}
    [on_hold] = invoice.held
    assert (on_hold.attempts, on_hold.hold_pico, on_hold.currency) == (1, HOLD.pico, "CNY")
    [blank] = invoice.unpriced
    assert (blank.attempts, blank.usage) == (1, USAGE)
    assert invoice.disputed == ("node-1: entry 10: a second outcome",)
    text = invoice_text(invoice)
    for words in (
        "Held, not billed: 1 attempt of",
        "at most 0.000009 CNY",
        "Unpriced, not billed: 1 attempt of",
    ):
        assert words in text


def test_use_of_the_scripted_provider_is_marked_wherever_it_stands():
    real = {"provider": "vendor"}
    invoice = invoice_of(entry(2), entry(4, **real), held(6), entry(8, cost=None, **real))

    assert [(line.provider, line.scripted) for line in invoice.lines] == [
        ("scripted", True),
        ("vendor", False),
    ]
    assert [line.scripted for line in invoice.held] == [True]
    assert [line.scripted for line in invoice.unpriced] == [False]
    assert (invoice.scripted, invoice.scripted_only) == (True, False)
    assert (invoice.total_micro, invoice.scripted_micro) == ({"CNY": 2}, {"CNY": 1})
    said = "scripted provider: nobody is charged"
    assert "nobody is charged for that part" in invoice_text(invoice).splitlines()[1]
    assert f"Total: 0.000002 CNY (0.000001 CNY of it: {said})" in invoice_text(invoice)


def test_where_every_line_is_scripted_the_invoice_says_so_first_and_else_not_at_all():
    said = "scripted provider: nobody is charged"
    assert invoice_text(invoice_of(held(4))).splitlines()[1] == said
    real = invoice_of(entry(2, provider="vendor"), held(4, provider="vendor"))
    assert (real.scripted, real.scripted_only) == (False, False)
    assert "scripted" not in invoice_text(real)


def test_price_rows_are_notes_below_each_once():
    night = replace(COST, rows=("vendor/vlm-1/input@2026-11-20T00:00:00Z", "out"))
    text = invoice_text(invoice_of(entry(2), entry(4, cost=night))).splitlines()
    assert [line.split()[3:5] for line in text[3:5]] == [["[1]", "[2]"], ["[3]", "[2]"]]
    assert text[-3:] == ["[1] in", "[2] out", "[3] vendor/vlm-1/input@2026-11-20T00:00:00Z"]


def test_an_invoice_fits_a_terminal_whatever_the_names():
    long = {
        "node": "Q" * 64,
        "provider": "a-provider-with-a-rather-long-name",
        "model": "a-model/with-a-long-name-2026-11-20-preview-of-" + "m" * 60,
    }
    cost = replace(COST, rows=("in/" + "r" * 150, "out"))
    text = invoice_text(invoice_of(entry(2, cost=cost, **long), held(4, **long)))
    assert max(len(line) for line in text.splitlines()) <= COLUMNS
    assert text.count("Q") == 2 * 64  # folded, not cut


def test_a_period_holds_its_first_instant_and_not_its_last():
    first, after = NOVEMBER.from_us, NOVEMBER.to_us
    entries = [entry(n, at_us=at) for n, at in enumerate([first - 1, first, after - 1, after])]
    assert invoice_of(*entries).lines[0].attempts == 2


def test_months_run_from_midnight_to_midnight_utc():
    assert from_us(NOVEMBER.from_us) == datetime(2026, 11, 1, tzinfo=UTC)
    assert from_us(NOVEMBER.to_us) == datetime(2026, 12, 1, tzinfo=UTC)
    assert from_us(month("2026-12").to_us) == datetime(2027, 1, 1, tzinfo=UTC)
    assert month_of(from_us(NOVEMBER.to_us - 1)) == NOVEMBER
    assert to_us(from_us(AT_US)) == AT_US


@pytest.mark.parametrize("name", ["", "2026", "2026-13", "2026-11-01", "0000-01", "9999-12", "x"])
def test_what_is_no_month_is_named(name):
    with pytest.raises(BillingError, match="is no month"):
        month(name)


class Book:
    """A price book with one price, from one instant on."""

    def __init__(self, pico, since=0):
        self._pico = pico
        self._since = since

    def price(self, usage, provider, model, at):
        assert (provider, model) == ("scripted", "vlm-1")
        if to_us(at) < self._since:
            raise UnpricedError("no price yet")
        return Cost(currency="CNY", pico=self._pico * usage.output_tokens, rows=("in", "out"))


def test_entries_that_differ_from_the_price_book_are_named_and_billed_as_recorded():
    right = replace(COST, pico=50)
    invoice = invoice_of(entry(2, cost=right), entry(4), entry(6, cost=None), prices=Book(pico=1))

    assert invoice.recomputed
    assert [difference.seq for difference in invoice.differences] == [4, 6]
    assert invoice.differences[0].recorded == COST
    assert invoice.differences[0].recomputed == right
    assert invoice.differing == 2
    assert invoice.lines[0].cost_pico == right.pico + COST.pico
    assert "entry 4: recorded 0.000001234567 CNY, by the book 0.00000000005 CNY" in invoice_text(
        invoice
    )


def test_an_entry_at_a_price_the_book_does_not_know_is_named():
    [difference] = invoice_of(entry(2), prices=Book(pico=1, since=AT_US + 1)).differences
    assert difference.recomputed is None


def test_without_a_price_book_nothing_is_claimed_about_prices():
    invoice = invoice_of(entry(2))
    assert not invoice.recomputed
    assert invoice.differing == 0


def test_a_flood_of_differences_is_counted_and_not_listed():
    invoice = invoice_of(*(entry(n) for n in range(500)), prices=Book(pico=1))
    assert invoice.differing == 500
    assert len(invoice.differences) == 100


@pytest.mark.parametrize(
    ("pico", "text"),
    [
        (0, "0.00"),
        (1, "0.000000000001"),
        (10**12, "1.00"),
        (1_500_000_000_000, "1.50"),
        (-2_500_000_000_000, "-2.50"),
    ],
)
def test_pico_units_are_written_exactly(pico, text):
    assert format_pico(pico) == text


def test_micro_units_are_written_with_six_places():
    assert format_micro(1_000_001) == "1.000001"


def test_an_invoice_travels_as_plain_whole_numbers():
    value = json.loads(json.dumps(to_json(invoice_of(entry(2), held(4)))))
    assert value["total_micro"] == {"CNY": 1}
    assert value["total"] == {"CNY": "0.000001"}
    assert value["period"]["from"] == "2026-11-01T00:00:00+00:00"
    assert value["lines"][0]["cost_pico"] == COST.pico
    assert value["held"][0]["hold_pico"] == HOLD.pico
