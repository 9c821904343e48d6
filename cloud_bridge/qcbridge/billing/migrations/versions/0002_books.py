"""Every kind of fact, disjoint token classes, headings; and what the server decides by itself.

The constraints of `entry` change, which SQLite can only do to a new table: the old rows
move over, each body and hash byte for byte, and the old table goes when all are there.
"""

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TOKENS = (
    "text_tokens",
    "image_tokens",
    "unknown_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
)
HEADING = (
    "provider",
    "model",
    "line",
    "product",
    "department",
    "application",
    "function",
    "agent",
    "level",
    "region",
)


def upgrade() -> None:
    _make_heading()
    op.rename_table("entry", "entry_0001")
    _free_names()
    _make_entry()
    _make_resolution()
    _move_entries()
    op.drop_table("entry_0001")
    _make_intake()
    _make_access()
    _make_budgets()
    _forbid_changes("entry", "entries are added, never changed")
    _forbid_changes("audit", "the audit trail is added to, never changed")


def _make_heading() -> None:
    op.create_table(
        "heading",
        sa.Column("id", BIG, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in HEADING),
        sa.CheckConstraint("length(digest) = 32", name=op.f("ck_heading_digest")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_heading")),
        sa.UniqueConstraint("digest", name=op.f("uq_heading_digest")),
        sqlite_strict=True,
    )


def _free_names() -> None:
    """Let the new table have the names that go with `entry`."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("update", "delete"):
            op.execute(f"DROP TRIGGER entry_no_{verb}")
        for index in ("ix_entry_ledger_id_attempt_id", "ix_entry_ledger_id_at_us"):
            op.execute(f"DROP INDEX {index}")
        return
    op.execute("DROP TRIGGER entry_no_change ON entry_0001")
    op.execute("DROP FUNCTION entry_is_final")
    op.execute(
        "ALTER TABLE entry_0001 DROP CONSTRAINT pk_entry,"
        " DROP CONSTRAINT uq_entry_ledger_id_closes_seq"
    )


def _movement(table: str) -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("step", BIG, nullable=True),
        sa.Column("state", sa.Text(), nullable=True),
        sa.Column("was", sa.Text(), nullable=True),
        sa.Column("heading_id", BIG, nullable=True),
        *(sa.Column(name, BIG, nullable=True) for name in TOKENS),
        sa.Column("cost_currency", sa.Text(), nullable=True),
        sa.Column("cost_pico", BIG, nullable=True),
        sa.Column("cost_was_currency", sa.Text(), nullable=True),
        sa.Column("cost_was_pico", BIG, nullable=True),
        sa.Column("price_rows", sa.Text(), nullable=True),
        sa.Column("rated_us", BIG, nullable=True),
        sa.Column("hold_currency", sa.Text(), nullable=True),
        sa.Column("hold_pico", BIG, nullable=True),
        sa.Column("hold_was_currency", sa.Text(), nullable=True),
        sa.Column("hold_was_pico", BIG, nullable=True),
        *(
            sa.CheckConstraint(
                f"({name}_pico IS NULL) = ({name}_currency IS NULL)",
                name=op.f(f"ck_{table}_{name}"),
            )
            for name in ("cost", "cost_was", "hold", "hold_was")
        ),
        sa.CheckConstraint(
            "cost_pico >= 0 AND cost_was_pico >= 0", name=op.f(f"ck_{table}_cost_pico")
        ),
        sa.CheckConstraint(
            "hold_pico >= 0 AND hold_was_pico >= 0", name=op.f(f"ck_{table}_hold_pico")
        ),
        sa.CheckConstraint(
            " AND ".join(f"{name} >= 0" for name in TOKENS), name=op.f(f"ck_{table}_tokens")
        ),
        sa.CheckConstraint("(step IS NULL) = (state IS NULL)", name=op.f(f"ck_{table}_step")),
        sa.CheckConstraint(
            "state IS NOT NULL OR (was IS NULL AND cost_pico IS NULL AND cost_was_pico IS NULL"
            " AND hold_pico IS NULL AND hold_was_pico IS NULL AND output_tokens IS NULL)",
            name=op.f(f"ck_{table}_moves"),
        ),
    ]


def _make_entry() -> None:
    op.create_table(
        "entry",
        sa.Column("ledger_id", BIG, nullable=False, autoincrement=False),
        sa.Column("seq", BIG, nullable=False, autoincrement=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at_us", BIG, nullable=True),
        sa.Column("stored_us", BIG, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("quarantine", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("resolution_id", BIG, nullable=True),
        *_movement("entry"),
        sa.CheckConstraint("seq >= 1", name=op.f("ck_entry_seq")),
        sa.CheckConstraint("length(hash) = 32", name=op.f("ck_entry_hash")),
        sa.CheckConstraint("quarantine IS NULL OR state IS NULL", name=op.f("ck_entry_quarantine")),
        sa.CheckConstraint(
            "quarantine IS NOT NULL OR (at_us IS NOT NULL AND subject IS NOT NULL)",
            name=op.f("ck_entry_known"),
        ),
        sa.PrimaryKeyConstraint("ledger_id", "seq", name=op.f("pk_entry")),
        sa.UniqueConstraint(
            "ledger_id", "subject", "step", name=op.f("uq_entry_ledger_id_subject_step")
        ),
        sqlite_strict=True,
    )
    op.create_index("ix_entry_at_us", "entry", ["at_us"], postgresql_using="brin")
    _partial_index("ix_entry_quarantined", "entry", ["ledger_id", "seq"], "quarantine IS NOT NULL")


def _make_resolution() -> None:
    op.create_table(
        "resolution",
        sa.Column("id", BIG, nullable=False),
        sa.Column("ledger_id", BIG, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at_us", BIG, nullable=False),
        sa.Column("stored_us", BIG, nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("releases_seq", BIG, nullable=True),
        sa.Column("closed_seq", BIG, nullable=True),
        *_movement("resolution"),
        sa.ForeignKeyConstraint(["ledger_id"], ["ledger.id"], name=op.f("fk_resolution_ledger_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_resolution")),
        sa.UniqueConstraint(
            "ledger_id", "subject", "step", name=op.f("uq_resolution_ledger_id_subject_step")
        ),
        sa.UniqueConstraint(
            "ledger_id", "releases_seq", name=op.f("uq_resolution_ledger_id_releases_seq")
        ),
        sqlite_strict=True,
    )
    _partial_index(
        "ix_resolution_open",
        "resolution",
        ["ledger_id"],
        "closed_seq IS NULL AND releases_seq IS NULL",
    )


def _partial_index(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(
        name, table, columns, postgresql_where=sa.text(where), sqlite_where=sa.text(where)
    )


def _move_entries() -> None:
    db = op.get_bind()
    used = db.execute(
        sa.text("SELECT DISTINCT provider, model FROM entry_0001 WHERE provider IS NOT NULL")
    ).all()
    heading = sa.table("heading", *(sa.column(name) for name in ("digest", *HEADING)))
    for provider, model in used:
        words = [provider, model, *("" for _ in HEADING[2:])]
        values = {"digest": _digest(words), **dict(zip(HEADING, words, strict=True))}
        db.execute(sa.insert(heading).values(values))
    # Version 1 counted cached tokens and those of a picture within the input, and wrote 0
    # also for a picture whose tokens were not told apart.
    rest = "(e.input_tokens - e.cache_read_tokens)"
    known = "e.image_tokens > 0"
    seen = (
        f"CASE WHEN {known} AND e.image_tokens > e.cache_read_tokens"
        " THEN e.image_tokens - e.cache_read_tokens ELSE 0 END"
    )
    read = f"CASE WHEN {known} AND {rest} > e.image_tokens THEN {rest} - e.image_tokens ELSE 0 END"
    columns = {
        "ledger_id": "e.ledger_id",
        "seq": "e.seq",
        "kind": "e.kind",
        "at_us": "e.at_us",
        "stored_us": "e.stored_us",
        "body": "e.body",
        "hash": "e.hash",
        "quarantine": "e.dispute",
        "subject": "e.attempt_id",
        "step": (
            "CASE WHEN e.dispute IS NOT NULL THEN NULL WHEN e.kind = 'intent' THEN 0 ELSE 1 END"
        ),
        "state": (
            "CASE WHEN e.dispute IS NOT NULL THEN NULL"
            " WHEN e.kind = 'settled' AND e.cost_pico IS NULL THEN 'unpriced' ELSE e.kind END"
        ),
        "was": ("CASE WHEN e.dispute IS NULL AND e.kind <> 'intent' THEN 'intent' ELSE NULL END"),
        "heading_id": "h.id",
        "text_tokens": f"CASE WHEN e.input_tokens IS NOT NULL THEN {read} END",
        "image_tokens": f"CASE WHEN e.input_tokens IS NOT NULL THEN {seen} END",
        "unknown_tokens": (
            f"CASE WHEN e.input_tokens IS NOT NULL THEN {rest} - ({seen}) - ({read}) END"
        ),
        "cache_read_tokens": "e.cache_read_tokens",
        "cache_write_tokens": "CASE WHEN e.input_tokens IS NOT NULL THEN 0 END",
        "cache_write_1h_tokens": "CASE WHEN e.input_tokens IS NOT NULL THEN 0 END",
        "output_tokens": "e.output_tokens - e.reasoning_tokens",
        "reasoning_tokens": "e.reasoning_tokens",
        "cost_currency": "e.cost_currency",
        "cost_pico": "e.cost_pico",
        "price_rows": "e.price_rows",
        "rated_us": "e.rated_us",
        # What is settled without a price is held on.
        "hold_currency": (
            "CASE WHEN e.kind = 'settled' AND e.cost_pico IS NULL"
            " THEN c.hold_currency ELSE e.hold_currency END"
        ),
        "hold_pico": (
            "CASE WHEN e.kind = 'settled' AND e.cost_pico IS NULL"
            " THEN c.hold_pico ELSE e.hold_pico END"
        ),
        "hold_was_currency": "c.hold_currency",
        "hold_was_pico": "c.hold_pico",
    }
    entry = sa.table("entry", *(sa.column(name) for name in columns))
    asked: list[sa.ColumnElement[Any]] = [sa.literal_column(value) for value in columns.values()]
    source = sa.text(
        "entry_0001 e"
        " LEFT JOIN heading h ON h.provider = e.provider AND h.model = e.model"
        " LEFT JOIN entry_0001 c ON c.ledger_id = e.ledger_id AND c.seq = e.closes_seq"
    )
    moved = sa.select(*asked).select_from(source)
    db.execute(sa.insert(entry).from_select(list(columns), moved))
    counts = [
        db.execute(sa.select(sa.func.count()).select_from(sa.table(table))).scalar_one()
        for table in ("entry_0001", "entry")
    ]
    if counts[0] != counts[1]:
        raise RuntimeError(f"{counts[1]} of {counts[0]} entries came over: nothing is changed")


def _digest(words: list[str]) -> bytes:
    """As `postings.digest_of` has it."""
    text = json.dumps(words, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def _ledger_key(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["ledger_id"], ["ledger.id"], name=op.f(f"fk_{table}_ledger_id"))


def _budget_key(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["budget_id"], ["budget.id"], name=op.f(f"fk_{table}_budget_id"))


def _make_intake() -> None:
    op.create_table(
        "parked",
        sa.Column("ledger_id", BIG, nullable=False),
        sa.Column("first_seq", BIG, nullable=False, autoincrement=False),
        sa.Column("last_seq", BIG, nullable=False, autoincrement=False),
        sa.Column("stored_us", BIG, nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("first_seq <= last_seq", name=op.f("ck_parked_seq")),
        _ledger_key("parked"),
        sa.PrimaryKeyConstraint("ledger_id", "first_seq", "last_seq", name=op.f("pk_parked")),
        sqlite_strict=True,
    )
    op.create_table(
        "checkpoint",
        sa.Column("ledger_id", BIG, nullable=False),
        sa.Column("seq", BIG, nullable=False, autoincrement=False),
        sa.Column("at_us", BIG, nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        _ledger_key("checkpoint"),
        sa.PrimaryKeyConstraint("ledger_id", "seq", name=op.f("pk_checkpoint")),
        sqlite_strict=True,
    )
    op.create_table(
        "fork",
        sa.Column("ledger_id", BIG, nullable=False),
        sa.Column("seq", BIG, nullable=False, autoincrement=False),
        sa.Column("offered_hash", sa.LargeBinary(), nullable=False),
        sa.Column("stored_hash", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("times", BIG, nullable=False),
        sa.Column("first_us", BIG, nullable=False),
        sa.Column("last_us", BIG, nullable=False),
        sa.CheckConstraint("length(stored_hash) = 32", name=op.f("ck_fork_stored_hash")),
        sa.CheckConstraint("length(offered_hash) = 32", name=op.f("ck_fork_offered_hash")),
        _ledger_key("fork"),
        sa.PrimaryKeyConstraint("ledger_id", "seq", "offered_hash", name=op.f("pk_fork")),
        sqlite_strict=True,
    )


def _make_access() -> None:
    op.create_table(
        "node_key",
        sa.Column("id", BIG, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("valid_from_us", BIG, nullable=False),
        sa.Column("revoked_us", BIG, nullable=True),
        sa.Column("added_us", BIG, nullable=False),
        sa.Column("added_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node_key")),
        sa.UniqueConstraint("tenant", "node", "key", name=op.f("uq_node_key_tenant_node_key")),
        sqlite_strict=True,
    )
    op.create_table(
        "token",
        sa.Column("id", BIG, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=True),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_us", BIG, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("revoked_us", BIG, nullable=True),
        sa.Column("used_us", BIG, nullable=True),
        sa.CheckConstraint("length(digest) = 32", name=op.f("ck_token_digest")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token")),
        sa.UniqueConstraint("digest", name=op.f("uq_token_digest")),
        sa.UniqueConstraint("name", name=op.f("uq_token_name")),
        sqlite_strict=True,
    )
    op.create_table(
        "audit",
        sa.Column("id", BIG, nullable=False),
        sa.Column("at_us", BIG, nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=True),
        sa.Column("what", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_strict=True,
    )


def _make_budgets() -> None:
    op.create_table(
        "budget",
        sa.Column("id", BIG, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=True),
        sa.Column("most", BIG, nullable=False),
        sa.Column("window", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("nodes", sa.Text(), nullable=True),
        sa.Column("slice_min", BIG, nullable=False),
        sa.Column("lease_us", BIG, nullable=False),
        sa.Column("changed_us", BIG, nullable=False),
        sa.CheckConstraint("most >= 0", name=op.f("ck_budget_most")),
        sa.CheckConstraint(
            "(unit = 'money') = (currency IS NOT NULL)", name=op.f("ck_budget_currency")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budget")),
        sa.UniqueConstraint("tenant", "name", name=op.f("uq_budget_tenant_name")),
        sqlite_strict=True,
    )
    op.create_table(
        "lease",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("budget_id", BIG, nullable=False),
        sa.Column("ledger_id", BIG, nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("most", BIG, nullable=False),
        sa.Column("from_us", BIG, nullable=False),
        sa.Column("until_us", BIG, nullable=False),
        sa.Column("granted_us", BIG, nullable=False),
        sa.Column("seen_seq", BIG, nullable=True),
        sa.Column("over_us", BIG, nullable=True),
        sa.CheckConstraint("most >= 0", name=op.f("ck_lease_most")),
        _budget_key("lease"),
        _ledger_key("lease"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lease")),
        sqlite_strict=True,
    )
    op.create_index(
        op.f("ix_lease_budget_id_from_us_ledger_id"), "lease", ["budget_id", "from_us", "ledger_id"]
    )
    op.create_table(
        "spent",
        sa.Column("budget_id", BIG, nullable=False),
        sa.Column("ledger_id", BIG, nullable=False),
        sa.Column("from_us", BIG, nullable=False, autoincrement=False),
        sa.Column("used", BIG, nullable=False),
        _budget_key("spent"),
        _ledger_key("spent"),
        sa.PrimaryKeyConstraint("budget_id", "ledger_id", "from_us", name=op.f("pk_spent")),
        sqlite_strict=True,
    )


def _forbid_changes(table: str, words: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{words}'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_is_final() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{words}'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION {table}_is_final()"
    )


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken apart; restore a backup instead")
