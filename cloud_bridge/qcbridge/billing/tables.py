"""The billing database: what was received and decided, never what was concluded from it alone.

One row of `ledger` for each (tenant, node, epoch) says how far its chain has come;
`entry` holds the chain itself, body and hash as they arrived, with what it moves beside
them; `resolution` holds what this server decided by itself and moves likewise. What is
summed is summed under a `heading`. The same schema on SQLite (STRICT) and PostgreSQL:
whole numbers only, times in microseconds since 1970 UTC, money in pico-units.
`migrations/` builds it.
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
    text,
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

STRICT = {"sqlite_strict": True}

TOKEN_COLUMNS = (
    "text_tokens",
    "image_tokens",
    "unknown_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
)
"""One for each field of `TokenUsage`, in its order."""


class _Billing(SQLModel):
    """Keeps these tables apart from any other in the process."""

    metadata: ClassVar[MetaData] = METADATA


class _Movement(_Billing):
    """What moves when an attempt goes on: a state and, where they change, cost and hold.

    `was` is the state before (none for an attempt that begins), `..._was_...` the
    amounts that no longer hold, so sums need no other row. Tokens are there where tokens
    become known.
    """

    step: int | None = Field(default=None, sa_type=BIG)
    """How many steps the attempt had taken before; none for what is no step of an attempt."""
    state: str | None = Field(default=None, sa_type=Text)
    was: str | None = Field(default=None, sa_type=Text)
    heading_id: int | None = Field(default=None, sa_type=BIG)
    text_tokens: int | None = Field(default=None, sa_type=BIG)
    image_tokens: int | None = Field(default=None, sa_type=BIG)
    unknown_tokens: int | None = Field(default=None, sa_type=BIG)
    cache_read_tokens: int | None = Field(default=None, sa_type=BIG)
    cache_write_tokens: int | None = Field(default=None, sa_type=BIG)
    cache_write_1h_tokens: int | None = Field(default=None, sa_type=BIG)
    output_tokens: int | None = Field(default=None, sa_type=BIG)
    reasoning_tokens: int | None = Field(default=None, sa_type=BIG)
    cost_currency: str | None = Field(default=None, sa_type=Text)
    cost_pico: int | None = Field(default=None, sa_type=BIG)
    cost_was_currency: str | None = Field(default=None, sa_type=Text)
    cost_was_pico: int | None = Field(default=None, sa_type=BIG)
    price_rows: str | None = Field(default=None, sa_type=Text)
    """The rows of the price book that made the cost, as a JSON array."""
    rated_us: int | None = Field(default=None, sa_type=BIG)
    hold_currency: str | None = Field(default=None, sa_type=Text)
    hold_pico: int | None = Field(default=None, sa_type=BIG)
    hold_was_currency: str | None = Field(default=None, sa_type=Text)
    hold_was_pico: int | None = Field(default=None, sa_type=BIG)


def _movement_checks() -> tuple[CheckConstraint, ...]:
    return (
        *(
            CheckConstraint(f"({name}_pico IS NULL) = ({name}_currency IS NULL)", name=name)
            for name in ("cost", "cost_was", "hold", "hold_was")
        ),
        CheckConstraint("cost_pico >= 0 AND cost_was_pico >= 0", name="cost_pico"),
        CheckConstraint("hold_pico >= 0 AND hold_was_pico >= 0", name="hold_pico"),
        CheckConstraint(" AND ".join(f"{name} >= 0" for name in TOKEN_COLUMNS), name="tokens"),
        # A step has both; what is no step has neither, and so moves nothing.
        CheckConstraint("(step IS NULL) = (state IS NULL)", name="step"),
        CheckConstraint(
            "state IS NOT NULL OR (was IS NULL AND cost_pico IS NULL AND cost_was_pico IS NULL"
            " AND hold_pico IS NULL AND hold_was_pico IS NULL AND output_tokens IS NULL)",
            name="moves",
        ),
    )


class LedgerRow(_Billing, table=True):
    """One ledger file of one node, and the last entry of its chain that is stored here."""

    __tablename__ = "ledger"
    __table_args__ = (
        UniqueConstraint("tenant", "node", "epoch"),
        CheckConstraint("acked_seq >= 0", name="acked_seq"),
        CheckConstraint("length(head_hash) = 32", name="head_hash"),
        STRICT,
    )

    id: int | None = Field(default=None, sa_column=Column(BIG, primary_key=True))
    tenant: str = Field(sa_type=Text)
    node: str = Field(sa_type=Text)
    epoch: str = Field(sa_type=Text)
    acked_seq: int = Field(sa_type=BIG)
    head_hash: bytes = Field(sa_type=LargeBinary)
    first_us: int = Field(sa_type=BIG)
    last_us: int = Field(sa_type=BIG)


class HeadingRow(_Billing, table=True):
    """What use is summed under: provider, model, cost centre, level and region.

    There are few of them for very many entries. `digest` is over the others, because
    together they can be longer than an index takes.
    """

    __tablename__ = "heading"
    __table_args__ = (
        UniqueConstraint("digest"),
        CheckConstraint("length(digest) = 32", name="digest"),
        STRICT,
    )

    id: int | None = Field(default=None, sa_column=Column(BIG, primary_key=True))
    digest: bytes = Field(sa_type=LargeBinary)
    provider: str = Field(sa_type=Text)
    model: str = Field(sa_type=Text)
    line: str = Field(sa_type=Text)
    product: str = Field(sa_type=Text)
    department: str = Field(sa_type=Text)
    application: str = Field(sa_type=Text)
    function: str = Field(sa_type=Text)
    agent: str = Field(sa_type=Text)
    level: str = Field(sa_type=Text)
    region: str = Field(sa_type=Text)


class EntryRow(_Movement, table=True):
    """One entry as it came, and what it moves.

    One that is quarantined moves nothing and says why; if its body cannot be read, `kind`
    is `unreadable` and there is no time. `resolution_id` is this server's own decision
    that the entry repeats: the money moved then. `(ledger_id, subject, step)` is unique,
    so no attempt can take a step twice, whatever the code does. No foreign keys: the
    ledger's row is locked while entries of it are added, and checking each would cost
    more than adding it.
    """

    __tablename__ = "entry"
    __table_args__ = (
        CheckConstraint("seq >= 1", name="seq"),
        CheckConstraint("length(hash) = 32", name="hash"),
        CheckConstraint("quarantine IS NULL OR state IS NULL", name="quarantine"),
        CheckConstraint(
            "quarantine IS NOT NULL OR (at_us IS NOT NULL AND subject IS NOT NULL)", name="known"
        ),
        *_movement_checks(),
        UniqueConstraint("ledger_id", "subject", "step"),
        Index("ix_entry_at_us", "at_us", postgresql_using="brin"),
        Index(
            "ix_entry_quarantined",
            "ledger_id",
            "seq",
            postgresql_where=text("quarantine IS NOT NULL"),
            sqlite_where=text("quarantine IS NOT NULL"),
        ),
        STRICT,
    )

    ledger_id: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    seq: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    kind: str = Field(sa_type=Text)
    at_us: int | None = Field(default=None, sa_type=BIG)
    stored_us: int = Field(sa_type=BIG)
    body: str = Field(sa_type=Text)
    hash: bytes = Field(sa_type=LargeBinary)
    quarantine: str | None = Field(default=None, sa_type=Text)
    subject: str | None = Field(default=None, sa_type=Text)
    """What it is about: the id of its attempt, escalation, lease or epoch before."""
    resolution_id: int | None = Field(default=None, sa_type=BIG)


class ResolutionRow(_Movement, table=True):
    """What this server decided about an attempt, and what that moves; added, never changed.

    Of an attempt whose outcome is on record it is a Reconciled, WrittenOff or Adjusted,
    sent to the node until the node's own entry repeats it: `closed_seq` is that entry.
    With `releases_seq` it lets a quarantined entry move what it says; the node hears
    nothing of that. `body` is written as an entry's is.
    """

    __tablename__ = "resolution"
    __table_args__ = (
        UniqueConstraint("ledger_id", "subject", "step"),
        UniqueConstraint("ledger_id", "releases_seq"),
        *_movement_checks(),
        Index(
            "ix_resolution_open",
            "ledger_id",
            postgresql_where=text("closed_seq IS NULL AND releases_seq IS NULL"),
            sqlite_where=text("closed_seq IS NULL AND releases_seq IS NULL"),
        ),
        STRICT,
    )

    id: int | None = Field(default=None, sa_column=Column(BIG, primary_key=True))
    ledger_id: int = Field(sa_column=Column(BIG, ForeignKey("ledger.id"), nullable=False))
    subject: str = Field(sa_type=Text)
    kind: str = Field(sa_type=Text)
    at_us: int = Field(sa_type=BIG)
    stored_us: int = Field(sa_type=BIG)
    decided_by: str = Field(sa_type=Text)
    body: str = Field(sa_type=Text)
    releases_seq: int | None = Field(default=None, sa_type=BIG)
    closed_seq: int | None = Field(default=None, sa_type=BIG)


class ParkedRow(_Billing, table=True):
    """A batch that came before its time, as it came; taken once the gap before it is closed."""

    __tablename__ = "parked"
    __table_args__ = (CheckConstraint("first_seq <= last_seq", name="seq"), STRICT)

    ledger_id: int = Field(sa_column=Column(BIG, ForeignKey("ledger.id"), primary_key=True))
    first_seq: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    last_seq: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    stored_us: int = Field(sa_type=BIG)
    raw: bytes = Field(sa_type=LargeBinary)


class CheckpointRow(_Billing, table=True):
    """A signed note about a ledger: the node's line, if it signed, and this server's."""

    __tablename__ = "checkpoint"
    __table_args__ = (STRICT,)

    ledger_id: int = Field(sa_column=Column(BIG, ForeignKey("ledger.id"), primary_key=True))
    seq: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    at_us: int = Field(sa_type=BIG)
    note: str = Field(sa_type=Text)


class ForkRow(_Billing, table=True):
    """Two entries under one identity: the one stored here and the other that was offered."""

    __tablename__ = "fork"
    __table_args__ = (
        CheckConstraint("length(stored_hash) = 32", name="stored_hash"),
        CheckConstraint("length(offered_hash) = 32", name="offered_hash"),
        STRICT,
    )

    ledger_id: int = Field(sa_column=Column(BIG, ForeignKey("ledger.id"), primary_key=True))
    seq: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    offered_hash: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    stored_hash: bytes = Field(sa_type=LargeBinary)
    note: str | None = Field(default=None, sa_type=Text)
    """The node's signature under what was offered: proof that it wrote both."""
    times: int = Field(sa_type=BIG)
    first_us: int = Field(sa_type=BIG)
    last_us: int = Field(sa_type=BIG)


