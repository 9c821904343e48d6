import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcbridge.billing.invoices import month
from qcbridge.billing.postings import BatchRefusedError
from qcbridge.billing.store import BillingStore, Measured, StoreUnavailableError
from qcbridge.billing.tables import METADATA
from qcnode.books import chain
from qcnode.errors import BillingError
from qcnode.money import Cost, LedgerEntry
from tests.bridge.ledgers import (
    COST,
    HOLD,
    NOW,
    attempts,
    batch_of,
    indeterminate,
    intent,
    not_billed,
    settled,
    write,
)

MONTH = month("2026-11")


def books(store, tenant="acme"):
    """Everything the store says about a tenant, apart from the times it heard of it."""
    totals = asdict(store.totals(tenant))
    for head in totals["ledgers"]:
        del head["last_us"]
    totals.pop("tenant")
    return totals, list(store.entries(tenant, MONTH))


def test_a_batch_is_stored_and_its_receipt_names_the_last_entry(store):
    entries = write([intent(), settled()])

    receipt = store.ingest(batch_of(entries))

    assert receipt.acked_seq == 2
    assert receipt.head_hash == entries[-1].hash.hex()
    assert receipt.problem is None
    totals = store.totals("acme")
    assert (totals.entries, totals.attempts, totals.settled) == (2, 1, 1)
    assert totals.cost_pico == {"CNY": COST.pico}
    assert totals.held_pico == {}
    assert (totals.input_tokens, totals.output_tokens) == (1_000, 50)


def test_the_same_batch_again_changes_nothing_and_gets_the_same_receipt(store):
    batch = batch_of(write(attempts(10)))

    first = store.ingest(batch)
    before = books(store)
    again = store.ingest(batch)  # As after a crash between commit and receipt.

    assert again == first
    assert books(store) == before


def test_what_the_store_knows_survives_its_own_restart(store, database_url):
    entries = write(attempts(10))
    receipt = store.ingest(batch_of(entries[:7]))
    store.close()

    restarted = BillingStore(database_url, now=lambda: NOW)
    restarted.migrate()
    try:
        assert restarted.ingest(batch_of(entries[:7])) == receipt
        assert restarted.ingest(batch_of(entries[5:])).acked_seq == len(entries)
    finally:
        restarted.close()


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_order_of_any_pieces_ends_as_one_run_in_order_does(store, data):
    example = len(store.tenants())
    entries = write(attempts(12))
    straight, jumbled = f"straight-{example}", f"jumbled-{example}"
    store.ingest(batch_of(entries, tenant=straight))

    bounds = st.tuples(st.integers(0, len(entries) - 1), st.integers(1, 8))
    pieces = data.draw(st.lists(bounds, max_size=12))
    acked_seq = 0
    for start, length in pieces:
        receipt = store.ingest(batch_of(entries[start : start + length], tenant=jumbled))
        assert receipt.problem is None
        assert receipt.acked_seq >= acked_seq
        acked_seq = receipt.acked_seq
    while acked_seq < len(entries):  # What every node does until it has its receipt.
        rest = entries[acked_seq : acked_seq + 5]
        acked_seq = store.ingest(batch_of(rest, tenant=jumbled)).acked_seq

    assert books(store, jumbled) == books(store, straight)


def test_a_gap_is_answered_with_the_entry_the_server_has(store):
    entries = write(attempts(5))
    store.ingest(batch_of(entries[:2]))

    receipt = store.ingest(batch_of(entries[4:]))

    assert receipt.acked_seq == 2
    assert receipt.head_hash == entries[1].hash.hex()
    assert receipt.problem is None
    assert store.totals("acme").entries == 2


def test_a_gap_before_the_first_entry_leaves_no_ledger_behind(store):
    receipt = store.ingest(batch_of(write(attempts(5))[3:]))

    assert receipt.acked_seq == 0
    assert receipt.head_hash == chain.genesis("epoch-1").hex()
    assert store.tenants() == ()


