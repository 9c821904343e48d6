"""Entries that no money moves by until a person has looked, and the ones behind them."""

from dataclasses import replace

import msgspec
import pytest

from qcbridge.billing import postings
from qcbridge.billing.resolutions import LedgerName
from qcnode.books import chain
from qcnode.errors import BillingError
from tests.bridge.ledgers import (
    AT_US,
    COST,
    HOLD,
    adjusted,
    batch_of,
    indeterminate,
    intent,
    not_billed,
    reconciled,
    reserved,
    rewrite,
    settled,
    write,
    written_off,
)

LEDGER = LedgerName(tenant="acme", node="node-1", epoch="epoch-1")


def _poison(spoil):
    """A ledger whose second entry is spoilt, and three good ones after it."""
    good, bad = write([intent("a1"), settled("a1")])
    spoilt = rewrite(bad, spoil(bad.body))
    return write([intent("a2"), settled("a2"), intent("a3")], after=[good, spoilt])


def _swap(before, after):
    def spoil(body):
        assert before in body
        return body.replace(before, after)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_swap(b'"cache_write":0', b'"cache_write":-1'), "never negative"),
        (_swap(b'"cache_write":0', b'"cache_write":0.5'), "no fact"),
        (_swap(b'"cache_write":0', b'"cache_write":99999999999'), "tokens in one request"),
        (_swap(b'"output":50', b'"output":true'), "no fact"),
        (_swap(b'"pico":1234567', b'"pico":-1'), "an amount is -1"),
        (
            _swap(b'"pico":1234567', b'"pico":9223372036854775807'),
            "an amount is 9223372036854775807",
        ),
        (_swap(b'"pico":1234567', b'"pico":99999999999999999999999'), "an amount is 9999"),
        (_swap(b'"pico":1234567', b'"pico":"7"'), "no fact"),
        (_swap(b'"attempt_id":"a1"', b'"attempt_id":"\\u0000"'), "can be printed"),
        (_swap(b'"attempt_id":"a1"', b'"attempt_id":""'), "1 to 200 characters"),
        (_swap(b'"attempt_id":"a1"', b'"attempt_id":"' + b"a" * 201 + b'"'), "1 to 200"),
        (_swap(b'"currency":"CNY"', '"currency":"C\u202eNY"'.encode()), "can be printed"),
        (_swap(b'"http_status":200', b'"http_status":200,"tip":1'), "canonical"),
        (_swap(b'"rated_at_us":1794787200000000', b'"rated_at_us":-5'), "rated at -5"),
        (_swap(b",", b", "), "canonical"),
        (_swap(b'"v":2', b'"v":3'), "written by a newer qcnode (version 3"),
        (_swap(b'"kind":"settled"', b'"kind":"refunded"'), "refunded"),
        (_swap(b'"at_us":1794787202000000', b'"at_us":-1'), "no instant"),
        (_swap(b'"at_us":1794787202000000', b'"at_us":99999999999999999999'), "no instant"),
        (lambda _body: b"this is not JSON at all", "no fact"),
        (lambda _body: b"", "no fact"),
        (lambda _body: b"[" * 50_000, "no fact"),
        (_swap(b'"raw_usage":"', b'"raw_usage":"' + b"x" * 70_000), "bytes, more than 65536"),
    ],
)
def test_a_poisoned_entry_is_stored_by_its_hash_and_the_queue_goes_on(sqlite_books, spoil, says):
    entries = _poison(spoil)

    receipt = sqlite_books.ingest(batch_of(entries))

    assert (receipt.acked_seq, receipt.problem) == (5, None)
    assert receipt.head_hash == entries[-1].hash.hex()
    assert receipt.quarantined == (2,)
    totals = sqlite_books.reports.totals("acme")
    assert (totals.entries, totals.quarantined, totals.settled, totals.open) == (5, 1, 1, 2)
    assert totals.cost_pico == {"CNY": COST.pico}  # Of a2 alone.
    assert totals.held_pico == {"CNY": 2 * HOLD.pico}  # a1 was never settled.
    [held] = sqlite_books.resolutions.quarantined(limit=10)
    assert (held.ledger, held.seq, held.hash) == (LEDGER, 2, entries[1].hash)
    assert says in held.why
    assert held.why.isprintable()
    assert held.body.encode() == entries[1].body
    assert sqlite_books.ingest(batch_of(entries)) == receipt  # It is no other when it comes again.


