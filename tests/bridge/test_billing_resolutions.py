"""What the server decides about attempts: its money moves once, whoever writes it down when."""

from dataclasses import replace

import pytest

from qcbridge.billing.audit import changes
from qcbridge.billing.resolutions import LedgerName
from qcnode.errors import BillingError
from qcnode.money import Cost
from tests.bridge.books import Books
from tests.bridge.ledgers import (
    COST,
    HOLD,
    NOW,
    USAGE,
    adjusted,
    batch_of,
    indeterminate,
    intent,
    reconciled,
    settled,
    write,
    written_off,
)

LEDGER = LedgerName(tenant="acme", node="node-1", epoch="epoch-1")
OPEN = [intent("a1"), indeterminate("a1"), intent("a2"), settled("a2", cost=None)]


def test_a_decision_moves_its_money_at_once_and_goes_out_until_the_node_repeats_it(books):
    entries = write(OPEN)
    assert books.ingest(batch_of(entries)).resolutions == ()
    found = [reconciled("a1"), written_off("a2")]

    books.resolutions.resolve(LEDGER, found, by="reconciliation")

    decided = books.reports.totals("acme")
    assert (decided.cost_pico, decided.held_pico) == ({"CNY": COST.pico}, {})
    assert decided.written_off_pico == {"CNY": HOLD.pico}
    assert (decided.reconciled, decided.written_off, decided.indeterminate) == (1, 1, 0)
    assert decided.usage == USAGE + USAGE  # Counted once each: a2's when it was settled.
    for _ in range(2):  # However often a receipt is lost.
        assert books.ingest(batch_of(entries)).resolutions == tuple(found)

    entries = write(found[:1], after=entries)
    assert books.ingest(batch_of(entries)).resolutions == (found[1],)
    entries = write(found[1:], after=entries)
    receipt = books.ingest(batch_of(entries))

    assert (receipt.resolutions, receipt.quarantined) == ((), ())
    again = books.reports.totals("acme")
    assert replace(again, entries=decided.entries, ledgers=decided.ledgers) == decided


@pytest.mark.parametrize("decides", ["server", "node"])
def test_whoever_decides_first_the_books_end_the_same(tmp_path, decides):
    books = Books(f"sqlite:///{tmp_path}/{decides}.db").open()
    entries = write(OPEN)
    books.ingest(batch_of(entries))
    facts = [reconciled("a1"), reconciled("a2"), adjusted("a1", after=replace(COST, pico=5))]
    if decides == "server":
        books.resolutions.resolve(LEDGER, facts, by="jo")
    assert books.ingest(batch_of(write(facts, after=entries))).quarantined == ()

    totals = books.reports.totals("acme")
    assert totals.cost_pico == {"CNY": COST.pico + 5}
    assert (totals.reconciled, totals.held_pico) == (2, {})
    assert totals.usage == USAGE + USAGE
    books.close()


def test_a_node_that_decided_otherwise_meanwhile_waits_for_a_person(sqlite_books):
    entries = write(OPEN)
    sqlite_books.ingest(batch_of(entries))
    sqlite_books.resolutions.resolve(LEDGER, [reconciled("a1")], by="jo")

    receipt = sqlite_books.ingest(batch_of(write([written_off("a1")], after=entries)))

    assert receipt.quarantined == (5,)
    assert receipt.resolutions == (reconciled("a1"),)
    totals = sqlite_books.reports.totals("acme")
    assert (totals.cost_pico, totals.written_off_pico) == ({"CNY": COST.pico}, {})


def test_a_further_step_of_the_node_goes_on_from_the_servers_decision(sqlite_books):
    entries = write(OPEN)
    sqlite_books.ingest(batch_of(entries))
    sqlite_books.resolutions.resolve(LEDGER, [reconciled("a1")], by="jo")
    later = [reconciled("a1"), adjusted("a1", after=replace(COST, pico=9))]
    sqlite_books.ingest(batch_of(write(later, after=entries)))
    assert sqlite_books.reports.totals("acme").cost_pico == {"CNY": 9}


@pytest.mark.parametrize(
    ("fact", "says"),
    [
        (reconciled("nobody"), "is not open"),
        (adjusted("a1"), "has no cost to adjust"),
        (reconciled("a1", cost=Cost(currency="CNY", pico=-1, rows=())), "never negative"),
    ],
)
def test_what_cannot_be_said_of_an_attempt_is_refused_with_all_that_came_with_it(
    sqlite_books, fact, says
):
    sqlite_books.ingest(batch_of(write(OPEN)))
    before = sqlite_books.reports.totals("acme")
    with pytest.raises(BillingError, match=says):
        sqlite_books.resolutions.resolve(LEDGER, [reconciled("a2"), fact], by="jo")
    with pytest.raises(BillingError, match="no entries of"):
        sqlite_books.resolutions.resolve(replace(LEDGER, node="none"), [fact], by="jo")
    assert sqlite_books.reports.totals("acme") == before


def test_every_decision_is_in_the_audit_trail_with_who_made_it(sqlite_books):
    sqlite_books.ingest(batch_of(write([*OPEN, settled("ghost")])))
    sqlite_books.resolutions.resolve(LEDGER, [reconciled("a1")], by="jo")
    [change] = changes(sqlite_books.database, limit=10)[:1]
    assert (change.who, change.action, change.tenant) == ("jo", "resolve", "acme")
    assert change.what["fact"]["attempt_id"] == "a1"
    assert change.at_us == int(NOW.timestamp() * 1_000_000)