@pytest.mark.parametrize("start", [0, 2])  # Other entries under stored numbers; just beyond them.
def test_a_fork_is_refused_named_and_put_on_record(store, start):
    store.ingest(batch_of(write([intent("a1"), settled("a1")])))
    before = books(store)
    fork = write([intent("a1"), not_billed("a1"), intent("a2")])

    receipt = store.ingest(batch_of(fork[start:]))
    store.ingest(batch_of(fork[start:]))

    assert receipt.acked_seq == 2
    assert "epoch" in receipt.problem
    assert books(store) == before
    [refusal] = store.refusals("acme", limit=10)
    assert (refusal.kind, refusal.node, refusal.times) == ("fork", "node-1", 2)


def test_a_new_epoch_of_the_same_node_starts_its_own_chain(store):
    store.ingest(batch_of(write([intent("a1"), settled("a1")])))
    receipt = store.ingest(batch_of(write([intent("a1"), settled("a1")], epoch="epoch-2")))

    assert receipt.acked_seq == 2
    assert store.totals("acme").cost_pico == {"CNY": 2 * COST.pico}


def _with_body(entry, body):
    return replace(entry, body=body, hash=chain.entry_hash(entry.seq, body, entry.prev_hash))


def _body(entry, before, after):
    assert before in entry.body
    return _with_body(entry, entry.body.replace(before, after))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda e: replace(e, body=e.body.replace(b"1234567", b"1234568")), "was changed"),
        (lambda e: replace(e, hash=bytes(32)), "was changed"),
        (lambda e: _body(e, b'"input_tokens":1000', b'"input_tokens":-1'), "no fact"),
        (lambda e: _body(e, b'"input_tokens":1000', b'"input_tokens":1000.5'), "count of tokens"),
        (lambda e: _body(e, b'"input_tokens":1000', b'"input_tokens":99999999999'), "count of"),
        (lambda e: _body(e, b'"output_tokens":50', b'"output_tokens":true'), "count of tokens"),
        (lambda e: _body(e, b'"pico":1234567', b'"pico":-1'), "amount"),
        (lambda e: _body(e, b'"pico":1234567', b'"pico":1e3'), "canonical"),
        (lambda e: _body(e, b'"pico":1234567', b'"pico":"7"'), "amount"),
        (lambda e: _body(e, b'"attempt_id":"a1"', b'"attempt_id":"\\u0000"'), "printed"),
        (lambda e: _body(e, b'"attempt_id":"a1"', b'"attempt_id":""'), "attempt"),
        (lambda e: _body(e, b'"http_status":200', b'"http_status":200,"tip":1'), "no fact"),
        (lambda e: _with_body(e, e.body.replace(b",", b", ")), "canonical"),
    ],
)
def test_an_entry_that_is_not_what_the_ledger_writes_is_refused_whole(sqlite_store, spoil, says):
    good, bad = write([intent(), settled()])

    receipt = sqlite_store.ingest(batch_of([good, spoil(bad)]))

    assert receipt.acked_seq == 0
    assert "entry 2" in receipt.problem
    assert says in receipt.problem
    assert sqlite_store.tenants() == ()
    assert sqlite_store.refusals("acme", limit=10)[0].kind == "broken"


def test_an_entry_of_an_unknown_kind_waits_for_a_newer_server(sqlite_store):
    body = chain.canonical({"kind": "adjusted", "at_us": 1, "fact": {}})
    entry = LedgerEntry(
        epoch="epoch-1",
        seq=1,
        kind="adjusted",
        at_us=1,
        body=body,
        prev_hash=chain.genesis("epoch-1"),
        hash=chain.entry_hash(1, body, chain.genesis("epoch-1")),
    )
    receipt = sqlite_store.ingest(batch_of([entry]))
    assert receipt.acked_seq == 0
    assert "no fact this server knows" in receipt.problem


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ([settled("ghost")], "no intent"),
        ([intent("a1"), settled("a1"), settled("a1")], "second outcome"),
        ([intent("a1"), indeterminate("a1"), settled("a1")], "second outcome"),
        ([intent("a1"), settled("a1"), intent("a1")], "second intent"),
        (
            [intent("a1"), indeterminate("a1", hold=replace(HOLD, currency="USD"))],
            "another currency",
        ),
    ],
)
def test_an_entry_that_makes_no_sense_stays_in_the_chain_and_moves_no_money(store, facts, says):
    entries = write(facts)
    store.ingest(batch_of(entries[:-1])) if len(entries) > 1 else None
    before = store.totals("acme")

    receipt = store.ingest(batch_of(entries[-1:]))

    assert receipt.acked_seq == len(entries)
    assert receipt.problem.startswith(f"disputed: entry {len(entries)}: ")
    assert says in receipt.problem
    totals = store.totals("acme")
    assert totals.disputed == 1
    assert totals.cost_pico == before.cost_pico
    assert totals.held_pico == before.held_pico
    assert store.ingest(batch_of(entries)) == receipt  # Whichever batch it is in.


