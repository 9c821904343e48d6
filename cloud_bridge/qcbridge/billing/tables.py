"""The billing database: what was received, never what was concluded from it alone.

One row of `ledger` for each (tenant, node, epoch) says how far its chain has come;
`entry` holds the chain itself, body and hash as they arrived, with what sums need
beside them; `refusal` keeps what was not taken. The same schema on SQLite (STRICT)
and PostgreSQL: whole numbers only, times in microseconds since 1970 UTC, money in
pico-units. Only `store` reads and writes here; `migrations/` builds it.
"""

from typing import ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlmodel import Field, SQLModel

# STRICT tables of SQLite know INTEGER, which holds 64 bits, and no BIGINT.
BIG = BigInteger().with_variant(Integer(), "sqlite")

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


class _Billing(SQLModel):
    """Keeps these tables apart from any other in the process."""

    metadata: ClassVar[MetaData] = METADATA


class LedgerRow(_Billing, table=True):
    """One ledger file of one node, and the last entry of its chain that is stored here."""

    __tablename__ = "ledger"
    __table_args__ = (
        UniqueConstraint("tenant", "node", "epoch"),
        CheckConstraint("acked_seq >= 0", name="acked_seq"),
        CheckConstraint("length(head_hash) = 32", name="head_hash"),
        {"sqlite_strict": True},
    )

    id: int | None = Field(default=None, sa_column=Column(BIG, primary_key=True))
    tenant: str = Field(sa_type=Text)
    node: str = Field(sa_type=Text)
    epoch: str = Field(sa_type=Text)
    acked_seq: int = Field(sa_type=BIG)
    head_hash: bytes = Field(sa_type=LargeBinary)
    first_us: int = Field(sa_type=BIG)
    last_us: int = Field(sa_type=BIG)


class EntryRow(_Billing, table=True):
    """One entry as it came, and what it moves; a disputed one moves nothing.

    `closes_seq` is the intent whose hold this entry ends. It is unique, so no attempt
    can be settled twice, whatever the code does.
    """

    __tablename__ = "entry"
    __table_args__ = (
        CheckConstraint("seq >= 1", name="seq"),
        CheckConstraint("length(hash) = 32", name="hash"),
        CheckConstraint(
            "kind IN ('intent', 'settled', 'not_billed', 'indeterminate')", name="kind"
        ),
        CheckConstraint("(cost_pico IS NULL) = (cost_currency IS NULL)", name="cost"),
        CheckConstraint("(hold_pico IS NULL) = (hold_currency IS NULL)", name="hold"),
        CheckConstraint("cost_pico >= 0", name="cost_pico"),
        CheckConstraint("hold_pico >= 0", name="hold_pico"),
        CheckConstraint(
            "dispute IS NULL OR (cost_pico IS NULL AND hold_pico IS NULL"
            " AND input_tokens IS NULL AND closes_seq IS NULL)",
            name="dispute",
        ),
        CheckConstraint(
            "(kind = 'settled' AND dispute IS NULL) = (input_tokens IS NOT NULL)", name="usage"
        ),
        CheckConstraint(
            "(kind = 'intent' OR dispute IS NOT NULL) = (closes_seq IS NULL)", name="closes"
        ),
        CheckConstraint("input_tokens >= 0", name="input_tokens"),
        CheckConstraint("output_tokens >= 0", name="output_tokens"),
        Index(None, "ledger_id", "attempt_id"),
        Index(None, "ledger_id", "at_us"),
        UniqueConstraint("ledger_id", "closes_seq"),
        {"sqlite_strict": True},
    )

    ledger_id: int = Field(sa_column=Column(BIG, ForeignKey("ledger.id"), primary_key=True))
    seq: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    kind: str = Field(sa_type=Text)
    at_us: int = Field(sa_type=BIG)
    stored_us: int = Field(sa_type=BIG)
    body: str = Field(sa_type=Text)
    hash: bytes = Field(sa_type=LargeBinary)
    dispute: str | None = Field(default=None, sa_type=Text)
    attempt_id: str = Field(sa_type=Text)
    closes_seq: int | None = Field(default=None, sa_type=BIG)
    provider: str | None = Field(default=None, sa_type=Text)
    model: str | None = Field(default=None, sa_type=Text)
    input_tokens: int | None = Field(default=None, sa_type=BIG)
    output_tokens: int | None = Field(default=None, sa_type=BIG)
    cache_read_tokens: int | None = Field(default=None, sa_type=BIG)
    image_tokens: int | None = Field(default=None, sa_type=BIG)
    reasoning_tokens: int | None = Field(default=None, sa_type=BIG)
    cost_currency: str | None = Field(default=None, sa_type=Text)
    cost_pico: int | None = Field(default=None, sa_type=BIG)
    rated_us: int | None = Field(default=None, sa_type=BIG)
    price_rows: str | None = Field(default=None, sa_type=Text)
    hold_currency: str | None = Field(default=None, sa_type=Text)
    hold_pico: int | None = Field(default=None, sa_type=BIG)


class RefusalRow(_Billing, table=True):
    """What was offered and not taken, once for each different offer, however often it came."""

    __tablename__ = "refusal"
    __table_args__ = (
        CheckConstraint("length(digest) = 32", name="digest"),
        CheckConstraint("times >= 1", name="times"),
        Index(None, "tenant", "last_us"),
        {"sqlite_strict": True},
    )

    digest: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    kind: str = Field(sa_type=Text)
    words: str = Field(sa_type=Text)
    tenant: str | None = Field(default=None, sa_type=Text)
    node: str | None = Field(default=None, sa_type=Text)
    epoch: str | None = Field(default=None, sa_type=Text)
    first_seq: int | None = Field(default=None, sa_type=BIG)
    sample: str = Field(sa_type=Text)
    times: int = Field(sa_type=BIG)
    first_us: int = Field(sa_type=BIG)
    last_us: int = Field(sa_type=BIG)


LEDGER: Table = METADATA.tables["ledger"]
ENTRY: Table = METADATA.tables["entry"]
REFUSAL: Table = METADATA.tables["refusal"]
