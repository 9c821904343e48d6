"""Ledgers, entries and refusals; entries are added and never changed."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "ledger",
        sa.Column("id", BIG, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("acked_seq", BIG, nullable=False),
        sa.Column("head_hash", sa.LargeBinary(), nullable=False),
        sa.Column("first_us", BIG, nullable=False),
        sa.Column("last_us", BIG, nullable=False),
        sa.CheckConstraint("acked_seq >= 0", name=op.f("ck_ledger_acked_seq")),
        sa.CheckConstraint("length(head_hash) = 32", name=op.f("ck_ledger_head_hash")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger")),
        sa.UniqueConstraint("tenant", "node", "epoch", name=op.f("uq_ledger_tenant_node_epoch")),
        sqlite_strict=True,
    )
    op.create_table(
        "entry",
        sa.Column("ledger_id", BIG, nullable=False),
        sa.Column("seq", BIG, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at_us", BIG, nullable=False),
        sa.Column("stored_us", BIG, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("dispute", sa.Text(), nullable=True),
        sa.Column("attempt_id", sa.Text(), nullable=False),
        sa.Column("closes_seq", BIG, nullable=True),
        sa.Column("provider", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("input_tokens", BIG, nullable=True),
        sa.Column("output_tokens", BIG, nullable=True),
        sa.Column("cache_read_tokens", BIG, nullable=True),
        sa.Column("image_tokens", BIG, nullable=True),
        sa.Column("reasoning_tokens", BIG, nullable=True),
        sa.Column("cost_currency", sa.Text(), nullable=True),
        sa.Column("cost_pico", BIG, nullable=True),
        sa.Column("rated_us", BIG, nullable=True),
        sa.Column("price_rows", sa.Text(), nullable=True),
        sa.Column("hold_currency", sa.Text(), nullable=True),
        sa.Column("hold_pico", BIG, nullable=True),
        sa.CheckConstraint("seq >= 1", name=op.f("ck_entry_seq")),
        sa.CheckConstraint("length(hash) = 32", name=op.f("ck_entry_hash")),
        sa.CheckConstraint(
            "kind IN ('intent', 'settled', 'not_billed', 'indeterminate')",
            name=op.f("ck_entry_kind"),
        ),
        sa.CheckConstraint(
            "(cost_pico IS NULL) = (cost_currency IS NULL)", name=op.f("ck_entry_cost")
        ),
        sa.CheckConstraint(
            "(hold_pico IS NULL) = (hold_currency IS NULL)", name=op.f("ck_entry_hold")
        ),
        sa.CheckConstraint("cost_pico >= 0", name=op.f("ck_entry_cost_pico")),
        sa.CheckConstraint("hold_pico >= 0", name=op.f("ck_entry_hold_pico")),
        sa.CheckConstraint(
            "dispute IS NULL OR (cost_pico IS NULL AND hold_pico IS NULL"
            " AND input_tokens IS NULL AND closes_seq IS NULL)",
            name=op.f("ck_entry_dispute"),
        ),
        sa.CheckConstraint(
            "(kind = 'settled' AND dispute IS NULL) = (input_tokens IS NOT NULL)",
            name=op.f("ck_entry_usage"),
        ),
        sa.CheckConstraint(
            "(kind = 'intent' OR dispute IS NOT NULL) = (closes_seq IS NULL)",
            name=op.f("ck_entry_closes"),
        ),
        sa.CheckConstraint("input_tokens >= 0", name=op.f("ck_entry_input_tokens")),
        sa.CheckConstraint("output_tokens >= 0", name=op.f("ck_entry_output_tokens")),
        sa.ForeignKeyConstraint(["ledger_id"], ["ledger.id"], name=op.f("fk_entry_ledger_id")),
        sa.PrimaryKeyConstraint("ledger_id", "seq", name=op.f("pk_entry")),
        sa.UniqueConstraint("ledger_id", "closes_seq", name=op.f("uq_entry_ledger_id_closes_seq")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_entry_ledger_id_attempt_id"), "entry", ["ledger_id", "attempt_id"])
    op.create_index(op.f("ix_entry_ledger_id_at_us"), "entry", ["ledger_id", "at_us"])
    op.create_table(
        "refusal",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=True),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("epoch", sa.Text(), nullable=True),
        sa.Column("first_seq", BIG, nullable=True),
        sa.Column("sample", sa.Text(), nullable=False),
        sa.Column("times", BIG, nullable=False),
        sa.Column("first_us", BIG, nullable=False),
        sa.Column("last_us", BIG, nullable=False),
        sa.CheckConstraint("length(digest) = 32", name=op.f("ck_refusal_digest")),
        sa.CheckConstraint("times >= 1", name=op.f("ck_refusal_times")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_refusal")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_refusal_tenant_last_us"), "refusal", ["tenant", "last_us"])
    _forbid_changes()


def _forbid_changes() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER entry_no_{verb.lower()} BEFORE {verb} ON entry"
                " BEGIN SELECT RAISE(ABORT, 'entries are added, never changed'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION entry_is_final() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'entries are added, never changed'; END $$"
    )
    op.execute(
        "CREATE TRIGGER entry_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON entry"
        " FOR EACH STATEMENT EXECUTE FUNCTION entry_is_final()"
    )


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken apart; restore a backup instead")
