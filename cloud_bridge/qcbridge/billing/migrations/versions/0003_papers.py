"""Invoices and what they cover, packs, and providers' files; all of it final."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FINAL = (
    "invoice",
    "invoice_ledger",
    "invoice_decision",
    "pack",
    "invoice_pack",
    "provider_file",
    "capture",
)


def upgrade() -> None:
    _make_invoices()
    _make_packs()
    _make_provider_files()
    for table in FINAL:
        _forbid_changes(table)
    _forbid_gaps(
        "invoice",
        "NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM invoice"
        " WHERE tenant = NEW.tenant)",
        "invoices are numbered one after the other",
    )
    _forbid_gaps(
        "invoice_ledger",
        "NEW.first_seq <> (SELECT coalesce(max(last_seq), 0) + 1 FROM invoice_ledger"
        " WHERE ledger_id = NEW.ledger_id)",
        "an invoice begins where the one before ended",
    )


def _texts(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text(), nullable=False) for name in names]


def _numbers(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, BIG, nullable=False, autoincrement=False) for name in names]


def _make_invoices() -> None:
    op.create_table(
        "invoice",
        *_texts("tenant"),
        *_numbers("number"),
        *_texts("period", "currency"),
        *_numbers("total_micro", "issued_us"),
        *_texts("issued_by"),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        *_texts("body"),
        sa.CheckConstraint("number >= 1", name=op.f("ck_invoice_number")),
        sa.CheckConstraint("length(sha256) = 32", name=op.f("ck_invoice_sha256")),
        sa.PrimaryKeyConstraint("tenant", "number", name=op.f("pk_invoice")),
        sa.UniqueConstraint("tenant", "period", name=op.f("uq_invoice_tenant_period")),
        sqlite_strict=True,
    )
    op.create_table(
        "invoice_ledger",
        *_numbers("ledger_id", "number", "first_seq", "last_seq"),
        sa.CheckConstraint(
            "first_seq >= 1 AND first_seq <= last_seq", name=op.f("ck_invoice_ledger_seq")
        ),
        sa.PrimaryKeyConstraint("ledger_id", "number", name=op.f("pk_invoice_ledger")),
        sqlite_strict=True,
    )
    op.create_table(
        "invoice_decision",
        *_numbers("resolution_id"),
        *_texts("tenant"),
        *_numbers("number"),
        sa.PrimaryKeyConstraint("resolution_id", name=op.f("pk_invoice_decision")),
        sqlite_strict=True,
    )


def _make_packs() -> None:
    op.create_table(
        "pack",
        *_texts("tenant", "id", "provider", "model", "token_class"),
        *_numbers("tokens", "price_micro"),
        *_texts("currency"),
        *_numbers("bought_us", "until_us", "recorded_us"),
        *_texts("recorded_by"),
        sa.CheckConstraint("tokens >= 1", name=op.f("ck_pack_tokens")),
        sa.CheckConstraint("price_micro >= 0", name=op.f("ck_pack_price_micro")),
        sa.PrimaryKeyConstraint("tenant", "id", name=op.f("pk_pack")),
        sqlite_strict=True,
    )
    op.create_table(
        "invoice_pack",
        *_texts("tenant", "pack_id"),
        *_numbers("number", "tokens", "bought"),
        sa.CheckConstraint("tokens >= 0", name=op.f("ck_invoice_pack_tokens")),
        sa.CheckConstraint("bought IN (0, 1)", name=op.f("ck_invoice_pack_bought")),
        sa.PrimaryKeyConstraint("tenant", "pack_id", "number", name=op.f("pk_invoice_pack")),
        sqlite_strict=True,
    )


def _make_provider_files() -> None:
    op.create_table(
        "provider_file",
        *_texts("tenant"),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        *_texts("provider", "name"),
        *_numbers("from_us", "to_us", "records", "taken_us"),
        *_texts("taken_by", "report"),
        sa.CheckConstraint("length(sha256) = 32", name=op.f("ck_provider_file_sha256")),
        sa.PrimaryKeyConstraint("tenant", "sha256", name=op.f("pk_provider_file")),
        sqlite_strict=True,
    )
    op.create_table(
        "capture",
        *_texts("tenant", "provider", "day", "unit"),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        *_numbers("ours", "billed", "taken_us"),
        sa.CheckConstraint("ours >= 0 AND billed >= 0", name=op.f("ck_capture_amounts")),
        sa.PrimaryKeyConstraint(
            "tenant", "provider", "day", "unit", "sha256", name=op.f("pk_capture")
        ),
        sqlite_strict=True,
    )


def _forbid_changes(table: str) -> None:
    words = "what was issued or taken is never changed"
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


def _forbid_gaps(table: str, where: str, words: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"CREATE TRIGGER {table}_no_gap BEFORE INSERT ON {table} WHEN {where}"
            f" BEGIN SELECT RAISE(ABORT, '{words}'); END"
        )
        return
    op.execute(
        f"CREATE FUNCTION {table}_has_no_gap() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN IF {where} THEN RAISE EXCEPTION '{words}'; END IF; RETURN NEW; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_no_gap BEFORE INSERT ON {table}"
        f" FOR EACH ROW EXECUTE FUNCTION {table}_has_no_gap()"
    )


def downgrade() -> None:
    raise NotImplementedError("what was issued is never taken back; restore a backup instead")