def test_poison_is_kept_the_same_on_every_database(books):
    entries = _poison(lambda _body: "größer als {Ω}, and no JSON".encode())
    assert books.ingest(batch_of(entries)).quarantined == (2,)
    [held] = books.resolutions.quarantined("acme", limit=10)
    assert (held.kind, held.at_us, held.body.encode()) == ("unreadable", None, entries[1].body)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ([settled("ghost")], "is not open"),
        ([intent("a1"), settled("a1"), settled("a1")], "its outcome is on record already"),
        ([intent("a1"), indeterminate("a1"), settled("a1")], "on record already (indeterminate)"),
        ([intent("a1"), settled("a1"), intent("a1")], "has its intent on record already"),
        ([reserved("a1"), reserved("a1")], "is on record already"),
        ([reserved("a1"), settled("a1")], "is not open"),
        ([reserved("a1"), intent("a1", model="dearer")], "not what was reserved for"),
        ([intent("a1"), settled("a1"), reconciled("a1")], "has a known cost"),
        ([intent("a1"), settled("a1"), written_off("a1")], "cannot be written off"),
        ([intent("a1"), not_billed("a1"), adjusted("a1")], "has no cost to adjust"),
        (
            [intent("a1"), settled("a1"), adjusted("a1", before=replace(COST, pico=5))],
            "as is said",
        ),
        (
            [intent("a1"), indeterminate("a1", hold=replace(HOLD, currency="USD"))],
            "another currency",
        ),
    ],
)
def test_an_entry_that_makes_no_sense_stays_in_the_chain_and_moves_no_money(books, facts, says):
    entries = write(facts)
    books.ingest(batch_of(entries[:-1])) if len(entries) > 1 else None
    before = books.reports.totals("acme")

    receipt = books.ingest(batch_of(entries[-1:]))

    assert (receipt.acked_seq, receipt.problem) == (len(entries), None)
    assert receipt.quarantined == (len(entries),)
    [held] = books.resolutions.quarantined(limit=10)
    assert says in held.why
    totals = books.reports.totals("acme")
    assert totals.quarantined == 1
    assert totals.cost_pico == before.cost_pico
    assert totals.held_pico == before.held_pico


def test_what_a_newer_server_understands_can_be_released_and_moves_its_money_then(
    books, monkeypatch
):
    entries = write([reserved("a1"), intent("a1"), settled("a1")])
    with monkeypatch.context() as older:
        older.setattr(postings, "TOKENS_MAX", 10)
        assert books.ingest(batch_of(entries)).quarantined == (1, 2, 3)
    assert books.reports.totals("acme").cost_pico == {}

    for seq in (1, 2, 3):
        books.resolutions.release(LEDGER, seq, by="jo")

    totals = books.reports.totals("acme")
    assert (totals.cost_pico, totals.held_pico) == ({"CNY": COST.pico}, {})
    assert (totals.quarantined, totals.settled) == (0, 1)
    assert books.resolutions.quarantined(limit=10) == ()
    receipt = books.ingest(batch_of(entries))
    assert (receipt.quarantined, receipt.resolutions) == ((), ())
    with pytest.raises(BillingError, match="entry 3 is not in quarantine"):
        books.resolutions.release(LEDGER, 3, by="jo")


def test_what_still_makes_no_sense_is_not_released(sqlite_books):
    entries = write([intent("a1"), settled("ghost")])
    sqlite_books.ingest(batch_of(entries))
    with pytest.raises(BillingError, match="entry 2 still makes no sense"):
        sqlite_books.resolutions.release(LEDGER, 2, by="jo")
    unread = rewrite(entries[1], b"nothing")
    other = replace(LEDGER, node="node-2")
    sqlite_books.ingest(batch_of([entries[0], unread], node="node-2"))
    with pytest.raises(BillingError, match="entry 2 still cannot be understood"):
        sqlite_books.resolutions.release(other, 2, by="jo")
    assert sqlite_books.reports.totals("acme").quarantined == 2


def test_what_follows_a_released_entry_goes_on_from_it(sqlite_books, monkeypatch):
    entries = write([intent("a1"), settled("a1"), adjusted("a1", after=replace(COST, pico=7))])
    with monkeypatch.context() as older:
        older.setattr(postings, "TOKENS_MAX", 10)
        sqlite_books.ingest(batch_of(entries[:2]))
    sqlite_books.resolutions.release(LEDGER, 1, by="jo")
    sqlite_books.resolutions.release(LEDGER, 2, by="jo")

    assert sqlite_books.ingest(batch_of(entries)).quarantined == ()

    assert sqlite_books.reports.totals("acme").cost_pico == {"CNY": 7}


def test_a_body_of_version_1_is_read_for_good(sqlite_books):
    """Version 1 wrote totals, and is hashed as it was written."""
    usage = {
        "input_tokens": 1000,
        "output_tokens": 50,
        "cache_read_tokens": 200,
        "image_tokens": 700,
        "reasoning_tokens": 0,
    }
    attempt = {"id": "a1", "escalation_id": "e", "number": 1, "provider": "p", "model": "m"}
    fact = {
        "attempt": attempt,
        "worst": usage,
        "hold": {"currency": "CNY", "pico": 9, "rows": ["in"]},
        "request_sha256": "00",
        "request_bytes": 1,
        "image_sha256": None,
    }
    [entry] = write([intent("a1")])
    body = chain.canonical({"kind": "intent", "at_us": AT_US, "fact": fact})
    assert msgspec.json.decode(body)["kind"] == "intent"
    receipt = sqlite_books.ingest(batch_of([rewrite(entry, body)]))
    assert receipt.quarantined == ()
    assert sqlite_books.reports.totals("acme").held_pico == {"CNY": 9}