def test_measured_held_and_unpriced_stand_side_by_side(store):
    facts = [intent("a1"), settled("a1"), intent("a2"), indeterminate("a2"), intent("a3")]
    facts += [settled("a3", cost=None), intent("a4"), not_billed("a4"), intent("a5")]
    store.ingest(batch_of(write(facts)))

    totals = store.totals("acme")

    assert totals.cost_pico == {"CNY": COST.pico}
    assert totals.held_pico == {"CNY": 2 * HOLD.pico}
    assert (totals.attempts, totals.open, totals.indeterminate) == (5, 1, 1)
    assert (totals.settled, totals.unpriced, totals.not_billed) == (2, 1, 1)


def test_sums_beyond_64_bits_are_exact(store):
    costs = [Cost(currency="CNY", pico=2**62 - n, rows=("r",)) for n in range(5)]
    facts = [fact for n in range(5) for fact in (intent(f"a{n}"), settled(f"a{n}", cost=costs[n]))]
    store.ingest(batch_of(write(facts)))
    assert store.totals("acme").cost_pico == {"CNY": sum(cost.pico for cost in costs)}


def test_currencies_are_never_summed_together(store):
    dollars = Cost(currency="USD", pico=5, rows=("r",))
    store.ingest(batch_of(write([intent("a1"), settled("a1")])))
    store.ingest(
        batch_of(write([intent("a2", hold=dollars), settled("a2", cost=dollars)]), node="node-2")
    )
    assert store.totals("acme").cost_pico == {"CNY": COST.pico, "USD": 5}


def test_what_the_scripted_provider_measured_stands_by_itself(store):
    facts = [intent("a1"), settled("a1"), intent("a2", provider="vendor"), settled("a2")]
    store.ingest(batch_of(write([*facts, intent("a3", provider="vendor"), settled("a3")])))
    totals = store.totals("acme")
    assert totals.cost_pico == {"CNY": 3 * COST.pico}
    assert totals.measured == (
        Measured(currency="CNY", scripted=False, attempts=2, cost_pico=2 * COST.pico),
        Measured(currency="CNY", scripted=True, attempts=1, cost_pico=COST.pico),
    )
    assert (totals.scripted, totals.scripted_only) == (True, False)


def test_tenants_do_not_see_each_other(store):
    store.ingest(batch_of(write([intent(), settled()]), tenant="acme"))
    store.ingest(batch_of(write([intent(), indeterminate()]), tenant="other"))

    assert store.tenants() == ("acme", "other")
    assert store.totals("acme").held_pico == {}
    assert store.totals("other").cost_pico == {}
    assert {entry.kind for entry in store.entries("other", MONTH)} == {"intent", "indeterminate"}


def test_two_ways_that_carry_the_same_entries_at_once_store_them_once(store):
    entries = write(attempts(40))
    batches = [batch_of(entries[start : start + 10]) for start in range(0, len(entries), 5)]

    def send_all(_way):
        acked_seq = 0
        while acked_seq < len(entries):
            for batch in batches:
                receipt = store.ingest(batch)
                assert receipt.problem is None
                acked_seq = receipt.acked_seq
        return acked_seq

    with ThreadPoolExecutor(4) as ways:
        assert set(ways.map(send_all, range(4))) == {len(entries)}
    assert store.totals("acme").entries == len(entries)


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "a/b"},
        {"tenant": ""},
        {"node": "x" * 65},
        {"node": "nul\0"},
    ],
)
def test_a_batch_in_no_proper_name_is_refused(sqlite_store, changes):
    with pytest.raises(BatchRefusedError, match="is no name"):
        sqlite_store.ingest(batch_of(write([intent()]), **changes))


def test_a_batch_that_skips_an_entry_is_refused(sqlite_store):
    first, _, third = write([intent("a1"), intent("a2"), intent("a3")])
    with pytest.raises(BatchRefusedError, match="entry 3 is out of order"):
        sqlite_store.ingest(batch_of([first, third]))