class RefusalRow(_Billing, table=True):
    """What was offered and not taken, once for each different offer, however often it came."""

    __tablename__ = "refusal"
    __table_args__ = (
        CheckConstraint("length(digest) = 32", name="digest"),
        CheckConstraint("times >= 1", name="times"),
        Index(None, "tenant", "last_us"),
        STRICT,
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


class NodeKeyRow(_Billing, table=True):
    """A key a node may sign with, from an instant until it is revoked."""

    __tablename__ = "node_key"
    __table_args__ = (UniqueConstraint("tenant", "node", "key"), STRICT)

    id: int | None = Field(default=None, sa_column=Column(BIG, primary_key=True))
    tenant: str = Field(sa_type=Text)
    node: str = Field(sa_type=Text)
    key: str = Field(sa_type=Text)
    """As C2SP writes a verifier key; its name is TENANT/NODE."""
    valid_from_us: int = Field(sa_type=BIG)
    revoked_us: int | None = Field(default=None, sa_type=BIG)
    added_us: int = Field(sa_type=BIG)
    added_by: str = Field(sa_type=Text)


class TokenRow(_Billing, table=True):
    """An API token, known by its SHA-256 alone, and what it opens."""

    __tablename__ = "token"
    __table_args__ = (
        UniqueConstraint("digest"),
        UniqueConstraint("name"),
        CheckConstraint("length(digest) = 32", name="digest"),
        STRICT,
    )

    id: int | None = Field(default=None, sa_column=Column(BIG, primary_key=True))
    digest: bytes = Field(sa_type=LargeBinary)
    name: str = Field(sa_type=Text)
    tenant: str | None = Field(default=None, sa_type=Text)
    """Whose books it opens; none is everybody's."""
    node: str | None = Field(default=None, sa_type=Text)
    scopes: str = Field(sa_type=Text)
    """Words with spaces between them."""
    created_us: int = Field(sa_type=BIG)
    created_by: str = Field(sa_type=Text)
    revoked_us: int | None = Field(default=None, sa_type=BIG)
    used_us: int | None = Field(default=None, sa_type=BIG)


class AuditRow(_Billing, table=True):
    """Who changed what about these books, and when; added, never changed."""

    __tablename__ = "audit"
    __table_args__ = (STRICT,)

    id: int | None = Field(default=None, sa_column=Column(BIG, primary_key=True))
    at_us: int = Field(sa_type=BIG)
    who: str = Field(sa_type=Text)
    action: str = Field(sa_type=Text)
    tenant: str | None = Field(default=None, sa_type=Text)
    what: str = Field(sa_type=Text)
    """A JSON object."""


class BudgetRow(_Billing, table=True):
    """A limit that a tenant's nodes share; they are lent parts of it."""

    __tablename__ = "budget"
    __table_args__ = (
        UniqueConstraint("tenant", "name"),
        CheckConstraint("most >= 0", name="most"),
        CheckConstraint("(unit = 'money') = (currency IS NOT NULL)", name="currency"),
        STRICT,
    )

    id: int | None = Field(default=None, sa_column=Column(BIG, primary_key=True))
    tenant: str = Field(sa_type=Text)
    name: str = Field(sa_type=Text)
    unit: str = Field(sa_type=Text)
    currency: str | None = Field(default=None, sa_type=Text)
    most: int = Field(sa_type=BIG)
    window: str = Field(sa_type=Text)
    zone: str = Field(sa_type=Text)
    scope: str = Field(sa_type=Text)
    """The cost centres it is for, as a JSON object of their fields."""
    nodes: str | None = Field(default=None, sa_type=Text)
    """The nodes that share it, as a JSON array; none is all of the tenant's."""
    slice_min: int = Field(sa_type=BIG)
    lease_us: int = Field(sa_type=BIG)
    changed_us: int = Field(sa_type=BIG)


class LeaseRow(_Billing, table=True):
    """A part of a budget lent to one ledger; what it may have used in all in that window."""

    __tablename__ = "lease"
    __table_args__ = (
        CheckConstraint("most >= 0", name="most"),
        Index(None, "budget_id", "from_us", "ledger_id"),
        STRICT,
    )

    id: str = Field(sa_column=Column(Text, primary_key=True))
    budget_id: int = Field(sa_column=Column(BIG, ForeignKey("budget.id"), nullable=False))
    ledger_id: int = Field(sa_column=Column(BIG, ForeignKey("ledger.id"), nullable=False))
    number: int = Field(sa_type=BIG)
    """Which of this budget's leases to this ledger it is: a later one supersedes an earlier."""
    most: int = Field(sa_type=BIG)
    from_us: int = Field(sa_type=BIG)
    until_us: int = Field(sa_type=BIG)
    granted_us: int = Field(sa_type=BIG)
    seen_seq: int | None = Field(default=None, sa_type=BIG)
    """The node's own entry about it."""
    over_us: int | None = Field(default=None, sa_type=BIG)
    """Since when nothing more can be spent under it: superseded or expired, as the chain shows."""


class SpentRow(_Billing, table=True):
    """What a ledger's entries show as used of a shared budget in one window."""

    __tablename__ = "spent"
    __table_args__ = (STRICT,)

    budget_id: int = Field(sa_column=Column(BIG, ForeignKey("budget.id"), primary_key=True))
    ledger_id: int = Field(sa_column=Column(BIG, ForeignKey("ledger.id"), primary_key=True))
    from_us: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    used: int = Field(sa_type=BIG)


LEDGER: Table = METADATA.tables["ledger"]
HEADING: Table = METADATA.tables["heading"]
ENTRY: Table = METADATA.tables["entry"]
RESOLUTION: Table = METADATA.tables["resolution"]
PARKED: Table = METADATA.tables["parked"]
CHECKPOINT: Table = METADATA.tables["checkpoint"]
FORK: Table = METADATA.tables["fork"]
REFUSAL: Table = METADATA.tables["refusal"]
NODE_KEY: Table = METADATA.tables["node_key"]
TOKEN: Table = METADATA.tables["token"]
AUDIT: Table = METADATA.tables["audit"]
BUDGET: Table = METADATA.tables["budget"]
LEASE: Table = METADATA.tables["lease"]
SPENT: Table = METADATA.tables["spent"]
