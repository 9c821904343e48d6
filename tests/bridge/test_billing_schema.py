"""The billing database itself: its address, its schema, and how one version becomes the next."""

import re
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from qcbridge.billing import engine, paper_tables
from qcbridge.billing.audit import Change, note_change
from qcbridge.billing.engine import Database, StoreUnavailableError
from qcbridge.billing.reports import Reports
from qcbridge.billing.tables import METADATA
from qcnode.books import chain
from qcnode.errors import BillingError
from qcnode.money import TokenUsage
from tests.bridge.ledgers import batch_of, intent, settled, write

assert paper_tables  # Its tables are part of the schema.


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET body = '{}'",
        "DELETE FROM entry",
        "UPDATE audit SET who = 'nobody'",
        "DELETE FROM audit",
    ],
)
def test_the_database_itself_lets_no_entry_and_no_audit_row_be_changed(
    books, database_url, statement
):
    books.ingest(batch_of(write([intent(), settled()])))
    with books.database.writing() as db:
        note_change(db, Change(at_us=1, who="me", action="test", tenant=None, what={}))
        db.commit()
    with _connected(database_url) as db, pytest.raises(sa.exc.DBAPIError, match="never changed"):
        db.execute(sa.text(statement))
    assert books.reports.totals("acme").entries == 2


@pytest.mark.usefixtures("books")
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
    made = sa.create_engine(url)
    try:
        with made.connect() as db:
            yield db
    finally:
        made.dispose()


def _checks(db, schema=None):
    """Every CHECK by table and name, and for SQLite which tables are STRICT."""
    inspector = sa.inspect(db)
    checks = {
        (table, check["name"]): check["sqltext"]
        for table in METADATA.tables
        for check in inspector.get_check_constraints(table, schema=schema)
    }
    assert len(checks) >= 34
    if db.dialect.name == "sqlite":
        listed = db.execute(sa.text("SELECT name, strict FROM pragma_table_list"))
        strict = {name: strict for name, strict in listed if name in METADATA.tables}
        assert set(strict.values()) == {1}
    return checks


V1_FACT = (
    '{{"at_us":{at},"fact":{{"attempt_id":"{attempt}","cost":{cost},"duration_ms":5,'
    '"http_status":200,"model_served":null,"rated_at_us":1,"raw_usage":"{{}}",'
    '"response_id":null,"usage":{{"cache_read_tokens":200,"image_tokens":{image},'
    '"input_tokens":1000,"output_tokens":50,"reasoning_tokens":10}}}},"kind":"settled"}}'
)


def _fill_version_1(db):
    """What version 0001 had on record: two attempts, one without a price, and a disputed entry."""
    db.execute(sa.text("INSERT INTO ledger VALUES (1, 'acme', 'n', 'e', 5, :head, 0, 0)"), HEAD)
    insert = sa.text(
        "INSERT INTO entry (ledger_id, seq, kind, at_us, stored_us, body, hash, dispute,"
        " attempt_id, closes_seq, provider, model, input_tokens, output_tokens, cache_read_tokens,"
        " image_tokens, reasoning_tokens, cost_currency, cost_pico, price_rows, hold_currency,"
        " hold_pico) VALUES (1, :seq, :kind, :seq, 2, :body, :hash, :dispute, :attempt, :closes,"
        " :provider, :model, :input, :output, :cached, :image, :thought, :cost_currency,"
        " :cost, :rows, :hold_currency, :hold)"
    )
    nothing = dict.fromkeys(insert.compile().params)
    used = {"input": 1_000, "output": 50, "cached": 200, "thought": 10}
    asked = {"kind": "intent", "provider": "p", "model": "m", "hold": 9, "hold_currency": "CNY"}
    got = {"kind": "settled", "provider": "p", "model": "m", **used}
    paid = {"cost": 5, "cost_currency": "CNY", "rows": '["r"]'}
    rows = [
        {**asked, "attempt": "a"},
        {**got, **paid, "attempt": "a", "closes": 1, "image": 700},
        {**asked, "attempt": "b"},
        {**got, "attempt": "b", "closes": 3, "image": 0},
        {"kind": "settled", "attempt": "c", "dispute": "entry 5: no intent"},
    ]
    bodies = []
    for seq, row in enumerate(rows, start=1):
        cost = '{"currency":"CNY","pico":5,"rows":["r"]}' if "cost" in row else "null"
        body = V1_FACT.format(at=seq, attempt=row["attempt"], cost=cost, image=row.get("image", 0))
        bodies.append(body)
        db.execute(insert, {**nothing, **row, "seq": seq, "hash": bytes([seq]) * 32, "body": body})
    return bodies


HEAD = {"head": bytes(32)}


def test_books_of_version_1_come_over_with_every_body_and_amount(database_url):
    database = Database(database_url)
    with database.writing() as db:
        config = engine._alembic_config()
        config.attributes["connection"] = db
        command.upgrade(config, "0001")
        bodies = _fill_version_1(db)
        db.commit()

    database.migrate()

    with database.reading() as db:
        kept = db.execute(sa.text("SELECT body, hash FROM entry ORDER BY seq")).all()
    assert [(row.body, bytes(row.hash)) for row in kept] == [
        (body, bytes([seq]) * 32) for seq, body in enumerate(bodies, start=1)
    ]
    totals = Reports(database).totals("acme")
    database.close()
    assert (totals.attempts, totals.settled, totals.unpriced, totals.quarantined) == (2, 2, 1, 1)
    assert totals.cost_pico == {"CNY": 5}
    assert totals.held_pico == {"CNY": 9}  # Unpriced is never zero.
    read = [chain.read_body(2, body.encode())[2].usage for body in (bodies[1], bodies[3])]
    assert totals.usage == read[0] + read[1]
    assert totals.usage == TokenUsage(
        text=100, image=500, unknown=200 + 800, cache_read=400, output=80, reasoning=20
    )


def test_migrating_again_changes_nothing(books):
    books.ingest(batch_of(write([intent(), settled()])))
    books.database.migrate()
    books.database.check_schema()
    assert books.reports.totals("acme").entries == 2


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
        Database(url)


@pytest.mark.parametrize("work", ["migrate", "check_schema"])
def test_a_database_that_holds_something_else_is_refused_and_left_alone(database_url, work):
    with _connected(database_url) as db:
        db.execute(sa.text("CREATE TABLE something (id INTEGER)"))
        db.commit()
    database = Database(database_url)
    with pytest.raises(BillingError, match="this is no billing database"):
        getattr(database, work)()
    database.close()
    with _connected(database_url) as db:
        assert sa.inspect(db).get_table_names() == ["something"]
        if db.dialect.name == "sqlite":
            assert db.execute(sa.text("PRAGMA journal_mode")).scalar_one() == "delete"


@pytest.mark.parametrize("work", ["migrate", "check_schema"])
def test_a_version_of_the_future_is_named_and_left_alone(books, database_url, work):
    with _connected(database_url) as db:
        db.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        db.commit()
    with pytest.raises(BillingError, match="at version 9999, which this qcnode does not know"):
        getattr(books.database, work)()


def test_a_missing_file_is_not_made_by_looking_at_it(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(BillingError, match="no billing database"):
        database.check_schema()
    database.close()
    assert not (tmp_path / "none.db").exists()


def test_a_database_that_is_away_is_told_from_one_that_says_no(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/no/such/folder.db")
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        database.ping()
    database.close()


def test_a_password_is_never_part_of_the_name():
    database = Database("postgresql+psycopg://me:secret@127.0.0.1/db")
    assert "secret" not in database.name
    database.close()