@pytest.mark.parametrize("statement", ["UPDATE entry SET body = '{}'", "DELETE FROM entry"])
def test_the_database_itself_lets_no_entry_be_changed(store, database_url, statement):
    store.ingest(batch_of(write([intent(), settled()])))
    with _connected(database_url) as db, pytest.raises(sa.exc.DBAPIError, match="never changed"):
        db.execute(sa.text(statement))
    assert store.totals("acme").entries == 2


@pytest.mark.usefixtures("store")
def test_the_migrations_build_the_very_schema_of_the_models(database_url, tmp_path):
    with _connected(database_url) as db:
        context = MigrationContext.configure(db, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        migrated = _checks(db)
        if db.dialect.name == "postgresql":
            db.execute(sa.text("CREATE SCHEMA models"))
            db.execute(sa.text("SET search_path TO models"))
            METADATA.create_all(db)
            assert _checks(db, schema="models") == migrated
            return
    with _connected(f"sqlite:///{tmp_path}/models.db") as db:
        METADATA.create_all(db)
        assert _checks(db) == migrated


@contextmanager
def _connected(url):
    engine = sa.create_engine(url)
    try:
        with engine.connect() as db:
            yield db
    finally:
        engine.dispose()


def _checks(db, schema=None):
    """Every CHECK by table and name, and for SQLite which tables are STRICT."""
    inspector = sa.inspect(db)
    checks = {
        (table, check["name"]): check["sqltext"]
        for table in METADATA.tables
        for check in inspector.get_check_constraints(table, schema=schema)
    }
    assert len(checks) == 16
    if db.dialect.name == "sqlite":
        listed = db.execute(sa.text("SELECT name, strict FROM pragma_table_list"))
        strict = {name: strict for name, strict in listed if name in METADATA.tables}
        assert set(strict.values()) == {1}
    return checks


def test_migrating_again_changes_nothing(store):
    store.ingest(batch_of(write([intent(), settled()])))
    store.migrate()
    store.check_schema()
    assert store.totals("acme").entries == 2


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "write sqlite:///FILE"),
        ("mysql://host/db", "write sqlite:///FILE"),
        ("sqlite://", "kept on disk"),
        ("sqlite:///:memory:", "kept on disk"),
    ],
)
def test_an_address_that_is_no_database_is_named(url, says):
    with pytest.raises(BillingError, match=re.escape(says)):
        BillingStore(url, now=lambda: NOW)


@pytest.mark.parametrize("work", ["migrate", "check_schema"])
def test_a_database_that_holds_something_else_is_refused_and_left_alone(database_url, work):
    with _connected(database_url) as db:
        db.execute(sa.text("CREATE TABLE something (id INTEGER)"))
        db.commit()
    store = BillingStore(database_url, now=lambda: NOW)
    with pytest.raises(BillingError, match="this is no billing database"):
        getattr(store, work)()
    store.close()
    with _connected(database_url) as db:
        assert sa.inspect(db).get_table_names() == ["something"]
        if db.dialect.name == "sqlite":
            assert db.execute(sa.text("PRAGMA journal_mode")).scalar_one() == "delete"


@pytest.mark.parametrize("work", ["migrate", "check_schema"])
def test_a_version_of_the_future_is_named_and_left_alone(store, database_url, work):
    with _connected(database_url) as db:
        db.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        db.commit()
    with pytest.raises(BillingError, match="at version 9999, which this qcnode does not know"):
        getattr(store, work)()


def test_a_missing_file_is_not_made_by_looking_at_it(tmp_path):
    store = BillingStore(f"sqlite:///{tmp_path}/none.db", now=lambda: NOW)
    with pytest.raises(BillingError, match="no billing database"):
        store.check_schema()
    store.close()
    assert not (tmp_path / "none.db").exists()


def test_a_database_that_is_away_is_told_from_one_that_says_no(tmp_path):
    store = BillingStore(f"sqlite:///{tmp_path}/no/such/folder.db", now=lambda: NOW)
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        store.ping()
    store.close()


def test_a_password_is_never_part_of_the_name():
    store = BillingStore("postgresql+psycopg://me:secret@127.0.0.1/db", now=lambda: NOW)
    assert "secret" not in store.name
    store.close()
